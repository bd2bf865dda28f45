#pragma once

#include <stdexcept>
#include <string>

namespace muster {

// How a process of a job ends. Scripts and schedulers act on these numbers: never change one.
enum class ExitCode : int {
  kDone = 0,
  kUsage = 2,        // the command line is wrong
  kBadData = 65,     // a data, weights or checkpoint file is wrong
  kInternal = 70,    // a defect of muster, or training that became non-finite
  kIo = 74,          // disk full, unwritable, unreadable
  kRequeue = 75,     // stopped cleanly; the same command with --resume auto goes on
  kPeerFailed = 76,  // another rank failed
  kBadConfig = 78,   // the experiment file or a --set is wrong
};

// An error a person can act on. what() says what is wrong, where (file:line, sample id), and what would be right; it is
// complete sentences, may span lines, and has no trailing newline. Anything else that is thrown is a defect (exit 70).
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// An Error that every rank of the job throws at the same point, so that all can end in good order without waiting for
// each other.
class SharedError : public Error {
 public:
  using Error::Error;
};

}  // namespace muster
