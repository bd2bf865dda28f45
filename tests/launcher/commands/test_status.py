"""`muster status`: what it says of real runs in every state, and that it survives whatever it finds."""
import json
import os
import shutil
import socket
import subprocess
import time

import pytest

import muster_program as mp

TEXT = mp.SMALL_LATE_FUSION + mp.REGRESSION + "training { epochs: 3 log_every_steps: 1 batch_size: 8 }\ncheckpoints { every_steps: 2 }\n"
LONG = TEXT.replace("epochs: 3", "epochs: 100000")


def status(*paths, code=0):
    return json.loads(mp.muster("status", "--json", *paths, code=code).stdout)


def said(path):
    return mp.muster("status", path).stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two ranks. Read only."""
    return mp.train(tmp_path_factory.mktemp("finished"), TEXT, "run", 2)


def test_a_finished_run(finished):
    run = finished
    told, rows, best = status(run), mp.metrics_rows(run), mp.result(run)["best"]
    steps = max(row["step"] for row in rows)
    assert (told["state"], told["step"], told["total_steps"], told["epoch"], told["epochs"]) == ("finished", steps, steps, 3, 3)
    assert mp.read_json(run / "environment.json")["steps"] == {"total": steps, "per_epoch": steps // 3}
    assert told["best"] == {"name": "MAE", "value": best["value"], "step": best["step"]}
    assert told["loss"] == [row for row in rows if row["kind"] == "train"][-1]["loss"]
    speeds = sorted(row["samples_per_second"] for row in rows if row["kind"] == "train")
    assert told["samples_per_second"] == pytest.approx(speeds[len(speeds) // 2]) and told["seconds_left"] is None
    assert told["ranks"] == 2 and told["hosts"] == [socket.gethostname()] and told["jobs_begun"] == 1
    assert told["checkpoint"]["step"] == steps and 0 <= told["checkpoint"]["age_seconds"] < 3600
    assert told["holder"] is None and told["job"] is None
    text = said(run)
    assert text.startswith(f"{run}: finished\n") and f"{steps} of {steps}, epoch 3 of 3" in text


def test_running_lost_stopped_and_gone_on(tmp_path):
    config, run = mp.write_config(tmp_path / "e.txtpb", LONG), tmp_path / "run"
    with subprocess.Popen([mp.built("muster"), "train", str(config), "--run-dir", str(run)], env=mp.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + mp.SECONDS
            while not list((run / "checkpoints").glob("step-*")):
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
            for _ in range(3):  # while it is written
                told = status(run)
                assert told["state"] == "running" and f"process {process.pid}" in told["holder"] and told["step"] >= told["checkpoint"]["step"] > 0
                batches = told["seconds_left"] * told["samples_per_second"] / 8
                assert batches == pytest.approx(told["total_steps"] - told["step"])
            assert "left, evaluations not counted" in said(run)
        finally:
            process.kill()
    assert status(run)["state"] == "lost" and f"to continue: muster resume {run}\n" in said(run)
    mp.muster("train", config, "--run-dir", run, "--resume", "auto", "--time-limit", "1s", code=75)
    told = status(run)
    assert told["state"] == "stopped" and told["jobs_begun"] == 2 and told["step"] == told["checkpoint"]["step"]
    # A lock of another machine: by its age.
    lock = {"id": "0" * 32, "host": "elsewhere", "boot_id": "", "job": "Slurm job 7", "process_namespace": "", "command": "", "started": "yesterday", "process": 1,
            "process_start": 1, "restarts": 0, "renewed_every_seconds": 15}
    (run / "lock").write_text(json.dumps(lock))
    assert status(run)["state"] == "running" and "Slurm job 7 (host elsewhere" in said(run)
    os.utime(run / "lock", (time.time() - 100, time.time() - 100))
    assert status(run)["state"] == "lost" and 99 < status(run)["silent_seconds"] < 300


def test_jobs_of_slurm(tmp_path):
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "submission.json").write_text(json.dumps({"job": "41", "job_name": "mine"}))

    def log(*rows):
        with open(run / "logs/jobs.jsonl", "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    log({"event": "submitted"})
    assert status(run)["state"] == "prepared" and "queued, not begun" in said(run) and "41, mine: started 0" in said(run)
    log({"event": "started"})
    assert "has started, but has not begun the run" in said(run)
    log({"event": "ended", "exit_code": 2, "decision": "stopped", "reason": "no PMIx"})
    assert "its job has ended (no PMIx)" in said(run)
    log({"event": "submitted"})
    assert "queued, not begun" in said(run)
    config = mp.write_config(tmp_path / "e.txtpb", LONG)
    mp.muster("train", config, "--run-dir", run, "--time-limit", "1s", code=75)
    log({"event": "submitted"})
    assert "stopped; job 41 is queued to continue it" in said(run) and "muster resume" not in said(run)
    log({"event": "started", "job": "44"})  # by sbatch, without muster submit
    assert "stopped; its job has started; if that is gone (squeue -j 44), to continue: muster resume" in said(run) and status(run)["job"] == "44"
    log({"event": "ended", "exit_code": 76, "decision": "requeued", "reason": "a rank was lost"})
    assert status(run)["job"] == "44"
    (run / "logs/slurm-41.out").write_text("first\nstep 3\r[##..] step 4\r\n\n")
    told = status(run)
    assert told["slurm"] == {"started": 2, "requeued": 1, "crashed": 2, "decision": "requeued", "reason": "a rank was lost"}
    assert told["last_message"] == "[##..] step 4" and "its job is requeued (a rank was lost)" in said(run)


def test_what_is_torn_or_missing(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "result.json").unlink()
    whole = status(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 99999')
    (run / "logs/jobs.jsonl").write_text('not json\n{"event": 3}\n[]\n{"event": "sta')
    (run / "submission.json").write_text("{")
    (run / "lock").write_text("")
    told = status(run)
    assert told["step"] == whole["step"] and told["state"] == "stopped" and told["slurm"]["started"] == 0
    (run / "metrics.jsonl").write_bytes(bytes(range(256)) * 2000)
    (run / "environment.json").write_text('{"steps": 3, "ranks": {"a": 1}, "resumes": [7], "world_size": "many"}')
    (run / "config.txtpb").write_text("nothing: 1")
    assert status(run)["step"] == whole["checkpoint"]["step"]
    for name in ("metrics.jsonl", "environment.json", "lock", "submission.json"):
        (run / name).unlink()
    assert status(run)["total_steps"] is None and said(run)
    before = sorted(path.name for path in run.rglob("*"))
    said(run)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_what_is_no_run(finished, tmp_path):
    assert "nothing of that name" in mp.muster("status", tmp_path / "absent", code=2).stderr
    assert "is not the directory of a run" in mp.muster("status", tmp_path, code=2).stderr
    told = mp.muster("status", "--json", finished, tmp_path / "absent", finished, code=2)
    assert [one["state"] for one in json.loads(told.stdout)] == ["finished"] * 2 and told.stderr.count("absent") == 1
