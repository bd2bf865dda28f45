// The commands that `muster launch` makes of what is asked and what is here, as golden text; and what it refuses.
#include "launcher/launch/job_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "base/error.h"

namespace muster::launcher {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Eight cores with two hardware threads each, in one socket.
LaunchEnvironment laptop() {
  LaunchEnvironment here;
  here.program = "/opt/muster";
  here.mpirun = "/usr/bin/mpirun";
  here.remote_shell = "/usr/bin/ssh";
  here.host = "me.example.org";
  here.cpus = 16;
  here.cores = 8;
  here.environment = {{"PATH", "/usr/bin"}, {"HOME", "/home/me"}};
  return here;
}

// Two sockets of 32 cores.
LaunchEnvironment server(int gpus) {
  auto here = laptop();
  here.cpus = here.cores = 64;
  here.packages = 2;
  here.gpus = gpus;
  return here;
}

LaunchEnvironment in_allocation(std::map<std::string, std::string> variables, int gpus = 0) {
  auto here = server(gpus);
  here.srun = "/usr/bin/srun";
  here.srun_speaks_pmix = true;
  here.environment.insert({{"SLURM_JOB_ID", "7"},
                           {"SLURM_JOB_NUM_NODES", "2"},
                           {"SLURM_JOB_CPUS_PER_NODE", "64(x2)"},
                           {"SLURM_CPUS_ON_NODE", "64"}});
  for (const auto& [name, value] : variables) here.environment[name] = value;
  here.slurm = slurm_allocation(here.environment);
  return here;
}

JobRequest request(int ranks = 0) {
  JobRequest wanted;
  wanted.ranks = ranks;
  wanted.command = {"train", "my experiment.txtpb"};
  return wanted;
}

std::string line(const JobRequest& wanted, const LaunchEnvironment& here) {
  return shell_line(job_command(wanted, here));
}

std::string refusal(const JobRequest& wanted, const LaunchEnvironment& here) {
  try {
    job_command(wanted, here);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "not refused";
}

TEST(JobCommand, Laptop) {
  EXPECT_EQ(line(request(), laptop()),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=8 /usr/bin/mpirun -n 1 --use-hwthread-cpus --bind-to none "
            "--tag-output /opt/muster train 'my experiment.txtpb'");
  EXPECT_EQ(line(request(4), laptop()),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=2 /usr/bin/mpirun -n 4 --use-hwthread-cpus --bind-to none "
            "--tag-output /opt/muster train 'my experiment.txtpb'");
  EXPECT_EQ(job_command(request(16), laptop()).threads, 1);
}

TEST(JobCommand, OneRankPerSocketOrGpu) {
  EXPECT_EQ(line(request(), server(0)),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=32 /usr/bin/mpirun -n 2 --use-hwthread-cpus --bind-to none "
            "--tag-output /opt/muster train 'my experiment.txtpb'");
  EXPECT_EQ(line(request(), server(8)),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=8 /usr/bin/mpirun -n 8 --use-hwthread-cpus --bind-to none "
            "--tag-output /opt/muster train 'my experiment.txtpb'");
  EXPECT_EQ(job_command(request(), server(1)).ranks, 1);
}

TEST(JobCommand, Oversubscribed) {
  EXPECT_THAT(refusal(request(17), laptop()), HasSubstr("17 ranks on 16 cores"));
  EXPECT_THAT(refusal(request(17), laptop()), HasSubstr("muster launch -n 17 --oversubscribe train"));
  auto wanted = request(17);
  wanted.oversubscribe = true;
  EXPECT_EQ(line(wanted, laptop()),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=1 /usr/bin/mpirun -n 17 --use-hwthread-cpus --bind-to none "
            "--tag-output --oversubscribe /opt/muster train 'my experiment.txtpb'");
}

TEST(JobCommand, WhatTheUserHasSetCounts) {
  auto here = server(0);
  here.environment["OMP_NUM_THREADS"] = "5";
  here.environment["MUSTER_BIND"] = "none";
  auto wanted = request();
  EXPECT_EQ(
      line(wanted, here),
      "/usr/bin/mpirun -n 2 --use-hwthread-cpus --bind-to none --tag-output /opt/muster train 'my experiment.txtpb'");
  EXPECT_EQ(job_command(wanted, here).threads, 5);
  wanted.threads = 3;
  wanted.bind = "core";
  wanted.label_output = false;
  EXPECT_EQ(line(wanted, here),
            "env MUSTER_BIND=core OMP_NUM_THREADS=3 /usr/bin/mpirun -n 2 --use-hwthread-cpus --bind-to none "
            "/opt/muster train 'my experiment.txtpb'");
}

TEST(JobCommand, Root) {
  auto here = laptop();
  here.is_root = true;
  EXPECT_THAT(refusal(request(2), here), HasSubstr("--allow-run-as-root"));
  auto wanted = request(2);
  wanted.allow_run_as_root = true;
  EXPECT_THAT(line(wanted, here), HasSubstr(" --allow-run-as-root /opt/muster"));
  here.environment["OMPI_ALLOW_RUN_AS_ROOT"] = here.environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
  EXPECT_THAT(line(request(2), here), Not(HasSubstr("root")));
}

TEST(JobCommand, Hosts) {
  auto here = server(8);
  here.environment.insert({{"LD_LIBRARY_PATH", "/opt/lib"},
                           {"CUDA_VISIBLE_DEVICES", "0"},
                           {"NCCL_DEBUG", "INFO"},
                           {"MALLOC_ARENA_MAX", "2"},
                           {"PATHS", "x"}});
  auto wanted = request();
  wanted.hosts = "a:4,b:4,c";
  EXPECT_EQ(line(wanted, here),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=16 /usr/bin/mpirun -n 9 --use-hwthread-cpus --bind-to none "
            "--tag-output --map-by slot --host a:4,b:4,c:1 -x LD_LIBRARY_PATH "
            "-x MALLOC_ARENA_MAX -x MUSTER_BIND -x NCCL_DEBUG -x OMP_NUM_THREADS -x PATH /opt/muster train 'my "
            "experiment.txtpb'");
  EXPECT_EQ(job_command(wanted, here).hosts, 3);
  wanted.ranks = 5;
  EXPECT_EQ(job_command(wanted, here).hosts, 2);
  wanted.ranks = 10;
  EXPECT_THAT(refusal(wanted, here), HasSubstr("10 ranks, but 3 hosts with 9 slots in all"));
  wanted.oversubscribe = true;
  EXPECT_THAT(line(wanted, here), HasSubstr(" --oversubscribe "));
  EXPECT_EQ(job_command(wanted, here).hosts, 3);
  wanted.hostfile = "x";
  EXPECT_THAT(refusal(wanted, here), HasSubstr("not both"));
}

TEST(JobCommand, ThisMachineAsAHostNeedsNoSsh) {
  auto here = server(0);
  here.remote_shell.clear();
  auto wanted = request();
  for (const char* name : {"localhost", "me", "me.example.org"}) {
    wanted.hosts = std::string(name) + ":2";
    EXPECT_TRUE(job_command(wanted, here).is_local);
    EXPECT_THAT(line(wanted, here), Not(HasSubstr(" -x ")));
  }
  wanted.hosts = "me:1,other:1";
  EXPECT_THAT(refusal(wanted, here), HasSubstr("openssh-client"));
}

TEST(JobCommand, Hostfile) {
  const std::string path = ::testing::TempDir() + "hostfile";
  const auto written = [&](const std::string& text) { std::ofstream(path) << text; };
  auto wanted = request();
  wanted.hostfile = path;
  written("# nodes\n a slots=2\n\nb  slots=6 # the large one\n");
  EXPECT_EQ(line(wanted, server(0)),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=10 /usr/bin/mpirun -n 8 --use-hwthread-cpus --bind-to none "
            "--tag-output --map-by slot --hostfile " +
                path + " -x MUSTER_BIND -x OMP_NUM_THREADS -x PATH /opt/muster train 'my experiment.txtpb'");
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::string>>{
           {"a slots=2\nb\n", path + ":2: \"b\": write a host and its slots, as in: b slots=4"},
           {"a slots=2\na slots=1\n", path + ":2: the host a is given twice"},
           {"a slots=0\n", path + ":1: \"a slots=0\": the number of slots must be from 1 to 4096, not \"0\""},
           {"a slots=2 max_slots=3\n", path + ":1"},
           {"-x slots=2\n", "\"-x\" is not a host name"},
           {"# none\n", "it names no host"}}) {
    written(text);
    EXPECT_THAT(refusal(wanted, server(0)), HasSubstr(words)) << text;
  }
  std::remove(path.c_str());
  EXPECT_THAT(refusal(wanted, server(0)), HasSubstr("missing"));
}

TEST(JobCommand, HostsThatAreNone) {
  auto wanted = request();
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::string>>{{"a:4,,b", "empty part"},
                                                                                    {"a:4,", "empty part"},
                                                                                    {"a:x", "not \"x\""},
                                                                                    {"a:-1", "not \"-1\""},
                                                                                    {"a:", "not \"\""},
                                                                                    {"a:99999999999", "from 1 to 4096"},
                                                                                    {"a:1,b:1,a:1", "a is given twice"},
                                                                                    {":4", "not a host name"},
                                                                                    {"a b:1", "not a host name"}}) {
    wanted.hosts = text;
    EXPECT_THAT(refusal(wanted, laptop()), HasSubstr(words)) << text;
  }
}

const std::string kSrun =
    "/usr/bin/srun --mpi=pmix --ntasks=8 --nodes=2 --cpu-bind=none --export=ALL --kill-on-bad-exit=0 --wait=60 --label";

TEST(JobCommand, SlurmAllocation) {
  const auto here = in_allocation({{"SLURM_NTASKS", "8"}});
  EXPECT_EQ(line(request(), here),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=16 " + kSrun + " /opt/muster train 'my experiment.txtpb'");
  EXPECT_EQ(job_command(request(), in_allocation({{"SLURM_GPUS_ON_NODE", "4"}})).ranks, 8);
  EXPECT_EQ(job_command(request(), in_allocation({{"SLURM_GPUS_PER_NODE", "h100:3"}})).ranks, 6);
  EXPECT_EQ(job_command(request(), in_allocation({})).ranks, 4) << "CPU sockets";
  EXPECT_EQ(job_command(request(1), here).hosts, 1);
  EXPECT_EQ(job_command(request(100), here).threads, 1);
  EXPECT_THAT(refusal(request(129), here), HasSubstr("129 ranks, but this Slurm allocation has 128 cores on 2 nodes"));
  auto wanted = request(129);
  wanted.oversubscribe = true;
  EXPECT_THAT(line(wanted, here), HasSubstr(" --overcommit /opt/muster"));
}

TEST(JobCommand, ShellWithinAStep) {
  const auto here = in_allocation({{"SLURM_NTASKS", "1"},
                                   {"SLURM_STEP_ID", "0"},
                                   {"SLURM_STEP_NUM_TASKS", "1"},
                                   {"SLURM_PROCID", "0"},
                                   {"PMIX_RANK", "0"},
                                   {"PMI_FD", "3"},
                                   {"SLURM_GPUS_ON_NODE", "4"}});
  EXPECT_EQ(line(request(), here),
            "env -u PMIX_RANK -u PMI_FD -u SLURM_NTASKS -u SLURM_PROCID -u SLURM_STEP_ID -u SLURM_STEP_NUM_TASKS "
            "MUSTER_BIND=numa OMP_NUM_THREADS=16 " +
                kSrun + " --overlap /opt/muster train 'my experiment.txtpb'");
}

TEST(JobCommand, SlurmWithoutPmix) {
  auto here = in_allocation({{"SLURM_NTASKS", "8"}});
  here.srun_speaks_pmix = false;
  EXPECT_EQ(line(request(), here),
            "env MUSTER_BIND=numa OMP_NUM_THREADS=16 /usr/bin/mpirun -n 8 --use-hwthread-cpus --bind-to none "
            "--tag-output -x MUSTER_BIND -x OMP_NUM_THREADS -x PATH "
            "/opt/muster train 'my experiment.txtpb'");
  auto wanted = request();
  wanted.backend = LaunchBackend::kSrun;
  EXPECT_THAT(refusal(wanted, here), HasSubstr("offers no PMIx"));
  here.mpirun.clear();
  EXPECT_THAT(refusal(request(), here), HasSubstr("offers no PMIx"));
  EXPECT_THAT(refusal(wanted, laptop()), HasSubstr("inside a Slurm allocation only"));
  wanted.hosts = "a:1";
  EXPECT_THAT(refusal(wanted, in_allocation({})), HasSubstr("--backend mpirun"));
}

TEST(JobCommand, NoBackend) {
  auto here = laptop();
  here.mpirun.clear();
  EXPECT_THAT(refusal(request(), here), HasSubstr("no mpirun on the PATH"));
}

TEST(SlurmAllocation, IsReadFromTheEnvironment) {
  EXPECT_FALSE(slurm_allocation({{"SLURM_CONF", "/etc/slurm.conf"}}));
  const auto uneven =
      slurm_allocation({{"SLURM_JOB_ID", "1"}, {"SLURM_JOB_NUM_NODES", "3"}, {"SLURM_JOB_CPUS_PER_NODE", "8(x2),3"}});
  EXPECT_EQ(uneven->cpus, 19);
  EXPECT_EQ(uneven->least_cpus, 3);
  EXPECT_EQ(uneven->tasks, 0);
  EXPECT_FALSE(uneven->within_step);
}

TEST(SrunMpi, ListsOfAllVersions) {
  ProcessResult list;
  list.output =
      "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4,pmix_v3\n";
  for (const char* kind : {"none", "pmi2", "pmix", "pmix_v4", "pmix_v3"})
    EXPECT_TRUE(srun_mpi(list).offers(kind)) << kind;
  EXPECT_FALSE(srun_mpi(list).offers("pmi"));
  list.output = "";
  list.errors = "srun: MPI types are...\nsrun: none\nsrun: pmix_v3\n";  // before 21.08
  EXPECT_TRUE(srun_mpi(list).offers("pmix_v3"));
  EXPECT_FALSE(srun_mpi(list).offers("pmix"));
  list.code = 1;
  EXPECT_FALSE(srun_mpi(list).offers("pmix_v3"));
  EXPECT_THAT(srun_mpi(list).text, HasSubstr("pmix_v3")) << "to be shown";
}

}  // namespace
}  // namespace muster::launcher
