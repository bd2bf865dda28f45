"""muster's reading of dataset containers against files that h5py writes: every layout, and every way to be wrong."""
import hashlib
import json
import os
import pathlib
import random
import resource
import subprocess
import tempfile

import h5py
import numpy as np
import pytest

MUSTER = os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests", "data_probe")  # `muster data` without its start-up time
BAD_DATA, IO = 65, 74
TEXT = h5py.string_dtype("utf-8")
LENGTHS = {"audio": [3, 1, 0, 4, 2, 5], "vision": [2, 2, 2, 0, 1, 3]}
SAMPLES = 6


def muster(*arguments):
    return subprocess.run([MUSTER, "data", *map(str, arguments)], capture_output=True, text=True, timeout=60, errors="replace")


def values_of(modality):
    generator = np.random.default_rng(len(modality))
    # Exact in float16, so that every storage type must give the very same numbers.
    return generator.integers(-1000, 1000, (sum(LENGTHS[modality]), 4)).astype("f4") / 8


def write(path, dtype="<f4", task="classification", texts=TEXT, index={}, userblock=0, libver=None, **storage):
    with h5py.File(path, "w", userblock_size=userblock, libver=libver) as f:
        f.attrs["format"] = "muster-dataset"
        f.attrs["version"] = 1
        f.attrs["name"] = "handmade"
        f.attrs["task"] = task
        if task == "classification":
            f.attrs["class_names"] = np.array(["no", "yes"], dtype=texts)
        samples = f.create_group("samples")
        for name, strings in [("id", [f"sämple {i}" if texts == TEXT else f"sample {i}" for i in range(SAMPLES)]),
                              ("group", ["g1", "g1", "g1", "g2", "g2", "g2"]),
                              ("split", ["train", "train", "train", "valid", "test", ""])]:
            samples.create_dataset(name, data=np.array(strings, dtype=texts), **index)
        labels = np.arange(SAMPLES) % 2
        samples.create_dataset("label", data=labels if task == "classification" else labels.astype("f4") - 0.5, **index)
        for modality, lengths in LENGTHS.items():
            group = f.create_group(f"modalities/{modality}")
            group.create_dataset("values", data=values_of(modality).astype(dtype), **storage)
            group.create_dataset("offsets", data=np.cumsum([0] + lengths), **index)
    return path


def expect_bad(path, *texts, command="verify"):
    for what in {command, "verify", "inspect"}:
        answer = muster(what, path)
        assert answer.returncode == BAD_DATA, (what, answer.returncode, answer.stderr)
        assert answer.stdout == ""
        if what == command:
            for text in (str(path), *texts):
                assert text in answer.stderr, (text, answer.stderr)


@pytest.fixture
def tmp_path():
    """In place of pytest's own, which keeps the files of the last three runs."""
    with tempfile.TemporaryDirectory(prefix="muster-test-") as folder:
        yield pathlib.Path(folder)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.h5"


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


def test_nothing_outside_the_file_is_read(path, tmp_path):
    """A file that names another one must not make muster read it, even though the other one is good."""
    write(tmp_path / "other.h5")
    raw = tmp_path / "raw"
    raw.write_bytes(values_of("audio").tobytes())

    def replace(name, new):
        def change(f):
            if name in f:
                del f[name]
            new(f)
        return change

    layout = h5py.VirtualLayout((15, 4), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "modalities/audio/values", (15, 4))
    endless = h5py.VirtualLayout((15, 4), "f4", maxshape=(None, 4))
    endless[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "modalities/audio/values", (15, 4), maxshape=(None, 4))
    name = "modalities/audio/values"
    cases = [
        (name, lambda f: f.__setitem__(name, h5py.ExternalLink(str(tmp_path / "other.h5"), name)), "external link"),
        (name, lambda f: f.__setitem__(name, h5py.SoftLink("/modalities/vision/values")), "soft link"),
        ("modalities", lambda f: f.__setitem__("modalities", h5py.ExternalLink(str(tmp_path / "other.h5"), "modalities")), "external link"),
        ("samples", lambda f: f.__setitem__("samples", h5py.ExternalLink(str(tmp_path / "other.h5"), "samples")), "external link"),
        ("samples/split", lambda f: f.__setitem__("samples/split", h5py.ExternalLink(str(tmp_path / "other.h5"), "samples/split")),
         "external link"),
        (name, lambda f: f.create_dataset(name, (15, 4), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)]), "external storage"),
        ("samples/label", lambda f: f.create_dataset("samples/label", (6,), "i8", external=[(str(raw), 0, 48)]), "external storage"),
        (name, lambda f: f.create_virtual_dataset(name, layout), "virtual dataset"),
        (name, lambda f: f.create_virtual_dataset(name, endless), "virtual dataset"),
    ]
    for name_replaced, new, text in cases:
        write(path)
        with h5py.File(path, "r+") as f:
            replace(name_replaced, new)(f)
        expect_bad(path, text)
        trace = subprocess.run(["strace", "-f", "-e", "trace=open,openat", MUSTER, "data", "verify", str(path)], capture_output=True,
                               text=True) if os.path.exists("/usr/bin/strace") else None
        if trace:
            assert str(path) in trace.stderr and "other.h5" not in trace.stderr and str(raw) + '"' not in trace.stderr


def test_format_newer_than_our_hdf5(path):
    """HDF5 1.14's newest layouts are unknown to HDF5 1.10: either they can be read, or the message says what to do."""
    write(path, libver="latest", chunks=(2, 4), compression="gzip")
    answer = muster("verify", path)
    assert answer.returncode == 0 or (answer.returncode == BAD_DATA and "libver" in answer.stderr), answer.stderr


def test_claims_of_huge_sizes(path):
    """Rows that nobody ever wrote: refused, and without an allocation of that size."""
    def limited(*arguments):
        return subprocess.run([MUSTER, "data", *map(str, arguments)], capture_output=True, text=True, timeout=60,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31)))
    for name, shape, dtype in [("modalities/audio/values", (2**55, 4), "f4"), ("samples/id", (2**50,), TEXT), ("samples/label", (2**58,), "i8"),
                               ("modalities/audio/offsets", (2**59,), "i8"), ("samples/group", (2**40,), "S1000")]:
        for storage in ({"chunks": tuple(min(s, 4) for s in shape)}, {"chunks": tuple(min(s, 4) for s in shape), "compression": "gzip"}):
            write(path)
            with h5py.File(path, "r+") as f:
                del f[name]
                f.create_dataset(name, shape, dtype, **storage)
            answer = limited("verify", path)
            assert answer.returncode == BAD_DATA and "were ever written" in answer.stderr, (name, answer)


def test_values_never_written(path):
    write(path)
    with h5py.File(path, "r+") as f:
        del f["modalities/audio/values"]
        f.create_dataset("modalities/audio/values", (15, 4), "f4")
    expect_bad(path, "none were ever written")


def test_values_past_the_end_of_the_file(path):
    """The place of the values is damaged so that they begin in the file and end after it."""
    write(path)
    with h5py.File(path) as f:
        place = f["modalities/audio/values"].id.get_offset().to_bytes(8, "little")
    raw = path.read_bytes()
    assert raw.count(place) == 1
    path.write_bytes(raw.replace(place, (len(raw) - 8).to_bytes(8, "little")))
    expect_bad(path, "/modalities/audio/values", "the file ends before them")


def test_unknown_filter(path):
    write(path)
    with h5py.File(path, "r+") as f:
        del f["modalities/audio/values"]
        f.create_dataset("modalities/audio/values", data=values_of("audio"), compression="lzf")
    expect_bad(path, "lzf", "gzip")


def test_chunk_with_its_filters_skipped(path):
    """HDF5 would then copy a whole chunk out of a few stored bytes."""
    write(path, chunks=(5, 4), compression="gzip")
    with h5py.File(path, "r+") as f:
        f["modalities/audio/values"].id.write_direct_chunk((0, 0), b"short", filter_mask=1)
    expect_bad(path, "/modalities/audio/values", "its chunks are damaged")


def test_chunk_never_written(path):
    write(path, chunks=(5, 4), compression="gzip")
    with h5py.File(path, "r+") as f:
        del f["modalities/audio/values"]
        f.create_dataset("modalities/audio/values", (15, 4), "f4", chunks=(5, 4), compression="gzip")[:5] = values_of("audio")[:5]
    expect_bad(path, "chunks that were never written")


def test_damaged_chunk_is_an_error(path):
    write(path, chunks=(5, 4), compression="gzip", fletcher32=True)
    with h5py.File(path) as f:
        chunk = f["modalities/audio/values"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(raw)
    answer = muster("verify", path)
    assert answer.returncode == BAD_DATA and "/modalities/audio/values" in answer.stderr and "damaged" in answer.stderr


@pytest.mark.parametrize("storage", [{}, {"chunks": (3, 4), "compression": "gzip"}], ids=["contiguous", "gzip"])
def test_cut_short_anywhere(path, storage):
    write(path, **storage)
    whole = path.read_bytes()
    for size in sorted({0, 1, 7, 8, 9, 511, 512, len(whole) - 1, *range(100, len(whole), len(whole) // 60)}):
        path.write_bytes(whole[:size])
        expect_bad(path)


@pytest.mark.parametrize("storage", [{}, {"chunks": (3, 4), "compression": "gzip"}, {"libver": ("v110", "v110")}, {"texts": "S16"}],
                         ids=["contiguous", "gzip", "v110", "fixed"])
def test_random_damage_never_kills(path, storage):
    """Flipped bits: an error message, or a file that is still readable; never a signal, a hang or an internal error."""
    write(path, **storage)
    whole = path.read_bytes()
    generator = random.Random(20240816)
    refused = 0
    for trial in range(200):
        raw = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4, 16])):
            raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        path.write_bytes(raw)
        answer = muster("verify", path)
        assert answer.returncode in (0, BAD_DATA), (trial, answer.returncode, answer.stderr[-500:])
        refused += answer.returncode == BAD_DATA
    assert refused > 10


def test_damaged_strings(path):
    """Every byte of the heap that holds the strings, one by one: this is where HDF5 1.10 itself would crash."""
    write(path)
    whole = path.read_bytes()
    start = whole.index(b"GCOL")
    used = whole.rindex(b"\x00yes") if b"\x00yes" in whole else start
    for position in [*range(start, start + 64), *range(max(used - 64, start), used + 16)]:
        for value in (0x00, 0xFF, 0x80):
            raw = bytearray(whole)
            raw[position] = value
            path.write_bytes(raw)
            assert muster("verify", path).returncode in (0, BAD_DATA), (position, value)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_h5py_reads_what_synth_writes(path, kind):
    assert muster("synth", "--kind", kind, "--samples", 50, "--seed", 3, "-o", path).returncode == 0
    again = path.with_name("again.h5")
    assert muster("synth", "--kind", kind, "--samples", 50, "--seed", 3, "-o", again).returncode == 0
    with h5py.File(path) as f, h5py.File(again) as g:
        assert f.attrs["format"] == "muster-dataset" and f.attrs["version"] == 1 and f.attrs["task"] == kind
        assert len(set(f["samples/id"].asstr()[:])) == 50
        assert f["samples/label"].dtype == ("i8" if kind == "classification" else "f4")
        for modality in f["modalities"].values():
            assert modality["values"].dtype == "f4" and modality["values"].chunks is None
            assert modality["offsets"][0] == 0 and modality["offsets"][-1] == len(modality["values"])
            assert np.isfinite(modality["values"][:]).all() and modality["values"][:].std() > 0.5
            np.testing.assert_array_equal(modality["values"][:], g[modality.name]["values"][:])
    assert [p.name for p in sorted(path.parent.iterdir())] == ["again.h5", "data.h5"]


def mean_pooled(path):
    with h5py.File(path) as f:
        pooled = {}
        for name, modality in f["modalities"].items():
            values, offsets = modality["values"][:], modality["offsets"][:]
            pooled[name] = np.stack([values[a:b].mean(0) for a, b in zip(offsets, offsets[1:])])
        return pooled, f["samples/label"][:], f["samples/split"].asstr()[:] == "test"


def test_synthetic_classification_needs_both_modalities(path):
    from sklearn.linear_model import LogisticRegression
    assert muster("synth", "--kind", "classification", "-o", path).returncode == 0
    pooled, labels, test = mean_pooled(path)

    def accuracy(names):
        features = np.concatenate([pooled[name] for name in names], 1)
        return LogisticRegression(max_iter=2000).fit(features[~test], labels[~test]).score(features[test], labels[test])
    assert accuracy(["audio", "vision"]) >= 0.88
    for name in pooled:
        assert 0.5 < accuracy([name]) < 0.75


def test_synthetic_regression_needs_all_modalities(path):
    from sklearn.linear_model import Ridge
    assert muster("synth", "--kind", "regression", "-o", path).returncode == 0
    pooled, labels, test = mean_pooled(path)

    def error(names):
        features = np.concatenate([pooled[name] for name in names], 1)
        return np.abs(Ridge(0.1).fit(features[~test], labels[~test]).predict(features[test]) - labels[test]).mean()
    assert error(list(pooled)) <= 0.45
    for name in pooled:
        assert 0.9 < error([name])
    assert 1.2 < np.abs(np.median(labels[~test]) - labels[test]).mean() < 1.5


def test_synth_where_nothing_can_be_written(tmp_path):
    answer = muster("synth", "--kind", "regression", "--samples", 5, "-o", tmp_path / "none" / "d.h5")
    assert answer.returncode == IO and "none/d.h5" in answer.stderr


def test_synth_beyond_the_limit_on_file_size(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))
    answer = subprocess.run([MUSTER, "data", "synth", "--kind", "regression", "--samples", "600", "-o", str(tmp_path / "d.h5")],
                            capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert answer.returncode == IO and "d.h5" in answer.stderr and "ulimit -f" in answer.stderr, answer
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kib", [4, 8, 16, 32, 64, 100, 500])
def test_synth_on_a_full_disk(tmp_path, kib):
    """A small file system of its own, full within the structure or within the frames."""
    script = """mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99
        "$3" data synth --kind regression --samples 600 -o "$2/d.h5"; code=$?; ls -A "$2"; exit $code"""
    answer = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", str(kib), str(tmp_path), MUSTER], capture_output=True, text=True,
                            timeout=60)
    if answer.returncode in (1, 99) and "muster" not in answer.stderr:
        pytest.skip("this machine lets nobody mount a small file system: " + answer.stderr.strip())
    assert answer.returncode == IO and answer.stdout == "", answer
    assert "d.h5" in answer.stderr and "No space left" in answer.stderr, answer
