# base: text, files, checksums, processes. isa-l computes CRC32C at memory speed. No LibTorch here.
find_path(ISAL_INCLUDE_DIR isa-l/crc.h)
find_library(ISAL_LIBRARY isal)
if(NOT ISAL_INCLUDE_DIR OR NOT ISAL_LIBRARY)
  message(FATAL_ERROR "isa-l (checksums) was not found: run ./setup.sh, install libisal-dev, or pass "
    "-DISAL_INCLUDE_DIR=<folder that has isa-l/crc.h> -DISAL_LIBRARY=<libisal.so>")
endif()

muster_library(muster_base FOLDERS base LINK fmt::fmt OpenSSL::Crypto Threads::Threads nlohmann_json::nlohmann_json "${ISAL_LIBRARY}")
target_include_directories(muster_base PRIVATE "${ISAL_INCLUDE_DIR}")
