"""A rank that does not come to a collective is named by those that wait, with what they wait for; then the job ends."""
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("ranks, absent", [(2, 0), (2, 1), (3, 1), (4, 2)])
def test_absent_rank_is_named(ranks, absent):
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    program = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "test_communicator"
    start = time.monotonic()
    run = subprocess.run([mpirun, "-n", str(ranks), "-x", "MUSTER_COLLECTIVE_TIMEOUT=0.5", program, "absent", str(absent)],
                         capture_output=True, text=True, timeout=50)
    assert run.returncode == 76, run.stderr
    assert time.monotonic() - start < 30
    for rank in set(range(ranks)) - {absent}:
        heard = re.search(f"heard by rank {rank}: (.*)", run.stderr)
        assert heard, run.stderr
        assert heard[1].startswith(f"76: rank {absent} did not come to collective 2 of world ({ranks} ranks), "
                                   "all_reduce_sum(float32 [7]), within 0.5"), heard[1]
        assert "The last collective that all completed: all_reduce_sum(float32 [3]), number 1." in heard[1]


def test_wrong_setting_is_refused():
    program = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "test_communicator"
    run = subprocess.run([shutil.which("mpirun"), "-n", "2", "-x", "MUSTER_COLLECTIVE_TIMEOUT=soon", program, "absent", "0"],
                         capture_output=True, text=True, timeout=50)
    assert run.returncode != 0
    assert 'MUSTER_COLLECTIVE_TIMEOUT is "soon": it must be a number of seconds above 0' in run.stderr
