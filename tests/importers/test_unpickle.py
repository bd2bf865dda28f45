"""The reader of pickles: equal to pickle and numpy on what they write, and nothing of a hostile pickle is executed or allocated."""
import collections
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "importers"))
import npz  # noqa: E402
import unpickle  # noqa: E402
from container import DataError  # noqa: E402

FULL = bool(os.environ.get("MUSTER_FULL_TESTS"))
PLAIN = [None, True, False, 0, 255, 65536, -5, 2**31, -2**100, 1.5, float("inf"), "", "ä\ud800x", "u" * 70000, b"", b"ab\xff", b"z" * 70000,
         bytearray(b"xy"), bytearray(b"q" * 5000), [], [1, [2, (3, 4, 5, 6)], ()], (1,), (1, 2), {}, {"a": 1, (1, "b"): 2, None: 3, 1.5: 4}, {1, "b"}, set(),
         frozenset([1]), collections.OrderedDict(b=1, a=2), collections.defaultdict(list, {"a": [1]}), list(range(3000)),
         {str(i): i for i in range(3000)}]
SCALARS = [np.float64(2.5), np.float32(1), np.float16(-3), np.int64(3), np.uint8(4), np.str_("hé"), np.bytes_(b"hi"), np.bool_(True), np.dtype(">f4"),
           np.dtype("<U7")]


def arrays():
    for dtype in "f2 f4 f8 i1 u1 i2 i4 i8 u8 b1 c8 >f2 >f8 >i4 <U5 >U2 S3".split():
        array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
        yield from (array, np.asfortranarray(array), array.transpose(1, 0, 2), array[:, ::2], array[:0], array[0, 0, :1].reshape(()))
    objects = np.empty((2, 2), dtype=object)
    objects[:] = [[{"a": 1}, None], ["x", np.arange(3)]]
    yield from (objects, np.asfortranarray(objects), np.array({"n": {"emo": 1, "val": np.float64(2)}}, dtype=object))
    yield np.array([np.zeros((2, 3)), np.zeros((4, 3))], dtype=object)
    yield np.arange(200000, dtype=np.float32).reshape(-1, 4)


def same(one, other):
    if isinstance(one, np.ndarray):
        if type(other) is not np.ndarray or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return one.tobytes() == other.tobytes() if one.dtype != object else all(map(same, one.ravel(), other.ravel()))
    if isinstance(one, dict):
        return type(other) is dict and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_writes_is_read(protocol, tmp_path):
    for value in [*PLAIN, *SCALARS, *arrays()]:
        written = pickle.dumps(value, protocol)
        assert same(value, unpickle.load(written)), (protocol, value)
        if protocol < 4:  # numpy 1.x called this module so
            assert same(value, unpickle.load(written.replace(b"numpy._core", b"numpy.core"))), (protocol, value)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"all": [*PLAIN, *arrays()], "again": SCALARS}, protocol))
    value = unpickle.load(path)
    assert same([*PLAIN[:-4], *list(arrays())], [*value["all"][:len(PLAIN) - 4], *value["all"][len(PLAIN):]])


def test_large_arrays_are_views_of_the_file(tmp_path):
    for protocol in (3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(np.arange(100000.0).reshape(-1, 2), protocol))
        array = unpickle.load(path)
        assert not array.flags.owndata and not array.flags.writeable and array.sum() == 99999 * 50000


# As Python 2 with numpy 1.x wrote them: strings of 8 bits as keys, names of types and contents of arrays.
VALUES = np.array([[1.5, -2.0], [0.25, 255.0]])
PYTHON_2 = (b"\x80\x02}q\x01(U\x05audioq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02K"
            b"\x02\x86q\x09cnumpy\ndtype\nq\nU\x02f8q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01<q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89U\x20"
            + VALUES.tobytes() + b"tq\x10bU\x02idq\x11]q\x12(U\x03a\xc3\xa4q\x13U\x01\xe9q\x14X\x01\x00\x00\x00bq\x15eU\x05countq\x16K\x03U\x04longq\x17\x8a\x01\x05u.")
PYTHON_2_TEXT = (b"(dp1\nS'audio'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\ntp5\nS'b'\np6\ntp7\nRp8\n(I1\n(I2\ntp9\ncnumpy\ndtype\n"
                 b"p10\n(S'i2'\np11\nI0\nI1\ntp12\nRp13\n(I3\nS'>'\np14\nNNNI-1\nI-1\nI0\ntp15\nbI00\nS'\\x01\\x02\\n\\''\np16\ntp17\nbsS'flag'\np18\nI01\nsS'long'\n"
                 b"p19\nL12345678901234567890L\nsS'float'\np20\nF2.5\nsS'list'\np21\n(lp22\nVh\\u00e9\np23\nag23\nas.")


@pytest.mark.parametrize("written", [PYTHON_2, PYTHON_2_TEXT])
def test_python_2(written):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, that numpy.core has another name
        expected = pickle.loads(written, encoding="latin1")
    if "id" in expected:
        assert expected["id"][0] == "aÃ¤"
        expected["id"][0] = "aä"  # UTF-8 where it is some, otherwise Latin-1
    read = unpickle.load(written)
    for value in (expected, read):  # numpy turns big-endian values from Python 2 round when it reads them
        value["audio"] = value["audio"].astype(value["audio"].dtype.newbyteorder("="))
    assert same(expected, read)


def test_writers_of_python_3_for_python_2():
    written = pickle.dumps({"audio": VALUES, b"bytes": b"\xff\x00"}, 2)
    assert b"_codecs\nencode" in written and same({"audio": VALUES, b"bytes": b"\xff\x00"}, unpickle.load(written))
    assert b"_frombuffer" in pickle.dumps(VALUES, 5)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def hostile(tmp_path):
    """{name: content}; none may create the file `executed`."""
    touch = f"touch {tmp_path}/executed"
    chain = f"cbuiltins\ngetattr\n(cos\n__dict__\nVsystem\ntR(V{touch}\ntR."
    return {
        "system": pickle.dumps({"train": Calls(os.system, touch)}), "old_system": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "eval": pickle.dumps(Calls(eval, f"__import__('os').system('{touch}')"), 0),
        "exec": pickle.dumps([Calls(exec, f"__import__('os').system('{touch}')")], 5), "getattr": chain.encode(),
        "instance": f"(S'{touch}'\nios\nsystem\n.".encode(), "object": f"(cos\nsystem\nS'{touch}'\no.".encode(),
        "newobj": f"csubprocess\nPopen\nV{touch}\n\x85\x81.".encode("latin1"), "late": b"N" + f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "fromfile": b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.", "fromfile2": pickle.dumps(Calls(np.fromfile, "/etc/passwd")),
        "load": pickle.dumps(Calls(np.load, "x.npy")), "memmap": b"cnumpy\nmemmap\n(S'/etc/passwd'\ntR.", "ndarray": b"cnumpy\nndarray\n(I1000000000\ntR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0fcore.multiarray\x93.", "submodule": b"cnumpy.core\nmultiarray.fromfile\n.",
        "builtin_call": b"cbuiltins\nint\n(S'1'\ntR.", "bytes_of_size": b"cbuiltins\nbytes\n(I1000000000000\ntR.",
        "bytearray_of_size": b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "persistent": b"Psomething\n.", "extension": b"\x82\x01.", "buffer": b"\x80\x05\x97.",
        "deep_lists": b"]" * 100000 + b"a" * 99999 + b".", "deep_marks": b"(" * 100000, "deep_tuples": b")" + b"\x85" * 200000 + b".",
        "deep_key": b"})" + b"\x85" * 100000 + b"Ns.", "itself": b"]q\x00h\x00a.", "many": b"]" * 200000, "sets": b"\x8f" * 1000000,
        "long_bytes": b"\x8e" + struct.pack("<Q", 2**62) + b"x", "long_text": b"\x8d" + struct.pack("<Q", 2**40) + b"x", "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        "negative": b"T\xff\xff\xff\xff.", "long_number": b"\x8b\xff\xff\xff\x7f1.", "memo": b"Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f0N", "unknown_memo": b"h\x05.",
        "endless_number": b"I" + b"1" * 5_000_000 + b"\n.", "empty": b"", "stop": b".", "trailing": b"N.N.", "protocol": b"\x80\x06N.", "text": b"not a pickle",
        "shape": pickle.dumps(np.zeros(3), 4).replace(b"K\x03\x85", b"K\xff\x85"),
        "objects_of_bytes": pickle.dumps(np.zeros(3), 3).replace(b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8"),
        "records": pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "dates": pickle.dumps(np.zeros(2, dtype="M8[s]")), "subclass": pickle.dumps(np.ma.zeros(3)),
        "again_and_again": b"cnumpy\ndtype\n(VU1\nI0\nI1\ntR(I3\nV<\nNNNI4\nI4\nI8\ntbp0\n0B\x00\x00\x40\x00" + bytes(1 << 22)
        + b"p1\n0cnumpy.core.numeric\n_frombuffer\np2\n" + b"g2\n(g1\ng0\nI1048576\nVC\ntR0" * 5000 + b"N.",
        "no_character": pickle.dumps(np.array(["ab"])).replace("ab".encode("utf-32-le"), b"a\x00\x00\x00\xff\xff\xff\x7f"),
        "unbuilt": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR.", "state": b"}(dVx\nVy\nsb."}


def test_hostile_pickles_are_refused(hostile, tmp_path):
    """By the importer as by a user, all in one process, whose memory stays small."""
    for name, content in hostile.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    names = list(hostile)
    code = f"""
import contextlib, io, resource, sys
sys.path.insert(0, {str(ROOT / 'importers')!r})
import mmsa
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in {names!r}:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = mmsa.main([name + ".pkl", "-o", "out.h5"])
    print(name, code, len(errors.getvalue().splitlines()), "Traceback" in errors.getvalue(), errors.getvalue().splitlines()[0])
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert run.returncode == 0 and len(lines) == len(names) + 1, run.stdout + run.stderr
    for name, line in zip(names, lines):
        assert line.startswith(f"{name} 65 2 False {name}.pkl: "), line
    said = dict(line.split(" ", 1) for line in lines)
    for name, expected in (("system", '"posix.system"'), ("old_system", '"os.system"'), ("eval", "eval"), ("getattr", '"builtins.getattr"'), ("fromfile",
                           '"numpy.core.multiarray.fromfile"'), ("newobj", '"subprocess.Popen"'), ("subclass", "numpy.ma"), ("deep_lists", "nested too deep"), ("trailing", "follow its end"), ("no_character", "no character"),
                           ("again_and_again", "far more memory than its")):
        assert expected in said[name], said[name]
    assert int(said["grown"]) < 250_000, said["grown"]
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out.h5").exists()


def test_the_hostile_pickles_would_be_executed(hostile, tmp_path):
    """By pickle itself; otherwise the test before says nothing."""
    for name in ("system", "old_system", "eval", "exec", "instance", "object"):
        pickle.loads(hostile[name])
        (tmp_path / "executed").unlink()


SMALL = {"a": [np.arange(3, dtype=np.int16), 5, "text", 1.5], "b": np.array({"x": b"y"}, dtype=object), "c": np.float32(2)}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cut_off_at_every_byte(protocol):
    written = pickle.dumps(SMALL, protocol)
    assert same(SMALL, unpickle.load(written))
    for end in range(len(written)):
        with pytest.raises(DataError):
            unpickle.load(written[:end])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damaged_bytes_are_read_or_refused(protocol):
    """With nothing but DataError, and quickly."""
    written, chance = pickle.dumps(SMALL, protocol), random.Random(protocol)
    for _ in range(20000 if FULL else 1000):
        damaged = bytearray(written)
        for _ in range(chance.choice((1, 1, 2, 5))):
            damaged[chance.randrange(len(damaged))] = chance.choice((chance.randrange(256), chance.choice(b"(.012NRbcdehijlopqrstu})]\x81\x85\x93\x94")))
        try:
            unpickle.load(bytes(damaged))
        except DataError as error:
            assert "byte" in str(error)


def test_messages_name_the_byte():
    with pytest.raises(DataError, match=r'^pickle: uses "os.system", which is not admitted: .* \(byte 2\)$'):
        unpickle.load(b"\x80\x02cos\nsystem\n.")


def test_npz_equals_numpy(tmp_path):
    corpus = {"utt_1": {"emo": 2, "val": np.float64(-1.5)}, "utt_2": {"emo": "happy", "val": ""}}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", whole_corpus=corpus, names=np.array(["a", "bc"]), values=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
        read = npz.load_npz(tmp_path / "x.npz")
        assert list(read) == ["whole_corpus", "names", "values"] and same(corpus, read["whole_corpus"][()])
        with np.load(tmp_path / "x.npz") as expected:
            assert same(expected["names"], read["names"]) and same(expected["values"], read["values"])
    np.save(tmp_path / "y.npy", np.array([corpus, None], dtype=object), allow_pickle=True)
    assert same(np.array([corpus, None], dtype=object), npz.load_npz(tmp_path / "y.npy")["y"])


def test_bad_npz(tmp_path):
    path = tmp_path / "x.npz"

    def refused(expected):
        with pytest.raises(DataError, match=expected) as caught:
            npz.load_npz(path)
        assert str(path) in str(caught.value)
    np.savez_compressed(path, x=np.zeros(100000, dtype=np.int8))
    content = path.read_bytes()
    stated = struct.pack("<I", 100000 + 128)
    assert content.count(stated) >= 1
    path.write_bytes(content.replace(stated, struct.pack("<I", 2**31)))
    refused("claims 2147483648 bytes")
    with pytest.raises(DataError, match="no plausible array"):
        path.write_bytes(content)
        npz.load_npz(path, limit=1000)
    path.write_bytes(content[:-30])
    refused("no valid .npz file")
    np.savez(path, x=np.array(Calls(os.system, f"touch {tmp_path}/executed"), dtype=object))
    refused('"posix.system"')
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }  \n".ljust(70))
    refused("are no values of type float64")
    np.savez(path, x=np.array(["ab"]))
    path.write_bytes(path.read_bytes().replace(b"b\x00\x00\x00", b"b\x00\x00\x7f"))
    refused("CRC|no character")
    np.savez(path, x=np.zeros((0, 3)))
    assert npz.load_npz(path)["x"].shape == (0, 3)
    assert not (tmp_path / "executed").exists()
