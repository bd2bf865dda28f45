"""`muster study`: which trainings it makes, kills, failures, planted effects. Its tables: test_study_tables.py."""
import json
import os
import signal
import subprocess
import time

import pytest
from studying import HEADER, SMALL, VARIANTS, finished, mp, rows, run, write_study  # noqa: F401


def test_a_cell_is_the_run_that_a_user_would_get(finished, tmp_path):
    directory, *_ = finished
    mp.muster("train", directory.parent / "base.txtpb", "--run-dir", tmp_path / "run", "--set", "late_fusion.dropout=0", "--set", "seed=2", "--set", "data.split.fold=1")
    again, cell = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "run", directory / "cells/no_dropout/seed-2-fold-1"))
    assert again["best"]["fingerprint"] == cell["best"]["fingerprint"] and again["test"] == cell["test"]


def test_a_study_that_is_done_trains_nothing(finished, tmp_path):
    directory, *_ = finished
    before = {path: path.stat().st_mtime_ns for path in directory.glob("cells/*/*/result.json")}
    assert "0 to do" in run(directory.parent / "small.txtpb", directory, ranks=2).stderr
    assert before == {path: path.stat().st_mtime_ns for path in directory.glob("cells/*/*/result.json")}
    # Other settings are not mixed with these.
    result = run(directory.parent / "small.txtpb", directory, "--set", "training.epochs=3", code=78)
    assert "training.epochs: 2 -> 3" in result.stderr and "--study-dir" in result.stderr


def begin(spec, directory):
    return subprocess.Popen(["mpirun", "--oversubscribe", "-n", "2", mp.built("muster"), "study", str(spec), "--study-dir", str(directory)], env=mp.environment(), stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_cells(directory, count):
    end = time.monotonic() + 60
    while len(list(directory.glob("cells/*/*/result.json"))) < count:
        assert time.monotonic() < end, "no cell was trained"
        time.sleep(0.02)


def test_kills_and_stops_change_nothing(finished, tmp_path):
    spec, directory = write_study(tmp_path), tmp_path / "study"
    job = begin(spec, directory)
    wait_for_cells(directory, 3)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    subprocess.run(["pkill", "-KILL", "-f", str(directory)], check=False)
    done = {path: path.stat().st_mtime_ns for path in directory.glob("cells/*/*/result.json")}
    result = run(spec, directory, "--only-tables")
    assert "!!! NOT COMPLETE" in result.stdout
    job = begin(spec, directory)
    wait_for_cells(directory, len(done) + 3)
    os.kill(job.pid, signal.SIGUSR1)  # mpirun hands it on to the ranks
    _, said = job.communicate(timeout=60)
    assert job.returncode == 75 and "Continue with: muster study" in said
    run(spec, directory, ranks=2)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert (directory / "cells.csv").read_bytes() == (finished[0] / "cells.csv").read_bytes()
    assert (directory / "table.txt").read_text() == run(spec, directory, "--only-tables").stdout.rsplit("\n\n", 1)[0] + "\n"


def test_two_jobs_on_one_study(finished, tmp_path):
    spec, directory = write_study(tmp_path), tmp_path / "study"
    jobs = [begin(spec, directory), begin(spec, directory)]
    for job in jobs:
        _, said = job.communicate(timeout=100)
        assert job.returncode == 0, said
    assert (directory / "cells.csv").read_bytes() == (finished[0] / "cells.csv").read_bytes()


def test_several_ranks_train_together(finished, tmp_path):
    directory = tmp_path / "study"
    same = "set: \"training.reproducible=true\"\n"
    run(write_study(tmp_path, VARIANTS + same + "seeds: 1\nfolds: 2\n"), directory)
    run(write_study(tmp_path, VARIANTS + same + "seeds: 1\nfolds: 2\nranks_per_run: 2\n"), tmp_path / "together", ranks=4)
    assert (directory / "cells.csv").read_bytes() == (tmp_path / "together" / "cells.csv").read_bytes()
    assert "start a multiple of 2" in run(tmp_path / "small.txtpb", tmp_path / "other", ranks=3, code=2).stderr


@pytest.mark.parametrize("name", ["study", "GPU 0 is in use by me"])
def test_what_is_in_the_way_fails_with_its_reason(name, tmp_path):
    """A folder that is no run: nobody will ever finish it. Whatever it is called: that another job is at it is not told by words."""
    directory = tmp_path / name
    (directory / "cells/slow/seed-1").mkdir(parents=True)
    (directory / "cells/slow/seed-1/notes.txt").write_text("mine")
    result = run(write_study(tmp_path, VARIANTS + "seeds: 1\n"), directory, code=70)
    assert "1 of 3 runs failed" in result.stderr and "cells/slow/seed-1: failed" in result.stderr and "2/3 done, 1 failed" in result.stderr


def test_launch_starts_a_study(finished, tmp_path):
    spec = write_study(tmp_path)
    mp.muster("launch", "-n", "2", "study", spec, "--study-dir", tmp_path / "study", changes={"OMPI_MCA_rmaps_base_oversubscribe": "1"})
    assert (tmp_path / "study" / "cells.csv").read_bytes() == (finished[0] / "cells.csv").read_bytes()


def test_a_failed_training_has_its_reason_and_is_tried_again(tmp_path):
    directory = tmp_path / "study"
    spec = write_study(tmp_path, VARIANTS + 'variants { name: "wild" set: "optimizer.learning_rate=1e30" }\nseeds: 2\n', SMALL + 'evaluation { select_by: "WA" }\n')
    result = run(spec, directory, code=70)
    assert "2 of 8 runs failed" in result.stderr and "finite" in result.stderr and "cells/wild/seed-1: failed" in result.stderr
    assert "!!! NOT COMPLETE: 6 of 8" in result.stdout
    table = {(row["variant"], row["metric"]): row for row in rows(directory / "table.csv")}
    assert table["wild", "UA"]["n"] == "0" and table["wild", "UA"]["mean"] == "" and table["slow", "UA"]["n"] == "2"
    # Without `metrics` all are shown, the one that chooses the weights first.
    shown = [row["metric"] for row in rows(directory / "table.csv") if row["variant"] == "slow"]
    assert shown[0] == "WA" and sorted(shown) == sorted(mp.result(directory / "cells/slow/seed-1")["test"]["metrics"])
    # Folds that the data does not have: nothing can succeed.
    hopeless = write_study(tmp_path, VARIANTS + "seeds: 20\n", SMALL.replace("LEAVE_ONE_GROUP_OUT", "LEAVE_ONE_GROUP_OUT fold: 7"))
    assert "runs of this job have failed, and none has ever succeeded" in run(hopeless, tmp_path / "hopeless", code=78).stderr


def test_many_failures_after_a_success_do_not_stop_a_study(tmp_path):
    """Nor one that goes on and has only those left that fail."""
    spec = write_study(tmp_path, 'base: "base.txtpb"\nvariants { name: "wild" set: "optimizer.learning_rate=1e30" }\nseeds: 10\n', SMALL.replace("epochs: 2", "epochs: 1"))
    for _ in range(2):
        result = run(spec, tmp_path / "study", code=70)
        assert "10 of 20 runs failed" in result.stderr and "!!! NOT COMPLETE: 10 of 20" in result.stdout


def test_data_that_changed_in_between_is_refused(tmp_path):
    text = VARIANTS + "seeds: 1\n"
    mp.muster("data", "synth", "--kind", "classification", "--samples", "60", "--seed", "1", "-o", tmp_path / "data.h5")
    spec = write_study(tmp_path, text, mp.SMALL_LATE_FUSION + 'data { path: "data.h5" }\ntraining { epochs: 1 batch_size: 16 }\n')
    run(spec, tmp_path / "study")
    (tmp_path / "data.h5").unlink()
    mp.muster("data", "synth", "--kind", "classification", "--samples", "60", "--seed", "2", "-o", tmp_path / "data.h5")
    spec.write_text(HEADER + text.replace("seeds: 1", "seeds: 2"))
    result = run(spec, tmp_path / "study", code=65)
    assert "has changed during the study" in result.stderr and "seed-1" in result.stderr and "seed-2" in result.stderr


def test_all_mistakes_of_a_spec_at_once(tmp_path):
    spec = write_study(tmp_path, """
base: "base.txtpb"
set: "training.epoch=3"
variants { name: "no avel" set: "foal_net.avel_weight=0" }
variants { name: "twice" set: "foal_net.avel_wait=0" }
variants { name: "twice" set: "seed=3" }
variants { name: "empty" }
seeds: 0
folds: 3
metrics: "MAX"
significance_level: 5
wrong: 1
""", mp.SMALL_FOAL_NET + mp.CLASSIFICATION)
    result = run(spec, tmp_path / "study", code=78)
    for line, text in ((5, "training.epoch"), (6, "letters, digits"), (7, "foal_net.avel_wait"), (8, "two variants are called twice"), (8, "seeds"), (9, "at least one `set`"), (10, "seeds must be"),
                       (12, "MAX"), (13, "significance_level"), (14, "wrong")):
        assert any(f"small.txtpb:{line}:" in one and text in one for one in result.stderr.splitlines()), (line, text, result.stderr)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["foal_net_ablation", "miar_ablation"])
def test_the_shipped_studies_can_begin(name, tmp_path):
    result = run(mp.ROOT / f"experiments/studies/{name}.txtpb", tmp_path / "study", "--only-tables", code=2)
    assert "nothing is trained yet" in result.stderr


def test_a_planted_effect_is_found_and_none_where_there_is_none(tmp_path):
    # Vision holds a third of the label, or nothing at all: 10 seeds.
    base = (mp.SMALL_LATE_FUSION + "data { synthetic { kind: REGRESSION samples: 300 %s } standardize: true }\n"
            "optimizer { learning_rate: 3e-3 }\ntraining { epochs: 8 }\nevaluation { select_by: \"MAE\" }\n")
    text = 'base: "base.txtpb"\nvariants { name: "no_vision" set: "data.modalities=text,audio" }\nseeds: 10\nmetrics: "MAE"\n'
    found = {}
    for name, planted in (("vision", ""), ("nothing", 'without_signal: "vision"')):
        folder = tmp_path / name
        folder.mkdir()
        result = run(write_study(folder, text, base % planted), folder / "study", ranks=2)
        row = next(row for row in rows(folder / "study/table.csv") if row["variant"] == "no_vision" and row["fold"] == "pooled")
        found[name] = float(row["p_holm"]), float(row["difference"])
        if name == "vision":  # a low error is a good one
            assert "best: base, by MAE" in result.stdout
        assert "trivial: training median" in result.stdout and "!!!" not in result.stdout  # something is learnt
        assert (" *" in result.stdout.split("p:")[0]) == (name == "vision")
    assert found["vision"][0] < 0.01 and found["vision"][1] > 0.1
    assert found["nothing"][0] > 0.05
