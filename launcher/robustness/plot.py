"""Draws every metric against the rate of each perturbation (Matplotlib): one panel per kind and metric, one line per modality, with a band of one
standard deviation.

Reads {"metrics": [name, ...], "curves": [{"kind": "drop" or "noise", "modality": name, "rates": [...], "mean": {metric: [...]}, "std": {metric: [...]}},
...]} from standard input; null where a number is not known. Writes SVG to standard output, the same bytes for the same numbers.
"""

import io
import json
import sys

import matplotlib

matplotlib.use("Agg")
matplotlib.rcdefaults()  # a user's own settings would change the file
matplotlib.rcParams["svg.hashsalt"] = "muster"

from matplotlib import pyplot  # noqa: E402

COLUMNS = 4
AXES = {"drop": "share of samples without it", "noise": "noise, in standard deviations"}


def numbers(values):
    return [float("nan") if value is None else value for value in values]


request = json.load(sys.stdin)
metrics, curves = request["metrics"], request["curves"]
kinds = [kind for kind in AXES if any(curve["kind"] == kind for curve in curves)]
columns = min(COLUMNS, len(metrics))
rows = -(-len(metrics) // columns)
figure, panels = pyplot.subplots(len(kinds) * rows, columns, squeeze=False, figsize=(3.2 * columns, 2.6 * len(kinds) * rows), layout="constrained")
for row in panels:
    for panel in row:
        panel.set_visible(False)
for block, kind in enumerate(kinds):
    for place, metric in enumerate(metrics):
        panel = panels[block * rows + place // columns][place % columns]
        panel.set_visible(True)
        panel.set_title(metric, fontsize=9)
        panel.set_xlabel(AXES[kind], fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        for curve in curves:
            if curve["kind"] != kind:
                continue
            mean, std = numbers(curve["mean"][metric]), [0 if value is None else value for value in curve["std"][metric]]
            line, = panel.plot(curve["rates"], mean, marker=".", linewidth=1, label=f"{kind} {curve['modality']}".replace("$", r"\$"))
            panel.fill_between(curve["rates"], [m - s for m, s in zip(mean, std)], [m + s for m, s in zip(mean, std)], color=line.get_color(), alpha=0.2, linewidth=0)
        if place == 0:
            panel.legend(fontsize=7)
picture = io.StringIO()
figure.savefig(picture, format="svg", metadata={"Date": None})
sys.stdout.write(picture.getvalue())
