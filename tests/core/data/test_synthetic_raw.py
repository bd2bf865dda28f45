"""Built-in raw data as numpy generates it, and as scikit-learn sees it."""
import h5py
import numpy as np
import philox
import pytest

from container_files import BAD_CONFIG, muster
from container_files import path, tmp_path  # noqa: F401 (fixtures)

SAMPLE, NOISE, WORD = 13, 14, 15  # core/data/synthetic_raw.cpp has the formulas
RATE = 16000


def below(word, count):
    return int(word) * count >> 32


def plan(seed, sample, modality):
    """Length, first and end row of the signal, whether the own and the other bit are shown wrong."""
    words = philox.words(seed, (sample, modality, SAMPLE, 0))
    shortest, longest = ((4800, 24000), (2, 18))[modality]
    length = shortest + below(words[0], longest - shortest + 1)
    third = -(-length // 3)
    begin = below(words[1], length - third + 1)
    return length, begin, begin + third, philox.uniform(words[2]) < 0.05, philox.uniform(words[3]) < 0.40


def expected_audio(seed, sample, label, group, noise, silent):
    length, begin, end, own_wrong, other_wrong = plan(seed, sample, 0)
    t = np.arange(length)
    phases = philox.uniform(philox.words(seed, (sample, 0, SAMPLE, 1)))
    u = philox.uniform(philox.words(seed, (np.arange(-(-length // 4)), sample, NOISE, 0)))
    radius, angle = np.sqrt(-2 * np.log(u[:, ::2])), 2 * np.pi * u[:, 1::2]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1)[:length]

    def tone(frequency, phase):
        return np.sin(2 * np.pi * (frequency * t / RATE + phase))
    values = 0.1 * tone(100 + 30 * group, phases[2]) + 0.05 * noise * normals
    if not silent:
        own, other = (label >= 2) != own_wrong, (label % 2 == 1) != other_wrong
        signal = 0.2 * tone(1200 if own else 400, phases[0]) + 0.2 * tone(3200 if other else 2000, phases[1])
        values[begin:end] += signal[begin:end]
    return np.clip(values, -1, 1)


def expected_text(seed, sample, label, noise, silent):
    length, begin, end, own_wrong, other_wrong = plan(seed, sample, 1)
    own, other = int((label % 2 == 1) != own_wrong), int((label >= 2) != other_wrong)
    ids = [2]
    for t in range(length):
        words = philox.words(seed, (t, sample, WORD, 0))
        if silent or not begin <= t < end or philox.uniform(words[1]) < noise / (noise + 9):
            ids.append(32 + below(words[0], 32))
        else:
            ids.append(4 + (14 + 7 * other if (t - begin) % 2 else 7 * own) + below(words[0], 7))
    return ids + [3]


def contents(path):
    with h5py.File(path) as f:
        rows = {name: [f[f"modalities/{name}/values"][a:b, 0] for a, b in zip(f[f"modalities/{name}/offsets"][:], f[f"modalities/{name}/offsets"][1:])]
                for name in f["modalities"]}
        samples = {name: f["samples/" + name][:] if name == "label" else f["samples/" + name].asstr()[:] for name in f["samples"]}
        return rows, samples


@pytest.mark.parametrize("noise, without", [(0.7, None), (0, "audio"), (40, "text")])
def test_every_number_is_the_documented_one(path, noise, without):
    seed = 2**40 + 7
    arguments = ["synth", "--kind", "classification", "--samples", 11, "--seed", seed, "--noise", noise]
    features = path.with_name("features.h5")
    assert muster(*arguments, "-o", features).returncode == 0
    arguments += ["--without-signal", without] if without else []
    assert muster(*arguments, "--raw", "-o", path).returncode == 0
    answer = muster("verify", path)
    assert answer.returncode == 0, answer.stderr
    rows, samples = contents(path)
    for name, values in contents(features)[1].items():
        np.testing.assert_array_equal(samples[name], values)
    with h5py.File(path) as f:
        assert f.attrs["name"] == "synthetic-iemocap-raw" and list(f["modalities"]) == ["audio", "text"]
        assert f["modalities/audio/values"].dtype == "<f4" and f["modalities/audio"].attrs["sample_rate"] == RATE
        assert f["modalities/text/values"].dtype == "<i4" and "sample_rate" not in f["modalities/text"].attrs
    groups = np.unique(samples["group"], return_inverse=True)[1]
    for i, label in enumerate(samples["label"]):
        audio = expected_audio(seed, i, label, groups[i], noise, without == "audio")
        assert rows["audio"][i].shape == audio.shape and 0.3 * RATE <= len(audio) <= 1.5 * RATE
        np.testing.assert_allclose(rows["audio"][i], audio, rtol=1e-6, atol=1e-6)
        assert rows["text"][i].tolist() == expected_text(seed, i, label, noise, without == "text")
        assert 4 <= len(rows["text"][i]) <= 20 and rows["text"][i].max() < 64


def test_the_class_needs_both_modalities(path):
    from sklearn.linear_model import LogisticRegression
    assert muster("synth", "--kind", "classification", "--samples", 400, "--raw", "-o", path).returncode == 0
    rows, samples = contents(path)
    test = samples["split"] == "test"

    def strength(wave, frequency):
        """The loudest twentieth of a second of this tone."""
        turns = np.exp(-2j * np.pi * frequency * np.arange(800) / RATE)
        return np.log(np.abs(wave[:len(wave) // 800 * 800].reshape(-1, 800) @ turns).max())
    features = {"audio": np.array([[strength(wave, f) for f in (400, 1200, 2000, 3200)] for wave in rows["audio"]]),
                "text": np.array([[((ids >= low) & (ids < low + 7)).mean() for low in (4, 11, 18, 25)] for ids in rows["text"]])}

    def accuracy(names):
        x = np.concatenate([features[name] / features[name].std(0) for name in names], 1)
        return LogisticRegression(max_iter=2000).fit(x[~test], samples["label"][~test]).score(x[test], samples["label"][test])
    both = accuracy(["audio", "text"])
    print(both, accuracy(["audio"]), accuracy(["text"]))
    assert both > 0.75
    for name in features:
        assert 0.40 < accuracy([name]) < both - 0.12


def test_what_raw_data_has_not(path):
    for kind, options, text in [("regression", [], "raw is for classification"), ("classification", ["--agreement", "0.5"], "raw data has no agreement"),
                                ("classification", ["--without-signal", "vision"], '"vision", which is not among its modalities: "audio", "text"')]:
        answer = muster("synth", "--kind", kind, "--raw", *options, "-o", path)
        assert answer.returncode == BAD_CONFIG and text in answer.stderr, answer
    assert not path.exists()
