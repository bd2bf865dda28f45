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
# Every file of presets/ is a preset, named like the file; the table of them is generated.
file(GLOB presets CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/core/config/presets/*.txtpb")
set(preset_declarations "")
set(preset_entries "")
foreach(file ${presets})
  get_filename_component(preset "${file}" NAME_WE)
  muster_embed(source preset_${preset} "${file}")
  list(APPEND embedded_sources "${source}")
  string(APPEND preset_declarations "extern const std::string_view preset_${preset};\n")
  string(APPEND preset_entries "    {\"${preset}\", preset_${preset}},\n")
endforeach()
set(preset_table "${CMAKE_CURRENT_BINARY_DIR}/embedded_presets.cpp")
file(CONFIGURE OUTPUT "${preset_table}" CONTENT [[#include <map>
#include <string>
#include <string_view>
namespace muster::embedded {
@preset_declarations@
extern const std::map<std::string, std::string_view>& presets();
const std::map<std::string, std::string_view>& presets() {
  static const std::map<std::string, std::string_view> all = {
@preset_entries@  };
  return all;
}
}  // namespace muster::embedded
]] @ONLY)
list(APPEND embedded_sources "${preset_table}")

muster_library(muster_core_config FOLDERS core/config
  SOURCES "${proto_out}/core/config/experiment.pb.cc" ${embedded_sources} "${CMAKE_SOURCE_DIR}/core/models/spec.cpp"
  LINK muster_core_metrics muster_base protobuf::libprotobuf)
target_include_directories(muster_core_config PUBLIC "${proto_out}")
