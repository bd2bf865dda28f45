# checkpoints: the manifest's code from its schema, and isa-l, whose CRC32C runs at memory speed.
find_path(ISAL_INCLUDE_DIR isa-l/crc.h)
find_library(ISAL_LIBRARY isal)
if(NOT ISAL_INCLUDE_DIR OR NOT ISAL_LIBRARY)
  message(FATAL_ERROR "isa-l (checksums of checkpoints) was not found: run ./setup.sh, install libisal-dev, or pass "
    "-DISAL_INCLUDE_DIR=<folder that has isa-l/crc.h> -DISAL_LIBRARY=<libisal.so>")
endif()

muster_proto(manifest_schema checkpoints/manifest.proto)
muster_library(muster_checkpoints TORCH FOLDERS checkpoints EXCLUDE checkpoints/sha256.cpp SOURCES ${manifest_schema}
  LINK muster_distributed muster_sha256 nlohmann_json::nlohmann_json protobuf::libprotobuf "${ISAL_LIBRARY}")
target_include_directories(muster_checkpoints PRIVATE "${CMAKE_BINARY_DIR}/generated" "${ISAL_INCLUDE_DIR}")
set_source_files_properties(${manifest_schema} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
