#include "checkpoints/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/sha256.h"
#include "checkpoints/fingerprint.h"
#include "tests/helpers/temporary_folder.h"

namespace muster::checkpoints {
namespace {

std::string bytes_of(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& metadata = {}) {
  std::string bytes;
  serialize_safetensors(tensors, metadata, [&](std::string_view piece) { bytes += piece; });
  return bytes;
}

TEST(Safetensors, TheSmallestFileByHand) {
  // The example of the format's specification: header length, header padded to 8 bytes, data.
  const std::string header = R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  ASSERT_EQ(header.size(), 54u);
  const std::string expected = std::string("\x38\0\0\0\0\0\0\0", 8) + header + "  " + std::string("\0\0\x80\x3f", 4);
  EXPECT_EQ(bytes_of({{"x", at::ones({1})}}), expected);
}

TEST(Safetensors, GivesBackEveryDtypeShapeAndMetadata) {
  TemporaryFolder folder;
  std::vector<NamedTensor> tensors = {
      {"0-d", at::scalar_tensor(1.5)}, {"empty", at::empty({3, 0, 2})}, {"", at::ones({2})}};
  for (at::ScalarType dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                               at::kChar, at::kByte, at::kBool}) {
    tensors.push_back({c10::toString(dtype), at::arange(3, at::kInt).view({1, 3}).to(dtype)});
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"", "Gefühl\n\"😀\""}};
  write_safetensors(folder / "a.safetensors", tensors, metadata);
  const SafetensorsFile file = read_safetensors(folder / "a.safetensors");
  EXPECT_EQ(file.metadata, metadata);
  ASSERT_EQ(file.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& read = file.tensors.at(name);
    EXPECT_EQ(read.dtype(), tensor.dtype()) << name;
    EXPECT_TRUE(at::equal(read, tensor)) << name;
    EXPECT_EQ(read.sizes(), tensor.sizes()) << name;
  }
}

TEST(Safetensors, BytesDependOnlyOnContents) {
  const at::Tensor matrix = at::arange(6.).view({2, 3});
  const std::string plain = bytes_of({{"a", matrix}, {"b", at::ones({3}, at::kByte)}});
  EXPECT_EQ(bytes_of({{"b", at::ones({3}, at::kByte)}, {"a", matrix}}), plain);
  EXPECT_EQ(bytes_of({{"a", matrix.t().contiguous().t()}, {"b", at::ones({3}, at::kByte)}}), plain);
  EXPECT_EQ(bytes_of({{"a", matrix.clone().set_requires_grad(true)}, {"b", at::ones({3}, at::kByte)}}), plain);
}

TEST(Safetensors, RefusesWhatCannotBeStored) {
  EXPECT_THROW(bytes_of({{"a", at::Tensor()}}), std::invalid_argument);
  EXPECT_THROW(bytes_of({{"a", at::ones({1}, at::kComplexFloat)}}), std::invalid_argument);
  EXPECT_THROW(bytes_of({{"a", at::ones({2, 2}).to_sparse()}}), std::invalid_argument);
  EXPECT_THROW(bytes_of({{"a", at::ones({1})}, {"a", at::ones({1})}}), std::invalid_argument);
  EXPECT_THROW(bytes_of({{"__metadata__", at::ones({1})}}), std::invalid_argument);
  EXPECT_THROW(bytes_of({{"\xff", at::ones({1})}}), Error);
  EXPECT_THROW(bytes_of({{"a", at::ones({1})}}, {{"note", "\xff"}}), Error);
}

TEST(Safetensors, ARefusedWriteLeavesNoFile) {
  TemporaryFolder folder;
  EXPECT_THROW(write_safetensors(folder / "a", {{"\xff", at::ones({1})}}, {}), Error);
  EXPECT_TRUE(folder.names().empty());
}

TEST(Safetensors, ATruncatedFileIsRefusedAtEveryLength) {
  TemporaryFolder folder;
  const std::string bytes = bytes_of({{"weight", at::ones({4})}, {"bias", at::ones({2}, at::kDouble)}}, {{"k", "v"}});
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    write_file_atomically(folder / "a", std::string_view(bytes).substr(0, length));
    try {
      read_safetensors(folder / "a");
      ADD_FAILURE() << "accepted " << length << " of " << bytes.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      EXPECT_THAT(error.what(), ::testing::HasSubstr(folder / "a"));
    }
  }
}

TEST(Fingerprint, IsTheHashOfTheDocumentedBytes) {
  const std::vector<NamedTensor> tensors = {{"b", at::scalar_tensor(7, at::kByte)}, {"a", at::ones({1, 2})}};
  const std::string bytes =
      "a F32 [1,2]\n" + std::string("\0\0\x80\x3f\0\0\x80\x3f", 8) + "b U8 []\n" + std::string("\x07", 1);
  EXPECT_EQ(fingerprint(tensors), sha256_of(bytes));
}

TEST(Fingerprint, NamesSortByBytes) {
  const std::vector<NamedTensor> tensors = {{"é", at::zeros({0})}, {"z", at::zeros({0})}, {"Z", at::zeros({0})}};
  EXPECT_EQ(fingerprint(tensors), sha256_of("Z F32 [0]\nz F32 [0]\né F32 [0]\n"));
}

TEST(Fingerprint, IgnoresStridesAndFiles) {
  TemporaryFolder folder;
  const at::Tensor matrix = at::arange(6.).view({2, 3});
  const std::string expected = fingerprint({{"a", matrix}});
  EXPECT_EQ(fingerprint({{"a", matrix.t().contiguous().t()}}), expected);
  EXPECT_NE(fingerprint({{"a", matrix.t()}}), expected);
  write_safetensors(folder / "a", {{"a", matrix}}, {{"step", "3"}});
  EXPECT_EQ(fingerprint(read_safetensors(folder / "a")), expected);
}

TEST(Fingerprint, RefusesNamesThatCouldImitateAnotherTensor) {
  EXPECT_THROW(fingerprint({{"a F32 [0]\nb", at::zeros({0})}}), Error);
  EXPECT_THROW(fingerprint({{"a", at::zeros({0})}, {"a", at::zeros({0})}}), std::invalid_argument);
}

}  // namespace
}  // namespace muster::checkpoints
