"""A rank that cannot go on ends the whole job at once, with its own exit code, while the others wait for it in a collective."""
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("ranks, rank, code", [(1, 0, 70), (2, 0, 65), (2, 1, 76), (4, 2, 74)])
def test_abort_ends_the_job(ranks, rank, code):
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    program = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "test_communicator"
    start = time.monotonic()
    run = subprocess.run([mpirun, "-n", str(ranks), program, "abort", str(rank), str(code)], capture_output=True, text=True, timeout=50)
    assert run.returncode == code, run.stderr
    assert time.monotonic() - start < 20
    assert "muster:" not in run.stderr, "the others must not take it for a death"
