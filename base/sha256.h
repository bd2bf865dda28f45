#pragma once

#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace muster {

// A SHA-256 over bytes that come in pieces.
class Sha256 {
 public:
  Sha256();
  void update(std::string_view bytes);
  // The hash of everything so far, 64 lower-case hex digits. Does not end the hash: update() may follow.
  std::string hex() const;

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const noexcept;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

std::string sha256_of(std::string_view bytes);
// Throws Error(kIo) when the file cannot be read.
std::string sha256_of_file(const std::string& path);

}  // namespace muster
