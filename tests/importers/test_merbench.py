"""The importer of MERBench's labels and features: the container holds the arrays that were saved, under the names of their classes."""
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import merbench  # noqa: E402

NAMES = [f"Ses0{session}{gender}_impro01_F00{i}" for session in (1, 2) for gender in "FM" for i in range(3)]
EMO = [0, 1, 2, 3, 2, 1, 0, 0, 3, 3, 2, 1]
FOUR = ["happy", "sad", "neutral", "angry"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the importer -> (exit code, standard output, problems)."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(labels, *arguments, output="out.h5"):
        code = merbench.main([str(labels), *arguments, "-o", output])
        out, errors = capsys.readouterr()
        return code, out, errors
    yield call
    signal.signal(signal.SIGTERM, before)


def save_labels(name="label.npz", **corpora):
    np.savez_compressed(name, **corpora)


def save_features(folder, names=NAMES, dim=4, seed=1):
    """One array [frames, dim] per name -> {name: array}."""
    chance, frames = np.random.default_rng(seed), {}
    Path(folder).mkdir()
    for name in names:
        frames[name] = chance.normal(size=(chance.integers(1, 9), dim)).astype(np.float32)
        np.save(f"{folder}/{name}.npy", frames[name])
    return frames


def check(modality, names, frames):
    with h5py.File("out.h5") as file:
        assert list(file["samples/id"].asstr()) == names
        values, offsets = file[f"modalities/{modality}/values"][:], file[f"modalities/{modality}/offsets"][:]
        for row, name in enumerate(names):
            np.testing.assert_array_equal(values[offsets[row]:offsets[row + 1]], frames[name])


def whole(emo=EMO, names=NAMES, val=-10):
    return {"whole_corpus": {name: {"emo": number, "val": val} for name, number in zip(names, emo)}}


def test_iemocap(run, tmp_path):
    save_labels(**whole())
    audio, video = save_features("wavlm-FRA"), save_features("clip-FRA", dim=3, seed=2)
    utterances = {name: frames.mean(axis=0, keepdims=True) for name, frames in audio.items()}
    Path("wavlm-UTT").mkdir()
    for name, vector in utterances.items():
        np.save(f"wavlm-UTT/{name}.npy", vector[0])
    code, out, errors = run("label.npz", "--modality", "audio=wavlm-FRA", "--modality", "vision=clip-FRA")
    assert code == 0, errors
    assert "classes: happy 3, sad 3, neutral 3, angry 3" in out and '"whole_corpus" is of no split: 12 samples' in out
    assert "those of IEMOCAPFour" in out and "2 in the file is neutral" in out and "groups: Ses01 6, Ses02 6" in out
    check("audio", NAMES, audio)
    check("vision", NAMES, video)
    with h5py.File("out.h5") as file:
        assert list(file.attrs["class_names"]) == FOUR and file["samples/label"][:].tolist() == EMO
        assert file.attrs["name"] == tmp_path.name  # of the folder: the files of labels are called alike
        assert list(file["samples/group"].asstr()) == [name[:5] for name in NAMES] and "split" not in file["samples"] and "targets" not in file["samples"]
        files = ["label.npz", *(f"wavlm-FRA/{name}.npy" for name in NAMES), *(f"clip-FRA/{name}.npy" for name in NAMES)]
        lines = subprocess.run(["sha256sum", *files], capture_output=True, text=True, cwd=tmp_path).stdout
        lines = lines.replace("wavlm-FRA/", "audio/").replace("clip-FRA/", "vision/").splitlines(keepends=True)
        listing = "".join(sorted(lines, key=lambda line: line.split("  ")[1]))
        assert file.attrs["sources_sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    first = Path("out.h5").read_bytes()
    assert run("label.npz", "--modality", "audio=wavlm-FRA", "--modality", "vision=clip-FRA")[0] == 0 and Path("out.h5").read_bytes() == first
    assert run("label.npz", "--modality", "audio=wavlm-UTT")[0] == 0
    check("audio", NAMES, utterances)


def test_classes_are_mapped_by_name(run):
    save_labels(**whole())
    save_features("audio")
    assert run("label.npz", "--modality", "audio=audio", "--corpus", "IEMOCAPFour", "--class-names", "angry,happy,neutral,sad")[0] == 0
    with h5py.File("out.h5") as file:
        assert list(file.attrs["class_names"]) == ["angry", "happy", "neutral", "sad"]
        assert [file.attrs["class_names"][label] for label in file["samples/label"][:]] == [FOUR[number] for number in EMO]
    save_labels("names.npz", **whole([np.str_(FOUR[number]) for number in EMO]))
    assert run("names.npz", "--modality", "audio=audio")[0] == 0
    with h5py.File("out.h5") as file:
        assert list(file.attrs["class_names"]) == sorted(FOUR) and [sorted(FOUR)[label] for label in file["samples/label"][:]] == [FOUR[n] for n in EMO]
    save_labels("floats.npz", **whole([float(number) if i % 2 else np.int64(number) for i, number in enumerate(EMO)]))
    assert run("floats.npz", "--modality", "audio=audio")[0] == 0
    with h5py.File("out.h5") as file:
        assert file["samples/label"][:].tolist() == EMO
    names = [f"clip_{i}" for i in range(12)]
    save_labels("other.npz", **whole(names=names))
    save_features("other", names)
    code, _, errors = run("other.npz", "--modality", "audio=other")
    assert code == 65 and "whose names nobody says: give --class-names" in errors
    assert run("other.npz", "--modality", "audio=other", "--class-names", "w,x,y,z")[0] == 0
    with h5py.File("out.h5") as file:
        assert list(file.attrs["class_names"]) == ["w", "x", "y", "z"] and "group" not in file["samples"]
    for arguments, expected in ((("--corpus", "IEMOCAPFour", "--class-names", "a,b,c,d"), "the classes of IEMOCAPFour are happy"),
                                (("--class-names", "x,y"), '"emo" is up to 3, but there are 2 classes')):
        code, _, errors = run("other.npz", "--modality", "audio=other", *arguments)
        assert code == 65 and expected in errors
    assert run("other.npz", "--modality", "audio=other", "--class-names", "w,x,y,z", "--group-pattern", r"_(\d)")[0] == 0
    with h5py.File("out.h5") as file:
        assert file["samples/group"].asstr()[11] == "1"


def test_sentiment_and_splits(run):
    names = [f"v{i}" for i in range(9)]
    values = np.linspace(-3, 3, 9)
    parts = {"train_corpus": names[:4], "val_corpus": names[4:6], "test_corpus": names[6:]}
    save_labels(**{key: {name: {"emo": 0, "val": values[names.index(name)]} for name in part} for key, part in parts.items()})
    frames = save_features("audio", names)
    code, out, errors = run("label.npz", "--modality", "audio=audio")
    assert code == 0 and '"val_corpus" is valid: 2 samples' in out, errors
    check("audio", names, frames)
    with h5py.File("out.h5") as file:
        assert file.attrs["task"] == "regression" and file["samples/label"][:].tolist() == values.astype(np.float32).tolist()
        assert list(file["samples/split"].asstr()) == ["train"] * 4 + ["valid"] * 2 + ["test"] * 3


def test_several_test_sets_and_missing_values(run):
    names, emotions = [f"sample_{i}" for i in range(8)], ["happy", "worried", "sad", "angry"] * 2
    label = {name: {"emo": emo, "val": value} for name, emo, value in zip(names, emotions, [1.0, -2, "", 0.5, -10, np.float32(3), 1, 2])}
    keys = ("train_corpus", "test1_corpus", "test2_corpus", "test3_corpus")
    save_labels(**{key: {name: label[name] for name in names[2 * i:2 * i + 2]} for i, key in enumerate(keys)})
    save_features("audio", names)
    code, out, errors = run("label.npz", "--modality", "audio=audio", "--corpus", "MER2023")
    assert code == 0 and '"test1_corpus" is test: 2 samples' in out and '"test2_corpus" is left out' in out, errors
    assert '"val" is no target: only 3 of 4 samples have it' in out
    with h5py.File("out.h5") as file:
        assert list(file["samples/id"].asstr()) == names[:4] and [file.attrs["class_names"][i] for i in file["samples/label"][:]] == emotions[:4]
    code, out, _ = run("label.npz", "--modality", "audio=audio", "--split", "test1_corpus=skip", "--split", "test3_corpus=test")
    with h5py.File("out.h5") as file:
        assert list(file["samples/id"].asstr()) == names[:2] + names[6:] and file["samples/targets/valence"][:].tolist() == [1, -2, 1, 2]
    code, _, errors = run("label.npz", "--modality", "audio=audio", "--task", "regression")
    assert code == 65 and '"sample_2" has no "val"; --unlabelled drop' in errors
    code, out, _ = run("label.npz", "--modality", "audio=audio", "--task", "regression", "--unlabelled", "drop")
    assert code == 0 and 'left out, since they have no "val": sample_2' in out
    with h5py.File("out.h5") as file:
        assert list(file["samples/id"].asstr()) == ["sample_0", "sample_1", "sample_3"]


def test_shapes_of_files(run):
    """[features] is a frame, a folder holds one file per frame, dimensions of 1 do not count, and [1, n] among [n, 1] was turned by a squeeze."""
    save_labels(**whole())
    frames = save_features("audio")
    np.save(f"audio/{NAMES[0]}.npy", frames[NAMES[0]][0])
    frames[NAMES[0]] = frames[NAMES[0]][:1]
    np.save(f"audio/{NAMES[1]}.npy", frames[NAMES[1]][None])
    os.remove(f"audio/{NAMES[2]}.npy")
    os.mkdir(f"audio/{NAMES[2]}")
    for number in (10, 1, 2):
        np.save(f"audio/{NAMES[2]}/frame_{number:03}.npy", np.full(4, number, dtype=np.float64))
    frames[NAMES[2]] = np.repeat([[1.0], [2], [10]], 4, axis=1)
    code, _, errors = run("label.npz", "--modality", "audio=audio")
    assert code == 0, errors
    check("audio", NAMES, frames)
    narrow = save_features("narrow", dim=1)
    for name in NAMES[:4]:
        narrow[name] = np.arange(5, dtype=np.float32)[:, None] + 1
        np.save(f"narrow/{name}.npy", narrow[name].T if name != NAMES[0] else narrow[name][:, 0])
    code, out, errors = run("label.npz", "--modality", "audio=narrow")
    assert code == 0 and "4 files [n] taken as n frames of one feature" in out, errors
    check("audio", NAMES, narrow)


def test_front_padding(run):
    save_labels(**whole())
    frames = save_features("audio")
    for name in NAMES:
        np.save(f"audio/{name}.npy", np.concatenate([np.zeros((9 - len(frames[name]), 4)), frames[name]]))
    np.save(f"audio/{NAMES[5]}.npy", np.zeros((9, 4)))
    frames[NAMES[5]] = np.zeros((0, 4))
    save_features("text")
    code, out, errors = run("label.npz", "--modality", "audio=audio", "--modality", "text=text")
    assert code == 0 and "audio: 4 features" in out and "padding in front" in out and "1 are all zero and lack it" in out and "no padding: lengths differ" in out
    check("audio", NAMES, frames)
    assert run("label.npz", "--modality", "audio=audio", "--padding", "none", "--modality", "text=text")[0] == 0
    with h5py.File("out.h5") as file:
        assert file["modalities/audio/offsets"][:3].tolist() == [0, 9, 18]


def test_missing_features(run):
    save_labels(**whole(val=0.5))
    audio, text = save_features("audio"), save_features("text")
    os.remove(f"audio/{NAMES[3]}.npy")
    np.save(f"audio/{NAMES[4]}.npy", np.zeros((0, 4)))
    os.remove(f"audio/{NAMES[5]}.npy")
    os.remove(f"text/{NAMES[5]}.npy")
    code, _, errors = run("label.npz", "--modality", "audio=audio", "--modality", "text=text")
    assert code == 65 and f"audio/{NAMES[3]}: there is no such file" in errors and f"audio/{NAMES[4]}: no frames" in errors and "4 problems" in errors, errors
    code, out, _ = run("label.npz", "--modality", "audio=audio", "--modality", "text=text", "--missing", "empty")
    assert code == 0 and f"left out, since they have not one modality: {NAMES[5]}" in out
    audio[NAMES[3]] = audio[NAMES[4]] = np.zeros((0, 4))
    names = NAMES[:5] + NAMES[6:]
    check("audio", names, audio)
    check("text", names, text)
    with h5py.File("out.h5") as file:
        assert file["samples/label"][:].tolist() == EMO[:5] + EMO[6:] and file["samples/targets/valence"][:].tolist() == [0.5] * 11


def test_wrong_data_is_refused(run, tmp_path):
    save_features("audio")

    class Executes:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)
    for corpora, expected in (
            ({"whole_corpus": Executes()}, '"posix.system"'), ({"whole_corpus": {"../../x": {"emo": 1}, "a": {"emo": 0}}}, "would lead out of the folder"),
            ({"whole_corpus": {"a": 5}}, 'has no "emo" and no "val"'), ({"whole_corpus": [1]}, "is no dictionary of names"),
            ({"odd": {"a": {"emo": 1}}}, "--split odd=train, valid"), ({"whole_corpus": {}}, "there are no samples"),
            ({**whole(), "train_corpus": {NAMES[0]: {"emo": 1}}}, 'is in "whole_corpus" too; --split train_corpus=skip'),
            (whole(["happy", 1] * 6), "is a number for some samples and a name for others"), (whole([1] * 11 + [None], val="high"), '"val" is no number'),
            (whole([0] * 12), 'has no "val"')):
        save_labels(**corpora)
        code, _, errors = run("label.npz", "--modality", "audio=audio")
        assert code == 65 and expected in errors and "internal" not in errors, errors
    save_labels(**whole())
    np.save(f"audio/{NAMES[0]}.npy", np.zeros((3, 5)))
    np.save(f"audio/{NAMES[1]}.npy", np.array([Executes()], dtype=object), allow_pickle=True)
    np.save(f"audio/{NAMES[2]}.npy", np.zeros((3, 4, 4)))
    np.save(f"audio/{NAMES[3]}.npy", np.full((3, 4), np.nan))
    code, _, errors = run("label.npz", "--modality", "audio=audio")
    for expected in (f"{NAMES[0]}.npy: 5 features, but most", f"{NAMES[1]}.npy: holds Python objects", f"{NAMES[2]}.npy: has shape [3, 4, 4]",
                     f"{NAMES[3]}: id \"{NAMES[3]}\": 12 of 12 values are not finite"):
        assert expected in errors, errors
    assert code == 65 and not Path("executed").exists() and not Path("out.h5").exists()
    assert run("label.npz", "--modality", "audio=nowhere")[0] == 65 and run("nothing.npz", "--modality", "audio=audio")[0] == 74
    Path("label.npz").write_bytes(b"PK\x03\x04 nothing")
    assert "no valid .npz file" in run("label.npz", "--modality", "audio=audio")[2]


def test_help_and_usage():
    script = [sys.executable, "-B", ROOT / "importers/merbench.py"]
    run = subprocess.run([*script, "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("usage: merbench.py ") and "examples:\n  merbench.py label_4way.npz" in run.stdout
    assert subprocess.run([*script, "x.npz", "-o", "y.h5", "--modality", "audio=x", "--split", "a=b"], capture_output=True).returncode == 2
