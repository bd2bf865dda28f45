"""`muster launch --hosts`: several hosts by mpirun. Here they are namespaces of this machine, with names and shared memory of their own,
which mpirun enters by a script in the place of ssh."""
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import muster_program as mp

AGENT = """#!/bin/sh
host=$1; shift
exec unshare -m -u sh -c 'hostname "$0" && mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm && exec sh -c "$1"' "$host" "$*"
"""
can_unshare = subprocess.run(["unshare", "-m", "-u", "sh", "-c", "hostname x && mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm"], capture_output=True).returncode == 0
with_hosts = pytest.mark.skipif(not can_unshare, reason="unshare -m -u is not allowed here: no hosts can be made up")
TEXT = mp.SMALL_LATE_FUSION + mp.REGRESSION + "training { epochs: 3 batch_size: 16 reproducible: true }\n"
LONG = TEXT.replace("epochs: 3", "epochs: 100000 log_every_steps: 1") + "checkpoints { every_steps: 10 }\n"


@pytest.fixture
def agent(tmp_path):
    path = tmp_path / "agent"
    path.write_text(AGENT)
    path.chmod(0o755)
    return {"OMPI_MCA_plm_rsh_agent": str(path)}


@with_hosts
def test_trains_the_same_model_on_two_hosts(agent, tmp_path):
    config = mp.write_config(tmp_path / "experiment.txtpb", TEXT)
    one = mp.train(tmp_path, TEXT, "one")
    # CUDA_VISIBLE_DEVICES and thread counts of other hosts are their own; what ranks must agree on is forwarded.
    result = mp.muster("launch", "--hosts", "nodea:2,nodeb:2", "--bind", "core", "train", config, "--run-dir", tmp_path / "run", changes=agent)
    ranks = mp.read_json(tmp_path / "run/environment.json")["ranks"]
    assert [(rank["host"], rank["local_rank"]) for rank in ranks] == [("nodea", 0), ("nodea", 1), ("nodeb", 0), ("nodeb", 1)]
    assert mp.result(tmp_path / "run")["world_size"] == 4
    fingerprints = {mp.muster("checkpoints", "fingerprint", run).stdout for run in (one, tmp_path / "run")}
    assert len(fingerprints) == 1
    assert re.search(r"^muster: 4 ranks on 2 hosts ended with exit code 0 after ", result.stderr, re.M)
    assert re.search(r"^2 +nodeb +cpu +", result.stderr, re.M), "the table names the hosts"


class Job:
    """A running job on two hosts."""

    def __init__(self, folder, changes):
        self.run = folder / "run"
        config = mp.write_config(folder / "long.txtpb", LONG)
        self.errors = open(folder / "errors.txt", "w+")
        words = [mp.built("muster"), "launch", "--hosts", "nodea:1,nodeb:1", "train", config, "--run-dir", self.run]
        self.launch = subprocess.Popen([str(word) for word in words], env=mp.environment(changes), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.errors,
                                       start_new_session=True)

    def __enter__(self):
        end = time.monotonic() + mp.SECONDS
        while not list((self.run / "checkpoints").glob("step-*")):
            assert time.monotonic() < end and self.launch.poll() is None, self.text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        if self.launch.poll() is None:
            for rank in mp.read_json(self.run / "environment.json")["ranks"] if self.run.exists() else []:
                self.kill(rank)
            self.launch.kill()
            self.launch.wait()
        self.errors.close()

    @staticmethod
    def kill(rank):
        try:
            os.kill(rank["process"], signal.SIGKILL)
        except ProcessLookupError:
            pass

    def text(self):
        return Path(self.errors.name).read_text()

    def finish(self, code):
        assert self.launch.wait(mp.SECONDS) == code, self.text()
        assert f"muster: 2 ranks on 2 hosts ended with exit code {code} after " in self.text()
        for rank in mp.read_json(self.run / "environment.json")["ranks"]:
            assert not Path(f"/proc/{rank['process']}").exists()


@with_hosts
def test_a_stop_reaches_both_hosts(agent, tmp_path):
    with Job(tmp_path, agent) as job:
        job.launch.send_signal(signal.SIGTERM)
        job.finish(75)
        newest = max(int(path.name[5:]) for path in (job.run / "checkpoints").glob("step-*"))
        assert newest == max(row["step"] for row in mp.metrics_rows(job.run, "train"))


@with_hosts
def test_a_rank_killed_on_the_other_host_is_76(agent, tmp_path):
    with Job(tmp_path, agent) as job:
        victim = mp.read_json(job.run / "environment.json")["ranks"][1]
        assert victim["host"] == "nodeb"
        job.kill(victim)
        job.finish(76)
        assert re.search(r"^muster: rank 1 of 2 \(host nodeb\) is lost", job.text(), re.M), job.text()
        assert "(host nodeb) is lost" in (job.run / "logs/rank-0.log").read_text()


@with_hosts
def test_a_host_that_goes_away_is_76(agent, tmp_path):
    """mpirun's daemon and its rank die together: no mistake in the command, and worth a restart."""
    with Job(tmp_path, agent) as job:
        victim = mp.read_json(job.run / "environment.json")["ranks"][1]
        daemon = int(Path(f"/proc/{victim['process']}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(daemon, signal.SIGKILL)
        job.kill(victim)
        job.finish(76)
        assert "lost communication with a remote daemon" in job.text() and "could not start" not in job.text()


def test_a_host_that_cannot_be_reached(tmp_path):
    config = mp.write_config(tmp_path / "experiment.txtpb", TEXT)
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\necho ssh: connect to host $1 port 22: No route to host >&2\nexit 255\n")
    agent.chmod(0o755)
    error = mp.muster("launch", "--hosts", "nodea:1,nodeb:1", "train", config, "--run-dir", tmp_path / "run", changes={"OMPI_MCA_plm_rsh_agent": str(agent)}, code=2).stderr
    assert "No route to host" in error and "muster: mpirun could not start its daemon on another host" in error and "ssh HOST true" in error
    assert not (tmp_path / "run").exists()


def test_hosts_that_are_wrong(tmp_path):
    config = mp.write_config(tmp_path / "experiment.txtpb", TEXT)
    hosts = tmp_path / "hosts"
    hosts.write_text("nodea slots=2\nnodeb slots=many\n")
    for words, said in ((["--hosts", "a:2,a:1"], "the host a is given twice"), (["--hostfile", hosts], f"{hosts}:2: "), (["--hostfile", tmp_path / "absent"], "missing"),
                        (["-n", "5", "--hosts", "a:2,b:2"], "muster launch -n 5 --oversubscribe train")):
        error = mp.muster("launch", *words, "train", config, code=2).stderr
        assert said in error and error.count("muster: ") == 1
    error = mp.muster("launch", "--hosts", "nodea:1,nodeb:1", "train", config, changes={"OMPI_MCA_plm_rsh_agent": str(tmp_path / "ssh")}, code=2).stderr
    assert "by ssh, which is not on the PATH" in error
