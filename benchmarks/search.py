#!/usr/bin/env python3
"""Trials per hour of `muster search run` compared with the usual way: an Optuna study (TPE, JournalStorage) that starts a PyTorch training script
(benchmarks/search_peer.py) for every trial. Both train MIAR on the same random features of the shapes of CMU-MOSI (aligned), with as many parameters, epochs,
steps and validations, one thread per process; times are of whole commands, with all starts. At the end the PyTorch model loads the best weights that muster
found: its validation error must be the same. On a machine that is busy with other work, CPU seconds are the most meaningful column.

Usage: search.py BUILD_DIR [--trials 24] [--rounds 2] [--processes 2] [--shortest 50] [--samples 300] [--epochs 3] [--folder DIR]
"""
import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from running import output_of

HERE = Path(__file__).resolve().parent
DIMS, FRAMES = {"text": 768, "audio": 5, "vision": 20}, 50
# Values that do not change how much work a trial is.
SPACE = {"optimizer.learning_rate": (1e-4, 5e-3, True), "miar.dropout": (0.05, 0.3, False), "optimizer.weight_decay": (1e-4, 1e-1, True)}


def write_data(folder, samples, shortest):
    """The same arrays for both: data.h5, and data.npz padded to one length, as MMSA's files are."""
    import numpy as np

    sys.path.insert(0, str(HERE.parent / "importers"))
    from container import write_container

    random = np.random.default_rng(1)
    splits = ["train"] * samples + ["valid"] * (samples // 3) + ["test"]  # a fixed split needs a test set; it is not used
    lengths = random.integers(shortest, FRAMES + 1, len(splits))
    frames = {name: [random.standard_normal((length, dim), dtype=np.float32) for length in lengths] for name, dim in DIMS.items()}
    labels = np.clip([30 / 8 * text[:, :64].mean() * len(text) ** 0.5 for text in frames["text"]], -3, 3).astype(np.float32)
    write_container(folder / "data.h5", "random", "regression", [str(i) for i in range(len(splits))], frames, labels=labels, splits=splits)
    padded = {name: np.stack([np.pad(part, ((0, FRAMES - len(part)), (0, 0))) for part in parts]) for name, parts in frames.items()}
    np.savez(folder / "data.npz", label=labels, split=np.array(splits), length=lengths, **padded)


def run_optuna(folder, trials, epochs, processes, data):
    """The peer: this process only draws values and waits for the processes that train."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(study_name="peer", storage=storage, sampler=optuna.samplers.TPESampler(seed=1), direction="minimize")

    def objective(trial):
        values = [f"--{path.split('.')[1].replace('_', '-')}={trial.suggest_float(path, low, high, log=log)}" for path, (low, high, log) in SPACE.items()]
        command = [sys.executable, HERE / "search_peer.py", data, *values, "--epochs", str(epochs), "--best", folder / f"{trial.number}.pt"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])["mae"]

    study.optimize(objective, n_trials=trials, n_jobs=processes)


def spec_of(trials, epochs):
    parameters = "".join(f'parameters {{ path: "{path}" real {{ low: {low} high: {high} {"log: true " if log else ""}}} }}\n' for path, (low, high, log) in SPACE.items())
    return f'# proto-message: muster.launcher.Search\nbase: "base.txtpb"\n{parameters}budget {{ trials: {trials} epochs: {epochs} }}\n'


BASE = """# proto-message: muster.config.Experiment
preset: "miar_recommended"
data { path: "data.h5" modalities: "text" modalities: "audio" modalities: "vision" split { kind: FIXED } }
evaluation { select_by: "MAE" }
training { epochs: 3 }
"""


def timed(command):
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    begin, before = time.monotonic(), used()
    output_of(command)
    return time.monotonic() - begin, used() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="ranks of muster, and peers at a time; one of each is measured as well")
    parser.add_argument("--shortest", type=int, default=FRAMES, help=f"sequences have from this many to {FRAMES} frames")
    parser.add_argument("--samples", type=int, default=300, help="training samples; a third of it for validation")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", help="where everything is written; default: a new one in the system's temporary folder")
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_peer:
        return run_optuna(arguments.as_peer, arguments.trials, arguments.epochs, arguments.processes, arguments.build)
    muster = (arguments.build / "muster").resolve()
    folder = Path(tempfile.mkdtemp(prefix="muster-search-", dir=arguments.folder))
    try:
        write_data(folder, arguments.samples, arguments.shortest)
        (folder / "base.txtpb").write_text(BASE)
        (folder / "search.txtpb").write_text(spec_of(arguments.trials, arguments.epochs))

        def ours(count, place):
            starter = ["mpirun", "--oversubscribe", "-n", count] if count > 1 else []
            return [*starter, muster, "search", "run", folder / "search.txtpb", "--search-dir", place]

        def theirs(count, place):
            place.mkdir()
            return [sys.executable, __file__, folder / "data.npz", "--as-peer", place, "--trials", arguments.trials, "--epochs", arguments.epochs, "--processes", count]

        counts = sorted({1, arguments.processes})
        seconds = {(side, count): [] for count in counts for side in ("muster", "pytorch")}
        for number in range(arguments.rounds):
            for (side, count), found in seconds.items():
                place = folder / f"{side}-{count}-{number}"
                found.append(timed((ours if side == "muster" else theirs)(count, place)))
                print(f"round {number + 1} of {arguments.rounds}: {side}, {count} at a time: {found[-1][0]:.1f} s, {found[-1][1]:.1f} of CPU", flush=True)

        best_run = next((folder / "muster-1-0" / "trials").glob("*/weights/best.safetensors")).parent.parent
        result = json.loads((best_run / "result.json").read_text())
        peer = json.loads(output_of([sys.executable, HERE / "search_peer.py", folder / "data.npz", "--evaluate", best_run / "weights/best.safetensors"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{arguments.trials} trials of {arguments.epochs} epochs, {arguments.samples} + {arguments.samples // 3} samples of {arguments.shortest} to {FRAMES} frames")
    print(f"{'program':<10} {'at a time':>9} {'seconds':>9} {'trials/h':>9} {'CPU s per trial':>16}")
    speed = {}
    for key, found in seconds.items():
        wall, cpu = (statistics.median(one[i] for one in found) for i in (0, 1))
        speed[key] = 3600 * arguments.trials / wall
        print(f"{key[0]:<10} {key[1]:>9} {wall:>9.1f} {speed[key]:>9.0f} {cpu / arguments.trials:>16.2f}")
    most = speed["muster", counts[-1]]
    print(f"muster on {counts[-1]} ranks: " + ", ".join(f"{most / speed['pytorch', count]:.2f} times the trials of fresh processes {count} at a time" for count in reversed(counts)))
    print(f"the same weights: {result['parameters']} and {peer['parameters']} parameters, validation MAE {result['best']['value']:.6f} and {peer['mae']:.6f}")


if __name__ == "__main__":
    main()
