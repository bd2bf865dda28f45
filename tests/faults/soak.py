#!/usr/bin/env python3
"""Runs that are killed, stopped, moved, damaged and starved of disk at random, and must end like one that nothing happened to.

  soak.py     in cycles of one run each, for MUSTER_SOAK_MINUTES (30)

Each cycle prints its seed; MUSTER_SOAK_SEED=<seed> MUSTER_SOAK_MINUTES=0 repeats its choices (not what they meet: that is a matter of time).
After each job: no process is left, its exit code is one that the fault explains, there is at most one message, all checkpoints are whole
but those that were damaged on purpose, and the next job goes on from the newest whole one. Exit status 1, and the folder is kept, when a cycle fails.
"""
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("helpers", "end_to_end")]
import test_faults as faults  # noqa: E402
from test_faults import mp  # noqa: E402
from test_resume import TEXT, Job, assert_same_run, saved  # noqa: E402

EXPERIMENT = TEXT.replace("epochs: 9", "epochs: 24")
JOBS = 9  # of one run, at most; the last one is left alone
STOPS = ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT")
FAULTS = {"kill a rank": 4, "kill all ranks": 1, "kill mpirun": 2, "freeze a rank": 2, "pause a rank": 1, "stop": 3, "stop, then kill": 2, "time limit": 2,
          "disk full": 4, "disk error": 2, "die at an operation": 3, "nothing": 1}
counts = Counter()


class Failure(Exception):
    """A promise that was broken."""


def require(condition, what):
    if not condition:
        raise Failure(what)


def verdicts(run):
    """{step: whole}"""
    if not run.exists():
        return {}
    text = mp.execute([mp.built("muster"), "checkpoints", "verify", run]).stdout
    return {int(step): verdict == "whole" for step, verdict in re.findall(r"step (\d+): (whole|DAMAGED)", text)}


def damage(run, step, choice):
    """Changes one file of a checkpoint; says how."""
    path = choice.choice(sorted((run / f"checkpoints/step-{step:08}").iterdir()))
    content, kind = bytearray(path.read_bytes()), choice.choice(("bit", "cut", "longer", "gone"))
    at = choice.randrange(len(content))
    if kind == "gone":
        path.unlink()
    elif kind == "bit":
        content[at] ^= 1 << choice.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[:at] if kind == "cut" else content + b"\0")
    return f"{path.name} of step {step}: {kind}"


def is_up(job, ranks):
    """All have met and watch each other: what happens earlier is mpirun's own business."""
    if ranks == 1:
        return "reading" in job.text()
    processes = job.ranks()
    try:
        return len(processes) == ranks and all(any(path.read_text() == "watchdog\n" for path in Path(f"/proc/{pid}/task").glob("*/comm")) for pid in processes)
    except OSError:
        return False


class Cycle:
    """One run from its beginning to its end."""

    def __init__(self, folder, seed):
        self.folder, self.run, self.choice = folder, folder / "run", random.Random(seed)
        self.shared, self.damaged = folder / "shared", set()
        mp.write_config(folder / "run.txtpb", EXPERIMENT)

    def play(self, reference):
        for number in range(1, JOBS + 1):
            self.hurt()
            fault = "nothing" if number == JOBS else self.choice.choices(list(FAULTS), FAULTS.values())[0]
            if self.job(number, fault):
                return assert_same_run(self.run, reference)
        raise Failure("the last job did not finish the run")

    def hurt(self):
        """Damages the newest checkpoint, now and then, where another one is whole."""
        whole = [step for step, good in verdicts(self.run).items() if good]
        if len(whole) < 2 or self.choice.random() > 0.3:
            return
        print("   damage:", damage(self.run, max(whole), self.choice), flush=True)
        self.damaged.add(max(whole))
        counts["damage"] += 1
        require(not verdicts(self.run).get(max(whole), False), f"damage to step {max(whole)} is not noticed")

    def act(self, job, fault, ranks):
        """Waits and does it. False if it was too early for more than mpirun to notice."""
        time.sleep(self.choice.choice((0.3, 1, 3)) * self.choice.random())
        end = time.monotonic() + (60 if self.choice.random() < 0.8 else 0)
        while not is_up(job, ranks) and job.process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(self.choice.choice((0, 0.2, 1.5)) * self.choice.random())
        up = is_up(job, ranks)
        processes = job.ranks() if ranks > 1 else [job.process.pid]
        victims = [self.choice.choice(processes)] if processes else []

        def send(number, targets):
            for pid in targets:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass

        if job.process.poll() is not None:
            return up
        if fault == "kill a rank":
            send(signal.SIGKILL, victims)
        elif fault == "kill all ranks":
            send(signal.SIGKILL, processes)
        elif fault == "kill mpirun":
            send(signal.SIGKILL, [job.process.pid])
        elif fault == "freeze a rank" and ranks > 1 and up:  # earlier the others would wait for it without end, in MPI_Init
            send(signal.SIGSTOP, victims)
        elif fault in ("pause a rank", "freeze a rank"):
            send(signal.SIGSTOP, victims)
            time.sleep(1)
            send(signal.SIGCONT, victims)
        elif fault.startswith("stop"):
            send(getattr(signal, self.choice.choice(STOPS)), victims)
            if fault == "stop, then kill":
                time.sleep(0.2 * self.choice.random())
                send(signal.SIGKILL, [self.choice.choice(processes)] if processes else [])
        return up

    def job(self, number, fault):
        """True if the run is finished."""
        choice, whole = self.choice, [step for step, good in verdicts(self.run).items() if good]
        ranks, resumes = choice.randint(1, 4), self.run.exists() and choice.random() < 0.5
        words = ["resume", self.run] if resumes else ["train", self.folder / "run.txtpb", "--run-dir", self.run, "--resume", "auto"]
        words += ["--set", f"checkpoints.asynchronous={choice.choice(('true', 'false'))}", "--set", f"checkpoints.keep_last={choice.randint(2, 3)}"]
        changes = {"OMPI_MCA_btl_vader_backing_directory": str(self.shared), "TMPDIR": str(self.shared)}
        detail = ""
        if fault == "time limit":
            words += ["--time-limit", f"{choice.randint(1, 3)}s"]
        if fault == "freeze a rank":
            changes["MUSTER_COLLECTIVE_TIMEOUT"] = "10"
        if fault in ("disk full", "disk error", "die at an operation"):
            kind = {"disk full": "ENOSPC", "disk error": choice.choice(("EIO", "short"))}.get(fault) or choice.choice(("kill", "kill_after"))
            settings = {"at": 1 + int(choice.choice((20, 100, 400)) * choice.random()), "sticky": int(fault == "disk full" or choice.random() < 0.3)}
            if choice.random() < 0.7:
                settings["rank"] = choice.randrange(ranks)
            where = choice.choice((self.folder, self.run / "checkpoints"))
            changes.update(faults.shim(where, kind, **settings))
            detail = f" ({kind} in {where.name}, {settings})"
        self.shared.mkdir()
        with Job(self.folder, *words, ranks=ranks, changes=changes) as job:
            up = self.act(job, fault, ranks)
            try:
                code = job.end()
            except Exception:
                raise Failure(f"{fault}{detail} at {ranks} ranks: the job hangs\n{job.text()}") from None
            text = job.text()
        end = time.monotonic() + 30
        while faults.processes_of(self.folder) and time.monotonic() < end:
            time.sleep(0.1)
        left = faults.processes_of(self.folder)
        shutil.rmtree(self.shared)
        story = f"{fault}{detail} at {ranks} ranks{'' if up else ', early'}"
        print(f"   job {number}: {story}: exit {code}, newest checkpoint {saved(self.run)}", flush=True)
        counts[fault] += 1
        counts[f"exit {code}"] += 1
        self.check(fault, ranks, up, code, text, story, left, max(whole, default=0))
        return code == 0

    def check(self, fault, ranks, up, code, text, story, left, newest):
        story += f", exit {code}:\n{text}"
        require(not left, f"processes {left} are left after {story}")
        killed = (76, 137, -signal.SIGKILL)
        expected = {"kill a rank": killed, "kill all ranks": killed, "kill mpirun": killed, "freeze a rank": (76,), "stop": (75,), "stop, then kill": (75, *killed),
                    "time limit": (75,), "disk full": (74,), "disk error": (74,), "die at an operation": killed}.get(fault, ())
        if up or code == 0:
            require(code == 0 or code in expected, f"unexpected exit code after {story}")
            require(len(faults.messages(text)) <= 1, f"more than one message after {story}")
        if code == 74:
            require(faults.messages(text), f"no message after {story}")
        if up and code in (76, 137) and ranks > 1 and fault in ("kill a rank", "freeze a rank") and not (self.run / "result.json").exists():
            require(faults.messages(text), f"no message after {story}")
        require("internal error" not in text, f"internal error after {story}")
        for step in map(int, re.findall(r"continues after step (\d+)", text)):
            require(step == newest, f"{newest} was the newest whole checkpoint; {story}")
        now = verdicts(self.run)
        require(max((step for step, good in now.items() if good), default=0) >= newest, f"checkpoint {newest} is gone after {story}")
        for step, good in now.items():
            require(good or step in self.damaged, f"step {step} is damaged after {story}")
        for step in map(int, re.findall(r"after step (\d+) of \d+, which is saved", text)):
            require(now.get(step), f"not saved after {story}")


def main():
    minutes, base = float(os.environ.get("MUSTER_SOAK_MINUTES", 30)), int(os.environ.get("MUSTER_SOAK_SEED", random.randrange(10**6)))
    root, failures, seed, begin = Path(tempfile.mkdtemp(prefix="muster-soak-")), 0, base, time.monotonic()
    reference = mp.train(root, EXPERIMENT, "reference")
    while seed == base or time.monotonic() - begin < 60 * minutes:
        folder = root / f"cycle-{seed}"
        folder.mkdir()
        print(f"cycle {seed - base + 1}, seed {seed}", flush=True)
        try:
            Cycle(folder, seed).play(reference)
            shutil.rmtree(folder)
        except (Failure, AssertionError):
            failures += 1
            print(f"FAILED, seed {seed}, see {folder}:\n{traceback.format_exc()}", flush=True)
        seed += 1
    print(f"{seed - base} runs, {failures} failed; " + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    if not failures:
        shutil.rmtree(root)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
