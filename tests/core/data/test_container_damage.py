"""Files that point outside themselves, claim the impossible, or are damaged: a clear error each, never a crash."""
import os
import random
import resource
import subprocess

import h5py
import pytest

from container_files import BAD_DATA, MUSTER, TEXT, expect_bad, muster, values_of, write
from container_files import path, tmp_path  # noqa: F401 (fixtures)


def test_nothing_outside_the_file_is_read(path, tmp_path):
    """A file that names another one must not make muster read it, even though the other one is good."""
    write(tmp_path / "other.h5")
    raw = tmp_path / "raw"
    raw.write_bytes(values_of("audio").tobytes())

    def replace(name, new):
        def change(f):
            if name in f:
                del f[name]
            new(f)
        return change

    layout = h5py.VirtualLayout((15, 4), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "modalities/audio/values", (15, 4))
    endless = h5py.VirtualLayout((15, 4), "f4", maxshape=(None, 4))
    endless[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "modalities/audio/values", (15, 4), maxshape=(None, 4))
    name = "modalities/audio/values"
    cases = [
        (name, lambda f: f.__setitem__(name, h5py.ExternalLink(str(tmp_path / "other.h5"), name)), "external link"),
        (name, lambda f: f.__setitem__(name, h5py.SoftLink("/modalities/vision/values")), "soft link"),
        ("modalities", lambda f: f.__setitem__("modalities", h5py.ExternalLink(str(tmp_path / "other.h5"), "modalities")), "external link"),
        ("samples", lambda f: f.__setitem__("samples", h5py.ExternalLink(str(tmp_path / "other.h5"), "samples")), "external link"),
        ("samples/split", lambda f: f.__setitem__("samples/split", h5py.ExternalLink(str(tmp_path / "other.h5"), "samples/split")),
         "external link"),
        (name, lambda f: f.create_dataset(name, (15, 4), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)]), "external storage"),
        ("samples/label", lambda f: f.create_dataset("samples/label", (6,), "i8", external=[(str(raw), 0, 48)]), "external storage"),
        (name, lambda f: f.create_virtual_dataset(name, layout), "virtual dataset"),
        (name, lambda f: f.create_virtual_dataset(name, endless), "virtual dataset"),
    ]
    for name_replaced, new, text in cases:
        write(path)
        with h5py.File(path, "r+") as f:
            replace(name_replaced, new)(f)
        expect_bad(path, text)
        trace = subprocess.run(["strace", "-f", "-e", "trace=open,openat", MUSTER, "data", "verify", str(path)], capture_output=True,
                               text=True) if os.path.exists("/usr/bin/strace") else None
        if trace:
            assert str(path) in trace.stderr and "other.h5" not in trace.stderr and str(raw) + '"' not in trace.stderr


def test_format_newer_than_our_hdf5(path):
    """HDF5 1.14's newest layouts are unknown to HDF5 1.10: either they can be read, or the message says what to do."""
    write(path, libver="latest", chunks=(2, 4), compression="gzip")
    answer = muster("verify", path)
    assert answer.returncode == 0 or (answer.returncode == BAD_DATA and "libver" in answer.stderr), answer.stderr


def test_claims_of_huge_sizes(path):
    """Rows that nobody ever wrote: refused, and without an allocation of that size."""
    def limited(*arguments):
        return subprocess.run([MUSTER, "data", *map(str, arguments)], capture_output=True, text=True, timeout=60,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31)))
    for name, shape, dtype in [("modalities/audio/values", (2**55, 4), "f4"), ("samples/id", (2**50,), TEXT), ("samples/label", (2**58,), "i8"),
                               ("modalities/audio/offsets", (2**59,), "i8"), ("samples/group", (2**40,), "S1000")]:
        for storage in ({"chunks": tuple(min(s, 4) for s in shape)}, {"chunks": tuple(min(s, 4) for s in shape), "compression": "gzip"}):
            write(path)
            with h5py.File(path, "r+") as f:
                del f[name]
                f.create_dataset(name, shape, dtype, **storage)
            answer = limited("verify", path)
            assert answer.returncode == BAD_DATA and "were ever written" in answer.stderr, (name, answer)


def test_values_never_written(path):
    write(path)
    with h5py.File(path, "r+") as f:
        del f["modalities/audio/values"]
        f.create_dataset("modalities/audio/values", (15, 4), "f4")
    expect_bad(path, "none were ever written")


def test_values_past_the_end_of_the_file(path):
    """The place of the values is damaged so that they begin in the file and end after it."""
    write(path)
    with h5py.File(path) as f:
        place = f["modalities/audio/values"].id.get_offset().to_bytes(8, "little")
    raw = path.read_bytes()
    assert raw.count(place) == 1
    path.write_bytes(raw.replace(place, (len(raw) - 8).to_bytes(8, "little")))
    expect_bad(path, "/modalities/audio/values", "the file ends before them")


def test_unknown_filter(path):
    write(path)
    with h5py.File(path, "r+") as f:
        del f["modalities/audio/values"]
        f.create_dataset("modalities/audio/values", data=values_of("audio"), compression="lzf")
    expect_bad(path, "lzf", "gzip")


def test_chunk_with_its_filters_skipped(path):
    """HDF5 would then copy a whole chunk out of a few stored bytes."""
    write(path, chunks=(5, 4), compression="gzip")
    with h5py.File(path, "r+") as f:
        f["modalities/audio/values"].id.write_direct_chunk((0, 0), b"short", filter_mask=1)
    expect_bad(path, "/modalities/audio/values", "its chunks are damaged")


def test_chunk_never_written(path):
    write(path, chunks=(5, 4), compression="gzip")
    with h5py.File(path, "r+") as f:
        del f["modalities/audio/values"]
        f.create_dataset("modalities/audio/values", (15, 4), "f4", chunks=(5, 4), compression="gzip")[:5] = values_of("audio")[:5]
    expect_bad(path, "chunks that were never written")


def test_damaged_chunk_is_an_error(path):
    write(path, chunks=(5, 4), compression="gzip", fletcher32=True)
    with h5py.File(path) as f:
        chunk = f["modalities/audio/values"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(raw)
    answer = muster("verify", path)
    assert answer.returncode == BAD_DATA and "/modalities/audio/values" in answer.stderr and "damaged" in answer.stderr


@pytest.mark.parametrize("storage", [{}, {"chunks": (3, 4), "compression": "gzip"}], ids=["contiguous", "gzip"])
def test_cut_short_anywhere(path, storage):
    write(path, **storage)
    whole = path.read_bytes()
    for size in sorted({0, 1, 7, 8, 9, 511, 512, len(whole) - 1, *range(100, len(whole), len(whole) // 60)}):
        path.write_bytes(whole[:size])
        expect_bad(path)


@pytest.mark.parametrize("storage", [{}, {"chunks": (3, 4), "compression": "gzip"}, {"libver": ("v110", "v110")}, {"texts": "S16"}],
                         ids=["contiguous", "gzip", "v110", "fixed"])
def test_random_damage_never_kills(path, storage):
    """Flipped bits: an error message, or a file that is still readable; never a signal, a hang or an internal error."""
    write(path, **storage)
    whole = path.read_bytes()
    generator = random.Random(20240816)
    refused = 0
    for trial in range(200):
        raw = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4, 16])):
            raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        path.write_bytes(raw)
        answer = muster("verify", path)
        assert answer.returncode in (0, BAD_DATA), (trial, answer.returncode, answer.stderr[-500:])
        refused += answer.returncode == BAD_DATA
    assert refused > 10


def test_damaged_strings(path):
    """Every byte of the heap that holds the strings, one by one: this is where HDF5 1.10 itself would crash."""
    write(path)
    whole = path.read_bytes()
    start = whole.index(b"GCOL")
    used = whole.rindex(b"\x00yes") if b"\x00yes" in whole else start
    for position in [*range(start, start + 64), *range(max(used - 64, start), used + 16)]:
        for value in (0x00, 0xFF, 0x80):
            raw = bytearray(whole)
            raw[position] = value
            path.write_bytes(raw)
            assert muster("verify", path).returncode in (0, BAD_DATA), (position, value)
