"""bytes_sent() against Open MPI's own books: its monitoring component writes down what every rank sends."""
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

RANKS = 3


def sent(collective, folder):
    """Per rank: what bytes_sent() says, and what Open MPI counted point to point and in collectives."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed")
    program = Path(os.environ["MUSTER_BUILD_DIR"]) / "tests" / "test_communicator"
    run = subprocess.run([mpirun, "-n", str(RANKS), "--mca", "pml_monitoring_enable", "2", "--mca", "pml_monitoring_enable_output", "3",
                          "--mca", "pml_monitoring_filename", folder / collective, program, "send", collective],
                         capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    ours = {int(rank): int(count) for rank, count in re.findall(r"rank (\d+) sent (\d+)", run.stdout)}
    profiles = [folder / f"{collective}.{rank}.prof" for rank in range(RANKS)]
    if not profiles[0].exists():
        pytest.skip("this MPI has no monitoring component")
    # E: point to point by the program itself; C: by collectives.
    books = [{kind: sum(int(count) for count in re.findall(rf"^{kind}\t\d+\t\d+\t(\d+) bytes", profile.read_text(), re.M))
              for kind in "EC"} for profile in profiles]
    return ours, books


def test_bytes_sent_are_what_open_mpi_counts(tmp_path):
    # What ranks tell each other before a collective travels by persistent requests, which Open MPI does not count.
    _, idle = sent("nothing", tmp_path)
    for collective in ("all_to_all_rows", "all_gather_rows"):
        ours, books = sent(collective, tmp_path)
        for rank in range(RANKS):
            assert ours[rank] > 10000
            assert ours[rank] == sum(books[rank][kind] - idle[rank][kind] for kind in "EC"), (collective, rank)
