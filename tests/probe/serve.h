#pragma once

#include <functional>

// `probe serve`: runs calls of the probe at once, each in a process of its own that starts with LibTorch loaded, which
// takes longer than most calls. A call is a connection to the socket:
//   -> its length (uint32), with the descriptors that are to be 0, 1 and 2; then strings that each end with NUL: the
//      working directory, the number of the environment's variables, these, the words of the call
//   -> any time: a signal's number (a byte), which the call gets; the end of the connection kills it
//   <- its status as waitpid() gives it (int32), and the end
// listener: a listening socket. Ends, with all calls, when standard input does.
int serve(int listener, const std::function<int(int argc, char** argv)>& call);
