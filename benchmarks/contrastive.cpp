// Time and memory of a batch-wide contrastive loss with a learned temperature, forward and backward: muster's tiles
// against the same loss written plainly with LibTorch's autograd, where N x N matrices are stored.
//   contrastive [--rows 1024,2048,...] [--dim 256] [--threads 1] [--repeats 5] [--only tiled|plain]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/measure.h"
#include "core/losses/contrastive.h"

namespace {

struct Measurement {
  double milliseconds, mebibytes, loss;
};

at::Tensor plain_loss(const at::Tensor& u, const at::Tensor& v, const at::Tensor& scale, const at::Tensor& labels) {
  const at::Tensor similarity = at::mm(u, v.t()) * scale;
  at::Tensor targets = labels.unsqueeze(1).eq(labels.unsqueeze(0)).to(similarity.scalar_type());
  targets = targets / targets.sum(1, true);
  const at::Tensor log_probabilities = at::log_softmax(similarity, 1) + at::log_softmax(similarity.t(), 1);
  return (targets * log_probabilities).sum() * (-0.5 / static_cast<double>(u.size(0)));
}

double peak_mebibytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

Measurement measure(bool tiled, int64_t rows, int64_t dim) {
  at::manual_seed(1);
  const auto unit = [&] {
    const at::Tensor x = at::randn({rows, dim});
    return (x / x.norm(2, {1}, true)).requires_grad_();
  };
  const at::Tensor u = unit(), v = unit(), labels = at::randint(4, {rows}, at::kLong);
  const at::Tensor temperature = at::scalar_tensor(2.66, at::kFloat).requires_grad_();
  const auto run = [&](int64_t count) {
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, 0, count); };
    const at::Tensor scale = temperature.exp();
    const at::Tensor loss = tiled ? muster::losses::contrastive_loss(part(u), part(v), scale, part(labels),
                                                                     muster::losses::PairTargets::kClassMean)
                                  : plain_loss(part(u), part(v), scale, part(labels));
    torch::autograd::backward({loss}, {});
    return loss.item<double>();
  };
  run(std::min<int64_t>(64, rows));  // starts the libraries, makes the leaves' gradients
  const double before = peak_mebibytes();
  const int64_t runs =
      std::clamp<int64_t>(1024 * 1024 / (rows * rows), 1, 200);  // small batches: more than the clock's noise
  double loss = 0;
  const double seconds = muster::benchmarks::seconds([&] {
    for (int64_t r = 0; r < runs; ++r) loss = run(rows);
  });
  return {1000 * seconds / static_cast<double>(runs), peak_mebibytes() - before, loss};
}

// In a process of its own, so that each has its own peak.
Measurement measure_apart(bool tiled, int64_t rows, int64_t dim, int threads) {
  static auto* const result = static_cast<Measurement*>(
      mmap(nullptr, sizeof(Measurement), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t child = fork();
  if (result == MAP_FAILED || child < 0) std::perror("contrastive"), std::exit(74);
  if (child == 0) {
    at::set_num_threads(threads);
    *result = measure(tiled, rows, dim);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status == 0) return *result;
  std::fprintf(stderr, "the %s loss of %ld rows ended with status %d: too little memory?\n", tiled ? "tiled" : "plain",
               rows, status);
  std::exit(70);
}

// Of several processes: the medians, and the loss.
Measurement summary(const std::vector<Measurement>& all) {
  if (all.empty()) return {std::nan(""), std::nan(""), std::nan("")};
  const auto median_of = [&](double Measurement::*member) {
    std::vector<double> values;
    for (const auto& one : all) values.push_back(one.*member);
    return muster::benchmarks::median(values);
  };
  return {median_of(&Measurement::milliseconds), median_of(&Measurement::mebibytes), all.back().loss};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Time and memory of a batch-wide contrastive loss, in tiles and written plainly");
  std::vector<int64_t> all_rows{1024, 2048, 4096, 8192, 16384};
  std::string only;
  int64_t dim = 256;
  int threads = 1, repeats = 5;
  app.add_option("--rows", all_rows, "Batch sizes, comma separated")->delimiter(',');
  app.add_option("--dim", dim, "Columns of the embeddings");
  app.add_option("--threads", threads, "Threads of the process that computes");
  app.add_option("--repeats", repeats, "Processes for each row of the table");
  app.add_option("--only", only, "Measure one of them alone")->check(CLI::IsMember({"tiled", "plain"}));
  CLI11_PARSE(app, argc, argv);
  std::printf(
      "forward + backward, float32, %ld columns, %d thread(s), medians of %d; memory: growth of the peak resident "
      "set\n\n",
      dim, threads, repeats);
  std::printf(
      "|  rows |  plain ms |  tiled ms | plain/tiled | plain MiB | tiled MiB | plain/tiled | loss, plain - tiled |\n");
  std::printf(
      "|------:|----------:|----------:|------------:|----------:|----------:|------------:|--------------------:|\n");
  for (const int64_t rows : all_rows) {
    std::vector<Measurement> plain_runs, tiled_runs;
    for (int r = 0; r < repeats; ++r) {  // alternately: a busy machine slows both
      if (only != "tiled") plain_runs.push_back(measure_apart(false, rows, dim, threads));
      if (only != "plain") tiled_runs.push_back(measure_apart(true, rows, dim, threads));
    }
    const Measurement plain = summary(plain_runs), tiled = summary(tiled_runs);
    std::printf("| %5ld | %9.2f | %9.2f | %11.2f | %9.0f | %9.1f | %11.1f | %19.1e |\n", rows, plain.milliseconds,
                tiled.milliseconds, plain.milliseconds / tiled.milliseconds, plain.mebibytes, tiled.mebibytes,
                plain.mebibytes / tiled.mebibytes, plain.loss - tiled.loss);
    std::fflush(stdout);
  }
}
