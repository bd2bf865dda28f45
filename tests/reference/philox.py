"""Philox4x32-10 in numpy, written from the paper (Salmon et al., SC'11), checked against Random123's test vectors.

A draw is a pure function of (seed, counter): see "Sampling that does not depend on world size" in the equations.
"""
import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def words(seed, counter):
    """uint32 array [..., 4]. `counter`: four integers or integer arrays (each < 2**32) that broadcast together."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counter))
    key = [int(seed) & 0xFFFFFFFF, (int(seed) >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        product0 = MULTIPLIERS[0] * c0
        product1 = MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = ((product1 >> HALF) ^ c1 ^ np.uint64(key[0]), product1 & LOW,
                          (product0 >> HALF) ^ c3 ^ np.uint64(key[1]), product0 & LOW)
        key = [(k + step) & 0xFFFFFFFF for k, step in zip(key, KEY_STEPS)]
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniform(word):
    """Uniform in (0, 1) from the upper 24 bits of a word: neither end occurs."""
    return ((np.asarray(word, dtype=np.uint64) >> np.uint64(8)).astype(np.float64) + 0.5) * 2.0 ** -24
