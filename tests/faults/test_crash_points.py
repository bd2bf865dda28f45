"""A fault at every file operation of small runs: nothing that was committed is lost, and the run ends as if nothing had happened (crash_points.cpp).

Taken is a seeded sample of strata: each kind of fault at each kind of operation on each kind of file, so that every phase (setting up, saving, committing,
removing, finishing) meets every kind of fault in each run. Of training each stratum is met in one of the six settings of 1 to 3 ranks and synchronous
or asynchronous saving, of saving alone in two of them, once with each. All points, in all settings: ./test.sh --full. Another sample: MUSTER_CRASH_SEED=<number>."""
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
# Each setting of a mode has another share of the strata; those of "saver" have each twice.
SHARES = {"train": 6, "saver": 3, "prepared": 1}
WORK = ([(setting, part, 2) for setting in SETTINGS for part in range(2)] if FULL else
        [(setting, place % SHARES[setting[0]], SHARES[setting[0]], SEED) for place, setting in enumerate(SETTINGS)])


def drive(work):
    (mode, ranks, saving), *share = work
    # In memory: a fault is not a matter of the device, and thousands of flushes are.
    folder = tempfile.mkdtemp(prefix="muster-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        return subprocess.run([DRIVER, mode, folder, str(ranks), saving, *map(str, share)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              timeout=3600)
    finally:
        shutil.rmtree(folder)


def test_every_crash_point():
    with ThreadPoolExecutor(2) as pool:
        points, taken, known = 0, set(), set()
        for ((mode, *_), *_), run in zip(WORK, pool.map(drive, WORK)):
            strata = re.compile(r"^(taken|left): (.*)\n", re.M)
            print(strata.sub("", run.stdout).strip()[-3000:], flush=True)
            assert "BROKEN" not in run.stdout and run.returncode == 0
            points += int(re.search(r"(\d+) points", run.stdout)[1])
            for verdict, stratum in strata.findall(run.stdout):
                known.add((mode, stratum))
                taken |= {(mode, stratum)} if verdict == "taken" else set()
    print(points, "crash points" if FULL else f"crash points, MUSTER_CRASH_SEED={SEED}")
    assert points > (6000 if FULL else 500)
    assert not known - taken, f"no setting has met {sorted(known - taken)[:9]}"
