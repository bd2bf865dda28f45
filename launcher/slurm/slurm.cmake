# What `muster submit` brings along: the schema of site profiles, and the job script to fill in.
muster_proto(slurm_sources launcher/slurm/site.proto)
muster_embed(source slurm_sbatch_in "${CMAKE_SOURCE_DIR}/cluster/slurm.sbatch.in")
list(APPEND slurm_sources "${source}")
target_sources(muster_launcher PRIVATE ${slurm_sources})
