"""What the tests of the tools for containers share: containers as h5py writes and reads them, and running a tool."""
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))

PROGRAM = os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests", "probe_plain")  # `muster data` without its start-up time
TEXT = h5py.string_dtype("utf-8")


def write(path, ids, modalities, task="regression", labels=None, classes=None, groups=None, splits=None, targets=None, rates=None, **attributes):
    """modalities: {name: [frames of each sample]}."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "muster-dataset", "version": 1, "task": task, **attributes})
        if classes:
            file.attrs.create("class_names", classes, dtype=TEXT)
        for name, strings in (("id", ids), ("group", groups), ("split", splits)):
            if strings is not None:
                file.create_dataset(f"samples/{name}", data=list(strings), dtype=TEXT)
        if labels is not None:
            file["samples/label"] = np.asarray(labels, dtype=np.int64 if classes else np.float32)
        for name, (values, names) in (targets or {}).items():
            dataset = file.create_dataset(f"samples/targets/{name}", data=np.asarray(values, dtype=np.int64 if names else np.float32))
            if names:
                dataset.attrs.create("class_names", names, dtype=TEXT)
        for name, frames in modalities.items():
            group = file.create_group(f"modalities/{name}")
            group["values"] = np.concatenate(frames)
            group["offsets"] = np.cumsum([0] + [len(part) for part in frames], dtype=np.int64)
            if name in (rates or {}):
                group.attrs["sample_rate"] = rates[name]
    return path


def read(path):
    """{name: value}, frames as lists of arrays."""
    with h5py.File(path) as file:
        found = {"task": file.attrs["task"], "classes": list(file.attrs.get("class_names", []))}
        for name in ("id", "group", "split"):
            found[name] = list(file[f"samples/{name}"].asstr()) if name in file["samples"] else None
        found["label"] = file["samples/label"][:].tolist() if "label" in file["samples"] else None
        found["targets"] = {name: (target[:].tolist(), list(target.attrs.get("class_names", [])))
                            for name, target in file.get("samples/targets", {}).items()}
        found["dtype"] = {name: group["values"].dtype for name, group in file["modalities"].items()}
        found["rate"] = {name: group.attrs.get("sample_rate") for name, group in file["modalities"].items()}
        found["frames"] = {name: np.split(group["values"][:], group["offsets"][1:-1]) for name, group in file["modalities"].items()}
    return found


def equal(one, other):
    assert {**one, "frames": 0} == {**other, "frames": 0}
    assert list(one["frames"]) == list(other["frames"])
    for name, frames in one["frames"].items():
        for mine, theirs in zip(frames, other["frames"][name]):
            np.testing.assert_array_equal(mine, theirs)
    return True


def verify(path):
    run = subprocess.run([PROGRAM, "data", "verify", path], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return True


def refused(capsys, code, tool, *arguments):
    """Runs a tool on something wrong; returns its problems."""
    before = sorted(Path.cwd().rglob("*"))
    if code == 2:
        try:
            result = tool.main(list(map(str, arguments)))
        except SystemExit as error:
            result = error.code
    else:
        result = tool.main(list(map(str, arguments)))
    problems = capsys.readouterr().err
    assert result == code, problems
    assert sorted(Path.cwd().rglob("*")) == before, "something was written"
    assert "Traceback" not in problems and "internal error" not in problems
    return problems.splitlines()


def done(capsys, tool, *arguments):
    result = tool.main(list(map(str, arguments)))
    output = capsys.readouterr()
    assert result == 0, output.err
    assert not list(Path.cwd().glob("**/.tmp-*"))
    return output.out


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames_of(generator, ids, dim, missing=(), dtype=np.float32):
    return [generator.normal(size=(0 if sample in missing else generator.integers(1, 9), dim)).astype(dtype) for sample in ids]


@pytest.fixture
def sentiment(folder):
    """20 samples of 6 videos, three modalities; some lack vision."""
    generator = np.random.default_rng(1)
    ids = [f"v{i // 4}$_${i % 4}" for i in range(20)] + ["lone", "ünique id"]
    labels = np.round(generator.uniform(-3, 3, len(ids)), 1)
    write("base.h5", ids, {"audio": frames_of(generator, ids, 5), "text": frames_of(generator, ids, 8, dtype=np.float16),
                           "vision": frames_of(generator, ids, 3, missing=("v0$_$1", "lone"))},
          labels=labels, groups=[sample.partition("$")[0] for sample in ids], splits=["train"] * 12 + ["valid"] * 4 + ["test"] * 5 + [""],
          targets={"mood": (np.arange(22) % 3, ["sad", "fine", "glad"]), "fear": (labels / 2, None)}, name="mosi")
    order = generator.permutation(len(ids))
    write("other.h5", [ids[i] for i in order], {"text": frames_of(generator, ids, 10), "extra": frames_of(generator, ids, 2, missing=ids[:9])},
          labels=labels[order], name="roberta")
    return ids


def write_lines(*lines, name="lines.txt"):
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name
