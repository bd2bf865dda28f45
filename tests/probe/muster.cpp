// probe muster ...: the program itself, as a call of `probe serve`. Starting LibTorch takes longer than most commands.
#define main muster_main
#include "launcher/main.cpp"
#undef main

int muster_probe(int argc, char** argv) { return muster_main(argc, argv); }
