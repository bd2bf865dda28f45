# What `muster study` brings along: the Python program that compares.
muster_embed(significance study_significance_py "${CMAKE_SOURCE_DIR}/launcher/study/significance.py")
target_sources(muster_launcher PRIVATE ${significance})
