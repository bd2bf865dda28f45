"""`muster launch`, and ranks that were started wrongly."""
import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

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
        assert "Give train, resume, evaluate or predict" in mp.muster("launch", "-n", 1, *words, code=2).stderr


@pytest.mark.parametrize("changes,starter", [({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun"), ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun")])
def test_ranks_that_do_not_see_each_other(changes, starter, config, tmp_path):
    """srun without PMIx, or the mpirun of another MPI: each process would train a model of its own."""
    error = mp.muster("train", config, "--run-dir", tmp_path / "run", changes=changes, code=2).stderr
    assert f"{starter} started 4 processes, but MPI sees only 1" in error and "--mpi=pmix" in error
    assert list(tmp_path.iterdir()) == [config]


def test_a_job_of_one_task_needs_no_mpi(config, tmp_path):
    mp.muster("train", config, "--run-dir", tmp_path / "run", changes={"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"})
    assert mp.result(tmp_path / "run")["world_size"] == 1


LONG = TEXT.replace("max_steps: 2", "epochs: 100000 log_every_steps: 1") + "checkpoints { every_steps: 5 }\n"


class Job:
    """A running `muster launch`, and what it has started."""

    def __init__(self, folder, *arguments, text=LONG, ranks=2):
        self.run = folder / "run"
        self.folder = None  # of Open MPI's files
        config = mp.write_config(folder / "long.txtpb", text)
        words = [mp.built("muster"), "launch", "-n", ranks, *HERE, *arguments, "train", config, "--run-dir", self.run]
        self.errors = open(folder / "errors.txt", "w+")
        self.launch = subprocess.Popen([str(word) for word in words], env=mp.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=self.errors, start_new_session=True)

    def processes(self):
        """{process number: command line} of all that names the run directory, the launcher excepted."""
        found = {}
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = Path(path).read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.run) in words and int(path.split("/")[2]) != self.launch.pid:
                found[int(path.split("/")[2])] = words
        return found

    def of(self, program):
        return sorted(number for number, words in self.processes().items() if os.path.basename(words[0]) == program)

    def steps(self):
        return sorted(int(path.name[5:]) for path in (self.run / "checkpoints").glob("step-*"))

    def wait_for(self, condition):
        end = time.monotonic() + mp.SECONDS
        while not condition():
            assert time.monotonic() < end and self.launch.poll() is None, self.text()
            time.sleep(0.05)
        if self.folder is None:
            environment = Path(f"/proc/{self.of('mpirun')[0]}/environ").read_bytes().decode()
            self.folder = Path(re.search("OMPI_MCA_btl_vader_backing_directory=([^\0]*)", environment)[1])

    def text(self):
        return Path(self.errors.name).read_text()

    def finish(self, code):
        assert self.launch.wait(mp.SECONDS) == code, self.text()
        assert self.processes() == {} and not self.folder.exists()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.launch.kill()
        self.launch.wait()
        for number in self.processes():
            os.kill(number, signal.SIGKILL)
        self.errors.close()


def test_a_killed_rank_is_76(tmp_path):
    with Job(tmp_path) as job:
        job.wait_for(job.steps)
        os.kill(job.of("muster")[1], signal.SIGKILL)
        job.finish(76)
        said = re.findall(r"^muster: .*", job.text(), re.M)
        assert len(said) == 2 and re.search(r"rank [01] of 2 .* is lost: its process has died", said[0]), job.text()
        assert said[1] == "muster: the job ended with exit code 76"
        assert len(list((job.run / "logs").glob("flight-record-rank-*.json"))) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_end_with_mpirun(ranks, tmp_path):
    with Job(tmp_path, ranks=ranks) as job:
        job.wait_for(job.steps)
        os.kill(job.of("mpirun")[0], signal.SIGKILL)
        job.finish(76)


def test_nothing_outlives_a_killed_launcher(config, tmp_path):
    with Job(tmp_path) as job:
        job.wait_for(job.steps)
        assert list(job.folder.glob("vader_segment*"))
        job.launch.kill()
        job.launch.wait()
        end = time.monotonic() + 20
        while job.processes():
            assert time.monotonic() < end
            time.sleep(0.1)
        mp.muster("launch", "-n", 2, *HERE, "train", config, "--run-dir", tmp_path / "next")
        assert not job.folder.exists()


@pytest.mark.parametrize("sign", ["TERM", "INT", "USR1", "USR2", "HUP"])
def test_a_stop_reaches_all_ranks(sign, tmp_path):
    with Job(tmp_path) as job:
        job.wait_for(job.steps)
        job.launch.send_signal(getattr(signal, "SIG" + sign))
        job.finish(75)
        assert max(job.steps()) == max(row["step"] for row in mp.metrics_rows(job.run, "train"))  # saved where it stopped


def test_a_second_interrupt_kills(tmp_path):
    with Job(tmp_path) as job:
        job.wait_for(job.steps)
        stopped = job.of("muster")[0]
        os.kill(stopped, signal.SIGSTOP)  # the ranks cannot agree to stop
        job.launch.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert job.launch.poll() is None
        job.launch.send_signal(signal.SIGINT)
        assert job.launch.wait(20) not in (0, 75)
        assert job.processes() == {}


def test_restarts_go_on_until_there_is_no_progress(tmp_path):
    with Job(tmp_path, "--max-restarts", 5) as job:
        for kill in range(2):
            before = max(job.steps(), default=0)
            job.wait_for(lambda: max(job.steps(), default=0) > before and len(job.of("muster")) == 2)
            os.kill(job.of("muster")[kill], signal.SIGKILL)
            job.wait_for(lambda: job.text().count("muster: restart ") == kill + 1)
        restarts = re.findall(r"^muster: restart (\d) of 5: exit code 76, newest checkpoint: step (\d+)$", job.text(), re.M)
        assert [number for number, _ in restarts] == ["1", "2"] and int(restarts[1][1]) > int(restarts[0][1])
        assert job.text().count("--resume auto") == 2
        job.wait_for(lambda: len(job.of("muster")) == 2)
        os.kill(job.of("muster")[0], signal.SIGKILL)  # while it starts: no new checkpoint
        job.finish(76)
        assert f"no progress between two failures (newest checkpoint: step {restarts[1][1]}), so it is not started again" in job.text()
        rows = [row["step"] for row in mp.metrics_rows(job.run, "train")]
        assert rows == sorted(set(rows))


def test_no_restart_where_it_cannot_help(config, tmp_path):
    assert "has nothing to go on with" in mp.muster("launch", "-n", 2, *HERE, "--max-restarts", 1, "evaluate", tmp_path, code=2).stderr
    error = mp.muster("launch", "-n", 2, *HERE, "--max-restarts", 3, "train", tmp_path / "absent.txtpb", code=78).stderr
    assert "muster: restart" not in error
    with Job(tmp_path, "--max-restarts", 3) as job:
        job.wait_for(job.steps)
        job.launch.send_signal(signal.SIGTERM)
        job.finish(75)
        assert "muster: restart" not in job.text()
