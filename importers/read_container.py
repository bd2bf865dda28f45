"""Reads a dataset container (docs/data.md), which may come from strangers: everything must be stored in the file itself, at its own
place, and nothing is allocated before the size of the file has been compared with what it claims. Frames stay in the file until
they are asked for, sample by sample."""
import os
import resource

import h5py
import numpy as np

from command_line import open_regular
from container import FORMAT, SAMPLE_RATES, SPLITS, TASKS, VERSION, DataError, class_names_problem, is_text, split_problem

LARGEST_RATIO = 1100  # gzip makes nothing smaller than this


class Stored:
    """One modality. Its rows are those of the samples: `lengths` their numbers of frames, 0 where a sample has none."""

    def __init__(self, name, values, offsets, sample_rate):
        self.name, self.values, self.sample_rate, self.dim = name, values, sample_rate, values.shape[1]
        self.first, self.lengths, self.place = offsets[:-1], np.diff(offsets), f"{values.file.filename}: /modalities/{name}"
        kind, size = values.dtype.kind, values.dtype.itemsize
        self.kind = "waveform" if sample_rate is not None else "tokens" if kind == "i" else "features"
        # As it is written again: float64 is read as float32, and ids of tokens fit into int32.
        self.dtype = "int32" if self.kind == "tokens" else "int16" if kind == "i" else "float16" if size == 2 else "float32"

    def read(self, row):
        """[frames, dim] of a sample."""
        return self.rows(self.first[row], self.first[row] + self.lengths[row])

    def rows(self, first, last):
        """Frames first to last - 1 of the file."""
        try:
            return self.values[first:last]
        except (OSError, RuntimeError) as error:  # what h5py makes of damaged chunks
            raise DataError(f"{self.place}: frames {first} to {last - 1} cannot be read: {error}") from None

    def pick(self, rows, name=None):
        """The modality of samples `rows`, in this order; -1 is a sample that lacks it. name: a new one."""
        picked, rows = Stored.__new__(Stored), np.asarray(rows, dtype=np.int64)
        picked.__dict__.update(self.__dict__, name=name or self.name, first=self.first[rows],
                               lengths=np.where(rows < 0, 0, self.lengths[rows]))
        return picked


class Contents:
    """What is in a container. labels: an array or None; class_names: [] for a regression; groups, splits: a list or None;
    targets: {name: (values, class names)}; modalities: {name: Stored}; origin: {attribute: text}, what an importer wrote of it."""

    origin = {}

    def __init__(self, path, name, task, class_names, ids, labels, groups, splits, targets, modalities):
        self.path, self.name, self.task, self.class_names, self.ids, self.labels = path, name, task, class_names, ids, labels
        self.groups, self.splits, self.targets, self.modalities = groups, splits, targets, modalities

    def pick(self, rows):
        """The samples `rows`, in this order."""
        listed = [None if values is None else [values[row] for row in rows] for values in (self.ids, self.groups, self.splits)]
        rows = np.asarray(rows, dtype=np.int64)
        return Contents(self.path, self.name, self.task, self.class_names, listed[0], None if self.labels is None else self.labels[rows],
                        *listed[1:], {name: (values[rows], classes) for name, (values, classes) in self.targets.items()},
                        {name: modality.pick(rows) for name, modality in self.modalities.items()})

    def label_names(self, row):
        """The label of a sample, for people."""
        return label_text(self.labels[row], self.class_names)


def label_text(label, class_names):
    if np.ndim(label):
        return "+".join(name for name, value in zip(class_names, label) if value) or "none"
    return class_names[int(label)] if class_names else f"{label:g}"


def read_container(path):
    """Contents of the file, which stays open. DataError: all that is wrong with it."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
    if not survives(lambda: open_container(path), 10 + size // 10**7):
        raise DataError(f"{path}: is damaged: HDF5 cannot read it")
    return open_container(path)


def survives(function, seconds):
    """Whether a process of its own comes back from function() in so many seconds of processor time: on some damaged files HDF5 never
    ends, or crashes."""
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        try:
            function()
        finally:
            os._exit(0)  # an exception is for the caller's own try
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def open_container(path):
    problems = []
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DataError(f"{path}: is no HDF5 file, or is damaged ({str(error)[:300]})") from None
    try:
        contents = Reader(path, file, problems).read()
    except DataError as error:
        problems += error.problems
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError) as error:  # what h5py makes of a damaged file
        problems.append(f"{path}: is damaged ({str(error)[:300]})")
    if problems:
        raise DataError(problems)
    return contents


class Reader:
    def __init__(self, path, file, problems):
        self.path, self.file, self.problems = path, file, problems
        with open_regular(path) as plain:
            self.bytes = plain.seek(0, 2)

    def fail(self, place, text):
        raise DataError(f"{self.path}: {place}: {text}")

    def read(self):
        root = self.file
        if text_attribute(root, "format") != FORMAT:
            self.fail("/", f"this is an HDF5 file, but no {FORMAT}: its attribute 'format' is {text_attribute(root, 'format')!r}")
        if root.attrs.get("version") != VERSION:
            self.fail("/", f"version {root.attrs.get('version')} of the format; this muster reads {VERSION}")
        task = text_attribute(root, "task")
        if task not in TASKS:
            self.fail("/", f"attribute 'task' is {task!r}; it must be one of {', '.join(TASKS)}")
        class_names = names_attribute(root) if task != "regression" else []
        if task != "regression" and class_names_problem(class_names, task == "multilabel"):
            self.fail("/", f"attribute 'class_names': {class_names_problem(class_names, task == 'multilabel')}")
        samples = self.child(root, "samples", "/samples", h5py.Group)
        ids = self.texts(samples, "id", None)
        if not ids or len(set(ids)) < len(ids) or not all(ids):
            self.fail("/samples/id", "ids must be there, differ and not be empty")
        groups, splits = (self.texts(samples, name, len(ids)) if name in samples else None for name in ("group", "split"))
        for sample, split in zip(ids, splits or []):
            if split not in SPLITS:
                self.problems.append(f'{self.path}: /samples/split: sample "{sample}": {split_problem(split)}')
        labels = None
        if "label" in samples:
            labels = self.labels(samples, "label", "/samples/label", class_names, ids)
            if (labels.ndim == 2) != (task == "multilabel"):
                self.fail("/samples/label", f"has the shape {list(labels.shape)}, but the task is {task}")
        targets = {}
        if "targets" in samples:
            folder = self.child(samples, "targets", "/samples/targets", h5py.Group)
            for name in folder:
                targets[name] = self.target(folder, name, class_names, ids)
        modalities = {}
        folder = self.child(root, "modalities", "/modalities", h5py.Group)
        for name in folder:
            try:
                modalities[name] = self.modality(folder, name, len(ids))
            except DataError as error:
                self.problems += error.problems
        if not folder:
            self.fail("/modalities", "there are no modalities")
        name = text_attribute(root, "name")
        contents = Contents(self.path, name, task, class_names, ids, labels, groups, splits, targets, modalities)
        contents.origin = {key: text for key in ("command", "sources_sha256") if (text := text_attribute(root, key))}
        return contents

    def child(self, parent, name, place, kind):
        link = parent.get(name, getlink=True)
        if link is None:
            self.fail(place, "is missing")
        if not isinstance(link, h5py.HardLink):
            self.fail(place, f"is a link ({type(link).__name__}); everything must be stored in the file itself, at its own place")
        if parent.get(name, getclass=True) is not kind:
            self.fail(place, f"is no {kind.__name__.lower()}")
        child = parent[name]
        if kind is h5py.Dataset:
            self.check_stored(child, place)
        return child

    def check_stored(self, dataset, place):
        """The values must be there: sizes in a damaged or hostile file may say anything."""
        if dataset.is_virtual or dataset.external:
            self.fail(place, "has its values in another file; everything must be stored in the file itself")
        if dataset.shape is None:
            self.fail(place, "holds nothing")
        stored, claimed = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
        plain = dataset.id.get_create_plist().get_nfilters() == 0
        if dataset.chunks is None:
            offset = dataset.id.get_offset()
            if claimed and claimed > 1 << 16 and (offset is None or offset + claimed > self.bytes):
                self.fail(place, f"claims {claimed} bytes of values, but the file ends before them")
            return
        if stored > self.bytes or claimed > stored * (1 if plain else LARGEST_RATIO):
            self.fail(place, f"claims {claimed} bytes of values, but only {stored} were ever written")
        wanted, damaged = int(np.prod(dataset.chunks, dtype=object)) * dataset.dtype.itemsize, []

        def look(chunk):  # HDF5 takes a chunk without filters to be as long as it should be
            if (plain or chunk.filter_mask) and chunk.size < wanted or chunk.byte_offset + chunk.size > self.bytes:
                damaged.append(chunk)

        dataset.id.chunk_iter(look)
        if damaged:
            self.fail(place, "its chunks are damaged")

    def column(self, parent, name, place, count, kinds, dimensions=(1,)):
        dataset = self.child(parent, name, place, h5py.Dataset)
        if dataset.ndim not in dimensions or count is not None and dataset.shape[0] != count:
            self.fail(place, f"has the shape {list(dataset.shape)}" + (f", but there are {count} samples" if count is not None else ""))
        if dataset.dtype.kind not in kinds:
            self.fail(place, f"holds values of type {dataset.dtype}")
        return dataset

    def texts(self, samples, name, count):
        place = f"/samples/{name}"
        dataset = self.column(samples, name, place, count, "OS")
        if h5py.check_string_dtype(dataset.dtype) is None:
            self.fail(place, "holds no text")
        texts = [str(text) for text in dataset.asstr(errors="surrogateescape")[:]]
        if not all(map(is_text, texts)):
            self.fail(place, "is not UTF-8 text")
        return texts

    def labels(self, parent, name, place, class_names, ids):
        labels = self.column(parent, name, place, len(ids), "iu" if class_names else "f", (1, 2))[()]
        if labels.ndim == 2 and (not class_names or labels.shape[1] != len(class_names)):
            self.fail(place, f"has the shape {list(labels.shape)}, which needs as many class names as columns")
        allowed = 2 if labels.ndim == 2 else len(class_names)
        bad = (labels < 0) | (labels >= allowed) if class_names else ~np.isfinite(labels)
        for row in np.unique(np.argwhere(bad)[:, 0]) if bad.any() else ():
            self.problems.append(f'{self.path}: {place}: sample "{ids[row]}" has the label {labels[row]}'
                                 + (f", allowed are 0 to {allowed - 1}" if class_names else ""))
        return labels.astype(np.int64 if class_names else np.float32)

    def target(self, folder, name, class_names, ids):
        place = f"/samples/targets/{name}"
        dataset = self.column(folder, name, place, len(ids), "iuf", (1, 2))
        classes = [] if dataset.dtype.kind == "f" else names_attribute(dataset) or class_names
        if dataset.dtype.kind != "f" and class_names_problem(classes, dataset.ndim == 2):
            self.fail(place, f"attribute 'class_names': {class_names_problem(classes, dataset.ndim == 2)}")
        return self.labels(folder, name, place, classes, ids), classes

    def modality(self, folder, name, count):
        place = f"/modalities/{name}"
        group = self.child(folder, name, place, h5py.Group)
        values = self.column(group, "values", f"{place}/values", None, "fi", (2,))
        offsets = self.column(group, "offsets", f"{place}/offsets", count + 1, "iu")[()].astype(np.int64)
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(values):
            self.fail(f"{place}/offsets", f"must rise from 0 to the number of frames, {len(values)}")
        rate, size = group.attrs.get("sample_rate"), values.dtype.itemsize
        if size not in (2, 4, 8) or values.shape[1] < 1:
            self.fail(f"{place}/values", f"is {values.dtype} of the shape {list(values.shape)}")
        integer = values.dtype.kind == "i"
        if rate is None and integer and (size == 2 or values.shape[1] > 2):
            self.fail(place, f"values of type {values.dtype} with {values.shape[1]} columns are neither features, a waveform nor tokens")
        if rate is not None:
            if np.ndim(rate) or not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1] or rate != int(rate):
                self.fail(place, f"attribute 'sample_rate' is {rate}")
            if values.shape[1] != 1 or integer and size != 2:
                self.fail(place, f"values of type {values.dtype} with {values.shape[1]} columns are no waveform")
        return Stored(name, values, offsets, None if rate is None else int(rate))


def text_attribute(item, name):
    value = item.attrs.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    return value if isinstance(value, str) and is_text(value) else None


def names_attribute(item):
    values = item.attrs.get("class_names")
    names = [] if values is None else [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v) for v in np.ravel(values)]
    return names
