#!/usr/bin/env python3
"""Training steps of a fine-tuned WavLM: `muster train` beside the same model in transformers with PyTorch's DistributedDataParallel (gloo). Both start
from the same weights and see the same batches without dropout; the first losses are compared before anything is timed. Runs alternate. Printed are
the medians of the slowest rank's seconds per step and of the ranks' peak memory, and muster's part of the peer's.

Layer norm in the feature extractor: with group norm the peer's padded batch would not be the same computation.

Usage: encoder_step.py BUILD_DIR [--size base|tiny|large] [--ranks 2] [--batch 4] [--steps 4] [--rounds 2] [--recompute] [--only muster]
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from encoder_step_peer import SIZES, classifier_state, make_model

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "importers"))
from container import write_container  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

RATE = 16000
EXPERIMENT = """# proto-file: core/config/experiment.proto
# proto-message: muster.config.Experiment
data {{ path: "data.h5" modalities: "audio" }}
encoders {{ modality: "audio" path: "encoder" train: TRANSFORMER hidden_dropout: 0 attention_dropout: 0 activation_dropout: 0
  feature_projection_dropout: 0 layerdrop: 0 spec_augment: false }}
late_fusion {{ dim: 64 hidden_dim: 64 dropout: 0 }}
optimizer {{ learning_rate: 1e-5 weight_decay: 0 }}
training {{ epochs: 1 batch_size: {batch} sampling: SEQUENTIAL log_every_steps: 1 recompute: {recompute} }}
evaluation {{ every_epochs: 0 }}
checkpoints {{ every_epochs: 0 every_minutes: 0 }}
"""


def make_data(folder, samples, longest):
    """Recordings of 1 s to `longest` s; all but one sample are for training."""
    random = np.random.default_rng(1)
    lengths = random.integers(RATE, int(longest * RATE) + 1, samples)
    values = [random.normal(0, 0.1, (length, 1)).astype(np.float32) for length in lengths]
    write_container(folder / "data.h5", "recordings", task="classification", ids=[f"s{i:04}" for i in range(samples)], labels=np.arange(samples) % 4,
                    class_names=["a", "b", "c", "d"], splits=["train"] * (samples - 1) + ["valid"], modalities={"audio": values}, sample_rates={"audio": RATE})
    np.savez(folder / "data.npz", lengths=lengths[:-1], values=np.concatenate(values[:-1])[:, 0], labels=np.arange(samples - 1) % 4)


class PeakMemory:
    """The largest peak resident set of processes that a command line is part of, sampled while they run."""

    def __init__(self, mark):
        self.mark, self.peaks, self.ends = str(mark), {}, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ends.wait(0.1):
            for status in Path("/proc").glob("[0-9]*/status"):
                try:
                    words = (status.parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if self.mark not in words or Path(words[0]).name in ("mpirun", "orterun"):
                        continue
                    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
                    self.peaks[status.parent.name] = int(peak[1]) / 2**20
                except (OSError, TypeError):
                    continue

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.thread.join()

    def largest(self):
        return max(self.peaks.values())


def run(command, folder, mark):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with PeakMemory(mark) as memory:
        done = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return done.stdout, memory.largest()


def muster_steps(arguments, folder, number):
    target = folder / f"muster{number}"
    _, memory = run(["mpirun", "--oversubscribe", "--bind-to", "none", "-n", arguments.ranks, (arguments.build / "muster").resolve(), "train", "e.txtpb",
                     "--init-from", "start.safetensors", "--run-dir", target], folder, target)
    rows = [row for row in map(json.loads, (target / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "train"]
    return [row["loss"] for row in rows], [arguments.batch / row["samples_per_second"] for row in rows[1:]], memory


def peer_steps(arguments, folder, number):
    out, memory = run([sys.executable, ROOT / "benchmarks" / "encoder_step_peer.py", folder / "data.npz", "--ranks", arguments.ranks, "--batch", arguments.batch,
                       "--size", arguments.size, "--start", folder / "start.pt"], folder, folder / "data.npz")
    result = json.loads(out.splitlines()[-1])
    return result["losses"], result["seconds"][1:], memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="samples in the global batch, a multiple of the ranks")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6, help="of the longest sample")
    parser.add_argument("--recompute", action="store_true", help="muster: training.recompute: ENCODERS")
    parser.add_argument("--only", choices=["muster"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_data(folder, arguments.batch * arguments.steps + 1, arguments.seconds)
        torch.manual_seed(1)
        model = make_model(arguments.size)
        model.encoder.save_pretrained(folder / "encoder")
        (folder / "encoder" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": RATE}))
        torch.save(model.state_dict(), folder / "start.pt")
        save_file(classifier_state(model), folder / "start.safetensors", {"format": "muster-weights", "features": "{}"})
        (folder / "e.txtpb").write_text(EXPERIMENT.format(batch=arguments.batch, recompute="ENCODERS" if arguments.recompute else "NONE"))
        parameters = sum(value.numel() for value in model.parameters())
        del model
        sides = {"muster": muster_steps, **({} if arguments.only else {"transformers": peer_steps})}
        found = {side: {"losses": [], "seconds": [], "memory": []} for side in sides}
        print(f"WavLM {arguments.size}, {parameters / 1e6:.1f} M parameters, {arguments.ranks} ranks, batch {arguments.batch} of 1 to {arguments.seconds:g} s")
        for number in range(arguments.rounds):
            for side, steps in sides.items():
                began = time.time()
                losses, seconds, memory = steps(arguments, folder, number)
                found[side]["losses"] = losses
                found[side]["seconds"] += seconds
                found[side]["memory"].append(memory)
                print(f"round {number + 1}: {side:12} {statistics.median(seconds):8.3f} s per step, {memory:6.2f} GiB   ({time.time() - began:.0f} s in all)", flush=True)
            first = [values["losses"][0] for values in found.values()]
            if max(first) - min(first) > 1e-4 * abs(first[0]):
                sys.exit(f"the first losses differ: {first}: the two do not compute the same")
    print("losses of step 1:", ", ".join(f"{values['losses'][0]:.7f}" for values in found.values()))
    medians = {side: (statistics.median(values["seconds"]), statistics.median(values["memory"])) for side, values in found.items()}
    for side, (seconds, memory) in medians.items():
        print(f"{side:12} {seconds:8.3f} s per step {memory:6.2f} GiB at most in a rank")
    if not arguments.only:
        print(f"muster takes {medians['muster'][0] / medians['transformers'][0]:.2f} of the time and {medians['muster'][1] / medians['transformers'][1]:.2f} of the memory")


if __name__ == "__main__":
    main()
