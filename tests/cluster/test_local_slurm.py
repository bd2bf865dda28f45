"""cluster/local-slurm runs as root: another user's folder must make it run, delete or kill nothing."""
import os
import subprocess
from pathlib import Path

import local_slurm
import muster_program as mp
import pytest

NOBODY = 65534


@pytest.fixture
def folder(tmp_path):
    if reason := local_slurm.why_not():
        pytest.skip(reason)
    planted = tmp_path / "slurm"
    (planted / "pids").mkdir(parents=True)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        os.chmod(parent, 0o755)
    (planted / "slurm.conf").write_text("NodeName=../../victim Port=1\nNodeName=n1 Port=2\n")
    return planted


def run(folder, *words):
    return mp.execute([local_slurm.SCRIPT, *words], changes={"MUSTER_LOCAL_SLURM": str(folder), "SLURM_CONF": None})


def process_with_pid_file(path):
    process = subprocess.Popen(["sleep", "600"])
    start = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    path.write_text(f"{process.pid} {start}\n")
    return process


@pytest.mark.parametrize("words", [["up", "--no-default"], ["down"], ["status"], ["shell"], ["kill", "n1"], ["start", "n1"]], ids=lambda words: words[0])
@pytest.mark.parametrize("how", ["of another user", "writable", "link", "parent"])
def test_a_folder_that_others_could_have_filled_is_refused(folder, words, how):
    victim = process_with_pid_file(folder / "pids" / "n1")
    target = folder
    if how == "of another user":
        os.chown(folder, NOBODY, NOBODY)
    elif how == "writable":
        os.chmod(folder, 0o777)
    elif how == "link":
        target = folder.parent / "link"
        target.symlink_to(folder)
    else:
        os.chmod(folder.parent, 0o777)
    try:
        ended = run(target, *words)
        assert ended.returncode == 1, ended
        assert ended.stderr.startswith("local-slurm: ") and str(folder.parent) in ended.stderr, ended.stderr
        assert victim.poll() is None, "it killed a process that a planted file names"
        assert (folder / "slurm.conf").is_file(), "it removed files of another user"
    finally:
        victim.kill()
        victim.wait()


def test_names_that_leave_the_folder_and_numbers_of_other_processes_are_not_used(folder):
    """Even in a folder of root's own: a name with slashes is no node, a number with another start is another process."""
    victim = process_with_pid_file(folder.parent / "victim")
    (folder / "pids" / "n1").write_text(f"{victim.pid} 1\n")
    (folder / "pids" / "slurmctld").write_text("-1 \n")
    try:
        assert "there is no node" in run(folder, "kill", "../../victim").stderr
        assert run(folder, "down").returncode == 0
        assert victim.poll() is None
        assert (folder.parent / "victim").is_file()
        assert not folder.exists()
    finally:
        victim.kill()
        victim.wait()
