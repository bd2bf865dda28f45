"""Real training on 2, 3 and 4 ranks with a rank killed or stopped in each phase, a disk that is slow, and one that is full."""
import itertools
import json
import os
import re
import signal
import time

import pytest

import muster_program as mp
from at_once import at_once, started  # noqa: F401
from faulty_disk import shim
from processes import SECONDS, processes_of, stop, wait_for_heartbeats, wait_until
from test_resume import TEXT, Job, assert_same_run, saved, steps
from test_resume import reference as undisturbed  # noqa: F401

FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
DEADLINE = 8  # longer than ranks drift apart on a busy machine
AT_ONCE = 6
PHASES = ("setup", "step", "save", "evaluation")
# Short epochs and long evaluations, so that there is always one to come.
# Without an adapter, whose frames ranks exchange in pairs: some get ahead then, and two may each report a rank 0 that stands still (docs/faults.md).
PHASED = ("name: 'phased'\n" + mp.SMALL_FOAL_NET.replace("adapter_dim: 8", "adapter_dim: 0") + "optimizer { learning_rate: 0.003 }\n"
          "training { epochs: 5 batch_size: 5 log_every_steps: 1 threads: 1 reproducible: true }\n"
          "evaluation { batch_size: 3 }\ncheckpoints { every_epochs: 0 every_steps: 6 }\n")


def phased(folder):
    train, valid, test = 70, 120, 8
    data = mp.tiny_data(folder / "data.h5", n=train + valid + test, splits=["train"] * train + ["valid"] * valid + ["test"] * test)
    return PHASED + f"data {{ path: '{data}' }}\n"


def messages(text):
    return [line for line in text.splitlines() if line.startswith("muster: ")]


def newest_row(run):
    """Tolerates a row that is just being written."""
    try:
        rows = [line for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    except FileNotFoundError:
        return None
    return json.loads(rows[-1]) if rows else None


class Faulted:
    """One job of a run, and a fault in it. Beyond the files of the run it may use only `shared`, which must be empty afterwards."""

    def __init__(self, folder, phase, ranks, victim, sign):
        self.folder, self.run, self.phase, self.ranks, self.victim, self.sign = folder, folder / "run", phase, ranks, victim, sign
        self.shared = folder / "shared"
        self.shared.mkdir(exist_ok=True)
        self.begun_at = saved(self.run)

    def is_there(self):
        """The job is in the phase, as far as its files show."""
        row = newest_row(self.run)
        if self.phase == "setup":  # rank 0 makes the run directory, all others wait for it; no row is there
            return any(self.folder.glob(".run.new-*"))
        if self.phase == "save":
            return any(self.run.glob("checkpoints/.tmp-*"))
        if row is None or row["step"] <= self.begun_at:
            return False
        epoch_ends = row["step"] % 14 == 0
        return row["kind"] == "train" and epoch_ends == (self.phase == "evaluation")

    def play(self):
        changes = {"OMPI_MCA_btl_vader_backing_directory": str(self.shared), "TMPDIR": str(self.shared)}
        words = ["train", self.folder / "run.txtpb", "--run-dir", self.run, "--resume", "auto"]
        if self.phase == "setup":
            changes.update(shim(self.folder, "slow", seconds=0.2))
        if self.phase == "save":  # which lasts until the victim has written its part
            changes.update(shim(self.run / "checkpoints", "slow", seconds=SECONDS, rank=self.victim))
            words += ["--set", "checkpoints.asynchronous=false"]
        if self.sign == "STOP" and self.phase == "setup":
            changes["MUSTER_COLLECTIVE_TIMEOUT"] = str(DEADLINE)  # counts from the first collective on
        elif self.sign == "STOP":
            words += ["--set", f"deadlines.{self.phase}={DEADLINE}"]
        with Job(self.folder, *words, ranks=self.ranks, changes=changes) as job:
            while True:
                job.wait_until(lambda: self.is_there() and len(job.ranks()) == self.ranks)
                ranks = job.ranks()
                # All stay in the phase until each has told the others where it is: another rank stands still. In setup they have been there from the start.
                helper = ranks[(self.victim + 1) % self.ranks]
                if self.phase in ("step", "evaluation"):
                    stop(helper)
                if self.phase != "setup":
                    wait_for_heartbeats([pid for pid in ranks if pid != helper])
                caught = self.is_there()
                if caught:
                    sent = time.time()
                    if self.sign == "STOP":
                        stop(ranks[self.victim])
                    else:
                        os.kill(ranks[self.victim], signal.SIGKILL)
                os.kill(helper, signal.SIGCONT)
                if caught:
                    break
            code, text = job.end(), job.text()
        self.check(code, text, sent)

    def check(self, code, text, sent):
        died = self.sign == "KILL"
        assert code in ((76, 137) if died else (76,)), text
        assert len(messages(text)) == 1, text
        message = messages(text)[0]
        reason, seen = "its process has died" if died else "its process does not run", f"last seen in phase {self.phase} "
        seen = rf"({seen}|never heard of)" if self.phase == "setup" else seen  # where ranks are is told twice a second
        assert re.search(rf"rank {self.victim} of {self.ranks} \(host [^)]+\)(:| is lost:) {reason}[^;]*, {seen}", message), message
        assert (f"no progress in phase {self.phase} for {DEADLINE} s" in message) == (not died), message
        wait_until(lambda: not processes_of(self.folder), problem=lambda: f"{processes_of(self.folder)} are left")
        assert list(self.shared.iterdir()) == []
        if self.phase == "setup":
            names = {path.name for path in self.run.iterdir()} if self.run.exists() else {"config.txtpb", "environment.json", "metrics.jsonl"}
            assert {"config.txtpb", "environment.json", "metrics.jsonl"} <= names and newest_row(self.run) is None, "the run directory is half made"
            return
        survivors = [rank for rank in range(self.ranks) if rank != self.victim]
        records = [self.run / f"logs/flight-record-rank-{rank}.json" for rank in survivors]
        for record in map(mp.read_json, records):
            # Another rank may wait for the stopped one in an earlier collective than the rest.
            assert self.victim in record["missing_ranks"] and len(record["missing_ranks"]) < self.ranks and record["phase"] == self.phase
            assert record["missing_ranks"] == [self.victim] or not died
            assert 0 <= record["time"] - sent < SECONDS  # test_watchdog.py is stricter; without the watchdog a dead rank would be waited for much longer
            assert {entry["phase"] for entry in record["collectives"] if entry["label"] == "between steps"} <= {"step"}
        for record in (self.run / "logs").glob("flight-record-*"):
            record.unlink()
        if self.phase == "save":
            assert list(self.run.glob("checkpoints/.tmp-*")), "the save was not interrupted"
        if saved(self.run):
            verdict = mp.muster("checkpoints", "verify", self.run).stdout
            assert verdict.count("whole") == len(list(self.run.glob("checkpoints/step-*")))


def play_chain(folder, victim, sign):
    """Jobs of one run, each on another number of ranks and with a fault in another phase, and the one that ends it."""
    mp.write_config(folder / "run.txtpb", phased(folder))
    sizes = [ranks for ranks in (2, 3, 4) if ranks > victim]
    for i, phase in enumerate(PHASES):
        Faulted(folder, phase, sizes[(i + (sign == "STOP")) % len(sizes)], victim, sign).play()
    mp.muster("resume", folder / "run", "--set", "checkpoints.asynchronous=true", ranks=1 + victim % 3)
    return folder / "run"


# Rank 0, which decides, and one of the others, killed and stopped in each phase; all of them in the full run. (test_watchdog.py has each rank.)
CHAINS = list(itertools.product(range(4) if FULL else (0, 2), ("KILL", "STOP")))


@pytest.fixture(scope="module")
def phased_reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phased")
    return mp.train(folder, phased(folder))


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain[1]}-{chain[0]}")
@at_once
def test_a_rank_is_lost_in_each_phase(chain, phased_reference, folder):
    assert_same_run(play_chain(folder, *chain), phased_reference)


@pytest.mark.parametrize("ranks", [1, 2])
@at_once
def test_a_slow_disk_does_not_slow_steps(ranks, folder):
    """Steps per second while a save is in flight are of the order of those before it, although each fsync takes 0.6 s. (A busy machine makes them fewer,
    a step that waited for the disk would leave hardly any.)"""
    text = TEXT.replace("epochs: 9", "epochs: 100000").replace("every_steps: 5", "every_steps: 0 every_minutes: 0.02").replace("every_steps: 4", "every_epochs: 0")
    config, run = mp.write_config(folder / "run.txtpb", text), folder / "run"
    with Job(folder, "train", config, "--run-dir", run, ranks=ranks, changes=shim(run / "checkpoints", "slow", seconds=0.6)) as job:
        marks = []
        for condition in (lambda: steps(run) > 0, lambda: any(run.glob("checkpoints/.tmp-*")), lambda: saved(run) > 0):
            job.wait_until(condition)
            marks.append((time.monotonic(), steps(run)))
        job.wait_until(lambda: (run / "logs/checkpoints.jsonl").exists() and (run / "logs/checkpoints.jsonl").read_text().endswith("\n"))
        (begin, first), (saves, middle), (commits, last) = marks
        for pid in job.ranks() or [job.process.pid]:
            os.kill(pid, signal.SIGKILL)
        job.end()  # mpirun removes its shared memory
    before, meanwhile = (middle - first) / (saves - begin), (last - middle) / (commits - saves)
    assert commits > saves and meanwhile > before / 10, f"{before:.0f} steps/s before the save, {meanwhile:.0f} while it was in flight"
    row = json.loads((run / "logs/checkpoints.jsonl").read_text().splitlines()[0])
    assert row["committed"] and row["write_seconds"] > 1.8 and row["stall_seconds"] < row["write_seconds"] / 3


@pytest.mark.parametrize("asynchronous", ["true", "false"])
@at_once
def test_a_disk_that_hangs(asynchronous, folder):
    """The rank whose disk never answers is found when the others need it, in the deadline of saving."""
    config, run = mp.write_config(folder / "run.txtpb", TEXT), folder / "run"
    words = ["--set", f"checkpoints.asynchronous={asynchronous}", "--set", "deadlines.save=5"]
    with Job(folder, "train", config, "--run-dir", run, *words, ranks=2, changes=shim(run / "checkpoints", "slow", seconds=600, rank=1)) as job:
        assert job.end() in (76, 137), job.text()
        (message,) = messages(job.text())
        assert "rank 1 of 2" in message and "in phase save" in message, message
    mp.muster("resume", run, ranks=3)


def operations_until_commit(folder, ranks):
    """Of rank 0 below checkpoints/, in a run that nothing happens to."""
    run = folder / "counted"
    mp.train(folder, TEXT, "counted", ranks, "--max-steps", 7, changes=shim(run / "checkpoints", "", log=folder / "log"))
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    commit = next(i for i, words in enumerate(lines) if words[1:3] == ["0", "rename"] and words[-2] == "step-00000005")
    return next(int(words[0]) for words in lines[commit + 1:] if words[1] == "0" and words[2] == "open" and ".tmp-" in words[3])


@pytest.mark.parametrize("ranks", [1, 2])
@at_once
def test_a_full_disk(ranks, undisturbed, folder):  # noqa: F811
    at = operations_until_commit(folder, ranks)
    config, run = mp.write_config(folder / "run.txtpb", TEXT), folder / "run"
    with Job(folder, "train", config, "--run-dir", run, "--set", "checkpoints.max_failures_in_a_row=2", ranks=ranks,
             changes=shim(run / "checkpoints", "ENOSPC", at=at, sticky=1)) as job:
        assert job.end() == 74, job.text()
        text = job.text()
    assert len(messages(text)) == 1 and "3 saves in a row have failed now" in text and f"muster resume {run}" in text, text
    assert text.count("No space left on device") >= 3
    for step in (10, 15):
        assert text.count(f"warning: the checkpoint of step {step} could not be saved: ") == 1, text
    assert text.count("training continues; the checkpoint of step 5 is still there") == 2 and text.count("warning: ") == 2
    assert steps(run) >= 20 and saved(run) == 5
    outcomes = [json.loads(line) for line in (run / "logs/checkpoints.jsonl").read_text().splitlines()]
    assert [(row["step"], row["committed"]) for row in outcomes] == [(5, True), (10, False), (15, False), (20, False)]
    mp.muster("checkpoints", "verify", run)
    assert "continues after step 5" in mp.muster("resume", run, ranks=3 - ranks).stderr
    assert_same_run(run, undisturbed)


@pytest.mark.parametrize("ranks", [1, 2])
@at_once
def test_no_room_for_metrics(ranks, undisturbed, folder):  # noqa: F811
    config, run = mp.write_config(folder / "run.txtpb", TEXT), folder / "run"
    with Job(folder, "train", config, "--run-dir", run, ranks=ranks, changes=shim(run / "metrics.jsonl", "ENOSPC", at=20, sticky=1)) as job:
        assert job.end() == 74, job.text()
        text = job.text()
    assert len(messages(text)) == 1 and f"{run}/metrics.jsonl: cannot write: No space left on device" in text, text
    assert processes_of(run) == []
    mp.muster("resume", run, ranks=3 - ranks)
    assert_same_run(run, undisturbed)


@at_once
def test_damaged_checkpoints_take_no_place_from_whole_ones(folder):
    """Two are damaged; a job goes on from the third and saves before it comes to them."""
    run = mp.train(folder, TEXT, "run", 1, "--max-steps", 23, "--set", "checkpoints.keep_last=3", "--set", "checkpoints.keep_best=0")
    for step in (20, 23):
        shard = next((run / f"checkpoints/step-{step:08}").glob("rank-*"))
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    # Pruning takes no side with them either.
    mp.muster("checkpoints", "prune", run, "--keep-last", 1)
    assert "step 15: whole" in mp.muster("checkpoints", "verify", run, code=65).stdout
    every = ["--set", "checkpoints.every_steps=0", "--set", "checkpoints.keep_last=2"]
    assert "continues after step 15" in mp.muster("resume", run, "--max-steps", 17, *every).stderr
    verdict = mp.muster("checkpoints", "verify", run).stdout
    assert "step 17: whole" in verdict and "step 15: whole" in verdict and "step 2" not in verdict, "the damaged ones are set aside"
