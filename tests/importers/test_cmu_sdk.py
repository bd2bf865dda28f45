"""The importer of the CMU SDK's computational sequences, against a slow reading of what the SDK's align, impute and hard_unify do:
every interval is compared with every other, nothing is sorted or searched."""
import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tokenizers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import cmu_sdk  # noqa: E402

EPSILON = 10e-6
ROOTS = {"text": "glove_vectors", "audio": "COVAREP", "vision": "FACET 4.2"}


def write_csd(path, root, videos, metadata=None):
    """videos: {entry: (intervals, features)}, as the SDK's write_CSD stores them."""
    with h5py.File(path, "w") as file:
        data = file.create_group(root).create_group("data")
        for entry, (intervals, features) in videos.items():
            group = data.create_group(entry)
            group.create_dataset("features", data=features, compression="gzip")
            group.create_dataset("intervals", data=intervals, compression="gzip")
        keys = {"root name": root, "md5": None, "dimension namescomputational sequence version": "as the SDK's list without a comma has it",
                **(metadata or {})}
        for key, value in keys.items():
            file.create_dataset(f"{root}/metadata/{key}", (1,), dtype=h5py.string_dtype())[0] = json.dumps(value)


def frames(generator, step, dim, length, gap=None, shuffle=False):
    """A modality's frames of `step` seconds; none in the gap; in any order."""
    starts = np.arange(0, length, step)
    intervals = np.stack([starts, starts + step], axis=1)
    if gap:
        intervals = intervals[(intervals[:, 1] <= gap[0]) | (intervals[:, 0] >= gap[1])]
    if shuffle:
        intervals = intervals[generator.permutation(len(intervals))]
    return intervals, generator.normal(size=(len(intervals), dim)).astype(np.float32)


def words(generator, count):
    """Words of a quarter of a second with pauses now and then; the fourth takes no time, two overlap and two start together."""
    starts = 0.1 + np.cumsum(generator.choice([0.25, 0.25, 0.55], size=count))
    intervals = np.stack([starts, starts + 0.25], axis=1)
    intervals[3, 1] = intervals[3, 0]
    intervals[6, 0], intervals[8, 0] = intervals[5, 0] + 0.1, intervals[7, 0]
    return intervals, generator.normal(size=(count, 6)).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    """abc and abcd share a prefix: what lacks the one must not remove the other. v2 has a gap in its audio, which begins within a word
    through which a border goes later, and a frame of vision over many others; v3 no vision; v4 no labels."""
    generator = np.random.default_rng(5)
    text = {video: words(generator, 40) for video in ("abc", "abcd", "v2", "v3", "v4")}
    length = {video: float(intervals.max()) for video, (intervals, _) in text.items()}
    cut = text["v2"][0][20, 0]
    audio = {video: frames(generator, 0.03, 5, length[video], (cut + 0.1, cut + 1.7) if video == "v2" else None) for video in text if video != "abc"}
    vision = {video: frames(generator, 0.07, 4, length[video], None, video == "abcd") for video in text if video != "v3"}
    vision["v2"][0][20] = [1.4, 6]
    # Entries of one video in several parts, as after an alignment: 12 comes before 2 in the file.
    intervals, values = audio.pop("abcd")
    audio |= {f"abcd[{i}]": (part, value) for i, (part, value) in enumerate(zip(np.array_split(intervals, 13), np.array_split(values, 13)))}
    labels = {}
    for video in ("abc", "abcd", "v2", "v3"):
        borders = np.linspace(0.1, length[video] - 1, 14)
        if video == "v2":
            borders[np.abs(borders - cut).argmin()] = cut + 0.2
        segments = np.stack([borders[:-1], borders[1:]], axis=1)
        segments[4, 1] = segments[4, 0]  # removed by its authors, who gave it no length
        labels[video] = segments, generator.integers(-15, 16, size=(13, 1)).astype(np.float32) / 5
    sequences = {"text": text, "audio": audio, "vision": vision, "labels": labels}
    for name, videos in sequences.items():
        write_csd(tmp_path / f"{name}.csd", ROOTS.get(name, "Opinion Segment Labels"), videos)
    (tmp_path / "folds.json").write_text(json.dumps({"train": ["abcd"], "valid": ["v2"], "test": [f"unknown{i}" for i in range(5)]}))
    return tmp_path, sequences


def run(folder, *arguments, modalities=("text", "audio", "vision"), code=0):
    command = [f"--modality={name}={folder}/{name}.csd" for name in modalities] + [f"--labels={folder}/labels.csd", f"-o={folder}/out.h5"]
    before = sorted(folder.iterdir())
    found = cmu_sdk.main([*command, *map(str, arguments)])
    assert found == code
    if code:
        assert sorted(folder.iterdir()) == before, "something was written"


def contents(folder):
    """({modality: {id: rows}}, {id: label}, {id: split})"""
    with h5py.File(folder / "out.h5") as file:
        ids = list(file["samples/id"].asstr())
        rows = {}
        for name, group in file["modalities"].items():
            offsets, values = group["offsets"][:], group["values"][:]
            rows[name] = {sample: values[a:b] for sample, a, b in zip(ids, offsets, offsets[1:])}
        splits = list(file["samples/split"].asstr()) if "split" in file["samples"] else [""] * len(ids)
        return rows, dict(zip(ids, file["samples/label"][:])), dict(zip(ids, splits))


def whole(videos):
    """Entries abcd[0], abcd[1] ... put together, in the order of their numbers."""
    parts = {}
    for entry in sorted(videos, key=lambda entry: [int(number) for number in re.findall(r"\[(\d+)\]", entry)]):
        parts.setdefault(entry.split("[")[0], []).append(videos[entry])
    return {video: tuple(np.concatenate(arrays) for arrays in zip(*found)) for video, found in parts.items()}


def slow_overlap(reference, intervals, features):
    """The common times and the features of what overlaps, by looking at every row in order of its start."""
    found = []
    for row in sorted(range(len(intervals)), key=lambda row: intervals[row][0]):
        start, end = intervals[row]
        if start - reference[1] < EPSILON and reference[0] - end < EPSILON:
            common = max(start, reference[0]), min(end, reference[1])
            if abs(common[1] - common[0]) > EPSILON:
                found.append((common, features[row]))
    return [list(times) for times in zip(*found)] if found else ([], [])


def slow_alignment(sequences, collapse=True):
    """{modality: {id: rows}} after align(words), impute, align(segments) and hard_unify, and the words that were imputed."""
    parts = {name: whole(videos) for name, videos in sequences.items()}
    result, imputed = {name: {} for name in ROOTS}, {name: 0 for name in ROOTS}
    for video in set.intersection(*(set(videos) for videos in parts.values())):
        text = parts["text"][video]
        spoken = [(word, vector) for word, vector in zip(*text) if abs(word[1] - word[0]) >= EPSILON]
        for name in ROOTS:
            times, rows, late = [], [], []
            for word, vector in spoken:
                common, values = ([word], [vector]) if name == "text" else slow_overlap(word, *parts[name][video])
                if len(common) == 0:
                    late.append((word, np.zeros(parts[name][video][1].shape[1])))
                elif collapse:
                    times.append((min(t[0] for t in common), max(t[1] for t in common)))
                    rows.append(np.average(np.stack(values), axis=0))
                else:
                    times += common
                    rows += values
            imputed[name] += len(late)
            times, rows = times + [word for word, _ in late], rows + [row for _, row in late]  # imputed entries come last
            for number, segment in enumerate(parts["labels"][video][0]):
                if abs(segment[1] - segment[0]) >= EPSILON:
                    result[name][f"{video}[{number}]"] = slow_overlap(segment, times, rows)[1]
    complete = {sample for sample in result["text"] if all(len(result[name][sample]) for name in ROOTS)}
    return {name: {sample: np.array(result[name][sample]) for sample in complete} for name in ROOTS}, imputed


def compare(folder, expected):
    rows, labels, splits = contents(folder)
    for name, samples in expected.items():
        assert rows[name].keys() == samples.keys()
        for sample, values in samples.items():
            np.testing.assert_allclose(rows[name][sample], values, rtol=0, atol=1e-6, err_msg=f"{name} {sample}")
    return labels, splits


def test_words_are_aligned_as_the_sdk_does(data, capsys):
    folder, sequences = data
    expected, imputed = slow_alignment(sequences)
    run(folder, "--folds", folder / "folds.json")
    labels, splits = compare(folder, expected)
    assert imputed["audio"] >= 3 and imputed["vision"] == 0
    # Segments of a video are in the order of their numbers, although HDF5 lists [10] before [2]; number 4 took no time.
    assert [sample for sample in labels if sample.startswith("abcd")] == [f"abcd[{i}]" for i in range(13) if i != 4]
    for sample, label in labels.items():
        video, number = sample[:-1].split("[")
        assert label == sequences["labels"][video][1][int(number), 0]
        assert splits[sample] == {"abcd": "train", "v2": "valid"}[video]
    out = capsys.readouterr().out
    assert f"audio: {imputed['audio']} words without frames, filled with zeros" in out
    assert "aligned with 80 words of text, of which 2 take no time" in out
    assert "videos left out, which audio lacks (1): abc\n" in out and "videos left out, which vision lacks (1): v3\n" in out
    assert "videos left out, which have no labels (1): v4\n" in out and "segments left out, since they take no time (2): abcd[4], v2[4]" in out
    assert "videos of the folds that have no samples (5): unknown0, unknown1, unknown2 ...\n" in out
    assert any(len(expected["audio"][sample]) < len(rows) for sample, rows in expected["text"].items())  # of the word that is cut
    spoken = np.concatenate([rows[:, 0] for rows in contents(folder)[0]["text"].values()])
    assert len(spoken) > len(np.unique(spoken))  # a word on a border belongs to both segments


def test_all_frames_of_a_word(data):
    folder, sequences = data
    run(folder, "--collapse", "none")
    compare(folder, slow_alignment(sequences, collapse=False)[0])


def test_the_last_rows_are_kept(data):
    folder, sequences = data
    run(folder, "--max-frames", 2)
    compare(folder, {name: {sample: rows[-2:] for sample, rows in samples.items()} for name, samples in slow_alignment(sequences)[0].items()})


def test_words_without_frames_may_be_skipped(data):
    folder, sequences = data
    run(folder, "--missing-frames", "skip", "--missing", "empty", modalities=("text", "audio"))
    rows = contents(folder)[0]
    expected = slow_alignment(sequences)[0]["audio"]
    for sample, values in expected.items():
        np.testing.assert_allclose(rows["audio"][sample], values[(values != 0).any(axis=1)].reshape(-1, 5), rtol=0, atol=1e-6)
    assert len(rows["text"]["abc[0]"]) > 0 and rows["audio"]["abc[0]"].shape == (0, 5)  # abc has no audio, and is a sample all the same
    assert len(rows["text"]) == 48


def test_segments_keep_the_frames_of_each_modality(data):
    folder, sequences = data
    run(folder, "--align", "segments", "--missing", "empty", modalities=("audio", "vision"))
    rows = contents(folder)[0]
    for name in ("audio", "vision"):
        parts = whole(sequences[name])
        for video, (segments, _) in sequences["labels"].items():
            for number, segment in enumerate(segments):
                if number != 4 and video in parts:
                    expected = np.array(slow_overlap(segment, *parts[video])[1]).reshape(-1, parts[video][1].shape[1])
                    np.testing.assert_array_equal(rows[name][f"{video}[{number}]"], expected)


def test_aligned_files_are_taken_as_they_are(data):
    folder, sequences = data
    labels = {f"v2[{i}]": (segment[None], value[None]) for i, (segment, value) in enumerate(zip(*sequences["labels"]["v2"]))}
    audio = {f"v2[{i}]": (np.zeros((i, 2)) + [0, 1], np.full((i, 3), i, dtype=np.float32)) for i in range(1, 13)}
    write_csd(folder / "labels.csd", "labels", labels)
    write_csd(folder / "audio.csd", "audio", audio)
    run(folder, modalities=("audio",), code=65, *["--align", "segments"])
    run(folder, "--align", "none", modalities=("audio",))
    rows = contents(folder)[0]["audio"]
    assert list(rows) == [f"v2[{i}]" for i in range(1, 13)]
    assert all((rows[f"v2[{i}]"] == np.full((i, 3), i)).all() and len(rows[f"v2[{i}]"]) == i for i in range(1, 13))


def test_words_become_tokens(data):
    folder, sequences = data
    spoken, vectors = sequences["text"]["v2"]
    names = np.array([b"sp" if i % 5 == 2 else b"w%d" % i for i in range(len(spoken))])[:, None]
    write_csd(folder / "words.csd", "words", {"v2": (spoken, names)})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, **{f"w{i}": i + 1 for i in range(40)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    run(folder, "--text", f"text={folder}/words.csd", "--tokenizer", folder, modalities=("audio",))
    rows = contents(folder)[0]
    # The audio is aligned with all words, pauses included; the text has no pauses.
    expected = slow_alignment(sequences)[0]
    for number, segment in enumerate(sequences["labels"]["v2"][0]):
        if number != 4:
            kept = [i for i in slow_overlap(segment, spoken, range(len(spoken)))[1] if i != 3 and i % 5 != 2]
            assert rows["text"][f"v2[{number}]"][:, 0].tolist() == [i + 1 for i in kept]
            np.testing.assert_allclose(rows["audio"][f"v2[{number}]"], expected["audio"][f"v2[{number}]"], rtol=0, atol=1e-6)


def test_infinity_survives_the_mean(data, capsys):
    folder, sequences = data
    word = sequences["text"]["v2"][0][1]
    sequences["audio"]["v2"][1][int(word[0] / 0.03) + 3, 2] = -np.inf
    write_csd(folder / "audio.csd", "COVAREP", sequences["audio"])
    run(folder, code=65)
    error = capsys.readouterr().err
    assert "audio.csd: segment v2[" in error and "values are not finite, the first is -inf" in error and "--nonfinite zero" in error
    run(folder, "--nonfinite", "zero")
    expected = slow_alignment(sequences)[0]
    found = sum(int(np.isneginf(rows[:, 2]).sum()) for rows in expected["audio"].values())
    assert found >= 1 and f"set to 0: {found} -inf" in capsys.readouterr().out
    expected["audio"] = {sample: np.where(np.isfinite(rows), rows, 0) for sample, rows in expected["audio"].items()}
    compare(folder, expected)


def mosei(folder, sequences):
    generator = np.random.default_rng(2)
    labels = {video: (segments, np.concatenate([values, generator.integers(0, 4, size=(13, 6)) * (generator.random((13, 6)) < 0.4)], axis=1))
              for video, (segments, values) in sequences["labels"].items()}
    write_csd(folder / "labels.csd", "All Labels", labels)
    return labels


def test_emotions(data, capsys):
    folder, sequences = data
    labels = mosei(folder, sequences)
    run(folder, "--label", "emotions")
    with h5py.File(folder / "out.h5") as file:
        assert file.attrs["task"] == "multilabel"
        emotions = ["happy", "sad", "anger", "surprise", "disgust", "fear"]
        assert list(file.attrs["class_names"]) == emotions
        rows = np.array([labels[sample[:-1].split("[")[0]][1][int(sample[:-1].split("[")[1])] for sample in file["samples/id"].asstr()])
        np.testing.assert_array_equal(file["samples/label"][:], rows[:, 1:] > 0)
        assert set(file["samples/targets"]) == {"sentiment", "emotions", *emotions}
        for column, name in enumerate(["sentiment", *emotions]):
            np.testing.assert_array_equal(file[f"samples/targets/{name}"][:], rows[:, column].astype(np.float32))
    run(folder)
    with h5py.File(folder / "out.h5") as file:
        assert file.attrs["task"] == "regression" and set(file["samples/targets"]) == {"sentiment", "emotions", *emotions}
        np.testing.assert_array_equal(file["samples/label"][:], rows[:, 0].astype(np.float32))
        np.testing.assert_array_equal(file["samples/targets/emotions"][:], rows[:, 1:] > 0)
    run(folder, "--label", "joy", code=65)
    assert 'there is no label "joy"; ' in capsys.readouterr().err


def test_label_names_come_from_the_file(data, capsys):
    folder, sequences = data
    labels = {video: (segments, np.repeat(values, 3, axis=1)) for video, (segments, values) in sequences["labels"].items()}
    write_csd(folder / "labels.csd", "labels", labels)
    run(folder, code=65)
    assert "say --label-names" in capsys.readouterr().err
    write_csd(folder / "labels.csd", "labels", labels, {"dimension names": ["confident", "vivid", "humorous"]})
    run(folder, "--label", "vivid")
    with h5py.File(folder / "out.h5") as file:
        assert set(file["samples/targets"]) == {"confident", "vivid", "humorous"}


def test_folds_of_the_sdk_are_parsed_and_never_run(data, capsys):
    folder, _ = data
    (folder / "folds.py").write_text(f"import os\nos.system('touch {folder}/run')\nstandard_train_fold=['v2',\n'abcd']\n"
                                     "standard_valid_fold=[]\nstandard_test_fold = ['v3']\n")
    run(folder, "--folds", folder / "folds.py")
    assert set(contents(folder)[2].values()) == {"train"} and not (folder / "run").exists()
    for text, message in (("standard_train_fold = open('/etc/passwd')", "is no Python file of folds"), ("x = " + "(" * 500, "is no Python file"),
                          ("y = 1", "expected the lists"), ("train_fold = ['v2']\ntest_fold = ['v2']", 'the video "v2" is in train and in test')):
        (folder / "folds.py").write_text(text)
        (folder / "out.h5").unlink(missing_ok=True)
        run(folder, "--folds", folder / "folds.py", code=65)
        assert message in capsys.readouterr().err
    run(folder, "--folds", "mosi", code=65)
    assert "not one of the videos is in these folds" in capsys.readouterr().err


def test_standard_folds_of_mosi():
    folds = cmu_sdk.read_folds(cmu_sdk.STANDARD_FOLDS["mosi"])
    assert [sum(split == name for split in folds.values()) for name in ("train", "valid", "test")] == [52, 10, 31]


def change(path, function):
    with h5py.File(path, "r+") as file:
        function(file[next(iter(file))]["data"])


def set_interval(entry, row, values):
    def function(data):
        intervals = data[entry]["intervals"][:]
        intervals[row] = values
        data[entry]["intervals"][...] = intervals
    return function


def replace(entry, **arrays):
    def function(data):
        for name, array in arrays.items():
            del data[entry][name]
            data[entry][name] = array
    return function


WRONG = [
    ("audio", set_interval("v2", 3, [np.nan, 1]), "1 of its", "number 3, [nan, 1.0]"),
    ("audio", set_interval("v2", 3, [2.0, 1.0]), "not from an earlier to a later time", "number 3, [2.0, 1.0]"),
    ("labels", set_interval("v2", 0, [np.inf, 1]), "labels.csd", "number 0"),
    ("text", replace("v2", features=np.zeros((7, 6))), "40 intervals for 7 frames of features"),
    ("audio", replace("v2", intervals=np.zeros((5, 3))), "intervals of shape [5, 3]"),
    ("audio", replace("v2", features=np.zeros((5, 2, 2))), "features of shape [5, 2, 2]"),
    ("audio", replace("v2", features=np.array([b"word"] * 5)[:, None], intervals=np.zeros((5, 2))), "expected real numbers; --text"),
    ("audio", lambda data: data["v2"].pop("features"), 'has no "features"'),
    ("vision", lambda data: data.pop("v2") and None or data.__setitem__("v2", np.zeros(3)), '"v2" is no group'),
    ("vision", replace("v2", features=np.zeros((5, 9)), intervals=np.zeros((5, 2))), "9 features, but"),
    ("labels", replace("v2", features=np.full((13, 1), np.nan)), "its labels are not all finite numbers"),
    ("labels", replace("v2", features=np.zeros((13, 2))), "2 features, but"),
]


@pytest.mark.parametrize("name, function, messages", [(name, function, messages) for name, function, *messages in WRONG])
def test_wrong_data_is_refused_or_left_out(data, capsys, name, function, messages):
    folder, _ = data
    change(folder / f"{name}.csd", function)
    run(folder, code=65)
    error = capsys.readouterr().err
    assert f'{name}.csd: video "v2"' in error and all(message in error for message in messages), error
    assert "1 problem; nothing was written" in error
    run(folder, "--bad-videos", "drop")
    assert "videos left out, since their data are wrong (1): v2" in capsys.readouterr().out
    assert {sample.split("[")[0] for sample in contents(folder)[1]} == {"abcd"}


def test_bad_times_may_be_left_out(data, capsys):
    folder, sequences = data
    for name, row, values in (("audio", 200, [7.0, 6.0]), ("audio", 3, [np.nan, 1.0]), ("text", 30, [9.0, np.inf]), ("labels", 9, [4.0, 3.0])):
        change(folder / f"{name}.csd", set_interval("v2", row, values))
        sequences[name]["v2"][0][row] = 0  # no time at all: nobody takes it for anything
    run(folder, "--bad-times", "drop")
    compare(folder, slow_alignment(sequences)[0])
    out = capsys.readouterr().out
    assert all(f"{name}: {number} intervals in 1 videos are not" in out for name, number in (("audio", 2), ("text", 1), ("labels", 1)))
    assert "v2[9]" not in contents(folder)[1] and "v2[8]" in contents(folder)[1]


def test_everything_that_is_wrong_is_listed(data, capsys):
    folder, _ = data
    change(folder / "audio.csd", set_interval("v2", 3, [2.0, 1.0]))
    change(folder / "audio.csd", set_interval("abcd[7]", 0, [2.0, np.nan]))
    change(folder / "vision.csd", lambda data: data["v2"].pop("intervals"))
    run(folder, code=65)
    error = capsys.readouterr().err
    assert "3 problems; nothing was written" in error
    assert all(text in error for text in ('audio.csd: video "v2": 1 of its', 'video "abcd": 1 of its', 'entry "v2": has no "intervals"'))


def test_links_are_not_followed(data, capsys):
    folder, _ = data
    with h5py.File(folder / "secret.h5", "w") as file:
        file["features"] = np.ones((40, 5))
        file.create_group("root/data")
    links = {"external": h5py.ExternalLink("secret.h5", "/features"), "soft": h5py.SoftLink("/COVAREP/data/abcd[0]/features")}
    for link in links.values():
        change(folder / "audio.csd", lambda data: (data["v2"].pop("features", None), data["v2"].__setitem__("features", link)))
        run(folder, code=65)
        assert '"features" is a link, which is not followed' in capsys.readouterr().err
    change(folder / "audio.csd", lambda data: data["v2"].pop("features"))
    layout = h5py.VirtualLayout(shape=(40, 5), dtype="f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "features", shape=(40, 5))
    change(folder / "audio.csd", lambda data: data["v2"].create_virtual_dataset("features", layout))
    run(folder, code=65)
    assert "its features are in another file" in capsys.readouterr().err
    change(folder / "audio.csd", lambda data: (data["v2"].pop("features"), data["v2"].create_dataset(
        "features", (40, 5), "f8", external=[("/etc/passwd", 0, 1600)])))
    run(folder, code=65)
    assert "its features are in another file" in capsys.readouterr().err
    with h5py.File(folder / "audio.csd", "w") as file:
        file["root"] = h5py.ExternalLink("secret.h5", "/root")
    run(folder, code=65)
    assert "found 0 such groups" in capsys.readouterr().err


def test_a_dataset_that_claims_more_than_the_file_holds(data, capsys):
    folder, _ = data
    change(folder / "audio.csd", lambda data: (data["v2"].pop("features"), data["v2"].create_dataset(
        "features", (10**12, 74), "f4", chunks=(1000, 74), compression="gzip")))
    run(folder, code=65)
    assert "its features claim" in capsys.readouterr().err


def test_files_that_are_no_sequences(data, capsys):
    folder, _ = data
    (folder / "text.csd").write_bytes(b"no HDF5")
    (folder / "audio.csd").unlink()
    with h5py.File(folder / "vision.csd", "w") as file:
        file["data"] = np.zeros(3)
    run(folder, code=65)
    error = capsys.readouterr().err
    assert "text.csd: is no HDF5 file" in error and "audio.csd: does not exist" in error and "vision.csd: expected one group" in error


def test_damaged_files_are_refused(data, capsys):
    """Whatever byte is wrong: an error for people, or good values that were not touched."""
    folder, _ = data
    generator = np.random.default_rng(11)
    whole = (folder / "audio.csd").read_bytes()
    for attempt in range(12):
        content = bytearray(whole[:generator.integers(1, len(whole))] if attempt % 3 == 0 else whole)
        for position in generator.integers(0, min(len(content), 20000), size=40):
            content[position] = generator.integers(256)
        (folder / "audio.csd").unlink()
        (folder / "audio.csd").write_bytes(content)
        code = cmu_sdk.main([f"--modality=text={folder}/text.csd", f"--modality=audio={folder}/audio.csd", f"--labels={folder}/labels.csd",
                             "--nonfinite=zero", f"-o={folder}/out.h5"])
        assert code in (0, 65), capsys.readouterr().err
        assert (folder / "out.h5").exists() == (code == 0) and not list(folder.glob(".tmp*"))
        (folder / "out.h5").unlink(missing_ok=True)
    (folder / "audio.csd").write_bytes(whole)
    change(folder / "audio.csd", lambda data: data.create_group(b"v\xff"))
    run(folder, code=65)
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_metadata_may_be_broken(data):
    folder, sequences = data
    with h5py.File(folder / "labels.csd", "r+") as file:
        del file["Opinion Segment Labels/metadata"]
        file["Opinion Segment Labels/metadata/dimension names"] = np.zeros(3)
    with h5py.File(folder / "audio.csd", "r+") as file:
        file["COVAREP/metadata/root name"][0] = "{ no JSON"
    run(folder)
    compare(folder, slow_alignment(sequences)[0])


def test_strange_ids_are_only_names(data):
    folder, sequences = data
    for name, videos in sequences.items():
        write_csd(folder / f"{name}.csd", ROOTS.get(name, "labels"), {{"v2": ".."}.get(video, video): found for video, found in videos.items()})
    before = {path for path in folder.parent.rglob("*")}
    run(folder)
    assert "..[0]" in contents(folder)[1] and {path for path in folder.parent.rglob("*")} - before == {folder / "out.h5"}


def test_same_input_same_bytes(data):
    folder, _ = data
    run(folder)
    first = (folder / "out.h5").read_bytes()
    run(folder)
    assert (folder / "out.h5").read_bytes() == first
