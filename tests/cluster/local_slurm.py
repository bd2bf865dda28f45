"""The two-node Slurm of cluster/local-slurm, for tests: up once per file, in a folder of its own, gone afterwards whatever happens."""
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

import muster_program as mp

SCRIPT = mp.ROOT / "cluster" / "local-slurm"


def why_not():
    """What keeps this machine from running it; empty: nothing."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} not found; packages-slurm.txt)"
    if os.geteuid() != 0:
        return "cluster/local-slurm needs root"
    words = ["unshare", "-m", "-u", "-p", "--fork", "--mount-proc", "--kill-child", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    tried = subprocess.run(words, capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    def __init__(self, *options):
        base = tempfile.mkdtemp(prefix="muster-test-slurm-")
        os.chmod(base, 0o755)
        self.base = Path(base)
        self.folder = self.base / "slurm"
        self.changes = {"MUSTER_LOCAL_SLURM": str(self.folder), "SLURM_CONF": str(self.folder / "slurm.conf"), "MUSTER_SITE": None}
        self.asking, self.asked, self.jobs = threading.Lock(), -1.0, []
        # Ends the cluster also when this process is killed.
        end = f"tail --pid={os.getpid()} -f /dev/null; {SCRIPT} down; rm -rf {self.base}"
        self.keeper = subprocess.Popen(["bash", "-c", end], env=mp.environment(self.changes), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, start_new_session=True)
        self.local_slurm("up", "--no-default", *options)

    def local_slurm(self, *words):
        return self.run(SCRIPT, *words)

    def run(self, *words, code=0, cwd=None, changes=None):
        result = mp.execute(words, cwd, {**self.changes, **(changes or {})})
        assert code is None or result.returncode == code, f"{words}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def muster(self, *words, **options):
        return self.run(mp.built("muster"), *words, **options)

    def submit(self, *words, **options):
        """Runs `muster submit`; the job's number."""
        result = self.muster("submit", *words, **options)
        found = re.search(r"\bjob (\d+)", result.stdout + result.stderr)
        assert found, result.stdout + result.stderr
        return found[1]

    def job(self, number):
        """What scontrol says of a job: {field: text}; of an array's task: number_task."""
        def find():
            return [job for job in self.jobs if number in (job["JobId"], f"{job.get('ArrayJobId')}_{job.get('ArrayTaskId')}")]

        with self.asking:  # one question for all tests that wait
            if time.monotonic() > self.asked + 0.5 or not find():
                lines = self.run("scontrol", "-o", "show", "job").stdout.splitlines()
                self.jobs = [dict(field.split("=", 1) for field in line.split(" ") if "=" in field) for line in lines]
                self.asked = time.monotonic()
            assert find(), f"Slurm knows no job {number}"
            return find()[0]

    def wait(self, number, condition, seconds=240):
        """Until condition(job) holds."""
        end = time.monotonic() + seconds
        while True:
            job = self.job(number)
            if condition(job):
                return job
            assert time.monotonic() < end, f"job {number} is {job}\n{self.logs()}"
            time.sleep(0.3)

    def wait_for_state(self, number, *states, seconds=240):
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"}
        job = self.wait(number, lambda job: job["JobState"] in states or job["JobState"] in ends, seconds)
        assert job["JobState"] in states, f"job {number} is {job}\n{self.logs()}"
        return job

    def logs(self):
        """What the jobs of this test wrote."""
        files = sorted(self.base.rglob("slurm-*.out"))
        return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def down(self):
        try:
            self.local_slurm("down")
        finally:
            os.killpg(self.keeper.pid, signal.SIGKILL)
            self.keeper.wait()
            shutil.rmtree(self.base, ignore_errors=True)


def cluster(*options):
    """For a fixture: a cluster with these options of local-slurm, ended afterwards."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    started = Cluster(*options)
    yield started
    started.down()


@pytest.fixture(scope="module")
def slurm():
    yield from cluster()
