"""The importer of MMSA's pickles: the container holds the arrays from which the pickle was made, without their padding."""
import contextlib
import fcntl
import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import mmsa  # noqa: E402

FULL = bool(os.environ.get("MUSTER_FULL_TESTS"))
COUNTS = {"train": 6, "valid": 3, "test": 4}
NAMES = ["Negative", "Neutral", "Positive"]
WIDTHS = {"text": (9, 4), "audio": (12, 3), "vision": (15, 2)}  # frames with padding, features


def corpus(aligned=False, seed=1):
    """(what MMSA pickles, {id: {modality: frames without padding}})."""
    chance, content, true = np.random.default_rng(seed), {}, {}
    for split, count in COUNTS.items():
        ids = [f"{split}_{i // 2}$_${i % 2}" for i in range(count)]
        part = {"id": ids, "raw_text": np.array([f"text of {sample}" for sample in ids]), "text_bert": np.zeros((count, 3, 9), dtype=np.float32)}
        lengths = {name: chance.integers(2, width + 1, size=count) for name, (width, _) in WIDTHS.items()}
        for name, (width, dim) in WIDTHS.items():
            width, lengths[name] = (9, lengths["text"]) if aligned else (width, lengths[name])
            part[name] = np.full((count, width, dim), 7 if name == "text" and not aligned else 0, dtype=np.float32)  # BERT fills its padding
            for i, sample in enumerate(ids):
                frames = chance.normal(size=(lengths[name][i], dim)).astype(np.float32)
                part[name][i, :len(frames)] = frames
                true.setdefault(sample, {})[name] = frames
            if name != "text" and not aligned:
                part[f"{name}_lengths"] = lengths[name].tolist()
        for i, sample in enumerate(ids):
            length = lengths["text"][i]
            part["text_bert"][i, 0, :length] = [101, *chance.integers(200, 30000, size=length - 2), 102]
            part["text_bert"][i, 1, :length] = 1
            true[sample]["tokens"] = part["text_bert"][i, :1, :length].T.astype(np.int32)
        labels = np.round(chance.uniform(-3, 3, size=count), 1).astype(np.float32)
        part["regression_labels"] = labels
        part["classification_labels"] = (np.sign(labels) + 1).astype(np.float32)
        part["annotations"] = [NAMES[int(number)] for number in part["classification_labels"]]
        content[split] = part
    return content, true


def save(folder, content, name="corpus.pkl", protocol=4):
    (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder / name


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the importer -> (exit code, standard output, problems)."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments, output="out.h5"):
        code = mmsa.main([*map(str, arguments), "-o", output])
        out, errors = capsys.readouterr()
        return code, out, errors
    yield call
    signal.signal(signal.SIGTERM, before)


def check(file, true, modalities=("text", "audio", "vision"), names=None):
    ids = list(file["samples/id"].asstr())
    assert sorted(file["modalities"]) == sorted(modalities)
    for modality in modalities:
        values, offsets = file[f"modalities/{modality}/values"][:], file[f"modalities/{modality}/offsets"][:]
        for row, sample in enumerate(ids):
            np.testing.assert_array_equal(values[offsets[row]:offsets[row + 1]], true[sample][(names or {}).get(modality, modality)])


@pytest.mark.parametrize("aligned", [False, True])
def test_container_holds_what_was_pickled(run, tmp_path, aligned):
    content, true = corpus(aligned)
    path = save(tmp_path, content)
    code, out, errors = run(path)
    assert code == 0, errors
    assert "splits: train 6, valid 3, test 4" in out and "further targets: regression, classes" in out
    labels = np.concatenate([part["regression_labels"] for part in content.values()])
    median = np.median(content["train"]["regression_labels"].astype(np.float64))
    for split in COUNTS:
        assert f"{np.abs(content[split]['regression_labels'] - median).mean():.4f} ({split})" in out
    with h5py.File("out.h5") as file:
        check(file, true)
        assert list(file["samples/id"].asstr()) == [sample for part in content.values() for sample in part["id"]]
        assert list(file["samples/split"].asstr()) == [split for split, count in COUNTS.items() for _ in range(count)]
        assert list(file["samples/group"].asstr()) == [sample.split("$")[0] for part in content.values() for sample in part["id"]]
        np.testing.assert_array_equal(file["samples/label"][:], labels)
        np.testing.assert_array_equal(file["samples/targets/regression"][:], labels)
        classes = file["samples/targets/classes"]
        assert list(classes.attrs["class_names"]) == NAMES and classes[:].tolist() == (np.sign(labels) + 1).tolist()
        listing = subprocess.run(["sha256sum", path.name], capture_output=True, cwd=tmp_path).stdout
        assert file.attrs["sources_sha256"] == hashlib.sha256(listing).hexdigest()
        assert file.attrs["command"] == f"mmsa.py {path} -o out.h5" and file.attrs["name"] == "corpus"
    said = 'mask in "text_bert", after which all rows of all 13 samples are zero' if aligned else 'lengths of "audio_lengths"'
    assert said in out


def test_infinite_values_are_refused_or_replaced_and_counted(run, tmp_path):
    content, true = corpus()
    content["valid"]["audio"][1, :2, 1] = -np.inf
    content["valid"]["audio"][1, -1] = content["valid"]["audio_lengths"][1] < 12
    content["test"]["vision"][0, 0] = np.nan
    save(tmp_path, content)
    code, _, errors = run("corpus.pkl")
    assert code == 65 and not Path("out.h5").exists()
    assert 'corpus.pkl: valid 1: id "valid_0$_$1": 2 of' in errors and "-inf in frame 0, column 1" in errors and "test 0" in errors
    code, out, _ = run("corpus.pkl", "--nonfinite", "zero")
    outside = "; 1 samples have other rows than zero after it, which are left out" if content["valid"]["audio_lengths"][1] < 12 else ""
    assert code == 0 and f'lengths of "audio_lengths"{outside}; set to 0: 2 -inf' in out and "set to 0: 2 NaN" in out
    true["valid_0$_$1"]["audio"][:2, 1] = 0
    true["test_0$_$0"]["vision"][0] = 0
    with h5py.File("out.h5") as file:
        check(file, true)


def test_every_way_of_pickling_gives_the_same(run, tmp_path):
    content, true = corpus()
    for part in content.values():
        part["audio"] = np.asfortranarray(part["audio"].astype(np.float64))
        part["vision"] = part["vision"].astype(">f4")
        part["audio_lengths"] = np.array(part["audio_lengths"], dtype=np.int32)
        part["regression_labels"] = part["regression_labels"].reshape(-1, 1)
        part["id"] = np.array(part["id"])
    digests = set()
    for protocol in range(6):
        save(tmp_path, content, protocol=protocol)
        assert run("corpus.pkl")[0] == 0
        with h5py.File("out.h5") as file:
            check(file, true)
    for _ in range(2):  # the same input, the same bytes, at another time
        assert run("corpus.pkl")[0] == 0
        digests.add(hashlib.sha256(Path("out.h5").read_bytes()).hexdigest())
        time.sleep(1.1)
    assert len(digests) == 1


def test_tokens(run, tmp_path):
    content, true = corpus()
    save(tmp_path, content)
    code, out, errors = run("corpus.pkl", "--text", "tokens")
    assert code == 0, errors
    with h5py.File("out.h5") as file:
        assert file["modalities/text/values"].dtype == np.int32
        check(file, true, names={"text": "tokens"})
    content["train"]["text_bert"][0, 2, 1] = 1
    save(tmp_path, content)
    assert "with segment ids" in run("corpus.pkl", "--text", "tokens")[1]
    with h5py.File("out.h5") as file:
        assert file["modalities/text/values"].shape[1] == 2 and file["modalities/text/values"][:2].tolist()[1][1] == 1
    content["train"]["text_bert"][0, 1, 0] = 0
    save(tmp_path, content)
    code, _, errors = run("corpus.pkl", "--text", "tokens")
    assert code == 65 and 'id "train_0$_$0": its mask is not ones, then zeros' in errors
    for part in content.values():
        del part["text_bert"]
    save(tmp_path, content)
    assert 'has no "text_bert"' in run("corpus.pkl", "--text", "tokens")[2]


def test_aligned_frames_outside_of_the_mask_are_kept(run, tmp_path):
    """As in files whose audio is padded in front."""
    content, true = corpus(aligned=True)
    for part in content.values():
        for i, sample in enumerate(part["id"]):
            part["audio"][i] = 0
            part["audio"][i, 9 - len(true[sample]["audio"]):] = true[sample]["audio"]
    save(tmp_path, content)
    code, out, errors = run("corpus.pkl")
    assert code == 0, errors
    assert "padding in front (all-zero rows at the end in 0 of 13 samples, in front in" in out and 'not the mask in "text_bert"' in out
    with h5py.File("out.h5") as file:
        check(file, true)
    assert "padding at the end, as --padding says" in run("corpus.pkl", "--padding", "end")[1]
    with h5py.File("out.h5") as file:
        assert file["modalities/audio/offsets"][-1] == 13 * 9


def test_padding_is_found_by_its_zeros(run, tmp_path):
    content, true = corpus(aligned=True)
    for part in content.values():
        del part["text_bert"]
    content["train"]["vision"][2] = 0
    true["train_1$_$0"]["vision"] = np.zeros((0, 2))
    save(tmp_path, content)
    code, out, errors = run("corpus.pkl")
    assert code == 0 and "vision: 2 features" in out and "missing for 1" in out and "1 are all zero and lack it" in out, errors
    with h5py.File("out.h5") as file:
        check(file, true)
    content["train"]["audio"][0] = np.roll(content["train"]["audio"][0], 1, axis=0)
    for part in content.values():
        part["audio"][:, 0] = 0
        part["audio"][:, -1] = 0
    save(tmp_path, content)
    code, _, errors = run("corpus.pkl")
    assert code == 65 and "it is not clear where it is padded" in errors and "--padding front, end or none" in errors
    assert run("corpus.pkl", "--padding", "none")[0] == 0
    with h5py.File("out.h5") as file:
        assert file["modalities/audio/offsets"][1] == 9


def test_classes_get_their_names_from_the_annotations(run, tmp_path):
    content, _ = corpus()
    numbers = [np.array([0, 1, 2, 0, 1, 2], dtype=np.float32), np.array([2, 1, 0], dtype=np.float32), np.array([1, 1, 0, 2], dtype=np.float32)]
    for part, values in zip(content.values(), numbers):
        part["classification_labels"] = values
        part["annotations"] = [["bad", "so so", "good"][int(value)] for value in values]
    content["test"]["annotations"][1] = "bad"
    save(tmp_path, content)
    code, out, errors = run("corpus.pkl", "--task", "classification")
    assert code == 0, errors
    assert 'disagree: test_0$_$1 is so so and bad' in out and "classes: bad 4, so so 5, good 4" in out
    with h5py.File("out.h5") as file:
        assert file.attrs["task"] == "classification" and list(file.attrs["class_names"]) == ["bad", "so so", "good"]
        np.testing.assert_array_equal(file["samples/label"][:], np.concatenate(numbers))
        assert sorted(file["samples/targets"]) == ["classes", "regression"]
    for part in content.values():
        del part["regression_labels"]
    save(tmp_path, content)
    assert run("corpus.pkl", "--task", "classification")[0] == 0
    code, _, errors = run("corpus.pkl")
    assert code == 65 and "has no regression_labels; its keys are" in errors


def test_the_labels_of_each_modality(run, tmp_path):
    content, _ = corpus()
    chance = np.random.default_rng(3)
    for split, part in content.items():
        for letter in "TAV":
            part[f"regression_labels_{letter}"] = chance.choice([-1, -0.4, 0, 1], size=COUNTS[split])
            part[f"classification_labels_{letter}"] = chance.integers(0, 3, size=COUNTS[split])
        part["energy"] = chance.normal(size=COUNTS[split])
    content["train"]["regression_labels_V"][0] = np.nan
    save(tmp_path, content)
    code, out, errors = run("corpus.pkl", "--target", "arousal=energy")
    assert code == 0 and '"vision_label" is no target: not all of its values are numbers' in out, errors
    with h5py.File("out.h5") as file:
        targets = file["samples/targets"]
        assert sorted(targets) == ["arousal", "audio_classes", "audio_label", "classes", "regression", "text_classes", "text_label", "vision_classes"]
        for name, key in (("text_label", "regression_labels_T"), ("audio_classes", "classification_labels_A"), ("arousal", "energy")):
            np.testing.assert_array_equal(targets[name][:], np.concatenate([part[key] for part in content.values()]).astype(targets[name].dtype))
        assert list(targets["audio_classes"].attrs["class_names"]) == NAMES


def features(content, true, order, dim=6):
    """Another feature file: audio of `dim` features, the samples of each split in another order."""
    other, chance = {}, np.random.default_rng(order)
    for split, part in content.items():
        rows = chance.permutation(len(part["id"]))
        lengths = chance.integers(1, 8, size=len(rows))
        audio = np.zeros((len(rows), 8, dim), dtype=np.float32)
        for i, row in enumerate(rows):
            frames = chance.normal(size=(lengths[i], dim)).astype(np.float32)
            audio[i, :lengths[i]] = true[part["id"][row]]["audio"] = frames
        other[split] = {"id": [part["id"][row] for row in rows], "audio": audio, "audio_lengths": lengths, "regression_labels": part["regression_labels"][rows]}
    return other


def test_other_feature_files_are_joined_by_id(run, tmp_path):
    content, true = corpus()
    other = features(content, true, 5)
    save(tmp_path, content)
    save(tmp_path, other, "wav2vec.pkl")
    code, out, errors = run("corpus.pkl", "--modality-file", "audio=wav2vec.pkl")
    assert code == 0 and "of wav2vec.pkl, joined by id" in out, errors
    with h5py.File("out.h5") as file:
        check(file, true)
        assert file["modalities/audio/values"].shape[1] == 6
        listing = subprocess.run(["sha256sum", "corpus.pkl", "wav2vec.pkl"], capture_output=True, cwd=tmp_path).stdout
        assert file.attrs["sources_sha256"] == hashlib.sha256(listing).hexdigest()
    assert run("corpus.pkl", "--modality-file", "speech=wav2vec.pkl:audio")[0] == 0
    with h5py.File("out.h5") as file:
        assert sorted(file["modalities"]) == ["audio", "speech", "text", "vision"]
    mapping = {sample: true[sample]["audio"] for part in content.values() for sample in part["id"]}
    save(tmp_path, mapping, "mapping.pkl")
    assert run("corpus.pkl", "--modality-file", "audio=mapping.pkl")[0] == 0
    with h5py.File("out.h5") as file:
        check(file, true)
    code, _, errors = run("corpus.pkl", "--modality-file", "speech=wav2vec.pkl")
    assert code == 65 and 'wav2vec.pkl: has no "speech"; its keys are id, audio' in errors


def test_ids_and_labels_that_disagree_are_listed(run, tmp_path):
    content, true = corpus()
    other = features(content, true, 6)
    lost, odd = other["train"]["id"][0], other["test"]["id"][1]
    other["train"]["id"][0], other["valid"]["id"][1] = "new$_$1", "../../x$_$2"
    other["test"]["regression_labels"][1] += 1
    save(tmp_path, content)
    save(tmp_path, other, "other.pkl")
    code, _, errors = run("corpus.pkl", "--modality-file", "audio=other.pkl")
    assert code == 65 and not Path("out.h5").exists()
    for expected in (f'corpus.pkl: the id "{lost}" is not in other.pkl', 'other.pkl: the id "new$_$1" is not in corpus.pkl', 'the id "../../x$_$2"',
                     f'other.pkl: test 1: the id "{odd}" has the label'):
        assert expected in errors, errors
    other["test"]["regression_labels"][1] -= 1
    save(tmp_path, other, "other.pkl")
    code, out, errors = run("corpus.pkl", "--modality-file", "audio=other.pkl", "--missing", "empty")
    assert code == 0 and f"{lost}, " in out and "not in other.pkl: the sample lacks it" in out and "new$_$1 (2) not in corpus.pkl: it is left out" in out, errors
    with h5py.File("out.h5") as file:
        row = list(file["samples/id"].asstr()).index(lost)
        assert np.diff(file["modalities/audio/offsets"][row:row + 2]) == 0
    other["train"]["id"] = None
    save(tmp_path, other, "other.pkl")
    assert run("corpus.pkl", "--modality-file", "audio=other.pkl")[0] == 65


def test_odd_ids(run, tmp_path):
    content, true = corpus()
    ids = content["train"]["id"]
    ids[0], ids[1], ids[2] = "../../escape$_$1", "/tmp/x$_$1", ids[3]
    before = sorted(tmp_path.parent.rglob("*"))
    save(tmp_path, content)
    code, _, errors = run("corpus.pkl")
    assert code == 65 and f'the id "{ids[3]}" is there 2 times; --repeated-ids number' in errors
    code, _, errors = run("corpus.pkl", "--repeated-ids", "number")
    assert code == 0, errors
    assert sorted(set(tmp_path.parent.rglob("*")) - set(before)) == [tmp_path / "corpus.pkl", tmp_path / "out.h5"]
    with h5py.File("out.h5") as file:
        assert list(file["samples/id"].asstr()[:4]) == [ids[0], ids[1], ids[3], ids[3] + "#2"]
        assert file["samples/group"].asstr()[0] == "../../escape"
    code, out, _ = run("corpus.pkl", "--repeated-ids", "number", "--group-pattern", "^(.)")
    with h5py.File("out.h5") as file:
        assert code == 0 and file["samples/group"].asstr()[0] == "."


@pytest.mark.parametrize("change, expected", [
    (lambda c: c["train"].pop("id"), 'train has no "id"'), (lambda c: c["train"].update(audio=c["train"]["audio"][:5]), '"audio" has 5 entries, but there are 6 ids'),
    (lambda c: c["test"].update(audio=c["test"]["audio"][:, :, :2]), '"audio" has 2 or 3 features'), (lambda c: c["test"].pop("audio"), '"audio" is in train, valid'),
    (lambda c: c["test"].update(audio=c["test"]["audio"].astype("<U5")), "expected an array of numbers"), (lambda c: [c.pop(k) for k in COUNTS], "holds a dict"),
    (lambda c: c["test"]["regression_labels"].fill(np.nan), "has the value nan"), (lambda c: c["test"].update(regression_labels=["x"] * 4), "no column of numbers"),
    (lambda c: c["valid"].update(audio_lengths=[1, -2, 3]), "audio_lengths says -2"), (lambda c: c["valid"].update(audio=None), '"audio" is in'),
    (lambda c: [c.update(other=c.pop(k)) for k in COUNTS], "has none of the splits"), (lambda c: c["test"]["id"].__setitem__(0, ""), "empty id"),
    (lambda c: [p.pop(k) for p in c.values() for k in WIDTHS if k in p] + [p.pop("text_bert") for p in c.values()], "has none of text, audio, vision"),
    (lambda c: c["test"].update(id=[["x"], "y", "z", "w"]), "test 0: the id is a list"), (lambda c: c["test"].update(audio=[[1], 2, [3, [4]], 5]), "found list"),
    (lambda c: c["test"].update(text_bert=np.zeros((4, 2, 9))), "is not of shape [3, tokens]")])
def test_wrong_files_are_refused(run, tmp_path, change, expected):
    content, _ = corpus()
    change(content)
    save(tmp_path, content)
    code, _, errors = run("corpus.pkl")
    assert code == 65 and expected in errors and "internal" not in errors, errors
    assert not Path("out.h5").exists()


def test_frames_are_not_held_in_memory(tmp_path):
    """A file of 160 MB with 60 MB for data."""
    frames = np.ones((400, 1000, 100), dtype=np.float32)
    save(tmp_path, {"train": {"id": [f"a$_${i}" for i in range(400)], "audio": frames, "audio_lengths": [1000] * 400, "regression_labels": np.zeros(400)}})
    del frames
    code = f"""
import re, resource, sys
sys.path.insert(0, {str(ROOT / 'importers')!r})
import mmsa
used = int(re.search("VmData:\\s*(\\d+)", open("/proc/self/status").read())[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (60 << 20),) * 2)
sys.exit(mmsa.main(["corpus.pkl", "-o", "out.h5"]))
"""
    run = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["modalities/audio/values"].shape == (400000, 100)


def test_help_and_usage(tmp_path):
    script = [sys.executable, "-B", ROOT / "importers/mmsa.py"]
    run = subprocess.run([*script, "--help"], capture_output=True, text=True, env={**os.environ, "MUSTER_COMMAND": "muster data import mmsa"})
    assert run.returncode == 0 and run.stdout.startswith("usage: muster data import mmsa ") and "examples:\n  muster data import mmsa unaligned_50.pkl" in run.stdout
    assert subprocess.run([*script, "x.pkl"], capture_output=True).returncode == 2
    assert subprocess.run([*script, "x.pkl", "-o", "y.h5"], capture_output=True, cwd=tmp_path).returncode == 74


def test_a_killed_import_leaves_nothing(tmp_path):
    """At random moments: the output is complete or not there, and by SIGTERM there is not even a hidden file."""
    frames = np.random.default_rng(1).normal(size=(600, 100, 100)).astype(np.float32)
    save(tmp_path, {"train": {"id": [f"a$_${i}" for i in range(600)], "audio": frames, "regression_labels": np.zeros(600)}})
    command = [sys.executable, "-B", ROOT / "importers/mmsa.py", "corpus.pkl", "-o", "out.h5"]

    def start():
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    assert start().wait() == 0
    duration = time.monotonic() - began
    complete = (tmp_path / "out.h5").read_bytes()
    (tmp_path / "out.h5").unlink()
    chance, killed, attempt = random.Random(2), 0, 0
    while killed < (20 if FULL else 4):
        attempt += 1
        assert attempt < 200
        began, process = time.monotonic(), start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.1, 0.9) * duration)
            duration = time.monotonic() - began  # it was done before: the machine is faster now
        process.send_signal((signal.SIGTERM, signal.SIGKILL)[attempt % 2])
        process.wait()
        left = {path.name: path for path in tmp_path.iterdir() if path.name != "corpus.pkl"}
        killed += "out.h5" not in left
        if "out.h5" in left:  # it was done
            assert left["out.h5"].read_bytes() == complete
        elif attempt % 2 == 0:
            assert not left
        for path in left.values():
            assert path.name == "out.h5" or path.name.startswith(".tmp-out.h5-")
            path.unlink()
    for name in (".tmp-out.h5-00000000", ".tmp-out.h5-11111111", ".tmp-out.h5-1", ".tmp-other.h5-00000000"):
        (tmp_path / name).write_bytes(b"unfinished")
    with open(tmp_path / ".tmp-out.h5-11111111") as held:
        fcntl.flock(held, fcntl.LOCK_SH)  # as by an import that is still running
        assert start().wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-other.h5-00000000", ".tmp-out.h5-1", ".tmp-out.h5-11111111", "corpus.pkl", "out.h5"]
