"""`muster launch`, and ranks that were started wrongly."""
import os
import shlex
import shutil

import pytest

import muster_program as mp

TEXT = mp.SMALL_MIAR + mp.REGRESSION + "training { max_steps: 2 threads: 1 }\n"
CORES = len(os.sched_getaffinity(0))
HERE = ["--oversubscribe"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is warned of running mpirun as root")


@pytest.fixture
def config(tmp_path):
    return mp.write_config(tmp_path / "experiment.txtpb", TEXT)


def test_launch_trains_on_ranks(config, tmp_path):
    result = mp.muster("launch", "-n", 2, *HERE, "train", config, "--run-dir", tmp_path / "run", "--set", "seed=7")
    assert mp.result(tmp_path / "run")["world_size"] == 2 and mp.result(tmp_path / "run")["seed"] == 7
    assert result.stdout.count("run directory: ") == 1 and "mpirun -n 2" in result.stderr
    ranks = mp.read_json(tmp_path / "run/environment.json")["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1] and len({rank["process"] for rank in ranks}) == 2
    evaluated = mp.muster("launch", "-n", 2, *HERE, "evaluate", tmp_path / "run", "--json").stdout
    assert evaluated.count('"metrics"') == 1


def test_dry_run_prints_the_command(config, tmp_path):
    words = ["train", config, "--run-dir", tmp_path / "it's mine"]
    line = mp.muster("launch", "-n", 3, "--oversubscribe", "--allow-run-as-root", "--dry-run", *words).stdout
    assert shlex.split(line) == [shutil.which("mpirun"), "-n", "3", "--use-hwthread-cpus", "--bind-to", "none", "--oversubscribe", "--allow-run-as-root",
                                 os.path.realpath(mp.built("muster")), *map(str, words)]
    assert list(tmp_path.iterdir()) == [config]


def test_more_ranks_than_cores_needs_a_word(config):
    error = mp.muster("launch", "-n", CORES + 1, "train", config, code=2).stderr
    assert f"{CORES + 1} ranks on {CORES} core" in error and f"muster launch -n {CORES + 1} --oversubscribe train" in error


@as_root
def test_root_needs_a_word(config, tmp_path):
    changes = {"OMPI_ALLOW_RUN_AS_ROOT": None, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": None}
    error = mp.muster("launch", "-n", 1, "train", config, changes=changes, code=2).stderr
    assert "--allow-run-as-root" in error and error.count("muster: ") == 1
    mp.muster("launch", "-n", 2, *HERE, "--allow-run-as-root", "train", config, "--run-dir", tmp_path / "run", changes=changes)
    assert mp.result(tmp_path / "run")["world_size"] == 2


def test_no_mpirun(config, tmp_path):
    error = mp.muster("launch", "-n", 1, "train", config, changes={"PATH": str(tmp_path)}, code=2).stderr
    assert "no mpirun on the PATH" in error and "openmpi-bin" in error


def test_exit_codes_pass_through(config, tmp_path):
    for code, words in ((78, ["train", tmp_path / "absent.txtpb"]), (2, ["train", config, "--run-dir", tmp_path]),
                        (65, ["train", config, "--run-dir", tmp_path / "run", "--init-from", config])):
        error = mp.muster("launch", "-n", 2, *HERE, *words, code=code).stderr
        ended = f"muster: the job ended with exit code {code}\n"
        assert error.count(ended) == 1 and error.replace(ended, "").count("muster: ") == 1
    assert list(tmp_path.iterdir()) == [config]


def test_only_what_ranks_can_share(config):
    for words in (["config", config], ["launch", "train", config], []):
        assert "Give train, evaluate or predict" in mp.muster("launch", "-n", 1, *words, code=2).stderr


@pytest.mark.parametrize("changes,starter", [({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun"), ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun")])
def test_ranks_that_do_not_see_each_other(changes, starter, config, tmp_path):
    """srun without PMIx, or the mpirun of another MPI: each process would train a model of its own."""
    error = mp.muster("train", config, "--run-dir", tmp_path / "run", changes=changes, code=2).stderr
    assert f"{starter} started 4 processes, but MPI sees only 1" in error and "--mpi=pmix" in error
    assert list(tmp_path.iterdir()) == [config]


def test_a_job_of_one_task_needs_no_mpi(config, tmp_path):
    mp.muster("train", config, "--run-dir", tmp_path / "run", changes={"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"})
    assert mp.result(tmp_path / "run")["world_size"] == 1
