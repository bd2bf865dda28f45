"""A fault at every file operation of small runs: nothing that was committed is lost, and the run ends as if nothing had happened (crash_points.cpp).

Of real training on 2 and 3 ranks a third of the points is taken, of everything else all; with MUSTER_CRASH_POINTS=all of that too."""
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

DRIVER = os.path.join(os.environ["MUSTER_BUILD_DIR"], "tests", "crash_points")
SETTINGS = [(mode, ranks, saving) for mode in ("train", "saver") for ranks in (1, 2, 3) for saving in ("sync", "async")] + [("prepared", 2, "async")]
PARTS = 2
# Points are dealt out in turn: a third has every kind of fault at every kind of operation.
WORK = [(setting, part, parts) for setting in SETTINGS for part, parts in
        ([(setting[1] - 2, 3)] if setting[0] == "train" and setting[1] > 1 and os.environ.get("MUSTER_CRASH_POINTS") != "all" else [(part, PARTS) for part in range(PARTS)])]


def drive(work):
    (mode, ranks, saving), part, parts = work
    # In memory: a fault is not a matter of the device, and thousands of flushes are.
    folder = tempfile.mkdtemp(prefix="muster-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        return subprocess.run([DRIVER, mode, folder, str(ranks), saving, str(part), str(parts)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              timeout=900)
    finally:
        shutil.rmtree(folder)


def test_every_crash_point():
    with ThreadPoolExecutor(2) as pool:
        points = 0
        for run in pool.map(drive, WORK):
            print(run.stdout.strip()[-3000:], flush=True)
            assert "BROKEN" not in run.stdout and run.returncode == 0
            points += int(re.search(r"(\d+) points", run.stdout)[1])
    print(points, "crash points")
    assert points > 4000
