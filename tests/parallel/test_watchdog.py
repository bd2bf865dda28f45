"""A rank that dies or stops is named by exactly one message of the job, at once or after the deadline; the others leave records and go."""
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

MPIRUN = shutil.which("mpirun")
pytestmark = pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed")
PROBE = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "probe"
DEADLINE = 2
SECONDS = 5  # within which all must have left after a death, or after the deadline
# The phase's last collective: label, what it is called, and its sequence number. See watchdog_probe.cpp.
PLACES = {"setup": ("settings", "all_gather_bytes() for settings", 1), "step": ("gradients", "all_reduce_sum(float32 [7]) for gradients", 71),
          "save": ("checkpoint", "all_reduce_sum(float64 [3]) for checkpoint", 72),
          "evaluation": ("predictions", "all_gather_rows(float32 rows of [5], 1 here) for predictions", 73)}


def scenarios():
    """Each rank of 2, 3 and 4, by both signals, inside and outside, in turn in all phases; and rank 1 of 3 in each phase in all ways."""
    victims = [(ranks, victim) for ranks in (2, 3, 4) for victim in range(ranks)]
    cases = {(ranks, victim, list(PLACES)[i % 4], ("inside", "outside")[(i + i // 4 + way) % 2], sign)
             for i, (ranks, victim) in enumerate(victims) for way, sign in enumerate(("KILL", "STOP"))}
    cases |= {(3, 1, phase, where, "KILL") for phase in PLACES for where in ("inside", "outside")}
    return sorted(cases)


def left_over(folder):
    """Processes whose command line names the folder."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if str(folder).encode() in Path(path).read_bytes():
                found.append(path)
        except OSError:
            pass
    return found


def start(folder, ranks, *words, timeout=DEADLINE):
    shared = folder / "shared"
    shared.mkdir()
    setting = ["-x", f"MUSTER_COLLECTIVE_TIMEOUT={timeout}"] if timeout else []
    return subprocess.Popen([MPIRUN, "--oversubscribe", "-n", str(ranks), *setting, "--mca", "btl_vader_backing_directory", shared,
                             PROBE, "watchdog", folder, *map(str, words)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process):
    try:
        return process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def run_scenario(case, folder):
    ranks, victim, phase, where, sign = case
    process = start(folder, ranks, phase, where, victim)
    line = process.stdout.readline()
    number = re.fullmatch(r"here (\d+)\n", line)
    if not number:
        finish(process)
        raise AssertionError(f"the probe said {line!r}")
    time.sleep(0.8)  # for its place to be known to others
    sent = time.time()
    os.kill(int(number[1]), getattr(signal, "SIG" + sign))
    _, errors = finish(process)
    time.sleep(0.1)
    return {"folder": folder, "sent": sent, "code": process.returncode, "errors": errors, "left": left_over(folder)}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All scenarios, a few at a time: they mostly wait."""
    with ThreadPoolExecutor(4) as pool:
        jobs = {case: pool.submit(run_scenario, case, tmp_path_factory.mktemp("-".join(map(str, case)))) for case in scenarios()}
    return jobs


@pytest.mark.parametrize("case", scenarios(), ids=lambda case: "-".join(map(str, case)))
def test_a_lost_rank_is_named(case, outcomes):
    ranks, victim, phase, where, sign = case
    outcome = outcomes[case].result()
    label, call, sequence = PLACES[phase]
    messages = [line for line in outcome["errors"].splitlines() if line.startswith("muster:")]
    assert len(messages) == 1, outcome["errors"]
    message = messages[0]
    # mpirun gives its own code where a signal has ended the first rank.
    assert outcome["code"] in ((76, 137) if sign == "KILL" else (76,)), outcome["errors"]
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

    # A stopped rank may wake up before mpirun kills it; it then knows that it was given up, and says nothing.
    names = {path.name for path in outcome["folder"].iterdir()} - {"shared"} - ({f"flight-record-rank-{victim}.json"} if not died else set())
    assert names == {f"flight-record-rank-{rank}.json" for rank in set(range(ranks)) - {victim}}
    for rank in set(range(ranks)) - {victim}:
        record = json.loads((outcome["folder"] / f"flight-record-rank-{rank}.json").read_text())
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
        assert 0 <= record["time"] - outcome["sent"] < SECONDS + (0 if died else DEADLINE)
    assert outcome["left"] == [] and list((outcome["folder"] / "shared").iterdir()) == []


def test_the_end_of_a_job_is_no_alarm(tmp_path):
    def run(index):
        """One short job."""
        folder = tmp_path / str(index)
        folder.mkdir()
        process = start(folder, 3, "clean", timeout=20)
        _, errors = finish(process)
        return process.returncode, errors, [path.name for path in folder.iterdir()], list((folder / "shared").iterdir())

    with ThreadPoolExecutor(3) as pool:
        for outcome in pool.map(run, range(16)):
            assert outcome == (0, "", ["shared"], [])


def test_a_rank_that_reports_progress_has_time(tmp_path):
    process = start(tmp_path, 2, "alone", 1, timeout=None)
    assert finish(process)[1] == "" and process.returncode == 0


def the_message(process):
    errors = finish(process)[1]
    messages = [line for line in errors.splitlines() if line.startswith("muster:")]
    assert process.returncode == 76 and len(messages) == 1, errors
    return messages[0]


def test_ranks_that_all_hang(tmp_path):
    """Nobody waits for anybody, as on GPUs that never finish: one of them speaks all the same."""
    message = the_message(start(tmp_path, 2, "stuck"))
    assert re.search(r"rank [01] of 2 \(host [^)]+\): it is still computing, last seen in phase setup before its first", message), message


def test_a_rank_that_waits_elsewhere(tmp_path):
    message = the_message(start(tmp_path, 3, "elsewhere"))
    assert re.search(r"rank 1 of 3 \(host [^)]+\): it is still computing, last seen in phase setup after collective 1 of world, split", message), message
    assert "rank 0 of" not in message and "Rank 0 waits in collective 1 of world/0" in message, "who waits for the cause is not the cause"


def test_ranks_that_wait_for_each_other(tmp_path):
    message = the_message(start(tmp_path, 3, "crossed"))
    assert re.search(r"rank 0 of 3 [^;]* waits (elsewhere, )?in collective 1 of world/0, .*; rank 1 of 3 [^;]* waits (elsewhere, )?in collective 2 of world, ",
                     message), message
    assert "elsewhere" in message and "Rank 2 waits in collective 2 of world" in message
