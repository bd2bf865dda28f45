# What `muster search` brings along: its schema, and the Python process that runs Optuna.
muster_proto(search_sources launcher/search/search.proto)
foreach(part boot journal sampling brain)
  muster_embed(source search_${part}_py "${CMAKE_SOURCE_DIR}/launcher/search/${part}.py")
  list(APPEND search_sources "${source}")
endforeach()
target_sources(muster PRIVATE ${search_sources})
