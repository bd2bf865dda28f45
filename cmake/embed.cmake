# muster_embed(OUT_VAR symbol file): makes a C++ source that defines, in namespace muster::embedded,
#   extern const std::string_view <symbol>;
# with the bytes of `file`, and puts the source's path into OUT_VAR. Declare the symbol where it is used.
function(muster_embed out_var symbol file)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/embedded_${symbol}.cpp")
  add_custom_command(
    OUTPUT "${source}"
    COMMAND "${CMAKE_COMMAND}" "-DINPUT=${file}" "-DOUTPUT=${source}" "-DSYMBOL=${symbol}" -P "${CMAKE_SOURCE_DIR}/cmake/embed_file.cmake"
    DEPENDS "${file}" "${CMAKE_SOURCE_DIR}/cmake/embed_file.cmake"
    VERBATIM)
  set(${out_var} "${source}" PARENT_SCOPE)
endfunction()
