"""A rank that dies or stops is named by exactly one message of the job, at once or after the deadline; the others leave records and go."""
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from at_once import at_once, started  # noqa: F401
from processes import SECONDS, processes_of, stop, wait_for_heartbeats, wait_until

MPIRUN = shutil.which("mpirun")
pytestmark = pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed")
PROBE = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "probe"
FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
DEADLINE = 2  # of the probe
# The phase's last collective: label, what it is called, and its sequence number. See probe/watchdog.cpp.
PLACES = {"setup": ("settings", "all_gather_bytes() for settings", 1), "step": ("gradients", "all_reduce_sum(float32 [7]) for gradients", 71),
          "save": ("checkpoint", "all_reduce_sum(float64 [3]) for checkpoint", 72),
          "evaluation": ("predictions", "all_gather_rows(float32 rows of [5], 1 here) for predictions", 73)}
AT_ONCE = 5  # jobs
ENDED = 5  # seconds, within which all must have left after a death, or after the deadline: docs/faults.md
late = {"KILL": [], "STOP": []}  # by how much each rank was, of all scenarios


def scenarios():
    """In the full run each rank of 2, 3 and 4, in each phase, inside and outside, by both signals. Otherwise each of these ways once, and each rank once or
    by both signals."""
    victims = [(ranks, victim) for ranks in (2, 3, 4) for victim in range(ranks)]
    ways = [(phase, where, sign) for where in ("inside", "outside") for phase in PLACES for sign in ("KILL", "STOP")]
    if FULL:
        return [(*victim, *way) for victim in victims for way in ways]
    return [(*victims[i % len(victims)], *way) for i, way in enumerate(ways)]


def start(folder, ranks, *words, timeout=None):
    shared = folder / "shared"
    shared.mkdir()
    setting = ["-x", f"MUSTER_COLLECTIVE_TIMEOUT={timeout}"] if timeout else []
    return subprocess.Popen([MPIRUN, "--oversubscribe", "-n", str(ranks), *setting, "--mca", "btl_vader_backing_directory", shared,
                             PROBE, "watchdog", folder, *map(str, words)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process):
    try:
        return process.communicate(timeout=SECONDS)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def lose(process, case):
    """Waits until the ranks are where the case wants them, and takes one away. When that was."""
    ranks, victim, _, where, sign = case
    lines = [process.stdout.readline() for _ in range(ranks)]
    pids = {int(rank): int(pid) for rank, pid in re.findall(r"rank (\d+) is process (\d+)\n", "".join(lines))}
    assert len(pids) == ranks, lines
    wait_for_heartbeats(pids.values())
    sent = time.time()
    if sign == "KILL":
        os.kill(pids[victim], signal.SIGKILL)
    else:
        stop(pids.pop(victim))
        for pid in pids.values():
            os.kill(pid, signal.SIGUSR1)
    return sent


@pytest.mark.parametrize("case", scenarios(), ids=lambda case: "-".join(map(str, case)))
@at_once
def test_a_lost_rank_is_named(case, folder):
    ranks, victim, phase, where, sign = case
    process = start(folder, ranks, phase, where, victim)
    try:
        sent = lose(process, case)
    finally:
        _, errors = finish(process)
    label, call, sequence = PLACES[phase]
    messages = [line for line in errors.splitlines() if line.startswith("muster:")]
    assert len(messages) == 1, errors
    message = messages[0]
    # mpirun gives its own code where a signal has ended the first rank.
    assert process.returncode in ((76, 137) if sign == "KILL" else (76,)), errors
    died = sign == "KILL"
    assert ("its process has died" if died else "its process does not run") in message
    assert re.search(rf"rank {victim} of {ranks} \(host [^)]+\)(:| is lost)", message), message
    assert f"last seen in phase {phase} " in message
    assert (f"no progress in phase {phase} for {DEADLINE} s" in message) == (not died)
    speaker = 1 if victim == 0 else 0
    if died and where == "inside" and ranks == 2:  # the only other rank was on its way
        assert f"Rank {speaker} is outside any collective, in phase {phase}" in message
    else:
        assert f"Rank {speaker} waits in collective {sequence} of world, {call}, in phase {phase}" in message, message
    assert ("completed: none." if sequence == 1 else f"completed: collective {sequence - 1} of world") in message

    # A stopped rank may wake up before mpirun kills it, also while it writes its record; it then knows that it was given up, and says nothing.
    own = f"flight-record-rank-{victim}.json"
    names = {path.name for path in folder.iterdir()} - {"shared"} - ({own, own + ".unfinished"} if not died else set())
    assert names == {f"flight-record-rank-{rank}.json" for rank in set(range(ranks)) - {victim}}
    for rank in set(range(ranks)) - {victim}:
        record = json.loads((folder / f"flight-record-rank-{rank}.json").read_text())
        assert record["rank"] == rank and record["world_size"] == ranks and record["phase"] == phase and record["missing_ranks"] == [victim]
        entries = record["collectives"]
        assert len(entries) <= 64 and [each["number"] for each in entries] == sorted(each["number"] for each in entries)
        if sequence > 64:
            assert len(entries) == 64
        outside = died and where == "inside" and rank == max(set(range(ranks)) - {victim})
        if outside:
            assert not entries or entries[-1]["sequence"] == sequence - 1 and entries[-1]["completed"]
        else:
            assert (entries[-1]["label"], entries[-1]["call"], entries[-1]["sequence"]) == (label, call, sequence)
            assert entries[-1]["completed"] is None and entries[-1]["phase"] == phase
        assert all(each["entered"] <= each["completed"] for each in entries if each["completed"])
        late[sign].append(record["time"] - sent - (0 if died else DEADLINE))
        assert 0 <= record["time"] - sent < SECONDS
    wait_until(lambda: not processes_of(folder), problem=lambda: f"{processes_of(folder)} are left")
    assert list((folder / "shared").iterdir()) == []


def test_all_leave_at_once(started):  # noqa: F811
    """After a death, and after a deadline. A busy machine may make a rank late, not half of them."""
    wait(started.values())
    for sign, seconds in late.items():
        assert not seconds or statistics.median(seconds) < ENDED, (sign, seconds)


@pytest.mark.parametrize("index", range(16 if FULL else 4))
@at_once
def test_the_end_of_a_job_is_no_alarm(index, folder):
    process = start(folder, 3, "clean", timeout=SECONDS)
    assert finish(process) == ("", "") and process.returncode == 0
    assert [path.name for path in folder.iterdir()] == ["shared"] and list((folder / "shared").iterdir()) == []


@at_once
def test_a_rank_that_reports_progress_has_time(folder):
    process = start(folder, 2, "alone", 1)
    assert finish(process)[1] == "" and process.returncode == 0


def the_message(process):
    errors = finish(process)[1]
    messages = [line for line in errors.splitlines() if line.startswith("muster:")]
    assert process.returncode == 76 and len(messages) == 1, errors
    return messages[0]


@at_once
def test_ranks_that_all_hang(folder):
    """Nobody waits for anybody, as on GPUs that never finish: one of them speaks all the same."""
    message = the_message(start(folder, 2, "stuck", timeout=DEADLINE))
    assert re.search(r"rank [01] of 2 \(host [^)]+\): it is still computing, last seen in phase setup before its first", message), message


@at_once
def test_a_rank_that_waits_elsewhere(folder):
    message = the_message(start(folder, 3, "elsewhere", timeout=DEADLINE))
    assert re.search(r"rank 1 of 3 \(host [^)]+\): it is still computing, last seen in phase setup after collective 1 of world, split", message), message
    assert "rank 0 of" not in message and "Rank 0 waits in collective 1 of world/0" in message, "who waits for the cause is not the cause"


@at_once
def test_ranks_that_wait_for_each_other(folder):
    message = the_message(start(folder, 3, "crossed", timeout=DEADLINE))
    assert re.search(r"rank 0 of 3 [^;]* waits (elsewhere, )?in collective 1 of world/0, .*; rank 1 of 3 [^;]* waits (elsewhere, )?in collective 2 of world, ",
                     message), message
    assert "elsewhere" in message and "Rank 2 waits in collective 2 of world" in message
