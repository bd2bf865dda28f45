"""What looks wrong in a container: nothing here is an error, but each would make a score mean something else than it seems to."""
import re
from collections import Counter, defaultdict

import numpy as np

from scan_container import duplicates
from split import NAMES, straddling_groups

OUTLIER = 20  # deviations from the mean: of a million normal values the furthest is 5 away
CORPORA = ((re.compile("mosi|mosei", re.I), 3), (re.compile("sims", re.I), 1))  # labels from -limit to limit
GRID = (10, 6)  # such labels are tenths (one annotator's steps, or means of five), or means of three whole or half numbers


def suspicions(contents, facts):
    """[(title, details)]: what is suspicious, and where. facts: {modality: scan_container.Facts}."""
    found = []
    for name, modality in contents.modalities.items():
        found += [(f"{name}: {title}", details) for title, details in of_modality(contents, modality, facts[name])]
    return found + of_duplicates(contents, facts) + of_labels(contents) + of_splits(contents)


def of_modality(contents, modality, facts):
    ids, lengths = contents.ids, modality.lengths
    here = lengths > 0
    if not here.any():
        yield "no sample has it", []
        return
    if facts.nonfinite.any():
        rows = np.flatnonzero(facts.nonfinite)
        yield (f"{facts.nonfinite.sum()} values are NaN or infinite, in {len(rows)} samples",
               [f"{ids[row]}: {facts.nonfinite[row]}" for row in rows])
    silent = here & (facts.nonzero == 0)
    if silent.any() and modality.kind != "tokens":
        yield f"{silent.sum()} samples are all zero", [ids[row] for row in np.flatnonzero(silent)]
    if modality.kind == "features":
        yield from of_features(contents, modality, facts, here & ~silent)
    trailing = np.where(here & ~silent, lengths - 1 - facts.last, 0)
    if modality.kind == "tokens" and (trailing > 1).any():
        yield f"{(trailing > 1).sum()} samples end with several tokens of the id 0: is this padding?", [ids[row] for row in np.flatnonzero(trailing > 1)]
    if modality.kind == "waveform" and (facts.largest > 1).any():
        rows = np.flatnonzero(facts.largest > 1)
        yield f"{len(rows)} waveforms leave [-1, 1]", [f"{ids[row]}: {facts.largest[row]:.4g}" for row in rows]
    median = np.median(lengths[here])
    short = here & (lengths * 20 < median)
    if short.any():
        yield (f"{short.sum()} samples are nearly empty: less than a twentieth of the median length, {median:g}",
               [f"{ids[row]}: {lengths[row]}" for row in np.flatnonzero(short)])


def of_features(contents, modality, facts, used):
    """used: the samples that are not all zero."""
    ids, lengths = contents.ids, modality.lengths
    constant = np.flatnonzero((facts.count > 0) & (facts.low == facts.high))
    if len(constant) and modality.lengths.sum() > 1:
        yield (f"{len(constant)} of {modality.dim} features are constant", [f"feature {column}: {facts.low[column]:.6g}" for column in constant])
    far = np.flatnonzero(facts.furthest > OUTLIER)
    if len(far):
        details = []
        for column in far[np.argsort(-facts.furthest[far], kind="stable")]:
            above = facts.high[column] - facts.mean[column] > facts.mean[column] - facts.low[column]
            value, row = (facts.high, facts.high_row) if above else (facts.low, facts.low_row)
            details.append(f"feature {column}: {value[column]:.6g} in {ids[row[column]]}, {facts.furthest[column]:.1f} deviations from the mean")
        yield f"{len(far)} of {modality.dim} features have values more than {OUTLIER} deviations from their mean (data.clip_standardized limits them)", details
    zero = np.where(used, lengths - facts.nonzero, 0)
    if zero.any():
        rows = np.flatnonzero(zero)
        besides = "" if used[lengths > 0].all() else ", besides the samples that are all zero"
        yield (f"{zero.sum()} of {lengths[used].sum()} frames are all zero, in {len(rows)} samples{besides}",
               [f"{ids[row]}: {zero[row]} of {lengths[row]}" for row in rows])
    for what, count in (("end", np.where(used, lengths - 1 - facts.last, 0)), ("begin", np.where(used, facts.first, 0))):
        padded = count > 1
        if padded.sum() * 5 > used.sum():
            yield (f"{padded.sum()} of {used.sum()} samples {what} with several frames that are all zero: was padding not cut off?",
                   [f"{ids[row]}: {count[row]} of {lengths[row]}" for row in np.flatnonzero(padded)])
    mostly = used & ((lengths - zero) * 20 < lengths)
    if mostly.any():
        yield f"{mostly.sum()} samples are nearly empty: more than 95 % of their frames are zero", [ids[row] for row in np.flatnonzero(mostly)]


def of_duplicates(contents, facts):
    everything = [tuple(fact.digest[row] for fact in facts.values()) for row in range(len(contents.ids))]
    blank = [all(fact.nonzero[row] == 0 for fact in facts.values()) for row in range(len(contents.ids))]
    whole = duplicates([None if empty else digest for empty, digest in zip(blank, everything)])
    found = describe_duplicates("samples have the same content in all modalities as another one", whole, contents, True)
    if len(facts) > 1:
        for name, fact in facts.items():
            groups = duplicates([digest if fact.nonzero[row] else None for row, digest in enumerate(fact.digest)])
            groups = [rows for rows in groups if len({everything[row] for row in rows}) > 1]  # the others were named above
            short = " (short texts are often said more than once)" if contents.modalities[name].kind == "tokens" else ""
            found += describe_duplicates(f"samples have the same {name} as another one, and other modalities differ{short}", groups, contents, False)
    return found


def describe_duplicates(title, groups, contents, whole):
    """whole: all of the samples is the same, so their labels should be, too."""
    if not groups:
        return []

    def named(row):
        parts = [part for part in (contents.splits[row] if contents.splits else "",
                                   "" if contents.labels is None else f"label {contents.label_names(row)}") if part]
        return contents.ids[row] + (f" ({', '.join(parts)})" if parts else "")

    count, found = sum(map(len, groups)), []
    found.append((f"{count} {title}", [" = ".join(map(named, rows)) for rows in groups]))
    leaking = [rows for rows in groups if whole and contents.splits and len({contents.splits[row] for row in rows} - {""}) > 1]
    if leaking:
        found.append((f"{sum(map(len, leaking))} of these {count} are in different splits: the test set is not unseen",
                      [" = ".join(map(named, rows)) for rows in leaking]))
    differing = [rows for rows in groups if whole and contents.labels is not None and len({contents.label_names(row) for row in rows}) > 1]
    if differing:
        found.append((f"{sum(map(len, differing))} of these {count} have different labels", [" = ".join(map(named, rows)) for rows in differing]))
    return found


def label_limit(contents):
    """(limit, why): labels are from -limit to limit, as the corpus's name says, or as nearly all of them are on its grid and inside."""
    for pattern, limit in CORPORA:
        if pattern.search(contents.name or "") or pattern.search(contents.path.rpartition("/")[2]):
            return limit, "as the corpus's are"
    labels = contents.labels.astype(np.float64)
    if max(np.mean(np.abs(labels * step - np.round(labels * step)) < 1e-3) for step in GRID) < 0.9:
        return None, ""
    for limit in (1, 3):
        if np.mean(np.abs(labels) <= limit + 1e-6) >= 0.95 and (labels < 0).any():
            return limit, "as nearly all of them are"
    return None, ""


def of_labels(contents):
    if contents.labels is None:
        return []
    found = []
    if contents.class_names:
        counts = contents.labels.sum(axis=0) if contents.labels.ndim == 2 else np.bincount(contents.labels, minlength=len(contents.class_names))
        empty = [name for name, count in zip(contents.class_names, counts) if count == 0]
        if empty:
            found.append((f"{len(empty)} of {len(counts)} classes have no sample", empty))
        return found
    limit, why = label_limit(contents)
    if limit is not None:
        rows = np.flatnonzero(np.abs(contents.labels) > limit + 1e-6)
        if len(rows):
            found.append((f"{len(rows)} labels are not in [-{limit}, {limit}], {why}", [f"{contents.ids[row]}: {contents.labels[row]:g}" for row in rows]))
    if len(contents.labels) > 1 and (contents.labels == contents.labels[0]).all():
        found.append((f"all labels are {contents.labels[0]:g}", []))
    return found


def of_splits(contents):
    found = []
    lacking = [sample for row, sample in enumerate(contents.ids) if not any(m.lengths[row] for m in contents.modalities.values())]
    if lacking:
        found.append((f"{len(lacking)} samples have not one modality", lacking))
    if not contents.splits or not any(contents.splits):
        return found
    straddling = straddling_groups(contents.splits, contents.groups)
    if straddling:
        sizes = defaultdict(Counter)
        for group, split in zip(contents.groups, contents.splits):
            sizes[group][split] += 1
        found.append((f"{len(straddling)} groups are in more than one split",
                      [f"{group}: " + ", ".join(f"{name} {sizes[group][name]}" for name in names) for group, names in straddling.items()]))
    splits = np.array(contents.splits)
    sizes = {name: int((splits == name).sum()) for name in NAMES}
    found += [(f"the split {name} is empty", []) for name, size in sizes.items() if size == 0 and name != "valid"]
    for name, modality in contents.modalities.items():
        without = [split for split in NAMES if sizes[split] and not modality.lengths[splits == split].any()]
        if without and modality.lengths.any():
            found.append((f"{name}: no sample of {' and '.join(without)} has it", []))
    if contents.labels is not None and contents.class_names and sizes["train"]:
        shown = contents.labels if contents.labels.ndim == 2 else np.eye(len(contents.class_names), dtype=np.int64)[contents.labels]
        absent = [name for name, here, all_of in zip(contents.class_names, shown[splits == "train"].sum(axis=0), shown.sum(axis=0))
                  if here == 0 and all_of]
        if absent:
            found.append((f"{len(absent)} classes are not in train, only elsewhere", absent))
    return found
