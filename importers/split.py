#!/usr/bin/env python3
"""Writes a dataset container again with a fixed split: drawn at random, whole groups at a time if asked for, or taken from a table.

    muster data split iemocap.h5 --valid 0.1 --test 0.2 --by-group --seed 1 -o fixed.h5
    muster data split mosei.h5 --from folds.csv -o standard.h5             # folds.csv: id,split

Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import sys
from collections import Counter, defaultdict

import numpy as np

from container import SPLITS, DataError, split_problem
from container_tools import add_common_options, copy_container, random_order, read_table, run_tool, tool_parser
from read_container import label_text, read_container

NAMES = ("train", "valid", "test")
PASSES = 20  # over all groups, to make the shares better; two or three are usual

EXCHANGED = 500  # more groups are small enough for moves alone


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    contents = read_container(options.input)
    groups = contents.groups if contents.groups and any(contents.groups) else None
    if options.by_group:
        if groups is None:
            raise DataError(f"{contents.path}: --by-group needs groups (/samples/group), and it has none")
        problems = [f'the sample "{sample}" has no group, which --by-group needs' for sample, group in zip(contents.ids, groups) if not group]
        if problems:
            raise DataError(problems)
    old = contents.splits
    if options.table:
        contents.splits = splits_of_table(contents, options)
    else:
        contents.splits = draw(contents, options)
    notes = []
    if old and any(old):
        moved = sum(a != b for a, b in zip(old, contents.splits))
        notes.append(f"{contents.path} had splits: {moved} samples are in another one now")
    straddling = straddling_groups(contents.splits, groups)
    if straddling and options.by_group:
        raise DataError([f'{options.table}: the group "{group}" is in {" and ".join(found)}' for group, found in straddling.items()])
    if straddling:
        notes.append(f"{len(straddling)} of {len(set(filter(None, groups)))} groups are in more than one split; --by-group keeps them together")
    notes += label_notes(contents)
    return copy_container(contents, options, [contents], notes)


def straddling_groups(splits, groups):
    """{group: its splits}, of the groups that are in more than one."""
    found = defaultdict(set)
    for group, split in zip(groups or [], splits):
        if group and split:
            found[group].add(split)
    return {group: [name for name in NAMES if name in names] for group, names in sorted(found.items()) if len(names) > 1}


def label_notes(contents):
    """A line per split: its size, share, and classes or mean label."""
    lines = []
    for name in (*NAMES, ""):
        rows = [row for row, split in enumerate(contents.splits) if split == name]
        if not rows and name != "train":
            continue
        text = f"{name or '(none)'}: {len(rows)} samples, {100 * len(rows) / len(contents.ids):.1f} %"
        if contents.groups and any(contents.groups):
            text += f", {len({contents.groups[row] for row in rows})} groups"
        if contents.labels is not None and rows and contents.class_names:
            counts = class_counts(contents)[rows].sum(axis=0)
            text += ": " + ", ".join(f"{label} {count:g}" for label, count in zip(contents.class_names, counts))
        elif contents.labels is not None and rows:
            labels = contents.labels[rows]
            text += f": labels {labels.mean():.4g} on average, deviation {labels.std():.4g}"
        lines.append(text)
    if contents.labels is not None and contents.class_names:
        train = [split == "train" for split in contents.splits]
        counts = class_counts(contents)
        lines += [f"class {label} is not in train: training will refuse this split" for label, here, all_of in
                  zip(contents.class_names, counts[train].sum(axis=0), counts.sum(axis=0)) if here == 0 and all_of > 0]
    return lines


def class_counts(contents):
    """[samples, classes] of 0 and 1."""
    return contents.labels if contents.labels.ndim == 2 else np.eye(len(contents.class_names), dtype=np.int64)[contents.labels]


def splits_of_table(contents, options):
    """The splits in a CSV file with the columns id and split."""
    problems = []
    table = read_table(options.table, ("id", "split"), problems)
    known, found = set(contents.ids), {}
    for where, sample, split in table:
        if sample not in known:
            problems.append(f'{where}: {contents.path} has no sample "{sample}"')
        elif sample in found:
            problems.append(f'{where}: the id "{sample}" was used before')
        elif split not in SPLITS:
            problems.append(f"{where}: {split_problem(split)}")
        found[sample] = split
    if table and options.missing == "error":
        problems += [f'{options.table}: has no line for the sample "{sample}"; --missing empty leaves it without a split'
                     for sample in contents.ids if sample not in found]
    if problems:
        raise DataError(problems)
    return [found.get(sample, "") for sample in contents.ids]


def draw(contents, options):
    """A random split with the shares asked for: a pure function of ids, groups, labels and seed, and not of the samples' order."""
    shares = np.array([1 - options.valid - options.test, options.valid, options.test])
    strata = strata_of(contents) if options.stratify else [0] * len(contents.ids)
    if options.by_group:
        return draw_groups(contents, shares, strata, options.seed)
    wanted = [name for name, share in zip(NAMES, shares) if share > 0]
    if len(contents.ids) < len(wanted):
        raise DataError(f"{contents.path}: {len(contents.ids)} samples cannot be split into {' and '.join(wanted)}")
    order = random_order(np.arange(len(contents.ids)), contents.ids, options.seed)
    order = sorted(order, key=lambda row: strata[row])  # stable: random within a stratum
    splits, counts = [""] * len(order), np.zeros(3)
    for position, row in enumerate(order, 1):  # each to the split that is furthest behind its share, so all strata are dealt out evenly
        split = int(np.argmax(np.where(shares > 0, shares * position - counts, -np.inf)))
        counts[split] += 1
        splits[row] = NAMES[split]
    if not counts[shares > 0].all():
        small = " and ".join(name for name, share, count in zip(NAMES, shares, counts) if share > 0 and count == 0)
        raise DataError(f"{contents.path}: {len(order)} samples are too few: {small} would be empty")
    return splits


def strata_of(contents):
    """What the splits shall have equal shares of: classes, combinations of classes, or fifths of the sorted labels."""
    if contents.labels is None:
        raise DataError(f"{contents.path}: --stratify needs labels, and it has none")
    if contents.class_names:
        return [label_text(label, contents.class_names) for label in contents.labels]
    return np.searchsorted(np.quantile(contents.labels, [0.2, 0.4, 0.6, 0.8]), contents.labels).tolist()


def draw_groups(contents, shares, strata, seed):
    """Groups in random order, each to where it brings the shares (of all samples, and of each stratum) nearest to those asked for;
    then single groups are moved or exchanged as long as that makes the shares better."""
    members = defaultdict(list)
    for row, group in enumerate(contents.groups):
        members[group].append(row)
    names = sorted(members)
    kinds = {stratum: number for number, stratum in enumerate(sorted(set(strata)))}
    sizes = np.zeros((len(names), len(kinds) + 1))
    for position, group in enumerate(names):
        for row in members[group]:
            sizes[position, [0, 1 + kinds[strata[row]]]] += 1
    if len(kinds) == 1:
        sizes = sizes[:, :1]
    used = np.flatnonzero(shares > 0)
    if len(names) < len(used):
        raise DataError(f"{contents.path}: {len(names)} groups cannot be split into {' and '.join(NAMES[s] for s in used)}")
    sizes /= sizes.sum(axis=0)  # shares of the whole
    weights = np.full(sizes.shape[1], 1 / max(sizes.shape[1] - 1, 1))
    weights[0] = 1
    wanted = shares[used, None]

    def costs(tables):  # [..., splits, kinds] -> [...]
        return ((tables - wanted) ** 2 * weights).sum(axis=(-2, -1))

    order = random_order(np.arange(len(names)), names, seed)
    place, table = np.full(len(names), -1), np.zeros((len(used), sizes.shape[1]))
    members_of = np.zeros(len(used), dtype=np.int64)
    steps = np.eye(len(used))[:, :, None]  # steps[s] adds to split s
    for position, group in enumerate(order):
        cost = costs(table + steps * sizes[group])
        empty = members_of == 0
        if empty.sum() == len(order) - position:  # as many groups are left as splits are empty
            cost = np.where(empty, cost, np.inf)
        place[group] = np.argmin(cost)
        table[place[group]] += sizes[group]
        members_of[place[group]] += 1
    for _ in range(PASSES):
        before = costs(table)
        for group in order:
            source = place[group]
            left = table - steps[source] * sizes[group]
            if members_of[source] > 1:
                cost = costs(left + steps * sizes[group])
                target = int(np.argmin(cost))
                if target != source and cost[target] < costs(table) - 1e-12:
                    table, place[group] = left + steps[target] * sizes[group], target
                    members_of[[source, target]] += [-1, 1]
                    continue
            others = np.flatnonzero(place != source)
            if len(others) == 0 or len(names) > EXCHANGED:
                continue
            difference = sizes[others] - sizes[group]  # what an exchange adds here, and takes there
            tables = table + steps[source] * difference[:, None, :] - steps[place[others]] * difference[:, None, :]
            cost = costs(tables)
            best = int(np.argmin(cost))
            if cost[best] < costs(table) - 1e-12:
                table, other = tables[best], others[best]
                place[group], place[other] = place[other], source
        if costs(table) >= before - 1e-12:
            break
    splits = [""] * len(contents.ids)
    for position, group in enumerate(names):
        for row in members[group]:
            splits[row] = NAMES[used[place[position]]]
    return splits


def share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


def main(arguments=None):
    parser = tool_parser("split", __doc__)
    parser.add_argument("input", metavar="FILE.h5")
    parser.add_argument("--valid", type=share, metavar="SHARE", help="share of the samples, from 0 to below 1; default: 0")
    parser.add_argument("--test", type=share, metavar="SHARE", help="share of the samples, from 0 to below 1; default: 0")
    parser.add_argument("--by-group", action="store_true", help="no group (session, speaker, video) is in two splits")
    parser.add_argument("--stratify", action="store_true",
                        help="all splits shall have about the same share of each class, or of each fifth of the labels")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("--from", dest="table", metavar="FILE.csv", help="take the split from this table with the columns id and split")
    parser.add_argument("--missing", choices=("error", "empty"), default="error",
                        help="samples that --from has no line for; empty: they are in no split; default: an error")
    add_common_options(parser)

    def check(options):
        drawn = options.valid is not None or options.test is not None
        options.valid, options.test = options.valid or 0, options.test or 0
        if options.table and (drawn or options.stratify):
            parser.error("--from takes the split from a table: --valid, --test and --stratify do not go with it")
        if not options.table and not options.valid + options.test:
            parser.error("give --valid, --test or both (shares), or --from FILE.csv")
        if options.valid + options.test >= 1:
            parser.error("--valid and --test: nothing is left for train")

    return run_tool(run, parser, arguments, check)


if __name__ == "__main__":
    sys.exit(main())
