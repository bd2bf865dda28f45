# core/config: the schema, its defaults and presets (embedded text), and loading. No LibTorch here.
set(proto "${CMAKE_SOURCE_DIR}/core/config/experiment.proto")
set(proto_out "${CMAKE_BINARY_DIR}/generated")
file(MAKE_DIRECTORY "${proto_out}/core/config")
# Comments are not part of generated descriptors; `muster config` reads them from the embedded descriptor set.
set(descriptor_set "${proto_out}/core/config/experiment.descriptor_set")
add_custom_command(
  OUTPUT "${proto_out}/core/config/experiment.pb.cc" "${proto_out}/core/config/experiment.pb.h" "${descriptor_set}"
  COMMAND protobuf::protoc "--cpp_out=${proto_out}" "-I${CMAKE_SOURCE_DIR}" --include_source_info
          "--descriptor_set_out=${descriptor_set}" "${proto}"
  DEPENDS "${proto}" VERBATIM)

set_source_files_properties("${proto_out}/core/config/experiment.pb.cc" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)

set(embedded_sources)
muster_embed(source experiment_descriptor_set "${descriptor_set}")
list(APPEND embedded_sources "${source}")
muster_embed(source defaults_txtpb "${CMAKE_SOURCE_DIR}/core/config/defaults.txtpb")
list(APPEND embedded_sources "${source}")
foreach(preset foal_net_official foal_net_recommended miar_recommended)
  muster_embed(source preset_${preset} "${CMAKE_SOURCE_DIR}/core/config/presets/${preset}.txtpb")
  list(APPEND embedded_sources "${source}")
endforeach()

muster_library(muster_core_config FOLDERS core/config
  SOURCES "${proto_out}/core/config/experiment.pb.cc" ${embedded_sources}
  LINK muster_base protobuf::libprotobuf)
target_include_directories(muster_core_config PUBLIC "${proto_out}")
