# The files that say what a search or a study is, for the program and for tests of what reads them.
muster_proto(spec_sources launcher/search/search.proto)
muster_proto(spec_sources launcher/study/study.proto)
set(spec_readers launcher/search/spec.cpp launcher/study/spec.cpp launcher/work/spec_file.cpp)
list(TRANSFORM spec_readers PREPEND "${CMAKE_SOURCE_DIR}/")
list(REMOVE_ITEM launcher_sources ${spec_readers})
muster_library(muster_specs TORCH FOLDERS SOURCES ${spec_readers} ${spec_sources} LINK muster_core)
