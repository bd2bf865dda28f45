#!/usr/bin/env python3
"""Imports features and labels as MERBench (MERTools) has them into a muster dataset container.

    label.npz                      train_corpus, val_corpus, test_corpus or whole_corpus: {name: {"emo": 2, "val": -10}}
    features/wavlm-base-UTT/       NAME.npy [features]
    features/wavlm-base-FRA/       NAME.npy [frames, features], [features] for one frame, or a folder NAME/ of one such file per frame

    python importers/merbench.py label_4way.npz --modality audio=features/wavlm-base-FRA --modality text=features/deberta-large-FRA \\
        -o iemocap.h5

The labels are pickled objects, which are not executed: see npz.py.
Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

import npz
from command_line import run_importer
from container import DataError, class_names_problem
from dataset import (Dataset, Modality, add_common_options, groups_of, importer_parser, leads_out, listed, name_and_value, parse, pattern,
                     unique_pairs, unpad, write_dataset)
from npy import read_frames, read_shape

NO_VALUE = -10  # what MERBench writes where there is no valence
SESSION = re.compile(r"^(Ses0\d)[FM]")  # of IEMOCAP's names
CORPORA = {  # the classes by their number, as MERTools' own scripts number them; how the names of the samples look
    "IEMOCAPFour": (("happy", "sad", "neutral", "angry"), SESSION),
    "IEMOCAPSix": (("happy", "sad", "neutral", "angry", "excited", "frustrated"), SESSION),
    "MELD": (("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"), re.compile(r"^(train|val|test)_dia\d+_utt\d+$")),
    "MER2023": (("neutral", "angry", "happy", "sad", "worried", "surprise"), None)}


class Labels:
    """What label.npz says, sample by sample: ids, splits, emo and val (None where there is none)."""

    def __init__(self, options, problems, notes):
        self.path, self.ids, self.splits, self.emo, self.val, where = options.labels, [], [], [], [], {}
        corpora = npz.load_npz(self.path)
        for key in options.split:
            if key not in corpora:
                raise DataError(f"{self.path}: --split {key}: there is no such entry; there are {listed(corpora)}")
        for key, array in corpora.items():
            split = options.split.get(key) or usual_split(key, corpora)
            if split is None:
                problems.append(f'{self.path}: "{key}": --split {key}=train, valid, test, none or skip says what it is')
                continue
            corpus = array[()] if array.shape == () and array.dtype == object else None
            if split == "skip":
                notes.append(f'"{key}" is left out')
                continue
            if not isinstance(corpus, dict):
                problems.append(f'{self.path}: "{key}" is no dictionary of names; --split {key}=skip leaves it out')
                continue
            notes.append(f'"{key}" is {split if split != "none" else "of no split"}: {len(corpus)} samples')
            for name, label in corpus.items():
                name = str(name)
                at = f'{self.path}: "{key}": the name "{name}"'
                if name in where:
                    problems.append(f'{at} is in "{where[name]}" too; --split {key}=skip leaves out one of them')
                elif not name or leads_out(name):
                    problems.append(f"{at} would lead out of the folder")
                elif not isinstance(label, dict) or not {"emo", "val"} & label.keys():
                    problems.append(f'{at} has no "emo" and no "val"')
                where[name] = key
                label = label if isinstance(label, dict) else {}
                self.ids.append(name)
                self.splits.append("" if split == "none" else split)
                self.emo.append(emotion(label.get("emo")))
                self.val.append(valence(label.get("val"), at, problems))
        if not self.ids and not problems:
            problems.append(f"{self.path}: there are no samples")

    def keep(self, rows):
        self.ids, self.splits, self.emo, self.val = ([values[row] for row in rows] for values in (self.ids, self.splits, self.emo, self.val))


def usual_split(key, corpora):
    kind = re.sub(r"_corpus$", "", key)
    if kind == "test1" and not {"test", "test_corpus"} & corpora.keys():
        return "test"
    if re.fullmatch(r"test\d+", kind):
        return "skip"
    return {"train": "train", "val": "valid", "valid": "valid", "dev": "valid", "test": "test", "whole": "none"}.get(kind)


def emotion(value):
    """A class as its number or its name, None where there is none."""
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if isinstance(value, (int, float, np.number)) and float(value).is_integer():
        return int(value) if value >= 0 else None
    if isinstance(value, (str, np.str_)) and value:
        return int(value) if value.isdigit() else str(value)
    return None


def valence(value, at, problems):
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if value is None or isinstance(value, (str, np.str_)) and not value:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        problems.append(f'{at}: "val" is no number')
        return None
    return number if np.isfinite(number) and number != NO_VALUE else None


def choose_classes(options, labels, notes):
    """(class numbers, class names) by name, whatever the numbers in the file are."""
    found = {value for value in labels.emo if value is not None}
    numbers, names = sorted(value for value in found if isinstance(value, int)), sorted(value for value in found if isinstance(value, str))
    if numbers and names:
        raise DataError(f'{labels.path}: "emo" is a number for some samples and a name for others: {listed(numbers + names)}')
    corpus, known = options.corpus, None
    if numbers and not corpus and not options.class_names:
        corpus = next((name for name, (classes, form) in CORPORA.items()
                       if form and numbers[-1] == len(classes) - 1 and all(map(form.match, labels.ids))), None)
        if corpus is None:
            raise DataError(f'{labels.path}: "emo" are numbers ({listed(numbers)}), whose names nobody says: give --class-names in the order of the '
                            f'numbers, or --corpus ({", ".join(CORPORA)})')
        notes.append(f"the names of the samples are those of {corpus}, so its classes are taken; --corpus or --class-names say otherwise")
    if corpus:
        known = list(CORPORA[corpus][0])
    order = options.class_names or known or names
    if numbers:
        known = known or order
        if set(known) != set(order):
            raise DataError(f"--class-names: the classes of {corpus} are {', '.join(known)}")
        if numbers[-1] >= len(known):
            raise DataError(f'{labels.path}: "emo" is up to {numbers[-1]}, but there are {len(known)} classes, numbered from 0: {", ".join(known)}')
        notes.append("classes: " + ", ".join(f"{number} in the file is {name}" for number, name in enumerate(known)))
    unknown = [name for name in names if name not in order]
    if unknown:
        raise DataError(f'{labels.path}: "emo" has the names {listed(unknown)}, but the classes are {", ".join(order)}')
    if class_names_problem(order):
        raise DataError(f"{labels.path}: {class_names_problem(order)}")
    position = {name: number for number, name in enumerate(order)}
    return [position[known[value] if isinstance(value, int) else value] if value is not None else None for value in labels.emo], order


def choose_labels(options, labels, problems, notes):
    """(task, labels, class names, targets)."""
    task = options.task
    if task == "auto":  # regression corpora have the same meaningless class everywhere
        task = "classification" if len({value for value in labels.emo if value is not None}) > 1 else "regression"
    emo, names = choose_classes(options, labels, notes) if task == "classification" else ([], None)
    chosen, field = (emo, "emo") if task == "classification" else (labels.val, "val")
    lacking = [row for row, value in enumerate(chosen) if value is None]
    if lacking and options.unlabelled == "drop":
        notes.append(f'left out, since they have no "{field}": {listed(labels.ids[row] for row in lacking)}')
        rows = [row for row, value in enumerate(chosen) if value is not None]
        chosen = [chosen[row] for row in rows]
        labels.keep(rows)
        if not rows:
            raise DataError(f'{labels.path}: no sample has an "{field}"')
    else:
        problems += [f'{labels.path}: "{labels.ids[row]}" has no "{field}"; --unlabelled drop leaves such samples out' for row in lacking]
        chosen = [value or 0 for value in chosen]
    targets, valued = {}, sum(value is not None for value in labels.val)
    if task == "classification" and valued == len(labels.ids):
        targets["valence"] = np.array(labels.val, dtype=np.float64)
    elif task == "classification" and valued:
        notes.append(f'"val" is no target: only {valued} of {len(labels.ids)} samples have it')
    return task, np.array(chosen, dtype=np.int64 if task == "classification" else np.float64), names, targets


class Features(Modality):
    """The features of one folder. Its first look reads only the headers of the files."""

    def __init__(self, name, folder, labels, options, problems):
        if not Path(folder).is_dir():
            raise DataError(f'{folder}: no such folder (modality "{name}")')
        ids, self.folder = labels.ids, Path(folder)
        self.files = [self.find(sample) for sample in ids]
        lacking = [row for row, files in enumerate(self.files) if not files]
        if options.missing == "error":
            problems += [f'{self.folder / ids[row]}: there is no such file .npy and no such folder; --missing empty takes it as "has no {name}"' for row in lacking]
        self.shapes = [[self.shape(file, problems) for file in files] for files in self.files]
        dim, notes = self.choose_dim(name, problems)
        lengths, more, read = unpad(name, lambda row: self.frames(row, dim), len(ids), options.padding)
        super().__init__(name, dim, lengths, read, lambda row: str(self.folder / ids[row]), options.dtype, notes=notes + more)
        for row, length in enumerate(lengths):
            if length == 0 and row not in lacking and options.missing == "error" and not any(frames for frames, _ in self.shapes[row]):
                problems.append(f'{self.where(row)}: no frames; --missing empty takes it as "has no {name}"')

    def find(self, sample):
        file, folder = self.folder / f"{sample}.npy", self.folder / sample
        if file.exists():
            return [file]
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".npy")] if folder.is_dir() else []

    def shape(self, file, problems):
        """(frames, features), without other dimensions of 1; [features] is a frame."""
        try:
            shape = read_shape(file)
            if 0 in shape or not shape:
                return 0, 0
            inner = shape if len(shape) <= 2 else tuple(length for length in shape if length > 1)
            if len(inner) > 2:
                raise ValueError(f"has shape {list(shape)}; expected [frames, features], or [features] for one frame")
            return ((1, 1) + inner)[-2:] if len(inner) < 2 else inner
        except DataError as error:
            problems.append(str(error))
        except (ValueError, OSError) as error:
            problems.append(f"{file}: {error}")
        return 0, 0

    def choose_dim(self, name, problems):
        """(features per frame, notes). MERTools' squeeze turns [frames, 1] into [1, frames]; other files tell what it was."""
        shapes = [shape for row in self.shapes for shape in row if shape[0]]
        several, single = (Counter(dim for frames, dim in shapes if (frames > 1) == more) for more in (True, False))
        if not shapes:
            problems.append(f'{self.folder}: not one sample has the modality "{name}"')
            return 1, []
        dim = several.most_common(1)[0][0] if several else next(iter(single)) if len(single) == 1 else 1
        turned = 0
        for row, files in enumerate(self.files):
            for i, file in enumerate(files):
                frames, columns = self.shapes[row][i]
                if frames and columns != dim:
                    if dim == 1 and frames == 1:
                        self.shapes[row][i], turned = (columns, 1), turned + 1
                        continue
                    problems.append(f"{file}: {columns} features, but most of the other files have {dim}")
                    self.shapes[row][i] = (0, 0)
        return dim, [f"{turned} files [n] taken as n frames of one feature, since other files are"] if turned else []

    def frames(self, row, dim):
        parts = []
        for file, (frames, _) in zip(self.files[row], self.shapes[row]):
            if frames:
                values = read_frames(file)
                if values.size != frames * dim:
                    raise ValueError(f"{file} has changed")
                parts.append(values.reshape(frames, dim))
        return np.concatenate(parts) if parts else np.zeros((0, dim), dtype=np.float32)

    def sources(self):
        return [(f"{self.name}/{file.relative_to(self.folder)}", file) for files in self.files for file in files]


def data_set_name(path):
    """MERBench calls the labels of every corpus alike; their folder is CORPUS-process."""
    path = Path(path).absolute()
    return path.parent.name.removesuffix("-process") if path.stem.startswith("label") and path.parent.name else path.stem


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    problems, notes = [], []
    labels = Labels(options, problems, notes)
    if problems:
        raise DataError(problems)
    task, chosen, names, targets = choose_labels(options, labels, problems, notes)
    groups = None
    if options.group_pattern or all(map(SESSION.match, labels.ids)):
        groups = groups_of(labels.ids, options.group_pattern or SESSION, problems)
    modalities = [Features(name, folder, labels, options, problems) for name, folder in options.modality.items()]
    splits = labels.splits if any(labels.splits) else None
    dataset = Dataset(data_set_name(options.labels), task, names, labels.ids, chosen, groups, splits, targets, modalities, notes)
    if not problems:
        dataset.drop_samples_without_modality()
    sources = [(Path(options.labels).name, options.labels), *(source for modality in modalities for source in modality.sources())]
    return write_dataset(dataset, options, sources, problems)


def parse_arguments(arguments):
    parser = importer_parser("merbench", "Labels and features as MERBench (MERTools) has them -> muster dataset container.", [
        "label_4way.npz --modality audio=features/wavlm-base-FRA --modality vision=features/clip-vit-base-patch32-FRA -o iemocap.h5",
        "label.npz --modality audio=features/wavlm-base-UTT --modality text=features/deberta-large-UTT -o mosi.h5",
        "label-6way.npz --corpus MER2023 --split test1_corpus=test --modality audio=features/hubert-UTT -o mer2023.h5"])
    parser.add_argument("labels", metavar="LABEL.npz")
    parser.add_argument("--modality", action="append", default=[], required=True, type=name_and_value, metavar="NAME=FOLDER",
                        help="a folder of features, UTT or FRA; audio, vision and text are the usual names")
    parser.add_argument("--task", choices=("auto", "classification", "regression"), default="auto",
                        help="classification by emo or regression of val; auto: classification if emo has several values")
    parser.add_argument("--corpus", choices=list(CORPORA), help="whose numbers of classes are in the file; default: as the names of the samples look")
    parser.add_argument("--class-names", type=lambda text: [name.strip() for name in text.split(",")], metavar="A,B,...",
                        help="the classes in the order of their numbers; with a known corpus: the order in which they are to be stored")
    parser.add_argument("--split", action="append", default=[], type=name_and_value, metavar="KEY=SPLIT",
                        help="what an entry of LABEL.npz is: train, valid, test, none (of these) or skip (it is left out); "
                             "default: by its name, and of test1, test2 ... only the first")
    parser.add_argument("--group-pattern", type=pattern, metavar="REGEX",
                        help="the group is what its first group matches in the name; default: IEMOCAP's session")
    parser.add_argument("--missing", choices=("error", "empty"), default="error",
                        help="what it means that there is no file of a sample; empty: the sample lacks the modality")
    parser.add_argument("--unlabelled", choices=("error", "drop"), default="error", help="what to do with samples without a label")
    add_common_options(parser, padding=True)
    options = parse(parser, arguments, "merbench")
    unique_pairs(parser, options, "modality", "split")
    for key, split in options.split.items():
        if split not in ("train", "valid", "test", "none", "skip"):
            parser.error(f'--split {key}: expected train, valid, test, none or skip, not "{split}"')
    if options.class_names and class_names_problem(options.class_names):
        parser.error(f"--class-names: {class_names_problem(options.class_names)}")
    return options


def main(arguments=None):
    return run_importer(run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
