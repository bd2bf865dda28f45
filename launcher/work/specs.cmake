# The schemas of the files that say what a search or a study is.
muster_proto(spec_sources launcher/search/search.proto)
muster_proto(spec_sources launcher/study/study.proto)
target_sources(muster_launcher PRIVATE ${spec_sources})
