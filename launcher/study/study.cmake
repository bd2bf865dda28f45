# What `muster study` brings along: the schema of its files, and the Python program that compares.
muster_proto(study_sources launcher/study/study.proto)
muster_embed(significance study_significance_py "${CMAKE_SOURCE_DIR}/launcher/study/significance.py")
target_sources(muster_launcher PRIVATE ${study_sources} ${significance})
