#pragma once

#include <string>

namespace muster::launcher {

// "0h07m"; below two minutes "75s".
std::string duration_text(double seconds);

}  // namespace muster::launcher
