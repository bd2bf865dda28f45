"""merge, subset and split, run as `muster data` runs them, on containers that h5py writes and reads. The program itself verifies
what they write."""
import csv
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from written_containers import ROOT, done, equal, folder, read, refused, sentiment, verify, write, write_lines  # noqa: F401

import merge
import read_container
import split
import subset


# merge


def test_merge_joins_by_id(sentiment, capsys):
    summary = done(capsys, merge, "base.h5", "other.h5", "--take", "text_b=text", "--take", "extra", "-o", "out.h5")
    assert "text_b: 10 features" in summary and verify("out.h5")
    base, other, joined = read("base.h5"), read("other.h5"), read("out.h5")
    for key in ("task", "classes", "id", "group", "split", "label", "targets"):
        assert joined[key] == base[key]
    assert sorted(joined["frames"]) == ["audio", "extra", "text", "text_b", "vision"]
    assert joined["dtype"]["text"] == np.float16
    places = [other["id"].index(sample) for sample in joined["id"]]  # the join, by hand
    for name, source in (("text_b", "text"), ("extra", "extra")):
        for row, place in enumerate(places):
            np.testing.assert_array_equal(joined["frames"][name][row], other["frames"][source][place])
    for name in base["frames"]:
        for mine, theirs in zip(joined["frames"][name], base["frames"][name]):
            np.testing.assert_array_equal(mine, theirs)
    with h5py.File("out.h5") as file:
        assert file.attrs["name"] == "mosi" and "--take text_b=text" in file.attrs["command"] and len(file.attrs["sources_sha256"]) == 64


def test_merge_is_deterministic_and_may_replace_its_input(sentiment, capsys):
    for name in ("a.h5", "b.h5"):
        Path("same").mkdir(exist_ok=True)
        done(capsys, merge, "base.h5", "other.h5", "--take", "extra", "-o", "same/out.h5")
        os.rename("same/out.h5", name)
    assert Path("a.h5").read_bytes() == Path("b.h5").read_bytes()
    done(capsys, merge, "base.h5", "other.h5", "--take", "extra", "-o", "base.h5")
    assert equal(read("base.h5"), read("a.h5"))


def test_merge_replaces_only_when_asked(sentiment, capsys):
    problems = refused(capsys, 65, merge, "base.h5", "other.h5", "--take", "text", "-o", "out.h5")
    assert 'has a modality "text" already; --replace' in problems[0] and len(problems) == 2
    done(capsys, merge, "base.h5", "other.h5", "--take", "text", "--replace", "-o", "out.h5")
    assert read("out.h5")["frames"]["text"][0].shape[1] == 10 and verify("out.h5")
    assert 'no modality "speech"; it has extra, text' in refused(capsys, 65, merge, "base.h5", "other.h5", "--take", "speech", "-o", "out.h5.h5")[0]
    refused(capsys, 2, merge, "base.h5", "other.h5", "--take", "a=text", "--take", "a=extra", "-o", "x.h5")


def test_merge_with_ids_of_one_side_only(sentiment, capsys):
    done(capsys, subset, "other.h5", "--without-ids", write_lines("lone", "v2$_$3"), "-o", "fewer.h5")
    done(capsys, subset, "base.h5", "--without-ids", write_lines("v1$_$0"), "-o", "base_fewer.h5")
    arguments = ["base_fewer.h5", "fewer.h5", "--take", "text_b=text", "-o", "out.h5"]
    problems = refused(capsys, 65, merge, *arguments)
    listed = [re.search(r'the id "(.*?)" is only in (\w+)', line).groups() for line in problems[:-1]]
    assert sorted(listed) == [("lone", "base_fewer"), ("v1$_$0", "fewer"), ("v2$_$3", "base_fewer")]
    assert "2 samples are only in base_fewer.h5: they lack text_b" in done(capsys, merge, *arguments, "--missing", "empty")
    found = read("out.h5")
    assert found["id"] == [sample for sample in sentiment if sample != "v1$_$0"] and verify("out.h5")
    assert [sample for sample, frames in zip(found["id"], found["frames"]["text_b"]) if not len(frames)] == ["v2$_$3", "lone"]
    assert "left out" in done(capsys, merge, *arguments, "--missing", "drop")
    found = read("out.h5")
    assert found["id"] == [sample for sample in sentiment if sample not in ("v1$_$0", "lone", "v2$_$3")] and verify("out.h5")
    assert all(map(len, found["frames"]["text_b"]))


def test_merge_of_strangers_and_of_a_last_modality(folder, capsys):
    one = [np.ones((1, 2), dtype=np.float32)] * 2
    write("a.h5", ["a", "b"], {"text": one})
    write("b.h5", ["c", "d"], {"speech": one})
    write("c.h5", ["a"], {"text": one[:1]})
    assert "have not one id in common" in refused(capsys, 65, merge, "a.h5", "b.h5", "--missing", "drop", "-o", "out.h5")[0]
    assert '"b" would have not one modality' in refused(capsys, 65, merge, "a.h5", "c.h5", "--replace", "--missing", "empty", "-o", "out.h5")[0]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_merge_lists_labels_that_disagree(folder, capsys, task):
    one = [np.ones((1, 2), dtype=np.float32)] * 4
    ids = ["a", "b", "c", "d"]
    if task == "regression":
        first, second = dict(labels=[0.1, 1 / 3, 2, -1]), dict(labels=[0.1, 0.33333, 2.5, 1])
    else:  # the same classes in another order
        first = dict(task=task, labels=[0, 1, 2, 2], classes=["x", "y", "z"])
        second = dict(task=task, labels=[2, 1, 1, 2], classes=["z", "y", "x"])
    write("a.h5", ids, {"text": one}, **first)
    write("b.h5", ids, {"audio": one}, **second)
    problems = refused(capsys, 65, merge, "a.h5", "b.h5", "-o", "out.h5")
    wrong = ["2 in a.h5, but 2.5", "-1 in a.h5, but 1 in"] if task == "regression" else ["z in a.h5, but y", "z in a.h5, but x"]
    assert len(problems) == 3 and all(f'sample "{sample}": its label is {text}' in line for sample, text, line in zip("cd", wrong, problems))
    assert "2 samples have another label in b.h5" in done(capsys, merge, "a.h5", "b.h5", "--ignore-labels", "-o", "out.h5")
    assert read("out.h5")["label"] == read("a.h5")["label"] and verify("out.h5")


# subset


def chosen(capsys, *arguments):
    done(capsys, subset, "base.h5", *arguments, "-o", "out.h5")
    assert verify("out.h5")
    found, base = read("out.h5"), read("base.h5")
    rows = [base["id"].index(sample) for sample in found["id"]]
    assert rows == sorted(rows), "the order stays"
    for key in ("label", "group", "split"):
        assert found[key] == [base[key][row] for row in rows]
    for name in found["frames"]:
        for mine, row in zip(found["frames"][name], rows):
            np.testing.assert_array_equal(mine, base["frames"][name][row])
    assert found["targets"] == {name: ([values[row] for row in rows], classes) for name, (values, classes) in base["targets"].items()}
    return found


def test_subset_chooses(sentiment, capsys):
    base = read("base.h5")
    assert chosen(capsys, "--split", "valid", "--split", "none")["id"] == sentiment[12:16] + sentiment[21:]
    assert chosen(capsys, "--group", "v1", "--group", "lone")["id"] == sentiment[4:8] + ["lone"]
    assert chosen(capsys, "--where-missing", "vision")["id"] == ["v0$_$1", "lone"]
    assert chosen(capsys, "--complete", "--split", "train")["id"] == [sample for sample in sentiment[:12] if sample != "v0$_$1"]
    assert chosen(capsys, "--complete", "--modalities", "audio,text")["id"] == sentiment
    assert chosen(capsys, "--where-present", "vision", "--first", "3")["id"] == [sentiment[0], *sentiment[2:4]]
    assert chosen(capsys, "--ids", write_lines("ünique id", "", " v0$_$0 "))["id"] == ["v0$_$0", "ünique id"]
    assert list(chosen(capsys, "--modalities", "vision, audio", "--complete")["frames"]) == ["audio", "vision"]
    assert chosen(capsys, "--name", "x", "--sample", "100")["id"] == base["id"]


def test_subset_samples_by_seed(sentiment, capsys):
    draws = [chosen(capsys, "--sample", "8", "--seed", seed)["id"] for seed in (1, 1, 2)]
    assert len(draws[0]) == 8 and draws[0] == draws[1] != draws[2]
    assert set(draws[0]) <= set(chosen(capsys, "--sample", "12", "--seed", "1")["id"])
    counts = defaultdict(int)
    for seed in range(150):  # every sample about equally often
        order = subset.random_order(np.arange(10), [f"s{i}" for i in range(10)], seed)
        for row in order[:3]:
            counts[row] += 1
    assert min(counts.values()) > 25 and max(counts.values()) < 68  # 45 expected, deviation 5.6


def test_subset_of_classes(folder, capsys):
    one = [np.ones((1, 2), dtype=np.float32)] * 5
    write("a.h5", list("abcde"), {"text": one}, "classification", [0, 1, 2, 1, 0], ["x", "y", "z"])
    done(capsys, subset, "a.h5", "--class", "z", "--class", "x", "-o", "out.h5")
    found = read("out.h5")
    assert found["id"] == ["a", "c", "e"] and found["label"] == [0, 2, 0] and found["classes"] == ["x", "y", "z"]
    assert 'no class "w"; it has x, y, z' in refused(capsys, 65, subset, "a.h5", "--class", "w", "-o", "out.h5")[0]
    write("m.h5", list("abc"), {"text": one[:3]}, "multilabel", [[1, 0], [1, 1], [0, 0]], ["x", "y"], targets={"more": ([[1, 0, 1]] * 3, ["p", "q", "r"])})
    done(capsys, subset, "m.h5", "--class", "y", "-o", "out.h5")
    found = read("out.h5")
    assert found["id"] == ["b"] and found["label"] == [[1, 1]] and found["targets"] == {"more": ([[1, 0, 1]], ["p", "q", "r"])}


def test_subset_refuses(sentiment, capsys):
    problems = refused(capsys, 65, subset, "base.h5", "--ids", write_lines("v0$_$0", "nobody"), "--group", "v9", "--class", "sad", "--modalities", "audio,speech",
                       "--where-missing", "smell", "-o", "out.h5")
    for expected in ('lines.txt:2: base.h5 has no sample "nobody"', 'no group "v9"; it has lone', "--class needs labels that are classes",
                     'no modality "speech"; it has audio, text, vision', 'no modality "smell"'):
        assert any(expected in line for line in problems), (expected, problems)
    assert "not one of its 22 samples is left" in refused(capsys, 65, subset, "base.h5", "--split", "test", "--group", "v0", "-o", "out.h5")[0]
    problems = refused(capsys, 65, subset, "base.h5", "--modalities", "vision", "-o", "out.h5")
    assert len(problems) == 3 and '"v0$_$1" has not one of the modalities vision; --complete' in problems[0]
    refused(capsys, 2, subset, "base.h5", "--first", "0", "-o", "out.h5")
    refused(capsys, 2, subset, "base.h5", "--split", "dev", "-o", "out.h5")


# split


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """About 250 samples of 40 groups of very different sizes; classes whose shares differ between groups."""
    generator = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("split") / "grouped.h5"
    sizes = generator.integers(1, 12, 40)
    groups = [f"g{group}" for group, size in enumerate(sizes) for _ in range(size)]
    labels = [int(generator.choice(3, p=[0.7, 0.2, 0.1] if int(group[1:]) % 2 else [0.2, 0.3, 0.5])) for group in groups]
    order = generator.permutation(len(groups))
    write(path, [f"s{i}" for i in order], {"text": [np.ones((1, 1), dtype=np.float32)] * len(groups)}, "classification", [labels[i] for i in order],
          ["x", "y", "z"], groups=[groups[i] for i in order])
    return path


def shares(found):
    splits = np.array(found["split"])
    return np.array([(splits == name).mean() for name in ("train", "valid", "test")])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stratify", [[], ["--stratify"]])
def test_split_by_group(grouped, capsys, seed, stratify):
    done(capsys, split, grouped, "--valid", "0.1", "--test", "0.2", "--by-group", "--seed", seed, *stratify, "-o", "out.h5")
    found = read("out.h5")
    held = defaultdict(set)
    for group, name in zip(found["group"], found["split"]):
        held[group].add(name)
    assert all(len(names) == 1 for names in held.values()), "a group straddles"
    np.testing.assert_allclose(shares(found), [0.7, 0.1, 0.2], atol=0.01)
    if stratify:
        for label in range(3):
            part = np.array(found["split"])[np.array(found["label"]) == label]
            np.testing.assert_allclose([(part == name).mean() for name in ("train", "valid", "test")], [0.7, 0.1, 0.2], atol=0.03)
    assert equal({**found, "split": None}, {**read(grouped), "split": None})


def test_split_is_a_function_of_the_seed(grouped, capsys):
    def drawn(*arguments, source=grouped):
        done(capsys, split, source, "--valid", "0.1", "--test", "0.2", *arguments, "-o", "out.h5")
        found = read("out.h5")
        return dict(zip(found["id"], found["split"]))

    for arguments in (["--by-group"], [], ["--stratify"]):
        assert drawn(*arguments, "--seed", "1") == drawn(*arguments) != drawn(*arguments, "--seed", "2")
    assert verify("out.h5")
    ids = read(grouped)["id"]
    done(capsys, subset, grouped, "--ids", write_lines(*ids), "-o", "same.h5")
    turned = read("same.h5")
    write("turned.h5", turned["id"][::-1], {"text": turned["frames"]["text"][::-1]}, "classification", turned["label"][::-1], turned["classes"],
          groups=turned["group"][::-1])
    for arguments in (["--by-group", "--stratify"], ["--stratify"]):
        assert drawn(*arguments, source="turned.h5") == drawn(*arguments), "the order of the samples does not matter"


@pytest.mark.parametrize("valid, test", [("0.1", "0.2"), ("0", "0.25"), ("0.333", "0")])
def test_split_by_sample_has_exact_shares(grouped, capsys, valid, test):
    count = len(read(grouped)["id"])
    summary = done(capsys, split, grouped, "--valid", valid, "--test", test, "--stratify", "-o", "out.h5")
    assert "groups are in more than one split" in summary
    found = read("out.h5")
    wanted = np.array([1 - float(valid) - float(test), float(valid), float(test)])
    assert np.abs(shares(found) - wanted).max() * count <= 1
    for label in range(3):
        part = np.array(found["split"])[np.array(found["label"]) == label]
        assert np.abs(np.array([(part == name).sum() for name in ("train", "valid", "test")]) - wanted * len(part)).max() <= 2


def test_split_of_regression_by_fifths(sentiment, capsys):
    summary = done(capsys, split, "base.h5", "--test", "0.3", "--stratify", "--seed", "5", "-o", "out.h5")
    assert "base.h5 had splits" in summary and verify("out.h5")
    found = read("out.h5")
    labels = np.array(found["label"])
    assert abs(labels[np.array(found["split"]) == "test"].mean() - labels.mean()) < 0.5


def test_split_from_a_table(sentiment, capsys):
    rows = [["id", "split"], *([sample, "test" if sample.startswith("v3") else "train"] for sample in sentiment)]
    table = write_table(rows)
    done(capsys, split, "base.h5", "--from", table, "--by-group", "-o", "out.h5")
    assert read("out.h5")["split"] == [row[1] for row in rows[1:]] and verify("out.h5")
    rows[3][1], rows[4][1], rows[5] = "valid", "dev", ["nobody", "train"]
    problems = refused(capsys, 65, split, "base.h5", "--from", write_table(rows), "-o", "out2.h5")
    for expected in ('table.csv:5: the split is "train"', 'table.csv:6: base.h5 has no sample "nobody"', f'has no line for the sample "{sentiment[4]}"'):
        assert any(expected in line for line in problems), (expected, problems)
    rows[4][1], rows[5] = "train", [sentiment[4], ""]
    problems = refused(capsys, 65, split, "base.h5", "--from", write_table(rows), "--by-group", "-o", "out2.h5")
    assert problems[0] == 'table.csv: the group "v0" is in train and valid'
    done(capsys, split, "base.h5", "--from", write_table(rows[:4]), "--missing", "empty", "-o", "out.h5")
    assert read("out.h5")["split"] == ["train", "train", "valid", *[""] * 19]


def write_table(rows, name="table.csv"):
    with open(name, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return name


def test_split_refuses(sentiment, capsys):
    for arguments in ([], ["--valid", "1"], ["--valid", "0.5", "--test", "0.5"], ["--valid", "nan"], ["--from", "x.csv", "--test", "0.2"]):
        refused(capsys, 2, split, "base.h5", *arguments, "-o", "out.h5")
    one = [np.ones((1, 2), dtype=np.float32)] * 2
    write("few.h5", ["a", "b"], {"text": one}, groups=["g", "g"])
    write("none.h5", ["a", "b"], {"text": one}, groups=["g", ""])
    assert "1 groups cannot be split into train and test" in refused(capsys, 65, split, "few.h5", "--test", "0.5", "--by-group", "-o", "out.h5")[0]
    assert "2 samples cannot be split into" in refused(capsys, 65, split, "few.h5", "--test", "0.3", "--valid", "0.3", "-o", "out.h5")[0]
    assert 'the sample "b" has no group' in refused(capsys, 65, split, "none.h5", "--test", "0.5", "--by-group", "-o", "out.h5")[0]
    assert "--stratify needs labels" in refused(capsys, 65, split, "few.h5", "--test", "0.5", "--stratify", "-o", "out.h5")[0]


# what all read


def test_hostile_containers_are_refused(sentiment, capsys):
    with h5py.File("base.h5") as file:
        whole = Path("base.h5").read_bytes()
    Path("garbage.h5").write_bytes(b"no HDF5")
    Path("cut.h5").write_bytes(whole[:len(whole) // 2])
    with h5py.File("plain.h5", "w") as file:
        file["x"] = [1]

    def changed(name, change):
        Path(name).write_bytes(whole)
        with h5py.File(name, "a") as file:
            change(file)
        return name

    def relinked(file, link):
        del file["modalities/audio/values"]
        file["modalities/audio/values"] = link

    def virtual(file):
        del file["modalities/audio/values"]
        layout = h5py.VirtualLayout(shape=(9, 5), dtype="f4")
        layout[:] = h5py.VirtualSource("other.h5", "modalities/text/values", shape=(9, 5))
        file.create_virtual_dataset("modalities/audio/values", layout)

    def outside(file):
        del file["modalities/audio/values"]
        file.create_dataset("modalities/audio/values", shape=(9, 5), dtype="f4", external=[("/etc/passwd", 0, 180)])

    def huge(file):
        del file["modalities/audio/values"]
        file.create_dataset("modalities/audio/values", shape=(1 << 40, 5), dtype="f4", chunks=(1024, 5), compression="gzip")

    def offsets(file):
        file["modalities/audio/offsets"][3] = 100

    cases = {"garbage.h5": "is no HDF5 file", "cut.h5": "cut.h5", "plain.h5": "no muster-dataset",
             changed("soft.h5", lambda file: relinked(file, h5py.SoftLink("/modalities/text/values"))): "is a link (SoftLink)",
             changed("external.h5", lambda file: relinked(file, h5py.ExternalLink("other.h5", "/modalities/text/values"))): "is a link (ExternalLink)",
             changed("virtual.h5", virtual): "values in another file", changed("outside.h5", outside): "values in another file",
             changed("huge.h5", huge): "were ever written", changed("offsets.h5", offsets): "must rise from 0"}
    for path, expected in cases.items():
        problems = refused(capsys, 65, subset, path, "--first", "1", "-o", "out.h5")
        assert any(expected in line for line in problems), (path, problems)
    refused(capsys, 74, subset, "nowhere.h5", "--first", "1", "-o", "out.h5")
    os.mkfifo("pipe.h5")
    assert "not an ordinary file" in refused(capsys, 65, subset, "pipe.h5", "--first", "1", "-o", "out.h5")[0]
    assert "is not overwritten" in refused(capsys, 2, subset, "base.h5", "-o", "garbage.h5")[0]


def test_a_reader_that_crashes_or_never_ends_is_survived():
    def forever():
        while True:
            pass

    assert read_container.survives(lambda: None, 1) and read_container.survives(lambda: 1 / 0, 1)
    assert not read_container.survives(lambda: os.kill(os.getpid(), signal.SIGKILL), 1)
    assert not read_container.survives(forever, 1)


def test_storage_of_every_kind_is_read(folder, capsys):
    values = (np.arange(24).reshape(6, 4) / 8).astype(np.float64)
    for name, options in {"plain": {}, "gzip": dict(chunks=(2, 4), compression="gzip", shuffle=True), "chunks": dict(chunks=(4, 4)), "big": {}}.items():
        with h5py.File("in.h5", "w") as file:
            file.attrs.update({"format": np.bytes_(b"muster-dataset"), "version": 1, "task": "regression"})
            file["samples/id"] = np.array([b"a", b"b"])  # of fixed length
            file.create_dataset("modalities/text/values", data=values.astype(">f8" if name == "big" else "<f8"), **options)
            file["modalities/text/offsets"] = [0, 2, 6]
        done(capsys, subset, "in.h5", "-o", "out.h5")
        found = read("out.h5")
        assert found["id"] == ["a", "b"] and found["dtype"]["text"] == np.float32 and verify("out.h5")
        np.testing.assert_array_equal(np.concatenate(found["frames"]["text"]), values)
    with h5py.File("in.h5", "a") as file:
        file["modalities/text/values"][3, 2] = -np.inf
        assert np.isinf(file["modalities/text/values"][3, 2])
    assert '"b": 1 of 16 values are not finite' in refused(capsys, 65, subset, "in.h5", "-o", "out2.h5")[0]
    assert "1 -inf" in done(capsys, subset, "in.h5", "--nonfinite", "zero", "-o", "out2.h5")


def test_frames_are_not_held_in_memory(folder):
    """A container of 120 MB through merge and both exports; the process may grow by far less."""
    frames = [np.ones((2000, 500), dtype=np.float32)] * 30
    write("big.h5", [str(i) for i in range(30)], {"audio": frames, "text": [np.ones((1, 2), dtype=np.float32)] * 30, "vision": [np.ones((1, 2), dtype=np.float32)] * 30},
          labels=np.zeros(30), splits=["train"] * 30)
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT / 'importers')!r})
import export, inspect_html, merge
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = [merge.main(["big.h5", "big.h5", "--take", "more=text", "-o", "out.h5"]), export.main(["big.h5", "--format", "mmsa", "-o", "out.pkl"]),
         inspect_html.main(["big.h5", "--html", "out.html"])]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown, codes)
sys.exit(any(codes) or grown > 100_000)
"""
    run = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_as_the_program_runs_it(sentiment):
    for script in ("merge", "subset", "split", "export"):
        run = subprocess.run([sys.executable, "-B", ROOT / "importers" / f"{script}.py", "--help"], capture_output=True, text=True,
                             env={**os.environ, "MUSTER_COMMAND": f"muster data {script}"})
        assert run.returncode == 0 and f"usage: muster data {script} " in run.stdout and f"    muster data {script} " in run.stdout, run
