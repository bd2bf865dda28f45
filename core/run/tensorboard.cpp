#include "core/run/tensorboard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/atomic_file.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "base/files.h"
#include "base/host.h"
#include "core/run/event.pb.h"

namespace muster::run {
namespace {

using tensorboard::Event;

// A record is its length (8 bytes), that length's checksum (4), the event, and its checksum (4); numbers in
// little-endian order.
constexpr uint64_t kRecordHead = 12, kRecordTail = 4;
// Longer than any row; a damaged length must not make us allocate.
constexpr uint64_t kLongestEvent = 16 << 20;

// As TFRecord masks checksums, so that a checksum of bytes that hold checksums stays useful.
uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <typename Number>
std::string bytes_of(Number number) {
  std::string bytes(sizeof number, '\0');
  for (std::size_t i = 0; i < sizeof number; ++i) bytes[i] = static_cast<char>(number >> (8 * i));
  return bytes;
}

template <typename Number>
Number number_at(std::string_view bytes) {
  Number number = 0;
  for (std::size_t i = 0; i < sizeof number; ++i)
    number |= static_cast<Number>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  return number;
}

// `bytes` bytes from `offset`, fewer at the end of the file.
std::string read_at(int descriptor, uint64_t offset, uint64_t bytes) {
  std::string text(bytes, '\0');
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(descriptor, text.data() + done, bytes - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  text.resize(done);
  return text;
}

// The whole record at `offset`; nothing where there is none or it is damaged.
std::optional<Event> event_at(int descriptor, uint64_t offset, uint64_t& end) {
  const std::string head = read_at(descriptor, offset, kRecordHead);
  if (head.size() < kRecordHead || number_at<uint32_t>(head.substr(8)) != masked_crc(head.substr(0, 8)))
    return std::nullopt;
  const auto length = number_at<uint64_t>(head);
  if (length > kLongestEvent) return std::nullopt;
  const std::string body = read_at(descriptor, offset + kRecordHead, length + kRecordTail);
  if (body.size() < length + kRecordTail ||
      number_at<uint32_t>(body.substr(length)) != masked_crc(body.substr(0, length)))
    return std::nullopt;
  Event event;
  if (!event.ParseFromArray(body.data(), static_cast<int>(length))) return std::nullopt;
  end = offset + kRecordHead + length + kRecordTail;
  return event;
}

// How much of the file stays: its whole records, up to the first one of a step after `last`.
uint64_t kept_size(int descriptor, uint64_t last) {
  uint64_t size = 0, end = 0;
  for (auto event = event_at(descriptor, size, end); event; event = event_at(descriptor, size, end)) {
    if (event->step() > static_cast<int64_t>(last)) break;
    size = end;
  }
  return size;
}

void add(Scalars& scalars, const std::string& tag, const nlohmann::json& value) {
  if (value.is_number()) scalars.emplace_back(tag, value.get<double>());
  if (!value.is_object()) return;
  for (const auto& [name, part] : value.items()) add(scalars, tag + "/" + name, part);
}

}  // namespace

Scalars scalars_of(const nlohmann::json& row) {
  const std::string kind = row.at("kind");
  if (kind == "skipped") return {{"train/skipped", 1}};
  Scalars scalars;
  for (const auto& [name, value] : row.items())
    if (name != "step" && name != "epoch") add(scalars, kind + "/" + name, value);
  add(scalars, "epoch", row.value("epoch", nlohmann::json()));
  return scalars;
}

EventFile::EventFile(const std::string& run_directory, std::optional<uint64_t> continue_after) {
  if (continue_after) {
    std::error_code error;
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(run_directory, error)) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("events.out.tfevents.", 0) == 0 && entry.path().extension() == ".muster")
        found.push_back(entry.path().string());
    }
    if (error) throw Error(ExitCode::kIo, fmt::format("Cannot read {}: {}.", run_directory, error.message()));
    if (!found.empty()) path_ = *std::min_element(found.begin(), found.end());
  }
  if (path_.empty()) {
    path_ = fmt::format("{}/events.out.tfevents.{}.{}.muster", run_directory, std::time(nullptr), host_name());
  }
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("open", errno);
  try {
    size_ = continue_after ? kept_size(descriptor_, *continue_after) : 0;
    if (::ftruncate(descriptor_, static_cast<off_t>(size_)) != 0) fail("cut", errno);
    if (size_ > 0) return;
    Event first;
    first.set_wall_time(static_cast<double>(std::time(nullptr)));
    first.set_file_version("brain.Event:2");
    append_record(first.SerializeAsString());
    sync();
    sync_folder(run_directory);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

EventFile::~EventFile() { ::close(descriptor_); }

void EventFile::append(uint64_t step, double wall_time, const Scalars& scalars) {
  if (scalars.empty()) return;
  Event event;
  event.set_wall_time(wall_time);
  event.set_step(static_cast<int64_t>(step));
  for (const auto& [tag, number] : scalars) {
    auto& value = *event.mutable_summary()->add_value();
    value.set_tag(tag);
    value.set_simple_value(static_cast<float>(number));
  }
  append_record(event.SerializeAsString());
}

void EventFile::append_record(const std::string& event) {
  const std::string length = bytes_of<uint64_t>(event.size());
  const std::string record = length + bytes_of(masked_crc(length)) + event + bytes_of(masked_crc(event));
  std::size_t done = 0;
  while (done < record.size()) {
    const ssize_t written =
        ::pwrite(descriptor_, record.data() + done, record.size() - done, static_cast<off_t>(size_ + done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const int error_number = written < 0 ? errno : ENOSPC;
      // Readers stop at a torn record. Where it cannot be cut off, the next record is written over it.
      const int cut = ::ftruncate(descriptor_, static_cast<off_t>(size_));
      fail(cut == 0 ? "write" : "write or cut", error_number);
    }
    done += static_cast<std::size_t>(written);
  }
  size_ += record.size();
}

void EventFile::sync() {
  while (::fsync(descriptor_) != 0)
    if (errno != EINTR) fail("flush to the device", errno);
}

void EventFile::fail(const std::string& what, int error_number) const {
  throw Error(ExitCode::kIo,
              fmt::format("Cannot {} the TensorBoard file {}: {}.", what, path_, std::strerror(error_number)));
}

}  // namespace muster::run
