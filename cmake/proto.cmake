# muster_proto(VARIABLE FILE.proto): adds the generated source of a schema of this project to the list VARIABLE. Code includes it as
# "path/from/root/file.pb.h"; the target that compiles it needs protobuf::libprotobuf and ${CMAKE_BINARY_DIR}/generated to include from.
function(muster_proto variable proto)
  set(out "${CMAKE_BINARY_DIR}/generated")
  get_filename_component(folder "${proto}" DIRECTORY)
  file(MAKE_DIRECTORY "${out}/${folder}")
  string(REGEX REPLACE "\\.proto$" "" stem "${proto}")
  add_custom_command(OUTPUT "${out}/${stem}.pb.cc" "${out}/${stem}.pb.h"
    COMMAND protobuf::protoc "--cpp_out=${out}" "-I${CMAKE_SOURCE_DIR}" "${CMAKE_SOURCE_DIR}/${proto}"
    DEPENDS "${CMAKE_SOURCE_DIR}/${proto}" VERBATIM)
  # Generated sources define the same names; the project's precompiled header is of no use to them.
  set_source_files_properties("${out}/${stem}.pb.cc" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON)
  set(${variable} ${${variable}} "${out}/${stem}.pb.cc" PARENT_SCOPE)
endfunction()
