# MUSTER_GIT_COMMIT for environment.json: the commit at configure time, "-dirty" when tracked files differ.
execute_process(COMMAND git -C "${CMAKE_SOURCE_DIR}" describe --always --dirty --abbrev=40 --match=
  OUTPUT_VARIABLE MUSTER_GIT_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE git_status)
if(NOT git_status EQUAL 0)
  set(MUSTER_GIT_COMMIT "unknown")
endif()
