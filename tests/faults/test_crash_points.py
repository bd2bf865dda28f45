"""A fault at every file operation of small runs: nothing that was committed is lost, and the run ends as if nothing had happened (crash_points.cpp).

Taken is a seeded sample: in every setting each kind of fault at each kind of operation on each kind of file once, so that every kind of operation and
every phase (setting up, saving, committing, removing, finishing) is met by every kind of fault in each run. All points: ./test.sh --full. Another
sample: MUSTER_CRASH_SEED=<number>."""
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

DRIVER = os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests", "crash_points")
SETTINGS = [(mode, ranks, saving) for mode in ("train", "saver") for ranks in (1, 2, 3) for saving in ("sync", "async")] + [("prepared", 2, "async")]
FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
SEED = int(os.environ.get("MUSTER_CRASH_SEED", "1"))
WORK = [(setting, part, 2) for setting in SETTINGS for part in range(2)] if FULL else [(setting, SEED + place, 0) for place, setting in enumerate(SETTINGS)]


def drive(work):
    (mode, ranks, saving), part, parts = work
    # In memory: a fault is not a matter of the device, and thousands of flushes are.
    folder = tempfile.mkdtemp(prefix="muster-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        return subprocess.run([DRIVER, mode, folder, str(ranks), saving, str(part), str(parts)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              timeout=3600)
    finally:
        shutil.rmtree(folder)


def test_every_crash_point():
    with ThreadPoolExecutor(2) as pool:
        points = 0
        for run in pool.map(drive, WORK):
            print(run.stdout.strip()[-3000:], flush=True)
            assert "BROKEN" not in run.stdout and run.returncode == 0
            points += int(re.search(r"(\d+) points", run.stdout)[1])
    print(points, "crash points" if FULL else f"crash points, MUSTER_CRASH_SEED={SEED}")
    assert points > (9000 if FULL else 500)
