"""Folders of pretrained encoders as strangers leave them: each is refused with one message that says what is wrong, without a crash and
without allocating what the files claim. Through `muster encoders inspect`, which takes half a second to start; in everyday tests most of
them through the probe, which does not."""
import hashlib
import json
import os
import resource
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import probe_program
from muster_program import built, execute
from test_text_encoders import FULL, KINDS, SMALL, encode, make_model, save

MEMORY = 6 << 30  # of addresses: what LibTorch and its libraries take, and little more
INDEX = "model.safetensors.index.json"
WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save(make_model("bert").float(), tmp_path_factory.mktemp("good") / "folder")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "folder")


def encoders(*arguments, code=0):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    try:
        result = execute([built("muster"), "encoders", *arguments])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert result.returncode == code, f"exit code {result.returncode}, expected {code}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(autouse=True)
def little_memory(good):
    resource.prlimit(probe_program.server().process.pid, resource.RLIMIT_AS, (MEMORY, MEMORY))  # of its children too


def refused(folder, *said, code=65, by_muster=FULL):
    if by_muster:
        result = encoders("inspect", folder, code=code)
        assert result.stdout == "" and result.stderr.startswith("muster: ")
        message = result.stderr.strip()
    else:
        message = encode(folder, folder.parent, [np.array([[1]])], dtype="float32", code=code)
    assert "internal" not in message
    for text in said:
        assert text in message, message
    return message


def change(folder, **members):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


def rewrite(folder, update):
    """The weights' file with its tensors as `update` leaves them."""
    tensors = load_file(folder / "model.safetensors")
    update(tensors)
    save_file(tensors, folder / "model.safetensors")


def raw_safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def shards(folder, weight_map=None, files=None):
    """Puts the tensors into two files and an index; returns the index's weight_map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part} | (weight_map or {})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_what_is_not_a_folder(folder, tmp_path):
    refused(tmp_path / "nothing", "there is no such folder", "a folder as Hugging Face lays it out", code=74, by_muster=True)
    refused(folder / "config.json", "is not a folder", code=74, by_muster=True)
    refused(folder / "model.safetensors", "model.safetensors", "JSON")  # a file is taken for a config.json
    (folder / "config.json").unlink()
    refused(folder, "holds no config.json", code=74)


@pytest.mark.parametrize("text", ("", "{", "[]", "7", '"x"', '{"a":' * 3000 + "1" + "}" * 3000, "[" * 10**6, '{"hidden_size": 1e999}',
                                  "{\0}", "\xff\xfe"), ids=range(10))
def test_config_json_that_is_damaged(text, folder):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder, "config.json: is damaged: it is not a JSON object")


def test_other_files_that_are_damaged(folder):
    (folder / "preprocessor_config.json").write_text("[1]")
    refused(folder, "preprocessor_config.json: is damaged")
    (folder / "preprocessor_config.json").unlink()
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: os.symlink("nowhere", path)):
            (folder / name).unlink()
            make(folder / name)
            refused(folder, f"{name}: ", code=74)
            os.rmdir(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
            (folder / name).write_bytes(content)


def test_weights_that_are_missing(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "holds no model.safetensors", code=74)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    refused(folder, f"python importers/convert_weights.py {folder}", code=74)


def test_headers_that_lie(folder):
    path = folder / "model.safetensors"
    huge = 100 * 10**9
    for content, said in (
            (struct.pack("<Q", huge) + b"{}", "its header would have 100000000000 bytes"),
            (struct.pack("<Q", 90_000_000) + b"{}", "its header should have 90000000 bytes, but the file has only"),
            (b"\x01", "not even a header length"), (raw_safetensors(b"{" * 10**6), "is not a valid safetensors file"),
            (raw_safetensors({WORDS: {"dtype": "F32", "shape": [huge // 4], "data_offsets": [0, huge]}}), "is it cut short?"),
            (raw_safetensors({WORDS: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}), "its shape is too large"),
            (raw_safetensors({WORDS: {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "its dtype 'Q9' cannot be read"),
            (raw_safetensors({}), "holds no tensors"), (path.read_bytes()[:-5], "is it cut short?")):
        path.write_bytes(content)
        refused(folder, said, by_muster=FULL or len(content) < 12)


@pytest.mark.parametrize("sizes, said", (
    (dict(vocab_size=10**7), f"wrong shape: '{WORDS}' is [50, 12], config.json asks for [10000000, 12]"),
    (dict(hidden_size=65535), f"wrong shape: '{WORDS}' is [50, 12], config.json asks for [50, 65535]"),
    (dict(num_hidden_layers=2), "not in the encoder: 'encoder.layer.2.attention.output.LayerNorm.bias' [12]"),
    (dict(num_hidden_layers=1000), "and 15,8")), ids=str)
def test_config_json_that_lies_about_sizes(sizes, said, folder):
    change(folder, **sizes)
    message = refused(folder, said, "the weights do not fit config.json", by_muster=FULL or "vocab_size" in sizes)
    assert len(message.splitlines()) <= 103


def test_tensors_that_are_missing_or_unknown(folder):
    def update(tensors):
        del tensors["encoder.layer.1.output.dense.bias"], tensors[WORDS]
        tensors["encoder.layer.0.lora_A.weight"] = torch.zeros(2, 12)
        tensors["\x1b[31mred"] = torch.zeros(1)
        tensors["embeddings.LayerNorm.gamma"] = torch.ones(12)
        tensors["encoder.layer.0.output.dense.weight"] = torch.zeros(20, 12)
        tensors["encoder.layer.0.output.dense.bias"] = torch.zeros(12, dtype=torch.int64)
        tensors["pooler.dense.weight"] = torch.zeros(3)  # ignored, whatever it is
        tensors["embeddings.position_ids"] = torch.zeros(1, 24, dtype=torch.int64)

    rewrite(folder, update)
    message = refused(folder, "missing: 'encoder.layer.1.output.dense.bias' [12]", f"missing: '{WORDS}' [50, 12]",
                      "not in the encoder: 'encoder.layer.0.lora_A.weight' [2, 12]", "not in the encoder: '\\x1b[31mred' [1]",
                      "twice: 'embeddings.LayerNorm.gamma' and 'embeddings.LayerNorm.weight' are the same",
                      "wrong shape: 'encoder.layer.0.output.dense.weight' is [20, 12], config.json asks for [12, 20]",
                      "wrong dtype: 'encoder.layer.0.output.dense.bias' is I64", by_muster=True)
    assert len(message.splitlines()) == 8 and "pooler" not in message and "position_ids" not in message


@pytest.mark.parametrize("dtype, value, said", (
    *((dtype, float(value), "value that is not finite (NaN or infinity)") for value in ("nan", "inf", "-inf")
      for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)),
    (torch.float64, 1e300, "float64 value that is too large for float32")), ids=str)
def test_values_that_are_not_finite(dtype, value, said, folder):
    name = "encoder.layer.1.intermediate.dense.weight"

    def update(tensors):
        tensors[name] = tensors[name].to(dtype)
        tensors[name][19, 11] = value

    rewrite(folder, update)
    refused(folder, f"tensor '{name}' holds a {said}", by_muster=FULL or (np.isnan(value) and dtype == torch.float32))


@pytest.mark.parametrize("file, said", (
    ("/etc/passwd", "'/etc/passwd' is not the name of a file in this folder"), ("../folder/a.safetensors", "is not the name of a file"),
    ("..", "is not the name of a file"), ("", "is not the name of a file"), ("sub/a.safetensors", "is not the name of a file"),
    ("a.safetensors\0x", "is not the name of a file"), (7, "its file must be text; it is '7'"), (None, "its file must be text"),
    ("c.safetensors", "names the file 'c.safetensors', which is not there"), ("b.safetensors", f"tensor '{WORDS}' is not in 'b.safetensors'"),
), ids=str)
def test_indexes_that_name_what_is_not_there(file, said, folder):
    shards(folder, {WORDS: file})
    refused(folder, said, INDEX)


def test_other_indexes_that_are_wrong(folder):
    names = shards(folder)
    encode(folder, folder.parent, [np.array([[1]])])
    for text, said in (("{}", "has no weight_map"), ('{"weight_map": []}', "has no weight_map"), ('{"weight_map": {}}', "has no weight_map"),
                       ("[" * 10**5, "is damaged"), ("", "is damaged"),
                       (json.dumps({"weight_map": {f"t{i}": f"f{i}" for i in range(5000)}}), "names 5000 files, at most 500 are read")):
        (folder / INDEX).write_text(text)
        message = refused(folder, said)
        assert len(message.splitlines()) <= 52
    del names[WORDS]
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(folder, f"does not name tensor '{WORDS}' of 'a.safetensors'")
    names[WORDS] = "a.safetensors"
    save_file({**load_file(folder / "b.safetensors"), WORDS: torch.zeros(50, 12)}, folder / "b.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(folder, f"tensor '{WORDS}' is in 'a.safetensors' and in 'b.safetensors'")
    (folder / "b.safetensors").unlink()
    os.mkfifo(folder / "b.safetensors")
    refused(folder, "b.safetensors", code=74)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_inspect(good, tmp_path):
    # As Hugging Face's cache lays it out: links to files elsewhere.
    folder = tmp_path / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        shutil.copy(good / name, tmp_path / "blobs" / str(number))
        (folder / name).symlink_to(f"../../blobs/{number}")
    shown = json.loads(encoders("inspect", folder, "--json").stdout)
    count = sum(parameter.numel() for parameter in make_model("bert").parameters())
    lines = "".join(f"{name} {sha256((good / name).read_bytes())}\n" for name in ("config.json", "model.safetensors"))
    assert shown == {"path": str(folder), "model_type": "bert", "parameters": count, "layers": 3, "width": 12, "ignored": [], "notes": [],
                     "takes": "tokens of a vocabulary of 50, at most 24 per sample", "content_hash": sha256(lines.encode())}
    rewrite(shutil.copytree(good, tmp_path / "copy"), lambda tensors: tensors.update({"pooler.dense.bias": torch.zeros(12)}))
    text = encoders("inspect", tmp_path / "copy").stdout
    for line in ("model type    bert", f"parameters    {count}", "layers        3", "width         12", "ignored       pooler.dense.bias"):
        assert line in text.splitlines()
    assert shown["content_hash"] not in text


@pytest.mark.parametrize("kind", KINDS)
def test_init_makes_what_transformers_reads(kind, tmp_path):
    config, model = KINDS[kind]
    config(**SMALL).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true}')
    out = tmp_path / "made"
    text = encoders("init", "--config", tmp_path / "config.json", "--seed", 7, "-o", out).stdout
    assert kind in text
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    for name in ("config.json", "preprocessor_config.json"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    made, information = model.from_pretrained(out, output_loading_info=True, add_pooling_layer=False)
    assert not any(information[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert made.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert "ignored       nothing" in encoders("inspect", out).stdout

    before = (out / "model.safetensors").read_bytes()
    encoders("init", "--config", tmp_path / "config.json", "--seed", 7, "-o", out, code=2)
    assert (out / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    encoders("init", "--config", tmp_path / "config.json", "--seed", 7, "-o", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").read_bytes() == before
    encoders("init", "--config", tmp_path / "config.json", "--seed", 8, "-o", tmp_path / "other")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != before


def test_init_that_is_refused(tmp_path):
    out = tmp_path / "out"
    for members, code, said in (
            (dict(model_type="bert", vocab_size=10**7, hidden_size=65536, num_attention_heads=1), 65, "more than this machine's memory"),
            (dict(model_type="bert", is_decoder=True), 65, "is_decoder"), (dict(model_type="t5"), 65, "model_type: 't5' is not supported")):
        (tmp_path / "config.json").write_text(json.dumps(members))
        result = encoders("init", "--config", tmp_path / "config.json", "-o", out, code=code)
        assert said in result.stderr and [path.name for path in tmp_path.iterdir()] == ["config.json"]
    encoders("init", "--config", tmp_path / "nothing.json", "-o", out, code=74)
    for seed in ("-1", "18446744073709551616"):
        error = encoders("init", "--config", tmp_path / "config.json", f"--seed={seed}", "-o", out, code=2).stderr
        assert f"'{seed}' is no seed, which is a whole number from 0 to 18446744073709551615" in error and not out.exists()
    encoders("init", "--config", tmp_path / "config.json", "-o", "", code=2)
    encoders("init", "--config", tmp_path / "config.json", "-o", tmp_path / "config.json", code=2)
    encoders("init", "--config", tmp_path / "config.json", "-o", tmp_path, code=2)
