#!/usr/bin/env python3
"""How much faster more ranks are at a fixed global batch: whole training steps (default mode, one thread per rank) on 1 and on N ranks,
measured alternately, and the ratio of the medians.

Usage: scaling.py BUILD_DIR [--ranks N] [--workload foal_net] [--batch 32] [--rounds 3]
"""
import argparse
import statistics
from pathlib import Path

from running import output_of


def seconds_per_step(program, ranks, workload, batch):
    starter = ["mpirun", "--bind-to", "none", "--use-hwthread-cpus", "-n", ranks] if ranks > 1 else []
    return float(output_of([*starter, program, "--default-only", "--workload", workload, "--batch", batch, "--repeats", 3]).split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--workload", default="foal_net", help="foal_net, miar_aligned or miar_unaligned")
    parser.add_argument("--batch", type=int, default=32, help="samples in the global batch")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    program = (arguments.build / "benchmarks" / "reproducible").resolve()
    times = {1: [], arguments.ranks: []}
    for number in range(arguments.rounds):
        for ranks, found in times.items():
            found.append(seconds_per_step(program, ranks, arguments.workload, arguments.batch))
            print(f"round {number + 1} of {arguments.rounds}: {ranks} ranks {1e3 * found[-1]:.0f} ms per step", flush=True)
    one, many = (statistics.median(found) for found in times.values())
    print(f"{arguments.workload}, global batch {arguments.batch}: {one:.3f} s on 1 rank, {many:.3f} s on {arguments.ranks}: {one / many:.2f} times as fast")


if __name__ == "__main__":
    main()
