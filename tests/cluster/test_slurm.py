"""Jobs on a real Slurm (local_slurm.py): any number of nodes, any interruption, the same model. They run at once, on nodes of their own where nodes are
lost or jobs are preempted."""
import json
import time

import pytest

import local_slurm
from at_once import at_once, started  # noqa: F401
from faulty_disk import shim
from local_slurm import mp

STEPS = 60
TEXT = (mp.SMALL_FOAL_NET + mp.CLASSIFICATION +
        f"training {{ epochs: 100000 max_steps: {STEPS} batch_size: 16 reproducible: true log_every_steps: 20 }}\n"
        "evaluation { every_epochs: 1000 every_steps: 30 }\ncheckpoints { every_steps: 5 }\n")
AT_ONCE = 8
PARTITIONS = {"pair": "n1,n2", "doomed": "n3,n4", "low-cancel": "n5,n6", "low-requeue": "n7,n8"}


@pytest.fixture(scope="module")
def slurm():
    for cluster in local_slurm.cluster("--nodes", 8, "--cpus", 32):
        for name, nodes in PARTITIONS.items():
            verb, more = ("update", []) if name.startswith("low-") else ("create", ["PriorityTier=10", "PreemptMode=OFF"])
            cluster.run("scontrol", verb, f"PartitionName={name}", f"Nodes={nodes}", *more)
        cluster.run("scontrol", "update", "PartitionName=pair", "Default=YES")
        yield cluster


@pytest.fixture(scope="module")
def experiment(slurm):
    return mp.write_config(slurm.base / "long.txtpb", TEXT)


@pytest.fixture(scope="module")
def reference(slurm, experiment):
    """The weights that one undisturbed rank trains, without Slurm."""
    return mp.bits(mp.train(slurm.base, TEXT, "reference"))


def slow(run):
    """For a run to which something happens: its saves take most of the time, so that there is time for it, and other jobs have the processors."""
    return {"changes": shim(run / "checkpoints", "slow", seconds=0.1)}


SYNCHRONOUS = ("--set", "checkpoints.asynchronous=false")


def hosts(run):
    """Hosts of the ranks of each job that worked on a run."""
    environment = mp.read_json(run / "environment.json")
    return [[rank["host"] for rank in job["ranks"]] for job in [environment, *environment.get("resumes", [])]]


def saved(run):
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)


def wait_until_saved(slurm, run, step=1, seconds=240):
    end = time.monotonic() + seconds
    while saved(run) < step:
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)


def job_of(run):
    return mp.read_json(run / "submission.json")["job"]


def starts(run):
    """How often Slurm started the run's job."""
    return len(hosts(run))


@at_once
def test_time_limits_are_no_limit(slurm):
    """A minute is the least that Slurm counts; told to warn 45 s before, it does so 15 to 45 s after the start."""
    text = TEXT.replace(f"max_steps: {STEPS}", "max_steps: 100000").replace("every_steps: 30", "every_steps: 1000").replace("every_steps: 5", "every_steps: 1")
    run = slurm.base / "limited"
    config = mp.write_config(slurm.base / "longer.txtpb", text)
    job = slurm.submit("--nodes", 2, "--time", 1, "--grace", 45, "train", config, "--run-dir", run, *SYNCHRONOUS, **slow(run))
    slurm.wait(job, lambda state: int(state["Restarts"]) >= 1 and saved(run) > 0 and starts(run) >= 2)
    assert "DUE TO TIME LIMIT" not in slurm.logs()
    wait_until_saved(slurm, run, saved(run) + 2)
    slurm.run("scancel", job)
    slurm.wait_for_state(job, "CANCELLED")
    end = saved(run) + 7
    mp.muster("resume", run, "--max-steps", end)
    alone = mp.train(slurm.base, text.replace("max_steps: 100000", f"max_steps: {end}"), "alone")
    assert starts(run) >= 3 and mp.bits(run) == mp.bits(alone)


@at_once
def test_a_dead_node_is_named_and_the_other_goes_on(slurm, experiment, reference):
    run = slurm.base / "dead-node"
    job = slurm.submit("--nodes", "1-2", "--ranks-per-node", 2, "--time", 10, "--partition", "doomed", "train", experiment, "--run-dir", run,
                       *SYNCHRONOUS, **slow(run))
    wait_until_saved(slurm, run)
    slurm.local_slurm("kill", "n4")
    try:
        slurm.wait_for_state(job, "COMPLETED")
        text = "".join(path.read_text(errors="replace") for path in (run / "logs").glob("slurm-*.out"))
        assert "(host n4) is lost" in text
        assert hosts(run)[0] == ["n3", "n3", "n4", "n4"] and hosts(run)[-1] == ["n3", "n3"]
        assert mp.bits(run) == reference
    finally:
        slurm.local_slurm("start", "n4")


@pytest.mark.parametrize("partition", ["low-cancel", "low-requeue"])
@at_once
def test_preempted_jobs_come_back(partition, slurm, experiment, reference):
    """Slurm ends the one at once and for good, and queues the other again by itself."""
    run = slurm.base / partition
    job = slurm.submit("--nodes", 2, "--time", 10, "--partition", partition, "train", experiment, "--run-dir", run, *SYNCHRONOUS, **slow(run))
    wait_until_saved(slurm, run)
    other = slurm.run("sbatch", "--parsable", "-p", "high", "-w", PARTITIONS[partition], "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2").stdout.strip()
    slurm.wait_for_state(other, "COMPLETED")
    last = slurm.wait(job, lambda _: job_of(run) != job or saved(run) == STEPS) and job_of(run)
    slurm.wait_for_state(last, "COMPLETED")
    assert starts(run) == 2
    assert mp.bits(run) == reference


@at_once
def test_a_stop_requeues_and_the_run_goes_on(slurm, experiment, reference):
    """What Slurm sends before a time limit, or at a preemption."""
    run = slurm.base / "stopped"
    job = slurm.submit("--nodes", 2, "--ranks-per-node", 2, "--time", 10, "train", experiment, "--run-dir", run, *SYNCHRONOUS, **slow(run))
    wait_until_saved(slurm, run)
    slurm.run("scancel", "--signal=USR1", job)
    ended = slurm.wait_for_state(job, "COMPLETED")
    assert ended["Restarts"] == "1" and starts(run) == 2
    assert mp.bits(run) == reference


@at_once
def test_array_jobs_requeue_the_right_task(slurm, experiment):
    job = slurm.submit("--array", "0-1", "--nodes", 1, "--ranks-per-node", 2, "--time", 10, "train", experiment, "--set", "seed={task}",
                       *SYNCHRONOUS, "--run-dir", slurm.base / "array-{task}", **slow(slurm.base / "array-1"))
    runs = [slurm.base / f"array-{task}" for task in (0, 1)]
    wait_until_saved(slurm, runs[1])
    slurm.run("scancel", "--signal=USR1", f"{job}_1")
    for task in (0, 1):
        slurm.wait_for_state(f"{job}_{task}", "COMPLETED")
    assert [starts(run) for run in runs] == [1, 2]
    assert [mp.result(run)["seed"] for run in runs] == [0, 1] and mp.bits(runs[0]) != mp.bits(runs[1])


@at_once
def test_a_cancelled_job_does_not_come_back(slurm, experiment):
    run = slurm.base / "cancelled"
    job = slurm.submit("--nodes", 2, "--time", 10, "train", experiment, "--run-dir", run, *SYNCHRONOUS, **slow(run))
    wait_until_saved(slurm, run)
    slurm.run("scancel", job)
    slurm.wait_for_state(job, "CANCELLED")
    time.sleep(8)  # a requeued job would be back
    assert slurm.job(job)["JobState"] == "CANCELLED" and slurm.run("squeue", "-h", "-j", job).stdout == ""


@at_once
def test_status_needs_no_scheduler(slurm, experiment):
    run = slurm.base / "watched"
    job = slurm.submit("--nodes", 2, "--time", 10, "train", experiment, "--run-dir", run, *SYNCHRONOUS, **slow(run))
    wait_until_saved(slurm, run)
    seen = json.loads(mp.muster("status", run, "--json", changes={"SLURM_CONF": None}).stdout)
    assert seen["state"] == "running" and job in str(seen["job"]) and seen["total_steps"] == STEPS
    slurm.wait_for_state(job, "COMPLETED")
    assert json.loads(mp.muster("status", run, "--json").stdout)["state"] == "finished"


@at_once
def test_two_nodes_of_two_ranks(slurm, experiment, reference):
    run = slurm.base / "two-nodes"
    job = slurm.submit("--nodes", 2, "--ranks-per-node", 2, "--time", 10, "train", experiment, "--run-dir", run)
    slurm.wait_for_state(job, "COMPLETED")
    assert hosts(run) == [["n1", "n1", "n2", "n2"]] and mp.result(run)["world_size"] == 4
    assert mp.bits(run) == reference
    assert "COMPLETED" in slurm.run("sacct", "-c", "-j", job).stdout


@at_once
def test_launch_in_an_allocation_uses_srun(slurm, experiment, reference):
    run = slurm.base / "allocated"
    result = slurm.run("salloc", "-N2", "--ntasks-per-node=2", mp.built("muster"), "launch", "train", experiment, "--run-dir", run)
    assert "srun" in result.stderr and hosts(run) == [["n1", "n1", "n2", "n2"]]
    assert mp.bits(run) == reference


@at_once
def test_launch_in_an_interactive_step(slurm, experiment, reference):
    """A shell that srun gave: its own step holds the allocation, and its variables are not those of the ranks."""
    run = slurm.base / "interactive"
    slurm.run("srun", "--mpi=pmix", "-w", "n1", "-N1", "-n1", "-c4", mp.built("muster"), "launch", "-n", 2, "train", experiment, "--run-dir", run)
    assert hosts(run) == [["n1", "n1"]] and mp.bits(run) == reference


@at_once
def test_srun_without_pmix_is_refused(slurm, experiment):
    run = slurm.base / "no-pmix"
    result = slurm.run("srun", "-N2", "--ntasks-per-node=2", "--mpi=none", mp.built("muster"), "train", experiment, "--run-dir", run, code=2)
    assert result.stderr.count("muster: ") == 1 and "srun started 4 processes without PMIx" in result.stderr and "--mpi=pmix" in result.stderr
    assert not run.exists()


@at_once
def test_more_ranks_than_gpus_is_refused(slurm, experiment):
    run = slurm.base / "too-many"
    result = slurm.run("srun", "--mpi=pmix", "-N1", "-n4", "--gres=gpu:2", mp.built("muster"), "train", experiment, "--run-dir", run, code=2)
    assert result.stderr.count("muster: ") == 1 and "4 ranks" in result.stderr and "2 GPUs" in result.stderr
    assert not run.exists()
