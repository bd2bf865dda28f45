// Machines that are not here: GPUs, clusters' file systems, quotas, other MPIs.
#include <gmock/gmock.h>

#include "launcher/doctor/machine.h"

namespace muster::launcher::doctor {
namespace {

using testing::HasSubstr;

// What one check finds.
template <class Subject>
Finding found_by(const std::vector<Check<const Subject>>& checks, const std::string& name, const Subject& subject) {
  std::vector<Finding> findings;
  for (const auto& check : checks)
    if (check.name == name)
      run_checks<const Subject>({{check.name, check.expected, check.examine}}, subject,
                                [&](const Finding& finding) { findings.push_back(finding); });
  EXPECT_EQ(findings.size(), 1u) << name;
  if (findings.empty()) return {};
  const auto& finding = findings[0];
  EXPECT_EQ(finding.check, name);
  EXPECT_TRUE(finding.state == State::kOk || finding.state == State::kSkipped || !finding.fix.empty()) << name;
  return finding;
}

Finding found_on(const Machine& machine, const std::string& check) { return found_by(kMachineChecks, check, machine); }

Machine machine_with_gpus(int gpus) {
  Machine machine;
  machine.host = "node1";
  machine.nvidia_gpus = gpus;
  machine.nvidia_driver = gpus > 0 ? "580.95.05" : "";
  machine.cuda_of_driver = machine.cuda_of_runtime = 13000;
  return machine;
}

distributed::VisibleGpus visible(int gpus) {
  distributed::VisibleGpus all;
  for (int i = 0; i < gpus; ++i) {
    distributed::Gpu gpu;
    gpu.uuid = std::to_string(i);
    gpu.name = "NVIDIA H100";
    all.gpus.push_back(gpu);
  }
  if (gpus == 0) all.why_none = "no CUDA-capable device is detected";
  return all;
}

Finding found_with_gpus(Machine machine, bool built_with_cuda, int seen, const std::string& check) {
  machine.built_with_cuda = built_with_cuda;
  machine.visible = visible(seen);
  return found_on(machine, check);
}

TEST(Gpus, WhatIsThereAndWhatIsSeen) {
  EXPECT_EQ(found_with_gpus(machine_with_gpus(0), false, 0, "gpu").state, State::kSkipped);
  const auto without = found_with_gpus(machine_with_gpus(8), false, 0, "gpu");
  EXPECT_EQ(without.state, State::kWarning);
  EXPECT_THAT(without.fix, HasSubstr("--device cuda"));
  const auto none = found_with_gpus(machine_with_gpus(8), true, 0, "gpu");
  EXPECT_EQ(none.state, State::kFailed);
  EXPECT_THAT(none.found, HasSubstr("no CUDA-capable device"));
  const auto all = found_with_gpus(machine_with_gpus(2), true, 2, "gpu");
  EXPECT_EQ(all.state, State::kOk);
  EXPECT_THAT(all.found, HasSubstr("driver 580.95.05"));
}

TEST(Gpus, ADriverThatIsTooOld) {
  Machine machine = machine_with_gpus(1);
  machine.cuda_of_driver = 12080;
  const auto finding = found_with_gpus(machine, true, 1, "cuda");
  EXPECT_EQ(finding.state, State::kFailed);
  EXPECT_THAT(finding.found, HasSubstr("runtime 13.0, the driver supports up to 12.8"));
  machine.cuda_of_driver = 13010;
  EXPECT_EQ(found_with_gpus(machine, true, 1, "cuda").state, State::kOk);
}

TEST(Gpus, VisibleDevices) {
  const auto judged = [](const std::string& value, int gpus) {
    Machine machine = machine_with_gpus(gpus);
    machine.environment["CUDA_VISIBLE_DEVICES"] = value;
    return found_with_gpus(machine, true, gpus, "cuda_visible");
  };
  EXPECT_EQ(judged("0,1", 2).state, State::kOk);
  EXPECT_THAT(judged("1", 4).found, HasSubstr("1 GPU of 4 here"));
  EXPECT_EQ(judged("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 4).state, State::kOk);
  EXPECT_THAT(judged("0,9", 2).found, HasSubstr("there is no GPU 9 here"));
  EXPECT_EQ(judged("0,9", 2).state, State::kFailed);
  EXPECT_THAT(judged("0,0", 2).found, HasSubstr("named twice"));
  EXPECT_EQ(judged("gpu0", 2).state, State::kFailed);
  EXPECT_EQ(judged("gpu0", 0).state, State::kWarning);
  EXPECT_EQ(judged("", 2).state, State::kWarning);
  EXPECT_EQ(judged("", 0).state, State::kOk);
}

Machine good_machine() {
  Machine machine;
  machine.host = "node1";
  machine.addresses = {"10.0.0.1"};
  for (const char* name : {"open_files", "processes", "stack", "locked_memory", "file_size", "address_space"})
    machine.limits[name] = {-1, -1};
  machine.has_shared_memory = true;
  machine.shared_memory = {1000000000, 1000000000, 0, 0};
  machine.cores = 4;
  machine.memory = 64000000000;
  return machine;
}

TEST(Limits, AGoodMachine) {
  Machine machine = good_machine();
  machine.several_hosts = true;
  run_checks<const Machine>(kMachineChecks, machine, [&](const Finding& finding) {
    const bool needs_gpu = finding.check == "gpu" || finding.check == "cuda";
    EXPECT_EQ(finding.state, needs_gpu ? State::kSkipped : State::kOk) << finding.check << ": " << finding.found;
  });
}

TEST(Limits, LockedMemoryMattersWithInfiniband) {
  Machine machine = good_machine();
  machine.limits["locked_memory"] = {65536, 65536};
  EXPECT_EQ(found_on(machine, "locked_memory").state, State::kOk);
  machine.has_infiniband = true;
  EXPECT_EQ(found_on(machine, "locked_memory").state, State::kFailed);
}

TEST(Limits, QuotaMemoryLoadAndName) {
  Machine machine = good_machine();
  machine.core_quota = 1.5;
  machine.memory_limit = 1000000000;
  machine.load = 9;
  machine.addresses = {"127.0.1.1"};
  machine.several_hosts = true;
  EXPECT_EQ(found_on(machine, "cores").state, State::kWarning);
  EXPECT_THAT(found_on(machine, "cores").found, HasSubstr("only 1.5 of them"));
  EXPECT_EQ(found_on(machine, "memory").state, State::kWarning);
  EXPECT_EQ(found_on(machine, "load").state, State::kWarning);
  EXPECT_EQ(found_on(machine, "host_name").state, State::kWarning);
  machine.several_hosts = false;
  EXPECT_EQ(found_on(machine, "host_name").state, State::kOk);
  machine.addresses.clear();
  EXPECT_THAT(found_on(machine, "host_name").found, HasSubstr("resolves to no address"));
}

TEST(Limits, SharedMemory) {
  Machine machine = good_machine();
  machine.shared_memory = {64000000, 32000000, 0, 0};
  EXPECT_EQ(found_on(machine, "shared_memory").state, State::kWarning);
  machine.shared_memory.free = 1000000;
  EXPECT_EQ(found_on(machine, "shared_memory").state, State::kFailed);
  machine.has_shared_memory = false;
  EXPECT_THAT(found_on(machine, "shared_memory").found, HasSubstr("missing"));
}

constexpr const char* kMounts =
    "/dev/sda1 / ext4 rw 0 0\n"
    "server:/home /home nfs4 rw,soft,timeo=600 0 0\n"
    "10.0.0.9@o2ib:/scratch /home/my\\040scratch lustre rw,flock 0 0\n"
    "overlay /container overlay rw 0 0\n";

TEST(Directory, TheLongestMountCounts) {
  EXPECT_EQ(mount_of("/homeless", kMounts).type, "ext4");
  EXPECT_EQ(mount_of("/home/me", kMounts).type, "nfs4");
  EXPECT_EQ(mount_of("/home/my scratch/runs", kMounts).type, "lustre");
}

TEST(Directory, KindsOfFileSystems) {
  const auto judged = [](const std::string& path) {
    Start start;
    start.mounts = kMounts;
    start.several_hosts = true;
    start.directory = path;
    return found_by(kStartChecks, "directory", start);
  };
  EXPECT_EQ(judged("/home/my scratch").state, State::kOk);
  EXPECT_THAT(judged("/home/me").found, HasSubstr("mounted soft"));
  EXPECT_EQ(judged("/home/me").state, State::kWarning);
  EXPECT_EQ(judged("/container").state, State::kWarning);
}

TEST(LaunchBackends, WhoseMpirun) {
  const auto judged = [](const std::string& answer, int code = 0, bool needed = true) {
    Start start;
    start.here.mpirun = "/opt/mpirun";
    start.mpi_library = "Open MPI v4.1.4";
    start.alone = !needed;
    start.ask = [&](const auto&) {
      ProcessResult result;
      result.code = code;
      result.output = answer;
      return result;
    };
    return found_by(kStartChecks, "mpirun", start);
  };
  EXPECT_EQ(judged("mpirun (Open MPI) 4.1.6\n").state, State::kOk);
  EXPECT_EQ(judged("mpirun (Open MPI) 4.0.3\n").state, State::kWarning);
  EXPECT_EQ(judged("mpirun (Open MPI) 5.0.3\n").state, State::kFailed);
  EXPECT_EQ(judged("Intel(R) MPI Library for Linux* OS, Version 2021.4\n").state, State::kFailed);
  EXPECT_EQ(judged("Intel(R) MPI Library for Linux* OS, Version 4.1\n").state, State::kFailed);
  EXPECT_EQ(judged("mpirun (Open MPI) 5.0.3\n", 0, false).state, State::kWarning);
  EXPECT_EQ(judged("libopen-rte.so.40: cannot open\n", 127).state, State::kFailed);
}

TEST(LaunchBackends, WhatEndedMeans) {
  ProcessResult end;
  end.code = 255;
  end.errors =
      "ssh: connect to host n2 port 22: Connection refused\n-----\nORTE was unable to reliably start one or more "
      "daemons.\nThis usually is caused by:\n* a\n";
  const auto refused = explain_end(end, false, "mpirun ...");
  EXPECT_THAT(refused.fix, HasSubstr("is it up"));
  EXPECT_THAT(refused.found, testing::Not(HasSubstr("usually")));
  end.code = 137;
  end.errors = "Primary job terminated\nmuster: rank 1 of 2 (host n2) is lost: its process has died\n";
  const auto died = explain_end(end, true, "mpirun ...");
  EXPECT_EQ(died.check, "ranks_end");
  EXPECT_EQ(died.found,
            "the ranks ended too early, exit code 137: rank 1 of 2 (host n2) is lost: its process has died");
}

}  // namespace
}  // namespace muster::launcher::doctor
