"""Reads computational sequences (.csd), the files of the CMU Multimodal SDK, and aligns them as its `align` does.

A file is HDF5: /<root>/data/<video>/{features [frames, dim], intervals [frames, 2] (seconds)} and /<root>/metadata/<key> (JSON). An
entry may also be called video[3]: what the SDK writes after an alignment. Files come from strangers: links are not followed, and
nothing is read whose size the file cannot hold. Only one video of a file is in memory at a time."""
import contextlib
import json
import re

import h5py
import numpy as np

from command_line import open_regular
from container import DataError, is_text

EPSILON = 10e-6  # seconds. The SDK's: shorter intervals are dropped
MARGIN = 1e-3  # seconds around an interval in which a search looks for others; wide enough for times in float32
LARGEST_RATIO = 1100  # of values to stored bytes; deflate reaches 1032


class Sequence:
    """One file, opened. entries: {video: its entries' names, in the order of their numbers}. drop_bad_times: whether an interval that
    is not from an earlier to a later time counts as one that takes no time, which the alignment leaves out; bad_times: {video: how many
    did}. DataError: it is no such file."""

    def __init__(self, path, drop_bad_times=False):
        self.path, self._drop_bad_times, self.bad_times = path, drop_bad_times, {}
        open_regular(path).close()
        try:
            self._file = h5py.File(path, "r")
            roots = [name for name in self._file if isinstance(name, str) and is_hard(self._file, name) and isinstance(self._file[name], h5py.Group)
                     and is_hard(self._file[name], "data") and isinstance(self._file[name]["data"], h5py.Group)]
            self.root = roots[0] if len(roots) == 1 else None
            self._data = self._file[self.root]["data"] if self.root else None
            names = [(*split_entry(name), name) for name in map(as_text, self._data or ())]
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py makes of a damaged file
            raise DataError(f"{path}: is no HDF5 file that can be read ({str(error)[:200]})") from None
        if self.root is None:
            raise DataError(f'{path}: expected one group with the group "data" in it, as in a computational sequence (.csd); '
                            f"found {len(roots)} such groups")
        self.entries = {}
        for video, number, name in sorted(names):
            self.entries.setdefault(video, []).append(name)
        self._loaded = (None, None)

    def metadata(self, key):
        """The JSON value of that key; None where it is missing or no JSON (the SDK wrote some files without)."""
        try:
            value = member(member(self._file[self.root], "metadata", h5py.Group), key, h5py.Dataset)
            return json.loads(value[0]) if value.dtype.kind == "O" and value.shape == (1,) else None
        except (ValueError, TypeError, KeyError, OSError, RuntimeError):
            return None

    @contextlib.contextmanager
    def _about(self, video):
        try:
            yield
        except ValueError as error:
            raise ValueError(f'{self.path}: video "{video}": {error}') from None

    def shape(self, video):
        """(frames, features, numpy type of the features) of a video. ValueError: what is wrong, for people."""
        with self._about(video):
            return self._shape(video)

    def _shape(self, video):
        frames, dims, dtypes = 0, set(), set()
        for name in self.entries[video]:
            features = self._dataset(name, "features")
            if len(features.shape) not in (1, 2) or 0 in features.shape[1:]:
                raise ValueError(f'entry "{name}": features of shape {list(features.shape)}; expected [frames, features]')
            frames += features.shape[0] if len(features.shape) == 2 else 1
            dims.add(features.shape[-1])
            dtypes.add(features.dtype)
        if len(dims) > 1:
            raise ValueError(f"its entries have {' and '.join(map(str, sorted(dims)))} features")
        return frames, dims.pop(), np.result_type(*dtypes) if len(dtypes) > 1 else dtypes.pop()

    def intervals(self, video):
        """[frames, 2] of all entries of a video, one after another, in the file's float type. ValueError: what is wrong."""
        with self._about(video):
            return self._intervals(video)

    def _intervals(self, video):
        parts = []
        for name in self.entries[video]:
            found = self._read(name, "intervals")
            found = found[None] if found.shape == (2,) else found
            if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "fiu":
                raise ValueError(f'entry "{name}": intervals of shape {list(found.shape)} and type {found.dtype}; expected [frames, 2] numbers')
            features = self._dataset(name, "features")
            frames = features.shape[0] if len(features.shape) > 1 else 1
            if len(found) != frames:
                raise ValueError(f'entry "{name}": {len(found)} intervals for {frames} frames of features')
            parts.append(found if found.dtype.kind == "f" else found.astype(np.float64))
        intervals = np.concatenate(parts)
        with np.errstate(invalid="ignore"):
            bad = ~np.isfinite(intervals).all(axis=1) | (intervals[:, 1] - intervals[:, 0] <= -EPSILON)
        if bad.any() and self._drop_bad_times:
            self.bad_times[video] = int(bad.sum())
            intervals[bad] = 0
        elif bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(f"{bad.sum()} of its {len(intervals)} intervals are not from an earlier to a later time, the first is "
                             f"number {first}, {intervals[first].tolist()}")
        return intervals

    def features(self, video):
        """[frames, features] of all entries of a video, one after another. The last video is kept. ValueError: what is wrong."""
        if self._loaded[0] != video:
            self._loaded = (None, None)  # never two in memory
            with self._about(video):
                parts = [self._read(name, "features") for name in self.entries[video]]
            parts = [part[None] if part.ndim == 1 else part for part in parts]
            self._loaded = (video, parts[0] if len(parts) == 1 else np.concatenate(parts))
        return self._loaded[1]

    def place(self, video, entry):
        """(number of its first frame in the video, number of its frames) of an entry. ValueError: what is wrong."""
        with self._about(video):
            frames = [self._dataset(name, "intervals").shape[:-1] for name in self.entries[video]]
            frames = [shape[0] if shape else 1 for shape in frames]
        position = self.entries[video].index(entry)
        return sum(frames[:position]), frames[position]

    def _dataset(self, name, kind):
        """ValueError: there is none that may be read."""
        try:
            dataset = member(member(self._data, name, h5py.Group), kind, h5py.Dataset)
            size, held = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
            if dataset.external or dataset.is_virtual:
                raise ValueError(f"its {kind} are in another file, which is not opened")
        except ValueError as error:
            raise ValueError(f'entry "{name}": {error}') from None
        except (OSError, RuntimeError, KeyError, TypeError) as error:  # what h5py makes of a damaged file
            raise ValueError(f'entry "{name}": its {kind} are damaged ({str(error)[:200]})') from None
        if size > LARGEST_RATIO * held + (1 << 20):
            raise ValueError(f'entry "{name}": its {kind} claim {size} bytes, but {held} are stored: the file is damaged')
        return dataset

    def _read(self, name, kind):
        try:
            return self._dataset(name, kind)[()]
        except (OSError, RuntimeError, TypeError, KeyError) as error:
            raise ValueError(f'entry "{name}": its {kind} cannot be read ({str(error)[:200]})') from None


def as_text(name):
    """h5py gives bytes where a name is not UTF-8. ValueError: it is not."""
    if not isinstance(name, str) or not is_text(name):
        raise ValueError(f"the name of an entry, {name!r}, is not UTF-8 text")
    return name


def split_entry(name):
    """"video[3]" -> (video, 3); "video" -> (video, -1)."""
    match = re.fullmatch(r"(.+)\[(\d{1,9})\]", name, re.DOTALL)
    return (match[1], int(match[2])) if match else (name, -1)


def is_hard(group, name):
    """Whether the group holds this itself, not a link to elsewhere. No link is followed to find out."""
    try:
        return group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type == h5py.h5l.TYPE_HARD
    except (KeyError, RuntimeError):
        return False


def member(group, name, kind):
    try:
        link = group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type
    except (KeyError, RuntimeError):
        raise ValueError(f'has no "{name}"') from None
    if link != h5py.h5l.TYPE_HARD:
        raise ValueError(f'"{name}" is a link, which is not followed')
    found = group[name]
    if not isinstance(found, kind):
        raise ValueError(f'"{name}" is no {kind.__name__.lower()}')
    return found


class Track:
    """A modality's rows in time: intervals [rows, 2], sorted by start; rows of equal start keep their order. sources[i]: which of
    the video's stored frames row i is the mean of; empty: of none, zeros."""

    def __init__(self, intervals, sources):
        order = np.argsort(intervals[:, 0], kind="stable")
        self.intervals, self.sources = intervals[order], [sources[i] for i in order]
        self._latest = np.maximum.accumulate(self.intervals[:, 1]) if len(order) else self.intervals[:, 1]

    def overlap(self, reference):
        """The rows that share time with the interval, as the SDK's __intersect_and_copy decides it -> (numbers, shared intervals)."""
        last = int(np.searchsorted(self.intervals[:, 0], reference[1] + MARGIN, side="right"))
        first = min(int(np.searchsorted(self._latest, reference[0] - MARGIN, side="left")), last)
        part = self.intervals[first:last]
        near = (reference[1:] - part[:, 0] > -EPSILON) & (part[:, 1] - reference[:1] > -EPSILON)
        shared = np.stack([np.maximum(part[:, 0], reference[:1]), np.minimum(part[:, 1], reference[1:])], axis=1)
        near &= np.abs(shared[:, 0] - shared[:, 1]) > EPSILON
        return first + np.flatnonzero(near), shared[near]


def words_track(words, track, collapse, impute):
    """The rows of a modality that fall into each word, as `align(words)` and `impute(words)` of the SDK: with `collapse` one row
    per word, the mean of its frames; impute: a word without frames gets a row of zeros -> (Track, words without frames)."""
    intervals, sources, empty = [], [], []
    for word in words:
        rows, shared = track.overlap(word)
        if len(rows) == 0:
            empty.append(word)
        elif collapse:
            intervals.append([[shared.min(), shared.max()]])
            sources.append(np.concatenate([track.sources[row] for row in rows]))
        else:
            intervals.append(shared)
            sources += [track.sources[row] for row in rows]
    if impute:
        intervals += [word[None] for word in empty]
        sources += [np.zeros(0, dtype=np.int64)] * len(empty)
    return Track(np.concatenate(intervals) if intervals else np.zeros((0, 2)), sources), len(empty)


def long_enough(intervals):
    """Numbers of the intervals that the SDK does not drop for their shortness."""
    return np.flatnonzero(~(np.abs(intervals[:, 0] - intervals[:, 1]) < EPSILON))


def mean_rows(features, sources):
    """[rows, features] float64: the means that a Track's rows stand for. Infinity and NaN survive, as in the SDK."""
    rows = np.zeros((len(sources), features.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):
        for row, frames in enumerate(sources):
            if len(frames):
                rows[row] = features[frames].mean(axis=0, dtype=np.float64)
    return rows
