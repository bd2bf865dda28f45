#!/usr/bin/env python3
"""Imports one file per utterance and modality, listed in a CSV manifest, into a muster dataset container: features (.npy),
recordings (.wav, .flac) or texts (.txt, or a column of the manifest).

    manifest.csv       id,label,session          audio/utt_1.npy    [frames, features]; [features] counts as one frame
                       utt_1,happy,1             video/utt_1.npy

    python importers/arrays.py --manifest manifest.csv --modality audio=audio/ --modality vision=video/ -o out.h5
    python importers/arrays.py --manifest manifest.csv --modality audio=wav/ --text text=transcript --tokenizer bert/ -o out.h5

Folders of --modality are relative to the working directory. Everything is checked, and all problems are reported at once.
Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import argparse
import csv
import math
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from command_line import open_regular, run_importer
from container import SAMPLE_RATES, SPLITS, TOKENS_DTYPE, DataError, class_names_problem, split_problem
from dataset import (Dataset, Modality, add_common_options, importer_parser, leads_out, name_and_value, parse, unique_pairs, write_dataset)
from npy import read_frames, read_header, read_tokens
from recordings import Recordings
from texts import Texts, read_text

KINDS = {".npy": "array of features", ".wav": "recording", ".flac": "recording", ".txt": "text",
         ".tokens.npy": "array of tokens"}  # by the end of a file's name
DEFAULT_COLUMNS = {"label": "label", "group": "session", "split": "split"}  # used when the manifest has them


class Manifest:
    """Rows of the CSV file with their line numbers: what is in the cells, not yet what it means."""

    def __init__(self, path):
        self.path = path
        self.columns, self.rows, self.lines = [], [], []

    def where(self, row):
        return f"{self.path}:{self.lines[row]}"

    def column(self, name):
        position = self.columns.index(name)
        return [row[position].strip() for row in self.rows]


def read_manifest(path, problems):
    manifest = Manifest(path)
    try:
        with open_regular(path, "r", pipes=True, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any("\0" in cell for cell in cells):
                    problems.append(f"{path}:{reader.line_num}: holds a NUL character: it is no text")
                    continue
                if not any(cell.strip() for cell in cells):
                    continue
                if not manifest.columns:
                    manifest.columns = [cell.strip() for cell in cells]
                    twice = [name for name, count in Counter(manifest.columns).items() if count > 1]
                    if twice:
                        problems.append(f"{path}:{reader.line_num}: the columns {', '.join(twice)} appear more than once")
                elif len(cells) != len(manifest.columns):
                    problems.append(f"{path}:{reader.line_num}: {len(cells)} cells, the header has {len(manifest.columns)}")
                else:
                    manifest.rows.append(cells)
                    manifest.lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})")
    except csv.Error as error:
        problems.append(f"{path}:{reader.line_num}: {error}")
    if not manifest.rows and not problems:
        problems.append(f"{path}: no samples: expected a header line with the column names, then one line per sample")
    return manifest


def check_ids(manifest, ids, problems):
    first = {}
    for row, sample in enumerate(ids):
        if not sample:
            problems.append(f"{manifest.where(row)}: the id is empty")
        elif leads_out(sample):
            problems.append(f'{manifest.where(row)}: the id "{sample}" would lead out of the folder')
        elif sample in first:
            problems.append(f'{manifest.where(row)}: the id "{sample}" was used in line {manifest.lines[first[sample]]}')
        first.setdefault(sample, row)


def finite_number(cell):
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max) else None


def whole_number(cell):
    """The whole number that the cell is, however it is written (1, 01, 1.0, 1e0), or None."""
    value = finite_number(cell)
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**53 else None


def class_name(cell):
    """The name by which a class is known: numbers count by their value, so that 1 and 1.0 are one class."""
    whole, value = whole_number(cell), finite_number(cell)
    return str(whole) if whole is not None else cell if value is None else repr(value)


def choose_task(options, manifest, column, problems):
    """(task, class names). With --task auto: names are classes, fractional numbers are regression."""
    task, names = options.task, options.class_names
    cells = [cell for cell in manifest.column(column) if cell] if column else []
    if task == "auto" and names:
        task = "classification"
    if task == "auto":
        numbers = [finite_number(cell) is not None for cell in cells]
        if not cells:
            problems.append(f"{manifest.path}: there are no labels, so the task is unknown: "
                            "say --task regression, or --task classification with --class-names")
            return "regression", None
        if all(numbers):
            if all(whole_number(cell) is not None for cell in cells):
                problems.append(f'{manifest.path}: all labels in "{column}" are whole numbers, which may be classes or '
                                "values: say --task classification or --task regression")
        elif any(numbers):
            mixed = next(row for row, cell in enumerate(manifest.column(column)) if cell and finite_number(cell) is None)
            problems.append(f'{manifest.where(mixed)}: "{manifest.column(column)[mixed]}" is no number, but other labels in '
                            f'"{column}" are: say --task classification or --task regression')
        task = "regression" if any(numbers) else "classification"
    if task == "regression":
        return task, None
    if not names:
        names = sorted(set(map(class_name, cells)), key=float if all(finite_number(cell) is not None for cell in cells) else None)
        if not names:
            problems.append(f"{manifest.path}: classification without labels needs --class-names")
        elif len(names) < 2:
            problems.append(f'{manifest.path}: all labels in "{column}" are "{names[0]}": classification needs two classes')
    return task, names


def parse_labels(manifest, column, task, names, problems):
    """Numbers in the order of the rows; None where no row has a label. A row without a label among others is a problem."""
    cells = manifest.column(column)
    if not any(cells):
        return None
    names, known = names or [], set(filter(None, cells))
    numbers = {class_name(name): number for number, name in enumerate(names)}
    if task == "regression":
        values = {cell: finite_number(cell) for cell in cells}
        wrong = 'column "{column}": "{cell}" is no finite number'
    elif not set(map(class_name, known)) & numbers.keys() and all(whole_number(cell) is not None for cell in known):
        values = {cell: whole_number(cell) for cell in known if 0 <= whole_number(cell) < len(names)}
        wrong = "class {cell}, but there are {count} classes (counted from 0): {names}"
    else:
        values = {cell: numbers.get(class_name(cell)) for cell in known}
        wrong = 'unknown class "{cell}" in column "{column}"; known: {names}'
    for row, cell in enumerate(cells):
        if not cell:
            problems.append(f'{manifest.where(row)}: no label in column "{column}"')
        elif values.get(cell) is None:
            text = wrong.format(cell=cell, column=column, count=len(names), names=", ".join(names))
            problems.append(f"{manifest.where(row)}: {text}")
    return np.array([values.get(cell) or 0 for cell in cells], dtype=np.float64 if task == "regression" else np.int64)


def parse_several(manifest, columns, problems):
    """[rows, columns] of 0 and 1: which of several classes a sample has."""
    values = np.zeros((len(manifest.rows), len(columns)), dtype=np.int64)
    for number, column in enumerate(columns):
        for row, cell in enumerate(manifest.column(column)):
            if whole_number(cell) not in (0, 1):
                problems.append(f'{manifest.where(row)}: column "{column}": "{cell}" is neither 0 nor 1')
            values[row, number] = whole_number(cell) == 1
    return values


def target_columns(manifest, column):
    """The columns of a target: the one of this name, or several with commas between them."""
    return [column] if column in manifest.columns else split_names(column)


def parse_target(manifest, target, column, problems):
    """Regression values where all cells are numbers, otherwise (classes, sorted class names); several columns: (0 and 1 for each, classes)."""
    columns = target_columns(manifest, column)
    if len(columns) > 1:
        return parse_several(manifest, columns, problems), [name.removeprefix(f"{target}_") for name in columns]
    cells = manifest.column(column)
    if all(finite_number(cell) is not None for cell in cells):
        return parse_labels(manifest, column, "regression", None, problems)
    names = sorted({class_name(cell) for cell in cells if cell})
    if len(names) < 2:
        problems.append(f'{manifest.path}: target "{target}": column "{column}" holds neither numbers nor at least two classes')
        return None
    return parse_labels(manifest, column, "classification", names, problems), names


class Features(Modality):
    """The files <id>.npy of one folder. Its first look reads only their headers: of each the number of frames, -1 where
    there is a problem, and the number of features that they have in common."""

    suffix, look, load = ".npy", staticmethod(read_header), staticmethod(read_frames)

    def __init__(self, name, folder, manifest, ids, options, problems):
        super().__init__(name, 1, [], lambda row: self.load(self.paths[row]), manifest.where, options.dtype)
        missing = options.missing
        self.paths = [folder / f"{sample}{self.suffix}" for sample in ids]
        self.lengths, dims = np.full(len(ids), -1, dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
        for row, path in enumerate(self.paths):
            try:
                self.lengths[row], dims[row] = self.look(path)
                if self.lengths[row] == 0 and missing == "error":
                    problems.append(f'{path}: no frames ({manifest.where(row)}); --missing empty takes it as "has no {name}"')
            except FileNotFoundError:
                if missing == "empty":
                    self.lengths[row] = 0
                else:
                    problems.append(f'{manifest.where(row)}: {path} does not exist; --missing empty takes it as "has no {name}"')
            except DataError as error:
                problems.append(f"{error} ({manifest.where(row)})")
            except ValueError as error:
                problems.append(f"{path}: {error} ({manifest.where(row)})")
        if dims.any():
            (self.dim, count), = Counter(dims[dims > 0].tolist()).most_common(1)
            for row in np.flatnonzero((dims > 0) & (dims != self.dim)):
                problems.append(f"{self.paths[row]}: {dims[row]} features, but {count} of the other files have {self.dim} "
                                f"({manifest.where(row)})")
                self.lengths[row] = -1

    def at(self, row, text):
        return f"{self.paths[row]}: {text} ({self.where(row)})"


class TokenFiles(Features):
    """The files <id>.tokens.npy of one folder, which hold ids of a vocabulary."""

    suffix, look, load = ".tokens.npy", staticmethod(lambda path: read_tokens(path).shape), staticmethod(read_tokens)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.dtype = TOKENS_DTYPE


def open_files(name, folder, suffix, manifest, ids, options, problems):
    """The modality in the files <id><suffix> of a folder; suffix None: whichever of KINDS they have. None where that is no use."""
    if not folder.is_dir():
        problems.append(f'{folder}: no such folder (modality "{name}")')
        return None
    suffixes = [suffix] if suffix else list(KINDS)
    found = [[s for s in suffixes if os.path.exists(folder / f"{sample}{s}")] for sample in ids]
    kinds = Counter(kind for row in found for kind in {KINDS[s] for s in row})
    kind = kinds.most_common(1)[0][0] if kinds else KINDS[suffixes[0]]
    for row, (sample, present) in enumerate(zip(ids, found)):
        where = manifest.where(row)
        if len(present) > 1:
            problems.append(f"{folder / sample}: there are {' and '.join(present)} ({where}); --modality '{name}={folder}/*{present[0]}' "
                            f"takes only the first")
        elif present and KINDS[present[0]] != kind:
            problems.append(f"{folder / sample}{present[0]}: is no {kind}, but {kinds[kind]} of the other files are ({where})")
        elif not present and kind not in (KINDS[".npy"], KINDS[".tokens.npy"]) and options.missing == "error":
            files = " or ".join(f"{folder / sample}{s}" for s in suffixes if KINDS[s] == kind)
            problems.append(f'{where}: {files} does not exist; --missing empty takes it as "has no {name}"')
    if any(len({KINDS[s] for s in row} | {kind}) > 1 for row in found):
        return None
    if kind in (KINDS[".npy"], KINDS[".tokens.npy"]):
        return (Features if kind == KINDS[".npy"] else TokenFiles)(name, folder, manifest, ids, options, problems)
    paths = [folder / f"{sample}{present[0]}" if present else None for sample, present in zip(ids, found)]
    if kind == KINDS[".wav"]:
        return Recordings(name, paths, manifest, ids, options, problems)
    if options.tokenizer is None:
        problems.append(f'{folder}: its files are texts (modality "{name}"); say with which --tokenizer they become tokens')
        return None
    missing = [path is None for path in paths]
    return Texts(name, lambda row: paths[row], lambda row: "" if missing[row] else read_text(paths[row]), manifest, ids, options, problems)


def open_modalities(options, manifest, ids, problems):
    modalities = [open_files(name, folder, suffix, manifest, ids, options, problems) for name, (folder, suffix) in options.modality.items()]
    for name, column in options.text.items():
        texts = manifest.column(column)
        modalities.append(Texts(name, lambda row, column=column: f'column "{column}"', lambda row, texts=texts: texts[row], manifest, ids,
                                options, problems))
    for modality in filter(None, modalities):
        if options.missing == "empty" and not modality.lengths.any():
            problems.append(f'{manifest.path}: not one sample has the modality "{modality.name}"')
    return modalities


def choose_columns(options, manifest, problems):
    """{role: column or None}; a column that was asked for must exist, the usual ones are taken where they do."""
    chosen = {"id": options.id_column}
    for role, usual in DEFAULT_COLUMNS.items():
        chosen[role] = getattr(options, f"{role}_column") or (usual if usual in manifest.columns else None)
    if options.label_columns:
        chosen["label"] = None
    targets = [name for column in options.target.values() for name in target_columns(manifest, column)]
    wanted = dict.fromkeys(column for column in [*chosen.values(), *options.label_columns, *targets, *options.text.values()] if column)
    missing = [f'{manifest.path}:1: there is no column "{column}"; the columns are {", ".join(manifest.columns)}'
               for column in wanted if column not in manifest.columns]
    if missing:
        raise DataError(problems + missing)
    return chosen


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    problems = []
    manifest = read_manifest(options.manifest, problems)
    if not manifest.rows:
        raise DataError(problems)
    columns = choose_columns(options, manifest, problems)
    ids = manifest.column(columns["id"])
    check_ids(manifest, ids, problems)
    labels, targets = None, {}
    if options.label_columns:
        task, names = "multilabel", options.class_names or options.label_columns
        labels = parse_several(manifest, options.label_columns, problems)
    else:
        task, names = choose_task(options, manifest, columns["label"], problems)
    if task == "regression" or names:
        if columns["label"]:
            labels = parse_labels(manifest, columns["label"], task, names, problems)
        for target, column in options.target.items():
            targets[target] = parse_target(manifest, target, column, problems)
    groups, splits = (manifest.column(columns[role]) if columns[role] else None for role in ("group", "split"))
    for row, split in enumerate(splits or []):
        if split not in SPLITS:
            problems.append(f'{manifest.where(row)}: {split_problem(split)}')

    modalities = open_modalities(options, manifest, ids, problems)
    for row, sample in enumerate(ids):
        if all(modalities) and all(modality.lengths[row] == 0 for modality in modalities):
            problems.append(f'{manifest.where(row)}: the id "{sample}" has not one modality')

    dataset = Dataset(Path(options.manifest).stem, task, names, ids, labels, groups, splits, targets, filter(None, modalities), columns=columns,
                      things="files")
    return write_dataset(dataset, options, sources(options, ids, modalities), problems)


def sources(options, ids, modalities):
    """[(name, path)] of all files that were read; None if the manifest is a pipe, which cannot be read again."""
    if not os.path.isfile(options.manifest):
        return None
    found = [(Path(options.manifest).name, options.manifest)]
    for modality in filter(None, modalities):
        for row in np.flatnonzero(modality.lengths > 0):
            path = modality.paths[row] if hasattr(modality, "paths") else modality.source(row)
            if isinstance(path, Path):  # not a column of the manifest
                found.append((f"{modality.name}/{ids[row]}{path.suffix}", path))
    return found


def split_names(text):
    return [name.strip() for name in text.split(",")]


def add_raw_options(parser):
    """How recordings and texts are taken: as Recordings and Texts need it."""
    parser.add_argument("--max-tokens", action="append", default=[], type=name_and_number(int), metavar="NAME=N",
                        help="crop the modality's texts to their first tokens, so many with those that the tokenizer adds")
    parser.add_argument("--max-seconds", action="append", default=[], type=name_and_number(float), metavar="NAME=SECONDS",
                        help="crop the modality's recordings to their first seconds")
    parser.add_argument("--resample", type=int, metavar="HZ", help="resample recordings that have another sample rate")
    parser.add_argument("--mono", choices=("mean",), help="recordings with several channels: take their mean; default: an error")


def check_raw_options(parser, options, names):
    """names: of the modalities. After unique_pairs()."""
    for argument in ("max_seconds", "max_tokens"):
        for name in getattr(options, argument):
            if name not in names:
                parser.error(f'--{argument.replace("_", "-")}: there is no modality "{name}"')
    if options.resample is not None and not SAMPLE_RATES[0] <= options.resample <= SAMPLE_RATES[1]:
        parser.error(f"--resample: a sample rate is from {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz")


def name_and_number(kind):
    def parse(text):
        name, value = name_and_value(text)
        try:
            number = kind(value)
        except ValueError:
            number = 0
        if not 0 < number < 1e9:
            raise argparse.ArgumentTypeError(f'"{value}" is no {"whole " if kind is int else ""}number above 0')
        return name, number
    return parse


def folder_and_suffix(value):
    """FOLDER or FOLDER/*.wav -> (folder, suffix or None)."""
    path = Path(value)
    if path.name.startswith("*") and path.name[1:] in KINDS:
        return path.parent, path.name[1:]
    return path, None


def parse_arguments(arguments):
    parser = importer_parser("arrays", "CSV manifest and one file per utterance and modality (features, recording or text) -> muster "
                                       "dataset container.", [
        "--manifest manifest.csv --modality audio=audio/ --modality vision=video/ -o out.h5",
        "--manifest manifest.csv --modality audio=wav/ --text text=transcript --tokenizer bert/ -o out.h5"])
    parser.add_argument("--manifest", required=True, help="CSV file with a header line; one line per sample")
    parser.add_argument("--modality", action="append", default=[], type=name_and_value, metavar="NAME=FOLDER",
                        help="the folder's <id>.npy (features), <id>.wav or <id>.flac (waveforms) or <id>.txt (tokens), or "
                             "<id>.tokens.npy (ids of tokens) hold this modality; "
                             "audio, vision and text are the usual names. FOLDER/*.wav: only files that end so")
    parser.add_argument("--text", action="append", default=[], type=name_and_value, metavar="NAME=COLUMN",
                        help="the texts in this column of the manifest, as tokens, are this modality")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="makes tokens of texts: the folder's tokenizer.json")
    add_raw_options(parser)
    parser.add_argument("--id-column", default="id")
    parser.add_argument("--label-column", help='default: "label", if there is such a column')
    parser.add_argument("--label-columns", type=split_names, default=[], metavar="A,B,...",
                        help="several classes at once: each column holds 1 for the samples that have this class, else 0; --class-names "
                             "gives the classes other names")
    parser.add_argument("--group-column", help='session, speaker or video; default: "session", if there is such a column')
    parser.add_argument("--split-column", help='train, valid, test or empty; default: "split", if there is such a column')
    parser.add_argument("--task", choices=("auto", "classification", "regression"), default="auto",
                        help="auto: names are classes, fractional numbers are regression")
    parser.add_argument("--class-names", type=split_names,
                        help="comma separated, in the order of the class numbers; default: the labels found, sorted. "
                             "Labels may be these names, or numbers from 0")
    parser.add_argument("--target", action="append", type=name_and_value, default=[], metavar="NAME=COLUMN",
                        help="a further label, for data.target: numbers are values, anything else classes; NAME=A,B,...: several "
                             "classes at once")
    parser.add_argument("--missing", choices=("error", "empty"), default="error",
                        help="what a missing file, or one without frames, means; empty: the sample lacks the modality")
    add_common_options(parser)
    options = parse(parser, arguments, "arrays")
    unique_pairs(parser, options, "modality", "text", "target", "max_seconds", "max_tokens")
    check_modalities(parser, options)
    options.modality = {name: folder_and_suffix(value) for name, value in options.modality.items()}
    if options.class_names and class_names_problem(options.class_names, bool(options.label_columns)):
        parser.error(f"--class-names: {class_names_problem(options.class_names, bool(options.label_columns))}")
    if options.label_columns:
        if options.label_column or options.task != "auto":
            parser.error("--label-columns do not go with --label-column or --task")
        if class_names_problem(options.label_columns, True):
            parser.error(f"--label-columns: {class_names_problem(options.label_columns, True)}")
        if options.class_names and len(options.class_names) != len(options.label_columns):
            parser.error(f"--class-names: {len(options.class_names)} names for {len(options.label_columns)} columns")
    if options.class_names and len(set(map(class_name, options.class_names))) != len(options.class_names):
        parser.error("--class-names: two of them are the same number")
    if options.class_names and options.task == "regression":
        parser.error("--class-names do not go with --task regression")
    return options


def check_modalities(parser, options):
    names = {**options.modality, **options.text}
    if not names:
        parser.error("give at least one --modality or --text")
    if len(names) < len(options.modality) + len(options.text):
        parser.error("--text: the name is used by --modality")
    if options.text and options.tokenizer is None:
        parser.error("--text needs a --tokenizer")
    check_raw_options(parser, options, names)


def main(arguments=None):
    options = parse_arguments(arguments)
    return run_importer(run, options)


if __name__ == "__main__":
    sys.exit(main())
