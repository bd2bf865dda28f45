#include "base/host.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace muster {
namespace {

TEST(Host, ThisProcessRuns) {
  const HostIdentity own = this_process();
  EXPECT_EQ(own.host, host_name());
  EXPECT_EQ(own.process, ::getpid());
  EXPECT_GT(own.process_start, 0u);
  EXPECT_EQ(is_running(own), true);
  EXPECT_EQ(process_status(own.process)->parent, ::getppid());
}

TEST(Host, ALaterProcessOfTheSameNumberIsAnother) {
  HostIdentity earlier = this_process();
  --earlier.process_start;
  EXPECT_EQ(is_running(earlier), false);
}

TEST(Host, ADeadProcessThatNobodyWaitedForDoesNotRun) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  HostIdentity identity = this_process();
  identity.process = child;
  siginfo_t ended;
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT), 0);
  identity.process_start = process_status(child)->start;
  EXPECT_EQ(process_status(child)->state, 'Z');
  EXPECT_EQ(is_running(identity), false);
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(process_status(child));
  EXPECT_EQ(is_running(identity), false);
}

TEST(Host, ProcessesElsewhereCannotBeAsked) {
  for (std::string HostIdentity::*field :
       {&HostIdentity::host, &HostIdentity::boot_id, &HostIdentity::process_namespace}) {
    HostIdentity other = this_process();
    other.*field = "another";
    EXPECT_EQ(is_running(other), std::nullopt);
  }
}

}  // namespace
}  // namespace muster
