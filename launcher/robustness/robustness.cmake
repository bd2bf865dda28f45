# What `muster evaluate --plot` brings along: the Python program that draws.
muster_embed(robustness_plot robustness_plot_py "${CMAKE_SOURCE_DIR}/launcher/robustness/plot.py")
target_sources(muster_launcher PRIVATE ${robustness_plot})
