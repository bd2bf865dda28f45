"""A run that is killed, stopped or moved to another number of ranks ends as if nothing had happened."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

import muster_program as mp

# Dropout, all losses, a learnt temperature, batches that no number of ranks divides, best weights that are not the last ones.
TEXT = ("name: 'resumed'\n" + mp.SMALL_FOAL_NET + mp.CLASSIFICATION + "optimizer { learning_rate: 0.003 schedule: COSINE warmup_steps: 5 clip_norm: 1 }\n"
        "training { epochs: 9 batch_size: 7 log_every_steps: 1 threads: 1 reproducible: true sampling: CLASS_BALANCED }\n"
        "evaluation { every_steps: 4 }\ncheckpoints { every_epochs: 0 every_steps: 5 keep_when_finished: ALL }\n")
MEASURED = ("samples_per_second", "microbatches", "bytes_sent")


def rows(run, kind=None):
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in mp.metrics_rows(run, kind)]


def scores(run):
    result = mp.result(run)
    return {name: result[name] for name in ("best", "last", "test", "valid", "skipped_steps", "stopped_early")}


def steps(run):
    """Steps in metrics.jsonl so far; tolerates a row that is just being written."""
    try:
        return sum(line.endswith("}") and '"train"' in line for line in (run / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def saved(run):
    folder = run / "checkpoints"
    return max((int(path.name[5:]) for path in folder.glob("step-*")), default=0) if folder.exists() else 0


class Job:
    """A muster command that runs while the test does something to it."""

    def __init__(self, folder, *arguments, ranks=1, changes=None):
        starter = ["mpirun", "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
        # mpirun that is killed leaves Open MPI's files behind.
        self.session = tempfile.mkdtemp(prefix="muster-test-", dir="/dev/shm")
        changes = {"OMPI_MCA_btl_vader_backing_directory": self.session, "OMPI_MCA_orte_tmpdir_base": self.session, **(changes or {})}
        self.log = folder / f"job-{time.monotonic_ns()}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([*starter, mp.built("muster"), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=mp.environment(changes), start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.session, ignore_errors=True)

    def wait_until(self, condition):
        end = time.monotonic() + mp.SECONDS
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.005)

    def end(self):
        return self.process.wait(timeout=mp.SECONDS)

    def text(self):
        return self.log.read_text()

    def ranks(self):
        """Process ids, by rank."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        by_rank = {}
        for pid in map(int, children):
            try:
                variables = dict(item.split("=", 1) for item in open(f"/proc/{pid}/environ").read().split("\0") if "=" in item)
                by_rank[int(variables["OMPI_COMM_WORLD_RANK"])] = pid
            except (OSError, KeyError):
                pass
        return [by_rank[rank] for rank in sorted(by_rank)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return mp.train(tmp_path_factory.mktemp("reference"), TEXT)


def assert_same_run(run, reference):
    assert rows(run) == rows(reference), "rows of metrics.jsonl are missing, doubled or different"
    assert scores(run) == scores(reference)
    for name in ("best", "last"):
        assert (run / f"weights/{name}.safetensors").read_bytes() == (reference / f"weights/{name}.safetensors").read_bytes()
    assert (run / "predictions-test.csv").read_bytes() == (reference / "predictions-test.csv").read_bytes()


def test_killed_stopped_and_moved(reference, tmp_path):
    """2 ranks, one killed; 4 ranks, one told to stop; 1 rank, killed; 3 ranks to the end."""
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", TEXT)
    with Job(tmp_path, "train", config, "--run-dir", run, ranks=2) as job:
        job.wait_until(lambda: saved(run) >= 10)
        os.kill(job.ranks()[1], signal.SIGKILL)
        assert job.end() in (76, 137) and "rank 1 of 2" in job.text(), job.text()
    first = saved(run)
    with Job(tmp_path, "resume", run, ranks=4) as job:
        job.wait_until(lambda: steps(run) >= first + 7)
        os.kill(job.ranks()[2], signal.SIGUSR1)
        assert job.end() == 75, job.text()
        assert "stopped by SIGUSR1 (rank 2) after step" in job.text() and f"muster resume {run}" in job.text()
        assert f"continues after step {first}" in job.text()
    second = saved(run)
    assert second >= first + 7 and steps(run) == second, "a clean stop loses nothing"
    with Job(tmp_path, "resume", run) as job:
        job.wait_until(lambda: steps(run) >= second + 8)
        job.process.kill()
        job.end()
    assert f"continues after step {saved(run)}" in mp.muster("resume", run, ranks=3).stderr
    assert_same_run(run, reference)
    resumes = mp.read_json(run / "environment.json")["resumes"]
    assert [job["world_size"] for job in resumes] == [4, 1, 3] and [job["changes"] for job in resumes] == [[], [], []]


def test_without_reproducible_curves_agree_to_rounding(tmp_path):
    text = TEXT.replace("reproducible: true", "precision: FP64")
    whole = mp.train(tmp_path, text, "whole")
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", text)
    with Job(tmp_path, "train", config, "--run-dir", run, ranks=2) as job:
        job.wait_until(lambda: saved(run) >= 10)
        os.killpg(job.process.pid, signal.SIGKILL)
        for pid in job.ranks():
            os.kill(pid, signal.SIGKILL)
    mp.muster("resume", run, ranks=3)
    ours, theirs = rows(run, "train"), rows(whole, "train")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(ours, theirs)) < 1e-9


def test_resume_is_a_resume(reference, tmp_path):
    """The first new step is the newest commit's + 1, what is there stays, and nothing runs when nothing is left."""
    run = mp.train(tmp_path, TEXT, "run", 1, "--max-steps", 12)
    before = (run / "metrics.jsonl").read_bytes()
    text = mp.muster("resume", run, "--max-steps", 12).stdout
    assert "finished already, after 12 steps" in text
    assert (run / "metrics.jsonl").read_bytes() == before
    # Of the evaluation at an end that is none any more a longer run knows nothing; the schedule stretches with the number of steps.
    mp.muster("resume", run, "--max-steps", 20)
    assert (run / "metrics.jsonl").read_bytes().startswith(before)
    assert [row["step"] for row in rows(run, "train")] == list(range(1, 21))
    assert mp.result(run)["last"]["step"] == 20 and "max_steps: 20" in (run / "config.txtpb").read_text()
    assert saved(run) == 20


def test_more_epochs_are_what_they_would_have_been(tmp_path):
    text = TEXT.replace("schedule: COSINE warmup_steps: 5", "").replace("every_steps: 4", "every_epochs: 1").replace("keep_when_finished: ALL", "keep_every_steps: 10")
    whole = mp.train(tmp_path, text.replace("epochs: 9", "epochs: 5"), "whole")
    run = mp.train(tmp_path, text.replace("epochs: 9", "epochs: 2"), "run", ranks=2)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000014"]  # what was asked for, and the last
    mp.muster("resume", run, "--set", "training.epochs=5")
    assert_same_run(run, whole)
    assert mp.read_json(run / "environment.json")["resumes"][0]["changes"] == ["training.epochs: 2 -> 5"]


def test_a_finished_run_without_checkpoints_is_left_alone(reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run, ignore=shutil.ignore_patterns("checkpoints"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for ranks in (1, 2):
        assert mp.muster("resume", run, ranks=ranks).stdout.count("is finished already") == 1
        error = mp.muster("resume", run, "--set", "training.epochs=10", ranks=ranks, code=2).stderr
        assert error.count("no checkpoint is left from which it could be continued") == 1
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_early_stopping_and_skipped_steps_go_on(tmp_path):
    """Patience counts on over an interruption, and so do steps that were left out as non-finite."""
    text = TEXT.replace("evaluation {", "evaluation { patience: 4 min_improvement: 0.02 select_by: 'loss'").replace("epochs: 9", "epochs: 40 non_finite: SKIP_STEP")
    text = text.replace("learning_rate: 0.003", "learning_rate: 0.02")
    whole = mp.train(tmp_path, text, "whole")
    assert mp.result(whole)["stopped_early"] and mp.result(whole)["last"]["step"] > 20
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", text)
    for until in (6, 14):
        with Job(tmp_path, *(["resume", run] if run.exists() else ["train", config, "--run-dir", run])) as job:
            job.wait_until(lambda: saved(run) >= until)
            job.process.kill()
            job.end()
    mp.muster("resume", run, ranks=2)
    assert_same_run(run, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_signals_stop_with_everything_saved(name, reference, tmp_path):
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", TEXT)
    with Job(tmp_path, "train", config, "--run-dir", run) as job:
        job.wait_until(lambda: steps(run) >= 7)
        job.process.send_signal(getattr(signal, name))
        assert job.end() == 75 and f"stopped by {name} after step" in job.text(), job.text()
    assert steps(run) == saved(run) and not (run / "result.json").exists() and not (run / "lock").exists()
    mp.muster("train", config, "--run-dir", run, "--resume", "auto")
    assert_same_run(run, reference)


def test_time_limit(reference, tmp_path):
    config, run = mp.write_config(tmp_path / "run.txtpb", TEXT), tmp_path / "run"
    for _ in range(200):
        code = mp.execute([mp.built("muster"), "train", config, "--run-dir", run, "--resume", "auto", "--time-limit", "1s"])
        if code.returncode == 0:
            break
        assert code.returncode == 75 and "stopped by the time limit after step" in code.stderr, code.stderr
    assert_same_run(run, reference)
    error = mp.muster("train", config, "--time-limit", "soon", code=2).stderr
    assert '"soon" is not a duration; write 3h55m' in error


def test_resume_auto(reference, tmp_path):
    config, run = mp.write_config(tmp_path / "run.txtpb", TEXT), tmp_path / "run"
    words = ["train", config, "--run-dir", run]
    mp.muster(*words, "--resume", "auto", "--max-steps", 6)
    error = mp.muster(*words, code=2).stderr
    assert "holds a finished run" in error
    (run / "result.json").unlink()
    error = mp.muster(*words, code=2).stderr
    assert "unfinished run" in error and f"muster resume {run}" in error and "--resume auto" in error
    mp.muster(*words, "--resume", "auto")
    assert rows(run, "train")[-1]["step"] == 63 and "finished already" in mp.muster(*words, "--resume", "auto").stdout
    assert "no such run" in mp.muster("resume", tmp_path / "absent", code=2).stderr


def test_changes_that_would_change_results_are_refused(tmp_path):
    data = mp.tiny_data(tmp_path / "data.h5")
    text = mp.SMALL_FOAL_NET.replace("adapter_dim: 8", "adapter_dim: 8 heads: 2") + f"data {{ path: '{data}' }}\ntraining {{ epochs: 2 batch_size: 8 threads: 1 }}\n"
    run = mp.train(tmp_path, text)
    changes = ["--set", "optimizer.learning_rate=0.5", "--set", "training.batch_size=4", "--set", "training.epochs=3", "--set", "checkpoints.keep_last=1"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for ranks in (1, 3):
        error = mp.muster("resume", run, *changes, ranks=ranks, code=78).stderr
        assert "optimizer.learning_rate: 1e-4 -> 0.5" in error and "training.batch_size: 8 -> 4" in error and "--force" in error
        assert "training.epochs: 2 -> 3" not in error.split("Different are:")[1] and error.count("muster: ") == 1
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}, "a refused resume changed the run"
    mp.muster("resume", run, *changes, "--force")
    recorded = mp.read_json(run / "environment.json")["resumes"][0]["changes"]
    assert "forced: optimizer.learning_rate: 1e-4 -> 0.5" in recorded and "training.epochs: 2 -> 3" in recorded
    mp.tiny_data(tmp_path / "data.h5", n=30)
    error = mp.muster("resume", run, "--set", "training.epochs=9", code=65).stderr
    assert "the data (SHA-256)" in error


def test_before_the_first_checkpoint_a_run_begins_again(reference, tmp_path):
    weights = reference / "weights/best.safetensors"
    whole = mp.train(tmp_path, TEXT, "whole", 1, "--init-from", weights)
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", TEXT)
    with Job(tmp_path, "train", config, "--run-dir", run, "--init-from", weights, "--set", "checkpoints.every_steps=0", ranks=1) as job:
        job.wait_until(lambda: steps(run) >= 3)
        job.process.kill()
        job.end()
    assert saved(run) == 0
    other = tmp_path / "other.safetensors"
    shutil.copy(reference / "weights/last.safetensors", other)
    error = mp.muster("train", config, "--run-dir", run, "--resume", "auto", "--init-from", other, code=78).stderr
    assert str(other) in error and str(weights) in error
    assert "starts again" in mp.muster("resume", run, ranks=2).stderr
    assert_same_run(run, whole)


def test_damaged_checkpoints(reference, tmp_path):
    run = mp.train(tmp_path, TEXT, "run", 2)
    shard = run / "checkpoints/step-00000063/rank-1-of-2.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 16
    shard.write_bytes(content)
    verdict = mp.muster("checkpoints", "verify", run, code=65)
    assert "step 63: DAMAGED" in verdict.stdout and "rank-1-of-2.safetensors" in verdict.stdout and "step 60: whole" in verdict.stdout
    error = mp.muster("resume", run, ranks=3).stderr
    assert error.count("a damaged checkpoint is left out") == 1 and "rank-1-of-2.safetensors" in error and "continues after step 60" in error
    assert_same_run(run, reference)
    assert list((run / "checkpoints").glob(".bad-*")), "the damaged one is kept aside"
    mp.muster("checkpoints", "verify", run)
    for path in (run / "checkpoints").glob("step-*"):
        (path / "MANIFEST.pb").write_bytes(b"")
    error = mp.muster("resume", run, "--set", "training.epochs=10", ranks=2, code=65).stderr
    assert error.count("muster: ") == 1 and "step-00000063" in error and "step-00000060" in error


def test_damaged_newer_ones_never_cost_a_good_one(reference, tmp_path):
    """A run that falls back and ends before the damaged steps: the next resume must find what this one has saved."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    for step in (60, 63):
        shard = run / f"checkpoints/step-000000{step}/rank-0-of-1.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert "nothing to remove" in mp.muster("checkpoints", "prune", run, "--keep-last", 1, "--keep-best", 0).stdout or saved(run) >= 55
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    mp.muster("resume", run, "--dry-run", code=2)  # train has it, resume does not
    mp.muster("train", run / "config.txtpb", "--run-dir", run, "--resume", "auto", "--dry-run")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before and not (run / "lock").exists()
    good = max(int(name[5:]) for name in before if name not in ("step-00000060", "step-00000063") and name.startswith("step-"))
    mp.muster("resume", run, "--max-steps", good + 2)
    assert saved(run) == good + 2
    assert f"continues after step {good + 2}" in mp.muster("resume", run, "--max-steps", good + 4).stderr


def test_a_copy_without_empty_folders_goes_on(reference, tmp_path):
    whole = mp.train(tmp_path, TEXT, "whole", 1, "--max-steps", 21)
    moved = tmp_path / "moved to here"
    shutil.copytree(whole, moved)
    shutil.rmtree(moved / "logs")
    shutil.rmtree(moved / "weights")
    mp.muster("resume", moved, "--max-steps", 63, cwd=tmp_path)
    mp.muster("resume", whole, "--max-steps", 63)
    assert scores(moved) == scores(whole) and rows(moved) == rows(whole)


def test_a_run_that_lost_its_lock_writes_no_more(tmp_path):
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", TEXT.replace("epochs: 9", "epochs: 900"))
    with Job(tmp_path, "train", config, "--run-dir", run, "--set", "checkpoints.every_steps=20") as job:
        job.wait_until(lambda: steps(run) >= 2)
        (run / "lock").unlink()
        assert job.end() == 74, job.text()
        assert "has lost the run directory" in job.text()


def test_the_last_step_is_evaluated_whoever_made_it(tmp_path):
    text = TEXT.replace("schedule: COSINE warmup_steps: 5", "")
    whole = mp.train(tmp_path, text, "whole", 1, "--max-steps", 10)
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", text)
    with Job(tmp_path, "train", config, "--run-dir", run) as job:
        job.wait_until(lambda: saved(run) >= 10)
        job.process.kill()
        job.end()
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > 10:
            shutil.rmtree(path)
    if saved(run) == 10:
        mp.muster("resume", run, "--max-steps", 10)
        assert_same_run(run, whole)


def test_one_job_at_a_time(tmp_path):
    run, config = tmp_path / "run", mp.write_config(tmp_path / "run.txtpb", TEXT.replace("epochs: 9", "epochs: 900"))
    with Job(tmp_path, "train", config, "--run-dir", run) as job:
        job.wait_until(lambda: steps(run) >= 1)
        for ranks in (1, 2):
            error = mp.muster("resume", run, ranks=ranks, code=2).stderr
            assert os.uname().nodename in error and str(job.process.pid) in error and error.count("muster: ") == 1
        assert os.uname().nodename in mp.muster("checkpoints", "prune", run, code=2).stderr
        job.process.send_signal(signal.SIGTERM)
        assert job.end() == 75


def test_commands_on_checkpoints(reference, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    listed = json.loads(mp.muster("checkpoints", "list", run, "--json").stdout)
    assert [row["step"] for row in listed][:2] == [63, 60]
    fingerprint = mp.muster("checkpoints", "fingerprint", run / "checkpoints/step-00000063").stdout
    assert fingerprint == mp.muster("checkpoints", "fingerprint", run, "--weights", "last").stdout
    assert "whole" in mp.muster("checkpoints", "verify", run / "checkpoints/step-00000063").stdout
    assert "would remove" in mp.muster("checkpoints", "prune", run, "--keep-last", 1, "--keep-best", 0, "--dry-run").stdout
    assert saved(run) == 63 and len(list((run / "checkpoints").glob("step-*"))) == len(listed)
    mp.muster("checkpoints", "prune", run, "--keep-last", 1, "--keep-best", 0)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000063"]
