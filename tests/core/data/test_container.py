"""muster's reading of dataset containers against files that h5py writes: every layout, and every way to be wrong."""
import hashlib
import json
import os

import h5py
import numpy as np
import pytest

from container_files import BAD_DATA, IO, LENGTHS, SAMPLES, TEXT, expect_bad, muster, write
from container_files import path, tmp_path  # noqa: F401 (fixtures)


LAYOUTS = {
    "contiguous": {},
    "half": {"dtype": "<f2"},
    "double": {"dtype": "<f8"},
    "big-endian": {"dtype": ">f4"},
    "big-endian half": {"dtype": ">f2"},
    "chunked": {"chunks": (3, 4)},
    "gzip+shuffle": {"chunks": (3, 2), "compression": "gzip", "shuffle": True},
    "gzip half": {"dtype": "<f2", "chunks": (3, 2), "compression": "gzip", "fletcher32": True},
    "user block": {"userblock": 1024},
    "HDF5 1.10 format": {"libver": ("v110", "v110")},
    "HDF5 1.10 format, chunked": {"libver": ("v110", "v110"), "chunks": (2, 4), "compression": "gzip"},
    "index compressed too": {"index": {"chunks": (2,), "compression": "gzip"}},
    "fixed-length text": {"texts": "S16"},
    "regression": {"task": "regression"},
}
DIRECT = {"contiguous", "half", "double", "user block", "HDF5 1.10 format", "index compressed too", "fixed-length text", "regression"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(path, name):
    write(path, **LAYOUTS[name])
    assert muster("verify", path).returncode == 0, muster("verify", path).stderr
    answer = muster("inspect", "--json", path)
    facts = json.loads(answer.stdout)
    assert facts["samples"] == SAMPLES and facts["name"] == "handmade" and facts["non_finite"] == 0
    assert facts["file_bytes"] == os.path.getsize(path)
    assert facts["content_hash"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["groups"] == {"g1": 3, "g2": 3}
    assert {split: entry["samples"] for split, entry in facts["splits"].items()} == {"train": 3, "valid": 1, "test": 1, "": 1}
    for modality in facts["modalities"]:
        lengths = np.array(LENGTHS[modality["name"]])
        present = lengths[lengths > 0]
        assert modality["dim"] == 4 and modality["frames"] == lengths.sum() and modality["missing"] == (lengths == 0).sum()
        assert modality["length"] == {"min": present.min(), "max": present.max(), "median": np.median(present),
                                      "mean": pytest.approx(present.mean())}
        assert modality["storage"]["direct"] == (name in DIRECT)
    assert "handmade" in muster("inspect", path).stdout


@pytest.mark.parametrize("name", LAYOUTS)
def test_values_lie_where_they_should(path, name):
    """Plants NaN and infinity: verify must name exactly their sample, frame and column, whatever the storage."""
    write(path, **LAYOUTS[name])
    with h5py.File(path, "r+") as f:
        f["modalities/audio/values"][5, 2] = np.nan      # lengths 3, 1, 0, 4: row 5 is frame 1 of sample 3
        f["modalities/vision/values"][9, 0] = -np.inf    # lengths 2, 2, 2, 0, 1, 3: row 9 is frame 2 of sample 5
    sample = "sample " if name == "fixed-length text" else "sämple "
    answer = muster("verify", path)
    assert answer.returncode == BAD_DATA
    assert "2 features are not finite" in answer.stderr
    assert f"sample '{sample}3', audio, frame 1, column 2: NaN" in answer.stderr
    assert f"sample '{sample}5', vision, frame 2, column 0: -infinity" in answer.stderr
    assert json.loads(muster("inspect", "--json", path).stdout)["non_finite"] == 2


def test_float64_beyond_float32_is_not_finite(path):
    write(path, dtype="<f8")
    with h5py.File(path, "r+") as f:
        f["modalities/audio/values"][0, 0] = 1e300
    assert "audio, frame 0, column 0: +infinity" in muster("verify", path).stderr


def test_read_only_file_in_read_only_folder(path):
    write(path)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert muster("verify", path).returncode == 0
    finally:
        path.parent.chmod(0o755)


def test_file_locked_by_a_writer_elsewhere(path):
    write(path)
    with open(path, "r+b") as f:
        import fcntl
        fcntl.flock(f, fcntl.LOCK_EX)
        assert muster("verify", path).returncode == 0


def test_targets(path):
    write(path)
    with h5py.File(path, "r+") as f:
        f["samples/targets/valence"] = np.array([1, 2, 3, 4, 5, 6], "f8")
        own = f.create_dataset("samples/targets/speaker", data=np.array([0, 1, 2, 0, 1, 2], "i1"))
        own.attrs["class_names"] = ["x", "y", "z"]
    facts = json.loads(muster("inspect", "--json", "--target", "valence", path).stdout)
    assert facts["task"] == "regression" and facts["labels"]["mean"] == 3.5 and facts["targets"] == ["speaker", "valence"]
    facts = json.loads(muster("inspect", "--json", "--target", "speaker", path).stdout)
    assert facts["task"] == "classification" and [c["samples"] for c in facts["labels"]["classes"]] == [2, 2, 2]
    for wrong in ("none", "../label", "/samples/label", "."):
        answer = muster("inspect", "--target", wrong, path)
        assert answer.returncode == BAD_DATA and "speaker, valence" in answer.stderr


def test_missing_file_and_other_files(tmp_path):
    assert muster("inspect", tmp_path / "none.h5").returncode == IO
    (tmp_path / "text.h5").write_text("id,label\n")
    expect_bad(tmp_path / "text.h5", "is not an HDF5 file")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = [1, 2]
    expect_bad(tmp_path / "other.h5", "attribute 'format' is missing")


# What to do to a good file, and what the message must hold.
def set_dataset(name, value, **more):
    def change(f):
        del f[name]
        f.create_dataset(name, data=value, **more)
    return change


def drop(name):
    return lambda f: f.__delitem__(name)


def attribute(name, value):
    def change(f):
        del f.attrs[name]
        if value is not None:
            f.attrs[name] = value
    return change


WRONG = {
    "newer version": (attribute("version", 2), ["written by version 2; this muster reads 1"]),
    "version is text": (attribute("version", "1"), ["attribute 'version' must be one integer"]),
    "other format": (attribute("format", "thing"), ["'thing', not 'muster-dataset'"]),
    "unknown task": (attribute("task", "ranking"), ["'ranking'"]),
    "no task": (attribute("task", None), ["attribute 'task' is missing"]),
    "no class names": (attribute("class_names", None), ["attribute 'class_names' is missing"]),
    "class twice": (attribute("class_names", ["a", "a"]), ["holds 'a' twice"]),
    "class names are numbers": (attribute("class_names", [1, 2]), ["must be text, but is int64"]),
    "no samples group": (drop("samples"), ["/samples: is missing"]),
    "no ids": (drop("samples/id"), ["/samples/id: is missing"]),
    "no modalities group": (drop("modalities"), ["/modalities: is missing"]),
    "no modality": (lambda f: [drop(f"modalities/{m}")(f) for m in LENGTHS], ["there are no modalities"]),
    "no values": (drop("modalities/audio/values"), ["/modalities/audio/values: is missing"]),
    "no offsets": (drop("modalities/audio/offsets"), ["/modalities/audio/offsets: is missing"]),
    "group for dataset": (lambda f: (drop("samples/id")(f), f.create_group("samples/id")), ["/samples/id: is not a dataset"]),
    "dataset for group": (lambda f: (drop("modalities/audio")(f), f.create_dataset("modalities/audio", data=[1.0])),
                          ["/modalities/audio: is not a group"]),
    "integer values": (set_dataset("modalities/audio/values", np.zeros((15, 4), "i4")), ["must be float32", "is int32"]),
    "long double values": (set_dataset("modalities/audio/values", np.zeros((15, 4), np.longdouble)), ["must be float32"]),
    "one-dimensional values": (set_dataset("modalities/audio/values", np.zeros(15, "f4")), ["two dimensions", "[15]"]),
    "no columns": (set_dataset("modalities/audio/values", np.zeros((15, 0), "f4")), ["has no columns"]),
    "null dataspace": (set_dataset("modalities/audio/values", h5py.Empty("f4")), ["holds nothing"]),
    "float offsets": (set_dataset("modalities/audio/offsets", np.array([0, 3, 4, 4, 8, 10, 15.0])), ["must be of type integer", "float64"]),
    "two-dimensional offsets": (set_dataset("modalities/audio/offsets", np.zeros((7, 1), "i8")), ["one dimension", "[7, 1]"]),
    "short offsets": (set_dataset("modalities/audio/offsets", [0, 3, 15]), ["must have 7 entries", "has 3"]),
    "offsets start late": (set_dataset("modalities/audio/offsets", [1, 3, 4, 4, 8, 10, 15]), ["must start at 0"]),
    "offsets backwards": (set_dataset("modalities/audio/offsets", [0, 3, 4, 2, 8, 10, 15]),
                          ["goes backwards at sample 'sämple 2' (row 2), from 4 to 2"]),
    "offsets past the end": (set_dataset("modalities/audio/offsets", [0, 3, 4, 4, 8, 10, 16]),
                             ["sample 'sämple 5' (row 5) ends at frame 16, but there are 15"]),
    "offsets end early": (set_dataset("modalities/audio/offsets", [0, 3, 4, 4, 8, 10, 14]), ["ends at 14", "15"]),
    "huge offsets": (set_dataset("modalities/audio/offsets", [0, 3, 4, 4, 8, 10, 2**62]), ["'sämple 5'"]),
    "duplicate ids": (set_dataset("samples/id", ["a", "b", "a", "c", "d", "b"], dtype=TEXT),
                      ["'a' occurs twice, in rows 0 and 2", "'b' occurs twice, in rows 1 and 5"]),
    "empty id": (set_dataset("samples/id", ["a", "b", "", "c", "d", "e"], dtype=TEXT), ["the id in row 2 is empty"]),
    "id not UTF-8": (set_dataset("samples/id", np.array([b"a", b"b", b"c\xff", b"d", b"e", b"f"])), ["row 2 is not UTF-8: 'c\\xff'"]),
    "numbers as ids": (set_dataset("samples/id", np.arange(SAMPLES)), ["must be of type string", "int64"]),
    "no rows": (set_dataset("samples/id", np.array([], dtype=TEXT), dtype=TEXT), ["there are no samples"]),
    "short group": (set_dataset("samples/group", ["a"] * 5, dtype=TEXT), ["/samples/group: has 5 entries", "6 samples"]),
    "unknown split": (set_dataset("samples/split", ["train"] * 4 + ["dev", ""], dtype=TEXT), ["'sämple 4' (row 4) has 'dev'"]),
    "short labels": (set_dataset("samples/label", [0, 1, 0]), ["/samples/label: has 3 entries"]),
    "float class": (set_dataset("samples/label", np.zeros(SAMPLES, "f4")), ["must be of type integer", "float32"]),
    "class too high": (set_dataset("samples/label", [0, 1, 2, 0, 0, 0]), ["'sämple 2' (row 2) is 2, but there are 2 classes"]),
    "class negative": (set_dataset("samples/label", [0, 1, -1, 0, 0, 0]), ["'sämple 2' (row 2) is -1"]),
    "class huge": (set_dataset("samples/label", np.array([0, 1, 0, 0, 0, 2**64 - 1], "u8")), ["'sämple 5'"]),
    "boolean labels": (set_dataset("samples/label", np.zeros(SAMPLES, bool)), ["must be of type integer"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(path, name):
    change, texts = WRONG[name]
    write(path)
    with h5py.File(path, "r+") as f:
        change(f)
    expect_bad(path, *texts)


def test_non_finite_labels_are_named(path):
    write(path, task="regression")
    with h5py.File(path, "r+") as f:
        f["samples/label"][1] = np.nan
        f["samples/label"][4] = np.inf
    expect_bad(path, "'sämple 1' (row 1) is NaN", "'sämple 4' (row 4) is infinite")


def test_integer_regression_label(path):
    write(path, task="regression")
    with h5py.File(path, "r+") as f:
        set_dataset("samples/label", np.zeros(SAMPLES, "i8"))(f)
    expect_bad(path, "must be of type float", "int64")


def test_all_problems_at_once(path):
    write(path)
    with h5py.File(path, "r+") as f:
        for name in ("offsets backwards", "duplicate ids", "class too high", "unknown split"):
            WRONG[name][0](f)
    expect_bad(path, "goes backwards", "occurs twice", "2 classes", "has 'dev'")
