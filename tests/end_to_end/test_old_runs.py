"""Runs, a search and a study of an earlier muster (tests/data/README.md) are read, continued and completed by this one."""
import json
import shutil
from pathlib import Path

import pytest

import muster_program as mp

DATA = Path(__file__).resolve().parents[1] / "data"


def copied(folder, *names):
    for name in names:
        source = DATA / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    return folder / names[0]


def evaluated(run, *arguments):
    return json.loads(mp.muster("evaluate", run, "--json", *arguments).stdout)


def close(values, tolerance=1e-4):
    return pytest.approx({name: value for name, value in values.items() if isinstance(value, float)}, rel=tolerance, abs=tolerance)


def assert_same_scores(found, expected, tolerance=1e-4):
    assert {name: found["metrics"][name] for name in expected["metrics"]} == close(expected["metrics"], tolerance)
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance) and found["samples"] == expected["samples"]


def assert_same_predictions(found, expected):
    rows, old = mp.predictions(found), mp.predictions(expected)
    assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["label"]) for row in old]
    assert [float(row["prediction"]) for row in rows] == pytest.approx([float(row["prediction"]) for row in old], rel=1e-4, abs=1e-5)


def test_a_finished_run_is_evaluated(tmp_path):
    run = copied(tmp_path, "finished")
    expected = mp.result(run)
    assert "floors" in expected and "trivial_baselines" not in expected  # really an old one
    assert_same_scores(evaluated(run, "-o", tmp_path / "test.csv"), expected["test"])
    assert_same_scores(evaluated(run, "--split", "valid"), expected["valid"])
    assert_same_predictions(tmp_path / "test.csv", run / "predictions-test.csv")


def test_its_weights_predict_what_they_predicted(tmp_path):
    run = copied(tmp_path, "finished")
    mp.muster("data", "synth", "--kind", "regression", "--samples", 20, "-o", tmp_path / "data.h5")
    mp.muster("predict", "--weights", run / "weights/best.safetensors", "--config", run / "config.txtpb", "--data", tmp_path / "data.h5", "-o", tmp_path / "new.csv")
    assert_same_predictions(tmp_path / "new.csv", run / "predicted.csv")


def test_a_stopped_run_is_resumed_to_the_same_scores(tmp_path):
    run = copied(tmp_path, "stopped")
    status = json.loads(mp.muster("status", run, "--json").stdout)
    status = status[0] if isinstance(status, list) else status
    assert (status["state"], status["step"], status["total_steps"]) == ("stopped", 20, 60)
    expected = json.loads((DATA / "stopped-result.json").read_text())
    # Reproducible runs are bound to the kind of processor they began on, and the bits of those with an adapter have changed.
    refused = mp.muster("resume", run, code=78).stderr
    assert "muster, which has changed the order in which the gradients of foal_net's adapter are added up: " in refused, refused
    assert "--force" in refused and refused.count(" -> ") == 1 + ("the numerics: " in refused), refused
    same_processor = "the numerics: " not in refused
    mp.muster("resume", run, "--force")
    result = mp.result(run)
    assert_same_scores(result["test"], expected["test"], 1e-4 if same_processor else 0.05)
    assert_same_scores(evaluated(run), result["test"])
    config = (run / "config.txtpb").read_text()
    assert config.count("# muster-results-version: 3\n") == 1 and "standardize_in_float32: true\n" in config


def test_the_states_are_told(tmp_path):
    status = json.loads(mp.muster("status", copied(tmp_path, "finished"), "--json").stdout)
    status = status[0] if isinstance(status, list) else status
    assert (status["state"], status["step"], status["epochs"]) == ("finished", 9, 3)


def test_a_search_is_continued(tmp_path):
    directory = copied(tmp_path, "search", "search.txtpb", "base.txtpb")
    done = {path: path.read_bytes() for path in directory.glob("trials/*/result.json")}
    assert len(done) == 2
    mp.muster("search", "run", tmp_path / "search.txtpb", "--search-dir", directory)
    assert len(list(directory.glob("trials/*/result.json"))) == 5
    assert done == {path: path.read_bytes() for path in done}


def test_a_study_is_complete(tmp_path):
    directory = copied(tmp_path, "study", "study.txtpb", "base.txtpb")
    done = {path: path.read_bytes() for path in directory.glob("cells/*/*/result.json")}
    assert "0 to do" in mp.muster("study", tmp_path / "study.txtpb", "--study-dir", directory).stderr
    assert len(done) == 2 and done == {path: path.read_bytes() for path in done}
    assert "wide" in (directory / "table.txt").read_text()


def without(text, first, last=None):
    begin = text.index(first)
    return text[:begin] + text[text.index(last or "\n", begin) + len(last or "\n"):]


def test_a_field_that_is_missing_has_the_value_it_had(tmp_path):
    run = copied(tmp_path, "finished")
    text = (run / "config.txtpb").read_text()
    changed = without(without(text, "  min_improvement: "), "deadlines {", "}\n")
    (run / "config.txtpb").write_text(changed)
    assert len(changed.splitlines()) == len(text.splitlines()) - 7
    assert_same_scores(evaluated(run), mp.result(run)["test"])
    stopped = copied(tmp_path, "stopped")
    (stopped / "config.txtpb").write_text(without((stopped / "config.txtpb").read_text(), "  clip_norm: 0\n"))
    mp.muster("resume", stopped, "--force", "--max-steps", 24)
    changes = mp.read_json(stopped / "environment.json")["resumes"][-1]["changes"]
    assert not [change for change in changes if "clip_norm" in change], changes
    assert "  clip_norm: 0\n" in (stopped / "config.txtpb").read_text()
    directory = copied(tmp_path, "search", "search.txtpb", "base.txtpb")
    (directory / "base.txtpb").write_text(without((directory / "base.txtpb").read_text(), "  clip_norm: 0\n"))
    (directory / "search.txtpb").write_text(without((directory / "search.txtpb").read_text(), "  hours: 0\n"))
    mp.muster("search", "run", tmp_path / "search.txtpb", "--search-dir", directory)


def test_a_field_that_is_unknown_is_refused_by_name(tmp_path):
    finished, stopped, search, study = (copied(tmp_path, name) for name in ("finished", "stopped", "search", "study"))
    copied(tmp_path, "search.txtpb"), copied(tmp_path, "study.txtpb"), copied(tmp_path, "base.txtpb")
    for path in (finished / "config.txtpb", stopped / "config.txtpb", search / "base.txtpb", *study.glob("cells/*/*/config.txtpb")):
        path.write_text(path.read_text().replace("  layers: 1\n", "  layers: 1\n  gate_width: 3\n"))
        assert "gate_width" in path.read_text()
    predict = ["predict", "--weights", finished / "weights/best.safetensors", "--config", finished / "config.txtpb", "--data", "none.h5", "-o", tmp_path / "x.csv"]
    for command in (["evaluate", finished], ["resume", stopped], ["search", "run", tmp_path / "search.txtpb", "--search-dir", search],
                    ["study", tmp_path / "study.txtpb", "--study-dir", study], predict):
        refused = mp.muster(*command, code=78).stderr
        assert ".gate_width" in refused and "If a newer muster wrote this file, only that one can read it." in refused, refused


def test_kept_predictions_are_evaluated_with_the_baselines_that_were_kept(tmp_path):
    """A result.json may lack those of metrics that did not exist then: each score stands in its own row all the same."""
    cell = tmp_path / "cell"
    shutil.copytree(DATA / "study" / "cells" / "base" / "seed-1", cell)
    result, stored = mp.result(cell), {"UA": 0.25, "WA": 0.4, "weighted_F1": 0.2286}
    result["trivial_baselines"] = {"test": stored, "prediction": "happy"}
    (cell / "result.json").write_text(json.dumps(result))
    found = {words[0]: words[1:] for words in map(str.split, mp.muster("evaluate", cell).stdout.splitlines()) if words}
    assert {name: float(found[name][1]) for name in stored} == stored and len(found["macro_recall"]) == 2 and found["macro_recall"][1] == "undefined"
