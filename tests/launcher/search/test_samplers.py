"""Optuna's samplers and pruners through `muster search run`, its other storages, and users' own scripts on the same study."""
import itertools

import optuna
import pytest
import searching as s

mp = s.mp
REALS = s.space(s.RATE, 'parameters { path: "late_fusion.dropout" real { low: 0.1 high: 0.5 } }\n', 'parameters { path: "training.batch_size" integer { low: 8 high: 32 step: 8 } }\n')
GRID = s.space('parameters { path: "late_fusion.dropout" real { low: 0.1 high: 0.3 step: 0.1 } }\n', 'parameters { path: "training.batch_size" integer { low: 8 high: 24 step: 8 } }\n',
               s.choices("optimizer.decay_scope", "MATRICES", "ALL_PARAMETERS"))


@pytest.fixture(scope="module", params=["TPE", "CMAES", "GP", "QMC"])
def searched(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    more = f"sampler {{ kind: {request.param} startup_trials: 3 }}\n"
    s.search(s.write_search(folder, trials=6, epochs=1, spec=REALS, more=more), folder / "search", 2)
    return folder / "search"


def test_every_sampler_stays_in_its_space(searched):
    trials = s.study(searched).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert len({str(trial.params) for trial in trials}) == 6
    for trial in trials:
        assert 1e-4 <= trial.params["optimizer.learning_rate"] <= 1e-1 and 0.1 <= trial.params["late_fusion.dropout"] <= 0.5
        assert trial.params["training.batch_size"] in (8, 16, 24, 32)
        assert trial.value == s.result_of(searched, trial.number)["best"]["value"]
    overlapping = sum(a.datetime_start < b.datetime_complete and b.datetime_start < a.datetime_complete for a, b in itertools.combinations(trials, 2))
    assert overlapping >= 3  # by Optuna's own clock, on two ranks


def test_a_grid_has_every_point_once_and_then_an_end(tmp_path):
    directory = tmp_path / "search"
    result = s.search(s.write_search(tmp_path, trials=1000, epochs=1, spec=GRID, more="sampler { kind: GRID }\n"), directory, 2)
    points = [tuple(trial.params[path] for path in ("late_fusion.dropout", "training.batch_size", "optimizer.decay_scope")) for trial in s.study(directory).trials]
    assert sorted(points) == sorted(itertools.product((0.1, 0.2, 0.3), (8, 16, 24), ("MATRICES", "ALL_PARAMETERS")))
    assert "all 18 points of the grid" in result.stdout


def test_median_pruning_is_optunas(tmp_path):
    directory = tmp_path / "search"
    s.search(s.write_search(tmp_path, trials=12, epochs=4, more="sampler { kind: RANDOM } pruner { kind: MEDIAN startup_trials: 4 min_epochs: 2 }\n"), directory)
    trials = s.study(directory).trials
    assert {"COMPLETE", "PRUNED"} == {trial.state.name for trial in trials}
    other = optuna.create_study(direction="minimize", pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2))
    for trial in trials:
        twin, pruned = other.ask(), False
        for step, value in sorted(trial.intermediate_values.items()):
            assert not pruned
            twin.report(value, step)
            pruned = twin.should_prune()
        assert pruned == (trial.state.name == "PRUNED") and (not pruned or len(trial.intermediate_values) >= 2)
        other.tell(twin, None if pruned else trial.value, state=trial.state)


def test_a_study_in_a_database(tmp_path):
    directory, url = tmp_path / "search", f"sqlite:///{tmp_path}/study.db"
    for trials in (2, 3):  # begun and gone on with
        s.search(s.write_search(tmp_path, trials=trials, epochs=1, more=f'storage: "{url}"\n'), directory, 2)
    trials = s.study(directory, storage=url).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3 and not (directory / "journal.log").exists()
    assert trials[2].value == s.result_of(directory, 2)["best"]["value"]
    assert "3 of 3 trials ended" in mp.muster("search", "status", directory).stdout


def test_a_users_script_on_the_same_study(tmp_path):
    """Reads it while it runs, has something trained, and goes on with it afterwards."""
    directory = tmp_path / "search"
    wanted = {"optimizer.learning_rate": 0.0123, "late_fusion.dropout": 0.25, "training.batch_size": 16}
    spec = s.write_search(tmp_path, trials=6, epochs=2, spec=REALS)
    with s.start(spec, directory, 2) as job:
        job.wait_for(lambda: s.is_begun(directory))
        study = s.study(directory)
        study.enqueue_trial(wanted)
        job.wait_for(lambda: any(trial.state.name == "COMPLETE" for trial in s.study(directory).trials))
        code, said = job.end()
    assert code == 0, said
    trials = s.study(directory).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    mine = [trial for trial in trials if trial.params == wanted]
    assert len(mine) == 1 and mp.result(s.run_of(directory, mine[0].number))["best"]["value"] == mine[0].value

    def objective(trial):  # as muster declares the space
        rate = trial.suggest_float("optimizer.learning_rate", 1e-4, 1e-1, log=True)
        return rate + trial.suggest_float("late_fusion.dropout", 0.1, 0.5) + trial.suggest_int("training.batch_size", 8, 32, step=8)

    s.study(directory).optimize(objective, n_trials=3)
    assert len(s.study(directory).trials) == 9 and len(s.study(directory).best_trials) == 1
    s.search(s.write_search(tmp_path, trials=10, epochs=2, spec=REALS), directory)
    assert s.states(directory) == ["COMPLETE"] * 10


def test_something_enqueued_that_the_search_cannot_train(tmp_path):
    directory = tmp_path / "search"
    s.search(s.write_search(tmp_path, trials=1, epochs=1, spec=REALS), directory)
    s.study(directory).enqueue_trial({"optimizer.learning_rate": 5.0})
    s.study(directory).enqueue_trial({"optimizer.rate": 5.0})
    s.search(s.write_search(tmp_path, trials=4, epochs=1, spec=REALS), directory)
    assert s.states(directory) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert "optimizer.learning_rate" in s.reasons(directory)[1] and "optimizer.rate" in s.reasons(directory)[2]
