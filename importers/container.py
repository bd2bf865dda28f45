"""Writes muster's dataset container (HDF5, "muster-dataset" version 1; the format is described in docs/data.md).

    from container import ContainerWriter

    with ContainerWriter("out.h5", name="iemocap", task="classification", class_names=["happy", "sad"]) as out:
        out.samples(ids=["a", "b"], labels=[0, 1], groups=["session 1", "session 2"])
        out.modality("audio", dim=20, lengths=[31, 44])     # frames per sample; 0: the sample has no audio
        out.append("audio", frames_of_a)                    # [31, 20]; sample by sample, in the order of the ids
        out.append("audio", frames_of_b)                    # [44, 20]

A modality may also be raw, for pretrained encoders: a waveform (mono, [samples, 1]) or tokens (ids [tokens, 1], or ids and
segment ids [tokens, 2]):

        out.modality("audio", dim=1, lengths=[16000, 12345], dtype="int16", sample_rate=16000)
        out.modality("text", dim=1, lengths=[7, 5], dtype="int32")

Only the frames given to `append` are in memory. The file appears at the end of the `with` block, whole or not at all: it is
written under another name in the same folder, synchronised to disk and renamed. An exception leaves nothing behind; what a killed
process leaves, a hidden file, is removed when the file is written again.
When all frames fit into memory, `write_container` does the same in one call.
"""
import contextlib
import fcntl
import glob
import os
import secrets
from pathlib import Path

import h5py
import numpy as np

FORMAT = "muster-dataset"
VERSION = 1
TASKS = ("regression", "classification", "multilabel")
SPLITS = ("train", "valid", "test", "")
DTYPES = ("float32", "float16")
WAVEFORM_DTYPES = ("float32", "float16", "int16")
TOKENS_DTYPE = "int32"
SAMPLE_RATES = (1000, 1000000)  # Hz, the lowest and the highest
ID_LIMIT = 1 << 24  # ids are below it: muster passes them through float32
MAX_CLASSES = 4000  # their names are an attribute, which HDF5 limits to 64 KB of 16 bytes each


class DataError(Exception):
    """The data are wrong. `problems`: every problem found, one sentence each, for people."""

    def __init__(self, problems):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class OutputError(DataError):
    """The output file must not be written: something else is there."""


class ContainerWriter:
    """See the module's text. `samples` and every `modality` come before the first `append`.

    name: of the data set. task: "regression" (labels: finite numbers), "classification" (labels: integers from 0, indices into
    class_names) or "multilabel" (labels: a row of 0 and 1 per sample, one for each of class_names). nonfinite: what `append` does
    with NaN and infinite features: "error" refuses them, "zero" writes 0 and counts them in `replaced`. All methods throw DataError
    for wrong data (OutputError: for an output that must not be written); OSError means that the disk is at fault.
    """

    def __init__(self, path, name, task, class_names=None, nonfinite="error"):
        if task not in TASKS:
            raise DataError(f'the task is "regression", "classification" or "multilabel", not "{task}"')
        if (task != "regression") != bool(class_names):
            raise DataError("class names belong to classification, and classification needs them")
        if class_names and class_names_problem(class_names, task == "multilabel"):
            raise DataError(class_names_problem(class_names, task == "multilabel"))
        if not is_text(str(name)):
            raise DataError(f"the data set's name {name!r} cannot be stored: it holds NUL or is not UTF-8")
        if nonfinite not in ("error", "zero"):
            raise DataError(f'nonfinite is "error" or "zero", not "{nonfinite}"')
        self.path = Path(path)
        self.replaced = {}  # modality -> number of values replaced by 0
        self.replaced_kinds = {}  # modality -> how many of them were NaN, inf and -inf
        self._task, self._classes, self._nonfinite = task, list(class_names or []), nonfinite
        self._ids = None
        self._next = {}  # modality -> position of the sample that append expects
        self._offsets, self._values = {}, {}
        self._temporary = self.path.with_name(f".tmp-{self.path.name}-{secrets.token_hex(4)}")
        refuse_other_files(self.path)
        remove_left_over(self.path)
        self._file = h5py.File(self._temporary, "x")
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file.id.get_vfd_handle(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.attrs["format"] = FORMAT
            self._file.attrs["version"] = VERSION
            self._file.attrs["name"] = str(name)
            self._file.attrs["task"] = task
            if self._classes:
                self._file.attrs.create("class_names", self._classes, dtype=h5py.string_dtype())
            self._file.create_group("samples")
            self._file.create_group("modalities")
        except BaseException:
            self.discard()
            raise

    def attribute(self, name, text):
        """Adds an attribute to the file that muster does not read: where the data come from."""
        self._file.attrs[name] = text

    def samples(self, ids, labels=None, groups=None, splits=None, targets=None):
        """One entry per sample in each argument. ids: unique strings. groups: session, speaker or video. splits: "train",
        "valid", "test" or "". targets: {name: further labels}: numbers are regression values, a pair (integers, class names) is
        a classification of its own, and where the integers are a matrix [samples, classes] of 0 and 1, several of the classes may be
        right at once. All problems are reported together."""
        if self._ids is not None:
            raise DataError("samples() was called before")
        ids = [str(i) for i in ids]
        problems = []
        if not ids:
            problems.append("there are no samples")
        first = {}
        for position, sample in enumerate(ids):
            if not sample or not is_text(sample):
                problems.append(f"sample {position} has an empty id" if not sample else
                                f"sample {position}: the id {sample!r} cannot be stored: it holds NUL or is not UTF-8")
            elif sample in first:
                problems.append(f'the id "{sample}" is used by samples {first[sample]} and {position}')
            first.setdefault(sample, position)
        stored, class_names = {}, {}
        if labels is not None:
            stored["label"] = check_labels("label", labels, self._classes, ids, problems, self._task == "multilabel")
        for name, values in (targets or {}).items():
            if not is_name(name):
                problems.append(f'"{name}" cannot be the name of a target')
                continue
            values, classes = values if isinstance(values, tuple) else (values, [])
            several = bool(classes) and np.ndim(values) == 2
            if classes and class_names_problem(classes, several):
                problems.append(f'target "{name}": {class_names_problem(classes, several)}')
            stored[f"targets/{name}"] = check_labels(f'target "{name}"', values, classes, ids, problems, several)
            class_names[f"targets/{name}"] = classes
        for name, values in (("group", groups), ("split", splits)):
            if values is None:
                continue
            stored[name] = [str(value) for value in values]
            if len(stored[name]) != len(ids):
                problems.append(f"{len(stored[name])} {name}s for {len(ids)} samples")
            problems += [f"the {name} {value!r} cannot be stored: it holds NUL or is not UTF-8"
                         for value in dict.fromkeys(stored[name]) if not is_text(value)]
        for sample, split in zip(ids, stored.get("split", [])):
            if split not in SPLITS:
                problems.append(f'sample "{sample}": {split_problem(split)}')
        if problems:
            raise DataError(problems)
        group = self._file["samples"]
        for name, values in {"id": ids, **stored}.items():
            if isinstance(values, list):
                group.create_dataset(name, data=values, dtype=h5py.string_dtype())
            else:
                dataset = group.create_dataset(name, data=values)
                if class_names.get(name):
                    dataset.attrs.create("class_names", class_names[name], dtype=h5py.string_dtype())
        self._ids = ids

    def modality(self, name, dim, lengths, dtype="float32", sample_rate=None):
        """lengths: frames of each sample, 0 where it has none. dtype: of the file, "float32" or "float16"; "int32" says that the
        frames are tokens. sample_rate (Hz) says that they are a waveform, which may also be "int16" (value / 32768)."""
        problems = []
        lengths = np.asarray(lengths)
        if self._ids is None:
            raise DataError("call samples() before modality()")
        if not is_name(name):
            problems.append(f'"{name}" cannot be the name of a modality')
        elif name in self._offsets:
            problems.append(f'the modality "{name}" is there already')
        if int(dim) < 1:
            problems.append(f'modality "{name}": the number of features is {dim}')
        problems += [f'modality "{name}": {problem}' for problem in kind_problems(dim, dtype, sample_rate)]
        if lengths.shape != (len(self._ids),):
            problems.append(f'modality "{name}": lengths of shape {list(lengths.shape)} for {len(self._ids)} samples')
        elif lengths.dtype.kind not in "iu" or (lengths < 0).any():
            problems.append(f'modality "{name}": lengths must be whole numbers, 0 or more')
        if problems:
            raise DataError(problems)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        group = self._file["modalities"].create_group(name)
        if sample_rate is not None:
            group.attrs["sample_rate"] = int(sample_rate)
        group.create_dataset("offsets", data=offsets)
        self._values[name] = group.create_dataset("values", shape=(int(offsets[-1]), int(dim)), dtype=dtype)
        self._offsets[name] = offsets
        self._next[name] = 0
        self.replaced[name] = 0
        self.replaced_kinds[name] = {"NaN": 0, "inf": 0, "-inf": 0}

    def append(self, modality, frames):
        """frames [T, dim] of the modality's next sample; T must be the length given before."""
        if modality not in self._offsets:
            raise DataError(f'there is no modality "{modality}": call modality() first')
        offsets, position = self._offsets[modality], self._next[modality]
        if position == len(self._ids):
            raise DataError(f'modality "{modality}": all {position} samples have been written')
        values = self._values[modality]
        first, last = int(offsets[position]), int(offsets[position + 1])
        frames = np.asarray(frames)
        where = f'modality "{modality}", sample "{self._ids[position]}"'
        if frames.shape != (last - first, values.shape[1]):
            raise DataError(f"{where}: frames of shape {list(frames.shape)}, announced were {[last - first, values.shape[1]]}")
        if values.dtype.kind == "i":
            stored, replaced, problem = frames, 0, whole_numbers_problem(frames, values.dtype)
        else:
            stored, replaced, problem = finite_frames(frames, values.dtype, self._nonfinite)
        if problem:
            raise DataError(f"{where}: {problem}")
        if replaced:
            self.replaced[modality] += replaced
            kinds = self.replaced_kinds[modality]
            for kind, bad in (("NaN", np.isnan(frames)), ("inf", np.isposinf(frames)), ("-inf", np.isneginf(frames))):
                kinds[kind] += int(bad.sum())
        if last > first:
            values[first:last] = stored
        self._next[modality] += 1

    def close(self):
        """Completes the file and puts it in place. Called by `with`."""
        if self._file is None:
            return
        try:
            self._check_complete()
            self._file.flush()
            self._file.close()
            synchronise(self._temporary)
            os.replace(self._temporary, self.path)
        except RuntimeError as error:  # what h5py makes of a disk that is full when HDF5 flushes
            raise OSError(f"{self.path}: {error}") from error
        finally:
            self.discard()  # where it is in place, there is nothing left to remove
        synchronise(self.path.parent)

    def discard(self):
        """Gives up: nothing is left on disk."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):  # a full disk makes HDF5 fail here too; the file is removed anyway
                file.close()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
        else:
            self.discard()

    def _check_complete(self):
        problems = []
        if self._ids is None:
            problems.append("no samples: call samples() first")
        if not self._offsets:
            problems.append("no modality: call modality() first")
        for name, done in self._next.items():
            if done != len(self._ids):
                problems.append(f'modality "{name}": {done} of {len(self._ids)} samples were appended')
        if problems:
            raise DataError(problems)


def is_name(name):
    """Whether it can be that of a modality or a target."""
    return bool(name) and "/" not in name and name != "." and is_text(name)


def is_text(text):
    """Whether HDF5 can store it: UTF-8 without NUL (a file's name that is not UTF-8 holds surrogates)."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def split_problem(split):
    return f'the split is "train", "valid", "test" or empty, not "{split}"'


def class_names_problem(names, several=False):
    """several: whether more than one class may be right at once, so that one class says something too."""
    if len(names) < 2 and not several:
        return "classification needs the names of at least two classes"
    if len(set(names)) != len(names) or not all(names):
        return "class names must differ and must not be empty"
    if not all(map(is_text, names)):
        return "class names must be UTF-8 without NUL"
    if len(names) > MAX_CLASSES:
        return f"there are {len(names)} classes, at most {MAX_CLASSES} can be stored; is this the column of the labels?"
    return None


def check_labels(what, values, classes, ids, problems, several=False):
    """The labels in the type of the file: int64 where there are classes (several: a row of 0 and 1), float32 otherwise."""
    labels = np.asarray(values)
    if several:
        if labels.shape != (len(ids), len(classes)) or labels.dtype.kind not in "iub":
            problems.append(f"{what}: expected integers of shape {[len(ids), len(classes)]}, 0 or 1 for each sample and class, not "
                            f"{labels.dtype} of shape {list(labels.shape)}")
            return labels
        for row, column in np.argwhere((labels != 0) & (labels != 1)):
            problems.append(f'{what}: sample "{ids[row]}" has {labels[row, column]} for class "{classes[column]}"; expected 0 or 1')
        return labels.astype(np.int64)
    if labels.shape != (len(ids),) or labels.dtype.kind not in "iuf":
        problems.append(f"{what}: expected {len(ids)} numbers, one per sample")
        return labels
    if not classes:
        stored = labels.astype(np.float32)
        for sample, label in zip(ids, stored):
            if not np.isfinite(label):
                problems.append(f'{what}: sample "{sample}" has the value {label}')
        return stored
    if labels.dtype.kind == "f":
        problems.append(f"{what}: classes are integers, not {labels.dtype}")
        return labels
    for sample, label in zip(ids, labels):
        if not 0 <= label < len(classes):
            problems.append(f'{what}: sample "{sample}" has class {label}, but there are {len(classes)} classes')
    return labels.astype(np.int64)


def finite_frames(frames, dtype, nonfinite):
    """Frames in the type of the file -> (frames, number of values replaced by 0, problem or None)."""
    with np.errstate(over="ignore"):
        stored = frames.astype(dtype)
    bad = ~np.isfinite(stored)
    count = int(bad.sum())
    if count == 0:
        return stored, 0, None
    if nonfinite == "error" or np.isfinite(frames[bad]).any():
        index = tuple(int(i) for i in np.argwhere(bad & np.isfinite(frames) if nonfinite == "zero" else bad)[0])
        value = frames[index]
        reason = f"too large for {np.dtype(dtype)}" if np.isfinite(value) else "not finite"
        return stored, 0, f"{count} of {frames.size} values are {reason}, the first is {value} in frame {index[0]}, column {index[1]}"
    return np.where(bad, 0, stored).astype(dtype), count, None


def kind_problems(dim, dtype, sample_rate):
    """What is wrong with a modality of these: features, a waveform where there is a sample rate, or tokens."""
    if sample_rate is not None:
        if dtype not in WAVEFORM_DTYPES:
            yield f'dtype of a waveform is one of {", ".join(WAVEFORM_DTYPES)}, not "{dtype}"'
        if int(dim) != 1:
            yield f"a waveform has one value per frame, not {dim}"
        if sample_rate != int(sample_rate) or not SAMPLE_RATES[0] <= sample_rate <= SAMPLE_RATES[1]:
            yield f"the sample rate is a whole number of Hz from {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]}, not {sample_rate}"
    elif dtype == TOKENS_DTYPE:
        if int(dim) not in (1, 2):
            yield f"tokens have one number per frame (id) or two (id and segment id), not {dim}"
    elif dtype not in DTYPES:
        yield (f'dtype is one of {", ".join(DTYPES)}; {TOKENS_DTYPE} for tokens, int16 for a waveform, which needs a sample_rate; '
               f'not "{dtype}"')


def whole_numbers_problem(frames, dtype):
    """Why they cannot be stored as int16 of a waveform or int32 of tokens, or None."""
    if frames.size == 0:
        return None
    if frames.dtype.kind not in "iu":
        return f"values must be whole numbers ({np.dtype(dtype)}), not {frames.dtype}"
    what, low, high = ("ids", 0, ID_LIMIT - 1) if dtype == TOKENS_DTYPE else ("values", -32768, 32767)
    bad = (frames < low) | (frames > high)
    if not bad.any():
        return None
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return (f"{int(bad.sum())} of {frames.size} {what} are not from {low} to {high}, the first is {frames[index]} in frame {index[0]}, "
            f"column {index[1]}")


def refuse_places(path):
    """Nothing is written through a link, which somebody else may have put into a shared folder, or into the directory of a run, a
    search or a study."""
    if path.is_symlink():
        raise OutputError(f"{path} is a symbolic link, and files are not written through links: give the path of the file itself")
    for folder in path.resolve().parents:
        if (folder / "environment.json").exists() and (folder / "config.txtpb").exists() or (
                folder / "search.txtpb").exists() and (folder / "trials").is_dir() or (folder / "cells" / "base").is_dir():
            raise OutputError(f"{path} lies in {folder}, the directory of a run, search or study: choose another place")


def refuse_other_files(path):
    """A container may be replaced by a new one; any other file is not ours to overwrite."""
    refuse_places(path)
    if not path.exists():
        return
    ours = False
    if path.is_file():
        with contextlib.suppress(OSError), h5py.File(path, "r", locking=False) as old:
            ours = old.attrs.get("format") == FORMAT
    if not ours:
        raise OutputError(f"{path} exists and is no {FORMAT} file: it is not overwritten")


def remove_left_over(path):
    """Removes unfinished files of this name whose process was killed, which nobody holds a lock on any more."""
    for left_over in path.parent.glob(f".tmp-{glob.escape(path.name)}-????????"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left_over, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left_over.unlink()
            finally:
                os.close(descriptor)


def synchronise(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_container(path, name, task, ids, modalities, labels=None, class_names=None, groups=None, splits=None, targets=None,
                    nonfinite="error", dtype="float32", sample_rates=None):
    """modalities: {name: list of [T, dim] arrays, one per sample; [0, dim] where a sample has none}. dtype: of all, or
    {modality: dtype}. sample_rates: {modality: Hz} of those that are waveforms. The rest: see ContainerWriter. Returns
    {modality: number of non-finite values replaced by 0}."""
    with ContainerWriter(path, name, task, class_names, nonfinite) as out:
        out.samples(ids, labels, groups, splits, targets)
        for modality, sequences in modalities.items():
            dims = {np.asarray(frames).shape[1:] for frames in sequences}
            if len(dims) != 1 or len(next(iter(dims))) != 1:
                raise DataError(f'modality "{modality}": every sample needs an array [frames, dim] with the same dim, '
                                f"found frames of shapes {sorted(map(list, dims))}")
            out.modality(modality, next(iter(dims))[0], [len(frames) for frames in sequences],
                         dtype.get(modality, "float32") if isinstance(dtype, dict) else dtype, (sample_rates or {}).get(modality))
            for frames in sequences:
                out.append(modality, frames)
    return out.replaced
