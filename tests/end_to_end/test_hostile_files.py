"""Files and places that are not what a command expects: outputs that are inputs, pipes, nested JSON, escape sequences, floods."""
import json
import os
import re
import signal
import subprocess
import time

import muster_program as mp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

TINY = mp.SMALL_FOAL_NET + "training { epochs: 1 batch_size: 20 }\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A dataset and a finished run on it."""
    folder = tmp_path_factory.mktemp("hostile")
    mp.tiny_data(folder / "data.h5")
    mp.train(folder, f'data {{ path: "{folder}/data.h5" }}\n' + TINY, "run")
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def predict(folder, output, **options):
    return mp.muster("predict", "--weights", "run/weights/best.safetensors", "--config", "run/config.txtpb", "--data", "data.h5", "-o", output,
                     cwd=folder, **options)


@pytest.mark.parametrize("output, why", [
    ("data.h5", "input of this command"), ("hard.h5", "input of this command"), ("./run/../data.h5", "input of this command"),
    ("link.h5", "input of this command"), ("run/weights/best.safetensors", "input of this command"), ("run/config.txtpb", "input of this command"),
    ("dangling.csv", "symbolic link"), ("other/new.csv", "directory of a run"), ("other/weights/new.csv", "directory of a run"),
    ("folder-link/new.csv", "directory of a run"), ("run/predictions-valid.csv", "the run itself"), ("run/weights/new.csv", "the run itself"),
    ("study/new.csv", "search or study"), ("notes.txt", "something else is there"), ("other.csv", "something else is there"),
    ("run", "something else is there")])
def test_an_output_never_replaces_something_else(shared, output, why):
    (shared / "other/weights").mkdir(parents=True, exist_ok=True)  # another run
    (shared / "study/cells/base").mkdir(parents=True, exist_ok=True)
    for name in ("config.txtpb", "environment.json"):
        (shared / "other" / name).touch()
    for name, make in {"hard.h5": lambda p: os.link(shared / "data.h5", p), "link.h5": lambda p: p.symlink_to("data.h5"),
                       "dangling.csv": lambda p: p.symlink_to("nowhere.csv"), "folder-link": lambda p: p.symlink_to("other/weights"),
                       "notes.txt": lambda p: p.write_text("mine"), "other.csv": lambda p: p.write_text("name,age\nme,7\n")}.items():
        if not (shared / name).is_symlink() and not (shared / name).exists():
            make(shared / name)
    before = contents(shared)
    for command in (lambda: predict(shared, output, code=2),
                    lambda: mp.muster("data", "synth", "--kind", "regression", "-o", output, cwd=shared, code=2)
                    if why not in ("input of this command", "the run itself") else None):
        ended = command()
        assert ended is None or (why in ended.stderr and output.split("/")[-1] in ended.stderr), ended.stderr
    assert contents(shared) == before and not (shared / "nowhere.csv").exists()


def test_outputs_of_the_same_kind_are_replaced(shared, tmp_path):
    for name in ("data.h5", "run"):
        (tmp_path / name).symlink_to(shared / name)
    for _ in range(2):
        predict(tmp_path, "predictions.csv")
        mp.muster("data", "synth", "--kind", "regression", "--samples", 40, "-o", "made.h5", cwd=tmp_path)
        mp.muster("evaluate", shared / "run", "-o", shared / "run/test.csv")  # its own directory
        predict(shared, "run/new.csv")
    mp.muster("evaluate", shared / "run", "-o", "elsewhere.csv", "--data", "data.h5", cwd=tmp_path)
    other = mp.write_config(tmp_path / "other.txtpb", f'data {{ path: "{shared}/data.h5" }}\n' + TINY)
    assert "symbolic link" in mp.muster("evaluate", shared / "run", "-o", "run", cwd=tmp_path, code=2).stderr
    assert "an input" in mp.muster("predict", "--weights", "run/weights/best.safetensors", "--config", other, "--data", "data.h5", "-o", other, cwd=tmp_path,
                                   code=2).stderr


@pytest.mark.parametrize("words", [["train", "x.txtpb", "--init-from", "PIPE"], ["status", "PIPE"], ["data", "inspect", "PIPE"], ["data", "verify", "PIPE"],
                                   ["config", "PIPE"], ["evaluate", "PIPE"], ["train", "x.txtpb", "--set", "data.path=PIPE"], ["resume", "run"],
                                   ["status", "run"], ["evaluate", "run"], ["submit", "--site", "PIPE", "train", "x.txtpb"]], ids=" ".join)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(shared, tmp_path, words):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    mp.write_config(tmp_path / "x.txtpb", f'data {{ path: "{shared}/data.h5" }}\n' + TINY)
    (tmp_path / "run").mkdir()
    for name in ("config.txtpb", "environment.json", "result.json", "lock", "metrics.jsonl"):
        os.mkfifo(tmp_path / "run" / name)
    ended = subprocess.run([mp.built("muster"), *[word.replace("PIPE", str(pipe)) for word in words]], cwd=tmp_path, env=mp.environment(), stdin=subprocess.DEVNULL,
                           capture_output=True, text=True, timeout=60)
    assert ended.returncode in ((0, 2, 65, 74, 78) if words[0] == "status" else (2, 65, 74, 78)), ended
    assert words[0] == "status" or "muster: " in ended.stderr, ended


def test_an_experiment_may_be_a_command(shared):
    ended = mp.execute(["bash", "-c", f"{mp.built('muster')} config <(sed s/epochs:.1/epochs:3/ run/config.txtpb) >shown.txtpb"], shared)
    assert ended.returncode == 0, ended.stderr
    (shared / "shown.txtpb").unlink()


def test_a_stop_before_training_ends_the_process(shared, tmp_path):
    """It reads an experiment from a pipe that somebody holds open and does not write to."""
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGUSR1, 75)):
            process = subprocess.Popen([mp.built("muster"), "train", str(tmp_path / "pipe")], cwd=tmp_path, env=mp.environment(), stderr=subprocess.PIPE)
            handlers = re.compile(r"SigCgt:\s*([0-9a-f]+)")
            end = time.monotonic() + 60
            while not int(handlers.search(open(f"/proc/{process.pid}/status").read())[1], 16) >> (signal.SIGUSR1 - 1) & 1:
                assert time.monotonic() < end
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(60) == code
            process.stderr.close()
    finally:
        os.close(writer)
    assert not list(tmp_path.glob("runs/*"))


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name, text", [("environment.json", NESTED), ("environment.json", '{"init_from": {"path": 5}}'), ("environment.json", '{"data": ' + NESTED + "}"),
                                        ("environment.json", '{"data": {"sha256": ["x"]}, "ranks": 7}'), ("result.json", NESTED), ("result.json", '{"best": []}'),
                                        ("submission.json", NESTED), ("logs/jobs.jsonl", NESTED + "\n"), ("metrics.jsonl", NESTED + "\n" + NESTED + "\n"),
                                        ("lock", NESTED), ("lock", '{"id": 5}')], ids=lambda text: text[:40])
def test_nested_and_ill_typed_json(shared, tmp_path, name, text):
    subprocess.run(["cp", "-a", shared / "run", tmp_path / "run"], check=True)
    (tmp_path / "run/result.json").unlink()
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).write_text(text)
    for words in (["status", "run"], ["status", "run", "--json"], ["resume", "run"], ["evaluate", "run"], ["train", "run/config.txtpb", "--run-dir", "run", "--resume", "auto"]):
        ended = subprocess.run([mp.built("muster"), *words], cwd=tmp_path, env=mp.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert ended.returncode in (0, 2, 65, 74, 76, 78), (words, ended.returncode, ended.stderr[-2000:])
        assert "internal error" not in ended.stderr and len(ended.stderr) < 5000
        if ended.returncode == 65:
            assert name in ended.stderr
    assert name == "lock" or not (tmp_path / "run/lock").exists()
    if text.startswith('{"init_from"'):
        ended = mp.muster("resume", "run", cwd=tmp_path, code=65)
        assert "environment.json: init_from.path must be text; it is '5'" in ended.stderr


ESCAPE = "\x1b]0;taken\x07\x9b31m\x1b[2J"


def test_escape_sequences_of_files_do_not_reach_the_terminal(shared, tmp_path):
    data = mp.tiny_data(tmp_path / "data.h5", class_names=["calm", "gl\x1b[31mad", "sad"], groups=[ESCAPE if i % 3 else "g" for i in range(24)])
    tensors = {**load_file(shared / "run/weights/best.safetensors"), ESCAPE: np.zeros(1, np.float32)}
    save_file(tensors, tmp_path / "odd.safetensors", {ESCAPE: ESCAPE})
    subprocess.run(["cp", "-a", shared / "run", tmp_path / "run"], check=True)
    (tmp_path / "run/submission.json").write_text(json.dumps({"job_name": ESCAPE, "job": ESCAPE}))
    (tmp_path / "run/logs/jobs.jsonl").write_text(json.dumps({"event": "ended", "job": ESCAPE, "decision": ESCAPE, "reason": ESCAPE}) + "\n")
    config = tmp_path / "run/config.txtpb"
    for words in (["data", "inspect", data], ["data", "inspect", data, "--json"], ["data", "verify", data], ["status", "run"], ["status", "run", "--json"],
                  ["predict", "--weights", "odd.safetensors", "--config", config, "--data", data, "-o", "p.csv"],
                  ["train", config, "--set", f"data.path={data}", "--init-from", "odd.safetensors", "--run-dir", "new"], ["checkpoints", "fingerprint", "odd.safetensors"],
                  ["config", f"no{ESCAPE}file"], ["train", config, "--set", f"no.{ESCAPE}=1"]):
        ended = subprocess.run([mp.built("muster"), *map(str, words)], cwd=tmp_path, env=mp.environment(), stdin=subprocess.DEVNULL, capture_output=True)
        shown = ended.stdout + ended.stderr
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", shown), (words, shown)


def test_a_flood_of_foreign_tensors_is_capped(shared, tmp_path):
    tensors = {**load_file(shared / "run/weights/best.safetensors"), **{f"foreign.{i}": np.zeros(1, np.float32) for i in range(20_000)}}
    save_file(tensors, tmp_path / "odd.safetensors")
    ended = mp.muster("predict", "--weights", tmp_path / "odd.safetensors", "--config", shared / "run/config.txtpb", "--data", shared / "data.h5", "-o", tmp_path / "p.csv",
                      code=65)
    assert len(ended.stderr) < 10_000 and "not in the model: foreign.0" in ended.stderr and "and 19,900 more" in ended.stderr


def test_spreadsheets_run_no_cell(tmp_path):
    ids = ["=1+1", "+2", "-cmd|x", "@SUM(A1)", "-3.5", "-3g5yACwYnA[3]"] + [f"u{i}" for i in range(18)]
    from container import write_container
    generator = np.random.default_rng(1)
    write_container(tmp_path / "data.h5", "tiny", "classification", ids, {m: [generator.normal(size=(3, d)) for _ in ids] for m, d in (("audio", 8), ("vision", 4))},
                    labels=np.arange(24) % 3, class_names=["calm", "=glad", "sad"], splits=(["train"] * 4 + ["valid", "test"]) * 4, groups=["g"] * 24)
    run = mp.train(tmp_path, f'data {{ path: "{tmp_path}/data.h5" }}\n' + TINY)
    mp.muster("evaluate", run, "--split", "all", "-o", tmp_path / "all.csv")
    rows = mp.predictions(tmp_path / "all.csv")
    assert [row["id"] for row in rows][:6] == ["'=1+1", "+2", "'-cmd|x", "'@SUM(A1)", "-3.5", "-3g5yACwYnA[3]"]
    assert {row["label"] for row in rows} == {"calm", "'=glad", "sad"}


def test_no_module_of_the_working_directory_is_executed(tmp_path):
    for name in ("glob", "json", "numpy", "optuna", "scipy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'a').write(__name__)\n")
    mp.write_config(tmp_path / "base.txtpb", mp.SMALL_LATE_FUSION + mp.CLASSIFICATION + "training { epochs: 1 batch_size: 20 }\n")
    (tmp_path / "search.txtpb").write_text("# proto-message: muster.launcher.Search\nbase: 'base.txtpb' budget { trials: 1 } objective { metric: 'loss' }\n"
                                           "parameters { path: 'late_fusion.dropout' real { low: 0 high: 0.5 } }\n")
    (tmp_path / "study.txtpb").write_text("# proto-message: muster.launcher.Study\nbase: 'base.txtpb' seeds: 2 variants { name: 'x' set: 'late_fusion.dropout=0' }\n")
    for words in (["search", "run", "search.txtpb"], ["search", "export", "runs/search"], ["study", "study.txtpb"]):
        mp.muster(*words, cwd=tmp_path, changes={"PYTHONPATH": str(tmp_path)})
    assert (tmp_path / "runs/study/table.txt").exists() and not list(tmp_path.rglob("executed"))


def test_threads_are_bounded_by_the_cores(shared, tmp_path):
    cores = len(os.sched_getaffinity(0))
    for words, changes in ((["--set", "training.threads=4096"], {}), ([], {"OMP_NUM_THREADS": "4096"})):
        ended = mp.muster("train", "run/config.txtpb", *words, "--dry-run", cwd=shared, changes=changes)
        assert f"is 4096, but this rank may use {cores} core" in ended.stderr and f"{cores} thread" in ended.stderr
    ended = mp.muster("train", "run/config.txtpb", "--set", "training.threads=3", "--set", "training.share_cores=true", "--dry-run", cwd=shared)
    assert "3 threads each" in ended.stderr and "may use" not in ended.stderr
    assert "--oversubscribe" in mp.muster("launch", "-n", 1, "--threads", 4096, "train", "run/config.txtpb", cwd=shared, code=2).stderr


def test_small_ones(shared, tmp_path):
    # A deleted working directory.
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = mp.execute(["bash", "-c", f'cd {gone} && rmdir {gone} && {mp.built("muster")} config {shared}/run/config.txtpb'])
    assert ended.returncode == 74 and "working directory" in ended.stderr
    # Typographic quotes.
    config = mp.write_config(tmp_path / "quotes.txtpb", "name: “tiny”\n" + mp.CLASSIFICATION + TINY)
    ended = mp.muster("config", config, code=78)
    assert "quotes.txtpb:3: a character other than ASCII" in ended.stderr and ended.stderr.count("ASCII") == 1 and ended.stderr.count("\n") <= 3, ended.stderr
    # Features of another width.
    other = mp.tiny_data(tmp_path / "other.h5", dims={"audio": 5, "vision": 4})
    ended = mp.muster("predict", "--weights", "run/weights/best.safetensors", "--config", "run/config.txtpb", "--data", other, "-o", tmp_path / "p.csv", cwd=shared, code=65)
    assert "modality 'audio' has 5 features here, but the weights were trained on 8" in ended.stderr
    # No test samples.
    data = mp.tiny_data(tmp_path / "no_test.h5", splits=(["train"] * 5 + ["valid"]) * 4)
    run = mp.train(tmp_path, f'data {{ path: "{data}" }}\n' + TINY, "no_test")
    assert "test" not in mp.result(run) and "valid" in mp.result(run) and not (run / "predictions-test.csv").exists()
