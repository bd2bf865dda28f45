"""`muster requeue`, and the job script under a real shell."""
import os
import signal
import subprocess
import time

import pytest

import muster_program as mp
from slurm_fakes import RUNNING, Cluster


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


@pytest.fixture
def begun(cluster):
    """A job that was submitted and has begun."""
    cluster.submit(train=["--run-dir", "run"])
    cluster.muster("requeue", "run", "--begin", changes=cluster.job)
    row = cluster.rows("started")[0]
    assert (row["job"], row["hosts"], row["nodes"], row["ranks"], row["step"]) == ("41", "n[1-2]", 2, 4, None)
    return cluster


CANCELLED = RUNNING.replace("RUNNING", "COMPLETING")
TIMED_OUT = CANCELLED.replace("RunTime=00:01:00", "RunTime=01:00:02")
PREEMPTED = CANCELLED + " PreemptTime=2026-01-01T00:00:00"
AGAIN = CANCELLED.replace("Restarts=0", "Restarts=1").replace("RunTime=00:01:00", "RunTime=00:00:00")


DECISIONS = [
    (RUNNING, 0, "done", "the run is finished"),
    (RUNNING, 75, "requeued", "stopped and saved"),
    (RUNNING, 138, "requeued", "stopped and saved"),  # asked before the ranks knew what it means
    (RUNNING, 70, "requeued", "training failed"),
    (RUNNING, 74, "requeued", "disk"),
    (RUNNING, 76, "requeued", "a rank was lost"),
    (RUNNING, 137, "requeued", "ended by signal 9"),
    (RUNNING, 1, "requeued", "srun failed"),
    (RUNNING, 2, "stopped", "would not fix"),
    (RUNNING, 65, "stopped", "would not fix"),
    (RUNNING, 78, "stopped", "would not fix"),
    (CANCELLED, 75, "stopped", "was cancelled"),
    (CANCELLED, 143, "stopped", "was cancelled"),
    (RUNNING.replace("RUNNING", "CANCELLED"), 75, "stopped", "was cancelled"),
    (TIMED_OUT, 75, "requeued", "stopped and saved"),
    (TIMED_OUT, 137, "requeued", "signal 9"),
    (PREEMPTED, 75, "requeued", "stopped and saved"),
    (AGAIN, 75, "requeued", "Slurm has requeued the job itself"),
]


def test_decisions(begun):
    for shown, code, decision, said in DECISIONS:
        begun.say("shown", shown)
        begun.say("calls", "")
        answer = begun.requeue(code, expected=code if decision == "stopped" else 0)
        assert said in answer.stderr and answer.stderr.count("muster: ") == 1, (shown, code)
        row = begun.rows("ended")[-1]
        assert (row["decision"], row["exit_code"], row["step"]) == (decision, code, None), (shown, code)
        asked = decision == "requeued" and shown != AGAIN
        assert [call for call in begun.calls("scontrol") if "requeue" in call] == ["scontrol requeue 41"] * asked, (shown, code)
    assert len(begun.rows("ended")) == len(DECISIONS)


def test_requeue_of_an_array_task(begun):
    begun.requeue(75, expected=0, changes={"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"})
    assert begun.calls("scontrol") == ["scontrol show job -o 41_3", "scontrol requeue 41_3"]
    begun.say("requeue.code", "1")
    error = begun.requeue(75, changes={"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}).stderr
    assert "To continue the run: sbatch --array=3 run/job.sbatch" in error  # not all tasks


def test_a_cap_without_progress(begun):
    def start():
        begun.muster("requeue", "run", "--begin", changes=begun.job)

    for _ in range(2):
        begun.requeue(76, "--max-restarts", 2, expected=0)
        start()
    error = begun.requeue(76, "--max-restarts", 2).stderr
    assert "no newer checkpoint in 3 starts in a row (--max-restarts 2), so it is not requeued" in error
    # With progress the count begins anew, also when a start has left no end behind; so it does when a person submits again.
    start()
    begun.muster("train", "e.txtpb", "--run-dir", "run", "--resume", "auto")
    assert "newest checkpoint: step 4" in begun.requeue(76, "--max-restarts", 0, expected=0).stderr
    start()
    start()
    begun.requeue(76, "--max-restarts", 1)
    (begun.run / "result.json").unlink()
    begun.submit(train=["--run-dir", "run"])
    start()
    begun.requeue(76, "--max-restarts", 1, expected=0)


def test_where_requeueing_fails(begun):
    begun.say("requeue.code", "1")
    error = begun.requeue(75).stderr
    assert f"To continue the run: sbatch {begun.run}/job.sbatch" in error.replace("sbatch run/", f"sbatch {begun.run}/") and len(begun.calls("sbatch")) == 1
    assert [row["decision"] for row in begun.rows("ended")] == ["requeued", "stopped"]
    # Ended for good to make room for another: the same once more.
    begun.say("shown", PREEMPTED)
    begun.say("sbatch.said", "43")
    assert "submitted again as job 43" in begun.requeue(75, expected=0).stderr
    assert begun.rows()[-1]["event"] == "resubmitted" and mp.read_json(begun.run / "submission.json")["job"] == "43"
    begun.say("squeue.said", "PENDING " + begun.calls("sbatch")[-1].split()[-1])
    assert "43 is PENDING" in begun.submit(train=["--run-dir", "run"], code=2).stderr
    (begun.bin / "scontrol").unlink()
    begun.say("sbatch.code", "1")
    error = begun.requeue(75, changes={"PATH": str(begun.bin) + ":/usr/local/none"}).stderr
    assert "there is no scontrol on the PATH" in error and "To continue the run: sbatch" in error


def test_srun_without_pmix(cluster):
    cluster.submit(train=["--run-dir", "run"])
    cluster.say("mpi", "MPI plugin types are...\n\tnone\n\tpmi2\n")
    error = cluster.muster("requeue", "run", "--begin", code=2, changes=cluster.job).stderr
    assert "cannot start MPI programs by --mpi=pmix" in error and "pmi2" in error
    assert cluster.rows("ended")[0]["decision"] == "stopped"
    # As Slurm 20.11 says it, on standard error; and several versions.
    for said in ("srun: MPI types are...\nsrun: pmix\n", "specific pmix plugin versions available: pmix_v3,pmix\n"):
        cluster.say("mpi", "")
        cluster.say("mpi.errors", said)
        cluster.muster("requeue", "run", "--begin", changes=cluster.job)
    assert "is not a run directory" in cluster.muster("requeue", "absent", "--begin", code=2).stderr


class BatchJob:
    """The real script under bash."""

    def __init__(self, cluster, srun):
        cluster.say("srun.sh", srun)
        cluster.submit(train=["--run-dir", "run"])
        self.cluster = cluster
        self.process = subprocess.Popen(["bash", str(cluster.run / "job.sbatch")], env=mp.environment(cluster.environment(cluster.job)), cwd="/",
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def wait_for(self, name):
        end = time.monotonic() + mp.SECONDS
        while not (self.cluster.bin / name).exists():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.02)

    def finish(self, code):
        out = self.process.communicate(timeout=mp.SECONDS)[0]
        assert self.process.returncode == code, out
        return out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
# What is decided is tested above; here that the shell passes codes on: of each decision one, in the full run more.
CODES = [(0, 0, "done"), (137, 0, "requeued"), (78, 78, "stopped")] + ([(75, 0, "requeued"), (76, 0, "requeued"), (2, 2, "stopped")] if FULL else [])


@pytest.mark.parametrize("code,expected,decision", CODES)
def test_the_script_passes_srun_s_code_on(code, expected, decision, cluster):
    with BatchJob(cluster, f"exit {code}") as job:
        job.finish(expected)
    assert [row["decision"] for row in cluster.rows("ended")] == [decision]
    assert cluster.rows("ended")[0]["exit_code"] == code


def test_the_script_trains(cluster):
    with BatchJob(cluster, 'while [ "${1#--}" != "$1" ]; do shift; done; exec env -u SLURM_JOB_ID -u SLURM_NTASKS "$@"') as job:
        assert "the run is finished" in job.finish(0)
    assert mp.result(cluster.run)["last"]["step"] == 4


@pytest.mark.parametrize("sign", ["TERM", "USR1", "USR2", "INT"] if FULL else ["TERM", "USR1"])  # one handler has all (test_submit.py: the script)
def test_a_stop_that_only_the_shell_is_told(sign, cluster):
    srun = 'trap "sleep 0.3; exit 75" USR2; touch "$FAKES/ready"; while :; do sleep 0.05; done'
    with BatchJob(cluster, srun) as job:
        job.wait_for("ready")
        job.process.send_signal(getattr(signal, "SIG" + sign))
        assert "stopped and saved" in job.finish(0)
    assert cluster.rows("ended")[0]["exit_code"] == 75  # it has waited for srun
    assert cluster.calls("scontrol")[-1] == "scontrol requeue 41"


def test_a_script_without_pmix_starts_nothing(cluster):
    cluster.say("mpi", "none\n")
    with BatchJob(cluster, "exit 0") as job:
        assert job.finish(2).count("muster: ") == 1
    assert cluster.calls("srun") == []
