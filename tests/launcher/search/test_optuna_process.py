"""The Optuna process of a search: its protocol, what it draws and what it prunes. Optuna itself reads every journal."""
import datetime
import json
import math
import os
import pathlib
import random
import tempfile
import xml.etree.ElementTree

import optuna
import pytest
from optuna_client import LINE, SPACE, OptunaProcess, holding, read, search, states
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)
GRID = [{"path": "a", "int": {"low": 1, "high": 3}}, {"path": "b", "categorical": {"values": ["u", "v"]}},
        {"path": "c", "float": {"low": 0, "high": 0.3, "step": 0.1}, "when": {"path": "b", "in": ["v"]}}]  # 3 * (1 + 4) points


@pytest.fixture(scope="module")
def client():
    """One process for the tests that do not need one of their own: it goes from study to study."""
    with OptunaProcess() as client:
        yield client


@pytest.fixture(scope="module")
def another():
    """A second process on the same study."""
    with OptunaProcess() as client:
        yield client


@pytest.fixture
def folder(tmp_path):
    """In memory where possible: an fsync costs nothing there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as folder:
        yield pathlib.Path(folder)


@pytest.fixture
def fresh():
    with OptunaProcess() as client:
        yield client


def test_protocol(fresh, folder):
    client, path = fresh, folder / "journal.log"
    kind, error = client.refused("ask")
    assert kind == "internal" and "open" in error
    for text in ("{", "7", '{"op": "dance"}', '{"op": 3}', "{}"):
        client.send(text)
        assert client.receive()["kind"] == "internal"
    first = client("open", **search(path, space=SPACE))
    assert first["counts"] == {"RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 0, "WAITING": 0}
    assert (first["running"], first["best"], first["repaired"], first["points"]) == ([], [], "", None)

    # Requests sent at once are answered in their order.
    for _ in range(4):
        client.send(op="ask")
    asked = [client.receive() for _ in range(4)]
    assert [answer["number"] for answer in asked] == [0, 1, 2, 3]
    assert client("report", number=0, step=1, value=0.75)["prune"] is False
    assert client("report", number=0, step=1, value=0.25)["prune"] is False  # the first value stays
    running = client("counts")["running"]
    assert [row["number"] for row in running] == [0, 1, 2, 3] and running[0]["values"] == [[1, 0.75]] and running[0]["last_step"] == 1
    assert all(row["job"] == "1" and row["complete_params"] and 0 <= row["seconds_since_start"] < 60 for row in running)
    assert running[2]["params"] == asked[2]["params"]
    assert client("adopt", number=0) == {"ok": True, "number": 0, "params": asked[0]["params"], "reported": [[1, 0.75]], "prune": False, "losses": 0}

    assert client("tell", number=0, state="COMPLETE", value=0.5, attrs={"fingerprint": "ab", "epochs": 3}) == {"ok": True, "state": "COMPLETE", "already": False}
    assert client("tell", number=0, state="COMPLETE", value=0.5)["already"] is True
    assert "COMPLETE" in client.refused("tell", number=0, state="FAIL")[1]
    assert "COMPLETE" in client.refused("report", number=0, step=2, value=1)[1] and "COMPLETE" in client.refused("adopt", number=0)[1]
    client("tell", number=1, state="FAIL", reason="out of memory")
    client("report", number=2, step=3, value=4.5)
    client("tell", number=2, state="PRUNED", value=17)
    for number in (9, -1, "0", None, 1.5):
        assert "no trial" in client.refused("tell", number=number, state="FAIL")[1]
    assert "RUNNING" in client.refused("tell", number=3, state="RUNNING")[1]
    assert "number" in client.refused("report", step=2, value=1)[1] and "hue" in client.refused("ask", hue=3)[1]
    assert client("counts")["best"] == [{"number": 0, "value": 0.5, "params": asked[0]["params"]}] and client("counts", best=0)["best"] == []

    rows, trials = client("trials")["trials"], read(path)
    assert states(trials) == [row["state"] for row in rows] == ["COMPLETE", "FAIL", "PRUNED", "RUNNING"]
    for row, trial, answer in zip(rows, trials, asked):
        assert row["params"] == trial.params == answer["params"] and list(row["params"]) == holding(trial.params)
        assert row["value"] == trial.value and row["values"] == [list(item) for item in trial.intermediate_values.items()]
        assert trial.user_attrs["muster:job"] == row["job"] == "1"
        for moment, own in ((row["start"], trial.datetime_start), (row["end"], trial.datetime_complete)):
            assert (moment is None) == (own is None)
            assert moment is None or abs(datetime.datetime.fromisoformat(moment).timestamp() - own.timestamp()) < 0.002
    assert rows[0]["attrs"] == {"fingerprint": "ab", "epochs": 3} and rows[1]["reason"] == "out of memory" and rows[2]["value"] == 4.5
    assert client("close") == {"ok": True} and client.process.wait(30) == 0
    assert [file.name for file in folder.iterdir()] == ["journal.log"]  # no lock, nothing else


def test_end_of_input(fresh, folder):
    client = fresh.opened(folder / "journal.log")
    assert client("ask")["number"] == 0
    assert client.end() == 0 and [file.name for file in folder.iterdir()] == ["journal.log"]


BAD = [({"sampler": {"name": "tpo"}}, ["tpo", "tpe, cmaes, gp, random, qmc, grid"]), ({"pruner": {"name": "hyper"}}, ["hyper", "none, median, asha"]),
       ({"sampler": {"name": "tpe", "startup": 3}}, ["startup", "startup_trials"]), ({"direction": "up"}, ["up", "minimize, maximize"]),
       ({"pruner": {"name": "asha", "reduction_factor": 1}}, ["reduction_factor"]), ({"sampler": {"name": "qmc", "sequence": "x"}}, ["sobol"]),
       ({"space": [{"path": "q"}]}, ["q", "float, int, categorical"]), ({"space": [{"path": "q", "float": {"low": 1}}]}, ["q", "high"]),
       ({"space": [{"path": "q", "float": {"low": 2, "high": 1}}]}, ["q", "low"]), ({"space": LINE + LINE}, ["x", "twice"]),
       ({"space": [{"path": "q", "float": {"low": 0, "high": 1, "log": True}}]}, ["q", "log"]), ({"sampler": {"name": "grid"}}, ["x", "step"]),
       ({"space": [{"path": "q", "categorical": {"values": [1, True]}}]}, ["q", "equal"]),
       ({"space": [{**LINE[0], "when": {"path": "later", "in": [1]}}]}, ["x", "later"]),
       ({"space": [{"path": p, "int": {"low": 1, "high": 500}} for p in "ab"], "sampler": {"name": "grid"}}, ["100000 points"]),
       ({"storage": "postgres9://x"}, ["postgres9"]), ({"storage": "/nowhere/journal.log"}, ["/nowhere/journal.log"]),
       ({"storage": __file__}, [__file__, "no journal"]), ({"read_only": True}, ["journal.log"])]


def test_errors_are_for_people(client, folder):
    before = open(__file__, "rb").read()
    for wrong, words in BAD:
        kind, error = client.refused("open", **{**search(folder / "journal.log"), **wrong})
        assert all(word in error for word in words) and len(error) < 300, error
        assert kind == ("storage" if "storage" in wrong or "read_only" in wrong else "config"), error
    assert open(__file__, "rb").read() == before and not list(folder.iterdir())
    client("open", **search(folder / "journal.log"))  # and it is none the worse for it


def test_without_optuna(folder):
    (folder / "optuna.py").write_text('raise ModuleNotFoundError("No module named \'optuna\'")')
    with OptunaProcess(environment={"PYTHONPATH": str(folder)}) as client:
        kind, error = client.refused("open", **search(folder / "journal.log"))
        assert kind == "config" and "optuna" in error and "pip install -r requirements.txt" in error
        assert client.end() == 0


@pytest.mark.parametrize("storage", ["journal.log", "sqlite"])
def test_another_search_is_refused(client, folder, storage):
    storage = str(folder / storage) if storage != "sqlite" else f"sqlite:///{folder}/study.db"
    assert client.opened(storage, "tpe", space=SPACE)("ask")["number"] == 0
    narrow = json.loads(json.dumps(SPACE).replace("64", "32")) + LINE
    for other, words in (({"direction": "maximize"}, ["minimize", "maximize"]), ({"metric": "acc"}, ["mae", "acc"]), ({"seed": 8}, ["7", "8"]),
                         ({"sampler": {"name": "tpe", "startup_trials": 3}}, ["10", "3"]), ({"pruner": {"name": "median"}}, ["none", "median"]),
                         ({"space": SPACE[::4]}, ["foal_net.fusion", "any more"]),
                         ({"space": narrow}, ["x is new", "training.batch_size", "8 to 64", "8 to 32"]),
                         ({"space": [SPACE[1], SPACE[0], *SPACE[2:]]}, ["order"])):
        kind, error = client.refused("open", **{**search(storage, "tpe", space=SPACE), **other})
        assert kind == "config" and all(word in error for word in words), error
    again = client("open", **search(storage, "tpe", space=SPACE, job="2"))
    assert again["counts"]["RUNNING"] == 1 and again["running"][0]["job"] == "1"
    assert client("ask")["number"] == 1
    assert [trial.user_attrs["muster:job"] for trial in read(storage)] == ["1", "2"]
    foreign = optuna.create_study(study_name="theirs", storage=storage if "://" in storage else optuna.storages.JournalStorage(JournalFileBackend(storage)))
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    assert "theirs" in client.refused("open", **search(storage, study="theirs"))[1]


def test_read_only_changes_nothing(client, folder):
    path = folder / "journal.log"
    (folder / "another").mkdir()
    client.opened(path)("ask")
    client.opened(folder / "another" / "journal.log")
    with open(path, "ab") as file:
        file.write(b'{"op_code":6,"tri')
    before, files = path.read_bytes(), set(folder.iterdir())
    look = search(path, read_only=True)
    assert client.refused("open", **{**look, "study": "none"})[0] == "config"
    assert client("open", **look)["counts"]["RUNNING"] == 1
    assert len(client("trials")["trials"]) == 1 and "look" in client.refused("ask")[1]
    assert path.read_bytes() == before and set(folder.iterdir()) == files


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes", "grid"])
def test_draws_depend_on_seed_number_and_storage_only(client, another, folder, sampler):
    """A second process, or the first one started again, draws what one process would have drawn."""
    space, values = GRID if sampler == "grid" else LINE + [{**LINE[0], "path": "y"}], [3.0, 1.0, 4.0, 1.5, 9.0, 2.0]
    options = {"name": sampler, **({"startup_trials": 2} if sampler == "tpe" else {})}

    def draw(client, name, numbers, seed=7):
        client.opened(folder / name, options, space=space, seed=seed)
        drawn = []
        for number in numbers:
            drawn.append(client("ask")["params"])
            client("tell", number=number, state="COMPLETE", value=values[number])
        return drawn

    one = draw(client, "one", range(6))
    several = draw(client, "several", range(2))
    several += draw(another, "several", range(2, 6))
    assert one == several != draw(client, "other", range(6), seed=8)
    assert len({json.dumps(params) for params in one}) == 6


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "gp", "qmc"])
def test_conditions_and_chains(client, folder, sampler):
    options = {"name": sampler, **({"startup_trials": 4} if sampler in ("tpe", "gp") else {})}
    note = "".join(client("open", **search(folder / "journal.log", options, space=SPACE)).get("notes", []))
    left = {"cmaes": ["foal_net.fusion", "foal_net.heads", "foal_net.scale"], "gp": ["foal_net.heads", "foal_net.scale"]}.get(sampler, [])
    assert all(path in note for path in left) and bool(note) == bool(left)
    for number in range(10):
        params = client("ask")["params"]
        assert list(params) == holding(params)
        if number % 3:
            client("tell", number=number, state="COMPLETE", value=params["training.batch_size"] + params["optimizer.learning_rate"])
    trials = read(folder / "journal.log")
    assert {tuple(holding(trial.params)) for trial in trials} >= {tuple(trial.params) for trial in trials} and len({tuple(t.params) for t in trials}) > 1
    assert all(1e-5 <= t.params["optimizer.learning_rate"] <= 1e-2 and t.params["training.batch_size"] % 8 == 0 for t in trials)
    assert {json.dumps(t.params["foal_net.fusion"]) for t in trials} <= {'"a"', '"b"', "3", "true"}


def test_grid_limit_and_enqueued_trials(client, folder):
    path = folder / "journal.log"
    assert client("open", **search(path, "grid", space=GRID))["points"] == 15
    theirs = optuna.load_study(study_name="mosi", storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    theirs.enqueue_trial({"a": 2, "b": "u"})
    theirs.enqueue_trial({"a": 7, "b": "u"})
    theirs.enqueue_trial({"b": "w"})
    theirs.enqueue_trial({"z": 1})
    assert client("ask", limit=1) == {"ok": True, "number": 0, "params": {"a": 2, "b": "u"}}
    assert "1 trials" in (answer := client("ask", limit=1))["why"] and answer["full"] is True
    found = []
    while "full" not in (answer := client("ask")):
        found.append(tuple(answer["params"].items()))
    assert "15 points" in answer["why"] and answer == client("ask")
    assert set(found) == {(("a", a), ("b", "u")) for a in (1, 2, 3)} | {(("a", a), ("b", "v"), ("c", c)) for a in (1, 2, 3) for c in (0, 0.1, 0.2, 0.3)}
    assert len(found) == 15
    reasons = [trial.user_attrs["muster:reason"] for trial in read(path) if trial.state.name == "FAIL"]
    assert len(reasons) == 3 and "a = 7" in reasons[0] and "b = w" in reasons[1] and "z" in reasons[2]


def curve(number, step):
    return round(random.Random(f"{number}").random() + random.Random(f"{number} {step}").random() / step, 3)


@pytest.mark.parametrize("pruner, direction", [({"name": "asha", "reduction_factor": 2}, "minimize"), ({"name": "asha", "reduction_factor": 3}, "maximize"),
                                               ({"name": "asha", "min_resource": 2, "reduction_factor": 2, "min_early_stopping_rate": 1}, "minimize"),
                                               ({"name": "median", "startup_trials": 3, "warmup_steps": 2}, "minimize")])
def test_prunes_what_optuna_prunes(client, folder, pruner, direction):
    options = {key: value for key, value in pruner.items() if key != "name"}
    own = optuna.pruners.SuccessiveHalvingPruner(**{"min_resource": 1, **options}) if pruner["name"] == "asha" else optuna.pruners.MedianPruner(3, 2)
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=0), pruner=own)
    client.opened(folder / "journal.log", pruner=pruner, direction=direction)
    for first in range(0, 18, 3):  # three trials side by side
        running = {client("ask")["number"]: study.ask() for _ in range(3)}
        assert list(running) == [first, first + 1, first + 2]
        for step in range(1, 10):
            for number, trial in list(running.items()):
                trial.report(curve(number, step), step)
                expected = trial.should_prune()
                for _ in range(2):  # the answer to the first report may get lost
                    assert client("report", number=number, step=step, value=curve(number, step))["prune"] == expected
                if expected or step == 9:
                    del running[number]
                    study.tell(trial, None if expected else curve(number, step), optuna.trial.TrialState.PRUNED if expected else None)
                    client("tell", number=number, state="PRUNED" if expected else "COMPLETE", value=curve(number, step))
    best = sorted((t for t in study.trials if t.state.name == "COMPLETE"), key=lambda t: t.value, reverse=direction == "maximize")
    assert [(row["number"], row["value"]) for row in client("counts", best=3)["best"]] == [(t.number, t.value) for t in best[:3]]
    trials = read(folder / "journal.log")
    assert states(trials) == states(study.trials) and len(set(states(trials))) == 2
    assert [trial.value for trial in trials] == [trial.value for trial in study.trials]
    assert [trial.intermediate_values for trial in trials] == [trial.intermediate_values for trial in study.trials]


@pytest.mark.parametrize("storage", ["journal.log", "sqlite"])
def test_numbers_that_are_not_finite(client, folder, storage):
    storage = folder / storage if storage != "sqlite" else f"sqlite:///{folder}/study.db"
    strange = ["nan", "inf", "-inf", None]
    client.opened(storage, {"name": "tpe", "startup_trials": 2}, {"name": "median", "startup_trials": 1})
    for number in range(8):
        assert client("ask")["number"] == number
        assert client("report", number=number, step=1, value=1.0 if number == 0 else strange[number % 4])["prune"] is False
        told = client("tell", number=number, state="COMPLETE", value=strange[number % 4] if number > 3 else number)
        assert told["state"] == ("FAIL" if number > 3 else "COMPLETE")
    assert client("tell", number=7, state="COMPLETE", value=None)["already"] is True
    rows = client("trials")["trials"]
    assert [row["values"][0][1] for row in rows[1:5]] == ["inf", "-inf", "nan", "nan"] and client("counts")["best"][0]["value"] == 0
    trials = read(storage)
    assert states(trials) == ["COMPLETE"] * 4 + ["FAIL"] * 4 and "nan" in trials[4].user_attrs["muster:reason"]
    assert trials[1].intermediate_values[1] == math.inf and trials[2].intermediate_values[1] == -math.inf and math.isnan(trials[3].intermediate_values[1])


SLOW = """
import time
from optuna.storages import JournalStorage
for name in ("create_new_trial", "set_study_system_attr"):
    def slow(*arguments, method=getattr(JournalStorage, name), **others):
        time.sleep(0.01)
        return method(*arguments, **others)
    setattr(JournalStorage, name, slow)
"""


@pytest.fixture(scope="module")
def slow_ones(tmp_path_factory):
    """Two processes that are slowed down between looking and writing, so that whatever another one may do in between, it does."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "sitecustomize.py").write_text(SLOW)
    with OptunaProcess(environment={"PYTHONPATH": str(folder)}) as one, OptunaProcess(environment={"PYTHONPATH": str(folder)}) as two:
        yield {"1": one, "2": two}


ROUNDS = 15 if os.environ.get("MUSTER_FULL_TESTS") == "1" else 6


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_two_jobs_on_one_study(slow_ones, folder, sampler):
    """Both ask at the same instant, for two trials that are left, or for one: never is there one too many, never are two alike."""
    path, limit, own, jobs = folder / "journal.log", 0, {"1": [], "2": []}, slow_ones
    for job, client in jobs.items():
        client.opened(path, sampler, {"name": "asha"}, job=job)
    for more in [2, 1] * ROUNDS:
        limit += more
        for client in jobs.values():
            client.send(op="ask", limit=limit)
        answers = {job: client.receive() for job, client in jobs.items()}
        assert sum("number" in answer for answer in answers.values()) == more, answers
        for job, answer in answers.items():
            if "number" in answer:
                own[job].append(answer["number"])
                value = answer["params"]["x"] ** 2
                stop = jobs[job]("report", number=answer["number"], step=1, value=value)["prune"]
                jobs[job].send(op="tell", number=answer["number"], state="PRUNED" if stop else "COMPLETE", value=value)
        assert all(jobs[job].receive()["ok"] for job, answer in answers.items() if "number" in answer)
    assert jobs["1"]("counts") == jobs["2"]("counts")
    trials = read(path)
    assert sorted(own["1"] + own["2"]) == list(range(3 * ROUNDS)) == [trial.number for trial in trials]
    assert set(states(trials)) <= {"COMPLETE", "PRUNED"} and len({trial.params["x"] for trial in trials}) == 3 * ROUNDS
    for job, numbers in own.items():
        assert all(trials[number].user_attrs["muster:job"] == job for number in numbers)


def test_importance_and_plots(client, folder):
    path, space = folder / "journal.log", LINE + [{**LINE[0], "path": "y"}]
    client.opened(path, space=space)
    assert client("importance") == {"ok": True, "importance": {}, "method": "fANOVA", "why": "fewer than 2 trials are complete"}
    assert client("plots", folder=str(folder))["files"] == []
    for number in range(3):
        client("ask")
        client("tell", number=number, state="COMPLETE", value=2)
    assert "equal" in client("importance")["why"]
    for number in range(3, 12):
        params = client("ask")["params"]
        client("report", number=number, step=1, value=3)
        client("tell", number=number, state="COMPLETE", value=params["x"] ** 2 + 0.01 * params["y"])
    study = optuna.load_study(study_name="mosi", storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    expected = optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    assert client("importance")["importance"] == pytest.approx(expected) and expected["x"] > 0.6
    names = client("plots", folder=str(folder))["files"]
    assert sorted(names) == ["history.svg", "importance.svg", "intermediate.svg", "parallel.svg", "slices.svg"]
    first = {name: (folder / name).read_bytes() for name in names}
    assert all(xml.etree.ElementTree.fromstring(text).tag.endswith("svg") for text in first.values())
    client("plots", folder=str(folder))
    assert first == {name: (folder / name).read_bytes() for name in names}
    assert client.refused("plots", folder=str(folder / "none"))[0] == "storage"


def test_tpe_beats_random(client, folder):
    """On a planted quadratic, 30 trials, 10 seeds; the random search is plain Optuna's."""
    def objective(params):
        return sum((params[name] - planted) ** 2 for name, planted in (("x", 2.0), ("y", -1.0)))

    space, wins = LINE + [{**LINE[0], "path": "y"}], 0
    for seed in range(10):
        client.opened(folder / f"{seed}.log", "tpe", space=space, seed=seed)
        for number in range(30):
            client("tell", number=number, state="COMPLETE", value=objective(client("ask")["params"]))
        best = client("counts")["best"][0]["value"]
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        study.optimize(lambda trial: objective({name: trial.suggest_float(name, -5, 5) for name in "xy"}), 30)
        wins += best < study.best_value
    print(wins)
    assert wins >= 8


def test_a_trial_is_never_nobodys(fresh, folder):
    """Killed after any record: what runs says whose it is, so that another job can go on with it."""
    path = folder / "journal.log"
    fresh("open", **search(path, space=SPACE))
    fresh("ask")
    study = optuna.load_study(study_name="mosi", storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    study.enqueue_trial({"training.batch_size": 16})
    assert fresh("ask")["params"]["training.batch_size"] == 16
    fresh("ask")
    lines = path.read_text().splitlines(keepends=True)
    running = 0
    for end in range(2, len(lines) + 1):
        (folder / "cut.log").write_text("".join(lines[:end]))
        for trial in read(folder / "cut.log"):
            running += trial.state.name == "RUNNING"
            assert trial.state.name == "WAITING" or trial.user_attrs["muster:job"] == "1"
    assert running > 10


def test_losses_are_counted_until_something_is_reported(fresh, folder):
    def adopted(job, lost):
        return fresh.opened(folder / "journal.log", job=job)("adopt", number=0, lost=lost)["losses"]

    fresh.opened(folder / "journal.log", job="0")("ask")
    assert [adopted(job, lost) for job, lost in (("1", True), ("2", False), ("3", True))] == [1, 1, 2]
    fresh("report", number=0, step=1, value=1)
    assert [adopted(job, lost) for job, lost in (("4", False), ("5", True), ("6", True))] == [0, 1, 2]
