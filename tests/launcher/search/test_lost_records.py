"""The journal and the directories of the trials say the same, or the search says that they do not: nothing is judged twice."""
import json
import shutil

import pytest
import searching as s
from searching import mp, result_of, run_of, search, study, write_search

PRUNER = 'pruner { kind: MEDIAN startup_trials: 1 }\n'


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A search with pruned trials. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    search(write_search(folder, trials=5, epochs=2, more="sampler { kind: RANDOM }\n" + PRUNER), folder / "search")
    return folder / "search"


def ended(directory, records=None):
    return [(t.number, t.state.name, t.value, t.params) for t in study(directory).trials]


def copy(finished, tmp_path, drop):
    """The search without the last `drop` records of its journal, and its spec with room for one more trial."""
    directory = tmp_path / "search"
    shutil.copytree(finished, directory, symlinks=True)
    records = (directory / "journal.log").read_text().splitlines(keepends=True)
    (directory / "journal.log").write_text("".join(records[:len(records) - drop]))
    return directory, write_search(tmp_path, trials=6, epochs=2, more="sampler { kind: RANDOM }\n" + PRUNER)


def end_of_trial(finished, state):
    """How many records follow that of the end of the last trial which ended so, that one included."""
    records = [json.loads(line) for line in (finished / "journal.log").read_text().splitlines()]
    number = {"COMPLETE": 1, "PRUNED": 2}[state]
    return len(records) - max(i for i, record in enumerate(records) if record["op_code"] == 6 and record.get("state") == number)


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED"])
@pytest.mark.parametrize("further", [0, 1])
def test_a_lost_end_of_a_trial_is_found_in_its_directory(finished, tmp_path, state, further):
    before = ended(finished)
    assert {"COMPLETE", "PRUNED"} <= {row[1] for row in before}
    directory, spec = copy(finished, tmp_path, end_of_trial(finished, state) + further)
    files = {number: (run_of(directory, number) / "result.json").stat().st_mtime_ns for number in range(5) if (run_of(directory, number) / "result.json").exists()}
    search(spec, directory)
    after = ended(directory)
    assert after[:5] == before and len(after) == 6 and after[5][1] in ("COMPLETE", "PRUNED")
    assert files == {number: (run_of(directory, number) / "result.json").stat().st_mtime_ns for number in files}, "a finished trial was trained again"


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED"])
def test_a_trial_whose_values_are_lost_is_not_judged_by_others(finished, tmp_path, state):
    directory, spec = copy(finished, tmp_path, end_of_trial(finished, state) + 4)
    error = search(spec, directory, code=74).stderr
    assert "was trained with other values" in error and "move" in error and str(directory / "trials") in error


def test_a_journal_that_was_replaced_is_refused(finished, tmp_path):
    directory, spec = copy(finished, tmp_path, 0)
    number = next(row[0] for row in ended(directory) if row[1] == "COMPLETE")
    result = result_of(directory, number)
    result["best"]["value"] += 0.5
    (run_of(directory, number) / "result.json").write_text(json.dumps(result))
    error = search(spec, directory, code=74).stderr
    assert f"trial {number}: " in error and "One of the two was replaced" in error
    assert ended(directory) == ended(finished)


def test_a_directory_of_another_trial_is_refused(finished, tmp_path):
    directory, spec = copy(finished, tmp_path, end_of_trial(finished, "COMPLETE"))
    lost = [number for number, state, _, _ in ended(finished) if state == "COMPLETE"][-1]
    config = run_of(directory, lost) / "config.txtpb"
    config.write_text(config.read_text().replace("learning_rate:", "learning_rate: 0.5 #"))
    error = search(spec, directory, code=74).stderr
    assert "optimizer.learning_rate: 0.5 there" in error and "move" in error


def test_damage_inside_the_journal_is_named(finished, tmp_path):
    directory, spec = copy(finished, tmp_path, 0)
    records = (directory / "journal.log").read_text().splitlines(keepends=True)
    records[7] = records[7][:10] + "\n"
    (directory / "journal.log").write_text("".join(records))
    assert "line 8 of" in search(spec, directory, code=74).stderr
