#!/usr/bin/env python3
"""Writes what is in a dataset container in other forms, so that other programs can use it.

    muster data export iemocap.h5 --format npy -o iemocap/         # a file per sample and modality, and manifest.csv
    muster data export mosi.h5 --format mmsa -o mosi.pkl           # a pickle as MMSA's loader reads it

npy: <modality>/<id>.npy (features), .wav (waveforms) or .tokens.npy (tokens), and manifest.csv with labels, targets, groups and splits.
`muster data import arrays` makes the same container of it; import.sh in the folder holds the command.
mmsa: {train, valid, test} -> text, audio, vision [N, frames, features], zeros at the end, text_bert, lengths, ids and labels. Samples
without a split are left out.

Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import csv
import os
import pickle
import secrets
import shlex
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

from container import DataError, OutputError, refuse_places, synchronise
from container_tools import name_and_source, run_tool, tool_parser
from dataset import Progress
from read_container import read_container

SIGNS = ("Negative", "Neutral", "Positive")
COLUMNS = ("id", "label", "session", "split")  # what arrays.py looks for
NAME_BYTES = 200  # of a file or folder, with what is put after it
BATCH = 1 << 24  # bytes that are written at a time


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    contents = read_container(options.input)
    output = Path(options.output)
    refuse_places(output)
    if output.is_symlink() or output.exists() and not (options.format == "npy" and output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output} exists and is not overwritten: choose another place, or remove it")
    temporary = output.with_name(f".tmp-{output.name}-{secrets.token_hex(4)}")
    try:
        lines = (export_npy if options.format == "npy" else export_mmsa)(contents, temporary, options)
        os.rename(temporary, output)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    synchronise(output.parent)
    return lines


def export_npy(contents, folder, options):
    folder.mkdir()
    lost = []
    names = file_names(contents.ids)
    renamed = [sample for sample, name in zip(contents.ids, names) if sample != name]
    if renamed:
        lost.append(f'{len(renamed)} ids cannot be names of files: "{renamed[0]}" became "{names[contents.ids.index(renamed[0])]}"; the column '
                    "original_id has the former")
    folders = dict(zip(contents.modalities, file_names(list(contents.modalities), taken={"manifest.csv", "import.sh"}, flat=True)))
    progress = Progress(sum(int((modality.lengths > 0).sum()) for modality in contents.modalities.values()), "samples")
    for modality in contents.modalities.values():
        made = set()
        for row in np.flatnonzero(modality.lengths):
            path = folder / folders[modality.name] / f"{names[row]}{SUFFIXES[modality.kind]}"
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            frames = modality.read(row)
            write_frames(path, frames, modality)
            progress.add(frames.nbytes)
        (folder / folders[modality.name]).mkdir(exist_ok=True)
    arguments = write_manifest(folder / "manifest.csv", contents, names, renamed, lost)
    dtypes = {m.dtype for m in contents.modalities.values() if m.kind == "features"}
    for modality in contents.modalities.values():
        if not modality.lengths.any():
            lost.append(f'not one sample has the modality "{modality.name}", so an import would refuse it')
            continue
        arguments += ["--modality", f"{modality.name}={folders[modality.name]}"]
        if "=" in modality.name:
            lost.append(f'the modality "{modality.name}" cannot be named on a command line, for its name holds "="')
        if modality.kind == "waveform" and modality.dtype == "float16":
            lost.append(f"{modality.name}: float16 becomes float32 (the same values)")
    bare = [sample for row, sample in enumerate(contents.ids) if not any(modality.lengths[row] for modality in contents.modalities.values())]
    if bare:
        lost.append(f'{len(bare)} samples have not one modality, which an import refuses: "{bare[0]}"')
    if any((modality.lengths == 0).any() for modality in contents.modalities.values()):
        arguments += ["--missing", "empty"]
    if dtypes == {"float16"}:
        arguments += ["--dtype", "float16"]
    elif "float16" in dtypes:
        lost.append("float16 features become float32 when all modalities are imported together (the same values)")
    command = shlex.join(["muster", "data", "import", "arrays", "--manifest", "manifest.csv", *arguments, "--name", contents.name])
    (folder / "import.sh").write_text(f'# Run in this folder: sh import.sh OUT.h5\n{command} -o "$1"\n', encoding="utf-8")
    for path in (folder / "manifest.csv", folder / "import.sh", folder):
        synchronise(path)
    return [f"{options.output}: {len(contents.ids)} samples, {', '.join(contents.modalities)}",
            f"  `sh import.sh OUT.h5` in {options.output} makes a container of it", *(f"  not kept: {text}" for text in lost)]


SUFFIXES = {"features": ".npy", "waveform": ".wav", "tokens": ".tokens.npy"}


def file_names(ids, taken=(), flat=False):
    """Names below one folder, all different, that lead nowhere else: the ids themselves where they are such names. flat: no
    subfolders."""
    folders = {"/".join(sample.split("/")[:depth]) for sample in ids for depth in range(1, sample.count("/") + 1)}
    endings = ("",) if flat else tuple(SUFFIXES.values())
    names = [sample if is_file_name(sample, flat) and sample not in taken and not any(sample + ending in folders for ending in endings)
             else None for sample in ids]
    used = {*taken, *(name for name in names if name is not None)}
    result = []
    for sample, name in zip(ids, names):
        if name is None:
            plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in sample)[:NAME_BYTES // 2]
            number, name = 1, f"renamed_{plain}"
            while name in used:
                number += 1
                name = f"renamed_{plain}_{number}"
            used.add(name)
        result.append(name)
    return result


def is_file_name(name, flat):
    """Whether it stays below its folder, is the only way to write its path, and a cell of the manifest keeps it."""
    parts = name.split("/")
    return (name == name.strip() and name.isprintable() and not name.startswith("-") and not (flat and len(parts) > 1)
            and all(part not in ("", ".", "..") and len(part.encode()) <= NAME_BYTES for part in parts) and len(name.encode()) <= 2000)


def write_frames(path, frames, modality):
    if modality.kind == "waveform":
        write_wav(path, frames[:, 0], modality.sample_rate)
        return
    if modality.kind == "tokens":
        frames = frames.astype("<i4")
    with open(path, "xb") as file:
        np.save(file, np.ascontiguousarray(frames), allow_pickle=False)


def write_wav(path, samples, rate):
    """Mono, 16 bits or float32; without the time of writing that libraries put into the file."""
    samples = samples.astype("<i2" if samples.dtype.kind == "i" else "<f4")
    size = samples.dtype.itemsize
    if samples.nbytes > 0xFFFFFF00:
        raise DataError(f"{path.name}: a .wav file holds at most 4 GB")
    form = struct.pack("<HHIIHH", 1 if size == 2 else 3, 1, rate, rate * size, size, 8 * size)
    chunks = [(b"fmt ", form)] if size == 2 else [(b"fmt ", form + b"\0\0"), (b"fact", struct.pack("<I", len(samples)))]
    head = b"".join(name + struct.pack("<I", len(data)) + data for name, data in chunks) + b"data" + struct.pack("<I", samples.nbytes)
    with open(path, "xb") as file:
        file.write(b"RIFF" + struct.pack("<I", 4 + len(head) + samples.nbytes) + b"WAVE" + head)
        samples.tofile(file)


def write_manifest(path, contents, names, renamed, lost):
    """Returns the arguments with which arrays.py reads it."""
    columns, arguments = {"id": names}, ["--task", "regression" if contents.task == "multilabel" else contents.task]
    if renamed:
        columns["original_id"] = contents.ids
    if contents.task == "classification":
        arguments += ["--class-names", ",".join(contents.class_names)]
        check_class_names("labels", contents.class_names, lost)
    if contents.labels is not None and contents.task != "multilabel":
        columns["label"] = cells(contents.labels, contents.class_names)
    for column, values in (("session", contents.groups), ("split", contents.splits)):
        if values is not None:
            columns[column] = values
            if any(value != value.strip() for value in values):
                lost.append(f"spaces around the {column}s are cut off when they are imported again")
    several = {} if contents.task != "multilabel" or contents.labels is None else {"": (contents.labels, contents.class_names)}
    several.update({name: target for name, target in contents.targets.items() if target[0].ndim == 2})
    for target, (values, classes) in contents.targets.items():
        if target in several:
            continue
        column = unused(target, {*columns, *COLUMNS})
        columns[column] = cells(values, classes)
        arguments += ["--target", f"{target}={column}"]
        numbers = [is_number(cell) for cell in columns[column]]
        if "=" in target:
            lost.append(f'the target "{target}" cannot be named on a command line, for its name holds "="')
        if classes and (all(numbers) or sorted({cell for cell in columns[column]}) != classes):
            lost.append(f'target "{target}": the order of its classes ({", ".join(classes[:10])}): an import sorts those it finds')
    for target, (values, classes) in several.items():
        for number, name in enumerate(classes):
            column = unused(f"{target}_{name}" if target else name, {*columns, *COLUMNS})
            columns[column] = [str(value) for value in values[:, number]]
            if "=" not in column:
                arguments += ["--target", f"{column}={column}"]
        lost.append(f"{f'target {target}' if target else 'labels'}: several classes at once are a column of 0 and 1 for each class; an import "
                    "makes a target of each")
    with open(path, "x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    return arguments


def cells(values, classes):
    return [classes[value] for value in values] if classes else [str(value) for value in values.astype(np.float32)]


def check_class_names(what, names, lost):
    if any("," in name or name != name.strip() for name in names):
        lost.append(f"{what}: a class name holds a comma, or spaces around it, which --class-names cannot hold")


def is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


def unused(name, used):
    while name in used:
        name += "_"
    return name


class Padded:
    """An array [samples, frames, dim] that is made while it is pickled: one sample is in memory at a time."""

    def __init__(self, shape, dtype, rows, fill):
        """rows: the samples. fill(row, block): puts the sample into a block of zeros [frames, dim]."""
        self.shape, self.dtype, self.rows, self.fill = shape, np.dtype(dtype), rows, fill

    def blocks(self):
        for row in self.rows:
            block = np.zeros(self.shape[1:], dtype=self.dtype)
            self.fill(row, block)
            yield block.tobytes()


class MmsaPickler(pickle._Pickler):
    """Protocol 4. Arrays are named as NumPy 1 names them, which NumPy 2 reads as well; those of class Padded are written in pieces."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_array(self, array):
        if isinstance(array, np.ndarray):
            array = Padded(array.shape, array.dtype, [array], None)
            array.blocks = lambda: [array.rows[0].tobytes()]
        self.save("numpy.core.multiarray")
        self.save("_reconstruct")
        self.write(pickle.STACK_GLOBAL)
        self.save((np.ndarray, (0,), b"b"))
        self.write(pickle.REDUCE + pickle.MARK)
        for part in (1, array.shape, array.dtype, False):
            self.save(part)
        size = int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize
        self.framer.commit_frame(force=True)
        self.framer.file_write(pickle.BINBYTES8 + struct.pack("<Q", size))
        for block in array.blocks():
            self.framer.file_write(block)
            size -= len(block)
        if size:
            raise RuntimeError("an array is not as large as announced")
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[np.ndarray] = dispatch[Padded] = save_array


def export_mmsa(contents, path, options):
    problems, notes = [], []
    chosen = mmsa_modalities(contents, options, problems)
    if contents.splits is None or not any(contents.splits):
        problems.append(f"{contents.path}: has no splits, which MMSA needs; `muster data split` writes some")
    if contents.labels is None:
        problems.append(f"{contents.path}: has no labels, which MMSA needs")
    elif contents.task == "multilabel":
        problems.append(f"{contents.path}: has several labels per sample, which MMSA's files cannot hold")
    frames = {}
    for key, modality in chosen.items():
        name = "text" if key == "text_bert" else key
        longest = max(int(modality.lengths.max()), 1)
        frames[key] = options.frames.get(name, longest)
        if frames[key] < longest:
            row = int(modality.lengths.argmax())
            problems.append(f'--frames {name}={frames[key]}: the sample "{contents.ids[row]}" has {longest} frames; MMSA takes them from the start, '
                            "but nothing is cut off here")
        lacking = int((modality.lengths == 0).sum())
        if lacking:
            notes.append(f"{lacking} samples lack {modality.name}: zeros, and the length 0, at which some of MMSA's models stop")
    if problems:
        raise DataError(problems)
    written = dict.fromkeys("text" if key == "text_bert" else key for key in chosen)
    if unknown := sorted(options.frames.keys() - written.keys()):
        raise DataError(f"--frames: there is no {' or '.join(unknown)} among what is written: {', '.join(written)}")
    left_out = sum(not split for split in contents.splits)
    if left_out:
        notes.append(f"{left_out} samples without a split are left out")
    columns = label_columns(contents)
    data = {split: mmsa_split(contents, [row for row, name in enumerate(contents.splits) if name == split], chosen, frames, columns)
            for split in ("train", "valid", "test")}
    total = Progress(sum(len(part["id"]) for part in data.values()) * len(chosen), "samples")
    with open(path, "xb") as file:
        for part in data.values():
            for value in part.values():
                if isinstance(value, Padded):
                    value.fill = counted(value.fill, total)
        MmsaPickler(file, protocol=4).dump(data)
        file.flush()
        os.fsync(file.fileno())
    if "text_bert" in chosen and "text" not in chosen:
        notes.append("text are tokens, so there is no `text`, only `text_bert`: use_bert=True reads it")
    notes += [f"the target {name} is not kept" for name in lost_targets(contents, columns)]
    if columns["regression_labels"][1]:
        notes.append("regression_labels are the numbers of the classes, since there is no target regression")
    notes.append("raw_text is empty: a container has no texts")
    sizes = ", ".join(f"{split} {len(part['id'])}" for split, part in data.items())
    shapes = ", ".join(f"{key} [{frames[key]}, {modality.dim}]" if key != "text_bert" else f"text_bert [3, {frames[key]}]"
                       for key, modality in chosen.items())
    return [f"{options.output}: {sizes}", f"  {shapes}", *(f"  {note}" for note in notes)]


def counted(fill, progress):
    def fill_and_count(row, block):
        fill(row, block)
        progress.add(block.nbytes)
    return fill_and_count


def mmsa_modalities(contents, options, problems):
    """{text, text_bert, audio, vision: modality}."""
    chosen = {}
    usual = {name: name for name in ("text", "text_bert", "audio", "vision") if name in contents.modalities}
    for key, source in {**usual, **options.take}.items():
        modality = contents.modalities.get(source)
        if modality is None:
            problems.append(f'{contents.path}: there is no modality "{source}"; it has {", ".join(contents.modalities)}')
        elif key not in ("text", "text_bert", "audio", "vision"):
            problems.append(f'--take {key}={source}: MMSA knows text, text_bert, audio and vision')
        elif modality.kind == "waveform":
            problems.append(f'{contents.path}: "{source}" is a waveform, which MMSA\'s files cannot hold')
        elif (modality.kind == "tokens") != (key == "text_bert") and key not in ("text", "text_bert"):
            problems.append(f'{contents.path}: "{source}" are tokens, which MMSA takes as text only')
        else:
            chosen["text_bert" if modality.kind == "tokens" else key] = modality
    problems += [f"{contents.path}: MMSA needs {key}, but there is no such modality; --take {key}=NAME takes another one"
                 for key in ("text", "audio", "vision") if key not in chosen and not (key == "text" and "text_bert" in chosen) and not problems]
    return chosen


def label_columns(contents):
    """{key of MMSA: (values, class names)}, as importers/mmsa.py reads them."""
    targets, main = contents.targets, (contents.labels, contents.class_names)
    columns = {"regression_labels": main, "classification_labels": main}
    other = ("regression", False) if contents.class_names else ("classes", True)
    if other[0] in targets and bool(targets[other[0]][1]) == other[1]:
        columns["regression_labels" if contents.class_names else "classification_labels"] = targets[other[0]]
    elif not contents.class_names:
        columns["classification_labels"] = (np.sign(contents.labels) + 1, list(SIGNS))
    for letter, modality in (("T", "text"), ("A", "audio"), ("V", "vision")):  # SIMS has a label of each modality on its own
        for kind, target in (("regression", "label"), ("classification", "classes")):
            if f"{modality}_{target}" in targets and targets[f"{modality}_{target}"][0].ndim == 1:
                columns[f"{kind}_labels_{letter}"] = targets[f"{modality}_{target}"]
    return columns


def lost_targets(contents, columns):
    """Targets whose values are in no column."""
    kept = [values for values, _ in columns.values()]
    return [name for name, (values, _) in contents.targets.items() if not any(np.array_equal(values, other) for other in kept)]


def mmsa_split(contents, rows, chosen, frames, columns):
    part = {"raw_text": np.array([""] * len(rows), dtype="<U1"), "id": [contents.ids[row] for row in rows]}
    for key, modality in chosen.items():
        def fill(row, block, modality=modality):
            block[:modality.lengths[row]] = modality.read(row)

        def fill_bert(row, block, modality=modality):
            tokens, length = modality.read(row), modality.lengths[row]
            block[0, :length], block[1, :length] = tokens[:, 0], 1
            if tokens.shape[1] == 2:
                block[2, :length] = tokens[:, 1]

        shape = (len(rows), 3, frames[key]) if key == "text_bert" else (len(rows), frames[key], modality.dim)
        part[key] = Padded(shape, "<f4", rows, fill_bert if key == "text_bert" else fill)
        if key in ("audio", "vision"):
            part[f"{key}_lengths"] = [int(length) for length in modality.lengths[rows]]
    for key, (values, classes) in columns.items():
        part[key] = np.asarray(values[rows], dtype="<f4")
    values, classes = columns["classification_labels"]
    part["annotations"] = [classes[int(value)] for value in values[rows]]
    return part


def name_and_frames(text):
    name, number = name_and_source(text)
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise ValueError
    return name, int(number)


def main(arguments=None):
    parser = tool_parser("export", __doc__)
    parser.add_argument("input", metavar="FILE.h5")
    parser.add_argument("--format", choices=("npy", "mmsa"), required=True)
    parser.add_argument("--take", action="append", type=name_and_source, default=[], metavar="NAME=MODALITY",
                        help="mmsa: write this modality as text, text_bert, audio or vision; may be repeated")
    parser.add_argument("--frames", action="append", type=name_and_frames, default=[], metavar="NAME=N",
                        help="mmsa: pad text, audio or vision to N frames; default: the longest sample's")
    parser.add_argument("-o", "--output", required=True, help="npy: a folder; mmsa: a file. Neither may exist")

    def check(options):
        options.take, options.frames = dict(options.take), dict(options.frames)
        if options.format == "npy" and (options.take or options.frames):
            parser.error("--take and --frames are for --format mmsa")

    return run_tool(run, parser, arguments, check)


if __name__ == "__main__":
    sys.exit(main())
