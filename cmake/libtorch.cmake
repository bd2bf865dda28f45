# LibTorch from the pip wheel, without the wheel's own TorchConfig.cmake: that one demands a CUDA toolkit at configure time
# even when no CUDA source is compiled, and defines a dummy protobuf target.
#
# In:  MUSTER_PYTHON  interpreter whose site-packages hold torch (default: the project's .venv)
# Out: target muster_libtorch (headers, libc10, libtorch_cpu, with MUSTER_CUDA also libtorch_cuda); MUSTER_TORCH_DIR;
#      with MUSTER_CUDA also muster_nccl

set(MUSTER_PYTHON "${CMAKE_SOURCE_DIR}/.venv/bin/python" CACHE FILEPATH "Python interpreter that has torch installed")
execute_process(
  COMMAND "${MUSTER_PYTHON}" -c "import importlib.util as u, importlib.metadata as m; print(u.find_spec('torch').submodule_search_locations[0]); print(m.version('torch'))"
  OUTPUT_VARIABLE torch_answer RESULT_VARIABLE torch_status ERROR_VARIABLE torch_error OUTPUT_STRIP_TRAILING_WHITESPACE)
if(NOT torch_status EQUAL 0)
  message(FATAL_ERROR "no torch found with ${MUSTER_PYTHON}: run ./setup.sh, or pass -DMUSTER_PYTHON=<python that has torch 2.11.0>\n${torch_error}")
endif()
string(REPLACE "\n" ";" torch_answer "${torch_answer}")
list(GET torch_answer 0 MUSTER_TORCH_DIR)
list(GET torch_answer 1 MUSTER_TORCH_VERSION)
if(NOT MUSTER_TORCH_VERSION VERSION_EQUAL "2.11.0")
  message(WARNING "muster is tested with torch 2.11.0; ${MUSTER_PYTHON} has ${MUSTER_TORCH_VERSION}")
endif()

# The wheel ships headers of an old protobuf, and of an fmt without its library, beside its own. System headers are searched
# after ordinary ones, so a folder that holds only links to the system's google/ and fmt/ in front of them decides what is
# compiled against.
set(protobuf_first "${CMAKE_BINARY_DIR}/protobuf-first")
file(MAKE_DIRECTORY "${protobuf_first}")
list(GET Protobuf_INCLUDE_DIRS 0 system_protobuf)
get_target_property(system_fmt fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
foreach(header "${system_protobuf}/google" "${system_fmt}/fmt")
  get_filename_component(name "${header}" NAME)
  if(NOT EXISTS "${protobuf_first}/${name}")
    file(CREATE_LINK "${header}" "${protobuf_first}/${name}" SYMBOLIC)
  endif()
endforeach()

add_library(muster_libtorch INTERFACE)
target_include_directories(muster_libtorch BEFORE INTERFACE "${protobuf_first}")
target_include_directories(muster_libtorch SYSTEM INTERFACE
  "${MUSTER_TORCH_DIR}/include" "${MUSTER_TORCH_DIR}/include/torch/csrc/api/include")
# at::parallel_for is compiled into the caller and runs on one thread without this.
find_package(OpenMP REQUIRED COMPONENTS CXX)
target_link_libraries(muster_libtorch INTERFACE OpenMP::OpenMP_CXX)
set(torch_libraries torch_cpu c10)
if(MUSTER_CUDA)
  list(APPEND torch_libraries torch_cuda c10_cuda)
  # The wheel's CUDA runtime before any of the system's: two of them in one process would not see each other's streams.
  get_filename_component(cuda_wheel "${MUSTER_TORCH_DIR}/../nvidia/cu13/lib" ABSOLUTE)
  target_link_options(muster_libtorch INTERFACE "LINKER:-rpath,${cuda_wheel}")
  target_link_libraries(muster_libtorch INTERFACE CUDA::cudart)
endif()
target_link_options(muster_libtorch INTERFACE "LINKER:-rpath,${MUSTER_TORCH_DIR}/lib")
# --no-as-needed: libtorch_cuda registers its kernels when loaded, though nothing here refers to it by name.
foreach(library ${torch_libraries})
  target_link_libraries(muster_libtorch INTERFACE
    "-Wl,--no-as-needed,${MUSTER_TORCH_DIR}/lib/lib${library}.so,--as-needed")
endforeach()

if(MUSTER_CUDA)
  # The wheel's NCCL, which libtorch_cuda loads as well: a second one would keep a state of its own.
  get_filename_component(nccl_wheel "${MUSTER_TORCH_DIR}/../nvidia/nccl" ABSOLUTE)
  add_library(muster_nccl INTERFACE)
  target_include_directories(muster_nccl SYSTEM INTERFACE "${nccl_wheel}/include")
  target_link_libraries(muster_nccl INTERFACE "${nccl_wheel}/lib/libnccl.so.2")
  target_link_options(muster_nccl INTERFACE "LINKER:-rpath,${nccl_wheel}/lib")
endif()
