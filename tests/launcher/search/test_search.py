"""`muster search`: what its journal says, read by Optuna itself, and that every trial is the run that a user would get."""
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time

import optuna
import pytest
import searching as s
from optuna.trial import TrialState
from searching import BASE, SPEC, command, fingerprint, mp, result_of, run_of, search, start, states, study, write_search


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """{ranks: (directory, what was said)} of one and the same search, finished on so many. Read only."""
    found = {}
    for ranks in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"on{ranks}")
        found[ranks] = folder / "search", search(write_search(folder, more="sampler { kind: RANDOM }\n"), folder / "search", ranks)
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_trial_is_in_the_journal_once(ranks, finished):
    directory, result = finished[ranks]
    trials = study(directory).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 8
    assert len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == 8
    for trial in trials:
        assert trial.value == result_of(directory, trial.number)["best"]["value"]
        assert set(trial.intermediate_values) == {1, 2} and trial.value == min(trial.intermediate_values.values())
        assert ("optimizer.step_factor" in trial.params) == (trial.params["optimizer.schedule"] == "STEP")
        assert "test" not in result_of(directory, trial.number)  # a search never looks there
    if ranks > 1:
        overlaps = sum(a.datetime_start < b.datetime_complete and b.datetime_start < a.datetime_complete for a in trials for b in trials if a.number < b.number)
        assert overlaps >= 3
    assert f"trial {study(directory).best_trial.number}," in result.stdout


def test_the_best_trial_can_be_trained_again(finished, tmp_path):
    directory, _ = finished[2]
    best = study(directory).best_trial.number
    (tmp_path / "best-study.txtpb").write_text("mine")
    assert "not a study file" in mp.muster("search", "best", directory, "-o", tmp_path / "best.txtpb", code=2).stderr
    assert not (tmp_path / "best.txtpb").exists()
    (tmp_path / "best-study.txtpb").unlink()
    for _ in range(2):  # the second time its own files are there
        said = mp.muster("search", "best", directory, "-o", tmp_path / "best.txtpb").stdout
    study_command = re.search("repeat it over seeds with: muster (.*)", said)[1].split()
    said = mp.muster(*study_command, "--study-dir", tmp_path / "study").stdout
    assert "small-best-study: test split, 5 seeds" in said and "trivial: majority class" in said
    seeds = [mp.result(tmp_path / f"study/cells/base/seed-{seed}")["best"]["fingerprint"] for seed in range(1, 6)]
    assert seeds[0] == result_of(directory, best)["best"]["fingerprint"] and len(set(seeds)) == 5
    mp.muster("train", tmp_path / "best.txtpb", "--run-dir", tmp_path / "again")
    assert fingerprint(tmp_path / "again" / "weights/best.safetensors") == result_of(directory, best)["best"]["fingerprint"]
    # Of the others nothing is left but a few small files.
    for number in range(8):
        names = {str(path.relative_to(run_of(directory, number))) for path in run_of(directory, number).rglob("*") if path.is_file()}
        assert names == s.SMALL_FILES | ({"weights/best.safetensors"} if number == best else set())


def test_every_number_can_be_computed_again(finished, tmp_path):
    """By the weights where they are kept, otherwise by the predictions."""
    directory, _ = finished[2]
    best = study(directory).best_trial.number
    for number in (best, (best + 1) % 8):
        run, valid = run_of(directory, number), result_of(directory, number)["valid"]
        again = json.loads(mp.muster("evaluate", run, "--split", "valid", "--json", "-o", tmp_path / f"{number}.csv").stdout)
        assert again["metrics"] == pytest.approx(valid["metrics"], nan_ok=True) and again["samples"] == valid["samples"] and again["confusion"] == valid["confusion"]
        assert (tmp_path / f"{number}.csv").read_bytes() == (run / "predictions-valid.csv").read_bytes()
        shown = mp.muster("evaluate", run, "--split", "valid").stdout
        assert ("the weights were not kept" in shown) == (number != best) and "valid baseline" in shown
    refused = mp.muster("evaluate", run_of(directory, (best + 1) % 8), code=2).stderr
    assert "the weights were not kept, so no other data or split can be evaluated, only what the best ones have predicted: --split valid" in refused


def test_a_trial_does_not_depend_on_where_it_ran(finished):
    prints = [[result_of(directory, number)["best"]["fingerprint"] for number in range(8)] for directory, _ in finished.values()]
    assert prints[0] == prints[1] == prints[2] and len(set(prints[0])) == 8


def test_asha_gives_up_what_optuna_would(tmp_path):
    directory = tmp_path / "search"
    search(write_search(tmp_path, trials=16, epochs=4, more="pruner { kind: ASHA reduction: 2 }\nsampler { kind: RANDOM }\n"), directory)
    trials = study(directory).trials
    assert {TrialState.COMPLETE, TrialState.PRUNED} == {trial.state for trial in trials}
    # The same reports in the same order, by Optuna alone.
    other = optuna.create_study(direction="minimize", pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2, min_early_stopping_rate=0))
    for trial in trials:
        twin = other.ask()
        pruned = False
        for step, value in sorted(trial.intermediate_values.items()):
            assert not pruned
            twin.report(value, step)
            pruned = twin.should_prune()
        other.tell(twin, None if pruned else trial.value, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)
        assert pruned == (trial.state == TrialState.PRUNED)


def test_two_jobs_on_one_search(tmp_path):
    directory = tmp_path / "search"
    spec = write_search(tmp_path, trials=14)
    jobs = [subprocess.Popen(command(spec, directory), env=mp.environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    for job in jobs:
        output = job.communicate(timeout=200)[0]
        assert job.returncode == 0, output
    trials = study(directory).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 14
    assert len({trial.user_attrs["muster:job"] for trial in trials}) == 2
    assert not list((directory / "jobs").iterdir())


def test_a_stop_saves_and_the_search_goes_on(tmp_path):
    directory = tmp_path / "search"
    spec = write_search(tmp_path, trials=2, epochs=80)
    process = subprocess.Popen(command(spec, directory, 2), env=mp.environment({}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 60
    while not list(directory.glob("trials/[0-9]*/checkpoints/step-*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and f"Continue with: muster search run {spec} --search-dir {directory}\n" in output, output
    search(spec, directory, 2)
    assert [trial.state for trial in study(directory).trials] == [TrialState.COMPLETE] * 2


def test_what_a_process_group_is_told_does_not_reach_optuna(tmp_path):
    """Slurm signals all processes of a task, a terminal all of its group: Optuna's process is needed until the ranks have stopped."""
    directory = tmp_path / "search"
    with start(write_search(tmp_path, trials=4, epochs=60), directory, 2) as job:
        job.wait_for(lambda: list(directory.glob("trials/[0-9]*/checkpoints/step-*")))
        _, (python,) = job.processes()
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(python, sign)
        answered = (directory / "journal.log").read_bytes().count(b"\n")
        job.wait_for(lambda: (directory / "journal.log").read_bytes().count(b"\n") >= answered + 10)
        assert job.processes()[1] == [python]
        assert job.end()[0] == 0
        assert states(directory) == ["COMPLETE"] * 4


def test_all_mistakes_of_a_spec_at_once(tmp_path):
    spec = """
base: "base.txtpb"
parameters { path: "optimizer.learningrate" real { low: 1e-4 high: 1e-1 } }
parameters { path: "training.batch_size" integer { low: 64 high: 8 } }
parameters { path: "optimizer.schedule" categorical { values: ["STEP", "STEPS"] } }
parameters { path: "training.epochs" integer { low: 1 high: 3 } }
objective { metric: "test_WA" }
"""
    path = write_search(tmp_path, spec=spec)
    text = search(path, tmp_path / "search", 2, code=78).stderr
    for line, words in {4: "learning_rate", 5: "low", 6: "STEPS", 7: "budget.epochs", 8: "never looks at the test split"}.items():
        found = [row for row in text.splitlines() if f"small.txtpb:{line}:" in row]
        assert found and words in " ".join(found), text
    assert not (tmp_path / "search").exists() and text.count("muster: ") == 1


def test_another_search_in_the_same_place_is_refused(finished, tmp_path):
    directory, random = tmp_path / "search", "sampler { kind: RANDOM }\n"
    shutil.copytree(finished[1][0], directory)
    text = search(write_search(tmp_path, more=random, base=BASE + "optimizer { weight_decay: 0.5 }\n"), directory, code=78).stderr
    assert "optimizer.weight_decay: 0.01 -> 0.5" in text
    for spec, more, said in ((SPEC.replace("1e-1", "0.5"), "", "parameters[0].real.high: 0.1 -> 0.5"), (SPEC, "pruner { kind: ASHA }\n", "pruner.kind: NONE -> ASHA")):
        text = search(write_search(tmp_path, spec=spec, more=random + more), directory, code=78).stderr
        assert said in text and text.count("->") == 1, text
    search(write_search(tmp_path, trials=10, more=random), directory)  # the budget may grow
    assert len(study(directory).trials) == 10


def test_status_and_export(finished, tmp_path):
    directory, _ = finished[1]
    seen = json.loads(mp.muster("search", "status", directory, "--json").stdout)
    assert seen["counts"]["COMPLETE"] == 8 and seen["best"][0]["value"] == study(directory).best_value
    (tmp_path / "export").mkdir()
    (tmp_path / "export/trials.csv").write_text("mine\n")
    assert "something else is there" in mp.muster("search", "export", directory, "-o", tmp_path / "export", code=2).stderr
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["trials.csv"] and (tmp_path / "export/trials.csv").read_text() == "mine\n"
    (tmp_path / "export/trials.csv").unlink()
    assert "the run itself" in mp.muster("search", "export", directory, "-o", directory / "trials", code=2).stderr
    for _ in range(2):  # its own files are replaced
        mp.muster("search", "export", directory, "-o", tmp_path / "export")
    rows = (tmp_path / "export/trials.csv").read_text().splitlines()
    assert len(rows) == 9 and rows[0].startswith("trial,state,value") and "optimizer.learning_rate" in rows[0]
    assert (tmp_path / "export/history.svg").read_text().lstrip().startswith("<?xml")


def test_what_is_kept_of_trials(tmp_path):
    """A few small files of each; the weights of the best. Of those given up, those that failed, and when fewer are to be kept than before."""
    directory = tmp_path / "search"
    spec = s.space(s.RATE, s.choices("late_fusion.classes", 0, 4, 7))
    more = "pruner { kind: ASHA reduction: 2 } sampler { kind: RANDOM } ranks_per_trial: 2 keep_weights: %d\n"
    for keep in (3, 1, 0):
        search(write_search(tmp_path, trials=9, epochs=2, spec=spec, more=more % keep), directory, 2)
        trials = study(directory).trials
        assert {"COMPLETE", "PRUNED", "FAIL"} == {trial.state.name for trial in trials} and len(trials) == 9
        best = sorted((trial.value, trial.number) for trial in trials if trial.state == TrialState.COMPLETE)[:keep]
        for trial in trials:
            files = {TrialState.COMPLETE: s.SMALL_FILES, TrialState.PRUNED: s.SMALL_FILES - s.OF_A_RESULT, TrialState.FAIL: set()}[trial.state]
            kept = {"weights", "weights/best.safetensors"} if trial.number in {number for _, number in best} else set()
            assert s.files_of(directory, trial.number) == files | kept, trial
    assert {path.name for path in directory.iterdir()} == {"search.txtpb", "base.txtpb", "journal.log", "trials", "jobs", "logs"}


def test_the_progress_of_a_search(finished, tmp_path):
    note, *said = finished[1][1].stderr.splitlines()
    valid = sum(1 for _ in open(run_of(finished[1][0], 0) / "predictions-valid.csv")) - 1
    assert note.startswith(f"note: the validation split has {valid} samples") and "repeats" in note
    assert 2 <= len(said) <= 9 and "\r" not in "".join(said) and said[-1].startswith("[8/8] best loss "), said
    spec = write_search(tmp_path, trials=6, epochs=1)
    ours, theirs = pty.openpty()
    with subprocess.Popen(command(spec, tmp_path / "terminal"), env=mp.environment({}), stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        try:
            while chunk := os.read(ours, 4096):
                text += chunk
        except OSError:  # a terminal's end
            pass
        assert process.wait() == 0
    os.close(ours)
    note, first, rest = text.decode().split("\r\n", 2)
    assert note.startswith("note: the validation split") and "6 trials of 1 epochs" in first and rest.count("\n") == 1 and rest.count("\r\033[K") == 0
    shown = rest.rstrip().split("\r")
    assert all(len(line) <= 80 + len("\033[K") for line in shown) and "[6/6] best loss " in shown[-1] and "0 running, 0 failed" in shown[-1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (mp.ROOT / "experiments/searches").glob("*.txtpb")))
def test_the_shipped_searches_begin(name, tmp_path):
    """As they are, but for their size."""
    shutil.copytree(mp.ROOT / "experiments", tmp_path / "experiments")
    spec = tmp_path / f"experiments/searches/{name}.txtpb"
    text, changed = re.subn(r"budget \{ trials: \d+ epochs: \d+ \}", "budget { trials: 1 epochs: 1 }", spec.read_text())
    assert changed == 1
    spec.write_text(text + 'set: "data.synthetic.samples=60"\n')
    search(spec, tmp_path / "search")
    trial, = study(tmp_path / "search", f"{name}-search").trials
    assert trial.state == TrialState.COMPLETE
