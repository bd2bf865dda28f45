"""Reads recordings (.wav, .flac), which come from strangers, as the waveforms of one modality: mono, of one sample rate."""
import re
from collections import Counter

import numpy as np

from command_line import copy_files, open_regular
from container import SAMPLE_RATES, DataError

BLOCK = 1 << 20  # frames read at a time: what a header claims is not allocated before it is there
SIXTEEN_BITS = ("PCM_16", "PCM_S8", "PCM_U8")  # samples that int16 holds exactly
UNKNOWN_SIZE = 0x7FFFF000  # what programs write into a pipe claims this size or more


class Recordings:
    """One file per row, None where there is none. Its first look reads only their headers. What it has in common with the other
    kinds of modalities: name, dim, dtype, sample_rate, lengths (-1 where there is a problem), copy() and describe()."""

    def __init__(self, name, paths, manifest, ids, options, problems):
        self.name, self.paths, self.manifest, self.ids, self.dim = name, paths, manifest, ids, 1
        self.lengths = np.full(len(paths), -1, dtype=np.int64)
        self._seconds, self._mono = options.max_seconds.get(name), options.mono
        self._frames, self._rates = np.zeros(len(paths), dtype=np.int64), np.zeros(len(paths), dtype=np.int64)
        self._channels, exact = np.ones(len(paths), dtype=np.int64), True
        for row, path in enumerate(paths):
            try:
                if path is None:
                    self.lengths[row] = 0
                    continue
                exact &= self._look(row, path, options.missing, problems)
            except DataError as error:
                problems.append(f"{error} ({manifest.where(row)})")
            except ValueError as error:
                problems.append(f"{path}: {error} ({manifest.where(row)})")
        self.sample_rate = self._choose_rate(options.resample, problems)
        self.resampled = (self._frames > 0) & (self._rates != self.sample_rate)
        self._kept = self._frames.copy()
        if self._seconds is not None:
            self._kept = np.minimum(self._kept, np.maximum(np.floor(self._seconds * self._rates + 1e-6).astype(np.int64), 1))
        self.cropped = self._kept < self._frames
        for row in np.flatnonzero(self.lengths == -2):  # good so far
            kept, rate = int(self._kept[row]), int(self._rates[row])
            self.lengths[row] = (2 * kept * self.sample_rate + rate) // (2 * rate)  # rounded, as soxr does
            if self.lengths[row] == 0:
                problems.append(f"{paths[row]}: {kept} samples are too short to be resampled ({manifest.where(row)})")
                self.lengths[row] = -1
        self.loud = {}  # of rows with values outside [-1, 1], the largest magnitude
        self.dtype = "int16" if exact and not self.resampled.any() and (self._channels == 1).all() else "float32"

    def _look(self, row, path, missing, problems):
        """Whether int16 holds its samples. ValueError: what is wrong, for people."""
        with open_regular(path) as file, open_sound(file) as sound:
            claimed = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.M)
            if claimed and int(claimed[2]) < int(claimed[1]) < UNKNOWN_SIZE:
                raise ValueError(f"is damaged: {claimed[2]} bytes of samples, expected {claimed[1]}")
            if sound.channels > 1 and self._mono is None:
                raise ValueError(f"has {sound.channels} channels, a waveform has one; --mono mean takes their mean")
            if not SAMPLE_RATES[0] <= sound.samplerate <= SAMPLE_RATES[1]:
                raise ValueError(f"has a sample rate of {sound.samplerate} Hz; expected {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]}")
            if sound.frames == 0:
                if missing == "error":
                    problems.append(f'{path}: no samples ({self.manifest.where(row)}); --missing empty takes it as "has no {self.name}"')
                else:
                    self.lengths[row] = 0
                return True
            self._frames[row], self._rates[row], self._channels[row] = sound.frames, sound.samplerate, sound.channels
            self.lengths[row] = -2
            return sound.subtype in SIXTEEN_BITS

    def _choose_rate(self, resample, problems):
        known = Counter(self._rates[self._rates > 0].tolist())
        if resample:
            return resample
        if not known:
            return 0
        (rate, count), = known.most_common(1)
        for row in np.flatnonzero((self._rates > 0) & (self._rates != rate)):
            problems.append(f"{self.paths[row]}: {self._rates[row]} Hz, but {count} of the other files have {rate} Hz; "
                            f"--resample {rate} resamples it ({self.manifest.where(row)})")
            self.lengths[row] = -1
        return rate

    def read(self, row):
        """[samples, 1] of a good file, in self.dtype or float32. ValueError: what is wrong, for people."""
        left, parts = int(self._kept[row]), []
        with open_regular(self.paths[row]) as file, open_sound(file) as sound:
            while left > 0:
                try:
                    part = sound.read(min(left, BLOCK), dtype=self.dtype, always_2d=True)
                except RuntimeError as error:
                    raise ValueError(f"is damaged ({error})") from None
                if len(part) == 0:
                    raise ValueError(f"is damaged: {left} of its {self._frames[row]} samples are missing")
                parts.append(part)
                left -= len(part)
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if values.shape[1] > 1:
            values = values.mean(axis=1, keepdims=True)
        if self.resampled[row]:
            import soxr

            values = soxr.resample(values[:, 0], int(self._rates[row]), self.sample_rate)[:, None]
        if self.dtype != "int16":
            largest = np.max(np.abs(values), initial=0, where=np.isfinite(values))
            if largest > 1:
                self.loud[row] = float(largest)
        if len(values) != self.lengths[row]:
            raise ValueError(f"has changed: {len(values)} samples, expected {self.lengths[row]}")
        return values

    def at(self, row, text):
        return f"{self.paths[row]}: {text} ({self.manifest.where(row)})"

    def copy(self, options, out, progress, problems):
        """Reads every good file once, checks its values and, if `out` is given, writes them."""
        copy_files(self, self.read, np.zeros((0, 1), dtype=self.dtype), "samples", options, out, progress, problems)

    def describe(self, present, missing, replaced):
        seconds = present / self.sample_rate
        lines = [f"waveform of {self.sample_rate} Hz as {self.dtype}, {seconds.sum():.2f} s, {seconds.min():.2f} to {seconds.max():.2f} s "
                 f"per sample, missing for {missing}"]
        if self.resampled.any():
            lines.append(f"{self.resampled.sum()} resampled")
        if (self._channels > 1).any():
            lines.append(f"{(self._channels > 1).sum()} with the mean of their channels")
        if self._seconds is not None:
            lines.append(f"{self.cropped.sum()} cropped to {self._seconds:g} s")
        if self.loud:
            row = max(self.loud, key=self.loud.get)
            lines.append(f"{len(self.loud)} with values outside [-1, 1] (largest {self.loud[row]:.4g}, {self.paths[row]})")
        if replaced:
            lines.append(f"{replaced} non-finite values set to 0")
        return ", ".join(lines)


def open_sound(file):
    """ValueError: it is no recording."""
    import soundfile

    try:
        return soundfile.SoundFile(file)
    except (RuntimeError, TypeError) as error:
        reason = str(error).rpartition(": ")[2] or "unknown"
        raise ValueError(f"is no recording that can be read ({reason})") from None
