#!/usr/bin/env python3
"""How long a checkpoint blocks training, and how fast it is written: muster compared with torch.distributed.checkpoint (gloo), on the same disk,
with the same state (fp32 parameters and two moments, whole on every rank) and as many ranks, one thread each. Both flush their files to the device.
Asynchronous and synchronous saves alternate, after one that is not timed.

Usage: checkpoint.py BUILD_DIR [--ranks 2] [--parameters 300000000] [--saves 3] [--folder DIR]
"""
import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from running import output_of

WIDTH = 1024


def save_with_pytorch(folder, parameters, saves):
    """One rank; prints as benchmarks/checkpoint does."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    state = {}
    for done in range(0, parameters, WIDTH * WIDTH):
        rows = min(WIDTH, (parameters - done + WIDTH - 1) // WIDTH)
        for kind in ("", ".exp_avg", ".exp_avg_sq"):
            state[f"layer.{done // WIDTH // WIDTH}.weight{kind}"] = torch.rand(rows, WIDTH)
    size = sum(tensor.nbytes for tensor in state.values())

    def longest(seconds):
        all_seconds = torch.tensor([seconds])
        dist.all_reduce(all_seconds, dist.ReduceOp.MAX)
        return all_seconds.item()

    for save in range(-1, 2 * saves):
        mode = "sync" if save % 2 else "async"
        path = os.path.join(folder, f"save-{save}")
        dist.barrier()
        begin = time.monotonic()
        if mode == "async":
            pending = dcp.async_save(state, checkpoint_id=path)
            stall = time.monotonic() - begin
            pending.result()
        else:
            dcp.save(state, checkpoint_id=path)
            stall = time.monotonic() - begin
        whole, stall = longest(time.monotonic() - begin), longest(stall)
        if dist.get_rank() == 0:
            if save >= 0:
                print(f"{mode} {stall:.4f} {whole:.4f} {size}", flush=True)
            shutil.rmtree(path)
    dist.destroy_process_group()


def saves_of(command):
    found = {"async": [], "sync": []}
    for line in output_of(command).splitlines():
        words = line.split()
        if len(words) == 4 and words[0] in found:
            found[words[0]].append([float(word) for word in words[1:]])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, nargs="?")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--parameters", type=int, default=300_000_000)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", help="where the checkpoints go, on the disk to be measured; default: a new one in the system's temporary folder")
    parser.add_argument("--as-pytorch-rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_pytorch_rank:
        return save_with_pytorch(arguments.folder, arguments.parameters, arguments.saves)
    if arguments.build is None:
        parser.error("BUILD_DIR is missing")
    folder = tempfile.mkdtemp(prefix="muster-checkpoint-", dir=arguments.folder)
    sizes = ["--parameters", arguments.parameters, "--saves", arguments.saves, "--folder"]
    try:
        starter = ["mpirun", "--oversubscribe", "-n", arguments.ranks] if arguments.ranks > 1 else []
        ours = saves_of([*starter, (arguments.build / "benchmarks" / "checkpoint").resolve(), *sizes, os.path.join(folder, "muster")])
        shutil.rmtree(os.path.join(folder, "muster"))
        theirs = saves_of([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", arguments.ranks, __file__, "--as-pytorch-rank",
                           *sizes, os.path.join(folder, "pytorch")])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{arguments.ranks} ranks, {3 * arguments.parameters * 4 / 1e9:.3g} GB of state; medians of {arguments.saves} saves")
    print(f"{'program':<10} {'save':<6} {'first stall s':>14} {'stall s':>9} {'committed s':>12} {'MB/s':>8}")
    stalls = {}
    for program, found in {"muster": ours, "pytorch": theirs}.items():
        for mode, saves in found.items():
            stall, whole = (statistics.median(save[i] for save in saves) for i in (0, 1))
            stalls[program, mode] = stall
            print(f"{program:<10} {mode:<6} {saves[0][0]:>14.4f} {stall:>9.4f} {whole:>12.4f} {saves[0][2] / whole / 1e6:>8.0f}")
    asynchronous = stalls["muster", "async"]
    print(f"muster's asynchronous stall is 1/{stalls['muster', 'sync'] / asynchronous:.1f} of its synchronous save, "
          f"1/{stalls['pytorch', 'async'] / asynchronous:.1f} of PyTorch's async_save")


if __name__ == "__main__":
    main()
