#!/usr/bin/env python3
"""Imports a feature file of MMSA (MOSI, MOSEI, SIMS, SIMSv2, aligned or not; also what MMSA-FET writes), a pickle

    {"train": {"id": [...], "text": [N,T,D], "text_bert": [N,3,T], "audio": [N,T,D], "vision": [N,T,D], "regression_labels": [N],
               "audio_lengths": [N], ...}, "valid": {...}, "test": {...}}

into a muster dataset container. The pickle is not executed: see unpickle.py. Frames are read from the file one sample at a time.

    python importers/mmsa.py unaligned_50.pkl --nonfinite zero -o mosi.h5
    python importers/mmsa.py unaligned_50.pkl --text tokens --modality-file audio=wav2vec2.pkl -o mosi_raw.h5

Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import unpickle
from command_line import run_importer
from container import DataError
from dataset import (Dataset, Modality, add_common_options, groups_of, importer_parser, listed, name_and_value, parse, pattern, unique_pairs, unpad,
                     write_dataset, zero_rows)

SPLITS = {"train": "train", "valid": "valid", "test": "test", "val": "valid", "dev": "valid"}
MODALITIES = ("text", "audio", "vision")
CLASSES = ("Negative", "Neutral", "Positive")
UNIMODAL = {"T": "text", "A": "audio", "V": "vision"}  # SIMS has a label of each modality on its own
VIDEO = re.compile(r"^(.*)\$_\$")  # of an id, as MMSA writes it


class Source:
    """A pickle: its samples, of all splits one after another. ids: text. rows: where each is, (split, index)."""

    def __init__(self, path, mapping=False):
        """mapping: also {id: array} and {split: {id: array}} are read."""
        self.path, self.problems, self.unknown = path, [], []
        content = unpickle.load(path)
        if not isinstance(content, dict) or not content:
            raise DataError(f"{path}: holds a {type(content).__name__}; expected a dictionary with train, valid and test")
        parts = {name: part for name, part in content.items() if name in SPLITS and isinstance(part, dict)}
        if not parts and ("id" in content or mapping):
            parts = {"": content}
        if not parts:
            raise DataError(f"{path}: has none of the splits train, valid and test; its keys are {listed(map(repr, content))}")
        if "" not in parts:
            self.unknown = [str(name) for name in content if name not in parts]
        self.mapping = mapping and all("id" not in part and part and all(
            isinstance(key, str) and isinstance(value, np.ndarray) and value.ndim in (1, 2) for key, value in part.items()) for part in parts.values())
        self.parts = parts
        self.ids, self.rows, self.splits = [], [], []
        for name, part in parts.items():
            if not self.mapping and "id" not in part:
                raise DataError(f'{path}: {name or "it"} has no "id", so its samples cannot be told apart (its keys are {listed(map(repr, part))})')
            ids = [as_id(value) for value in part] if self.mapping else self.ids_of(name)
            self.ids += ids
            self.rows += [(name, index) for index in range(len(ids))]
            self.splits += [SPLITS.get(name, "")] * len(ids)
        self.arrays = {name: list(part.values()) for name, part in parts.items()} if self.mapping else None

    def where(self, row):
        name, index = self.rows[row]
        return f"{self.path}: {name} {index}".replace(":  ", ": ")

    def keys(self):
        return list(dict.fromkeys(str(key) for part in self.parts.values() for key in part))

    def has(self, key):
        """Whether all splits have it."""
        having = [name for name, part in self.parts.items() if part.get(key) is not None]
        if having and len(having) < len(self.parts):
            self.problems.append(f'{self.path}: "{key}" is in {", ".join(having)}, but not in all of {", ".join(self.parts)}')
        return len(having) == len(self.parts)

    def list_of(self, name, key):
        """One value per sample of a split: a list, or an array whose first dimension it is."""
        values = self.parts[name][key]
        if isinstance(values, dict):
            values = list(values.values())
        if not isinstance(values, (list, tuple, np.ndarray)) or isinstance(values, np.ndarray) and values.ndim == 0:
            raise DataError(f'{self.path}: {name}: "{key}" is a {type(values).__name__}; expected one value per sample')
        count = len(self.parts[name]["id"]) if key != "id" else len(values)
        if len(values) != count:
            raise DataError(f'{self.path}: {name}: "{key}" has {len(values)} entries, but there are {count} ids')
        return values

    def ids_of(self, name):
        ids = self.list_of(name, "id")
        for index, value in enumerate(ids):
            if not isinstance(value, (str, bytes, int, np.integer)):
                raise DataError(f'{self.path}: {name} {index}: the id is a {type(value).__name__}; expected a text')
        return list(map(as_id, ids))

    def column(self, key):
        """One number or text per sample."""
        values = []
        for name in self.parts:
            for index, value in enumerate(self.list_of(name, key)):
                value = value.reshape(-1) if isinstance(value, np.ndarray) else value
                if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1:
                    value = value[0]
                if not isinstance(value, (int, float, str, bytes, np.number, np.bool_)):
                    raise DataError(f'{self.path}: {name} {index}: "{key}" is no number or text')
                values.append(value)
        return values

    def numbers(self, key):
        """float64 [samples]."""
        try:
            return np.array([float(value) for value in self.column(key)], dtype=np.float64)
        except ValueError as error:
            raise DataError(f'{self.path}: "{key}" is no column of numbers ({error})') from None

    def frames(self, key):
        """(read(row) -> [frames, dim] with padding, dim). Arrays [samples, frames, dim], or one [frames, dim] per sample; [dim] is a frame."""
        parts = self.arrays or {name: self.list_of(name, key) for name in self.parts}

        def read(row):
            name, index = self.rows[row]
            value = parts[name][index]
            if not isinstance(value, np.ndarray) or value.ndim not in (1, 2) or value.dtype.kind not in "biuf":
                raise DataError("expected an array of numbers [frames, features], found " + (
                    f"shape {list(value.shape)} of type {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__))
            return value[None] if value.ndim == 1 else value
        dims = Counter()
        for row in range(len(self.ids)):
            try:
                dims[read(row).shape[1]] += 1
            except DataError as error:
                raise DataError(f'{self.where(row)}: "{key}": {error}') from None
        if len(dims) != 1 or 0 in dims:
            raise DataError(f'{self.path}: "{key}" has {" or ".join(map(str, sorted(dims)))} features; expected the same number for all samples')
        return read, next(iter(dims))

    def tokens(self):
        """(read(row) -> [3, L]: ids, mask, segments, lengths by the mask) of text_bert."""
        parts = {name: self.list_of(name, "text_bert") for name in self.parts}
        lengths = np.zeros(len(self.ids), dtype=np.int64)

        def read(row):
            name, index = self.rows[row]
            return parts[name][index]
        for row in range(len(self.ids)):
            value = read(row)
            if not isinstance(value, np.ndarray) or value.ndim != 2 or len(value) != 3 or value.dtype.kind not in "biuf":
                raise DataError(f'{self.where(row)}: "text_bert" is not of shape [3, tokens]: ids, mask and segments')
            lengths[row] = np.count_nonzero(value[1])
            if not np.array_equal(value[1], np.arange(value.shape[1]) < lengths[row]):
                self.problems.append(f'{self.where(row)}: "text_bert": id "{self.ids[row]}": its mask is not ones, then zeros')
        return read, lengths


def as_id(value):
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def open_features(name, source, key, options):
    """The modality of these features, for all samples of the source."""
    read, dim = source.frames(key)
    lengths, notes, read = true_lengths(name, source, key, read, options)
    return Modality(name, dim, lengths, read, source.where, options.dtype, notes=notes)


def true_lengths(name, source, key, read, options):
    """(lengths, notes, read) without padding. What the file says of lengths is believed first, then the mask of its text, then zeros."""
    count = len(source.ids)
    full = np.array([len(read(row)) for row in range(count)], dtype=np.int64)
    if not source.mapping and source.has(f"{key}_lengths"):
        stated = source.numbers(f"{key}_lengths")
        for row in np.flatnonzero((stated < 0) | (stated != np.floor(stated))):
            source.problems.append(f'{source.where(row)}: id "{source.ids[row]}": {key}_lengths says {stated[row]:g}')
        stated = np.clip(np.nan_to_num(stated), 0, None)
        lengths = np.minimum(stated, full).astype(np.int64)
        outside = sum(bool((read(row)[lengths[row]:] != 0).any()) for row in range(count))
        note = f'lengths of "{key}_lengths"' + (f", {(stated > full).sum()} of which are larger than the array" if (stated > full).any() else "")
        return cut(read, lengths, note + (f"; {outside} samples have other rows than zero after it, which are left out" if outside else ""))
    if options.padding != "auto" or source.mapping or not source.has("text_bert"):
        return unpad(name, read, count, options.padding)
    _, masked = source.tokens()
    widths = np.array([source.parts[part]["text_bert"][index].shape[1] for part, index in source.rows])
    if key == "text" and (full == widths).all():
        return cut(read, masked, 'lengths of the mask in "text_bert"')
    if (full == widths).all():  # aligned to the words
        outside = sum(bool((read(row)[masked[row]:] != 0).any()) for row in range(count))
        if not outside:
            return cut(read, masked, f'aligned with the text: lengths of the mask in "text_bert", after which all rows of all {count} samples are zero')
    lengths, notes, read = unpad(name, read, count, options.padding)
    if (full == widths).all():
        notes.append(f'not the mask in "text_bert", since {outside} samples have other rows than zero after it')
    return lengths, notes, read


def cut(read, lengths, note):
    """(lengths, notes, read) of the first rows; samples all of whose rows are zero lack the modality."""
    lengths, empty = lengths.copy(), 0
    for row in np.flatnonzero(lengths):
        frames = read(row)[:lengths[row]]
        if zero_rows(frames)[0] == len(frames):
            lengths[row], empty = 0, empty + 1
    note += f"; {empty} are all zero and lack it" if empty else ""
    return lengths, [note], lambda row: read(row)[:lengths[row]]


def open_tokens(source):
    read, lengths = source.tokens()
    used = [read(row)[2, :lengths[row]].any() for row in range(len(source.ids))]
    columns = [0, 2] if any(used) else [0]

    def tokens(row):
        values = read(row)[columns, :lengths[row]].T
        whole = values.astype(np.int64)
        if not np.array_equal(whole, values):
            raise DataError('"text_bert": tokens are whole numbers')
        return whole
    return Modality("text", len(columns), lengths, tokens, source.where, "int32", notes=['of "text_bert", lengths of its mask'])


def open_modalities(options, source, files):
    modalities = []
    for name in MODALITIES:
        if name in options.modality_file:
            continue
        if name == "text" and options.text == "tokens":
            if not source.has("text_bert"):
                raise DataError(f'{source.path}: has no "text_bert", so there are no tokens; its keys are {listed(source.keys())}')
            modalities.append(open_tokens(source))
        elif source.has(name):
            modalities.append(open_features(name, source, name, options))
        elif name == "text" and source.has("text_bert"):
            modalities.append(open_tokens(source))
    modalities += [join(name, file, key, source, options) for name, (file, key) in files.items()]
    if not modalities:
        raise DataError(f"{source.path}: has none of {', '.join(MODALITIES)}; its keys are {listed(source.keys())}")
    return modalities


def join(name, other, key, source, options):
    """The modality of another file, whose samples are found by their ids."""
    if not other.mapping and not other.has(key):
        raise DataError(f'{other.path}: has no "{key}"; its keys are {listed(other.keys())}; --modality-file {name}=FILE:KEY takes another one')
    modality = open_features(name, other, key, options)
    rows = {sample: row for row, sample in enumerate(other.ids)}
    if len(rows) < len(other.ids):
        source.problems += repeated(other)
    missing, extra = [sample for sample in source.ids if sample not in rows], sorted(rows.keys() - set(source.ids))
    for samples, where, elsewhere, meaning in ((missing, source, other, "the sample lacks it"), (extra, other, source, "it is left out")):
        if options.missing == "empty":
            if samples:
                modality.notes.append(f"{listed(samples)} not in {elsewhere.path}: {meaning}")
        else:
            source.problems += [f'{where.path}: the id "{sample}" is not in {elsewhere.path}; --missing empty: {meaning}' for sample in samples]
    found = np.array([rows.get(sample, -1) for sample in source.ids], dtype=np.int64)
    moved = [sample for row, sample in enumerate(source.ids)
             if found[row] >= 0 and other.splits[found[row]] not in ("", source.splits[row])]
    if moved:
        modality.notes.append(f"in another split in {other.path}: {listed(moved)}")
    if not other.mapping and other.has("regression_labels") and source.has("regression_labels"):
        ours, theirs = source.numbers("regression_labels"), other.numbers("regression_labels")
        for row in np.flatnonzero((found >= 0) & ~np.isclose(ours, theirs[found], rtol=0, atol=1e-5)):
            source.problems.append(f'{other.where(found[row])}: the id "{source.ids[row]}" has the label {theirs[found[row]]:g}, but '
                                   f"{ours[row]:g} in {source.path}: are these the same clips?")
    modality.keep(found)
    modality.lengths[found < 0] = 0
    modality.notes.append(f"of {other.path}, joined by id")
    return modality


def repeated(source):
    return [f'{source.path}: the id "{sample}" is there {count} times' for sample, count in Counter(source.ids).items() if count > 1]


def read_labels(options, source, notes):
    """(labels, class names, further targets) for the task."""
    targets = {}
    if source.has("regression_labels"):
        targets["regression"] = source.numbers("regression_labels")
    for end, name in {"": "", **{f"_{letter}": f"{modality}_" for letter, modality in UNIMODAL.items()}}.items():
        if end and source.has(f"regression_labels{end}"):
            targets[f"{name}label"] = source.numbers(f"regression_labels{end}")
        if source.has(f"classification_labels{end}"):
            annotations = source.column("annotations") if not end and source.has("annotations") else None
            targets[f"{name}classes"] = classes(source, f"classification_labels{end}", annotations, notes)
    if "classes" not in targets and source.has("annotations"):
        annotations = [as_id(value) for value in source.column("annotations")]
        names = sorted(set(annotations), key=lambda name: (CLASSES.index(name) if name in CLASSES else len(CLASSES), name))
        targets["classes"] = (np.array([names.index(value) for value in annotations], dtype=np.int64), names) if len(names) > 1 else None
    for name, key in options.target.items():
        if not source.has(key):
            raise DataError(f'{source.path}: has no "{key}" for --target {name}; its keys are {listed(source.keys())}')
        targets[name] = source.numbers(key)
    for name, values in list(targets.items()):
        wanted = name in options.target or name == "regression"
        if values is None or not wanted and not isinstance(values, tuple) and not np.isfinite(values).all():
            notes.append(f'"{name}" is no target: ' + ("it has less than two classes" if values is None else "not all of its values are numbers"))
            del targets[name]
    chosen = "classes" if options.task == "classification" else "regression"
    if chosen not in targets:
        wanted = "classification_labels or annotations" if options.task == "classification" else "regression_labels"
        raise DataError(f"{source.path}: has no {wanted}; its keys are {listed(source.keys())}")
    return *(targets[chosen] if options.task == "classification" else (targets[chosen], None)), targets


def classes(source, key, annotations, notes):
    """(class numbers, names) of a column of numbers; the names are those of the annotations that most samples of a number have."""
    numbers = source.numbers(key)
    if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any() or (numbers < 0).any() or numbers.max() > 1000:
        notes.append(f'"{key}" is not used: classes are whole numbers from 0')
        return None
    numbers = numbers.astype(np.int64)
    names = [CLASSES[number] if number < len(CLASSES) else str(number) for number in range(max(int(numbers.max()) + 1, len(CLASSES)))]
    if annotations is not None:
        annotations = [as_id(value) for value in annotations]
        for number in np.unique(numbers):
            names[number] = Counter(np.array(annotations)[numbers == number].tolist()).most_common(1)[0][0]
        names = [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]
        wrong = [f"{sample} is {names[number]} and {annotation}" for sample, number, annotation in zip(source.ids, numbers, annotations)
                 if names[number] not in (annotation, f"{annotation} ({number})")]
        if wrong:
            notes.append(f'"{key}" and "annotations" disagree: {listed(wrong)}')
    return numbers, names


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    source, notes = Source(options.source), []
    files = {name: (Source(path, mapping=True), key) for name, (path, key) in options.modality_file.items()}
    twice = repeated(source)
    if twice and options.repeated_ids == "number":
        seen = Counter()
        for row, sample in enumerate(source.ids):
            seen[sample] += 1
            if seen[sample] > 1:
                source.ids[row] = f"{sample}#{seen[sample]}"
        notes.append(f"ids that were there more than once got a number: {len(twice)}")
    elif twice:
        source.problems += [f"{problem}; --repeated-ids number tells them apart by #2, #3 ..." for problem in twice]
    labels, names, targets = read_labels(options, source, notes)
    groups = None
    if options.group_pattern:
        groups = groups_of(source.ids, options.group_pattern, source.problems)
    elif all(VIDEO.match(sample) for sample in source.ids):
        groups = groups_of(source.ids, VIDEO, source.problems)
    else:
        notes.append("no groups: not all ids are of the form video$_$clip; --group-pattern says how to find the video in them")
    modalities = open_modalities(options, source, files)
    used = {"id", "raw_text", "annotations", "regression_labels", "classification_labels", "text_bert", *options.target.values(),
            *MODALITIES, *(f"{name}_lengths" for name in MODALITIES), *(f"{kind}_labels_{letter}" for kind in ("regression", "classification") for letter in UNIMODAL)}
    unused = [key for key in [*source.unknown, *source.keys()] if key not in used]
    if unused:
        notes.append(f"not used: {listed(unused)}")
    dataset = Dataset(Path(options.source).stem, options.task, names, source.ids, labels, groups, source.splits, targets, modalities, notes)
    if not source.problems:
        dataset.drop_samples_without_modality()
    problems = list(dict.fromkeys(source.problems + [problem for file, _ in files.values() for problem in file.problems]))
    paths = [(Path(path).name, path) for path in (options.source, *(file.path for file, _ in files.values()))]
    return write_dataset(dataset, options, list(dict.fromkeys(paths)), problems)


def file_and_key(name, value):
    """FILE or FILE:KEY -> (file, key)."""
    file, sign, key = value.rpartition(":")
    return (value, name) if not sign or not key or "/" in key or Path(value).exists() else (file, key)


def parse_arguments(arguments):
    parser = importer_parser("mmsa", "A feature file (pickle) of MMSA: MOSI, MOSEI, SIMS or SIMSv2, aligned or not -> muster dataset container. The "
                             "pickle is not executed.", [
        "unaligned_50.pkl --nonfinite zero -o mosi.h5", "aligned_50.pkl --task classification -o mosi_classes.h5",
        "unaligned_50.pkl --text tokens --modality-file audio=wav2vec2.pkl -o mosi_tokens.h5"])
    parser.add_argument("source", metavar="FILE.pkl")
    parser.add_argument("--task", choices=("regression", "classification"), default="regression",
                        help="whether regression_labels (default) or classification_labels are the labels; all are stored as targets")
    parser.add_argument("--text", choices=("features", "tokens"), default="features",
                        help="what the text is: features of the field text (default), or tokens of text_bert for a text encoder")
    parser.add_argument("--modality-file", action="append", default=[], type=name_and_value, metavar="NAME=FILE.pkl",
                        help="the modality's features are in another file of this layout, or {id: array}; samples are found by their ids. "
                             "FILE.pkl:KEY: its field KEY, where that is not called NAME")
    parser.add_argument("--missing", choices=("error", "empty"), default="error",
                        help="what it means that an id is in only one of the files; empty: the sample lacks the modality")
    parser.add_argument("--repeated-ids", choices=("error", "number"), default="error", help="number: the second gets #2 at its end, and so on")
    parser.add_argument("--target", action="append", default=[], type=name_and_value, metavar="NAME=KEY",
                        help="a further label: the numbers of the field KEY")
    parser.add_argument("--group-pattern", type=pattern, metavar="REGEX",
                        help="the group is what its first group matches in the id; default: the video of video$_$clip")
    add_common_options(parser, padding=True)
    options = parse(parser, arguments, "mmsa")
    unique_pairs(parser, options, "modality_file", "target")
    options.modality_file = {name: file_and_key(name, value) for name, value in options.modality_file.items()}
    return options


def main(arguments=None):
    return run_importer(run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
