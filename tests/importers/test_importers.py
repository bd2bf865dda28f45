"""The importers, run as a user runs them, and every Python block of docs/data.md. Results are read with plain h5py."""
import csv
import hashlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import container  # noqa: E402

LENGTHS = {"a": (3, 2), "b": (1, 5), "sub/c": (4, 1), "d": (2, 2)}
ROWS = [["id", "label", "session", "split"], ["a", "sad", "1", "train"], ["b", "happy", "1", "valid"],
        ["sub/c", "sad", "2", "test"], ["d", "angry", "2", ""]]


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(1)
    for sample, lengths in LENGTHS.items():
        for folder, length, dim, dtype in zip(("audio", "video"), lengths, (4, 3), (np.float32, np.float64)):
            path = tmp_path / folder / f"{sample}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, generator.normal(size=(length, dim)).astype(dtype))
    write_manifest(tmp_path, ROWS)
    return tmp_path


def write_manifest(folder, rows):
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def arrays(folder, *arguments, output="out.h5", modalities=("audio=audio/", "vision=video"), **options):
    command = [sys.executable, "-B", ROOT / "importers" / "arrays.py", "--manifest", "manifest.csv", "-o", output]
    for modality in modalities:
        command += ["--modality", modality]
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, **options)


def refused(folder, *arguments, **options):
    """Runs the importer on bad data; returns the problems, one per line."""
    before = sorted(folder.iterdir())
    run = arrays(folder, *arguments, **options)
    assert run.returncode == 65, run.stdout + run.stderr
    assert sorted(folder.iterdir()) == before, "something was written"
    lines = run.stderr.splitlines()
    assert "nothing was written" in lines[-1] and "Traceback" not in run.stderr
    return lines[:-1]


def test_container_holds_what_the_files_hold(data):
    run = arrays(data, "--name", "small")
    assert run.returncode == 0, run.stderr
    assert "4 samples, classification" in run.stdout and "angry 1, happy 1, sad 2" in run.stdout
    with h5py.File(data / "out.h5") as file:
        found = dict(file.attrs, class_names=0)
        files = {"manifest.csv": data / "manifest.csv", **{f"{name}/{sample}.npy": data / folder / f"{sample}.npy" for sample in LENGTHS
                                                           for name, folder in (("audio", "audio"), ("vision", "video"))}}
        listed = "".join(f"{hashlib.sha256(files[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(files))
        assert found.pop("sources_sha256") == hashlib.sha256(listed.encode()).hexdigest()
        assert "--manifest manifest.csv" in found.pop("command")
        assert found == {"format": "muster-dataset", "version": 1, "name": "small", "task": "classification", "class_names": 0}
        assert list(file.attrs["class_names"]) == ["angry", "happy", "sad"]
        assert list(file["samples/id"].asstr()) == list(LENGTHS)
        assert list(file["samples/group"].asstr()) == ["1", "1", "2", "2"]
        assert list(file["samples/split"].asstr()) == ["train", "valid", "test", ""]
        assert file["samples/label"].dtype == np.int64 and file["samples/label"][:].tolist() == [2, 1, 2, 0]
        for name, folder, column in (("audio", "audio", 0), ("vision", "video", 1)):
            values, offsets = file[f"modalities/{name}/values"], file[f"modalities/{name}/offsets"]
            assert values.dtype == np.float32 and values.chunks is None and offsets.dtype == np.int64
            assert offsets[:].tolist() == np.cumsum([0] + [lengths[column] for lengths in LENGTHS.values()]).tolist()
            for i, sample in enumerate(LENGTHS):
                expected = np.load(data / folder / f"{sample}.npy").astype(np.float32)
                np.testing.assert_array_equal(values[offsets[i]:offsets[i + 1]], expected)
    assert not list(data.glob(".tmp-*"))


def test_one_dimension_is_one_frame_and_fortran_order_is_read(data):
    np.save(data / "audio/a.npy", np.arange(4, dtype=np.float16))
    np.save(data / "audio/b.npy", np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    assert arrays(data).returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert file["modalities/audio/offsets"][:3].tolist() == [0, 1, 4]
        np.testing.assert_array_equal(file["modalities/audio/values"][:4], [[0, 1, 2, 3], *np.arange(12).reshape(3, 4)])


def test_missing_modality(data):
    (data / "audio/b.npy").unlink()
    np.save(data / "video/d.npy", np.zeros((0, 3)))
    problems = refused(data)
    assert len(problems) == 2 and "manifest.csv:3" in problems[0] and "audio/b.npy does not exist" in problems[0]
    assert "video/d.npy: no frames (manifest.csv:5)" in problems[1]
    run = arrays(data, "--missing", "empty")
    assert run.returncode == 0 and "missing for 1" in run.stdout
    with h5py.File(data / "out.h5") as file:
        assert file["modalities/audio/offsets"][:].tolist() == [0, 3, 3, 7, 9]


def test_sample_without_any_modality_is_refused(data):
    (data / "audio/b.npy").unlink()
    (data / "video/b.npy").unlink()
    problems = refused(data, "--missing", "empty")
    assert len(problems) == 1 and 'manifest.csv:3: the id "b" has not one modality' in problems[0]


def test_every_problem_is_reported_at_once(data):
    np.save(data / "audio/a.npy", np.array([[1, 2, np.nan, 4]] * 2))
    np.save(data / "audio/b.npy", np.array([{"never": "unpickled"}], dtype=object), allow_pickle=True)
    np.save(data / "audio/d.npy", np.zeros((2, 5)))
    np.save(data / "video/a.npy", np.zeros((2, 3, 4)))
    np.save(data / "video/b.npy", np.zeros((2, 3), dtype=complex))
    content = (data / "video/sub/c.npy").read_bytes()
    (data / "video/sub/c.npy").write_bytes(content[:-3])
    (data / "video/d.npy").write_text("no array")
    write_manifest(data, ROWS + [["a", "sad", "1", "train"], ["x", "", "1", "dev"], ["../up", "sad", "1", ""], ["", "sad", "", ""]])
    problems = "\n".join(refused(data, "--class-names", "happy,sad"))
    for expected in (r'manifest.csv:6: the id "a" was used in line 2', r"manifest.csv:7: no label in column \"label\"",
                     r'manifest.csv:7: the split is .* not "dev"', r'manifest.csv:8: the id "../up" would lead out',
                     r"manifest.csv:9: the id is empty", r'manifest.csv:5: unknown class "angry"',
                     r"manifest.csv:7: audio/x.npy does not exist", r'audio/a.npy: id "a": 2 of 8 values are not finite.*frame 0, column 2',
                     r"audio/b.npy: holds Python objects", r"audio/d.npy: 5 features, but . of the other files have 4",
                     r"video/a.npy: has shape \[2, 3, 4\]", r"video/b.npy: holds values of type complex128",
                     r"video/sub/c.npy: is damaged", r"video/d.npy: is no valid .npy file"):
        assert re.search(expected, problems), f"{expected} is not in\n{problems}"


@pytest.mark.parametrize("text, expected", [
    ("", "no samples"), ("id,label\n", "no samples"), ("id,label\na,sad,3\n", "manifest.csv:2: 3 cells, the header has 2"),
    ("id,id\na,sad\n", "manifest.csv:1: the columns id appear more than once"), ('id,label\n"a,sad\n', "manifest.csv:"),
    ("name,label\na,sad\n", 'manifest.csv:1: there is no column "id"; the columns are name, label')])
def test_broken_manifest(data, text, expected):
    (data / "manifest.csv").write_text(text)
    assert any(expected in line for line in refused(data))


def test_manifest_that_is_not_utf8(data):
    (data / "manifest.csv").write_bytes(b"id,label\na,tr\xfcb\n")
    assert "not UTF-8" in refused(data)[0]


def test_byte_order_mark_blank_lines_and_spaces(data):
    text = "\ufeffid , label\n a,sad \n\n b , happy\n"
    (data / "manifest.csv").write_text(text, encoding="utf-8")
    assert arrays(data).returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert list(file["samples/id"].asstr()) == ["a", "b"] and file["samples/label"][:].tolist() == [1, 0]
        assert "group" not in file["samples"] and "split" not in file["samples"]


def test_regression_with_targets(data):
    write_manifest(data, [["name", "score", "fear", "talk", "mood"], ["a", "0.5", "1", "t1", "up"],
                          ["b", "-3", "0", "t2", "down"], ["d", "2", "0.5", "t2", "up"]])
    options = ["--id-column", "name", "--label-column", "score", "--group-column", "talk", "--target", "fear=fear", "--target", "m=mood"]
    run = arrays(data, *options)
    assert run.returncode == 0, run.stderr
    with h5py.File(data / "out.h5") as file:
        assert file.attrs["task"] == "regression" and "class_names" not in file.attrs
        assert file["samples/label"].dtype == np.float32 and file["samples/label"][:].tolist() == [0.5, -3, 2]
        fear, mood = file["samples/targets/fear"], file["samples/targets/m"]
        assert fear.dtype == np.float32 and fear[:].tolist() == [1, 0, 0.5]
        assert mood[:].tolist() == [1, 0, 1] and list(mood.attrs["class_names"]) == ["down", "up"]
        assert list(file["samples/group"].asstr()) == ["t1", "t2", "t2"]
    write_manifest(data, [["name", "score"], ["a", "0.5"], ["b", "nan"], ["d", "high"]])
    problems = refused(data, "--id-column", "name", "--label-column", "score", "--task", "regression")
    assert ['manifest.csv:3' in problems[0], 'manifest.csv:4' in problems[1]] == [True, True]


def test_several_columns_are_several_labels(data):
    write_manifest(data, [["id", "label", "happy", "sad", "mood_up", "mood_low"], ["a", "x", "1", "0", "1", "1"], ["b", "y", "1.0", "1", "0", "1"],
                          ["sub/c", "x", "0", "0", "0", "0"], ["d", "x", "0", "1", "1", "0"]])
    run = arrays(data, "--label-columns", "happy, sad", "--target", "mood=mood_up,mood_low", "--target", "kind=label")
    assert run.returncode == 0 and "4 samples, multilabel" in run.stdout and "classes: happy 2, sad 2" in run.stdout, run.stderr
    with h5py.File(data / "out.h5") as file:
        assert file.attrs["task"] == "multilabel" and list(file.attrs["class_names"]) == ["happy", "sad"]
        assert file["samples/label"][:].tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
        mood = file["samples/targets/mood"]
        assert mood[:].tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]] and list(mood.attrs["class_names"]) == ["up", "low"]
        assert set(file["samples/targets"]) == {"mood", "kind"}
    run = arrays(data, "--label-columns", "happy,sad", "--class-names", "joy,grief")
    with h5py.File(data / "out.h5") as file:
        assert list(file.attrs["class_names"]) == ["joy", "grief"]


def test_wrong_columns_of_labels(data):
    write_manifest(data, [["id", "happy", "sad"], ["a", "1", "0.5"], ["b", "", "1"], ["sub/c", "2", "0"], ["d", "yes", "nan"]])
    lines = refused(data, "--label-columns", "happy,sad")
    assert lines == [f'manifest.csv:{line}: column "{column}": "{cell}" is neither 0 nor 1'
                     for line, column, cell in ((3, "happy", ""), (4, "happy", "2"), (5, "happy", "yes"), (2, "sad", "0.5"), (5, "sad", "nan"))]
    assert 'there is no column "fear"' in refused(data, "--label-columns", "happy,fear")[0]
    assert 'there is no column "fear"' in refused(data, "--label-columns", "happy,sad", "--target", "mood=sad,fear")[0]
    for wrong in (["--label-columns", "happy,happy"], ["--label-columns", "happy,sad", "--class-names", "joy"], ["--label-columns", "happy,"],
                  ["--label-columns", "happy", "--label-column", "sad"], ["--label-columns", "happy,sad", "--task", "regression"]):
        assert arrays(data, *wrong).returncode == 2


def test_whole_numbers_need_a_task(data):
    write_manifest(data, [["id", "label"], ["a", "10"], ["b", "2"]])
    assert "--task classification or --task regression" in refused(data)[0]
    assert arrays(data, "--task", "classification").returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert list(file.attrs["class_names"]) == ["2", "10"] and file["samples/label"][:].tolist() == [1, 0]
    write_manifest(data, [["id", "label"], ["a", "1"], ["b", "2"]])
    assert "class 2, but there are 2 classes" in refused(data, "--class-names", "no,yes")[0]
    write_manifest(data, [["id", "label"], ["a", "1"], ["b", "0"]])
    assert arrays(data, "--class-names", "no,yes").returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert file["samples/label"][:].tolist() == [1, 0]


def test_no_labels(data):
    write_manifest(data, [["id"], ["a"], ["b"]])
    assert "the task is unknown" in refused(data)[0]
    run = arrays(data, "--class-names", "happy,sad")
    assert run.returncode == 0 and "for predict only" in run.stdout
    with h5py.File(data / "out.h5") as file:
        assert "label" not in file["samples"] and list(file.attrs["class_names"]) == ["happy", "sad"]


def test_nonfinite_values_become_zero_on_request(data):
    np.save(data / "audio/a.npy", np.array([[1, -np.inf, np.nan, 4]]))
    run = arrays(data, "--nonfinite", "zero")
    assert run.returncode == 0 and re.search("audio: .*2 non-finite values set to 0", run.stdout)
    with h5py.File(data / "out.h5") as file:
        assert file["modalities/audio/values"][0].tolist() == [1, 0, 0, 4]


def test_float16_refuses_what_does_not_fit(data):
    assert arrays(data, "--dtype", "float16").returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert file["modalities/audio/values"].dtype == np.float16
    (data / "out.h5").unlink()
    np.save(data / "audio/a.npy", np.full((1, 4), 1e6))
    assert "too large for float16, the first is 1000000.0" in refused(data, "--dtype", "float16", "--nonfinite", "zero")[0]


@pytest.mark.parametrize("arguments", [["--task", "ranking"], ["--target", "fear"], ["--class-names", "a,a"], ["--missing", "x"],
                                       ["--modality", "audio=video"], ["--class-names", "a,b", "--task", "regression"]])
def test_usage_errors(data, arguments):
    assert arrays(data, *arguments).returncode == 2


def test_missing_manifest_folder_and_output_folder(data):
    assert "no such folder" in refused(data, modalities=["audio=nowhere"])[0]
    assert arrays(data, output="nowhere/out.h5").returncode == 74
    nameless = arrays(data, output="")
    assert nameless.returncode == 2 and "-o: the output has no name" in nameless.stderr
    (data / "manifest.csv").unlink()
    assert arrays(data).returncode == 74


def test_full_disk_leaves_nothing_and_keeps_the_old_file(data):
    assert arrays(data).returncode == 0
    old = (data / "out.h5").read_bytes()
    np.save(data / "audio/a.npy", np.zeros((50_000, 4)))
    run = arrays(data, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert run.returncode == 74 and "Traceback" not in run.stderr, run.stderr
    assert (data / "out.h5").read_bytes() == old and not list(data.glob(".tmp-*"))


def test_other_files_are_not_overwritten(data):
    assert "is not overwritten" in arrays(data, output="manifest.csv").stderr
    assert (data / "manifest.csv").read_text().startswith("id,label")


def test_frames_are_not_held_in_memory(tmp_path):
    """30 files of 4 MB each; the process may grow by far less than their sum."""
    (tmp_path / "audio").mkdir()
    frames = np.zeros((2000, 512), dtype=np.float32)
    for i in range(30):
        np.save(tmp_path / f"audio/{i}.npy", frames)
    write_manifest(tmp_path, [["id", "label"]] + [[str(i), "0.5"] for i in range(30)])
    code = f"""
import resource, sys
sys.path.insert(0, {str(ROOT / 'importers')!r})
import arrays
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = arrays.main(["--manifest", "manifest.csv", "--modality", "audio=audio", "-o", "out.h5"])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown)
sys.exit(code or grown > 40_000)
"""
    run = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("change, expected", [
    (dict(ids=["a", "a"]), "is used by samples 0 and 1"), (dict(labels=[0, 2]), "has class 2"), (dict(labels=[0]), "one per sample"),
    (dict(splits=["train", "dev"]), 'not "dev"'), (dict(groups=["1"]), "1 groups for 2 samples"),
    (dict(modalities={"a/b": [np.zeros((1, 2))] * 2}), "cannot be the name"),
    (dict(modalities={"audio": [np.zeros((1, 2)), np.zeros((1, 3))]}), "with the same dim"),
    (dict(modalities={"audio": [np.zeros((1, 2)), np.full((1, 2), np.inf)]}), 'sample "b": 2 of 2 values are not finite'),
    (dict(modalities={}), "no modality"), (dict(class_names=None), "class names"), (dict(labels=[0.5, 1]), "classes are integers"),
    (dict(class_names=["no"]), "at least two"), (dict(targets={"mood": ([0, 2], ["up", "down"])}), "has class 2"),
    (dict(targets={"fear": [0.5, np.nan]}), 'target "fear": sample "b" has the value nan')])
def test_writer_refuses_wrong_data(tmp_path, change, expected):
    good = dict(name="x", task="classification", ids=["a", "b"], labels=[0, 1], class_names=["no", "yes"],
                modalities={"audio": [np.zeros((1, 2)), np.zeros((0, 2))]})
    container.write_container(tmp_path / "good.h5", **good)
    with pytest.raises(container.DataError, match=re.escape(expected)):
        container.write_container(tmp_path / "bad.h5", **{**good, **change})
    assert [path.name for path in tmp_path.iterdir()] == ["good.h5"]


def test_several_classes_at_once(tmp_path):
    """Labels [samples, classes] of 0 and 1, as the task of the file and as a further target."""
    emotions, ones = [[1, 0, 1], [0, 0, 0]], np.array([[True], [False]])
    good = dict(name="x", task="multilabel", ids=["a", "b"], labels=emotions, class_names=["happy", "sad", "angry"],
                targets={"loud": (ones, ["loud"]), "mood": ([0, 1], ["up", "down"])}, modalities={"audio": [np.zeros((1, 2))] * 2})
    container.write_container(tmp_path / "good.h5", **good)
    with h5py.File(tmp_path / "good.h5") as file:
        assert file.attrs["task"] == "multilabel" and list(file.attrs["class_names"]) == ["happy", "sad", "angry"]
        assert file["samples/label"].dtype == np.int64 and file["samples/label"][:].tolist() == emotions
        assert file["samples/targets/loud"].dtype == np.int64 and file["samples/targets/loud"][:].tolist() == [[1], [0]]
        assert list(file["samples/targets/loud"].attrs["class_names"]) == ["loud"] and file["samples/targets/mood"].shape == (2,)
    for change, expected in ((dict(labels=[0, 1]), "expected integers of shape [2, 3]"), (dict(labels=[[1, 0, 2], [0, 0, 0]]), 'sample "a" has 2 for class "angry"'),
                             (dict(labels=np.zeros((2, 3))), "not float64"), (dict(class_names=None), "class names"), (dict(class_names=["a", "a", "b"]), "must differ"),
                             (dict(targets={"loud": ([[1], [0]], [])}), "one per sample"), (dict(task="several"), '"multilabel", not "several"')):
        with pytest.raises(container.DataError, match=re.escape(expected)):
            container.write_container(tmp_path / "bad.h5", **{**good, **change})
    assert [path.name for path in tmp_path.iterdir()] == ["good.h5"]


def test_writer_refuses_unannounced_and_missing_frames(tmp_path):
    with pytest.raises(container.DataError, match=r"frames of shape \[2, 3\], announced were \[1, 3\]"):
        with container.ContainerWriter(tmp_path / "x.h5", "x", "regression") as out:
            out.samples(["a"], [0.5])
            out.modality("audio", 3, [1])
            out.append("audio", np.zeros((2, 3)))
    with pytest.raises(container.DataError, match="0 of 1 samples were appended"):
        with container.ContainerWriter(tmp_path / "x.h5", "x", "regression") as out:
            out.samples(["a"], [0.5])
            out.modality("audio", 3, [1])
    assert not list(tmp_path.iterdir())


def python_blocks():
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(), re.S | re.M)


def test_python_blocks_of_the_documentation_run(tmp_path):
    blocks = python_blocks()
    assert len(blocks) >= 2
    for block in blocks:
        run = subprocess.run([sys.executable, "-B", "-c", block], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT / "importers")})
        assert run.returncode == 0, block + run.stderr
    written = sorted(tmp_path.glob("*.h5"))
    assert len(written) == len(blocks), "every block writes one container"
    for path in written:
        with h5py.File(path) as file:
            assert file.attrs["format"] == "muster-dataset" and file.attrs["version"] == 1
            count = len(file["samples/id"])
            for modality in file["modalities"].values():
                offsets = modality["offsets"][:]
                assert len(offsets) == count + 1 and offsets[0] == 0 and offsets[-1] == len(modality["values"])
                assert modality["values"].chunks is None and (np.diff(offsets) >= 0).all()


@pytest.mark.parametrize("labels, classes, values", [
    (["1.0", "2.0", "0.0", "1"], ["0", "1", "2"], [1, 2, 0, 1]),
    (["01", "1e0", "2", "+2"], ["1", "2"], [0, 0, 1, 1]),
    (["0.1", "0.10", "1e-1", "5"], ["0.1", "5"], [0, 0, 0, 1])])
def test_class_numbers_count_by_their_value(data, labels, classes, values):
    write_manifest(data, [["id", "label"], *zip(LENGTHS, labels)])
    assert arrays(data, "--task", "classification").returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert list(file.attrs["class_names"]) == classes and file["samples/label"][:].tolist() == values
    if all(float(label).is_integer() for label in labels):
        assert "may be classes or values" in refused(data, output="other.h5")[0]
        named = arrays(data, "--class-names", "a,b,c")
        assert named.returncode == 0, named.stderr
        with h5py.File(data / "out.h5") as file:
            assert file["samples/label"][:].tolist() == [int(float(label)) for label in labels]
        assert arrays(data, "--class-names", ",".join(dict.fromkeys(f"{float(label):.2f}" for label in labels))).returncode == 0


def test_class_names_that_are_one_number_are_refused(data):
    run = arrays(data, "--class-names", "1,1.0")
    assert run.returncode == 2 and "the same number" in run.stderr


def npy_with_header(header, version=(1, 0), values=b""):
    header = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(header).to_bytes(2 if version == (1, 0) else 4, "little") + header + values


@pytest.mark.parametrize("header", ["{'descr': '<f4", "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)", "(" * 2000, "", "\0", "{}", "[]", "1" * 5000,
                                    "{'descr': [1], 'fortran_order': False, 'shape': (3, 4), }", "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4), }",
                                    "{'descr': '<f4', 'fortran_order': False, 'shape': ('3', 4), }", "{'descr': '<f4', 'fortran_order': False, 'shape': " + "-" * 3000 + "1, }",
                                    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 30 + ", 4), }"])
def test_a_damaged_npy_header_is_one_line(data, header):
    (data / "audio/b.npy").write_bytes(npy_with_header(header))
    problems = refused(data)
    assert len(problems) == 1 and problems[0].startswith("audio/b.npy: ") and "manifest.csv:3" in problems[0] and len(problems[0]) < 1100


def test_booleans_and_headers_of_version_3_are_read(data):
    values = np.arange(12).reshape(3, 4) % 2 == 0
    np.save(data / "audio/a.npy", values)
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }"
    (data / "audio/b.npy").write_bytes(npy_with_header(header, (3, 0), np.arange(4, dtype="<f4").tobytes()))
    assert arrays(data).returncode == 0
    with h5py.File(data / "out.h5") as file:
        np.testing.assert_array_equal(file["modalities/audio/values"][:4], [*values.astype(np.float32), [0, 1, 2, 3]])


@pytest.mark.parametrize("cell, message", [("hap\0py", "manifest.csv:3: holds a NUL character"), ("x" * 200_000, "field larger than field limit"),
                                           ("9" * 5000, "no number"), ("\x1b[31mred\x1b[0m", None)])
@pytest.mark.parametrize("task", ["classification", "regression", "auto"])
def test_odd_cells(data, cell, message, task):
    write_manifest(data, [["id", "label"], ["a", "1.5"], ["b", cell], ["sub/c", "2"], ["d", "2"]])
    run = arrays(data, "--task", task)
    assert "Traceback" not in run.stderr and "\x1b" not in run.stderr + run.stdout and run.returncode in (0, 65), run.stderr
    if run.returncode:
        assert "manifest.csv:3" in run.stderr and all(len(line) < 1100 for line in run.stderr.splitlines())
    if message and message != "no number":
        assert message in run.stderr


def test_what_is_no_ordinary_file_is_not_waited_for(data):
    os.mkfifo(data / "pipe")
    (data / "audio/b.npy").unlink()
    os.mkfifo(data / "audio/b.npy")
    assert any("audio/b.npy: is not an ordinary file" in line for line in refused(data, timeout=60))
    run = arrays(data, "--manifest", "pipe", timeout=60)
    assert run.returncode == 65 and "pipe: no samples" in run.stderr
    (data / "audio/b.npy").unlink()
    np.save(data / "audio/b.npy", np.zeros((1, 4)))
    run = arrays(data, output="pipe", timeout=60)
    assert run.returncode == 2 and "not overwritten" in run.stderr


def test_a_flood_of_problems_is_capped(data):
    write_manifest(data, [["id", "label"], *([f"missing_{i}", "sad"] for i in range(3000))])
    run = arrays(data)
    assert run.returncode == 65 and len(run.stderr) < 20_000
    assert "and 5951 more" in run.stderr and "6001 problems; nothing was written" in run.stderr


def test_an_output_that_is_something_else_is_refused(data):
    assert arrays(data).returncode == 0
    kept = (data / "out.h5").read_bytes()
    for output in ("manifest.csv", "audio/a.npy", "audio", "link.h5", "run/x.h5", "run/weights/x.h5", "search/trials/x.h5"):
        for folder, names in (("run", ("config.txtpb", "environment.json")), ("search", ("search.txtpb", "base.txtpb"))):
            (data / folder / "weights").mkdir(parents=True, exist_ok=True)
            (data / folder / "trials").mkdir(exist_ok=True)
            for name in names:
                (data / folder / name).touch()
        (data / "link.h5").unlink(missing_ok=True)
        (data / "link.h5").symlink_to("out.h5")
        before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
        run = arrays(data, output=output)
        assert run.returncode == 2 and output in run.stderr and "Traceback" not in run.stderr, run
        assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before
    assert (data / "out.h5").read_bytes() == kept


def test_closed_streams(data):
    run = subprocess.run(["bash", "-c", f"{sys.executable} -B {ROOT}/importers/arrays.py --manifest manifest.csv --modality audio=audio -o out.h5 <&- >&- 2>&-"], cwd=data)
    assert run.returncode == 0
    with h5py.File(data / "out.h5") as file:
        assert file["modalities/audio/values"].shape[1] == 4
