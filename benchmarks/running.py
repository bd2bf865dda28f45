"""Runs a program that a benchmark measures."""
import os
import subprocess
import sys


def output_of(command):
    """What it writes to standard output, on one thread per process. If it fails, so does this program."""
    command = [str(word) for word in command]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")
    return run.stdout
