# cmake --install build: the program, and what a user copies and edits or reads. LibTorch is not copied (5 GB): the installed
# program finds it in the Python environment it was built with, by the run path that cmake/libtorch.cmake gives it.
include(GNUInstallDirs)
install(TARGETS muster RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
foreach(folder cluster experiments importers)
  install(DIRECTORY "${CMAKE_SOURCE_DIR}/${folder}" DESTINATION "${CMAKE_INSTALL_DATADIR}/muster" OPTIONAL
    USE_SOURCE_PERMISSIONS PATTERN __pycache__ EXCLUDE)
endforeach()
install(DIRECTORY "${CMAKE_SOURCE_DIR}/docs/" DESTINATION "${CMAKE_INSTALL_DOCDIR}" OPTIONAL)
install(FILES README.md LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
