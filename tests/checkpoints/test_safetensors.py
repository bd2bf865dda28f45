"""muster's safetensors files against the public safetensors package, and its fingerprints against docs/fingerprint.md."""
import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from probe_program import probe, program

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool]


def random_tensor(dtype, shape, seed=0):
    count = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, count, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def assorted():
    """Every dtype with odd sizes (so that alignment matters), no dimensions, no elements, and names from all over."""
    tensors = {}
    for i, dtype in enumerate(DTYPES):
        tensors[f"encoder.{i}.weight"] = random_tensor(dtype, (3, 5), i)
        tensors[f"scalar.{i}"] = random_tensor(dtype, (), i + 100)
    tensors["empty"] = torch.empty(0)
    tensors["empty 2-d"] = torch.empty(3, 0, 7, dtype=torch.int16)
    for name in ["", "Gefühl", "感情", "😀", "a\"b\\c", "tab\there", "a", "a.b", "A", "{}", "comma, blank", "ﬀ"]:
        tensors[name] = random_tensor(torch.float32, (2,), len(name))
    return tensors


def copy(source, target):
    answer = probe("safetensors", "copy", source, target)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def try_reading(*files):
    answer = probe("safetensors", "try", *files)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (ours[name], tensor)]
        assert torch.equal(*bits), name


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"a \"quoted\" \u0001 key": "Zoë\n\u2028"}])
def test_public_package_reads_ours_and_we_read_theirs(tmp_path, metadata):
    tensors = assorted()
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata)
    copy(tmp_path / "theirs", tmp_path / "ours")
    assert_same(safetensors.torch.load_file(tmp_path / "ours"), tensors)
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == metadata
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["ours", "theirs"]


def test_no_tensors(tmp_path):
    safetensors.torch.save_file({}, tmp_path / "theirs")
    copy(tmp_path / "theirs", tmp_path / "ours")
    assert safetensors.torch.load_file(tmp_path / "ours") == {}


def test_many_metadata_keys_have_one_order(tmp_path):
    metadata = {f"key{i}": str(i) for i in range(50)}
    for name in "ab":
        safetensors.torch.save_file({"x": torch.ones(3)}, tmp_path / name, metadata)  # in an order that changes by run
        copy(tmp_path / name, tmp_path / f"our-{name}")
    assert (tmp_path / "our-a").read_bytes() == (tmp_path / "our-b").read_bytes()
    with safetensors.safe_open(tmp_path / "our-a", "pt") as file:
        assert file.metadata() == metadata


def documented_fingerprint(path, folder):
    with open(os.path.join(DOCS, "fingerprint.md"), encoding="utf-8") as page:
        (block,) = re.findall(r"```python\n(.*?)```", page.read(), re.DOTALL)
    (folder / "recompute.py").write_text(block)
    answer = subprocess.run([sys.executable, folder / "recompute.py", path], capture_output=True, text=True, check=True, timeout=60)
    return answer.stdout.strip()


def test_fingerprint_is_the_documented_one(tmp_path):
    safetensors.torch.save_file(assorted(), tmp_path / "model", {"seed": "7"})
    ours = copy(tmp_path / "model", tmp_path / "copy")
    assert re.fullmatch("[0-9a-f]{64}", ours)
    assert ours == documented_fingerprint(tmp_path / "model", tmp_path)


def test_fingerprint_sees_every_difference_and_only_those(tmp_path):
    def of(tensors, metadata=None):
        safetensors.torch.save_file(tensors, tmp_path / "x", metadata)
        return copy(tmp_path / "x", tmp_path / "y")

    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    assert of(dict(reversed(base.items())), {"other": "metadata"}) == of(base)
    different = [base,
                 {"a": torch.zeros(3, 2), "b": torch.ones(4)},
                 {"a": torch.zeros(6), "b": torch.ones(4)},
                 {"a": -torch.zeros(2, 3), "b": torch.ones(4)},
                 {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(4)},
                 {"a": torch.zeros(2, 3), "c": torch.ones(4)},
                 {"b": torch.zeros(2, 3), "a": torch.ones(4)},
                 {"a": torch.zeros(2, 3), "b": torch.tensor([1, 1, 1, 1 + 2 ** -23])},
                 {"a": torch.zeros(2, 3)}]
    assert len({of(tensors) for tensors in different}) == len(different)


def test_a_flipped_bit_in_the_header_never_crashes(tmp_path):
    """500 files with one damaged bit each, in the header's length or text. What we accept, the public package accepts."""
    safetensors.torch.save_file({"a.weight": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.bool), "c": torch.ones(())},
                                tmp_path / "good", {"format": "pt"})
    good = (tmp_path / "good").read_bytes()
    bits = (8 + struct.unpack("<Q", good[:8])[0]) * 8
    chosen = list(range(64)) + sorted(np.random.default_rng(0).choice(np.arange(64, bits), 436, replace=False).tolist())
    files = []
    for bit in chosen:
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        files.append(tmp_path / f"bit-{bit}")
        files[-1].write_bytes(damaged)
    answers = try_reading(*files)
    assert len(answers) == 500
    refused = 0
    for file, answer in zip(files, answers):
        if answer == "ok":
            safetensors.torch.load_file(file)
        else:
            assert answer.startswith(f"65 {file} is not a valid safetensors file: "), answer
            refused += 1
    assert refused > 250


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def written(path, header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


PART = b'"dtype":"F32","shape":[2],"data_offsets":[0,8]'
HOSTILE = {
    "header longer than file": ({"x": entry()}, {"length": 5000}, "cut short"),
    "header over 100 MB": ({"x": entry()}, {"length": 100_000_001}, "100,000,000"),
    "header of 2^64-1 bytes": ({"x": entry()}, {"length": 2 ** 64 - 1}, "100,000,000"),
    "empty header": (b"", {"data": b""}, "does not start with {"),
    "list": (b"[]", {"data": b""}, "does not start with {"),
    "byte order mark": (b"\xef\xbb\xbf{}", {"data": b""}, "does not start with {"),
    "deep nesting": (b'{"x":' + b"[" * 100_000, {}, "'x': there is a list"),
    "deep objects": (b'{"x":' + b'{"dtype":' * 100_000, {}, "'x': there is an object"),
    "deep metadata": (b'{"__metadata__":{"a":{"b":{}}}}', {"data": b""}, "__metadata__: there is an object"),
    "metadata is a number": (b'{"__metadata__":{"a":1}}', {"data": b""}, "__metadata__: there is a number"),
    "tensor twice": (b'{"x":{' + PART + b'},"x":{' + PART + b"}}", {}, "'x': it occurs twice"),
    "metadata twice": (b'{"__metadata__":{},"__metadata__":{}}', {"data": b""}, "__metadata__: it occurs twice"),
    "metadata key twice": (b'{"__metadata__":{"a":"1","a":"2"}}', {"data": b""}, "'a' occurs twice"),
    "tensor key twice": (b'{"x":{"dtype":"F32",' + PART + b"}}", {}, "'dtype' is unknown or occurs twice"),
    "unknown key": ({"x": {**entry(), "device": "cpu"}}, {}, "'device' is unknown"),
    "missing key": ({"x": {"dtype": "F32", "shape": [2]}}, {}, "data_offsets (two numbers) is missing"),
    "unknown dtype": ({"x": entry("F8_E4M3", (8,))}, {}, "'x': its dtype 'F8_E4M3' cannot be read"),
    "negative size": ({"x": entry(shape=(-2,))}, {}, "'x': there is a negative number"),
    "size not whole": ({"x": entry(shape=(2.0,))}, {}, "'x': there is a number that is not whole"),
    "size over int64": ({"x": entry(shape=(2 ** 63,))}, {}, "'x': its shape is too large"),
    "product overflows to 8 bytes": ({"x": entry(shape=(2 ** 62 + 1, 2))}, {}, "'x': its shape is too large"),
    "product overflows to 0": ({"x": entry(shape=(2 ** 32, 2 ** 32), offsets=(0, 0))}, {"data": b""}, "shape is too large"),
    "empty with huge strides": ({"x": entry(shape=(0, 2 ** 62, 2 ** 62), offsets=(0, 0))}, {"data": b""}, "too large"),
    "65 dimensions": ({"x": entry(shape=(1,) * 64 + (2,))}, {}, "more than 64 dimensions"),
    "three offsets": ({"x": entry(offsets=(0, 8, 8))}, {}, "data_offsets are not two numbers"),
    "one offset": ({"x": entry(offsets=(0,))}, {}, "data_offsets (two numbers) is missing"),
    "past the end": ({"x": entry(shape=(4,), offsets=(0, 16))}, {}, "the file has 8 bytes of data: is it cut short?"),
    "offsets of 2^64-1": ({"x": entry(offsets=(2 ** 64 - 9, 2 ** 64 - 1))}, {}, "is it cut short?"),
    "backwards": ({"x": entry(offsets=(8, 0))}, {}, "ends before it begins"),
    "overlap": ({"x": entry(), "y": entry(offsets=(4, 12))}, {"data": b"\0" * 12}, "'y': its data overlaps"),
    "same place": ({"x": entry(), "y": entry()}, {}, "'y': its data overlaps"),
    "gap": ({"x": entry(), "y": entry(offsets=(12, 20))}, {"data": b"\0" * 20}, "'y': there is a gap before"),
    "gap at the start": ({"x": entry(offsets=(4, 12))}, {"data": b"\0" * 12}, "'x': there is a gap before"),
    "bytes nobody owns": ({"x": entry()}, {"data": b"\0" * 9}, "8 bytes of data, the file 9"),
    "shape and bytes differ": ({"x": entry(shape=(1,))}, {}, "'x': dtype and shape need 4 bytes, its data has 8"),
    "not UTF-8": (b'{"x\xff":{' + PART + b"}}", {}, "not valid JSON in UTF-8"),
    "lone surrogate": (b'{"x\\ud800":{' + PART + b"}}", {}, "not valid JSON in UTF-8"),
    "text after the header": (b"{} {}", {"data": b""}, "not valid JSON"),
    "zero byte after the header": (b"{}\0", {"data": b""}, "not valid JSON"),
    "zero byte hides a tensor": (b'{}\0"x"', {"data": b""}, "not valid JSON"),
    "cut JSON": (b'{"x":{', {}, "not valid JSON"),
    "not a boolean": ({"x": entry("BOOL", (8,))}, {"data": b"\0\1\2\0\0\0\0\0"}, "neither 0 nor 1"),
    "terminal escape in a name": ({"\x1b[2J": entry(shape=(3,))}, {}, r"'\x1b[2J'"),
}


@pytest.fixture(scope="module")
def answers_to_hostile_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    files = [written(folder / f"{i}.safetensors", header, **options) for i, (header, options, _) in enumerate(HOSTILE.values())]
    return dict(zip(HOSTILE, zip(files, try_reading(*files))))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(answers_to_hostile_files, case):
    file, answer = answers_to_hostile_files[case]
    assert answer.startswith(f"65 {file} is not a valid safetensors file: ")
    assert HOSTILE[case][2] in answer


def test_short_files(tmp_path):
    files = [tmp_path / str(size) for size in range(8)]
    for size, file in enumerate(files):
        file.write_bytes(b"\1" * size)
    answers = try_reading(*files, tmp_path, tmp_path / "none", "/dev/null")
    for size in range(8):
        assert f"{size} bytes, not even a header length" in answers[size]
    assert answers[8] == f"74 Cannot read {tmp_path}: it is not an ordinary file."
    assert answers[9] == f"74 Cannot open {tmp_path}/none: No such file or directory."
    assert answers[10] == "74 Cannot read /dev/null: it is not an ordinary file."


def peak_memory(path):
    process = subprocess.Popen([program(), "safetensors", "try", path], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_a_large_header_takes_little_memory(tmp_path):
    """20 MB of numbers, text, nesting or keys: what is read of it stays within a small multiple of it."""
    size = 20_000_000
    texts = {"numbers": b'{"x":{"shape":[' + b"1," * (size // 2) + b"1]}}",
             "text": b'{"__metadata__":{"a":"' + b"z" * size + b'"}}',
             "nesting": b'{"x":' + b"[" * size,
             "shapes": b'{"x":{"shape":[' + b"1," * 60 + b'1],"shape":[' + b"1," * (size // 2)}
    small = peak_memory(written(tmp_path / "small", b"{}", b""))
    for what, text in texts.items():
        assert peak_memory(written(tmp_path / "large", text, b"")) - small < 4 * size, what
