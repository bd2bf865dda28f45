"""Built-in data as scikit-learn and h5py see it, and what is left behind where it cannot be written."""
import resource
import subprocess

import h5py
import numpy as np
import pytest

from container_files import IO, MUSTER, muster
from container_files import path, tmp_path  # noqa: F401 (fixtures)


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
