"""A configuration that is trained several times, and trials that several ranks train together."""
import json
import os
import signal

import pytest
import searching as s

mp = s.mp
GROUPS = mp.SMALL_LATE_FUSION + "data { synthetic { kind: CLASSIFICATION samples: 60 } split { kind: K_FOLD folds: 3 } }\ntraining { epochs: 3 batch_size: 16 }\n"
REPEATS = {"seeds": ("seed", lambda r: 1 + r), "folds": ("data.split.fold", lambda r: r)}


def curve(run, metric="loss"):
    """What the run says of each epoch's validation."""
    return {row["epoch"]: row["loss"] if metric == "loss" else row["metrics"][metric] for row in mp.metrics_rows(run, "valid")}


@pytest.fixture(scope="module", params=["seeds", "folds"])
def repeated(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    directory = folder / "search"
    spec = s.write_search(folder, trials=4, spec=s.space(s.RATE), base=GROUPS, more=f"repeats {{ {request.param}: 3 }} sampler {{ kind: RANDOM }}\n")
    assert "validation split" not in s.search(spec, directory, 2).stderr  # it is small, but each trial is judged several times
    return request.param, folder, directory


def test_a_trial_is_worth_the_mean_of_its_repeats(repeated):
    _, _, directory = repeated
    for trial in s.study(directory).trials:
        runs = [s.run_of(directory, trial.number) / f"repeat-{repeat}" for repeat in range(3)]
        values = [mp.result(run)["best"]["value"] for run in runs]
        assert trial.value == pytest.approx(sum(values) / 3, rel=1e-12) and len(set(values)) == 3
        # By epochs trained: those of the first repeat, then the mean so far at the end of each. What is half trained is no mean of anything.
        steps = {**curve(runs[0]), 4: sum(values[:2]) / 2, 6: sum(values) / 3}
        assert trial.intermediate_values == pytest.approx(steps, rel=1e-12)


def test_a_repeat_is_the_run_of_its_seed_or_fold(repeated, tmp_path):
    kind, folder, directory = repeated
    path, value_of = REPEATS[kind]
    trial = s.study(directory).trials[1]
    mp.muster("train", folder / "base.txtpb", "--run-dir", tmp_path / "run", *s.overrides(trial), "--set", f"{path}={value_of(2)}", "--set", "training.epochs=2",
              "--set", "evaluation.select_by=loss")
    assert mp.result(tmp_path / "run")["best"]["fingerprint"] == mp.result(s.run_of(directory, 1) / "repeat-2")["best"]["fingerprint"]


def test_a_repeat_that_was_killed_goes_on(repeated, tmp_path):
    """The same space and seed, so the same trials."""
    kind, folder, undisturbed = repeated
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=2, epochs=20, spec=s.space(s.RATE), base=GROUPS, more=f"repeats {{ {kind}: 3 }} sampler {{ kind: RANDOM }}\n")
    with s.start(spec, directory, 2) as job:
        job.wait_for(lambda: list(directory.glob("trials/[0-9]*/repeat-1/checkpoints/step-*")))
        job.kill_all()
    first = {path: path.stat().st_mtime_ns for path in directory.glob("trials/[0-9]*/repeat-0/result.json")}
    assert first
    s.search(spec, directory, 2)
    trials = s.study(directory).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    for path, when in first.items():
        assert path.stat().st_mtime_ns == when  # what was done is not done again
    for trial, twin in zip(trials, s.study(undisturbed).trials):
        runs = [s.run_of(directory, trial.number) / f"repeat-{repeat}" for repeat in range(3)]
        assert trial.params == twin.params and set(trial.intermediate_values) == {*range(1, 21), 40, 60}
        assert trial.value == pytest.approx(sum(mp.result(run)["best"]["value"] for run in runs) / 3, rel=1e-12)
        assert all(set(curve(run)) == set(range(1, 21)) for run in runs)


def test_pruning_compares_repeats_with_repeats(tmp_path):
    """Optuna's own pruner, given the same reports, gives up the same trials at the same steps."""
    import optuna
    directory = tmp_path / "search"
    s.search(s.write_search(tmp_path, trials=10, epochs=2, spec=s.space(s.RATE), more="repeats { seeds: 2 } sampler { kind: RANDOM } pruner { kind: MEDIAN startup_trials: 3 }\n"), directory)
    trials = s.study(directory).trials
    other = optuna.create_study(direction="minimize", pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    for trial in trials:
        twin, pruned = other.ask(), False
        for step, value in sorted(trial.intermediate_values.items()):
            assert not pruned and step in (1, 2, 4)
            twin.report(value, step)
            pruned = twin.should_prune()
        assert pruned == (trial.state.name == "PRUNED")
        other.tell(twin, None if pruned else trial.value, state=trial.state)
    assert {"COMPLETE", "PRUNED"} == {trial.state.name for trial in trials}
    for trial in trials:
        wanted = {f"repeat-{repeat}/{name}" for repeat in range(2) for name in s.SMALL_FILES}
        found = {name for name in s.files_of(directory, trial.number) if not name.startswith("repeat-") or "/" in name}
        assert found - {f"repeat-{r}/weights{f}" for r in range(2) for f in ("", "/best.safetensors")} <= wanted


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    s.search(s.write_search(folder, trials=4, base=s.BASE.replace("batch_size: 16", "batch_size: 16 reproducible: true"), more="sampler { kind: RANDOM }\n"), folder / "search")
    return [s.result_of(folder / "search", number)["best"]["fingerprint"] for number in range(4)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_two_ranks_per_trial_train_the_same_models(ranks, on_one_rank, tmp_path):
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=4, base=s.BASE.replace("batch_size: 16", "batch_size: 16 reproducible: true"), more="sampler { kind: RANDOM } ranks_per_trial: 2\n")
    s.search(spec, directory, ranks)
    assert [s.result_of(directory, number)["best"]["fingerprint"] for number in range(4)] == on_one_rank
    assert {s.result_of(directory, number)["world_size"] for number in range(4)} == {2}


def test_a_stop_that_only_one_rank_of_a_group_has_heard(tmp_path):
    """First one of the two, then, when the search goes on, the other."""
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=2, epochs=40, more="ranks_per_trial: 2\n")

    def saved():
        return set(directory.glob("trials/[0-9]*/checkpoints/step-*"))

    for rank in (0, 1):
        before = saved()
        with s.start(spec, directory, 2) as job:
            job.wait_for(lambda: saved() - before)
            os.kill(job.processes()[0][rank], signal.SIGUSR1)
            code, said = job.end()
        assert code == 75 and said.count("muster: ") == 1, said
        assert s.states(directory) == ["RUNNING"] and not list((directory / "jobs").iterdir())
    s.search(spec, directory, 2)
    assert s.states(directory) == ["COMPLETE"] * 2
    assert json.loads(mp.muster("search", "status", directory, "--json").stdout)["running"] == []
