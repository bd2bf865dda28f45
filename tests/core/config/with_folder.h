#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/error.h"
#include "core/config/load.h"

namespace muster::config {

// A test with a folder of its own, removed afterwards.
class WithFolder : public testing::Test {
 protected:
  WithFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "muster-config-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
    folder_ = std::filesystem::canonical(name);
  }
  ~WithFolder() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& text, const std::string& name = "e.txtpb") {
    const std::filesystem::path path = folder_ / name;
    std::filesystem::remove(path);  // some file systems flush a file that is written over
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }

  LoadedExperiment load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return load_experiment(write(text), overrides);
  }

  // The message of the Error that loading must throw, with "<folder>/" taken out; "" (and a failure) if it loads.
  std::string problems(const std::string& text, const std::vector<std::string>& overrides = {}) {
    return problems_of_file(write(text), overrides);
  }

  std::string problems_of_file(const std::string& path, const std::vector<std::string>& overrides = {}) {
    try {
      load_experiment(path, overrides);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadConfig);
      return without_folder(error.what());
    }
    ADD_FAILURE() << "loads, though it must not";
    return "";
  }

  std::string without_folder(std::string message) const {
    const std::string prefix = folder_.string() + "/";
    for (size_t at; (at = message.find(prefix)) != std::string::npos;) message.erase(at, prefix.size());
    return message;
  }

  std::filesystem::path folder_;
};

}  // namespace muster::config
