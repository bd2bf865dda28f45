#pragma once

#include <cstddef>
#include <string>

struct evp_md_ctx_st;

namespace muster::data {

// SHA-256 of bytes that arrive in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(const void* bytes, size_t count);
  // 64 lower-case hexadecimal digits. Call once, at the end.
  std::string hex();

 private:
  evp_md_ctx_st* context_;
};

}  // namespace muster::data
