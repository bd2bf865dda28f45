"""muster's checkpoints against the public safetensors package and PyTorch's distributed checkpoint; damaged and hostile ones."""
import json
import os
import resource
import shutil
import struct
import subprocess

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from probe_program import probe, program
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def random_tensor(dtype, shape, seed):
    count = int(np.prod(shape)) * torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, count, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def random_state(seed):
    state = {f"layer.{i}.{dtype}": random_tensor(dtype, (11 + i, 3, 5), seed + i) for i, dtype in enumerate(DTYPES)}
    state["large"] = random_tensor(torch.float32, (257, 31), seed + 100)
    state["one row"] = random_tensor(torch.float32, (1, 999), seed + 101)
    state["steps"] = random_tensor(torch.int64, (), seed + 102)
    state["Gefühl \"感情\""] = random_tensor(torch.float32, (7,), seed + 103)
    return state


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        assert torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (ours[name], tensor))), name


def save(folder, state, ranks, step, *more):
    source = folder.parent / "source.safetensors"
    safetensors.torch.save_file(state, source)
    run = probe("checkpoint", "save", source, folder, ranks, step, *more)
    assert run.returncode == 0, run.stderr
    return folder / f"step-{step:08d}"


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_others_read_what_ranks_wrote(tmp_path, ranks):
    state = random_state(ranks)
    checkpoint = save(tmp_path / "c", state, ranks, 12, *(["async"] if ranks == 2 else []))
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert [shard.name for shard in shards] == [f"rank-{rank}-of-{ranks}.safetensors" for rank in range(ranks)]

    # The public package opens every shard; rows of split tensors, put together by what the shards say, are the tensors.
    pieces = {}
    for shard in shards:
        with safetensors.safe_open(shard, "pt") as file:
            offsets = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "null"))
            assert offsets is None or offsets.keys() == set(file.keys())
            for name in file.keys():
                place = offsets[name]["saved_offsets"] if offsets else [0] * state[name].dim()
                pieces.setdefault(name, []).append((place, file.get_tensor(name)))
    assert any(len(parts) > 1 for parts in pieces.values()) == (ranks > 1)
    together = {name: torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0])]) if parts[0][1].dim() else parts[0][1]
                for name, parts in pieces.items()}
    assert_same(together, state)

    # PyTorch's own reader, for one process.
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(target, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    assert_same(target, state)


@pytest.mark.parametrize("writers, readers", [(1, 3), (2, 1), (3, 2), (5, 4)])
def test_our_own_loader_gives_every_bit_back(tmp_path, writers, readers):
    state = random_state(writers)
    save(tmp_path / "c", random_state(99), writers, 1)
    save(tmp_path / "c", state, writers, 2)
    run = probe("checkpoint", "load", tmp_path / "c", readers, tmp_path / "out.safetensors")
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr
    assert_same(safetensors.torch.load_file(tmp_path / "out.safetensors"), state)


def test_damage_is_always_noticed(tmp_path):
    """At random places of each file a bit is flipped or the end cut off, 250 times per file: always the older checkpoint is loaded, with the reason."""
    small = {"w": random_tensor(torch.float32, (40, 9), 1), "mask": random_tensor(torch.bool, (8,), 2), "steps": random_tensor(torch.int64, (), 3)}
    save(tmp_path / "c", small, 2, 1)
    save(tmp_path / "c", small, 2, 2)
    run = probe("checkpoint", "damage", tmp_path / "c", 250, 7, timeout=150)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 3, run.stdout
    for line in lines:
        assert ": 188 bits flipped, 62 cut, 250 noticed: " in line and "step-00000002" in line, line


# What a hostile hand could write: manifests and shards whose checksums fit.

CRC_TABLE = list(range(256))
for _ in range(8):
    CRC_TABLE = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in CRC_TABLE]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """A protobuf field: int as varint, Fixed as fixed32, bytes as they are. Zero and empty ones are left out, as canonical writers do."""
    if isinstance(value, Fixed):
        return varint(number << 3 | 5) + struct.pack("<I", value) if value else b""
    if isinstance(value, int):
        return varint(number << 3) + varint(value) if value else b""
    return varint(number << 3 | 2) + varint(len(value)) + value if value else b""


class Fixed(int):
    pass


def message(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def file_entry(name, data, size=None):
    return field(1, name.encode()) + field(2, len(data) if size is None else size) + field(3, Fixed(crc32c(data)))


def tensor_entry(name, dtype, shape):
    return field(1, name.encode()) + field(2, dtype.encode()) + field(3, b"".join(map(varint, shape)))


def sealed(body, version=1, crc=None):
    return field(1, version) + field(2, Fixed(crc32c(body) if crc is None else crc)) + field(3, body)


def body_of(files, tensors, world_size=None):
    return (field(1, 5) + message(4, b"") + field(7, len(files) if world_size is None else world_size) + b"".join(message(8, file) for file in files) +
            b"".join(message(9, tensor) for tensor in tensors))


def shard(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def placed(places, **tensors):
    return {"__metadata__": {"DCP_SHARDING_INFO": places if isinstance(places, str) else json.dumps({n: {"saved_offsets": p} for n, p in places.items()})},
            **tensors}


X = tensor_entry("x", "F32", [2])
GOOD = shard({"x": entry()}, b"\0" * 8)


def one(data, tensors=(X,), **options):
    """A checkpoint of one file."""
    return {"rank-0-of-1.safetensors": data, "MANIFEST.pb": sealed(body_of([file_entry("rank-0-of-1.safetensors", data, **options)], tensors))}


def two(first, second, tensors=(X,)):
    names = ["rank-0-of-2.safetensors", "rank-1-of-2.safetensors"]
    return dict(zip(names, (first, second))) | {"MANIFEST.pb": sealed(body_of([file_entry(n, d) for n, d in zip(names, (first, second))], tensors))}


def named(name, **options):
    return {"rank-0-of-1.safetensors": GOOD, "MANIFEST.pb": sealed(body_of([file_entry(name, GOOD)], [X], **options))}


def manifest(data):
    return {"rank-0-of-1.safetensors": GOOD, "MANIFEST.pb": data}


GOOD_BODY = body_of([file_entry("rank-0-of-1.safetensors", GOOD)], [X])
ROWS_2 = shard(placed({"x": [0]}, x=entry()), b"\0" * 8)
HOSTILE = {
    "no manifest": ({"rank-0-of-1.safetensors": GOOD}, "MANIFEST.pb is missing"),
    "empty manifest": (manifest(b""), "it is empty"),
    "not protobuf": (manifest(b"\xff" * 100), "it is not a manifest"),
    "a newer version": (manifest(sealed(GOOD_BODY, version=2)), "its format version is 2"),
    "wrong checksum": (manifest(sealed(GOOD_BODY, crc=1)), "its checksum does not match"),
    "something after it": (manifest(sealed(GOOD_BODY) + field(9, b"more")), "it holds more than a manifest does"),
    "unknown field in the body": (manifest(sealed(GOOD_BODY + field(77, 1))), "it was not written by this version"),
    "no score": (manifest(sealed(GOOD_BODY.replace(message(4, b""), b""))), "it was not written by this version"),
    "no file": (manifest(sealed(body_of([], [X]))), "written by 0 ranks"),
    "2^31 ranks": (named("rank-0-of-1.safetensors", world_size=2 ** 31), "written by 2147483648 ranks"),
    "fewer files than ranks": (named("rank-0-of-1.safetensors", world_size=2), "1 files of 2 ranks"),
    "path to the root": (named("/etc/passwd"), "it names '/etc/passwd' as the file of rank 0"),
    "path upwards": (named("../../etc/passwd"), "it names '../../etc/passwd'"),
    "two dots": (named(".."), "it names '..'"),
    "hidden": (named(".rank-0-of-1.safetensors"), "as the file of rank 0"),
    "the manifest itself": (named("MANIFEST.pb"), "as the file of rank 0"),
    "not UTF-8": (manifest(sealed(body_of([field(1, b"\xff\xfe") + field(2, 8)], [X]))), "as the file of rank 0"),
    "file twice": ({**two(ROWS_2, ROWS_2), "MANIFEST.pb": sealed(body_of([file_entry("rank-0-of-2.safetensors", ROWS_2)] * 2, [X]))}, "as the file of rank 1"),
    "missing file": ({"MANIFEST.pb": sealed(GOOD_BODY)}, "rank-0-of-1.safetensors is missing"),
    "wrong size": (one(GOOD, size=len(GOOD) + 1), "the manifest says"),
    "huge files": (one(GOOD, size=2 ** 60), "the manifest says 1152921504606846976"),
    "sizes overflow": (manifest(sealed(body_of([file_entry(f"rank-{r}-of-2.safetensors", b"", size=2 ** 63) for r in (0, 1)], [X]))), "files are too large"),
    "shape overflows": (one(GOOD, [tensor_entry("x", "F32", [2 ** 62 + 1, 2])]), "larger than the files"),
    "shape overflows to 0": (one(GOOD, [tensor_entry("x", "F32", [2 ** 32, 2 ** 32])]), "larger than the files"),
    "size over int64": (one(GOOD, [tensor_entry("x", "F32", [2 ** 63])]), "its shape is too large"),
    "huge tensor": (one(GOOD, [tensor_entry("x", "F32", [2 ** 40])]), "larger than the files"),
    "65 dimensions": (one(GOOD, [tensor_entry("x", "F32", [1] * 65)]), "more than 64 dimensions"),
    "unknown dtype": (one(GOOD, [tensor_entry("x", "F8_E4M3", [2])]), "cannot be read"),
    "tensor twice": (one(GOOD, [X, X]), "not in order"),
    "tensor in no file": (one(GOOD, [X, tensor_entry("y", "F32", [0])]), "tensor 'y' is in none of its files"),
    "tensor not in the table": (one(shard({"x": entry(), "y": entry((0,), (8, 8))}, b"\0" * 8)), "tensor 'y' is not in the manifest"),
    "other dtype": (one(shard({"x": entry(dtype="I32")}, b"\0" * 8)), "another dtype"),
    "other shape": (one(shard({"x": entry((2, 1))}, b"\0" * 8)), "another shape"),
    "rows missing": (one(shard({"x": entry((1,), (0, 4)), "z": entry((1,), (4, 8))}, b"\0" * 8), [X, tensor_entry("z", "F32", [1])]), "lacks rows from 1"),
    "gap": (two(shard(placed({"x": [0]}, x=entry((1,), (0, 4))), b"\0" * 4), shard(placed({"x": [2]}, x=entry((1,), (0, 4))), b"\0" * 4),
                [tensor_entry("x", "F32", [3])]), "lacks rows from 1"),
    "overlap": (two(ROWS_2, shard(placed({"x": [1]}, x=entry()), b"\0" * 8), [tensor_entry("x", "F32", [3])]), "and again in"),
    "twice whole": (two(GOOD, GOOD), "and again in"),
    "rows beyond the end": (one(shard(placed({"x": [1]}, x=entry()), b"\0" * 8)), "rows that it has not"),
    "rows at 2^63-1": (one(shard(placed({"x": [2 ** 63 - 1]}, x=entry()), b"\0" * 8)), "rows that it has not"),
    "rows at 2^64-1": (one(shard(placed({"x": [2 ** 64 - 1]}, x=entry()), b"\0" * 8)), "an impossible place"),
    "negative row": (one(shard(placed({"x": [-1]}, x=entry()), b"\0" * 8)), "an impossible place"),
    "split along columns": (one(shard(placed({"x": [0, 1]}, x=entry((2, 1))), b"\0" * 8), [tensor_entry("x", "F32", [2, 2])]), "an impossible place"),
    "places of other tensors": (one(shard(placed({"y": [0]}, x=entry()), b"\0" * 8)), "lacks tensor"),
    "no places": (one(shard(placed({}, x=entry()), b"\0" * 8)), "does not list the tensors"),
    "places of another rank": (one(shard(placed({"x": [0, 0]}, x=entry()), b"\0" * 8)), "has no place"),
    "places not JSON": (one(shard(placed("{", x=entry()), b"\0" * 8)), "is not valid JSON"),
    "places nested deeply": (one(shard(placed("[" * 100_000, x=entry()), b"\0" * 8)), "nested too deeply"),
    "header of 2^60 bytes": (one(shard({"x": entry()}, b"\0" * 8, length=2 ** 60)), "its header would have 1152921504606846976 bytes"),
    "header longer than the file": (one(shard({"x": entry()}, b"\0" * 8, length=1000)), "its header would have 1000 bytes"),
    "offsets overlap": (one(shard({"x": entry(), "y": entry(offsets=(4, 12))}, b"\0" * 12)), "overlaps"),
    "offsets out of range": (one(shard({"x": entry(offsets=(8, 16))}, b"\0" * 8)), "is it cut short"),
    "wrong dtype size": (one(shard({"x": entry(dtype="F64")}, b"\0" * 8)), "dtype and shape need 16 bytes"),
    "name not UTF-8": (one(shard(b'{"x\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8)), "not valid JSON in UTF-8"),
    "not a boolean": (one(shard({"x": entry((8,), dtype="BOOL")}, b"\0\1\2\0\0\0\0\0"), [tensor_entry("x", "BOOL", [8])]), "neither 0 nor 1"),
}


def written(folder, files):
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def try_with_little_memory(*paths):
    def limited():
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
    return subprocess.run([program(), "checkpoint", "try", *paths], capture_output=True, text=True, timeout=150, preexec_fn=limited)


@pytest.fixture(scope="module")
def answers_to_hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    folders = [written(folder / f"case-{i}", files) for i, (files, _) in enumerate(HOSTILE.values())]
    run = try_with_little_memory(written(folder / "good", manifest(sealed(GOOD_BODY))), *folders)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    good, *answers = run.stdout.splitlines()
    assert good == "ok"  # these hands write what muster takes, when it makes sense
    return dict(zip(HOSTILE, zip(folders, answers)))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_checkpoints_are_refused_with_the_reason(answers_to_hostile, case):
    folder, answer = answers_to_hostile[case]
    assert answer.startswith(f"65 {folder}"), answer
    assert HOSTILE[case][1].replace("\\", "") in answer


def test_what_is_no_file(tmp_path):
    files = manifest(sealed(GOOD_BODY))
    (written(tmp_path / "folder", {"MANIFEST.pb": files["MANIFEST.pb"]}) / "rank-0-of-1.safetensors").mkdir()
    os.mkfifo(written(tmp_path / "pipe", {"rank-0-of-1.safetensors": GOOD}) / "MANIFEST.pb")
    (written(tmp_path / "large", {"rank-0-of-1.safetensors": GOOD}) / "MANIFEST.pb").touch()
    os.truncate(tmp_path / "large" / "MANIFEST.pb", 1 << 40)
    answers = try_with_little_memory(*(tmp_path / name for name in ("folder", "pipe", "large", "none", "/dev/null"))).stdout.splitlines()
    for answer, reason in zip(answers, ["not an ordinary file", "not an ordinary file", "a manifest at most 64 MiB", "is missing", "is missing"]):
        assert answer.startswith("65 ") and reason in answer, answers


def peak_memory(path):
    process = subprocess.Popen([program(), "checkpoint", "try", path], stdout=subprocess.PIPE)
    answer = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    assert process.returncode == 0
    return answer, usage.ru_maxrss * 1024


def test_a_small_file_takes_little_memory(tmp_path):
    """Two megabytes of what grows most when it is parsed: empty messages, dimensions, and a shard's places."""
    size = 2_000_000
    bombs = {"empty tensors": message(9, b"") * (size // 2), "empty files": message(8, b"") * (size // 2),
             "dimensions": message(9, field(1, b"x") + field(3, b"\1" * size))}
    _, usual = peak_memory(written(tmp_path / "usual", manifest(sealed(GOOD_BODY))))
    for what, more in bombs.items():
        body = GOOD_BODY + more
        answer, peak = peak_memory(written(tmp_path / what, manifest(sealed(body))))
        assert answer.startswith("65 ") and peak - usual < 15 * size, (what, answer)
    for what, places in {"places": "[" + "0," * (size // 2) + "0]", "keys": "{" + ",".join(f'"{i:x}":0' for i in range(size // 10)) + "}"}.items():
        data = shard(placed(places, x=entry()), b"\0" * 8)
        answer, peak = peak_memory(written(tmp_path / what, one(data)))
        assert answer.startswith("65 ") and peak - usual < 15 * size, (what, answer)


def test_a_renamed_checkpoint_is_refused(tmp_path):
    checkpoint = save(tmp_path / "c", {"x": torch.ones(3)}, 1, 4)
    shutil.copytree(checkpoint, tmp_path / "c" / "step-00000009")
    run = probe("checkpoint", "load", tmp_path / "c", 2, tmp_path / "out")
    assert run.stdout.startswith("4\n") and "holds the checkpoint of step 4: it was renamed" in run.stdout
