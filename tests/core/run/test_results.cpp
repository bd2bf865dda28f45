#include "core/run/results.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "tests/helpers/temporary_folder.h"

namespace muster::run {
namespace {

struct ReadResult : testing::Test {
  void write(const std::string& text) { std::ofstream(folder / "result.json") << text; }
  const TemporaryFolder folder;
};

TEST_F(ReadResult, SaysWhatARunHasLeft) {
  write(
      R"({"best": {"selected_by": "valid/MAE", "value": 0.5}, "valid": {"metrics": {"MAE": 0.5}}, "test": {"metrics": {"MAE": null}}, "model_note": "MIAR"})");
  const auto result = read_result(folder.path());
  EXPECT_EQ(result.selected_by, "valid/MAE");
  EXPECT_EQ(result.best_value, 0.5);
  EXPECT_EQ(result.validation, (nlohmann::json{{"MAE", 0.5}}));
  EXPECT_EQ(result.test, (nlohmann::json{{"MAE", nullptr}}));
  EXPECT_EQ(result.model_note, "MIAR");
}

TEST_F(ReadResult, WithoutSplitsAndValue) {
  write(R"({"best": {"selected_by": "last step", "value": null}})");
  const auto result = read_result(folder.path());
  EXPECT_TRUE(std::isnan(result.best_value));
  EXPECT_TRUE(result.validation.empty() && result.test.empty() && result.model_note.empty());
}

TEST_F(ReadResult, NamesAFileThatIsNone) {
  for (const char* text : {"", R"({"best": {"sel)", "[]", "{}", R"({"best": {"selected_by": 1, "value": 1}})",
                           R"({"best": {"selected_by": "x", "value": "y"}})",
                           R"({"best": {"selected_by": "x", "value": 1}, "test": {}})"}) {
    write(text);
    try {
      read_result(folder.path());
      ADD_FAILURE() << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      EXPECT_EQ(std::string(error.what()).rfind(folder / "result.json: ", 0), 0) << error.what();
    }
  }
}

}  // namespace
}  // namespace muster::run
