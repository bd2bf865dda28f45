"""`muster doctor`: a healthy machine, and many that are broken on purpose, each of which it must name."""
import functools
import glob
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import muster_program as mp

CHECKS = ("versions built_with duplicates preload library_path open_files processes stack file_size address_space locked_memory shared_memory "
          "cores memory load host_name gpu cuda cuda_visible mpirun srun directory free_space ranks same_software clock all_reduce_8B "
          "all_reduce_1MB all_reduce_64MB nccl shared rename link fsync write_speed read_speed visibility").split()
HERE = ["--oversubscribe"]  # whatever the number of cores
ORDER = ["ok", "skipped", "warning", "failed"]


def doctor(*arguments, code, changes=None, around=(), cwd=None):
    """Runs it with --json, and returns {check: the worst finding of it}."""
    result = mp.execute([*around, mp.built("muster"), "doctor", *arguments, "--json"], cwd=cwd, changes=changes)
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    document = json.loads(result.stdout)
    assert document["ok"] == (code == 0)
    found = {}
    for finding in document["findings"]:
        if finding["check"] not in found or ORDER.index(finding["state"]) > ORDER.index(found[finding["check"]]["state"]):
            found[finding["check"]] = finding
        if finding["state"] in ("warning", "failed"):
            assert finding["expected"] and finding["fix"], finding
    return found


def failed(found):
    return {name for name, finding in found.items() if finding["state"] == "failed"}


def says(found, check, state, what, fix):
    assert check in found, sorted(found)
    finding = found[check]
    assert finding["state"] == state and what in finding["found"] and fix in finding["fix"], finding


def script(folder, name, text):
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def broken(what, **more):
    return {"LD_PRELOAD": mp.built("tests/libdoctor_shim.so"), "MUSTER_BREAK": what, **{name: str(value) for name, value in more.items()}}


@functools.lru_cache
def may_mount():
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def mounted(what, options, *more):
    """A command prefix: runs what follows with a small file system at `what`."""
    if not may_mount():
        pytest.skip("unshare -m is not allowed here")
    return ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o {options} tmpfs {what} && shift 0 && {' && '.join(more or ['true'])} && exec \"$@\"", "sh"]


def library(folder, name):
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler")
    subprocess.run([compiler, "-shared", "-x", "c", "/dev/null", "-o", folder / name, f"-Wl,-soname,{name}"], check=True)
    return str(folder / name)


# Everything is as it should be.

def test_a_healthy_machine(tmp_path):
    text = mp.muster("doctor", "-n", 2, *HERE, cwd=tmp_path).stdout
    names = [line.split()[1] for line in text.splitlines() if line and not line.startswith(" ") and line.split()[0] in (*ORDER, "FAILED")]
    assert names == CHECKS and "0 failed" in text
    assert list(tmp_path.iterdir()) == []
    found = doctor("-n", 2, *HERE, "--directory", tmp_path, code=0)
    assert list(found) == CHECKS
    assert found["ranks"]["figures"] == {"ranks": 2, "hosts": 1} and found["all_reduce_64MB"]["figures"]["bytes"] == 64e6
    for name, figure in (("all_reduce_8B", "seconds"), ("rename", "renames"), ("fsync", "median_seconds"), ("write_speed", "bytes_per_second")):
        assert found[name]["figures"][figure] > 0
    assert found["rename"]["figures"]["reads"] > 0 and found["clock"]["state"] == "ok"
    assert found["mpirun"]["figures"]["version"] in subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout


def test_one_rank_needs_no_mpi(tmp_path):
    """Nor is it a rank of the step within whose shell it was started: `srun -n 4 --pty bash`, and then muster by hand."""
    shell = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000", "SLURM_TASK_PID": "1"}
    found = doctor("-n", 1, "--directory", tmp_path, code=0, changes={"PATH": str(tmp_path), **shell})
    assert found["ranks"]["found"] == "1 rank, without MPI"
    assert {name for name, finding in found.items() if finding["state"] == "skipped"} >= {"mpirun", "srun", "clock", "all_reduce", "nccl", "visibility"}
    assert list(tmp_path.iterdir()) == []


def test_as_one_of_several_it_says_how_to_be_run():
    error = mp.muster("doctor", changes={"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, code=2).stderr
    assert "muster doctor -n 4" in error


def test_hosts_that_are_none(tmp_path):
    for words, said in ((["--hosts", "a:x"], 'not "x"'), (["--hosts", ""], "--hosts: it is empty"), (["--hostfile", tmp_path / "absent"], "missing"),
                        (["-n", 0], "--ranks: Value 0 not in range 1 to 1000000")):
        result = mp.muster("doctor", *words, code=2)
        assert said in result.stderr and result.stdout == ""


# Starting ranks.

def test_nothing_is_left_on_other_hosts(tmp_path):
    """Two hosts, with shared memory of their own, that mpirun enters by a script in the place of ssh."""
    if not may_mount():
        pytest.skip("unshare -m is not allowed here")
    own = 'hostname "$0" && mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm && sh -c "$1"; code=$?'
    changes = script(tmp_path, "agent", f"host=$1; shift\nexec unshare -m -u sh -c '{own}; ls -A /dev/shm > \"$LEFT/$0.left\"; exit $code' \"$host\" \"$*\"\n")
    changes = {"OMPI_MCA_plm_rsh_agent": str(tmp_path / "agent"), "LEFT": str(tmp_path), **changes}
    (tmp_path / "runs").mkdir()
    found = doctor("--hosts", "nodea:1,nodeb:1", "--directory", tmp_path / "runs", code=0, changes=changes)
    assert found["ranks"]["figures"] == {"ranks": 2, "hosts": 2}
    assert {path.name: path.read_text() for path in tmp_path.glob("*.left")} == {"nodea.left": "", "nodeb.left": ""}


def test_one_rank_on_a_host_of_the_hostfile(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=1\n")
    command = json.loads(mp.muster("doctor", "-n", 1, "--hostfile", "hosts", "--json", cwd=tmp_path).stdout)["command"]
    assert "mpirun -n 1 " in command and "--hostfile hosts" in command


def test_no_mpirun(tmp_path):
    says(doctor("-n", 2, *HERE, code=1, changes={"PATH": str(tmp_path)}, cwd=tmp_path), "mpirun", "failed", "no mpirun on the PATH", "openmpi-bin")


def test_mpirun_of_another_mpi(tmp_path):
    changes = script(tmp_path, "mpirun", 'echo "HYDRA build details:"; echo "    Version:   4.0.2"\n')
    says(doctor("-n", 2, *HERE, code=1, changes=changes, cwd=tmp_path), "mpirun", "failed", "HYDRA", "first in PATH")


def test_mpirun_of_another_series(tmp_path):
    changes = script(tmp_path, "mpirun", f'[ "$1" = --version ] && echo "mpirun (Open MPI) 3.1.6" || exec {shutil.which("mpirun")} "$@"\n')
    says(doctor("-n", 2, *HERE, code=1, changes=changes, cwd=tmp_path), "mpirun", "failed", "3.1.6", "first in PATH")


def test_ranks_that_are_alone(tmp_path):
    start = f'[ "$1" = --version ] && exec {shutil.which("mpirun")} --version\nwhile [ "$(basename "$1")" != muster ]; do shift; done\nexec "$@"\n'
    found = doctor("-n", 2, *HERE, code=1, changes=script(tmp_path, "mpirun", start), cwd=tmp_path)
    says(found, "ranks", "failed", "2 ranks were started, but this one sees 1", "use the mpirun of the Open MPI")


def test_mpirun_that_hangs(tmp_path):
    start = f'[ "$1" = --version ] && exec {shutil.which("mpirun")} --version\nexec sleep 1000\n'
    found = doctor("-n", 2, *HERE, "--timeout", 0.1, code=1, changes=script(tmp_path, "mpirun", start), cwd=tmp_path)
    says(found, "ranks", "failed", "did not start in time", "by hand")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_root_without_the_flag(tmp_path):
    changes = {"OMPI_ALLOW_RUN_AS_ROOT": None, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": None}
    says(doctor("-n", 2, *HERE, code=1, changes=changes, cwd=tmp_path), "ranks", "failed", "you are root", "muster doctor -n 2 --allow-run-as-root")


def test_too_few_slots(tmp_path):
    says(doctor("-n", 999, code=1, changes={"OMPI_MCA_rmaps_base_oversubscribe": None}, cwd=tmp_path), "ranks", "failed", "999 ranks", "--oversubscribe")


def test_a_host_that_cannot_be_reached(tmp_path):
    if not shutil.which("ssh"):
        pytest.skip("there is no ssh")
    found = doctor("--hosts", "nosuchhost-of-muster:1", code=1, cwd=tmp_path)
    says(found, "ranks", "failed", "nosuchhost-of-muster", "getent hosts")


NO_PMIX = 'echo "MPI plugin types are..."; echo "none"; echo "pmi2"\n'


def test_srun_without_pmix_within_an_allocation(tmp_path):
    changes = script(tmp_path, "srun", NO_PMIX)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", "SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_NTASKS": "2"}
    found = doctor("-n", 2, code=1, changes={**changes, **slurm, "PATH": str(tmp_path)}, cwd=tmp_path)
    says(found, "srun", "failed", "pmi2", "PMIx plugin")
    assert "ranks" in failed(found)


class Visit:
    """A doctor at work, whose ranks are trying files."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        words = [mp.built("muster"), "doctor", "-n", "2", *HERE, "--directory", str(folder), "--json", *arguments]
        self.process = subprocess.Popen(words, env=mp.environment(broken("slow")), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)
        end = time.monotonic() + 60
        while not glob.glob(str(folder / ".muster-doctor-*/flushed-1")):
            assert self.process.poll() is None and time.monotonic() < end, self.process.communicate()
            time.sleep(0.01)

    def ranks(self):
        found = []
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                words = Path(path).read_bytes().decode().split("\0")
            except OSError:
                continue
            if "--as-rank" in words and any(word.startswith(f"{self.folder}/.muster-doctor-") for word in words) and words[0].endswith("/muster"):
                found.append(int(path.split("/")[2]))
        return sorted(found)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for number in self.ranks():
            os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("sign, what, fix", [("KILL", "its process has died", "docs/faults.md"), ("STOP", "rank 1", "holds that rank up")])
def test_a_rank_that_dies_or_hangs(sign, what, fix, tmp_path):
    with Visit(tmp_path, "--timeout", "4") as visit:
        ranks = visit.ranks()
        assert len(ranks) == 2
        os.kill(ranks[1], getattr(signal, "SIG" + sign))
        out, err = visit.process.communicate(timeout=40)
        assert visit.process.returncode == 1, err
        found = {finding["check"]: finding for finding in json.loads(out)["findings"]}
        says(found, "ranks_end", "failed", what, fix)
        assert visit.ranks() == [] and list(tmp_path.iterdir()) == []


def test_nothing_is_left_after_an_interrupt(tmp_path):
    with Visit(tmp_path) as visit:
        visit.process.send_signal(signal.SIGINT)
        assert visit.process.wait(20) == 130
        assert visit.ranks() == [] and list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_nobody_reads_on(tmp_path):
    words = [mp.built("muster"), "doctor", "-n", "2", *HERE, "--directory", str(tmp_path)]
    with subprocess.Popen(words, env=mp.environment(broken("slow")), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while not process.stdout.readline().startswith(b"ok       ranks "):
            assert process.poll() is None
        assert list(tmp_path.iterdir()) != []
        process.stdout.close()
        assert process.wait(40) == 130
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_mpirun_is_asked_is_no_finding(tmp_path):
    changes = script(tmp_path, "mpirun", f"touch {tmp_path}/asked\nexec sleep 1000\n")
    with subprocess.Popen([mp.built("muster"), "doctor", "-n", "2", *HERE], env=mp.environment(changes), cwd=tmp_path, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "asked").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and "FAILED" not in out


# Libraries, limits, file systems: one machine with much to be warned of, one with much that is broken.

@pytest.fixture(scope="module")
def warned(tmp_path_factory):
    """(findings, folder)"""
    folder = tmp_path_factory.mktemp("warned")
    maps = subprocess.run(["ldd", mp.built("muster")], capture_output=True, text=True).stdout
    real = next(line.split()[2] for line in maps.splitlines() if line.split()[0].startswith("libprotobuf.so"))
    for name in ("libraries", "programs", "here"):
        (folder / name).mkdir()
    shutil.copy(real, folder / "libraries")
    changes = {**broken("slow"), **script(folder / "programs", "srun", NO_PMIX), "LD_LIBRARY_PATH": str(folder / "libraries"), "CUDA_VISIBLE_DEVICES": "0,gpu1"}
    changes["LD_PRELOAD"] += ":" + library(folder, "libiomp5.so")
    around = ["sh", "-c", 'ulimit -n 700 && ulimit -l 0 && ulimit -f 500000 && exec "$@"', "sh"]
    return doctor("-n", 1, code=0, around=around, changes=changes, cwd=folder / "here"), folder


def test_a_library_path_that_shadows(warned):
    found, folder = warned
    says(found, "library_path", "warning", str(folder / "libraries"), "LD_LIBRARY_PATH")


def test_two_openmp_libraries(warned):
    says(warned[0], "duplicates", "warning", "two OpenMP libraries", "LD_DEBUG")


def test_srun_without_pmix(warned):
    says(warned[0], "srun", "warning", "pmi2", "PMIx plugin")


def test_low_limits(warned):
    found, _ = warned
    says(found, "open_files", "warning", "700", "hard limit")
    says(found, "locked_memory", "warning", "0 bytes", "memlock")
    says(found, "file_size", "warning", "MB", "hard limit")


def test_nonsense_in_cuda_visible_devices(warned):
    says(warned[0], "cuda_visible", "warning", '"gpu1" is neither a number nor a UUID', "nvidia-smi -L")


def test_a_slow_disk(warned):
    says(warned[0], "fsync", "warning", "for a small file and its folder", "checkpoints.every")


PAIRS = {"MPI": ["libmpi.so.12"], "protobuf": ["libprotobuf.so.25"], "NCCL": ["libnccl.so.2", "libnccl-0a1b2c3d.so.2"], "OpenMP": ["libiomp5.so"]}


@pytest.fixture(scope="module")
def ruined(tmp_path_factory):
    """(findings, {kind of library: paths})"""
    folder = tmp_path_factory.mktemp("ruined")
    paths = {kind: [library(folder, name) for name in names] for kind, names in PAIRS.items()}
    here = folder / "here"
    here.mkdir()
    around = ["sh", "-c", 'ulimit -Sn 128 && exec "$@"', "sh"]
    if may_mount():
        around = [*mounted("/dev/shm", "size=64k", f"mount -t tmpfs -o size=200k tmpfs {here}", f"head -c 150000 /dev/zero > {here}/used"), *around]
    return doctor("-n", 1, "--directory", here, code=1, around=around, changes={"LD_PRELOAD": ":".join(sum(paths.values(), []))}), paths


def test_two_of_a_library(ruined):
    found, paths = ruined
    for kind, files in paths.items():
        says(found, "duplicates", "failed", f"two {kind} libraries", "LD_DEBUG=libs")
        assert all(path in found["duplicates"]["found"] for path in files) and found["duplicates"]["figures"][kind] == 2
    says(found, "preload", "warning", paths["MPI"][0], "unset LD_PRELOAD")


def test_a_limit_far_too_low(ruined):
    says(ruined[0], "open_files", "failed", "128", "ulimit -S -n hard")


needs_mount = pytest.mark.skipif("not may_mount()", reason="unshare -m is not allowed here")


@needs_mount
def test_small_shared_memory(ruined):
    says(ruined[0], "shared_memory", "failed", "of 66 KB free", "--shm-size=1g")


@needs_mount
def test_a_full_directory(ruined):
    found, _ = ruined
    says(found, "free_space", "failed", "free", "make room")
    says(found, "directory", "warning", "in memory", "on a disk")
    assert any("No space left" in finding["found"] and "make room" in finding["fix"] for finding in found.values())


def test_ranks_that_differ_in_clocks_sums_and_files(tmp_path):
    found = doctor("-n", 2, *HERE, code=1, changes=broken("clock@1 sum@1 rename@0", MUSTER_BREAK_SECONDS=-400), cwd=tmp_path)
    says(found, "clock", "failed", "400 s behind rank 0's", "chrony")
    assert found["clock"]["rank"] == 1 and abs(found["clock"]["figures"]["offset_seconds"] + 400) < 0.1
    says(found, "all_reduce_1MB", "failed", "the sum over ranks is wrong on rank 1", "do not train")
    says(found, "rename", "failed", "rename is not atomic", "not a mounted object store")  # as rank 1 has seen
    found = doctor("-n", 2, *HERE, code=0, changes=broken("clock@1", MUSTER_BREAK_SECONDS=3), cwd=tmp_path)
    says(found, "clock", "warning", "s ahead of rank 0's", "chrony")


def test_no_such_directory(tmp_path):
    says(doctor("-n", 1, "--directory", tmp_path / "absent", code=1), "directory", "failed", "No such file", "mkdir -p")


def test_a_directory_that_is_read_only(tmp_path):
    around = mounted(tmp_path, "size=10m", f"mount -o remount,ro {tmp_path}")
    says(doctor("-n", 1, "--directory", tmp_path, code=1, around=around), "directory", "failed", "Read-only", "that you may write to")


@pytest.mark.parametrize("breaks, wanted", [
    ("rename link read", {"rename": ("rename is not atomic", "not a mounted object store"), "link": ("Operation not permitted", "hard links"),
                          "read_speed": ("has other content than was written", "do not trust")}),
    ("lock fsync", {"link": ("attempts to take one name succeeded", "two jobs could write one run"), "fsync": ("Input/output error", "not flushed")})])
def test_a_file_system_that_breaks_its_word(breaks, wanted, tmp_path):
    found = doctor("-n", 1, "--directory", tmp_path, code=1, changes=broken(breaks))
    for check, (what, fix) in wanted.items():
        says(found, check, "failed", what, fix)
    assert failed(found) - {"write_speed"} == set(wanted) and list(tmp_path.iterdir()) == []
