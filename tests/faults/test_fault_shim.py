"""The fault-injection shim itself, on a small program that works on files in every way it watches."""
import os
import signal
import subprocess
import time

import pytest

BUILD = os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests")
OPERATIONS = ["mkdir folder", "open folder/file", "write folder/file", "pwrite folder/file", "writev folder/file", "fsync folder/file",
              "fdatasync folder/file", "truncate folder/file", "close folder/file", "fsync folder", "link folder/file -> folder/other",
              "rename folder/file -> folder/renamed", "rename folder/renamed -> folder/again", "fopen folder/stream", "write folder/stream",
              "fclose folder/stream", "fopen folder/stdio", "fwrite folder/stdio", "fflush folder/stdio", "fclose folder/stdio", "unlink folder/stdio",
              "unlink folder/other", "unlink folder/again", "unlink folder/stream", "rmdir folder"]
SURE = 20  # the last ones are in the order of the folder


def run(tmp, expect=0, **settings):
    """The program's complaints and the log's lines."""
    work = tmp / "work"
    subprocess.run(["rm", "-rf", work], check=True)
    work.mkdir()
    log = tmp / "log"
    log.write_text("")
    environment = {**os.environ, "LD_PRELOAD": os.path.join(BUILD, "libfault_shim.so"), "MUSTER_FAULT_FOLDER": str(work), "MUSTER_FAULT_LOG": str(log)}
    environment.update({f"MUSTER_FAULT_{name.upper()}": str(value) for name, value in settings.items()})
    program = subprocess.run([os.path.join(BUILD, "shim_probe"), work], env=environment, capture_output=True, text=True, timeout=30)
    assert program.returncode == expect, program
    return program.stdout.splitlines(), log.read_text().splitlines()


def test_every_operation_is_counted_once(tmp_path):
    complaints, log = run(tmp_path)
    assert not complaints
    assert log[:21] == [f"{i} 0 {name} ok" for i, name in enumerate(OPERATIONS[:21], 1)]
    assert len(log) == len(OPERATIONS) and {line.split(" ", 2)[2] for line in log} == {name + " ok" for name in OPERATIONS}


def test_kill_before_and_after_every_operation(tmp_path):
    for at in range(1, SURE + 1):
        for kind in ("kill", "kill_after"):
            _, log = run(tmp_path, -signal.SIGKILL, at=at, kind=kind)
            assert log[-1] == f"{at} 0 {OPERATIONS[at - 1]} killed" and len(log) == at
            work = tmp_path / "work" / "folder"
            if OPERATIONS[at - 1] == "mkdir folder":
                assert work.exists() == (kind == "kill_after")
            if OPERATIONS[at - 1] == "pwrite folder/file":
                assert (work / "file").stat().st_size == (200 if kind == "kill_after" else 100)
            if OPERATIONS[at - 1].startswith("link"):
                assert (work / "other").exists() == (kind == "kill_after")


@pytest.mark.parametrize("kind, message", [("ENOSPC", "No space left on device"), ("EIO", "Input/output error")])
def test_an_operation_fails_alone(tmp_path, kind, message):
    for at in range(3, SURE + 1):  # the program can do nothing without its folder and file
        complaints, log = run(tmp_path, at=at, kind=kind)
        name = OPERATIONS[at - 1]
        assert f"{at} 0 {name} failed" in log
        if name.startswith(("write folder/stream", "fclose folder/stream", "fopen folder/stream")):
            assert len(complaints) <= 1  # the standard library's own errno may hide it
        else:
            assert message in complaints[0], name
        if name.startswith("fopen folder/stdio"):
            assert len(complaints) == 2  # there is nothing to remove then


def test_from_then_on_all_fail(tmp_path):
    _, log = run(tmp_path, at=6, kind="EIO", sticky=1)
    assert [line.endswith(" failed") for line in log] == [int(line.split()[0]) >= 6 for line in log] and len(log) > 12


def test_short_writes(tmp_path):
    for at, name in enumerate(OPERATIONS[:SURE], 1):
        complaints, log = run(tmp_path, at=at, kind="short")
        if name.split()[0] in ("write", "pwrite", "writev", "fwrite") and "stream" not in name:
            assert [line.split(":")[0] for line in complaints] == [name.split()[0]]
        else:
            assert not complaints


def test_other_ranks_and_folders_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    complaints, log = run(tmp_path, at=3, kind="kill", rank=1)
    assert not complaints and log[0] == "1 2 mkdir folder ok"
    run(tmp_path, -signal.SIGKILL, at=3, kind="kill", rank=2)
    complaints, log = run(tmp_path, at=1, kind="kill", folder=tmp_path / "wor")
    assert not complaints and not log


def test_slow_fsync(tmp_path):
    start = time.monotonic()
    complaints, _ = run(tmp_path, kind="slow", seconds=0.3)
    assert not complaints and time.monotonic() - start >= 0.9  # three of them
