"""A rank that does not come to a collective is named, once, with what the others wait for; then the job ends."""
import os
import re
import resource
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
    messages = re.findall("^muster: .*", run.stderr, re.M)
    assert len(messages) == 1, run.stderr
    assert re.match(rf"muster: no progress in phase setup for 0\.5 s: rank {absent} of {ranks} \(host [^)]+\): it is still computing, "
                    r"last seen in phase setup (after collective 1 of world, all_reduce_sum\(float32 \[3\]\)|before its first collective had completed)\.",
                    messages[0]), messages[0]
    assert (f"Rank {1 if absent == 0 else 0} waits in collective 2 of world, all_reduce_sum(float32 [7]), in phase setup; "
            "the last that it completed: collective 1 of world, all_reduce_sum(float32 [3]).") in messages[0]


def test_whoever_waits_leaves_the_core_to_others():
    """Two ranks wait four seconds for the third: they must not compute all the while (other ranks or jobs may need the core)."""
    program = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "test_communicator"
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([shutil.which("mpirun"), "-n", "3", "-x", "MUSTER_COLLECTIVE_TIMEOUT=4", program, "absent", "1"], capture_output=True, timeout=50)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert time.monotonic() - begin > 4 and used < 2, used  # to wait busily would take two times four


def test_wrong_setting_is_refused():
    program = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "test_communicator"
    run = subprocess.run([shutil.which("mpirun"), "-n", "2", "-x", "MUSTER_COLLECTIVE_TIMEOUT=soon", program, "absent", "0"],
                         capture_output=True, text=True, timeout=50)
    assert run.returncode != 0
    assert 'MUSTER_COLLECTIVE_TIMEOUT is "soon": it must be a number of seconds above 0' in run.stderr
