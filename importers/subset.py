#!/usr/bin/env python3
"""Writes some samples and modalities of a dataset container into a new one. A sample must pass all that is asked for; the order stays.

    muster data subset mosei.h5 --split train --split valid --complete -o complete.h5
    muster data subset iemocap.h5 --group Ses01 --class angry --class sad --modalities audio,text -o part.h5
    muster data subset mosei.h5 --sample 500 --seed 1 -o small.h5

Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import sys
from collections import Counter

import numpy as np

from command_line import open_regular
from container import DataError
from container_tools import add_common_options, copy_container, random_order, run_tool, tool_parser
from read_container import read_container

SPLIT_NAMES = {"train": "train", "valid": "valid", "test": "test", "none": ""}


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    problems, notes = [], []
    contents = read_container(options.input)
    keep = np.ones(len(contents.ids), dtype=bool)
    choose_modalities(contents, options.modalities, problems)
    if options.ids:
        keep &= among(contents.ids, read_ids(options.ids, contents, problems))
    if options.without_ids:
        keep &= ~among(contents.ids, read_ids(options.without_ids, contents, problems))
    if options.split:
        if contents.splits is None:
            problems.append(f"{contents.path}: has no splits (/samples/split)")
        else:
            keep &= among(contents.splits, {SPLIT_NAMES[name] for name in options.split})
    if options.group:
        known = Counter(contents.groups or [])
        problems += [f'{contents.path}: there is no group "{name}"; it has {shortened(sorted(filter(None, known)))}'
                     for name in options.group if name not in known]
        keep &= among(contents.groups or [""] * len(keep), set(options.group))
    if options.label_class:
        keep &= of_classes(contents, options.label_class, problems)
    for names, lacks in ((options.where_missing, True), (options.where_present, False)):
        for name in names or []:
            if name not in contents.modalities:
                problems.append(f'{contents.path}: there is no modality "{name}"; it has {", ".join(contents.modalities)}')
            else:
                keep &= (contents.modalities[name].lengths == 0) == lacks
    if options.complete:
        for modality in contents.modalities.values():
            keep &= modality.lengths > 0
    if problems:
        raise DataError(problems)
    rows = np.flatnonzero(keep)
    if options.sample is not None:
        rows = np.sort(random_order(rows, [contents.ids[row] for row in rows], options.seed)[:options.sample])
    if options.first is not None:
        rows = rows[:options.first]
    for wanted, what in ((options.sample, "--sample"), (options.first, "--first")):
        if wanted is not None and len(rows) < wanted:
            notes.append(f"{what} {wanted}: only {len(rows)} samples are left")
    if len(rows) == 0:
        raise DataError(f"{contents.path}: not one of its {len(keep)} samples is left")
    picked = contents.pick(rows)
    notes.append(f"{len(rows)} of {len(keep)} samples are kept")
    problems = [f'the sample "{sample}" has not one of the modalities {", ".join(picked.modalities)}; --complete leaves it out'
                for row, sample in enumerate(picked.ids) if not any(m.lengths[row] for m in picked.modalities.values())]
    if problems:
        raise DataError(problems)
    return copy_container(picked, options, [contents], notes)


def among(values, wanted):
    return np.array([value in wanted for value in values], dtype=bool)


def shortened(names):
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def choose_modalities(contents, names, problems):
    if not names:
        return
    problems += [f'{contents.path}: there is no modality "{name}"; it has {", ".join(contents.modalities)}'
                 for name in names if name not in contents.modalities]
    contents.modalities = {name: modality for name, modality in contents.modalities.items() if name in names}


def read_ids(path, contents, problems):
    """The ids in a file, one a line. One that the container lacks is a problem."""
    try:
        with open_regular(path, "r", pipes=True, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})")
        return set()
    known, found = set(contents.ids), set()
    for number, line in enumerate(lines, 1):
        sample = line if line in known else line.strip()
        if sample in known:
            found.add(sample)
        elif sample:
            problems.append(f'{path}:{number}: {contents.path} has no sample "{sample}"')
    return found


def of_classes(contents, names, problems):
    """Which samples have one of the classes; with several labels per sample: one of them."""
    if contents.labels is None or not contents.class_names:
        problems.append(f"{contents.path}: --class needs labels that are classes, but " + (
            "it has no labels" if contents.labels is None else f"this is a {contents.task}"))
        return np.ones(len(contents.ids), dtype=bool)
    unknown = [name for name in names if name not in contents.class_names]
    problems += [f'{contents.path}: there is no class "{name}"; it has {shortened(contents.class_names)}' for name in unknown]
    numbers = [contents.class_names.index(name) for name in names if name not in unknown]
    return contents.labels[:, numbers].any(axis=1) if contents.labels.ndim == 2 else np.isin(contents.labels, numbers)


def names_list(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def main(arguments=None):
    parser = tool_parser("subset", __doc__)
    parser.add_argument("input", metavar="FILE.h5")
    parser.add_argument("--ids", metavar="FILE", help="only the ids in this file, one a line")
    parser.add_argument("--without-ids", metavar="FILE", help="not the ids in this file")
    parser.add_argument("--split", action="append", choices=list(SPLIT_NAMES), help="only this split; may be repeated")
    parser.add_argument("--group", action="append", metavar="NAME", help="only this session, speaker or video; may be repeated")
    parser.add_argument("--class", action="append", dest="label_class", metavar="NAME", help="only this class; may be repeated")
    parser.add_argument("--modalities", type=names_list, metavar="NAME,NAME", help="only these modalities")
    parser.add_argument("--complete", action="store_true", help="only samples that have all of the modalities that are kept")
    parser.add_argument("--where-missing", action="append", metavar="NAME", help="only samples that lack this modality; may be repeated")
    parser.add_argument("--where-present", action="append", metavar="NAME", help="only samples that have this modality; may be repeated")
    parser.add_argument("--sample", type=int, metavar="N", help="N of what is left so far, drawn at random")
    parser.add_argument("--seed", type=int, default=1, help="of --sample; default: 1")
    parser.add_argument("--first", type=int, metavar="N", help="the first N of what is left then")
    add_common_options(parser)

    def check(options):
        for name in ("sample", "first"):
            if getattr(options, name) is not None and getattr(options, name) < 1:
                parser.error(f"--{name}: a number of samples is 1 or more")

    return run_tool(run, parser, arguments, check)


if __name__ == "__main__":
    sys.exit(main())
