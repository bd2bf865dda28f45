"""The page of `muster data inspect --html`: its numbers are NumPy's, what is planted is found, and nothing in a file becomes HTML."""
import html.parser
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import inspect_html  # noqa: E402
import scan_container  # noqa: E402
from container import write_container  # noqa: E402


class Page(html.parser.HTMLParser):
    """tables: {id: rows of cells}; items: texts of the list of what is suspicious; tags, and attributes that could load or run something."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.items, self.tags, self.active, self.open, self.cell = {}, [], set(), [], [], None
        self.feed(Path(path).read_text(encoding="utf-8"))
        self.close()
        assert not self.open, "a tag is not closed"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.active += [value for name, value in attributes.items() if name in ("src", "href") or name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attributes.get("id", ""), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data
        elif "li" in self.open:
            self.items[-1] += data


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(capsys, path="in.h5", output="out.html"):
    result = inspect_html.main([path, "--html", output])
    printed = capsys.readouterr()
    assert result == 0, printed.err
    return Page(output), printed.out


def good(**changes):
    """40 samples of 8 videos, nothing suspicious about them."""
    generator = np.random.default_rng(5)
    count = 40
    data = dict(path="in.h5", name="film", task="regression", ids=[f"v{i // 5}$_${i % 5}" for i in range(count)],
                labels=np.round(generator.uniform(-2.9, 2.9, count), 1), groups=[f"v{i // 5}" for i in range(count)],
                splits=["train"] * 25 + ["valid"] * 5 + ["test"] * 10, targets={"mood": (np.arange(count) % 2, ["low", "high"])},
                modalities={"audio": [generator.normal(size=(n, 4)) * [1, 100, 0.01, 1] + [0, 1000, 0, 1] for n in generator.integers(20, 60, count)],
                            "speech": [generator.uniform(-0.9, 0.9, (n, 1)) for n in generator.integers(800, 1600, count)],
                            "text": [generator.integers(1, 30000, (n, 1)) for n in generator.integers(6, 20, count)]},
                dtype={"text": "int32"}, sample_rates={"speech": 8000})
    data.update(changes)
    write_container(**data)
    return data


def close(cell, value):
    return cell == f"{value:.6g}" or np.isclose(float(cell), value, rtol=2e-5, atol=1e-12)


def test_numbers_are_numpys(capsys, monkeypatch):
    monkeypatch.setattr(scan_container, "BLOCK", 500)  # so that samples lie in several blocks, and blocks in one sample
    modalities = good()["modalities"]
    modalities["audio"][7] = modalities["audio"][7][:0]
    data = good(modalities=modalities)
    page, printed = inspect(capsys)
    assert "nothing suspicious" in printed and page.items == []
    for position, (name, frames) in enumerate(sorted(data["modalities"].items())):
        lengths = np.array([len(part) for part in frames])
        row = page.tables["modalities"][1 + position]
        present = lengths[lengths > 0]
        assert row[0] == name and row[4] == str(lengths.sum())
        assert [float(cell) for cell in row[5:9]] == [float(f"{v:.4g}") for v in (present.min(), np.median(present), present.mean(), present.max())]
        assert row[9:] == [str((lengths == 0).sum()), str((lengths[:25] == 0).sum()), "0", "0"]
        counts, edges = np.histogram(present / (8000 if name == "speech" else 1), bins=inspect_html.BINS)
        assert [int(cells[2]) for cells in page.tables[f"lengths-{position}"][1:]] == counts.tolist()
        assert all(close(cells[0], edge) for cells, edge in zip(page.tables[f"lengths-{position}"][1:], edges))
        values = np.concatenate(frames).astype(np.float32 if name != "text" else np.int32).astype(np.float64)
        for column, cells in enumerate(page.tables[f"ranges-{position}"][1:]):
            part = values[:, column]
            wanted = [part.min(), part.max(), part.mean(), part.std(), np.abs(part - part.mean()).max() / part.std()]
            assert all(close(cell, value) for cell, value in zip(cells[1:6], wanted)), (cells, wanted)
            ends = np.cumsum(lengths)
            assert cells[6:] == [data["ids"][np.searchsorted(ends, place, "right")] for place in (part.argmin(), part.argmax())]
    labels, splits = np.float32(data["labels"]).astype(np.float64), np.array(data["splits"])
    table = {cells[0]: cells[1:] for cells in page.tables["label"]}
    assert table[""] == ["all", "train", "valid", "test"] and table["samples"] == ["40", "25", "5", "10"]
    for what, of in (("mean", np.mean), ("deviation", np.std), ("min", np.min), ("median", np.median), ("max", np.max)):
        assert all(close(cell, of(labels[mask])) for cell, mask in zip(table[what], [splits != "", *(splits == s for s in ("train", "valid", "test"))]))
    assert sum(int(cells[2]) for cells in page.tables["label-1"][1:]) == 25
    assert page.tables["target-0"][1:] == [["low", "20", "13", "2", "5"], ["high", "20", "12", "3", "5"]]
    assert page.tables["groups"][1][:5] == ["v0", "5", "5", "0", "0"] and close(page.tables["groups"][1][5], labels[:5].mean())
    assert not page.active and not page.tags & {"script", "link", "img", "iframe", "object"} and "http" not in re.sub("http-equiv", "", Path("out.html").read_text())


def test_planted_problems_are_found(capsys):
    data = good()
    audio, speech, text = (data["modalities"][name] for name in ("audio", "speech", "text"))
    for frames in audio:
        frames[:, 3] = 0
    audio[3][5, 1] = 5e6
    audio[4][:] = 0
    audio[6][2:4] = 0
    audio[8] = audio[8][:1]
    speech[9][7] = 1.5
    for one, other in ((10, 38), (11, 12)):
        for frames in data["modalities"].values():
            frames[other] = frames[one].copy()
    text[14] = text[15].copy()
    labels, groups, splits = data["labels"].copy(), list(data["groups"]), list(data["splits"])
    labels[12] = labels[11]
    labels[38] = labels[10] + 0.1
    labels[20] = 7
    groups[39] = "v0"
    good(name="my mosei", labels=labels, groups=groups, splits=splits, modalities={"audio": audio, "speech": speech, "text": text})
    page, printed = inspect(capsys)
    ids, expected = data["ids"], [
        ("audio: 1 samples are all zero", [4]), ("audio: 1 of 4 features are constant", None), ("audio: 1 of 4 features have values more than 20", [3]),
        (f"audio: 2 of {sum(map(len, audio)) - len(audio[4])} frames are all zero, in 1 samples, besides the samples that are all zero", [6]),
        ("audio: 1 samples are nearly empty", [8]), ("speech: 1 waveforms leave [-1, 1]", [9]),
        ("4 samples have the same content in all modalities as another one", [10, 38, 11, 12]),
        ("2 of these 4 are in different splits", [10, 38]), ("2 of these 4 have different labels", [10, 38]),
        ("2 samples have the same text as another one", [14, 15]), ("1 labels are not in [-3, 3]", [20]),
        ("1 groups are in more than one split: v0: train 5, test 1", None)]
    lines = printed.splitlines()[1:]
    for start, rows in expected:
        line = [line for line in lines if line.startswith(f"  {start}")]
        assert len(line) == 1, (start, printed)
        assert all(ids[row] in line[0] for row in rows or []), line
        assert any(item.startswith(start.partition(": v0")[0]) for item in page.items)
    assert len(lines) == len(expected), printed
    assert "12 suspicious" in printed
    assert "audio: 1 of 4 features are constant: feature 3: 0\n" in printed and "feature 1: 5e+06" in printed


def test_padding_nonfinite_and_what_no_split_has(capsys):
    data = good()
    padded = [np.concatenate([frames, np.zeros((5, 4))]) for frames in data["modalities"]["audio"]]
    front = [np.concatenate([np.zeros((5, 4)), frames]) for frames in data["modalities"]["audio"]]
    tokens = [np.concatenate([frames, np.zeros((3, 1), dtype=np.int64)]) for frames in data["modalities"]["text"]]
    only_test = [frames if row >= 30 else frames[:0] for row, frames in enumerate(data["modalities"]["audio"])]
    good(modalities={"audio": padded, "vision": front, "text": tokens, "other": only_test}, sample_rates={})
    with h5py.File("in.h5", "a") as file:
        file["modalities/audio/values"][1, 2] = -np.inf
        file["modalities/audio/values"][70, 0] = np.nan
    printed = inspect(capsys)[1]
    for expected in ("audio: 2 values are NaN or infinite", "audio: 40 of 40 samples end with several frames that are all zero",
                     "vision: 40 of 40 samples begin with", "text: 40 samples end with several tokens of the id 0", "other: no sample of train and valid has it"):
        assert f"  {expected}" in printed, (expected, printed)
    with h5py.File("in.h5") as file:
        values = file["modalities/audio/values"][:].astype(np.float64)
    row = Page("out.html").tables["ranges-0"][3]
    finite = values[np.isfinite(values[:, 2]), 2]
    assert close(row[1], finite.min()) and close(row[3], finite.mean()) and close(row[4], finite.std())


@pytest.mark.parametrize("name, labels, limit", [("sims_v2", [0.2, 0.4, -1, 1.2], 1), ("x", [0.2] * 30 + [-0.6] * 9 + [2], 1), ("x", [0.2] * 30 + [-2.2] * 9 + [4], 3),
                                                 ("x", np.random.default_rng(0).normal(size=500) * 1.2, None), ("x", [1, 2, 3, 4, 5, 5, 4, 3], None)])
def test_ranges_of_labels(capsys, name, labels, limit):
    one = np.random.default_rng(1)
    write_container("in.h5", name, "regression", [f"s{i}" for i in range(len(labels))], {"text": [one.normal(size=(2, 3)) for _ in labels]}, labels)
    printed = inspect(capsys)[1]
    assert (f"labels are not in [-{limit}, {limit}]" in printed) if limit else "labels are not in" not in printed


def test_classification_and_multilabel(capsys):
    one = np.random.default_rng(1)
    modalities = {"text": [one.normal(size=(2, 3)) for _ in range(6)]}
    write_container("in.h5", "x", "classification", list("abcdef"), modalities, [0, 1, 0, 1, 3, 3], ["n", "s", "none", "late"], splits=["train"] * 4 + ["test"] * 2)
    page, printed = inspect(capsys)
    assert page.tables["label"] == [["class", "all", "train", "test"], ["n", "2", "2", "0"], ["s", "2", "2", "0"], ["none", "0", "0", "0"], ["late", "2", "0", "2"]]
    assert "1 of 4 classes have no sample: none" in printed and "1 classes are not in train, only elsewhere: late" in printed
    write_container("in.h5", "x", "multilabel", list("abcdef"), modalities, [[0, 1]] * 4 + [[1, 1]] * 2, ["joy", "fear"], groups=list("gggghh"))
    page, printed = inspect(capsys)
    assert page.tables["label"][1:] == [["joy", "2"], ["fear", "6"]] and page.tables["groups"][2] == ["h", "2", "2", "2"]


def test_nothing_in_a_file_becomes_html(capsys):
    bad = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "'&amp;<b>", "a\x1b[31m\u202e"]
    frames = [np.zeros((3, 2))] * 4
    write_container("in.h5", bad[0], "classification", bad, {'<u a="b">': frames, "x<i>": [np.ones((1, 1))] * 4}, [0, 1, 0, 1], ["<s>", "</table>"],
                    groups=['<a href="x">'] * 4, splits=["train", "test"] * 2, targets={"<h1>": ([0.5] * 4)})
    page, printed = inspect(capsys)
    assert not page.active and not page.tags & {"script", "img", "b", "u", "i", "s", "a", "h4"} and "\x1b" not in printed
    assert page.tables["modalities"][1][0] == '<u a="b">' and page.tables["label"][1][0] == "<s>" and page.tables["groups"][1][0] == '<a href="x">'


def test_only_an_earlier_page_is_replaced(capsys, folder):
    good()
    inspect(capsys)
    first = Path("out.html").read_bytes()
    inspect(capsys)
    assert Path("out.html").read_bytes() == first and sorted(path.name for path in folder.iterdir()) == ["in.h5", "out.html"]
    Path("mine.html").write_text("<html>my own</html>")
    Path("link.html").symlink_to("out.html")
    for output in ("mine.html", "in.h5", "link.html", "."):
        assert inspect_html.main(["in.h5", "--html", output]) == 2, output
    assert Path("mine.html").read_text() == "<html>my own</html>"
    capsys.readouterr()
    assert inspect_html.main(["mine.html", "--html", "new.html"]) == 65 and not Path("new.html").exists()


def test_as_the_program_runs_it():
    good()
    run = subprocess.run([sys.executable, "-B", ROOT / "importers/inspect_html.py", "in.h5", "--html", "out.html"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("out.html: 40 samples, regression; nothing suspicious")
