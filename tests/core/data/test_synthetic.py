"""Built-in data as numpy generates it, as scikit-learn and h5py see it, and what is left behind where it cannot be written."""
import resource
import subprocess

import h5py
import numpy as np
import philox
import pytest

from container_files import BAD_CONFIG, IO, MUSTER, muster
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


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616", "1e3", "0x10", "+1", " 1", ""])
def test_a_seed_that_is_none_is_refused(path, seed):
    run = muster("synth", "--kind", "classification", "--samples", 5, f"--seed={seed}", "-o", path)
    assert run.returncode == 2 and not path.exists(), run.stderr
    assert muster("synth", "--kind", "classification", "--samples", 5, "--seed", 18446744073709551615, "-o", path).returncode == 0


# name: width, counter of its own draws, counter that lengths and places hang on, gain (docs/data.md, core/data/synthetic.h)
SHAPES = {"classification": {"audio": (32, 0, 0, None), "vision": (24, 1, 1, None)},
          "regression": {"audio": (12, 0, 0, 3), "text": (24, 1, 1, 3), "vision": (16, 2, 2, 3), "text_b": (32, 3, 1, 2.7), "text_c": (16, 4, 1, 2.4)}}
LENGTHS = {("classification", 0): (20, 60), ("classification", 1): (10, 30),
           ("regression", 0): (10, 50), ("regression", 1): (5, 25), ("regression", 2): (10, 40)}
NOISE, PLACES, HIDDEN, DIRECTIONS, SAMPLE_OFFSET, GROUP_OFFSET = range(6, 12)


def normals(seed, first, second, what, fourth):
    """Standard normal [..., 4]."""
    u = philox.uniform(philox.words(seed, (first, second, what, fourth)))
    radius, angle = np.sqrt(-2 * np.log(u[..., ::2])), 2 * np.pi * u[..., 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(u.shape)


def below(word, count):
    return int(word) * int(count) >> 32


def expected_frames(kind, name, sample, label, group, noise, seed, without=(), agreement=0):
    """One sample's [frames, width], from nothing but its label (classes) or seed (regression)."""
    width, own, shared, gain = SHAPES[kind][name]
    shortest, longest = LENGTHS[kind, shared]
    words = philox.words(seed, (sample, shared, PLACES, 0))
    length = shortest + below(words[0], longest - shortest + 1)
    third = -(-length // 3)
    begin = below(words[1], length - third + 1)
    blocks = np.arange(width // 4)
    directions = [normals(seed, blocks, own, DIRECTIONS, which).ravel() for which in (0, 1)]
    directions = [d / np.sqrt((d * d).sum()) for d in directions]
    if kind == "regression":
        signal = gain * normals(seed, sample, 0, HIDDEN, 0)[shared] * directions[0]
        base = 0
    else:
        a, b = (1 if label >= 2 else -1), (1 if label % 2 else -1)
        mean = (2.6**2 + 0.5**2) / 2
        strong, weak = (np.sqrt(square + agreement * (mean - square)) for square in (2.6**2, 0.5**2))
        signal = (a * directions[0] * (strong if name == "audio" else weak) + b * directions[1] * (weak if name == "audio" else strong))
        base = (0.3 * normals(seed, blocks, sample, SAMPLE_OFFSET, own) + 0.15 * normals(seed, blocks, group, GROUP_OFFSET, own)).ravel()
    frames = noise * normals(seed, blocks, sample, NOISE, (own << 16) + np.arange(length)[:, None]).reshape(length, width) + base
    if name not in without:
        frames[begin:begin + third] += signal
    return frames


def contents(path):
    with h5py.File(path) as f:
        samples = {name: f["samples/" + name].asstr()[:] if name != "label" else f["samples/label"][:] for name in f["samples"]}
        frames = {}
        for name, modality in f["modalities"].items():
            values, offsets = modality["values"][:], modality["offsets"][:]
            frames[name] = [values[a:b] for a, b in zip(offsets, offsets[1:])]
        return samples, frames


@pytest.mark.parametrize("kind, names, options", [
    ("classification", "audio vision", {}), ("classification", "audio vision", {"agreement": 0.3}), ("classification", "audio vision", {"agreement": 1}),
    ("classification", "audio vision", {"without": ["vision"]}), ("regression", "audio text vision", {}),
    ("regression", "audio text text_b vision", {"without": ["text"]}),
    ("regression", "audio text text_b text_c vision", {"without": ["vision", "text_c"]})])
def test_every_number_is_the_documented_one(path, kind, names, options):
    seed, noise = 2**40 + 7, 0.7
    names = names.split()
    arguments = ["synth", "--kind", kind, "--samples", 30, "--seed", seed, "--noise", noise]
    plain = path.with_name("plain.h5")
    assert muster(*arguments, "-o", plain).returncode == 0
    for name in options.get("without", []):
        arguments += ["--without-signal", name]
    if "agreement" in options:
        arguments += ["--agreement", options["agreement"]]
    if kind == "regression":
        arguments += ["--text-encoders", len(names) - 2]
    assert muster(*arguments, "-o", path).returncode == 0
    assert muster("verify", path).returncode == 0
    samples, frames = contents(path)
    for name, values in contents(plain)[0].items():
        np.testing.assert_array_equal(samples[name], values)
    assert list(frames) == names
    groups = np.unique(samples["group"], return_inverse=True)[1]
    for sample, label in enumerate(samples["label"]):
        if kind == "regression":
            hidden = normals(seed, sample, 0, HIDDEN, 0)
            assert label == np.float32(np.rint(np.clip(hidden[:3].sum() + 0.25 * hidden[3], -3, 3) * 5) / 5)
        for name in names:
            expected = expected_frames(kind, name, sample, label, groups[sample], noise, seed, **options)
            assert frames[name][sample].shape == expected.shape
            np.testing.assert_allclose(frames[name][sample], expected, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_planted_is_refused(path):
    for kind, options, text in [("regression", ["--without-signal", "text_b"], '"text_b", which is not among its modalities: "audio", "text", "vision"'),
                                ("classification", ["--agreement", "1.5"], "from 0 to 1"), ("regression", ["--agreement", "0.5"], "for classification"),
                                ("regression", ["--text-encoders", "4"], "from 1 to 3"), ("classification", ["--text-encoders", "2"], "for regression")]:
        answer = muster("synth", "--kind", kind, *options, "-o", path)
        assert answer.returncode == BAD_CONFIG and text in answer.stderr, answer
    assert not path.exists()


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


def test_agreement_puts_all_of_the_class_into_each_modality(path):
    """And a modality without signal tells no more than the largest class's share of 0.3 (less what 120 test samples scatter)."""
    from sklearn.linear_model import LogisticRegression
    assert muster("synth", "--kind", "classification", "--agreement", 1, "-o", path).returncode == 0
    other = path.with_name("other.h5")
    assert muster("synth", "--kind", "classification", "--without-signal", "vision", "-o", other).returncode == 0

    def accuracy(file, name):
        pooled, labels, test = mean_pooled(file)
        features = pooled[name]
        return LogisticRegression(max_iter=2000).fit(features[~test], labels[~test]).score(features[test], labels[test])
    assert accuracy(path, "audio") > 0.78 and accuracy(path, "vision") > 0.78
    assert accuracy(other, "vision") < 0.40 and accuracy(other, "audio") > 0.5


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
