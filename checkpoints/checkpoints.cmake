# checkpoints: the manifest's code from its schema.
muster_proto(manifest_schema checkpoints/manifest.proto)
muster_library(muster_checkpoints TORCH FOLDERS checkpoints SOURCES ${manifest_schema}
  LINK muster_distributed nlohmann_json::nlohmann_json protobuf::libprotobuf)
target_include_directories(muster_checkpoints PRIVATE "${CMAKE_BINARY_DIR}/generated")
