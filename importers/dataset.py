"""What every importer ends with: its options, the padding of its arrays, and a data set that is checked, written and summarised.

    dataset = Dataset("mosi", "regression", ids=ids, labels=labels, splits=splits)
    lengths, notes, read = unpad("audio", read_row, len(ids), options.padding)
    dataset.modalities.append(Modality("audio", 74, lengths, read, where, options.dtype, notes=notes))
    return write_dataset(dataset, options, [("mosi.pkl", path)])

Frames are read one sample at a time, when they are written.
"""
import argparse
import hashlib
import os
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import PurePosixPath

import numpy as np

from command_line import copy_files, open_regular
from container import DTYPES, ContainerWriter, DataError, is_name

SHOWN = 10  # values of a list in the summary
BLOCK = 1 << 22  # bytes hashed at a time


class Modality:
    """One modality. lengths: frames of each sample, 0 where it has none (-1: there is a problem with it). read(row): [frames, dim];
    it may raise DataError or ValueError saying what is wrong. where(row): what the row comes from, for messages. dtype, sample_rate:
    see ContainerWriter. notes: more for its line of the summary."""

    things = "frames"

    def __init__(self, name, dim, lengths, read, where, dtype="float32", sample_rate=None, notes=()):
        self.name, self.dim, self.lengths, self.read, self.where = name, int(dim), np.asarray(lengths, dtype=np.int64), read, where
        self.dtype, self.sample_rate, self.notes, self.ids = dtype, sample_rate, list(notes), []

    def at(self, row, text):
        """A message about a row."""
        return f"{self.where(row)}: {text}"

    def keep(self, rows):
        read, where = self.read, self.where
        self.lengths, self.read, self.where = self.lengths[rows], lambda row: read(rows[row]), lambda row: where(rows[row])

    def copy(self, options, out, progress, problems):
        """Reads every good sample once, checks its values and, if `out` is given, writes them."""
        copy_files(self, self.read, np.zeros((0, self.dim), dtype=self.dtype), self.things, options, out, progress, problems)

    def describe(self, present, missing, replaced):
        if self.sample_rate:
            what = f"waveform of {self.sample_rate} Hz as {self.dtype}, {present.sum() / self.sample_rate:.2f} s"
        elif self.dtype == "int32":
            what = f"{present.sum()} tokens" + (", with segment ids" if self.dim == 2 else "")
        else:
            what = f"{self.dim} features, {present.sum()} frames"
        lengths = f"{present.min()} to {present.max()} per sample (median {np.median(present):g})" if len(present) else "no sample has it"
        finite = [] if self.dtype == "int32" else [f"{replaced} non-finite values set to 0"]
        return ", ".join([what, lengths, f"missing for {missing}", *finite, *self.notes])


class Dataset:
    """name: unless the options have one. task, class_names, ids, labels, groups, splits, targets: see ContainerWriter. notes: lines
    for the summary. columns: {"label", "group" or "split": what they come from}, for the summary. things: what is read, for progress."""

    def __init__(self, name, task, class_names=None, ids=(), labels=None, groups=None, splits=None, targets=None, modalities=(), notes=(),
                 columns=None, things="samples"):
        self.name, self.task, self.class_names, self.ids, self.labels = name, task, class_names, list(ids), labels
        self.groups, self.splits, self.targets = groups, splits, targets or {}
        self.modalities, self.notes, self.columns, self.things = list(modalities), list(notes), columns or {}, things

    def drop_samples_without_modality(self):
        """Leaves out, and notes, the samples that have not one modality: nothing can be learned from them."""
        empty = np.all([modality.lengths == 0 for modality in self.modalities], axis=0)
        if not empty.any() or empty.all():
            return
        self.notes.append(f"left out, since they have not one modality: {listed([self.ids[row] for row in np.flatnonzero(empty)])}")
        rows = np.flatnonzero(~empty)

        def kept(values):
            return values[rows] if isinstance(values, np.ndarray) else values if values is None else [values[row] for row in rows]
        self.ids, self.labels, self.groups, self.splits = map(kept, (self.ids, self.labels, self.groups, self.splits))
        self.targets = {name: (kept(values[0]), values[1]) if isinstance(values, tuple) else kept(values)
                        for name, values in self.targets.items()}
        for modality in self.modalities:
            modality.keep(rows)


class Progress:
    """A line on stderr every few seconds, so that nothing is said about small data."""

    def __init__(self, total, things):
        self._total, self._things, self._done, self._bytes, self._last = total, things, 0, 0, time.monotonic()

    def add(self, size):
        self._done += 1
        self._bytes += size
        if time.monotonic() - self._last > 2:
            self._last = time.monotonic()
            print(f"{self._done} of {self._total} {self._things}, {self._bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)


def write_dataset(dataset, options, sources=None, problems=()):
    """Writes options.output and returns the lines of the summary. problems: what is known to be wrong; then nothing is written, and
    what else is wrong is found as well. sources: [(name, path)] of the files that were read, whose hash goes into the file together
    with options.command. DataError: everything that is wrong."""
    problems, modalities = list(problems), dataset.modalities
    for modality in modalities:
        modality.ids = dataset.ids
    progress = Progress(sum(int((modality.lengths > 0).sum()) for modality in modalities), dataset.things)
    if problems:
        for modality in modalities:
            modality.copy(options, None, progress, problems)
        raise DataError(problems)
    with ContainerWriter(options.output, options.name or dataset.name, dataset.task, dataset.class_names, options.nonfinite) as out:
        out.samples(dataset.ids, dataset.labels, dataset.groups, dataset.splits, dataset.targets)
        for modality in modalities:
            out.modality(modality.name, modality.dim, modality.lengths, modality.dtype, modality.sample_rate)
        if sources is not None:
            out.attribute("sources_sha256", hash_files(sources))
            out.attribute("command", options.command)
        for modality in modalities:
            modality.copy(options, out, progress, problems)
        if problems:
            raise DataError(problems)
    return summary(dataset, options, out)


def hash_files(sources):
    """sha256 of what `sha256sum` prints for the files [(name, path)], sorted by their names, with "/" for os.sep."""
    lines = []
    progress = Progress(len(sources), "files hashed")
    for name, path in sources:
        digest = hashlib.sha256()
        with open_regular(path) as file:
            while block := file.read(BLOCK):
                digest.update(block)
            progress.add(file.tell())
        lines.append((str(name).replace(os.sep, "/"), digest.hexdigest()))
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def listed(values, limit=SHOWN):
    values = list(values)
    text = ", ".join(map(str, values[:limit])) + (f" and {len(values) - limit} more" if len(values) > limit else "")
    return f"{text} ({len(values)})" if len(values) > 1 else text


def summary(dataset, options, out):
    count, lines = len(dataset.ids), [f"{options.output}: {len(dataset.ids)} samples, {dataset.task}"]
    source = {role: f' (column "{column}")' for role, column in dataset.columns.items() if column}
    lines += label_lines(dataset, source.get("label", ""))
    for role, values in (("groups", dataset.groups), ("splits", dataset.splits)):
        if values is not None and len(values):
            order = {"train": 0, "valid": 1, "test": 2, "": 3} if role == "splits" else {}
            parts = [f"{value or '(none)'} {number}" for value, number in sorted(Counter(values).items(), key=lambda part: (order.get(part[0], 0), part))]
            shown = ", ".join(parts[:SHOWN]) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
            lines.append(f"  {role}{source.get(role[:-1], '')}: {shown}")
    for modality in dataset.modalities:
        present = modality.lengths[modality.lengths > 0]
        text = modality.describe(present, count - len(present), out.replaced[modality.name])
        kinds = ", ".join(f"{number} {kind}" for kind, number in out.replaced_kinds[modality.name].items() if number)
        lines.append(f"  {modality.name}: {text}" + (f"; set to 0: {kinds}" if kinds else ""))
    if dataset.targets:
        lines.append(f"  further targets: {', '.join(dataset.targets)}")
    return lines + baseline_lines(dataset) + [f"  {note}" for note in dataset.notes]


def label_lines(dataset, source):
    if dataset.labels is None:
        return ["  no labels: for predict only"]
    labels, names = np.asarray(dataset.labels), dataset.class_names
    if dataset.task == "multilabel":
        return [f"  classes{source}: " + ", ".join(f"{name} {number}" for name, number in zip(names, labels.sum(axis=0)))]
    if dataset.task == "classification":
        shares = np.bincount(labels, minlength=len(names))
        return [f"  classes{source}: " + ", ".join(f"{name} {number}" for name, number in zip(names, shares))]
    values, numbers = np.unique(labels.astype(np.float32), return_counts=True)
    if len(values) > SHOWN + 3:
        numbers, edges = np.histogram(labels, bins=7)
        parts = [f"{low:.4g} to {high:.4g}: {number}" for low, high, number in zip(edges, edges[1:], numbers)]
    else:
        parts = [f"{value:.4g}: {number}" for value, number in zip(values, numbers)]
    return [f"  labels{source}: from {labels.min():g} to {labels.max():g}, mean {labels.mean():.4g}, median {np.median(labels):.4g}",
            "  histogram: " + ", ".join(parts)]


def baseline_lines(dataset):
    """What a model reaches that always says the same: the most frequent class, or the median, of the training samples."""
    if dataset.labels is None or dataset.task == "multilabel":
        return []
    labels, splits = np.asarray(dataset.labels), np.asarray(dataset.splits if dataset.splits is not None else [""] * len(dataset.ids))
    training = splits == "train" if (splits == "train").any() else np.ones(len(labels), dtype=bool)
    parts = {name: splits == name for name in ("train", "valid", "test") if (splits == name).any()} or {"all samples": training}
    if dataset.task == "classification":
        best = np.bincount(labels[training]).argmax()
        what, score = f'always "{dataset.class_names[best]}": accuracy', lambda part: f"{(labels[part] == best).mean():.3f}"
    else:
        median = np.median(labels[training])
        what, score = f"always {median:.4g}: MAE", lambda part: f"{np.abs(labels[part] - median).mean():.4f}"
    return [f"  baseline, {what} " + ", ".join(f"{score(part)} ({name})" for name, part in parts.items())]


# Padding


def zero_rows(frames):
    """How many rows [frames, dim] are all zero in front and at the end; as many as there are, twice, where all are."""
    used = np.flatnonzero((frames != 0).any(axis=1))  # NaN is not zero
    return (int(used[0]), len(frames) - 1 - int(used[-1])) if len(used) else (len(frames), len(frames))


def strip_padding(frames, padding):
    """Frames [frames, dim] without the all-zero rows that padding, "front", "end" or "none", says are no frames. None are left where all
    rows are zero: the sample lacks the modality."""
    front, end = zero_rows(frames)
    if front == len(frames):
        return frames[:0]
    return frames[front:] if padding == "front" else frames[:len(frames) - end] if padding == "end" else frames


def choose_padding(name, asked, lengths, zeros):
    """(padding, note): where the frames of a modality are padded, and on what evidence. asked: "front", "end", "none" or "auto". lengths:
    rows of each sample; zeros: what zero_rows says of each. Arrays of different lengths need no padding; those of one length are padded on the
    side where far more of them have zero rows. DataError: it cannot be told."""
    lengths, zeros = np.asarray(lengths), np.asarray(zeros).reshape(-1, 2)
    full = lengths > 0
    some = full & (zeros[:, 0] < lengths)
    front, end = ((some & (zeros[:, side] > 0)).sum() for side in (0, 1))
    evidence = f"all-zero rows at the end in {end} of {full.sum()} samples, in front in {front}"
    empty = int((full & ~some).sum())
    empty = f"; {empty} are all zero and lack it" if empty else ""
    if asked != "auto":
        return asked, f"padding {PLACES[asked]}, as --padding says ({evidence}{empty})"
    if len(set(lengths[full].tolist())) > 1:
        return "none", f"no padding: lengths differ ({evidence}{empty})"
    if front == end == 0:
        return "none", f"no padding ({evidence}{empty})"
    if max(front, end) < 2 * min(front, end):
        raise DataError(f'modality "{name}": it is not clear where it is padded ({evidence}); say --padding front, end or none')
    padding = "front" if front > end else "end"
    return padding, f"padding {PLACES[padding]} ({evidence}{empty})"


PLACES = {"front": "in front", "end": "at the end", "none": "nowhere"}


def unpad(name, read, count, asked):
    """(lengths, notes, read) of a modality, given read(row) of its `count` samples with their padding: reads each once to see where it is
    padded. Rows that cannot be read (DataError or ValueError) get the length -1, and fail again when they are copied."""
    lengths, zeros = np.zeros(count, dtype=np.int64), np.zeros((count, 2), dtype=np.int64)
    progress, bad = Progress(count, f"samples of {name} looked at"), np.zeros(count, dtype=bool)
    for row in range(count):
        try:
            frames = read(row)
        except (DataError, ValueError):
            bad[row] = True
            continue
        lengths[row], zeros[row] = len(frames), zero_rows(frames) if len(frames) else (0, 0)
        progress.add(frames.nbytes)
    padding, note = choose_padding(name, asked, lengths, zeros)
    stripped = lengths - (zeros[:, 0] if padding == "front" else zeros[:, 1] if padding == "end" else 0)
    stripped[(zeros[:, 0] == lengths)] = 0
    stripped[bad] = 1  # so that it is read again, and reported
    return stripped, [note], lambda row: strip_padding(read(row), padding)


# Options


def program(name):
    """What the user called: "muster data import NAME", which that program says in MUSTER_COMMAND, or the script."""
    command = f"muster data import {name}"
    return command if os.environ.get("MUSTER_COMMAND") == command else f"{name.replace('-', '_')}.py"


def importer_parser(name, description, examples):
    """examples: lines of the command without its name."""
    lines = "\n".join(f"  {program(name)} {line}" for line in examples)
    return argparse.ArgumentParser(prog=program(name), description=description, epilog=f"examples:\n{lines}",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_common_options(parser, padding=False):
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the container to write")
    parser.add_argument("--name", help="of the data set; default: that of the source")
    parser.add_argument("--nonfinite", choices=("error", "zero"), default="error",
                        help="what to do with NaN and infinite features; zero: write 0 and count them")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the features in the file")
    if padding:
        parser.add_argument("--padding", choices=("auto", "front", "end", "none"), default="auto",
                            help="where all-zero rows are padding and no frames; auto (default): decides per modality over all samples "
                                 "and prints what it decided, and on what evidence")


def parse(parser, arguments, name):
    """The options, with `command`: the command line as it was given."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(arguments)
    if not options.output:
        parser.error("-o: the output has no name")
    command = f"{program(name)} {shlex.join(map(str, arguments))}"
    options.command = command.encode("utf-8", "backslashreplace").decode("utf-8")
    return options


def name_and_value(text):
    name, sign, value = text.partition("=")
    if not (is_name(name) and sign and value):
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form NAME=VALUE')
    return name, value


def unique_pairs(parser, options, *arguments):
    """Turns the lists of NAME=VALUE of these options into dictionaries."""
    for argument in arguments:
        pairs = getattr(options, argument)
        if len(dict(pairs)) != len(pairs):
            parser.error(f"--{argument.replace('_', '-')}: a name is used twice")
        setattr(options, argument, dict(pairs))


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f'"{text}" is no regular expression ({error})') from None


def groups_of(ids, expression, problems):
    """The group of each id: what the expression's first group matches, or all that it matches."""
    groups = []
    for sample in ids:
        match = expression.search(sample)
        if not match or match[match.re.groups > 0] is None:
            problems.append(f'the id "{sample}" does not match the pattern of groups {expression.pattern}')
        groups.append(match[match.re.groups > 0] or "" if match else "")
    return groups


def leads_out(sample):
    """Whether an id would lead out of the folder in which its file is looked for."""
    path = PurePosixPath(sample)
    return path.is_absolute() or ".." in path.parts or "\0" in sample
