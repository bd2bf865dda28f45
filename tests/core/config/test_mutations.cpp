#include <random>

#include "core/config/resolved_text.h"
#include "core/config/stored.h"
#include "tests/core/config/with_folder.h"

namespace muster::config {
namespace {

using Mutations = WithFolder;

const char kValid[] =
    "# my run\n"
    "preset: \"miar_recommended\"\n"
    "data { path: \"../mosi.h5\" modalities: [\"text\", 'audio'] split { kind: K_FOLD folds: 3 fold: 1 } }\n"
    "miar { dim: 64 heads: 4 dropout: 0.25 }\n"
    "optimizer { learning_rate: 1e-3 schedule: COSINE warmup_steps: 10 }\n"
    "training { epochs: 3 batch_size: 8 sampling: SHUFFLE drop_last: true }\n"
    "evaluation { select_by: 'MAE' }\n";

class Mutator {
 public:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }

  void change(std::string& text) {
    static const std::string useful = "{}[]<>:;,\"'\\#=-.0123456789\n eE_x\xC3\xA4";
    size_t at = below(text.size());
    char byte = below(8) == 0 ? static_cast<char>(random_()) : useful[below(useful.size())];
    const size_t kind = below(20);
    if (kind == 0) {
      text.resize(at);
    } else if (kind == 1) {
      text.insert(at, text.substr(below(text.size()), below(30)));
    } else if (kind == 2) {
      text.erase(at, 1 + below(8));
    } else if (kind < 6) {
      text.insert(at, 1, byte);
    } else if (kind < 14) {
      text[at] = byte;
    } else {
      // Another digit: text that stays valid as text, with values that need not be.
      at = text.find_first_of("0123456789", at);
      if (at != std::string::npos) text[at] = static_cast<char>('0' + below(10));
    }
  }

 private:
  std::mt19937 random_{20240917};
};

// Whatever is done to a file: it loads, and then what it resolves to reads back, or there is a kBadConfig error.
TEST_F(Mutations, OfAValidFileLoadOrAreExplained) {
  Mutator mutator;
  int loaded = 0, refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string text = kValid;
    for (size_t edits = 1 + mutator.below(3); edits > 0 && !text.empty(); --edits) mutator.change(text);
    SCOPED_TRACE(text);
    try {
      std::vector<std::string> overrides;
      if (mutator.below(4) == 0) overrides.push_back(text.substr(mutator.below(text.size() + 1), 30));
      const Experiment experiment = load(text, overrides).experiment;
      ++loaded;
      ASSERT_EQ(resolved_text(parse_stored_experiment(resolved_text(experiment), "x")), resolved_text(experiment));
    } catch (const Error& error) {
      ++refused;
      ASSERT_EQ(error.code(), ExitCode::kBadConfig) << error.what();
    }
  }
  // Both happen often, or the test would show nothing.
  EXPECT_GT(loaded, 100);
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace muster::config
