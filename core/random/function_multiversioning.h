#pragma once

// In front of a function: the compiler makes one version of it per instruction set and the loader picks. Only for what
// gives the same bits in all of them: integers, and sums whose order is written out. Sanitizers cannot instrument the
// loader's choice.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define MUSTER_CPU_VERSIONS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MUSTER_CPU_VERSIONS
#endif
