"""Runs searches over a small experiment, and reads what they leave behind by Optuna alone."""
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

import muster_program as mp

BASE = mp.SMALL_LATE_FUSION + mp.CLASSIFICATION + "training { epochs: 3 batch_size: 16 }\n"
RATE = 'parameters { path: "optimizer.learning_rate" real { low: 1e-4 high: 1e-1 log: true } }\n'
SPEC = """
base: "base.txtpb"
parameters { path: "optimizer.learning_rate" real { low: 1e-4 high: 1e-1 log: true } }
parameters { path: "training.batch_size" integer { low: 8 high: 32 step: 8 } }
parameters { path: "optimizer.schedule" categorical { values: ["CONSTANT", "STEP"] } }
parameters {
  path: "optimizer.step_factor" real { low: 0.05 high: 0.5 }
  when { path: "optimizer.schedule" values: ["STEP"] }
}
objective { metric: "loss" }
"""
OF_A_RESULT = {"environment.json", "predictions-valid.csv", "result.json"}
SMALL_FILES = {"config.txtpb", "metrics.jsonl"} | OF_A_RESULT


def write_search(folder, trials=8, epochs=2, more="", base=BASE, spec=SPEC, budget=""):
    """The spec's path; its base experiment lies beside it."""
    mp.write_config(folder / "base.txtpb", base)
    path = folder / "small.txtpb"
    path.write_text("# proto-message: muster.launcher.Search\n" + spec + f"budget {{ trials: {trials} epochs: {epochs} {budget} }}\n" + more)
    return path


def one(path, value):
    """A parameter with one value."""
    return f'parameters {{ path: "{path}" categorical {{ values: ["{value}"] }} }}\n'


def space(*parameters, metric="loss"):
    return 'base: "base.txtpb"\n' + "".join(parameters) + f'objective {{ metric: "{metric}" }}\n'


def choices(path, *values):
    return f'parameters {{ path: "{path}" categorical {{ values: {json.dumps([str(value) for value in values])} }} }}\n'


def command(spec, directory, ranks=1):
    words = [mp.built("muster"), "search", "run", str(spec), "--search-dir", str(directory)]
    return words if ranks == 1 else ["mpirun", "--oversubscribe", "-n", str(ranks), *words]


def search(spec, directory, ranks=1, code=0):
    return mp.muster("search", "run", spec, "--search-dir", directory, ranks=ranks, code=code)


def start(spec, directory, ranks=1):
    """A search in a process group of its own, to be disturbed. Use as a context: its end is the end of all of its processes."""
    return Disturbed(command(spec, directory, ranks))


class Disturbed:
    def __init__(self, words):
        self.process = subprocess.Popen(words, env=mp.environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill_all()
        self.process.communicate()

    def kill_all(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        # mpirun's ranks have process groups of their own, and end when they notice that it is gone. Until then they still hold their trials.
        end = time.monotonic() + 60
        while any(state.strip()[0] != "Z" for state in subprocess.run(["ps", "-s", str(self.process.pid), "-o", "stat="],
                                                                      capture_output=True, text=True).stdout.splitlines()):
            assert time.monotonic() < end, "ranks outlive mpirun"
            time.sleep(0.02)

    def wait_for(self, what, seconds=60):
        end = time.monotonic() + seconds
        while not (found := what()):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)
        return found

    def processes(self):
        """{rank: process} and Optuna's processes."""
        rows = subprocess.run(["ps", "-s", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True).stdout.splitlines()
        ranks, pythons = {}, []
        for row in rows:
            pid, words = row.split(None, 1)
            if " -u -c " in words:
                pythons.append(int(pid))
            elif "search run" in words and "mpirun" not in words.split()[0]:
                ranks[rank_of(int(pid))] = int(pid)
        return ranks, pythons

    def end(self):
        """(exit code, what it has said)"""
        said = self.process.communicate(timeout=mp.SECONDS)[0]
        return self.process.returncode, said


def rank_of(pid):
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(word.split(b"=")[1]) for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")), 0)


def study(directory, name="small", storage=None):
    storage = storage or optuna.storages.JournalStorage(JournalFileBackend(str(directory / "journal.log")))
    return optuna.load_study(study_name=name, storage=storage)


def is_begun(directory):
    """Whether there is a study yet that Optuna can read."""
    return (directory / "journal.log").exists() and '"muster:search"' in (directory / "journal.log").read_text()


def states(directory):
    return [trial.state.name for trial in study(directory).trials]


def reasons(directory):
    return [trial.user_attrs.get("muster:reason", "") for trial in study(directory).trials]


def run_of(directory, number):
    return directory / "trials" / f"{number:06d}"


def files_of(directory, number):
    """Everything in a trial's directory, folders too."""
    run = run_of(directory, number)
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def fingerprint(path):
    return mp.muster("checkpoints", "fingerprint", path).stdout.split()[0]


def result_of(directory, number):
    return mp.read_json(run_of(directory, number) / "result.json")


def overrides(trial):
    return [word for path, value in trial.params.items() for word in ("--set", f"{path}={value}")]
