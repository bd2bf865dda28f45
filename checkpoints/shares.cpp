#include "checkpoints/shares.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"

namespace muster::checkpoints {

using Json = nlohmann::json;

namespace {

// What PyTorch's torch/distributed/checkpoint/_hf_utils.py calls these.
constexpr char kShardingInfo[] = "DCP_SHARDING_INFO";
constexpr char kSavedOffsets[] = "saved_offsets";

int64_t rows_of(const std::vector<int64_t>& shape) { return shape.empty() ? 1 : shape[0]; }

bool is_whole(const TensorInfo& tensor, const Piece& piece) { return piece.rows == rows_of(tensor.shape); }

}  // namespace

std::vector<std::vector<Piece>> share_out(const std::vector<TensorInfo>& tensors, int ranks) {
  std::vector<uint64_t> sizes;
  uint64_t total = 0;
  for (const TensorInfo& tensor : tensors) {
    sizes.push_back(*bytes_of_shape(tensor.dtype, tensor.shape));
    total += sizes.back();
  }
  std::vector<std::vector<Piece>> shares(ranks);
  uint64_t begin = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const int64_t rows = rows_of(tensors[i].shape);
    if (sizes[i] == 0) {
      shares[0].push_back({i, 0, rows});
      continue;
    }
    const uint64_t row_size = sizes[i] / static_cast<uint64_t>(rows);
    // The row of this tensor that is nearest to where the share of `rank` begins.
    const auto cut = [&](int rank) -> int64_t {
      const auto place = static_cast<uint64_t>(static_cast<unsigned __int128>(total) * rank / ranks);
      if (place <= begin) return 0;
      if (place >= begin + sizes[i]) return rows;
      return static_cast<int64_t>((place - begin + row_size / 2) / row_size);
    };
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t first = cut(rank), end = cut(rank + 1);
      if (end > first) shares[rank].push_back({i, first, end - first});
    }
    begin += sizes[i];
  }
  return shares;
}

ShardLayout lay_out_shard(const std::vector<TensorInfo>& tensors, std::vector<Piece> pieces) {
  std::sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) {
    return comes_first(tensors[a.tensor].dtype, tensors[a.tensor].name, tensors[b.tensor].dtype,
                       tensors[b.tensor].name);
  });
  ShardLayout layout;
  SafetensorsHeader header;
  std::vector<std::string> order;
  Json offsets = Json::object();
  bool split = false;
  for (const Piece& piece : pieces) {
    const TensorInfo& tensor = tensors[piece.tensor];
    std::vector<int64_t> shape = tensor.shape, saved_offsets(tensor.shape.size(), 0);
    if (!shape.empty()) shape[0] = piece.rows, saved_offsets[0] = piece.first_row;
    split = split || !is_whole(tensor, piece);
    const uint64_t end = layout.data_size + *bytes_of_shape(tensor.dtype, shape);
    header.tensors.emplace(tensor.name,
                           SafetensorsHeader::Entry{tensor.dtype, std::move(shape), layout.data_size, end});
    order.push_back(tensor.name);
    offsets[tensor.name][kSavedOffsets] = std::move(saved_offsets);
    layout.data_size = end;
  }
  if (split) {
    try {
      header.metadata[kShardingInfo] = offsets.dump();
    } catch (const Json::exception&) {
      throw Error(ExitCode::kBadData, "A tensor name is not valid UTF-8, which safetensors needs.");
    }
    header.metadata["DCP_VERSION"] = "1.0";
    header.metadata["format"] = "pt";
  }
  layout.head = safetensors_head(header, order);
  layout.pieces = std::move(pieces);
  return layout;
}

std::map<std::string, int64_t> first_rows(const SafetensorsHeader& header, const std::string& file) {
  std::map<std::string, int64_t> rows;
  for (const auto& [name, entry] : header.tensors) rows[name] = 0;
  const auto info = header.metadata.find(kShardingInfo);
  if (info == header.metadata.end()) return rows;
  const auto refuse = [&](const std::string& problem) {
    throw Error(ExitCode::kBadData, fmt::format("{} is damaged: its {} {}.", file, kShardingInfo, problem));
  };
  Json offsets;
  try {
    // Nothing that this library writes is deeper than {"tensor": {"saved_offsets": [0]}}; deeper text could take a
    // thousand times its size in memory.
    offsets = Json::parse(info->second, [&](int depth, Json::parse_event_t, Json&) {
      if (depth > 3) refuse("is nested too deeply");
      return true;
    });
  } catch (const Json::exception&) {
    refuse("is not valid JSON");
  }
  if (!offsets.is_object() || offsets.size() != rows.size()) refuse("does not list the tensors of the file");
  for (auto& [name, row] : rows) {
    const std::vector<int64_t>& shape = header.tensors.at(name).shape;
    const auto entry = offsets.find(name);
    if (entry == offsets.end() || !entry->is_object() || entry->count(kSavedOffsets) == 0)
      refuse("lacks tensor " + in_quotes(name));
    const Json& saved = (*entry)[kSavedOffsets];
    if (!saved.is_array() || saved.size() != shape.size()) refuse("has no place for tensor " + in_quotes(name));
    for (std::size_t d = 0; d < saved.size(); ++d) {
      if (!saved[d].is_number_unsigned() || saved[d].get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()} ||
          (d > 0 && saved[d].get<uint64_t>() != 0)) {
        refuse("has an impossible place for tensor " + in_quotes(name));
      }
    }
    if (!shape.empty()) row = saved[0].get<int64_t>();
  }
  return rows;
}

std::size_t find_tensor(const std::vector<TensorInfo>& tensors, const std::string& name) {
  const auto found =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const TensorInfo& tensor, const std::string& wanted) { return tensor.name < wanted; });
  return found != tensors.end() && found->name == name ? static_cast<std::size_t>(found - tensors.begin())
                                                       : tensors.size();
}

void Coverage::add(const std::string& file, const SafetensorsHeader& header) {
  const auto rows = first_rows(header, file);
  for (const auto& [name, entry] : header.tensors) {
    const auto refuse = [&, &name = name](const std::string& problem) {
      throw Error(ExitCode::kBadData, fmt::format("{} is damaged: tensor {} {}.", file, in_quotes(name), problem));
    };
    const std::size_t index = find_tensor(tensors_, name);
    if (index == tensors_.size()) refuse("is not in the manifest");
    const TensorInfo& whole = tensors_[index];
    if (entry.dtype != whole.dtype) refuse("has another dtype than in the manifest");
    if (entry.shape.size() != whole.shape.size() ||
        (!whole.shape.empty() && !std::equal(entry.shape.begin() + 1, entry.shape.end(), whole.shape.begin() + 1))) {
      refuse("has another shape than in the manifest");
    }
    const int64_t first = rows.at(name), count = rows_of(entry.shape), all = rows_of(whole.shape);
    if (first > all || count > all - first) refuse("has rows that it has not in the manifest");
    covered_[index].push_back({first, count, file});
  }
}

void Coverage::require_complete(const std::string& path) {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const auto refuse = [&](const std::string& problem) {
      throw Error(ExitCode::kBadData,
                  fmt::format("{} is damaged: tensor {} {}.", path, in_quotes(tensors_[i].name), problem));
    };
    auto& parts = covered_[i];
    if (parts.empty()) refuse("is in none of its files");
    std::sort(parts.begin(), parts.end(),
              [](const Rows& a, const Rows& b) { return std::tie(a.first, a.count) < std::tie(b.first, b.count); });
    int64_t next = 0;
    for (std::size_t k = 0; k < parts.size(); ++k) {
      if (parts[k].first > next) refuse(fmt::format("lacks rows from {} on", next));
      if (parts[k].first < next || (k > 0 && parts[k].count == 0))
        refuse(fmt::format("is in {} and again in {}", parts[k - 1].file, parts[k].file));
      next += parts[k].count;
    }
    if (next != rows_of(tensors_[i].shape)) refuse(fmt::format("lacks rows from {} on", next));
  }
}

}  // namespace muster::checkpoints
