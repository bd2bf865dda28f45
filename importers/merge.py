#!/usr/bin/env python3
"""Joins two dataset containers by the ids of their samples: everything of BASE, and modalities of OTHER.

    muster data merge mosi.h5 mosi_roberta.h5 --take text --replace -o mosi_with_roberta.h5
    muster data merge mosi.h5 mosi_roberta.h5 --take text_b=text -o mosi_two_texts.h5

Samples, their order, labels, targets, groups and splits are BASE's. Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import sys

import numpy as np

from container import DataError
from container_tools import add_common_options, copy_container, name_and_source, run_tool, tool_parser
from read_container import label_text, read_container


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    problems, notes = [], []
    base, other = (read_or_none(path, problems) for path in (options.base, options.other))
    if problems:
        raise DataError(problems)
    take = options.take or {name: name for name in other.modalities}
    for name, source in take.items():
        if source not in other.modalities:
            problems.append(f'{other.path}: there is no modality "{source}"; it has {", ".join(other.modalities)}')
        if name in base.modalities and not options.replace:
            problems.append(f'{base.path}: has a modality "{name}" already; --replace takes that of {other.path} instead, '
                            f"--take NEW={source} keeps both")
    rows = np.arange(len(base.ids))
    places = {sample: row for row, sample in enumerate(other.ids)}
    lacking = [sample for sample in base.ids if sample not in places]
    extra = set(other.ids) - set(base.ids)
    if len(lacking) == len(base.ids):
        raise DataError(problems + [f'{base.path} and {other.path} have not one id in common: the first are "{base.ids[0]}" and '
                                    f'"{other.ids[0]}"'])
    if options.missing == "error":
        hint = "--missing drop leaves it out, --missing empty keeps it without"
        problems += [f'the id "{sample}" is only in {base.path}; {hint} {", ".join(take)}' for sample in lacking]
        problems += [f'the id "{sample}" is only in {other.path}; --missing drop or empty leaves it out' for sample in other.ids
                     if sample in extra]
    else:
        if lacking:
            notes.append(f"{len(lacking)} samples are only in {base.path}: " + (
                "left out" if options.missing == "drop" else f"they lack {', '.join(take)}"))
        if extra:
            notes.append(f"{len(extra)} samples are only in {other.path}: left out")
    if options.missing == "drop":
        rows = np.array([row for row in rows if base.ids[row] in places], dtype=np.int64)
    compare_labels(base, other, places, options, problems, notes)
    differing = sum(base.splits[row] != other.splits[places[base.ids[row]]] for row in rows if base.ids[row] in places) \
        if base.splits and other.splits else 0
    if differing:
        notes.append(f"{differing} samples have another split in {other.path}: those of {base.path} are kept")
    if problems:
        raise DataError(problems)
    joined = base.pick(rows)
    taken = [places.get(sample, -1) for sample in joined.ids]
    for name, source in take.items():
        joined.modalities[name] = other.modalities[source].pick(taken, name)
    for row, sample in enumerate(joined.ids):
        if not any(modality.lengths[row] for modality in joined.modalities.values()):
            problems.append(f'the sample "{sample}" would have not one modality; --missing drop leaves it out where {other.path} lacks it')
    if problems:
        raise DataError(problems)
    return copy_container(joined, options, [base, other], notes)


def read_or_none(path, problems):
    try:
        return read_container(path)
    except DataError as error:
        problems += error.problems


def compare_labels(base, other, places, options, problems, notes):
    """Labels that differ by more than float32's rounding are a problem: the ids may not mean the same samples."""
    if base.labels is None or other.labels is None:
        return
    if base.task != other.task or base.labels.ndim != other.labels.ndim:
        notes.append(f"labels were not compared: {base.task} in {base.path}, {other.task} in {other.path}")
        return
    shared = [(row, places[sample]) for row, sample in enumerate(base.ids) if sample in places]
    differing = []
    for row, place in shared:
        mine, theirs = base.labels[row], other.labels[place]
        same = (abs(mine - theirs) <= 1e-6 + 1e-5 * abs(mine) if not base.class_names else
                label_text(mine, base.class_names) == label_text(theirs, other.class_names))
        if not same:
            differing.append((row, place))
    if differing and options.ignore_labels:
        notes.append(f"{len(differing)} samples have another label in {other.path}: those of {base.path} are kept")
    elif differing:
        problems += [f'sample "{base.ids[row]}": its label is {base.label_names(row)} in {base.path}, but {other.label_names(place)} in '
                     f"{other.path}; --ignore-labels keeps the former" for row, place in differing]


def main(arguments=None):
    parser = tool_parser("merge", __doc__)
    parser.add_argument("base", metavar="BASE.h5", help="the container whose samples, labels, groups and splits are kept")
    parser.add_argument("other", metavar="OTHER.h5", help="the container whose modalities are added")
    parser.add_argument("--take", action="append", type=name_and_source, metavar="[NEW=]NAME",
                        help="a modality of OTHER, under a new name if one is given; may be repeated; default: all")
    parser.add_argument("--replace", action="store_true", help="modalities of OTHER take the place of BASE's of the same name")
    parser.add_argument("--missing", choices=("error", "empty", "drop"), default="error",
                        help="ids that only one of the two has; empty: BASE's samples stay, and lack what is taken; drop: only the ids of "
                             "both stay; default: an error")
    parser.add_argument("--ignore-labels", action="store_true", help="keep BASE's labels where OTHER has different ones; default: an error")
    add_common_options(parser)

    def check(options):
        if options.take and len(dict(options.take)) < len(options.take):
            parser.error("--take: a name is used twice")
        options.take = dict(options.take or [])

    return run_tool(run, parser, arguments, check)


if __name__ == "__main__":
    sys.exit(main())
