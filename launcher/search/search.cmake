# What `muster search` brings along: the schema of its files, and the Python process that runs Optuna.
muster_proto(search_sources launcher/search/search.proto)
foreach(part boot journal sampling optuna_process)
  muster_embed(source search_${part}_py "${CMAKE_SOURCE_DIR}/launcher/search/python/${part}.py")
  list(APPEND search_sources "${source}")
endforeach()
target_sources(muster_launcher PRIVATE ${search_sources})
