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

TEXT = mp.SMALL_LATE_FUSION + mp.REGRESSION + "training { max_steps: 2 threads: 1 }\n"
FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
CORES = len(os.sched_getaffinity(0))
HERE = ["--oversubscribe"]
NO_LEAVE = {"OMPI_ALLOW_RUN_AS_ROOT": None, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": None}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is warned of running mpirun as root")


def ended(ranks, code, hosts="1 host"):
    """The last line of a job."""
    return rf"^muster: {ranks} rank{'s' * (ranks > 1)} on {hosts} ended with exit code {code} after \d+ s$"


@pytest.fixture
def config(tmp_path):
    return mp.write_config(tmp_path / "experiment.txtpb", TEXT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run directory, what was said) of two ranks. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    config = mp.write_config(folder / "experiment.txtpb", TEXT)
    return folder / "run", mp.muster("launch", "-n", 2, *HERE, "train", config, "--run-dir", folder / "run", "--set", "seed=7")


def test_launch_trains_on_ranks(trained):
    run, result = trained
    assert mp.result(run)["world_size"] == 2 and mp.result(run)["seed"] == 7
    assert result.stdout.count("run directory: ") == 1 and "mpirun -n 2" in result.stderr
    ranks = mp.read_json(run / "environment.json")["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1] and len({rank["process"] for rank in ranks}) == 2


def test_launch_evaluates_on_ranks(trained):
    """With the word that root needs, and only then."""
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    evaluated = mp.muster("launch", "-n", 2, *HERE, *as_root, "evaluate", trained[0], "--json", changes=NO_LEAVE)
    assert evaluated.stdout.count('"metrics"') == 1


def test_dry_run_prints_the_command(config, tmp_path):
    words = ["train", config, "--run-dir", tmp_path / "it's mine"]
    line = mp.muster("launch", "-n", 3, "--oversubscribe", "--allow-run-as-root", "--threads", 2, "--dry-run", *words).stdout
    assert shlex.split(line) == ["env", "MUSTER_BIND=numa", "OMP_NUM_THREADS=2", shutil.which("mpirun"), "-n", "3", "--use-hwthread-cpus", "--bind-to", "none",
                                 "--tag-output", "--oversubscribe", "--allow-run-as-root", os.path.realpath(mp.built("muster")), *map(str, words)]
    assert list(tmp_path.iterdir()) == [config]


def test_more_ranks_than_cores_needs_a_word(config):
    error = mp.muster("launch", "-n", CORES + 1, "train", config, code=2).stderr
    assert f"{CORES + 1} ranks on {CORES} core" in error and f"muster launch -n {CORES + 1} --oversubscribe train" in error


@as_root
def test_root_needs_a_word(config):
    error = mp.muster("launch", "-n", 1, "train", config, changes=NO_LEAVE, code=2).stderr
    assert "--allow-run-as-root" in error and error.count("muster: ") == 1


def test_no_mpirun(config, tmp_path):
    error = mp.muster("launch", "-n", 1, "train", config, changes={"PATH": str(tmp_path)}, code=2).stderr
    assert "no mpirun on the PATH" in error and "openmpi-bin" in error


def test_exit_codes_pass_through(config, tmp_path):
    for code, words in ((78, ["train", tmp_path / "absent.txtpb"]), (2, ["train", config, "--run-dir", tmp_path]),
                        (65, ["train", config, "--run-dir", tmp_path / "run", "--init-from", config])):
        error = mp.muster("launch", "-n", 2, *HERE, *words, code=code).stderr
        assert len(re.findall(ended(2, code), error, re.M)) == 1 and error.count("muster: ") == 2
    assert list(tmp_path.iterdir()) == [config]


def test_only_what_ranks_can_share(config):
    for words in (["config", config], ["launch", "train", config], []):
        assert "Give train, resume, evaluate, predict, search run or study" in mp.muster("launch", "-n", 1, *words, code=2).stderr


def test_options_that_make_no_sense(config):
    """Among them the empty variable of a shell, which must not become a job on this machine."""
    for words, said in ((["--hosts", ""], "--hosts: it is empty"), (["--hostfile", ""], "--hostfile: it is empty"), (["-n", "0"], "not in range 1 to 1000000"),
                        (["--starter", "ssh"], "--backend: ssh not in {auto,mpirun,srun}"), (["--backend", "ssh"], "--backend: ssh not in {auto,mpirun,srun}"), (["--hosts", "a:1", "--hostfile", "b"], "excludes")):
        error = mp.muster("launch", *words, "train", config, code=2).stderr
        assert said in error and len(error) < 200, error


@pytest.mark.parametrize("changes,says", [({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun started 4 processes without PMIx"),
                                          ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes, but MPI sees only 1")])
def test_ranks_that_do_not_see_each_other(changes, says, config, tmp_path):
    """srun without PMIx, or the mpirun of another MPI: each process would train a model of its own."""
    error = mp.muster("train", config, "--run-dir", tmp_path / "run", changes=changes, code=2).stderr
    assert says in error and "PMIx" in error
    assert list(tmp_path.iterdir()) == [config]


def test_a_job_of_one_task_needs_no_mpi(config, tmp_path):
    mp.muster("train", config, "--run-dir", tmp_path / "run", changes={"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"})
    assert mp.result(tmp_path / "run")["world_size"] == 1


LONG = TEXT.replace("max_steps: 2", "epochs: 100000 log_every_steps: 1") + "checkpoints { every_steps: 10 }\n"


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


def check_that_ranks_are_bound(processes):
    """To cores of their own, with all of their threads."""
    if CORES < 2:
        return  # nothing to choose from
    masks = [os.sched_getaffinity(number) for number in processes]
    assert not masks[0] & masks[1] and masks[0] | masks[1] == os.sched_getaffinity(0)
    for number, mask in zip(processes, masks):
        assert all(os.sched_getaffinity(int(thread)) == mask for thread in os.listdir(f"/proc/{number}/task"))


def test_a_killed_rank_is_76(tmp_path):
    with Job(tmp_path) as job:
        job.wait_for(job.steps)
        os.kill(job.of("muster")[1], signal.SIGKILL)
        job.finish(76)
        said = re.findall(r"^muster: .*", job.text(), re.M)
        assert len(said) == 2 and re.search(r"rank [01] of 2 .* is lost: its process has died", said[0]), job.text()
        assert re.fullmatch(ended(2, 76), said[1])
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
    """Also where it may be started again. One of them shows too that ranks are really bound."""
    with Job(tmp_path, *{"TERM": ["--max-restarts", 3], "USR2": ["--bind", "core"]}.get(sign, [])) as job:
        job.wait_for(job.steps)
        if sign == "USR2":
            check_that_ranks_are_bound(job.of("muster"))
        job.launch.send_signal(getattr(signal, "SIG" + sign))
        job.finish(75)
        assert max(job.steps()) == max(row["step"] for row in mp.metrics_rows(job.run, "train"))  # saved where it stopped
        assert "muster: restart" not in job.text()


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
    assert "has nothing to continue from" in mp.muster("launch", "-n", 2, *HERE, "--max-restarts", 1, "evaluate", tmp_path, code=2).stderr
    error = mp.muster("launch", "-n", 2, *HERE, "--max-restarts", 3, "train", tmp_path / "absent.txtpb", code=78).stderr
    assert "muster: restart" not in error


def fake_mpirun(folder, script):
    """A PATH on which mpirun is a shell script."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "mpirun"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "RUN": str(folder / "run")}


def launched(config, changes, *arguments, code=0, ranks=4):
    words = [mp.built("muster"), "launch", "-n", ranks, *HERE, *arguments, "train", config, "--run-dir", changes["RUN"]]
    result = subprocess.run([str(word) for word in words], env=mp.environment(changes), stdin=subprocess.DEVNULL, capture_output=True, timeout=mp.SECONDS)
    assert result.returncode == code, result.stderr
    shown = [line for line in result.stderr.split(b"\n") if b"mpirun -n" not in line and b" ended with exit code " not in line]
    return result.stdout, b"\n".join(shown)


def test_output_of_ranks(config, tmp_path):
    """Rank 0's lines bare, others marked, standard output and error apart; the first lines wait for the run directory."""
    changes = fake_mpirun(tmp_path, r"""
        printf '[1,0]<stdout>:results\n[1,3]<stdout>:more\n[1,0]<stdout>:  of two\n[1,0]<stdout>:lines\377\000\n'
        printf 'mpirun: a word\n[1,3]<stderr>:two\n[1,3]<stderr>:lines\n[1,0]<stderr>:in pi[1,1]<stderr>:other\n[1,0]<stderr>:eces\n' >&2
        mkdir -p "$RUN/logs"; sleep 0.5; echo '{}' > "$RUN/environment.json"; sleep 0.5
        printf '[1,0]<stdout>:the end' ; printf '[1,3]<stderr>:no end' >&2
        kill -9 $$""")
    out, err = launched(config, changes, code=76)
    assert out == b"results\n[rank 3] more\n  of two\nlines\xff\x00\nthe end"
    assert err == b"mpirun: a word\n[rank 3] two\n[rank 3] lines\n[rank 1] other\nin pieces\n[rank 3] no end\n"
    logs = {path.name: path.read_bytes().split(b"\n", 1) for path in (tmp_path / "run/logs").iterdir()}
    assert {name: text.count(b"\n") for name, (_, text) in logs.items()} == {"rank-0.log": 5, "rank-1.log": 1, "rank-3.log": 4}
    assert all(header.startswith(b"==== 2") and b"mpirun -n 4" in header for header, _ in logs.values())
    assert logs["rank-3.log"][1] in (b"more\ntwo\nlines\nno end\n", b"two\nlines\nmore\nno end\n")
    # A second start adds to them; one that the run directory was not given to leaves no trace.
    first = (tmp_path / "run/logs/rank-0.log").read_bytes()
    (tmp_path / "bin/mpirun").write_text("#!/bin/sh\necho '[1,0]<stdout>:refused'; exit 2\n")
    launched(config, changes, code=2)
    assert (tmp_path / "run/logs/rank-0.log").read_bytes() == first
    (tmp_path / "bin/mpirun").write_text("#!/bin/sh\necho '[1,0]<stdout>:again'; sleep 0.1; echo '{ }' > \"$RUN/environment.json\"\n")
    launched(config, changes)
    added = (tmp_path / "run/logs/rank-0.log").read_bytes()
    assert added.startswith(first + b"==== ") and added.endswith(b"\nagain\n")


MANY = 200000 if FULL else 50000  # lines: many times what a pipe holds


def test_much_output_and_nobody_who_reads_it(config, tmp_path):
    changes = fake_mpirun(tmp_path, 'mkdir -p "$RUN/logs"; echo "{}" > "$RUN/environment.json"\n'
                          f"seq -f '[1,0]<stdout>:this is line %.0f' {MANY}; seq -f '[1,1]<stderr>:line %.0f' {MANY} >&2\n")
    out, err = launched(config, changes)
    assert out == b"".join(b"this is line %d\n" % n for n in range(1, MANY + 1))
    assert err == b"".join(b"[rank 1] line %d\n" % n for n in range(1, MANY + 1))
    log = (tmp_path / "run/logs/rank-0.log").read_bytes()
    assert log.split(b"\n", 1)[1] == out
    shutil.rmtree(tmp_path / "run")
    words = [mp.built("muster"), "launch", "-n", "2", *HERE, "train", str(config), "--run-dir", changes["RUN"]]
    with subprocess.Popen(words, env=mp.environment(changes), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as launch:
        launch.stdout.close()
        assert launch.wait(mp.SECONDS) == 0
    assert (tmp_path / "run/logs/rank-0.log").read_bytes().split(b"\n", 1)[1] == out


def test_real_output_goes_into_the_logs(trained):
    run, result = trained
    header, _, log = (run / "logs/rank-0.log").read_text().partition("\n")
    assert re.match(r"==== \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ .*mpirun -n 2 .* train ", header)
    shown = [line for line in result.stderr.splitlines()[1:] if not re.match(ended(2, 0), line)]
    assert sorted(log.splitlines()) == sorted(result.stdout.splitlines() + shown)
    assert re.search(ended(2, 0), result.stderr, re.M)
    table = re.findall(r"^(\d) +(\S+) +cpu +(\S+) +(\d+)$", result.stderr, re.M)
    ranks = mp.read_json(run / "environment.json")["ranks"]
    assert table == [(str(rank["rank"]), rank["host"], rank["cores"], str(rank["threads"])) for rank in ranks]


TWO_SOCKETS = {"HWLOC_SYNTHETIC": "package:2 numa:1 core:2 pu:1", "OMP_NUM_THREADS": None}


BOUND = {"numa": ["0-1", "0-1", "2-3", "2-3"], "core": list("0123"), "none": ["0-3"] * 4}
# `muster launch` passes the way on in MUSTER_BIND (the next test), so every day each way once, by one of the two.
STARTED = [(starter, bind) for starter in ("launch", "mpirun") for bind in BOUND] if FULL else [("mpirun", "numa"), ("launch", "core"), ("mpirun", "none")]


def test_ways_to_bind_are_passed_on(config):
    for bind in BOUND:
        line = mp.muster("launch", "-n", 4, "--bind", bind, "--dry-run", "train", config, changes=TWO_SOCKETS).stdout
        assert f"MUSTER_BIND={bind} " in line and "--bind-to none" in line


@pytest.mark.parametrize("starter,bind", STARTED)
def test_cores_of_ranks_on_a_made_up_machine(starter, bind, config, tmp_path):
    words = ["train", config, "--run-dir", tmp_path / "run", "--set", "training.threads=0"]
    if starter == "launch":
        mp.muster("launch", "-n", 4, "--bind", bind, *words, changes=TWO_SOCKETS)
    else:
        mp.muster(*words, ranks=4, changes={**TWO_SOCKETS, "MUSTER_BIND": bind, "OMPI_MCA_hwloc_base_binding_policy": "none"})
    ranks = mp.read_json(tmp_path / "run/environment.json")["ranks"]
    assert [rank["cores"] for rank in ranks] == BOUND[bind]
    assert [rank["threads"] for rank in ranks] == [1] * 4


def test_threads_are_the_share_of_the_cores(config, tmp_path):
    for name, words, changes, threads in (("share", [], TWO_SOCKETS, 2), ("asked", ["--threads", 3], {**TWO_SOCKETS, "OMP_NUM_THREADS": "1"}, 3), ("own", [], {**TWO_SOCKETS, "OMP_NUM_THREADS": "1"}, 1)):
        train = ["train", config, "--run-dir", tmp_path / name, "--set", "training.threads=0", "--set", "training.share_cores=true"]
        line = mp.muster("launch", "-n", 2, *words, "--dry-run", *train, changes=changes).stdout
        assert f"OMP_NUM_THREADS={threads} " in line if name != "own" else "OMP_NUM_THREADS" not in line
        if name != "asked" and not FULL:
            continue  # one shows that ranks follow what the command says
        mp.muster("launch", "-n", 2, *words, *train, changes={"OMP_WAIT_POLICY": "passive", **changes})
        assert [rank["threads"] for rank in mp.read_json(tmp_path / name / "environment.json")["ranks"]] == [threads] * 2
    mp.muster("train", config, "--run-dir", tmp_path / "alone", "--set", "training.threads=0", changes={"OMP_NUM_THREADS": None})
    assert mp.read_json(tmp_path / "alone/environment.json")["ranks"][0]["threads"] == 1
    mp.muster("train", config, "--run-dir", tmp_path / "exact", "--set", "training.threads=0", "--set", "training.reproducible=true", changes={"OMP_NUM_THREADS": "2"})
    assert mp.read_json(tmp_path / "exact/environment.json")["ranks"][0]["threads"] == 1


def test_no_ranks_given(config):
    line = mp.muster("launch", "--dry-run", "train", config, changes=TWO_SOCKETS).stdout
    assert "OMP_NUM_THREADS=2 " in line and " -n 2 " in line


def test_a_wrong_binding_is_said_once(config, tmp_path):
    error = mp.muster("train", config, "--run-dir", tmp_path / "run", ranks=2, changes={"MUSTER_BIND": "socket"}, code=2).stderr
    assert '"socket" is not a way to bind ranks' in error and error.count("muster: ") == 1


def test_a_shell_within_a_step_starts_a_job_of_one(config, tmp_path):
    """`srun -n 4 --pty bash`, and then muster by hand."""
    changes = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000", "SLURM_TASK_PID": "1"}
    mp.muster("train", config, "--run-dir", tmp_path / "run", changes=changes)
    assert mp.result(tmp_path / "run")["world_size"] == 1


def in_own_mounts(line, *words):
    """Runs muster where `line` (bash, as root) has changed what is mounted, without changing it for others."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "-u", "true"], capture_output=True).returncode:
        pytest.skip("SKIPPED: needs root and namespaces of mounts")
    return mp.execute(["unshare", "-m", "-u", "bash", "-c", f'{line}; exec "$@"', "bash", mp.built("muster"), *words])


LAUNCH = ["launch", "--allow-run-as-root", "--oversubscribe", "-n", 2]


def test_a_small_shared_memory_is_left_alone(tmp_path):
    config = mp.write_config(tmp_path / "e.txtpb", TEXT)
    job = in_own_mounts("mount -t tmpfs -o size=4m tmpfs /dev/shm", *LAUNCH, "train", config, "--run-dir", tmp_path / "run")
    assert job.returncode == 0, job
    job = in_own_mounts("mount -t tmpfs -o size=4m tmpfs /dev/shm; mount -t tmpfs -o size=4m tmpfs /tmp; unset TMPDIR", *LAUNCH, "train", "nowhere.txtpb")
    assert job.returncode == 74 and "/dev/shm has 4.2 MB, /tmp has 4.2 MB" in job.stderr and "TMPDIR" in job.stderr, job


def test_a_job_of_this_machine_needs_no_ssh_no_home_and_no_short_name(tmp_path):
    config = mp.write_config(tmp_path / "e.txtpb", TEXT)
    job = in_own_mounts("hostname " + 64 * "x", *LAUNCH, "train", config)
    assert job.returncode == 2 and "name has 64 characters" in job.stderr and "core dumped" not in job.stderr, job
    job = in_own_mounts(f"hostname {55 * 'x'}; unset HOME; mkdir {tmp_path}/bin; ln -s $(command -v mpirun) $(command -v orted) {tmp_path}/bin; "
                          f"export PATH={tmp_path}/bin", *LAUNCH, "train", config, "--run-dir", tmp_path / "run")
    assert job.returncode == 0, job


def test_ranks_that_never_connect(tmp_path):
    fake = tmp_path / "mpirun"
    fake.write_text(f"#!/bin/sh\ntrap '' USR2\n: >{tmp_path}/started\nwhile :; do sleep 1; done\n")
    fake.chmod(0o755)
    changes = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MUSTER_START_LIMIT": "2"}
    job = mp.muster(*LAUNCH, "train", mp.write_config(tmp_path / "e.txtpb", TEXT), cwd=tmp_path, changes=changes, code=74)
    assert "MPI did not connect 2 ranks within 2 s" in job.stderr and "muster doctor" in job.stderr
    (tmp_path / "started").unlink()
    process = subprocess.Popen([mp.built("muster"), *map(str, LAUNCH), "train", "e.txtpb"], cwd=tmp_path, env=mp.environment({**changes, "MUSTER_START_LIMIT": "100"}),
                               stderr=subprocess.PIPE, text=True)
    assert "mpirun" in process.stderr.readline()
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert "nothing was trained or saved" in process.communicate(timeout=60)[1] and process.returncode == 143
