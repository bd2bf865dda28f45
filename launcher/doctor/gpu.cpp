#include "launcher/doctor/gpu.h"

#include <regex>
#include <sstream>

namespace muster::launcher::doctor {
namespace {

std::string cuda_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string gpus(int count) { return std::to_string(count) + (count == 1 ? " GPU" : " GPUs"); }

Finding check_seen(const Machine& machine, bool built_with_cuda, const distributed::VisibleGpus& visible) {
  const int there = machine.nvidia_gpus, seen = static_cast<int>(visible.gpus.size());
  Finding finding{"gpu", State::kOk, "", "every GPU of the machine can be used",
                  "",    "",         -1, {{"machine", there}, {"visible", seen}}};
  if (there == 0 && seen == 0) {
    finding.state = State::kSkipped;
    finding.found = machine.nvidia_driver.empty() ? "no NVIDIA GPU here (no /dev/nvidia*, no driver)"
                                                  : "driver " + machine.nvidia_driver + ", but no GPU here";
    return finding;
  }
  if (!built_with_cuda) {
    finding.state = State::kWarning;
    finding.found = "this machine has " + gpus(there) + ", but muster was built without CUDA and computes on the CPU";
    finding.fix = "build it for GPUs: ./setup.sh --device cuda";
    return finding;
  }
  finding.found = gpus(seen) + " of " + std::to_string(std::max(there, seen)) +
                  (seen > 0 ? " (" + visible.gpus[0].name + ")" : "") +
                  (machine.nvidia_driver.empty() ? "" : ", driver " + machine.nvidia_driver);
  if (seen > 0) return finding;
  finding.state = State::kFailed;
  finding.found = "this machine has " + gpus(there) + ", but CUDA gives none: " + visible.why_none;
  finding.fix =
      "run nvidia-smi: if it fails too, the driver is the matter (in a container: docker run --gpus all, apptainer "
      "--nv)";
  return finding;
}

Finding check_cuda(const Machine& machine, bool built_with_cuda) {
  Finding finding{"cuda",
                  State::kSkipped,
                  "muster was built without CUDA",
                  "a driver at least as new as the CUDA runtime",
                  "",
                  "",
                  -1,
                  {}};
  if (!built_with_cuda) return finding;
  finding.figures = {{"driver", machine.cuda_of_driver}, {"runtime", machine.cuda_of_runtime}};
  if (machine.cuda_of_driver == 0 || machine.cuda_of_runtime == 0) {
    finding.found = "no driver or no CUDA runtime in this process";
    return finding;
  }
  finding.state = State::kOk;
  finding.found = "runtime " + cuda_text(machine.cuda_of_runtime) + ", the driver serves up to " +
                  cuda_text(machine.cuda_of_driver);
  if (machine.cuda_of_driver / 1000 >= machine.cuda_of_runtime / 1000) return finding;
  finding.state = State::kFailed;
  finding.fix = "update the NVIDIA driver, or build muster with a torch for CUDA " + cuda_text(machine.cuda_of_driver);
  return finding;
}

// CUDA silently hides every device from the first wrong entry on.
Finding check_visible(const Machine& machine) {
  Finding finding{"cuda_visible",
                  State::kOk,
                  "CUDA_VISIBLE_DEVICES is not set",
                  "numbers of GPUs from 0 as \"0,1\", or UUIDs as GPU-...",
                  "",
                  "",
                  -1,
                  {}};
  const auto set = machine.environment.find("CUDA_VISIBLE_DEVICES");
  if (set == machine.environment.end()) return finding;
  finding.found = "CUDA_VISIBLE_DEVICES=" + set->second;
  const int there = machine.nvidia_gpus;
  if (set->second.empty() || set->second == "-1" || set->second == "NoDevFiles") {
    if (there == 0) return finding;
    finding.state = State::kWarning;
    finding.found += " hides all " + gpus(there) + " of this machine";
    finding.fix = "unset CUDA_VISIBLE_DEVICES, or ask the scheduler for GPUs (Slurm: --gpus-per-node)";
    return finding;
  }
  static const std::regex uuid("(GPU|MIG)-[0-9a-fA-F/-]+");
  int count = 0;
  std::vector<std::string> seen;
  std::istringstream parts(set->second);
  for (std::string part; std::getline(parts, part, ',');) {
    const bool number = !part.empty() && part.size() < 4 && part.find_first_not_of("0123456789") == std::string::npos;
    std::string why;
    if (!number && !std::regex_match(part, uuid))
      why = "\"" + part + "\" is neither a number nor a UUID";
    else if (number && there > 0 && std::stoi(part) >= there)
      why = "there is no GPU " + part + " here, only " + gpus(there);
    else if (std::find(seen.begin(), seen.end(), part) != seen.end())
      why = part + " is named twice";
    if (!why.empty()) {
      // Nobody reads it where there are no GPUs.
      finding.state = there > 0 ? State::kFailed : State::kWarning;
      finding.found += ": " + why + "; CUDA ignores that entry and all after it";
      finding.fix = "unset CUDA_VISIBLE_DEVICES, or name GPUs that nvidia-smi -L lists";
      return finding;
    }
    seen.push_back(part);
    ++count;
  }
  if (there > count) finding.found += ": " + gpus(count) + " of " + std::to_string(there) + " here";
  return finding;
}

}  // namespace

std::vector<Finding> check_gpus(const Machine& machine, bool built_with_cuda, const distributed::VisibleGpus& visible) {
  std::vector<Finding> findings{check_seen(machine, built_with_cuda, visible), check_cuda(machine, built_with_cuda),
                                check_visible(machine)};
  for (auto& finding : findings) finding.host = machine.host;
  return findings;
}

}  // namespace muster::launcher::doctor
