#pragma once

#include <string>

namespace muster::launcher {

// For CLI11's check() of an option that is a seed: what is wrong with its text, or "". The parser alone takes numbers
// that are none for the nearest that there is.
std::string seed_problem(const std::string& text);

}  // namespace muster::launcher
