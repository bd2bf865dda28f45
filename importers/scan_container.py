"""Reads all frames of a container once, in blocks, and gathers what a person wants to know about them, whatever the size of the file."""
import hashlib

import numpy as np

BLOCK = 1 << 20  # values that are read at a time
LARGEST = float(np.finfo(np.float64).max) ** 0.5


class Facts:
    """What scan() finds of one modality. Per sample: nonzero (frames that are not all zero), first and last of those (-1: none), digest
    (of all its bytes; None where it has no frames), nonfinite (values), largest (waveforms: the largest absolute value). Per column:
    low, high (of the finite values), low_row, high_row (samples that have them), mean, deviation, count; NaN where there are none."""

    def __init__(self, stored):
        samples, columns = len(stored.lengths), stored.dim
        self.nonzero, self.nonfinite = np.zeros(samples, dtype=np.int64), np.zeros(samples, dtype=np.int64)
        self.first, self.last = np.full(samples, -1, dtype=np.int64), np.full(samples, -1, dtype=np.int64)
        self.largest, self.digest = np.zeros(samples), [None] * samples
        self.low, self.high = np.full(columns, np.inf), np.full(columns, -np.inf)
        self.low_row, self.high_row = np.zeros(columns, dtype=np.int64), np.zeros(columns, dtype=np.int64)
        self.count, self.mean, self.square = np.zeros(columns), np.zeros(columns), np.zeros(columns)

    @property
    def deviation(self):
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(self.square / self.count)

    @property
    def furthest(self):
        """How many deviations the value furthest from the mean is away from it, per column; 0 where nothing varies."""
        deviation = self.deviation
        with np.errstate(invalid="ignore"):
            away = np.maximum(self.high - self.mean, self.mean - self.low)
        return np.divide(away, deviation, out=np.zeros(len(away)), where=(deviation > 0) & (self.low < self.high))


def scan(stored, progress):
    """Facts of a modality, whose samples lie one after another in the file."""
    facts = Facts(stored)
    starts, ends = stored.first, stored.first + stored.lengths
    rows_per_block = max(1, BLOCK // stored.dim)
    scale = 1 / 32768 if stored.dtype == "int16" else 1
    total, digest = int(ends[-1]), None
    for begin in range(0, total, rows_per_block):
        end = min(begin + rows_per_block, total)
        raw = stored.rows(begin, end)
        samples = np.arange(np.searchsorted(ends, begin, "right"), np.searchsorted(starts, end, "left"))
        samples = samples[stored.lengths[samples] > 0]
        for sample in samples:
            low, high = max(starts[sample], begin), min(ends[sample], end)
            if low == starts[sample]:
                digest = hashlib.blake2b(digest_size=16)
            digest.update(np.ascontiguousarray(raw[low - begin:high - begin]))
            if high == ends[sample]:
                facts.digest[sample] = digest.digest()
        block = raw.astype(np.float64) * scale
        look_at_frames(facts, stored, block, begin, samples, starts, ends)
        look_at_columns(facts, block, begin, samples, ends)
        progress.add(raw.nbytes)
    return facts


def look_at_frames(facts, stored, block, begin, samples, starts, ends):
    places = np.maximum(starts[samples], begin) - begin  # every sample's first frame in the block
    used = (block != 0).any(axis=1)  # NaN is not zero
    facts.nonzero[samples] += np.add.reduceat(used, places, dtype=np.int64)
    frames = np.flatnonzero(used)
    stops = np.minimum(ends[samples], begin + len(block)) - begin
    first, last = np.searchsorted(frames, places), np.searchsorted(frames, stops) - 1
    some = last >= first
    found, first, last = samples[some], frames[first[some]] + begin, frames[last[some]] + begin
    facts.first[found] = np.where(facts.first[found] < 0, first - starts[found], facts.first[found])
    facts.last[found] = last - starts[found]
    bad = ~np.isfinite(block)
    if bad.any():
        facts.nonfinite[samples] += np.add.reduceat(bad.sum(axis=1), places)
    if stored.kind == "waveform":
        facts.largest[samples] = np.maximum(facts.largest[samples], np.maximum.reduceat(np.where(bad, 0, np.abs(block))[:, 0], places))


def look_at_columns(facts, block, begin, samples, ends):
    finite = np.isfinite(block)
    everywhere = finite.all()
    for extreme, row_of, pick, better, worst in ((facts.low, facts.low_row, np.argmin, np.less, np.inf),
                                                 (facts.high, facts.high_row, np.argmax, np.greater, -np.inf)):
        values = block if everywhere else np.where(finite, block, worst)
        places = pick(values, axis=0)
        found = values[places, np.arange(block.shape[1])]
        new = better(found, extreme)
        extreme[new] = found[new]
        row_of[new] = np.searchsorted(ends, places[new] + begin, "right")
    values = np.clip(block if everywhere else np.where(finite, block, 0), -LARGEST, LARGEST)
    count = finite.sum(axis=0).astype(np.float64)
    some = count > 0
    mean = np.divide(values.sum(axis=0), count, out=np.zeros(len(count)), where=some)
    away = values - mean
    if not everywhere:
        away[~finite] = 0
    total = facts.count + count
    part = np.divide(count, total, out=np.zeros(len(count)), where=total > 0)
    difference = mean - facts.mean
    with np.errstate(over="ignore"):
        facts.square += (away * away).sum(axis=0) + difference * difference * facts.count * part
    facts.mean += np.where(some, difference * part, 0)
    facts.count = total


def duplicates(digests):
    """[[rows]] of samples whose digests are equal, in the order of the first of each; None is equal to nothing."""
    rows = {}
    for row, digest in enumerate(digests):
        if digest is not None:
            rows.setdefault(digest, []).append(row)
    return [found for found in rows.values() if len(found) > 1]
