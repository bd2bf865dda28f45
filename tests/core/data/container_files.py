"""Dataset containers that h5py writes, and muster's data command to read them: shared by the tests of containers."""
import os
import pathlib
import subprocess
import tempfile

import h5py
import numpy as np
import pytest

MUSTER = os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests", "probe_plain")  # `muster data` without its start-up time
BAD_DATA, IO, BAD_CONFIG = 65, 74, 78
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
