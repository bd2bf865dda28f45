"""Processes of jobs under test: what they do, and waiting until they do it. Nothing here is held to a time that a busy machine could exceed."""
import contextlib
import os
import signal
import time
from pathlib import Path

SECONDS = 120  # what takes this long hangs
HEARTBEAT = 0.5  # seconds between the messages of a rank's watchdog (distributed/watchdog_thread.cpp)


def wait_until(condition, seconds=SECONDS, problem=lambda: "it never happened"):
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, problem()
        time.sleep(0.01)
    return found


def processes_of(folder):
    """Command lines that name the folder or something in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if str(folder).encode() + b"/" in words or str(folder).encode() + b"\0" in words:
                found.append(words.decode().split("\0"))
    return found


def stop(pid):
    """By SIGSTOP; afterwards none of its threads runs."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(path.read_text().rsplit(") ", 1)[1][0] in "TtZX" for path in Path(f"/proc/{pid}/task").glob("*/stat")))


def watchdog_sleeps(pid):
    """How often the rank's watchdog thread has gone to sleep."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        if (thread / "comm").read_text() == "watchdog\n":
            lines = (thread / "status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    raise FileNotFoundError("no watchdog thread yet")


def wait_for_heartbeats(pids):
    """Until each rank's watchdog has told others where the rank is now. It does so before it sleeps, once a heartbeat is due."""
    time.sleep(1.1 * HEARTBEAT)
    before = {pid: watchdog_sleeps(pid) for pid in pids}
    # The first time it may have looked at the clock before.
    wait_until(lambda: all(watchdog_sleeps(pid) >= sleeps + 2 for pid, sleeps in before.items()))
