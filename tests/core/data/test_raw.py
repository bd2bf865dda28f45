"""Waveforms and tokens in a container that h5py writes: what muster takes them for, the values it reads, and what it refuses."""
import json
import subprocess

import h5py
import numpy as np
import pytest

from container_files import BAD_DATA, LENGTHS, MUSTER, expect_bad, muster, write
from container_files import path, tmp_path  # noqa: F401 (fixtures)

ROWS = sum(LENGTHS["audio"])


def write_raw(path, values, rate=None, name="audio", **storage):
    """A good file whose modality `name` holds these values."""
    write(path)
    with h5py.File(path, "r+") as f:
        del f[f"modalities/{name}/values"]
        f.create_dataset(f"modalities/{name}/values", data=values, **storage)
        if rate is not None:
            f[f"modalities/{name}"].attrs["sample_rate"] = rate
    return path


def read(path, name="audio"):
    answer = subprocess.run([MUSTER, "values", str(path), name], capture_output=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return np.frombuffer(answer.stdout, "f4")


def facts_of(path, name="audio"):
    answer = muster("inspect", "--json", path)
    assert answer.returncode == 0, answer.stderr
    return next(modality for modality in json.loads(answer.stdout)["modalities"] if modality["name"] == name)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", "<i2", ">i2", ">f4"])
@pytest.mark.parametrize("storage", [{}, {"chunks": (4, 1), "compression": "gzip"}])
def test_waveform(path, dtype, storage):
    generator = np.random.default_rng(1)
    stored = generator.integers(-32768, 32768, (ROWS, 1)).astype(dtype) if "i" in dtype else generator.uniform(-1, 1, (ROWS, 1)).astype(dtype)
    if "i" in dtype:
        stored[:3, 0] = -32768, 32767, 1
    write_raw(path, stored, 16000, **storage)
    assert muster("verify", path).returncode == 0, muster("verify", path).stderr
    expected = stored.astype("f8") / 32768 if "i" in dtype else stored
    np.testing.assert_array_equal(read(path), expected.astype("f4").ravel())
    facts = facts_of(path)
    assert facts["kind"] == "waveform" and facts["sample_rate"] == 16000 and facts["dim"] == 1
    assert facts["seconds"] == {"total": ROWS / 16000, "longest": max(LENGTHS["audio"]) / 16000}
    assert facts["storage"]["direct"] == (dtype[0] == "<" and not storage) and facts["storage"]["type"].startswith(f"{np.dtype(dtype).newbyteorder('=')}")
    assert "waveform" in muster("inspect", path).stdout and "16000 Hz" in muster("inspect", path).stdout
    assert facts_of(path, "vision")["kind"] == "features" and "sample_rate" not in facts_of(path, "vision")


@pytest.mark.parametrize("dtype", ["<i4", "<i8", ">i4", ">i8"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("storage", [{}, {"chunks": (4, 1), "compression": "gzip"}])
def test_tokens(path, dtype, columns, storage):
    stored = np.random.default_rng(2).integers(0, 2**24, (ROWS, columns)).astype(dtype)
    stored[0, 0] = 2**24 - 1
    write_raw(path, stored, **storage)
    assert muster("verify", path).returncode == 0, muster("verify", path).stderr
    np.testing.assert_array_equal(read(path), stored.ravel())
    facts = facts_of(path)
    assert facts["kind"] == "tokens" and facts["dim"] == columns and facts["largest_id"] == 2**24 - 1
    assert facts["storage"]["direct"] == (dtype[0] == "<" and not storage)
    assert "the largest id is 16777215" in muster("inspect", path).stdout


@pytest.mark.parametrize("dtype", ["<i4", "<i8", ">i8"])
def test_ids_that_are_none_are_named(path, dtype):
    stored = np.ones((ROWS, 2), dtype)
    stored[5, 0], stored[9, 1] = -1, 2**24  # lengths 3, 1, 0, 4, 2, 5: row 5 is frame 1 of sample 3, row 9 frame 1 of sample 4
    if dtype != "<i4":
        stored[10, 0], stored[11, 1] = 2**24 + 1, -2**63
    write_raw(path, stored)
    answer = muster("verify", path)
    assert answer.returncode == BAD_DATA
    assert f"{2 if dtype == '<i4' else 4} values are no ids of tokens, which are whole numbers from 0 to 16777215" in answer.stderr
    assert "sample 'sämple 3', audio, frame 1, column 0: -1\n" in answer.stderr
    assert "sample 'sämple 4', audio, frame 1, column 1: 16777216" in answer.stderr
    facts = json.loads(muster("inspect", "--json", path).stdout)
    assert facts["bad_ids"] == (2 if dtype == "<i4" else 4) and facts["non_finite"] == 0
    assert "bad ids" in muster("inspect", path).stdout


def test_a_waveform_is_finite(path):
    stored = np.zeros((ROWS, 1), "f4")
    stored[5] = np.nan
    write_raw(path, stored, 16000)
    answer = muster("verify", path)
    assert answer.returncode == BAD_DATA and "1 value is not finite. Features and waveforms must be finite" in answer.stderr
    assert "sample 'sämple 3', audio, frame 1, column 0: NaN" in answer.stderr


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_waveforms_that_are_too_loud_are_noted(path, dtype):
    stored = np.linspace(-1, 1, ROWS, dtype=dtype)[:, None]
    write_raw(path, stored, 16000)
    assert muster("verify", path).stderr == ""
    stored[5], stored[6], stored[9] = 1.5, -3.2, 1.25  # frames of samples 3, 3 and 4; sample 2 is empty
    write_raw(path, stored, 16000)
    answer = muster("verify", path)
    assert answer.returncode == 0 and answer.stdout == f"{path}: good\n"
    assert answer.stderr == f"warning: {path}: 2 of 5 waveforms of audio have values outside [-1, 1] (largest 3.2, sample 'sämple 3')\n"


WRONG = {
    "int16 without a rate": (np.zeros((ROWS, 1), "i2"), None, ["/modalities/audio: its values are int16", "needs an attribute 'sample_rate'"]),
    "wide waveform": (np.zeros((ROWS, 4), "f4"), 16000, ["/modalities/audio: attribute 'sample_rate'", f"[samples, 1], not [{ROWS}, 4]"]),
    "wide int16": (np.zeros((ROWS, 2), "i2"), 16000, [f"[samples, 1], not [{ROWS}, 2]"]),
    "tokens with a rate": (np.zeros((ROWS, 1), "i4"), 16000, ["makes it a waveform, but its values are int32"]),
    "rate 0": (np.zeros((ROWS, 1), "f4"), 0, ["attribute 'sample_rate' is 0; it must be a rate in Hz, from 1000 to 1000000"]),
    "negative rate": (np.zeros((ROWS, 1), "f4"), -16000, ["'sample_rate' is -16000"]),
    "rate in kHz": (np.zeros((ROWS, 1), "f4"), 16, ["'sample_rate' is 16"]),
    "huge rate": (np.zeros((ROWS, 1), "f4"), 2**40, ["'sample_rate' is 1099511627776"]),
    "fractional rate": (np.zeros((ROWS, 1), "f4"), 16000.0, ["attribute 'sample_rate' must be one integer, but is float64"]),
    "two rates": (np.zeros((ROWS, 1), "f4"), [16000, 8000], ["must be one integer, but is int64 with 2 elements"]),
    "three columns of ids": (np.zeros((ROWS, 3), "i8"), None, ["/modalities/audio/values: is int64", "one column (ids) or two", f"[{ROWS}, 3]"]),
    "unsigned": (np.zeros((ROWS, 1), "u4"), None, ["must be float32", "but is uint32"]),
    "int8": (np.zeros((ROWS, 1), "i1"), None, ["must be float32", "but is int8"]),
    "one dimension": (np.zeros(ROWS, "i4"), None, ["two dimensions", f"[{ROWS}]"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(path, name):
    values, rate, texts = WRONG[name]
    expect_bad(write_raw(path, values, rate), *texts)


def test_the_rate_belongs_to_the_group(path):
    write_raw(path, np.zeros((ROWS, 1), "f4"))
    with h5py.File(path, "r+") as f:
        f["modalities/audio/values"].attrs["sample_rate"] = 16000
    expect_bad(path, "/modalities/audio/values: has an attribute 'sample_rate', which belongs to the group /modalities/audio")
