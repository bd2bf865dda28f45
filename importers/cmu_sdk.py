#!/usr/bin/env python3
"""Imports computational sequences (.csd), the files of the CMU Multimodal SDK (MOSI, MOSEI, POM), into a muster dataset container,
aligned with the words or the label segments as the SDK's own examples do it.

    muster data import cmu-sdk --modality text=CMU_MOSI_TimestampedWordVectors.csd --modality audio=CMU_MOSI_COVAREP.csd \\
        --modality vision=CMU_MOSI_Visual_Facet_42.csd --labels CMU_MOSI_Opinion_Labels.csd --folds mosi --nonfinite zero -o mosi.h5
    muster data import cmu-sdk --align segments --modality audio=CMU_MOSEI_COVAREP.csd --labels CMU_MOSEI_Labels.csd \\
        --folds cmu_mosei_std_folds.py --label emotions --nonfinite zero -o mosei.h5

A sample is a label segment, its id video[number]. Only one video of each file is in memory at a time. Everything is checked, and all
problems are reported at once. Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from command_line import open_regular, run_importer
from container import DataError, is_name
from csd import Sequence, Track, long_enough, mean_rows, words_track
from dataset import (Dataset, Modality, add_common_options, importer_parser, name_and_value, parse, unique_pairs,
                     write_dataset)
from texts import Texts

MOSEI_LABELS = ["sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear"]  # the order of its "All Labels"
EMOTIONS = "emotions"  # the multi-label target: which of the emotions are above 0
PAUSE = "sp"  # what the SDK's files of words write where nobody speaks
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "dev": "valid", "test": "test"}
STANDARD_FOLDS = {"mosi": Path(__file__).with_name("cmu_mosi_folds.json")}
LARGEST_FOLDS = 1 << 24  # bytes


def read_folds(path):
    """{video: split} of a JSON file {"train": [videos], "valid": [...], "test": [...]} or of the SDK's Python file of lists
    standard_train_fold = [...], which is parsed, never run. DataError: all that is wrong."""
    with open_regular(path) as file:
        text = file.read(LARGEST_FOLDS + 1)
    if len(text) > LARGEST_FOLDS:
        raise DataError(f"{path}: has more than {LARGEST_FOLDS} bytes; expected lists of video ids")
    try:
        lists = python_lists(text) if Path(path).suffix == ".py" else json.loads(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: is no {'Python' if Path(path).suffix == '.py' else 'JSON'} file of folds ({str(error)[:200]})") from None
    problems, folds = [], {}
    if not isinstance(lists, dict) or not lists or any(name not in SPLITS for name in lists):
        raise DataError(f'{path}: expected the lists "train", "valid" and "test" (in Python: standard_train_fold = [...] and so on)')
    for name, videos in lists.items():
        if not isinstance(videos, (list, tuple)) or not all(isinstance(video, str) for video in videos):
            problems.append(f'{path}: "{name}" is no list of video ids')
            continue
        for video in videos:
            if folds.setdefault(video, SPLITS[name]) != SPLITS[name]:
                problems.append(f'{path}: the video "{video}" is in {folds[video]} and in {SPLITS[name]}')
    if problems:
        raise DataError(problems)
    return folds


def python_lists(text):
    """{"train": [...]} of the assignments NAME_train_fold = [...] of a Python file: literals only."""
    lists = {}
    for statement in ast.parse(text).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        for target in targets:
            match = isinstance(target, ast.Name) and re.fullmatch(r"(?:.*_)?(train|valid|val|dev|test)_folds?", target.id)
            if match:
                lists[match[1]] = ast.literal_eval(statement.value)
    return lists


def label_names(options, labels, count):
    """What the columns of the labels are called."""
    if options.label_names:
        if len(options.label_names) != count:
            raise DataError(f"--label-names gives {len(options.label_names)} names, but {labels.path} has {count} labels per segment")
        return options.label_names
    if count == 1:
        return ["sentiment"]
    if count == len(MOSEI_LABELS):
        return MOSEI_LABELS
    known = labels.metadata("dimension names")
    if isinstance(known, list) and len(known) == count == len(set(map(str, known))) and all(map(is_name, map(str, known))):
        return list(map(str, known))
    raise DataError(f"{labels.path}: {count} labels per segment, and its metadata does not name them: say --label-names A,B,...")


class Losses:
    """What is left out, and why: counted for the summary; with --list every id is named."""

    def __init__(self):
        self.ids = {}

    def add(self, what, name):
        self.ids.setdefault(what, []).append(name)

    def lines(self, everything):
        return [f"{what} ({len(ids)}): " + (", ".join(ids) if everything else ", ".join(ids[:3]) + " ..." * (len(ids) > 3))
                for what, ids in self.ids.items()]


class Aligner:
    """The rows of every modality in every label segment of a video. sequences: {modality: Sequence}; texts: names of those that hold
    words instead of numbers."""

    def __init__(self, sequences, texts, labels, options):
        self.sequences, self.texts, self.labels, self.options = sequences, texts, labels, options
        self._last = {}  # modality -> (video, rows): samples of a video are read one after another

    def absent(self, video):
        """Modalities whose files lack the video."""
        return [name for name, sequence in self.sequences.items() if video not in sequence.entries]

    def segments(self, video):
        """Ids of the video's label segments, and the numbers of those that are not too short."""
        if self.options.align == "none":
            names = self.labels.entries[video]
            return names, np.arange(len(names))
        intervals = self.labels.intervals(video)
        return [f"{video}[{i}]" for i in range(len(intervals))], long_enough(intervals)

    def track(self, name, intervals, video):
        """All stored frames of a modality; of words only those that are no pauses."""
        used = np.arange(len(intervals))
        if name in self.texts:
            used = np.flatnonzero([word not in ("", PAUSE) for word in words_of(self.sequences[name], video)])
        return Track(intervals[used], used[:, None])

    def rows(self, name, video):
        """(for each segment the sources of its rows, words without frames of this modality). None are left where the file, or the one
        with the words, lacks the video."""
        sequence, options = self.sequences[name], self.options
        if options.align == "none":
            return [self._entry(sequence, video, entry) for entry in self.labels.entries[video]], 0
        segments, empty, pivot = self.labels.intervals(video), 0, self.sequences.get(options.pivot)
        if video not in sequence.entries or options.align == "words" and video not in pivot.entries:
            return [[]] * len(segments), 0
        track = self.track(name, sequence.intervals(video), video)
        if options.align == "words":
            words = pivot.intervals(video)
            words = words[long_enough(words)]
            if name == options.pivot:
                kept = long_enough(track.intervals)
                track = Track(track.intervals[kept], [track.sources[i] for i in kept])
            elif name not in self.texts:
                track, empty = words_track(words, track, options.collapse == "mean", options.missing_frames == "zero")
        found = ([track.sources[i] for i in track.overlap(segment)[0]] for segment in segments)
        # The last rows are kept, as the SDK's padding on the left does.
        return [sources[-options.max_frames:] if options.max_frames else sources for sources in found], empty

    def _entry(self, sequence, video, entry):
        if entry not in sequence.entries.get(video, ()):
            return []
        first, count = sequence.place(video, entry)
        used = np.arange(first, first + count)
        return list(used[-self.options.max_frames:, None] if self.options.max_frames else used[:, None])

    def sources(self, name, video, segment):
        if self._last.get(name, (None,))[0] != video:
            self._last[name] = (video, self.rows(name, video)[0])
        return self._last[name][1][segment]

    def read(self, name, video, segment):
        return mean_rows(self.sequences[name].features(video), self.sources(name, video, segment))

    def text(self, name, video, segment):
        words = words_of(self.sequences[name], video)
        return " ".join(words[frame] for frames in self.sources(name, video, segment) for frame in frames)


def words_of(sequence, video):
    """The words of a video. ValueError: what is wrong, for people."""
    features = sequence.features(video)
    if features.dtype.kind not in "SO":
        raise ValueError(f'{sequence.path}: video "{video}": holds numbers, not words; --modality takes numbers')
    try:
        return [" ".join(word if isinstance(word, str) else bytes.decode(word) for word in row).strip() for row in features]
    except (UnicodeDecodeError, TypeError) as error:
        raise ValueError(f'{sequence.path}: video "{video}": its words are not UTF-8 text ({error})') from None


class Scan:
    """The first look, at times and shapes only: which segments become samples, and how many rows each has. samples: [(video, number of
    the segment, id)]; lengths: {modality: rows of each sample}."""

    def __init__(self, aligner, problems):
        self.aligner, self.options, self.samples, self.labels = aligner, aligner.options, [], []
        self.lengths, self.losses = {name: [] for name in aligner.sequences}, Losses()
        self.words, self.short, self.imputed = 0, 0, Counter()
        self._shapes = {name: {} for name in (*aligner.sequences, None)}  # modality, None for the labels -> {video: features}
        good = {}
        for video in aligner.labels.entries:
            absent = aligner.absent(video)
            if absent and self.options.missing == "drop":
                self.losses.add(f"videos left out, which {' and '.join(absent)} lack{'s' * (len(absent) == 1)}", video)
                continue
            found = self._look(video)
            found = self._look(video)
            if not found:
                good[video] = True
            elif self.options.bad_videos == "drop":
                self.losses.add("videos left out, since their data are wrong", video)
            else:
                problems += found
        for video, found in self._odd_widths():
            if self.options.bad_videos == "error":
                problems.append(found)
            elif good.pop(video, None):
                self.losses.add("videos left out, since their data are wrong", video)
        self.dims = {name: next(iter(Counter(widths.values()).most_common(1)), (1,))[0] for name, widths in self._shapes.items()}
        if not problems:
            for video in good:
                self._take(video)
        known = set().union(*(sequence.entries for sequence in aligner.sequences.values())) - set(aligner.labels.entries)
        for video in sorted(known):
            self.losses.add("videos left out, which have no labels", video)

    def _look(self, video):
        """Everything that is wrong with the data of a video."""
        problems = []
        for name, sequence in (*self.aligner.sequences.items(), (None, self.aligner.labels)):
            if video not in sequence.entries:
                continue
            try:
                _, dim, dtype = sequence.shape(video)
                if name in self.aligner.texts:
                    words_of(sequence, video)
                elif dtype.kind not in "fiub" or dtype.itemsize > 8:
                    hint = "; --text NAME=FILE takes words" if dtype.kind in "SO" else ""
                    raise ValueError(f'{sequence.path}: video "{video}": features of type {dtype}; expected real numbers{hint}')
                self._shapes[name][video] = dim
                sequence.intervals(video)
                if name is None and not np.isfinite(sequence.features(video)).all():
                    raise ValueError(f'{sequence.path}: video "{video}": its labels are not all finite numbers')
            except ValueError as error:
                problems.append(str(error))
        return problems

    def _odd_widths(self):
        """(video, problem) of those whose number of features is not the usual one."""
        for name, widths in self._shapes.items():
            if not widths:
                continue
            (usual, count), = Counter(widths.values()).most_common(1)
            path = (self.aligner.sequences[name] if name else self.aligner.labels).path
            for video, width in widths.items():
                if width != usual:
                    yield video, f'{path}: video "{video}": {width} features, but {count} of the other videos have {usual}'

    def _take(self, video):
        ids, numbers = self.aligner.segments(video)
        for number in sorted(set(range(len(ids))) - set(numbers.tolist())):
            self.losses.add("segments left out, since they take no time", ids[number])
        rows = {}
        for name in self.aligner.sequences:
            rows[name], empty = self.aligner.rows(name, video)
            self.imputed[name] += empty
        pivot = self.aligner.sequences.get(self.options.pivot) if self.options.align == "words" else None
        if pivot and video in pivot.entries:
            words = pivot.intervals(video)
            self.words += len(words)
            self.short += len(words) - len(long_enough(words))
        labels = self.aligner.labels.features(video)
        for number in numbers:
            empty = [name for name in rows if not rows[name][number]]
            if empty and (self.options.missing == "drop" or len(empty) == len(rows)):
                self.losses.add(f"segments left out, which have no {' and no '.join(empty)}", ids[number])
                continue
            self.samples.append((video, int(number), ids[number]))
            self.labels.append(labels[number])
            for name in rows:
                self.lengths[name].append(len(rows[name][number]))


def open_sequences(options):
    """({modality: Sequence}, the labels' Sequence). DataError: all that cannot be opened."""
    opened, problems = {}, []
    for name, path in (*options.modality.items(), *options.text.items(), (None, options.labels)):
        try:
            opened[name] = Sequence(path, options.bad_times == "drop")
        except FileNotFoundError:
            problems.append(f"{path}: does not exist")
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    labels = opened.pop(None)
    numbered = {len(names) > 1 or "[" in names[0] for names in labels.entries.values()}
    if options.align != "none" and True in numbered:
        raise DataError(f"{labels.path}: its entries are segments already (VIDEO[NUMBER]); --align none takes the segments as they are")
    if not labels.entries:
        raise DataError(f"{labels.path}: holds no videos")
    return opened, labels


def targets_of(names, values, options):
    """(task, class names, labels, further targets)."""
    columns = {name: values[:, i] for i, name in enumerate(names)}
    emotions = [name for name in MOSEI_LABELS[1:] if name in columns]
    targets = dict(columns) if len(columns) > 1 else {}
    if len(emotions) == len(MOSEI_LABELS) - 1:
        targets[EMOTIONS] = (np.stack([columns[name] > 0 for name in emotions], axis=1).astype(np.int64), emotions)
    label = options.label or ("sentiment" if "sentiment" in columns else names[0])
    if label in columns:
        return "regression", None, columns[label], targets
    if label in targets:
        return "multilabel", targets[label][1], targets[label][0], targets
    raise DataError(f'--label: there is no label "{label}"; {options.labels} has {", ".join(dict.fromkeys([*names, *targets]))}')


def splits_of(scan, options):
    """(splits or None, notes)."""
    if options.folds is None:
        return None, ["no splits: --folds gives the standard ones"]
    folds = read_folds(STANDARD_FOLDS.get(options.folds, options.folds))
    videos = {video for video, *_ in scan.samples}
    losses = Losses()
    for what, lost in (("videos in no fold, whose samples have no split", videos - set(folds)),
                       ("videos of the folds that have no samples", set(folds) - videos)):
        for video in sorted(lost):
            losses.add(what, video)
    if not videos & set(folds):
        raise DataError(f"{STANDARD_FOLDS.get(options.folds, options.folds)}: not one of the videos is in these folds")
    return [folds.get(video, "") for video, *_ in scan.samples], losses.lines(options.list)


def notes_of(scan, options):
    notes = []
    if options.align == "words":
        notes.append(f"aligned with {scan.words} words of {options.pivot}, of which {scan.short} take no time and are left out; "
                     f"{'the mean' if options.collapse == 'mean' else 'all'} of a word's frames")
        what = "filled with zeros" if options.missing_frames == "zero" else "skipped"
        notes += [f"{name}: {scan.imputed[name]} words without frames, {what}" for name in scan.lengths if scan.imputed[name]]
    for name, sequence in (*scan.aligner.sequences.items(), ("labels", scan.aligner.labels)):
        if sequence.bad_times:
            notes.append(f"{name}: {sum(sequence.bad_times.values())} intervals in {len(sequence.bad_times)} videos are not from an earlier to a "
                         "later time, and are left out")
    if options.max_frames:
        notes.append(f"at most the last {options.max_frames} rows of each sample")
    return notes + scan.losses.lines(options.list)


class Places:
    """Says what a row comes from, as the importers' tables of samples do."""

    def __init__(self, path, samples):
        self.path, self.samples = path, samples

    def where(self, row):
        return f"{self.path}: segment {self.samples[row][2]}"


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    sequences, labels = open_sequences(options)
    problems = []
    aligner = Aligner(sequences, set(options.text), labels, options)
    scan = Scan(aligner, problems)
    if problems:
        raise DataError(problems)
    if not scan.samples:
        raise DataError([f"{labels.path}: no segment has all modalities", *scan.losses.lines(options.list)])
    names = label_names(options, labels, scan.dims[None])
    task, class_names, values, targets = targets_of(names, np.array(scan.labels, dtype=np.float64), options)
    splits, notes = splits_of(scan, options)
    ids = [sample for *_, sample in scan.samples]
    modalities = []
    for name in options.modality:
        modalities.append(Modality(name, scan.dims[name], scan.lengths[name], lambda row, name=name: aligner.read(name, *scan.samples[row][:2]),
                                   lambda row, name=name: f"{sequences[name].path}: segment {ids[row]}", options.dtype))
    for name in options.text:
        modalities.append(Texts(name, lambda row, name=name: sequences[name].path, lambda row, name=name: aligner.text(name, *scan.samples[row][:2]),
                                Places(labels.path, scan.samples), ids, options, problems))
    dataset = Dataset(Path(options.labels).stem, task, class_names, ids, values, [video for video, *_ in scan.samples], splits, targets,
                      modalities, notes + notes_of(scan, options))
    sources = [(Path(path).name, path) for path in [*options.modality.values(), *options.text.values(), options.labels]]
    return write_dataset(dataset, options, sources, problems)


def parse_arguments(arguments):
    parser = importer_parser("cmu-sdk", "Computational sequences (.csd) of the CMU Multimodal SDK -> muster dataset container.", [
        "--modality text=CMU_MOSI_TimestampedWordVectors.csd --modality audio=CMU_MOSI_COVAREP.csd \\\n"
        "      --modality vision=CMU_MOSI_Visual_Facet_42.csd --labels CMU_MOSI_Opinion_Labels.csd --folds mosi --nonfinite zero -o mosi.h5",
        "--align segments --modality audio=CMU_MOSEI_COVAREP.csd --labels CMU_MOSEI_Labels.csd \\\n"
        "      --folds cmu_mosei_std_folds.py --label emotions --nonfinite zero -o mosei.h5",
        "--text text=CMU_MOSI_TimestampedWords.csd --tokenizer bert-base-uncased/ --modality audio=CMU_MOSI_COVAREP.csd \\\n"
        "      --labels CMU_MOSI_Opinion_Labels.csd --folds mosi --nonfinite zero -o mosi_bert.h5"])
    parser.add_argument("--modality", action="append", default=[], type=name_and_value, metavar="NAME=FILE.csd",
                        help="a sequence of numbers; text, audio and vision are the usual names")
    parser.add_argument("--text", action="append", default=[], type=name_and_value, metavar="NAME=FILE.csd",
                        help="a sequence of words, which become tokens; pauses (sp) are left out")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="makes tokens of words: the folder's tokenizer.json")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="crop the tokens of each sample to the first N")
    parser.add_argument("--labels", required=True, metavar="FILE.csd", help="the sequence of labels: its segments become the samples")
    parser.add_argument("--align", choices=("words", "segments", "none"), default="words",
                        help="words (default): the rows of every modality are the words of --pivot, as in the SDK's examples; segments: each "
                             "modality keeps its own frames, cut to the label segments; none: the files' entries are segments (VIDEO[NUMBER])")
    parser.add_argument("--pivot", default="text", metavar="NAME", help="the modality whose entries are the words (default: text)")
    parser.add_argument("--collapse", choices=("mean", "none"), default="mean",
                        help="the frames of a word: their mean (default), or all of them, as in the SDK's example for MOSEI")
    parser.add_argument("--missing-frames", choices=("zero", "skip"), default="zero",
                        help="a word without frames of a modality: a row of zeros (default; the SDK's impute), or none")
    parser.add_argument("--missing", choices=("drop", "empty"), default="drop",
                        help="a segment, or a video, that lacks a modality is left out (default, as in the SDK), or kept as a sample without it")
    parser.add_argument("--max-frames", type=int, metavar="N", help="keep the last N rows of each sample, as the SDK's padding does; default: all")
    parser.add_argument("--folds", metavar="mosi|FILE", help="splits by video: mosi, the SDK's Python file of standard folds, which is not run, or "
                                                             'a JSON file {"train": [videos], "valid": [...], "test": [...]}')
    parser.add_argument("--label", metavar="NAME", help="sentiment (default), one of the other labels, or emotions: which of MOSEI's six are above 0")
    parser.add_argument("--label-names", type=lambda text: [name.strip() for name in text.split(",")], metavar="A,B,...",
                        help="names of the labels of a segment; default: sentiment, MOSEI's seven, or those in the file")
    parser.add_argument("--bad-times", choices=("error", "drop"), default="error",
                        help="a word, frame or segment that is not from an earlier to a later time is an error (default), or left out")
    parser.add_argument("--bad-videos", choices=("error", "drop"), default="error",
                        help="a video whose data are wrong, as another number of features than the rest have, is an error (default), or left out")
    parser.add_argument("--list", action="store_true", help="name everything that is left out, instead of counting it")
    add_common_options(parser)
    options = parse(parser, arguments, "cmu-sdk")
    unique_pairs(parser, options, "modality", "text")
    if not options.modality and not options.text or set(options.modality) & set(options.text):
        parser.error("give at least one --modality or --text, each with a name of its own")
    if options.text and options.tokenizer is None:
        parser.error("--text needs a --tokenizer")
    if options.align == "words" and options.pivot not in {*options.modality, *options.text}:
        parser.error(f'--pivot: there is no modality "{options.pivot}" whose words the others could be aligned with; '
                     "--align segments needs none")
    for argument in ("max_frames", "max_tokens"):
        if getattr(options, argument) is not None and getattr(options, argument) < 1:
            parser.error(f"--{argument.replace('_', '-')}: is a number above 0")
    if options.label_names and (len(set(options.label_names)) < len(options.label_names) or not all(map(is_name, options.label_names))):
        parser.error("--label-names: they must differ, and may not be empty or hold /")
    options.max_tokens = {name: options.max_tokens for name in options.text if options.max_tokens}
    return options


def main(arguments=None):
    return run_importer(run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
