#include "base/sha256.h"

#include <gtest/gtest.h>

#include "base/atomic_file.h"
#include "base/error.h"
#include "tests/helpers/temporary_folder.h"

namespace muster {
namespace {

// FIPS 180-2, appendix B, and the empty message.
constexpr char kEmpty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kMillion[] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256, GivesThePublishedVectors) {
  EXPECT_EQ(sha256_of(""), kEmpty);
  EXPECT_EQ(sha256_of("abc"), kAbc);
  EXPECT_EQ(sha256_of(std::string(1000000, 'a')), kMillion);
}

TEST(Sha256, MayBeReadAtAnyTime) {
  Sha256 hash;
  EXPECT_EQ(hash.hex(), kEmpty);
  hash.update("a");
  hash.hex();
  hash.update("");
  hash.update("bc");
  EXPECT_EQ(hash.hex(), kAbc);
  EXPECT_EQ(hash.hex(), kAbc);
}

TEST(Sha256, OfFiles) {
  TemporaryFolder folder;
  write_file_atomically(folder / "empty", "");
  write_file_atomically(folder / "million", std::string(1000000, 'a'));
  EXPECT_EQ(sha256_of_file(folder / "empty"), kEmpty);
  EXPECT_EQ(sha256_of_file(folder / "million"), kMillion);
  EXPECT_THROW(sha256_of_file(folder / "none"), Error);
  EXPECT_THROW(sha256_of_file(folder.path().string()), Error);
}

}  // namespace
}  // namespace muster
