#!/usr/bin/env python3
"""Shows what is in a dataset container as one HTML file that needs nothing else, and lists what looks wrong with it.

    muster data inspect mosei.h5 --html mosei.html

The file has lengths, labels of each split and group, missing modalities, ranges of the features, and what is suspicious: constant
features, all-zero frames, duplicates by content (also between splits), labels outside of the corpus's range, groups in several splits,
outliers, waveforms outside of [-1, 1], nearly empty samples. All is read once, in blocks.

Exit codes: 0 done (also where something is suspicious), 2 usage, 65 bad data, 74 cannot read or write.
"""
import html
import os
import secrets
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from command_line import printable
from container import OutputError, refuse_places, synchronise
from container_tools import run_tool, tool_parser
from dataset import Progress
from read_container import read_container
from scan_container import scan
from suspicions import suspicions

MARK = b'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="muster data inspect">'
BINS = 30
SHOWN, SHOWN_IN_TEXT = 200, 5  # details of something suspicious
GROUPS = 2000
STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em;border-bottom:1px solid #ccc}h3{font-size:1em;margin-bottom:.3em}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .7em;border-bottom:1px solid #e4e4e4;text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}th{font-weight:600}code,li{overflow-wrap:anywhere}
.scroll{overflow-x:auto}.suspicious>li{margin:.4em 0}.fine{color:#2a7a2a}svg{display:block;background:#fafafa;border:1px solid #ddd}
.bar{fill:#4a78b5}.range{stroke:#9dbbe0}.band{stroke:#274b7a}.text{font:11px sans-serif;fill:#444}summary{cursor:pointer}"""


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    output = Path(options.output)
    refuse_others(output)
    contents = read_container(options.input)
    progress = Progress(sum(-(-stored.values.size // (1 << 20)) for stored in contents.modalities.values()), "blocks")
    facts = {name: scan(stored, progress) for name, stored in contents.modalities.items()}
    found = suspicions(contents, facts)
    temporary = output.with_name(f".tmp-{output.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            for part in page(contents, facts, found):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    synchronise(output.parent)
    lines = [f"{options.output}: {len(contents.ids)} samples, {contents.task}; {len(found) or 'nothing'} suspicious"]
    for title, details in found:
        shown = ", ".join(map(printable, details[:SHOWN_IN_TEXT])) + (f" and {len(details) - SHOWN_IN_TEXT} more" if len(details) > SHOWN_IN_TEXT else "")
        lines.append(f"  {title}" + (f": {shown}" if details else ""))
    return lines


def refuse_others(output):
    """An earlier page may be replaced, nothing else."""
    refuse_places(output)
    if output.exists():
        ours = False
        if output.is_file():
            with open(output, "rb") as file:
                ours = file.read(len(MARK)) == MARK
        if not ours:
            raise OutputError(f"{output} exists and is no page of muster data inspect: it is not overwritten")


def text(value):
    return html.escape(printable(str(value)), quote=True)


def number(value):
    return "-" if value is None or not np.isfinite(value) else f"{value:.6g}"


def table(head, rows, name=""):
    """Cells are escaped here. name: the id of the table."""
    yield f'<div class="scroll"><table{f" id={chr(34)}{name}{chr(34)}" if name else ""}><tr>' + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>\n"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>\n"
    yield "</table></div>\n"


def folded(title, parts):
    yield f"<details><summary>{text(title)}</summary>\n"
    yield from parts
    yield "</details>\n"


def page(contents, facts, found):
    yield MARK.decode() + ('<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">'
                           f"<title>{text(contents.name or contents.path)}</title><style>{STYLE}</style></head><body>\n")
    yield f"<h1>{text(contents.name or contents.path)}</h1>\n"
    yield from overview(contents)
    yield "<h2>Suspicious</h2>\n"
    yield from list_of(found)
    yield "<h2>Modalities</h2>\n"
    yield from modalities(contents)
    yield from lengths(contents)
    yield "<h2>Labels</h2>\n"
    yield from labels(contents, "label", contents.labels, contents.class_names)
    for name, (values, classes) in contents.targets.items():
        yield f"<h3>Target {text(name)}</h3>\n"
        yield from labels(contents, f"target-{list(contents.targets).index(name)}", values, classes)
    yield "<h2>Groups</h2>\n"
    yield from groups(contents)
    yield "<h2>Ranges</h2>\n"
    for position, (name, stored) in enumerate(contents.modalities.items()):
        yield from ranges(contents, position, stored, facts[name])
    yield "</body></html>\n"


def overview(contents):
    rows = [("file", contents.path), ("bytes", os.path.getsize(contents.path)), ("task", contents.task), ("samples", len(contents.ids))]
    rows += [(name, value) for name, value in contents.origin.items()]
    yield from table(("", ""), rows, "overview")


def list_of(found):
    if not found:
        yield '<p class="fine">Nothing.</p>\n'
        return
    yield '<ul class="suspicious" id="suspicious">\n'
    for title, details in found:
        yield f"<li>{text(title)}"
        if details:
            more = f"<li>and {len(details) - SHOWN} more</li>" if len(details) > SHOWN else ""
            yield "<details><summary>which</summary><ul>" + "".join(f"<li>{text(detail)}</li>" for detail in details[:SHOWN]) + more + "</ul></details>"
        yield "</li>\n"
    yield "</ul>\n"


def split_masks(contents):
    """{name: which samples}, of the splits that have some, and of all."""
    masks = {"all": np.ones(len(contents.ids), dtype=bool)}
    if contents.splits and any(contents.splits):
        splits = np.array(contents.splits)
        masks.update({name or "(none)": splits == name for name in ("train", "valid", "test", "") if (splits == name).any()})
    return masks


def modalities(contents):
    masks, rows = split_masks(contents), []
    for name, stored in contents.modalities.items():
        present = stored.lengths[stored.lengths > 0]
        numbers = [f"{value:.4g}" for value in (present.min(), np.median(present), present.mean(), present.max())] if len(present) else ["-"] * 4
        rate = f" {stored.sample_rate} Hz" if stored.sample_rate else ""
        rows.append((name, f"{stored.kind}{rate}", stored.dim, stored.values.dtype, stored.lengths.sum(), *numbers,
                     *((stored.lengths[mask] == 0).sum() for mask in masks.values())))
    head = ("modality", "kind", "dim", "stored as", "frames", "shortest", "median", "mean", "longest", *(f"missing in {name}" for name in masks))
    yield from table(head, rows, "modalities")


def bars(counts, edges, name):
    """A histogram as a drawing, and its numbers."""
    width, height = 20 * len(counts), 120
    yield f'<svg role="img" width="{width + 20}" height="{height + 36}" viewBox="0 0 {width + 20} {height + 36}">'
    for position, count in enumerate(counts):
        tall = height * count / max(counts.max(), 1)
        yield (f'<rect class="bar" x="{10 + 20 * position}" y="{14 + height - tall:.1f}" width="18" height="{tall:.1f}"><title>{number(edges[position])} to '
               f"{number(edges[position + 1])}: {count}</title></rect>")
    yield (f'<text class="text" x="10" y="{height + 30}">{number(edges[0])}</text><text class="text" x="{width + 10}" y="{height + 30}" text-anchor="end">'
           f'{number(edges[-1])}</text><text class="text" x="10" y="11">{counts.max()}</text></svg>\n')
    yield from folded("numbers", table(("from", "to", "samples"), [(number(low), number(high), count) for low, high, count in zip(edges, edges[1:], counts)], name))


def lengths(contents):
    for position, (name, stored) in enumerate(contents.modalities.items()):
        present = stored.lengths[stored.lengths > 0]
        if len(present):
            yield f"<h3>Lengths of {text(name)}{' in seconds' if stored.sample_rate else ''}</h3>\n"
            yield from bars(*np.histogram(present / (stored.sample_rate or 1), bins=BINS), f"lengths-{position}")


def labels(contents, name, values, classes):
    if values is None:
        yield "<p>No labels.</p>\n"
        return
    masks = split_masks(contents)
    if classes:
        shown = values if values.ndim == 2 else np.eye(len(classes), dtype=np.int64)[values]
        rows = [(label, *(shown[mask, column].sum() for mask in masks.values())) for column, label in enumerate(classes)]
        yield from table(("class", *masks), rows, name)
        return
    summaries = [("samples", len), ("mean", np.mean), ("deviation", np.std), ("min", np.min), ("median", np.median), ("max", np.max)]
    wide = values.astype(np.float64)
    yield from table(("", *masks), [(what, *(number(of(wide[mask])) for mask in masks.values())) for what, of in summaries], name)
    edges = np.histogram_bin_edges(wide, bins=21)
    for split, mask in masks.items():
        yield f"<h3>{text(split)}</h3>\n"
        yield from bars(np.histogram(wide[mask], bins=edges)[0], edges, f"{name}-{list(masks).index(split)}")


def groups(contents):
    if not contents.groups or not any(contents.groups):
        yield "<p>No groups.</p>\n"
        return
    members = defaultdict(list)
    for row, group in enumerate(contents.groups):
        members[group].append(row)
    masks = {name: mask for name, mask in split_masks(contents).items() if name != "all"}
    classes = contents.class_names if contents.labels is not None else []
    head = ["group", "samples", *masks, *(classes or (["mean label"] if contents.labels is not None else []))]
    rows = []
    for group in sorted(members)[:GROUPS]:
        chosen = np.array(members[group])
        row = [group or "(none)", len(chosen), *(mask[chosen].sum() for mask in masks.values())]
        if classes:
            part = contents.labels[chosen]
            row += list(part.sum(axis=0) if part.ndim == 2 else np.bincount(part, minlength=len(classes)))
        elif contents.labels is not None:
            row.append(number(contents.labels[chosen].astype(np.float64).mean()))
        rows.append(row)
    more = f", the first {GROUPS} of them" if len(members) > GROUPS else ""
    yield from folded(f"{len(members)} groups{more}", table(head, rows, "groups"))


def ranges(contents, position, stored, facts):
    yield f"<h3>{text(stored.name)}</h3>\n"
    if not facts.count.any():
        yield "<p>No values.</p>\n"
        return
    if stored.dim > 1:
        yield from range_lines(facts)
    rows = [(column, *map(number, (facts.low[column], facts.high[column], facts.mean[column], facts.deviation[column], facts.furthest[column])),
             contents.ids[facts.low_row[column]], contents.ids[facts.high_row[column]]) for column in np.flatnonzero(facts.count)]
    head = ("feature", "lowest", "highest", "mean", "deviation", "furthest, in deviations", "lowest in", "highest in")
    yield from folded(f"{len(rows)} features", table(head, rows, f"ranges-{position}"))


def range_lines(facts):
    """A line from the lowest to the highest value of each feature, and a darker one over mean plus and minus the deviation, on a scale that
    is linear around 0 and logarithmic further out."""
    unit = float(np.median(facts.deviation[facts.count > 0])) or 1
    low, high = (np.arcsinh(values / unit) for values in (facts.low, facts.high))
    bottom, top = (np.arcsinh((facts.mean + sign * facts.deviation) / unit) for sign in (-1, 1))
    least, most = np.min(low[facts.count > 0]), np.max(high[facts.count > 0])
    step, height = max(1, min(12, 900 // len(low))), 160

    def place(value):
        return 10 + (height - 20) * (most - value) / ((most - least) or 1)

    yield f'<svg role="img" width="{step * len(low) + 20}" height="{height}" viewBox="0 0 {step * len(low) + 20} {height}">'
    for column in np.flatnonzero(facts.count):
        x = 10 + step * (column + 0.5)
        for kind, one, two in (("range", low, high), ("band", bottom, top)):
            yield (f'<line class="{kind}" stroke-width="{max(1, step - 2)}" x1="{x}" x2="{x}" y1="{place(one[column]):.1f}" y2="{place(two[column]):.1f}">'
                   f"<title>feature {column}: {number(facts.low[column])} to {number(facts.high[column])}</title></line>")
    yield (f'<text class="text" x="2" y="11">{number(float(np.sinh(most)) * unit)}</text><text class="text" x="2" y="{height - 2}">'
           f"{number(float(np.sinh(least)) * unit)}</text></svg>\n")


def main(arguments=None):
    parser = tool_parser("inspect_html", __doc__)
    parser.add_argument("input", metavar="FILE.h5")
    parser.add_argument("--html", required=True, dest="output", metavar="OUT.html", help="the page to write; one that this command wrote is replaced")
    return run_tool(run, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
