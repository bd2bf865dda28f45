"""importers/convert_weights.py: weights of transformers' models arrive bit for bit; pickles that are more than tensors do nothing."""
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import convert_weights  # noqa: E402

torch.set_num_threads(1)
OTHERS = {"config.json": '{"model_type": "bert"}', "vocab.txt": "[PAD]\n", "tokenizer_config.json": "{}"}


def tensors(seed=0):
    torch.manual_seed(seed)
    table = torch.randn(20, 6)
    return {"embeddings.weight": table, "half": torch.randn(4, 3).half(), "bf16": torch.randn(5).bfloat16(), "f64": torch.randn(2, 2, 2).double(),
            "ids": torch.arange(7)[None], "flags": torch.tensor([True, False]), "transposed": torch.randn(3, 5).T, "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3), "part": torch.randn(10)[2:5], "tied": table, "parameter": torch.nn.Parameter(torch.ones(2))}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in OTHERS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def convert(capfd):
    def convert(*arguments, code=0):
        assert convert_weights.main([str(argument) for argument in arguments]) == code, capfd.readouterr()
        out, err = capfd.readouterr()
        assert "Traceback" not in err and "internal error" not in err
        return out if code == 0 else err.splitlines()
    return convert


def check(path, expected):
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("zipped", (True, False), ids=("zip", "of old"))
def test_weights_arrive_bit_for_bit(zipped, folder, convert):
    expected = tensors()
    torch.save(expected, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert "12 tensors" in convert(folder)
    check(folder / "model.safetensors", expected)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*OTHERS, "model.safetensors", "pytorch_model.bin"])
    written = (folder / "model.safetensors").stat()
    assert "is not written: it is there already" in convert(folder, code=2)[0]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written.st_mtime_ns


def test_several_files_into_a_new_folder(folder, tmp_path, convert):
    expected = tensors()
    names = sorted(expected)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:])):
        torch.save({name: expected[name] for name in part}, folder / f"pytorch_model-{number}.bin")
        weight_map.update(dict.fromkeys(part, f"pytorch_model-{number}.bin"))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    out = tmp_path / "new" / "folder"
    out.parent.mkdir()
    convert(folder, "-o", out)
    check(out / "model.safetensors", expected)
    assert sorted(path.name for path in out.iterdir()) == sorted([*OTHERS, "model.safetensors"])
    assert all((out / name).read_text() == text for name, text in OTHERS.items())
    assert "no empty folder" in convert(folder, "-o", out, code=2)[0]
    assert [path.name for path in out.parent.iterdir()] == ["folder"]


def test_a_model_of_transformers(folder, convert):
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                                                 intermediate_size=9))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    convert(folder)
    check(folder / "model.safetensors", model.state_dict())


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def refused(folder, convert, *said, code=65):
    before = sorted(folder.rglob("*"))
    lines = convert(folder, code=code)
    assert sorted(folder.rglob("*")) == before, "something was written"
    assert len(lines) == 2 and lines[1] == "1 problem; nothing was written", lines
    for text in said:
        assert text in lines[0], lines[0]


@pytest.mark.parametrize("zipped", (True, False), ids=("zip", "of old"))
def test_pickles_that_run_something_are_refused(zipped, folder, tmp_path, convert):
    mark = tmp_path / "mark"
    path = folder / "pytorch_model.bin"
    torch.save({"w": torch.ones(2), "x": Malicious(mark)}, path, _use_new_zipfile_serialization=zipped)
    refused(folder, convert, "asks for posix.system, which weights do not need: it was not run")
    path.write_bytes(pickle.dumps(Malicious(mark)))
    refused(folder, convert, "pytorch_model.bin: ")
    # As a user runs it, with the variable that turns PyTorch's caution off where it is not asked for.
    torch.save(Malicious(mark), path)
    run = subprocess.run([sys.executable, "-B", ROOT / "importers" / "convert_weights.py", folder], capture_output=True, text=True,
                         env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}) if zipped else None
    assert run is None or (run.returncode == 65 and "posix.system" in run.stderr and "Traceback" not in run.stderr)
    assert not mark.exists()
    torch.load(path, weights_only=False) if zipped else os.system(f"touch {mark}")
    assert mark.exists(), "the pickle would not have done anything anyway"


@pytest.mark.parametrize("state, said", (
    ([1], "holds a list, not tensors by name"), ({"a": 1}, "a: is a int, not a tensor"), ({3: torch.ones(1)}, "3 is not the name of a tensor"),
    ({"state_dict": {"a": torch.ones(1)}}, "state_dict: is a dict, not a tensor"), ({}, "holds no tensors"),
    ({"a": torch.ones(2, dtype=torch.complex64)}, "a: is a tensor of a kind that is not read"),
    ({"a": torch.eye(2).to_sparse()}, "a: is a tensor of a kind that is not read"),
    ({"a": torch.ones(1, device="meta")}, "a: "), ({"__metadata__": torch.ones(1)}, "'__metadata__' is not the name of a tensor"),
    ({"a": torch.ones(1).expand(10**12)}, "would have 4000000000000 bytes")), ids=range(10))
def test_what_is_not_weights(state, said, folder, convert):
    with warnings.catch_warnings(action="ignore"):
        torch.save(state, folder / "pytorch_model.bin")
    refused(folder, convert, "pytorch_model.bin: ", said)


def test_files_that_are_damaged(folder, convert):
    path = folder / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"x", whole[:100], whole[:-200], whole[200:], b"\x80" * 1000, b"\x80\x02" + b"(" * 100_000):
        path.write_bytes(content)
        refused(folder, convert, "pytorch_model.bin: is no file of weights")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    refused(folder, convert, "is compressed, which torch.save never does")
    path.unlink()
    os.mkfifo(path)
    refused(folder, convert, "is not an ordinary file")
    path.unlink()
    refused(folder, convert, "holds neither pytorch_model.bin nor")
    assert "is not a folder" in convert(folder / "nothing", code=74)[0]


@pytest.mark.parametrize("index, said", (
    ("[]", "is no index of weights"), ("{", "is no index of weights"), ('{"weight_map": 3}', "is no index"), ('{"weight_map": {}}', "names no tensors"),
    ("[" * 100_000, "is no index"), ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd' is not the name of a file"),
    ('{"weight_map": {"a": "../x.bin"}}', "is not the name of a file"), ('{"weight_map": {"a": 3}}', "3 is not the name"),
    ('{"weight_map": {"a": ["x"]}}', "is no index"), ('{"weight_map": {"a": "x.bin", "b": "x.bin", "c": "x.bin"}}', "x.bin: lacks c, which"),
    ('{"weight_map": {"a": "x.bin"}}', "x.bin: holds b, which pytorch_model.bin.index.json does not name"),
    ('{"weight_map": {"a": "x.bin", "b": "x.bin", "d": "y.bin"}}', "y.bin: a is in x.bin too")), ids=range(12))
def test_indexes_that_are_wrong(index, said, folder, convert):
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, folder / "x.bin")
    torch.save({"a": torch.ones(1), "d": torch.ones(1)}, folder / "y.bin")
    (folder / "pytorch_model.bin.index.json").write_text(index)
    refused(folder, convert, said)


def test_a_file_that_is_missing(folder, convert):
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "z.bin"}}')
    refused(folder, convert, "z.bin", code=74)
