"""Runs the built `muster` as a user does, and reads what it leaves behind. Shared by all Python tests."""
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "importers"), str(ROOT / "tests" / "reference")]

from container import write_container  # noqa: E402
from safetensors import safe_open  # noqa: E402

HEADER = "# proto-file: core/config/experiment.proto\n# proto-message: muster.config.Experiment\n"
SMALL_FOAL_NET = "foal_net { projection_dim: 16 adapter_dim: 8 layers: 1 }\n"
SMALL_LATE_FUSION = "late_fusion { dim: 16 hidden_dim: 16 }\n"  # five times as fast as the others, where any model will do
SMALL_MIAR = "miar { dim: 16 heads: 2 ffn_dim: 32 alignment_dim: 8 layers: 1 }\n"
CLASSIFICATION = "data { synthetic { kind: CLASSIFICATION samples: 60 } }\n"
REGRESSION = "data { synthetic { kind: REGRESSION samples: 60 } }\n"
SECONDS = 250  # a run takes one to twenty, on a crowded machine some times that: what takes this long hangs


def built(name):
    folder = os.environ.get("MUSTER_BUILD_DIR")
    assert folder, "set MUSTER_BUILD_DIR to the CMake build folder"
    program = Path(folder) / name
    assert program.is_file(), f"{program} is missing: build it first"
    return str(program)


def environment(changes=None):
    """This process's environment, as if no starter of ranks were around; `changes`: name -> value, or None to remove it."""
    result = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI", "OMPI_COMM_"))}
    for name, value in (changes or {}).items():
        result.pop(name, None)
        if value is not None:
            result[name] = value
    return result


def execute(words, cwd=None, changes=None):
    """Like subprocess.run, but whatever the command started ends with it, also when it hangs."""
    with subprocess.Popen([str(word) for word in words], cwd=cwd, env=environment(changes), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


# Commands that do not start their own program again: these need not know where it lies.
SERVED = ("checkpoints", "config", "data", "encoders", "evaluate", "predict", "resume", "status", "train")


def muster(*arguments, ranks=1, cwd=None, changes=None, code=0):
    """Runs muster, alone or under mpirun, and checks its exit code. In an unchanged environment `probe serve` runs it, which starts at once."""
    from probe_program import client, probe
    served = not changes and bool(arguments) and arguments[0] in SERVED
    if ranks > 1:
        program = [*client(), "muster"] if served else [built("muster")]
        result = execute(["mpirun", "--oversubscribe", "-n", ranks, *program, *arguments], cwd, changes)
    elif served:
        result = probe("muster", *arguments, timeout=SECONDS, cwd=cwd)
    else:
        result = execute([built("muster"), *arguments], cwd, changes)
    assert result.returncode == code, f"exit code {result.returncode}, expected {code}\n{result.stdout}\n{result.stderr}"
    return result


def write_config(path, text):
    path.write_text(HEADER + text)
    return path


def train(folder, text, name="run", ranks=1, *arguments, **options):
    """Trains an experiment given as text; returns its run directory."""
    config = write_config(folder / f"{name}.txtpb", text)
    muster("train", config, "--run-dir", folder / name, *arguments, ranks=ranks, **options)
    return folder / name


def read_json(path):
    return json.loads(path.read_text())


def result(run):
    return read_json(run / "result.json")


def metrics_rows(run, kind=None):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if kind is None or row["kind"] == kind]


def weights(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def bits(run):
    """One SHA-256 over all bits of a run's best and last weights."""
    digest = hashlib.sha256()
    for file in ("best", "last"):
        for name, value in sorted(weights(run / f"weights/{file}.safetensors").items()):
            digest.update(f"{file} {name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


def predictions(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tiny_data(path, task="classification", n=24, dims=None, lengths=None, values=None, **fields):
    """A small dataset file. lengths: {modality: frames of each sample}, 0 where it is missing. values: {modality: list of arrays}.
    Splits repeat train, train, train, train, valid, test; groups g0, g1, g2 take turns."""
    random = np.random.default_rng(7)
    dims = dims or ({"audio": 8, "vision": 4} if task != "regression" else {"text": 6, "audio": 8, "vision": 4})
    lengths = lengths or {m: 1 + random.integers(0, 6, n) for m in dims}
    values = values or {m: [random.normal(3, 2, (length, dims[m])) for length in lengths[m]] for m in dims}
    if task == "classification":
        fields = {"labels": np.arange(n) // 6 % 3, "class_names": ["calm", "glad", "sad"], **fields}
    elif task == "multilabel":
        fields = {"labels": random.integers(0, 2, (n, 3)), "class_names": ["calm", "glad", "sad"], **fields}
    else:
        fields = {"labels": np.round(random.uniform(-3, 3, n), 1), **fields}
    fields = {"splits": (["train"] * 4 + ["valid", "test"]) * (n // 6), "groups": [f"g{i % 3}" for i in range(n)], **fields}
    write_container(path, "tiny", task, [f"utterance_{i}" for i in range(n)], values, **fields)
    return path
