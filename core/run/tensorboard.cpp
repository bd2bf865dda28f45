#include "core/run/tensorboard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/crc32c.h"
#include "base/host.h"
#include "core/run/event.pb.h"

namespace muster::run {
namespace {

using tensorboard::Event;

// A record is its length (8 bytes), that length's checksum (4), the event, and its checksum (4); numbers in
// little-endian order.
constexpr uint64_t kRecordHead = 12, kRecordTail = 4;
// Longer than any row.
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

// The size of the whole record that `bytes` begin with, and its event; 0 where there is none or it is damaged.
uint64_t read_record(std::string_view bytes, Event& event) {
  if (bytes.size() < kRecordHead || number_at<uint32_t>(bytes.substr(8)) != masked_crc(bytes.substr(0, 8))) return 0;
  const auto length = number_at<uint64_t>(bytes);
  if (length > kLongestEvent || bytes.size() < kRecordHead + length + kRecordTail) return 0;
  const std::string_view body = bytes.substr(kRecordHead, length);
  if (number_at<uint32_t>(bytes.substr(kRecordHead + length)) != masked_crc(body)) return 0;
  return event.ParseFromArray(body.data(), static_cast<int>(length)) ? kRecordHead + length + kRecordTail : 0;
}

// How much of the file stays: its whole records, up to the first one of a step after `last`.
uint64_t kept_size(std::string_view bytes, uint64_t last) {
  uint64_t size = 0;
  for (Event event; const uint64_t record = read_record(bytes.substr(size), event); size += record)
    if (event.step() > static_cast<int64_t>(last)) break;
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
  // A validation has a row of training at the same step: a tag must not have two values there.
  if (kind == "train") add(scalars, "epoch", row.value("epoch", nlohmann::json()));
  return scalars;
}

EventFile::EventFile(const std::string& run_directory, std::optional<uint64_t> continue_after) {
  if (continue_after)
    for (const std::string& name : list_folder(run_directory))
      if (path_.empty() && name.rfind("events.out.tfevents.", 0) == 0 &&
          std::filesystem::path(name).extension() == ".muster")
        path_ = fmt::format("{}/{}", run_directory, name);
  if (path_.empty())
    path_ = fmt::format("{}/events.out.tfevents.{}.{}.muster", run_directory, std::time(nullptr), host_name());
  file_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666));
  if (file_.get() < 0) fail("open", errno);
  if (continue_after) size_ = kept_size(read_file(path_, std::numeric_limits<uint64_t>::max()), *continue_after);
  if (::ftruncate(file_.get(), static_cast<off_t>(size_)) != 0) fail("cut", errno);
  if (size_ > 0) return;
  Event first;
  first.set_wall_time(static_cast<double>(std::time(nullptr)));
  first.set_file_version("brain.Event:2");
  append_record(first.SerializeAsString());
  sync();
  sync_folder(run_directory);
}

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
  ::lseek(file_.get(), static_cast<off_t>(size_), SEEK_SET);
  if (const int error = try_write_all(file_.get(), record)) {
    // Readers stop at a torn record. Where it cannot be cut off, the next record is written over it.
    const int cut = ::ftruncate(file_.get(), static_cast<off_t>(size_));
    fail(cut == 0 ? "write" : "write or cut", error);
  }
  size_ += record.size();
}

void EventFile::sync() {
  while (::fsync(file_.get()) != 0)
    if (errno != EINTR) fail("flush to the device", errno);
}

void EventFile::fail(const std::string& what, int error_number) const {
  throw_io_error(fmt::format("{} the TensorBoard file", what), path_, error_number);
}

}  // namespace muster::run
