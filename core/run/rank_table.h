#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace muster::run {

// Who computes where, as a table: rank, host, device, cores, threads. ranks: environment.json's list. Of more than 16
// ranks those of a host that differ in the number of their device or in their cores only share a row, and what is still
// longer than a screen is cut. No newline at the end.
std::string rank_table(const nlohmann::json& ranks);

}  // namespace muster::run
