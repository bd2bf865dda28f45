// Time and memory of a batch-wide contrastive loss with a learned temperature, forward and backward: muster's tiles
// against the same loss written plainly with LibTorch's autograd, where N x N matrices are stored.
//   contrastive [--rows 1024,2048,...] [--dim 256] [--threads 1] [--repeats 5] [--only tiled|plain]
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "core/losses/contrastive.h"

namespace {

struct Measurement {
  double milliseconds;
  double mebibytes;
  double loss;
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
  const auto start = std::chrono::steady_clock::now();
  double loss = 0;
  for (int64_t r = 0; r < runs; ++r) loss = run(rows);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {1000 * seconds / static_cast<double>(runs), peak_mebibytes() - before, loss};
}

// In a process of its own, so that each has its own peak.
Measurement measure_apart(bool tiled, int64_t rows, int64_t dim, int threads) {
  int ends[2];
  if (pipe(ends) != 0) std::perror("pipe"), std::exit(74);
  const pid_t child = fork();
  if (child < 0) std::perror("fork"), std::exit(74);
  if (child == 0) {
    at::set_num_threads(threads);
    const Measurement result = measure(tiled, rows, dim);
    _exit(write(ends[1], &result, sizeof result) == sizeof result ? 0 : 74);
  }
  close(ends[1]);
  Measurement result{};
  const bool whole = read(ends[0], &result, sizeof result) == sizeof result;
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (!whole || status != 0) {
    std::fprintf(stderr, "the %s loss of %lld rows ended with status %d: too little memory?\n",
                 tiled ? "tiled" : "plain", static_cast<long long>(rows), status);
    std::exit(70);
  }
  return result;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

struct Summary {
  std::vector<double> milliseconds, mebibytes;
  double loss = 0;

  void add(const Measurement& m) {
    milliseconds.push_back(m.milliseconds);
    mebibytes.push_back(m.mebibytes);
    loss = m.loss;
  }
};

}  // namespace

int main(int argc, char** argv) {
  std::string rows_list = "1024,2048,4096,8192,16384", only;
  int64_t dim = 256;
  int threads = 1, repeats = 5;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--rows" && !value.empty())
      rows_list = value;
    else if (option == "--dim" && !value.empty())
      dim = std::atoll(value.c_str());
    else if (option == "--threads" && !value.empty())
      threads = std::atoi(value.c_str());
    else if (option == "--repeats" && !value.empty())
      repeats = std::atoi(value.c_str());
    else if (option == "--only" && (value == "tiled" || value == "plain"))
      only = value;
    else {
      std::fprintf(
          stderr,
          "usage: contrastive [--rows 1024,2048,...] [--dim 256] [--threads 1] [--repeats 5] [--only tiled|plain]\n");
      return 2;
    }
  }
  std::printf(
      "forward + backward, float32, %lld columns, %d thread(s), medians of %d; memory: growth of the peak resident "
      "set\n\n",
      static_cast<long long>(dim), threads, repeats);
  std::printf(
      "|  rows |  plain ms |  tiled ms | plain/tiled | plain MiB | tiled MiB | plain/tiled | loss, plain - tiled |\n");
  std::printf(
      "|------:|----------:|----------:|------------:|----------:|----------:|------------:|--------------------:|\n");
  std::istringstream list(rows_list);
  for (std::string item; std::getline(list, item, ',');) {
    const int64_t rows = std::atoll(item.c_str());
    Summary plain, tiled;
    for (int r = 0; r < repeats; ++r) {  // in turns: a busy machine slows both
      if (only != "tiled") plain.add(measure_apart(false, rows, dim, threads));
      if (only != "plain") tiled.add(measure_apart(true, rows, dim, threads));
    }
    const auto value = [](const std::vector<double>& values) { return values.empty() ? std::nan("") : median(values); };
    const double plain_ms = value(plain.milliseconds), tiled_ms = value(tiled.milliseconds);
    const double plain_m = value(plain.mebibytes), tiled_m = value(tiled.mebibytes);
    std::printf("| %5lld | %9.2f | %9.2f | %11.2f | %9.0f | %9.1f | %11.1f | %19.1e |\n", static_cast<long long>(rows),
                plain_ms, tiled_ms, plain_ms / tiled_ms, plain_m, tiled_m, plain_m / tiled_m, plain.loss - tiled.loss);
    std::fflush(stdout);
  }
}
