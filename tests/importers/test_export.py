"""What export writes, read by NumPy, pickle and soundfile, and by the importers again."""
import csv
import os
import pickle
import pickletools
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from written_containers import done, equal, folder, read, refused, sentiment, verify, write  # noqa: F401

import arrays
import export
import merge
import mmsa
import subset


def imported_again(folder):
    """Runs the command in import.sh."""
    command = (folder / "import.sh").read_text(encoding="utf-8").splitlines()[1]
    words = shlex.split(command.replace('"$1"', "again.h5"))
    assert words[:4] == ["muster", "data", "import", "arrays"]
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert arrays.main(words[4:]) == 0
        return read("again.h5")
    finally:
        os.chdir(here)


def test_export_npy_and_arrays_again(sentiment, capsys, folder):
    done(capsys, subset, "base.h5", "--modalities", "audio,vision", "-o", "same.h5")
    done(capsys, export, "same.h5", "--format", "npy", "-o", "out")
    np.testing.assert_array_equal(np.load("out/audio/ünique id.npy"), read("base.h5")["frames"]["audio"][-1])
    assert not Path("out/vision/lone.npy").exists()
    expected, found = read("same.h5"), imported_again(folder / "out")
    assert found["targets"]["mood"] == ([[2, 0, 1][value] for value in expected["targets"]["mood"][0]], ["fine", "glad", "sad"])  # sorted
    for one in (expected, found):
        one["targets"].pop("mood")
    assert equal(expected, found) and verify("out/again.h5")


def test_export_npy_of_raw_data(folder, capsys):
    generator = np.random.default_rng(2)
    ids = ["s/1", "s/2", "t"]
    write("raw.h5", ids, {"audio": [generator.integers(-32768, 32768, (n, 1)).astype(np.int16) for n in (100, 0, 7)],
                          "speech": [generator.uniform(-1, 1, (n, 1)).astype(np.float32) for n in (50, 1, 9)],
                          "text": [generator.integers(0, 30000, (n, 2)).astype(np.int32) for n in (4, 1, 2)],
                          "words": [generator.integers(0, 30000, (n, 1)).astype(np.int64) for n in (3, 2, 0)],
                          "half": [generator.normal(size=(n, 3)).astype(np.float16) for n in (2, 2, 2)]},
          "classification", [0, 2, 1], ["zero", "a b", "c"], rates={"audio": 16000, "speech": 44100}, name="raw data")
    done(capsys, export, "raw.h5", "--format", "npy", "-o", "out")
    samples, rate = soundfile.read("out/audio/s/1.wav", dtype="int16")
    assert rate == 16000 and np.array_equal(samples, read("raw.h5")["frames"]["audio"][0][:, 0])
    found, expected = imported_again(folder / "out"), read("raw.h5")
    expected["dtype"]["words"] = np.dtype(np.int32)
    assert equal(expected, found) and verify("out/again.h5")


def test_export_npy_without_labels_and_with_a_modality_that_nobody_has(folder, capsys):
    frames = [np.full((2, 3), i, dtype=np.float32) for i in range(3)]
    write("in.h5", list("abc"), {"text": frames, "audio": [np.zeros((0, 4), dtype=np.float32)] * 3}, "classification", classes=["y", "x"])
    assert 'not one sample has the modality "audio"' in done(capsys, export, "in.h5", "--format", "npy", "-o", "out")
    found, expected = imported_again(folder / "out"), read("in.h5")
    for part in (expected["frames"], expected["dtype"], expected["rate"]):
        part.pop("audio")
    assert equal(expected, found)


def test_several_labels_become_targets(folder, capsys):
    frames = [np.full((2, 3), i, dtype=np.float32) for i in range(3)]
    write("in.h5", list("abc"), {"text": frames}, "multilabel", [[1, 0], [1, 1], [0, 0]], ["joy", "label"])
    assert "an import makes a target of each" in done(capsys, export, "in.h5", "--format", "npy", "-o", "out")
    found = imported_again(folder / "out")
    assert found["targets"] == {"joy": ([1, 1, 0], []), "label_": ([0, 1, 0], [])} and found["label"] is None
    assert "several labels per sample" in "".join(refused(capsys, 65, export, "in.h5", "--format", "mmsa", "-o", "out.pkl"))


def test_ids_lead_nowhere(folder, capsys):
    ids = ["../up", "/root", "a/../../b", "..", "a", "a//b", "./a", " a ", "x" * 300, "new\nline", "a.npy/b", "-o", "renamed____up", "q;rm -rf $HOME"]
    write("odd.h5", ids, {"..": [np.full((1, 2), i, dtype=np.float32) for i in range(len(ids))],
                          "manifest.csv": [np.full((2, 1), i, dtype=np.float32) for i in range(len(ids))]}, labels=np.arange(len(ids)))
    inside = folder / "in"
    inside.mkdir()
    assert "ids cannot be names of files" in done(capsys, export, "odd.h5", "--format", "npy", "-o", "in/out")
    assert sorted(path.name for path in folder.iterdir()) == ["in", "odd.h5"] and [path.name for path in inside.iterdir()] == ["out"]
    with open("in/out/manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["original_id"] for row in rows] == ids and len({row["id"] for row in rows}) == len(ids)
    assert [row["id"] for row in rows if row["id"] == row["original_id"]] == ["a.npy/b", "renamed____up", "q;rm -rf $HOME"]
    found = imported_again(inside / "out")
    assert [int(frames[0, 0]) for frames in found["frames"][".."]] == list(range(len(ids))) and found["label"] == list(range(len(ids)))


def test_export_leaves_nothing_unfinished_and_overwrites_nothing(sentiment, capsys, monkeypatch):
    Path("there").mkdir()
    Path("there/file").touch()
    for output in ("there", "base.h5", "there/file"):
        for form in ("npy", "mmsa"):
            assert "exists and is not overwritten" in refused(capsys, 2, export, "base.h5", "--format", form, "-o", output)[0]
    with monkeypatch.context() as broken:
        broken.setattr(export, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        refused(capsys, 74, export, "base.h5", "--format", "npy", "-o", "out")
        broken.setattr(export.Padded, "blocks", lambda _: (_ for _ in ()).throw(OSError("no space")))
        refused(capsys, 74, export, "base.h5", "--format", "mmsa", "-o", "out.pkl")
    Path("empty").mkdir()
    done(capsys, export, "base.h5", "--format", "npy", "-o", "empty")


@pytest.mark.parametrize("tokens", [False, True])
def test_export_mmsa(sentiment, capsys, tokens):
    if tokens:
        generator = np.random.default_rng(4)
        write("tokens.h5", sentiment, {"text_bert": [generator.integers(0, 30000, (n, 2)) for n in generator.integers(1, 9, 22)]})
        done(capsys, merge, "base.h5", "tokens.h5", "-o", "base.h5")
    summary = done(capsys, export, "base.h5", "--format", "mmsa", "--frames", "audio=12", "-o", "out.pkl")
    assert "2 samples lack vision" in summary and "1 samples without a split are left out" in summary
    with open("out.pkl", "rb") as file:
        data = pickle.load(file)
    base = read("base.h5")
    assert list(data) == ["train", "valid", "test"]
    for name, part in data.items():
        rows = [row for row, other in enumerate(base["split"]) if other == name]
        assert list(part["id"]) == [base["id"][row] for row in rows] and len(part["raw_text"]) == len(rows)
        for key, longest in (("text", max(map(len, base["frames"]["text"]))), ("audio", 12), ("vision", max(map(len, base["frames"]["vision"])))):
            expected = np.zeros((len(rows), longest, base["frames"][key][0].shape[1]), dtype=np.float32)
            for place, row in enumerate(rows):
                frames = base["frames"][key][row]
                expected[place, :len(frames)] = frames
            assert part[key].dtype == np.float32 and part[key].flags.writeable
            np.testing.assert_array_equal(part[key], expected)
        for key in ("audio", "vision"):
            assert part[f"{key}_lengths"] == [len(base["frames"][key][row]) for row in rows]
        labels = np.array([base["label"][row] for row in rows], dtype=np.float32)
        np.testing.assert_array_equal(part["regression_labels"], labels)
        np.testing.assert_array_equal(part["classification_labels"], np.where(labels > 0, 2, np.where(labels < 0, 0, 1)))
        assert part["annotations"] == [["Negative", "Neutral", "Positive"][int(value)] for value in part["classification_labels"]]
        if tokens:
            assert part["text_bert"].shape == (len(rows), 3, max(map(len, base["frames"]["text_bert"])))
            for place, row in enumerate(rows):
                frames, length = base["frames"]["text_bert"][row], len(base["frames"]["text_bert"][row])
                np.testing.assert_array_equal(part["text_bert"][place, :, :length], [frames[:, 0], np.ones(length), frames[:, 1]])
                assert not part["text_bert"][place, :, length:].any()
    names = {text for opcode, text, _ in pickletools.genops(Path("out.pkl").read_bytes()) if opcode.name == "SHORT_BINUNICODE"}
    assert "numpy.core.multiarray" in names and not any(name.startswith("numpy._") for name in names), "NumPy 1 reads it as well"
    assert Path("out.pkl").read_bytes()[:2] == b"\x80\x04"


@pytest.mark.parametrize("aligned", [False, True])
def test_mmsa_and_back(folder, capsys, aligned):
    """A feature file of MMSA, imported and exported, holds the same arrays."""
    generator, data, start = np.random.default_rng(6), {}, 0
    for name, count in (("train", 7), ("valid", 3), ("test", 4)):
        words = generator.integers(3, 10, count)
        lengths = {"text": words, "audio": words if aligned else generator.integers(3, 20, count), "vision": words if aligned else generator.integers(3, 30, count)}
        full = {"text": 12, "audio": 12 if aligned else 25, "vision": 12 if aligned else 40}
        part = {"raw_text": [""] * count, "id": [f"video{start + i}$_$1" for i in range(count)]}
        for key, dim in (("text", 6), ("audio", 4), ("vision", 3)):
            part[key] = np.zeros((count, full[key], dim), dtype=np.float32)
            for row, length in enumerate(lengths[key]):
                part[key][row, :length] = generator.normal(size=(length, dim))
        part["text_bert"] = np.zeros((count, 3, 12), dtype=np.float32)
        for row, length in enumerate(words):
            part["text_bert"][row, :2, :length] = [generator.integers(1, 30000, length), np.ones(length)]
        part["regression_labels"] = np.float32(np.linspace(-1, 1, count))
        part["classification_labels"] = np.float32(np.arange(count) % 3)
        part["annotations"] = [("Negative", "Neutral", "Positive")[i % 3] for i in range(count)]
        for letter in "TAV":
            part[f"regression_labels_{letter}"] = np.float32(generator.uniform(-1, 1, count))
        if not aligned:
            part.update({f"{key}_lengths": lengths[key].tolist() for key in ("audio", "vision")})
        data[name], start = part, start + count
    Path("in.pkl").write_bytes(pickle.dumps(data, protocol=4))
    assert mmsa.main(["in.pkl", "-o", "features.h5"]) == mmsa.main(["in.pkl", "--text", "tokens", "-o", "tokens.h5"]) == 0
    done(capsys, merge, "features.h5", "tokens.h5", "--take", "text_bert=text", "-o", "both.h5")
    frames = [f"{name}={full[name]}" for name in full]
    done(capsys, export, "both.h5", "--format", "mmsa", *(word for one in frames for word in ("--frames", one)), "-o", "out.pkl")
    found = pickle.loads(Path("out.pkl").read_bytes())
    for name, part in data.items():
        assert set(found[name]) - {"audio_lengths", "vision_lengths"} == set(part) - {"audio_lengths", "vision_lengths"}
        for key, values in part.items():
            assert np.array_equal(found[name][key], values) and type(found[name][key]) is (np.ndarray if key == "raw_text" else type(values)), (name, key)


def test_export_mmsa_refuses_what_it_cannot_hold(sentiment, capsys):
    one = [np.ones((3, 2), dtype=np.float32)] * 2
    write("bad.h5", ["a", "b"], {"audio": [np.zeros((5, 1), dtype=np.float32)] * 2, "text": one}, rates={"audio": 16000})
    problems = refused(capsys, 65, export, "bad.h5", "--format", "mmsa", "-o", "out.pkl")
    for expected in ("is a waveform", "has no splits", "has no labels"):
        assert any(expected in line for line in problems), problems
    problems = refused(capsys, 65, export, "base.h5", "--format", "mmsa", "--frames", "audio=2", "-o", "out.pkl")
    assert "--frames audio=2: the sample" in problems[0]
    problems = refused(capsys, 65, export, "base.h5", "--format", "mmsa", "--frames", "text_bert=9", "--frames", "face=9", "-o", "out.pkl")
    assert "there is no face or text_bert among what is written: text, audio, vision" in problems[0]
    assert "there is no modality" in refused(capsys, 65, export, "base.h5", "--format", "mmsa", "--take", "text=nothing", "-o", "out.pkl")[0]
    refused(capsys, 2, export, "base.h5", "--format", "npy", "--frames", "audio=2", "-o", "out")
