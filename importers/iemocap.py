#!/usr/bin/env python3
"""Imports the IEMOCAP corpus, as it is distributed, into a muster dataset container: the recordings of its utterances, or features by
utterance, with its emotions as classes and its sessions as groups.

    IEMOCAP_full_release/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav
    IEMOCAP_full_release/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt      [6.2901 - 8.2357] TAB id TAB neu TAB [2.5, 2.5, 2.5]
    IEMOCAP_full_release/Session1/dialog/transcriptions/Ses01F_impro01.txt     id [006.2901-008.2357]: Excuse me.

    muster data import iemocap IEMOCAP_full_release -o iemocap.h5 --max-seconds audio=6
    muster data import iemocap IEMOCAP_full_release -o iemocap.h5 --modality vision=clip/ --tokenizer bert-base-uncased/

Everything is checked, and all problems are reported at once. Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import argparse
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from arrays import KINDS, add_raw_options, check_raw_options, folder_and_suffix, open_files
from command_line import open_regular, run_importer
from container import DataError
from dataset import Dataset, add_common_options, importer_parser, listed, name_and_value, parse, unique_pairs, write_dataset
from recordings import Recordings
from texts import Texts

EMOTIONS = {"ang": "angry", "hap": "happy", "exc": "excited", "neu": "neutral", "sad": "sad", "fru": "frustrated", "fea": "fearful",
            "sur": "surprised", "dis": "disgusted", "oth": "other"}  # what the annotators could choose; xxx: they did not agree
UNDECIDED = "xxx"
FOUR = {"angry": ["ang"], "happy": ["hap", "exc"], "neutral": ["neu"], "sad": ["sad"]}
PRESETS = {"4": FOUR, "6": {EMOTIONS[code]: [code] for code in ("ang", "exc", "fru", "hap", "neu", "sad")},
           "all": {EMOTIONS[code]: [code] for code in sorted(EMOTIONS, key=EMOTIONS.get)}}
USUAL = {"Ses01": 1085, "Ses02": 1023, "Ses03": 1151, "Ses04": 1031, "Ses05": 1241}  # utterances of the four classes; 5531 in all
DIMENSIONS = ("valence", "arousal", "dominance")
RATINGS = (1, 5)  # the annotators' scale
UTTERANCE = re.compile(r"(Ses0\d)[FM]_(impro|script)\w*_([FM])\d+")  # the first letter says who wears the markers, the last who speaks
NUMBER = r"-?\d+(?:\.\d+)?"
EVALUATION = re.compile(rf"\[\s*({NUMBER})\s*-\s*({NUMBER})\s*\]\s+(\S+)\s+(\S+)\s+\[\s*({NUMBER}),\s*({NUMBER}),\s*({NUMBER})\s*\]")
TRANSCRIPT = re.compile(rf"(\S+)\s+\[\s*{NUMBER}\s*-\s*{NUMBER}\s*\]:?(.*)")
LARGEST_TEXT = 1 << 24  # bytes of one text file


class Utterances:
    """What the evaluations say of utterances, in the order of their ids."""

    def __init__(self):
        self.ids, self.codes, self.ratings, self.places, self.sessions, self.repeated = [], [], [], [], [], 0

    def of(self, rows):
        """Only these."""
        kept = Utterances()
        for name in ("ids", "codes", "ratings", "places", "sessions"):
            values = getattr(self, name)
            setattr(kept, name, [values[row] for row in rows])
        return kept

    def where(self, row):
        """File and line, for messages."""
        return self.places[row]


def session_folders(root):
    """Session1 to Session5 of the corpus' folder, or of the folder around it."""
    for folder in (root, root / "IEMOCAP_full_release"):
        found = sorted(path for path in folder.glob("Session[0-9]") if path.is_dir())
        if found:
            return found
    raise DataError(f"{root}: holds no folders Session1 to Session5; give the folder IEMOCAP_full_release")


def text_files(folder):
    """The folder's .txt files, without those that macOS hides beside them (._NAME)."""
    return sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))


def dialog_lines(sessions, name, what, problems):
    """(session, path, number, line) of the sessions' text files in dialog/<name>."""
    for session in sessions:
        folder = session / "dialog" / name
        files = text_files(folder)
        if not files:
            problems.append(f"{folder}: holds no {what} (.txt)")
        for path in files:
            for number, line in read_lines(path):
                yield session, path, number, line


def read_lines(path):
    """(number, line) of a text file. Its characters are Latin-1 where they are not UTF-8."""
    with open_regular(path) as file:
        content = file.read(LARGEST_TEXT + 1)
    if len(content) > LARGEST_TEXT or b"\0" in content:
        raise DataError(f"{path}: is no text file of the corpus")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return enumerate(re.split(r"\r\n|\r|\n", text), start=1)


def read_evaluations(sessions, problems):
    """Every utterance that was evaluated, sorted by id. A line that is there twice counts once."""
    found = {}  # id -> (code, ratings, place, session)
    utterances = Utterances()
    for session, path, number, line in dialog_lines(sessions, "EmoEvaluation", "evaluations", problems):
        if not line.startswith("[") or "[" not in line[1:]:
            continue
        place, match = f"{path}:{number}", EVALUATION.fullmatch(line.strip())
        if not match:
            problems.append(f'{place}: "{line[:80]}" is no evaluation; expected "[start - end] ID emotion [v, a, d]"')
            continue
        sample, code = match[3], match[4].lower()
        name = UTTERANCE.fullmatch(sample)
        if not name or name[1][-1] != session.name[-1]:
            problems.append(f'{place}: "{sample}" is no utterance of {session.name}')
        elif code not in EMOTIONS and code != UNDECIDED:
            problems.append(f'{place}: unknown emotion "{match[4]}"; known: {", ".join(EMOTIONS)}, {UNDECIDED}')
        elif sample in found and found[sample][:2] != (code, tuple(map(float, match.group(5, 6, 7)))):
            problems.append(f'{place}: "{sample}" was evaluated differently in {found[sample][2]}')
        elif sample in found:
            utterances.repeated += 1
        else:
            found[sample] = (code, tuple(map(float, match.group(5, 6, 7))), place, session)
    for sample in sorted(found):
        code, ratings, place, session = found[sample]
        utterances.ids.append(sample)
        utterances.codes.append(code)
        utterances.ratings.append(ratings)
        utterances.places.append(place)
        utterances.sessions.append(session)
    return utterances


def read_transcripts(sessions, problems, notes):
    """{id: text}. Lines of breaths and of other things without an utterance's id are left out; of two that differ the first counts."""
    texts, differing = {}, []
    for _, path, number, line in dialog_lines(sessions, "transcriptions", "transcripts", problems):
        match = TRANSCRIPT.fullmatch(line.strip())
        if match and UTTERANCE.fullmatch(match[1]) and texts.setdefault(match[1], match[2].strip()) != match[2].strip():
            differing.append(f"{match[1]} ({path}:{number})")
    if differing:
        notes.append(f"utterances with two transcripts, of which the first is taken ({len(differing)}): {listed(differing)}")
    return texts


def wav_path(session, sample):
    return session / "sentences" / "wav" / sample.rpartition("_")[0] / f"{sample}.wav"


def speaker(sample):
    """Who speaks: Ses01F and Ses01M are the two of a session, whoever wears the markers."""
    name = UTTERANCE.fullmatch(sample)
    return name[1] + name[3]


def classes_of(options, problems):
    """{class name: codes of the annotators}, in the order of the classes."""
    classes = dict(options.classes)
    names = options.class_names
    if names:
        if sorted(names) != sorted(classes):
            problems.append(f"--class-names: expected {', '.join(classes)} in the order of the class numbers, not {', '.join(names)}")
        else:
            classes = {name: classes[name] for name in names}
    return classes


def choose_rows(utterances, codes, notes):
    """Numbers of the utterances that have one of the emotions; notes what is left out."""
    rows = [row for row, code in enumerate(utterances.codes) if code in codes]
    others = Counter(code for code in utterances.codes if code not in codes)
    if others.pop(UNDECIDED, 0) and (count := utterances.codes.count(UNDECIDED)):
        notes.append(f"left out, since the annotators did not agree ({UNDECIDED}): {count}")
    if others:
        notes.append("left out, of other emotions: " + ", ".join(f"{EMOTIONS[code]} {number}" for code, number in sorted(others.items())))
    if utterances.repeated:
        notes.append(f"lines that are there twice, and count once: {utterances.repeated}")
    return rows


def lacking(options, utterances, row, texts):
    """Modalities that an utterance has no file, or no text, for."""
    sample, found = utterances.ids[row], []
    if "audio" in options.waveforms and not wav_path(utterances.sessions[row], sample).exists():
        found.append("audio")
    for name, (folder, suffix) in options.modality.items():
        if not any((folder / f"{sample}{end}").exists() for end in ([suffix] if suffix else KINDS)):
            found.append(name)
    if texts is not None and not texts.get(sample):
        found.append("text")
    return found


def leave_out(options, utterances, rows, texts, notes):
    """The rows that have all modalities (--missing drop), or at least one (empty)."""
    names = [*options.waveforms, *options.modality, *(["text"] if options.tokenizer else [])]
    missing = {row: lacking(options, utterances, row, texts) for row in rows}
    left = [row for row in rows if (missing[row] if options.missing == "drop" else len(missing[row]) == len(names))]
    if left:
        notes.append(f"left out, for want of {'a' if options.missing == 'drop' else 'any'} modality ({len(left)}): " + ", ".join(
            f"{utterances.ids[row]} ({', '.join(missing[row])})" for row in left[:10]) + " ..." * (len(left) > 10))
    return sorted(set(rows) - set(left))


def open_modalities(options, table, texts, problems):
    modalities = []
    if options.waveforms:
        paths = [wav_path(session, sample) for session, sample in zip(table.sessions, table.ids)]
        there = [path if path.exists() else None for path in paths]
        if options.missing == "error":
            problems += [f'{table.where(row)}: {paths[row]} does not exist; --missing empty takes it as "has no audio", drop leaves it out'
                         for row, path in enumerate(there) if path is None]
        modalities.append(Recordings("audio", there, table, table.ids, options, problems))
    for name, (folder, suffix) in options.modality.items():
        modalities.append(open_files(name, folder, suffix, table, table.ids, options, problems))
    if texts is not None:
        modalities.append(Texts("text", lambda row: "transcriptions", lambda row: texts.get(table.ids[row], ""), table, table.ids, options, problems))
    return [modality for modality in modalities if modality]


def targets_of(table):
    targets = dict(zip(DIMENSIONS, np.array(table.ratings).T))
    kinds = ["improvised" if UTTERANCE.fullmatch(sample)[2] == "impro" else "scripted" for sample in table.ids]
    for name, values in (("speaker", [speaker(sample) for sample in table.ids]), ("emotion", [EMOTIONS[code] for code in table.codes]),
                         ("scenario", kinds)):
        known = sorted(set(values))
        if len(known) > 1:  # one class is no target
            targets[name] = np.array([known.index(value) for value in values]), known
    return targets


def check_notes(table, classes):
    """How many samples each session gives, against what is usually reported of the four classes."""
    counts = Counter(sample[:5] for sample in table.ids)
    found = ", ".join(f"{session} {count}" for session, count in sorted(counts.items()))
    notes = []
    if {name: set(codes) for name, codes in classes.items()} == {name: set(codes) for name, codes in FOUR.items()}:
        if counts == USUAL:
            notes.append(f"{len(table.ids)} utterances ({found}), as usually reported")
        else:
            usual = ", ".join(f"{session} {count}" for session, count in USUAL.items() if session in counts or len(counts) == len(USUAL))
            different = any(counts[session] != USUAL.get(session) for session in counts)
            notes.append(f"WARNING: {found}; usually reported are {usual}" if different else
                         f"{found}, as usually reported; the sessions {', '.join(sorted(USUAL.keys() - counts.keys()))} are not there")
    ratings = np.array(table.ratings)
    outside = int(((ratings < RATINGS[0]) | (ratings > RATINGS[1])).any(axis=1).sum())
    if outside:
        notes.append(f"WARNING: {outside} utterances have a valence, arousal or dominance that is not from {RATINGS[0]} to {RATINGS[1]}")
    return notes


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    problems, notes = [], []
    sessions = session_folders(Path(options.folder))
    classes = classes_of(options, problems)
    codes = {code: name for name, found in classes.items() for code in found}
    utterances = read_evaluations(sessions, problems)
    texts = read_transcripts(sessions, problems, notes) if options.tokenizer else None
    rows = choose_rows(utterances, codes, notes)
    if not rows:
        raise DataError(problems or [f"{options.folder}: not one utterance has one of the emotions {', '.join(codes)}"])
    if options.missing != "error":
        rows = leave_out(options, utterances, rows, texts, notes)
        if not rows:
            raise DataError([*problems, f"{options.folder}: not one utterance has {'its' if options.missing == 'drop' else 'any'} modalities"])
    table = utterances.of(rows)
    options.missing = options.missing.replace("drop", "error")  # what is lacking is left out
    modalities = open_modalities(options, table, texts, problems)
    names = list(classes)
    labels = np.array([names.index(codes[code]) for code in table.codes])
    dataset = Dataset("iemocap", "classification", names, table.ids, labels, [sample[:5] for sample in table.ids], None, targets_of(table),
                      modalities, notes + check_notes(table, classes), things="utterances")
    return write_dataset(dataset, options, sources(sessions, modalities), problems)


def sources(sessions, modalities):
    """The files that were read, by name."""
    paths = [path for session in sessions for folder in ("EmoEvaluation", "transcriptions") for path in text_files(session / "dialog" / folder)]
    paths += [path for modality in modalities for path in getattr(modality, "paths", []) if path and Path(path).exists()]
    return [("/".join(Path(path).parts[-3:]), path) for path in dict.fromkeys(paths)]


def parse_classes(text):
    """"4", "6", "all", or NAME=CODE+CODE,... -> {class: codes}"""
    if text in PRESETS:
        return PRESETS[text]
    classes = {}
    for part in text.split(","):
        name, _, codes = (piece.strip() for piece in part.partition("="))
        classes[name] = codes.split("+")
        if not name or not set(classes[name]) <= EMOTIONS.keys():
            raise argparse.ArgumentTypeError(f'"{part}": expected NAME=CODE+CODE with codes of {", ".join(EMOTIONS)}')
    used = Counter(code for codes in classes.values() for code in codes)
    if len(classes) < 2 or max(used.values()) > 1 or len(classes) != len(text.split(",")):
        raise argparse.ArgumentTypeError("at least two classes with different names, and each emotion in one of them only")
    return classes


def parse_arguments(arguments):
    parser = importer_parser("iemocap", "The IEMOCAP corpus as it is distributed -> muster dataset container.", [
        "IEMOCAP_full_release -o iemocap.h5 --max-seconds audio=6",
        "IEMOCAP_full_release -o iemocap.h5 --no-wav --modality audio=wavlm-large/ --modality vision=clip-large/",
        "IEMOCAP_full_release -o iemocap.h5 --tokenizer bert-base-uncased/ --missing drop"])
    parser.add_argument("folder", metavar="FOLDER", help="IEMOCAP_full_release, with the folders Session1 to Session5; fewer will do")
    parser.add_argument("--no-wav", action="store_true", help="without the corpus' own recordings, which are the modality audio")
    parser.add_argument("--modality", action="append", default=[], type=name_and_value, metavar="NAME=FOLDER",
                        help="FOLDER/<utterance>.npy (features), .wav or .flac (waveforms); audio, vision and text are the usual names")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="the transcripts become tokens, the modality text: the folder's tokenizer.json")
    add_raw_options(parser)
    parser.add_argument("--classes", type=parse_classes, default="4", metavar="4|6|all|NAME=CODE+CODE,...",
                        help="4 (default): angry, happy with excited, neutral, sad; 6: excited on its own, and frustrated; all: the annotators' "
                             f"ten. Codes: {', '.join(EMOTIONS)}")
    parser.add_argument("--class-names", type=lambda text: [name.strip() for name in text.split(",")],
                        help="the names of these classes in the order of the class numbers; default: as --classes has them")
    parser.add_argument("--missing", choices=("error", "empty", "drop"), default="error",
                        help="an utterance without a modality is an error (default), a sample without it, or left out")
    add_common_options(parser)
    options = parse(parser, arguments, "iemocap")
    unique_pairs(parser, options, "modality", "max_seconds", "max_tokens")
    options.text, options.waveforms = {}, [] if options.no_wav or "audio" in options.modality else ["audio"]
    names = [*options.waveforms, *options.modality, *(["text"] if options.tokenizer else [])]
    if len(set(names)) < len(names) or not names:
        parser.error("--tokenizer makes the modality text, which --modality gives as well" if names else
                     "--no-wav leaves no modality: give at least one --modality, or --tokenizer")
    check_raw_options(parser, options, names)
    options.modality = {name: folder_and_suffix(value) for name, value in options.modality.items()}
    return options


def main(arguments=None):
    return run_importer(run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
