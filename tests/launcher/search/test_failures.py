"""Trials that fail have failed with their reason and the search goes on; what ends the whole job ends it with one message."""
import os
import re
import signal

import pytest
import searching as s

mp = s.mp


def limited(words):
    """Runs a search whose processes get 1.5 GB of addresses each."""
    result = mp.execute(["bash", "-c", 'ulimit -v 1500000; exec "$@"', "limited", *words])
    assert result.returncode == 0, result.stdout + result.stderr


def reason_wanted(params):
    """What must have become of a trial of the mixed space, "" if it is complete."""
    if params["foal_net.classes"] == "7":
        return "it is 7, but synthetic has 4 classes"
    if params["foal_net.projection_dim"] != "16":
        return "out of memory (34"  # GB at once: the projections' matrices
    return "finite" if params["optimizer.learning_rate"] == "1e30" else ""


FOAL_NET = mp.SMALL_FOAL_NET + mp.CLASSIFICATION + "training { batch_size: 16 }\n"
MIXED = s.space(s.choices("optimizer.learning_rate", "1e-3", "1e30"), s.choices("foal_net.projection_dim", 16, 65536), s.choices("foal_net.classes", 0, 7))


@pytest.mark.parametrize("ranks, per_trial", [(2, 1), (2, 2)])
def test_a_trial_fails_for_its_own_reason(ranks, per_trial, tmp_path):
    """Diverges, does not fit the data, needs 34 GB: in one process, and in two that train together."""
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=20, base=FOAL_NET, spec=MIXED, more=f"sampler {{ kind: GRID }} ranks_per_trial: {per_trial} keep_weights: 0\n")
    limited(s.command(spec, directory, ranks))
    trials = s.study(directory).trials
    assert len(trials) == 8  # the grid's end
    for trial, reason in zip(trials, s.reasons(directory)):
        wanted = reason_wanted(trial.params)
        assert trial.state.name == ("FAIL" if wanted else "COMPLETE"), (trial.params, reason)
        assert wanted in reason and "\n" not in reason and len(reason) <= 300, reason
        assert s.files_of(directory, trial.number) <= s.SMALL_FILES


def test_memory_that_the_standard_library_does_not_get(tmp_path):
    """std::bad_alloc, while the data's index is made."""
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=2, epochs=1, spec=s.space(s.choices("data.synthetic.samples", 60, 10000000)), more="sampler { kind: GRID }\n")
    limited(s.command(spec, directory))
    found = {trial.params["data.synthetic.samples"]: (trial.state.name, reason) for trial, reason in zip(s.study(directory).trials, s.reasons(directory))}
    assert found["60"] == ("COMPLETE", "") and found["10000000"][0] == "FAIL" and found["10000000"][1].startswith("out of memory")


def test_a_correlation_of_what_is_constant(tmp_path):
    """All matrices decay to nothing in the first step, and nothing is learnt: each sample gets the same prediction."""
    directory = tmp_path / "search"
    base = mp.SMALL_LATE_FUSION + mp.REGRESSION + "optimizer { learning_rate: 1 epsilon: 1e30 } training { batch_size: 16 }\n"
    s.search(s.write_search(tmp_path, trials=2, base=base, spec=s.space(s.choices("optimizer.weight_decay", 0, 1), metric="Corr"), more="sampler { kind: GRID }\n"), directory)
    found = {trial.params["optimizer.weight_decay"]: (trial.state.name, reason) for trial, reason in zip(s.study(directory).trials, s.reasons(directory))}
    assert found == {"0": ("COMPLETE", ""), "1": ("FAIL", "Corr is not a finite number")}


@pytest.mark.parametrize("ranks, per_trial, repeats", [(2, 1, 1), (2, 2, 2)])
def test_a_trial_that_takes_too_long(ranks, per_trial, repeats, tmp_path):
    directory = tmp_path / "search"
    more = f"repeats {{ seeds: {repeats} }} ranks_per_trial: {per_trial}\n"
    s.search(s.write_search(tmp_path, trials=3, epochs=1000000, budget="trial_minutes: 0.005", more=more), directory, ranks, code=70)
    assert s.states(directory) == ["FAIL"] * 3
    assert set(s.reasons(directory)) == {"it took longer than budget.trial_minutes (0.005)"}
    for number in range(3):
        assert {name for name in s.files_of(directory, number) if "repeat-1" not in name} <= s.SMALL_FILES | {"repeat-0"} | {"repeat-0/" + name for name in s.SMALL_FILES}


def test_a_job_whose_hours_are_over_begins_nothing_more(tmp_path):
    directory = tmp_path / "search"
    result = s.search(s.write_search(tmp_path, trials=100000, budget="hours: 0.0005"), directory, 2)
    states = s.states(directory)
    assert 0 < len(states) < 100000 and set(states) == {"COMPLETE"}
    assert "budget.hours" in result.stdout and "the same command continues" in result.stdout
    assert f"{len(states)} of 100000 trials ended" in mp.muster("search", "status", directory).stdout
    result = s.search(s.write_search(tmp_path, trials=len(states) + 2), directory, 2)
    assert s.states(directory) == ["COMPLETE"] * (len(states) + 2) and "budget.hours" not in result.stdout


def test_hours_that_are_over_are_no_failure(tmp_path):
    """All has failed so far, but the search goes on in the next job."""
    directory = tmp_path / "search"
    result = s.search(s.write_search(tmp_path, trials=5, epochs=1000000, budget="hours: 0.0003 trial_minutes: 0.03"), directory)
    assert s.states(directory) == ["FAIL"] and "4 of the budget's 5 trials are left: the 0.0003 hours of a job" in result.stdout


def test_a_search_in_which_all_fails_ends(tmp_path):
    spec = s.write_search(tmp_path, trials=40, spec=s.space(s.one("optimizer.learning_rate", "1e30"), s.RATE.replace("learning_rate", "beta1").replace("1e-1", "0.9")))
    text = s.search(spec, tmp_path / "search", 2, code=78).stderr
    assert text.count("muster: ") == 1 and re.search(r"all 1[01] trials of this job have failed, and none has ever succeeded, so the search was stopped; the last one, trial \d+: training became non-finite", text), text


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_small_search_in_which_all_fails_says_why(ranks, tmp_path):
    """Fewer trials than it takes to see before the end that it is hopeless."""
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=3, spec=s.space(s.RATE.replace("1e-4", "1e29").replace("1e-1", "1e30")))
    for _ in range(2):  # the same command has nothing left to do, and the same to say
        result = s.search(spec, directory, ranks, code=70)
        assert "3 trials: 0 complete, 0 pruned, 3 failed, 0 running" in result.stdout
        assert result.stderr.count("muster: ") == 1 and re.search(r"all 3 trials failed\. .*budget\.trials.*The first, trial 0: training became non-finite", result.stderr), result.stderr


def test_one_trial_that_is_worth_something_is_enough(tmp_path):
    spec = s.write_search(tmp_path, trials=3, spec=s.space(s.choices("optimizer.learning_rate", "1e-3", "1e30")), more="sampler { kind: GRID }\n")
    s.search(spec, tmp_path / "mixed", 2)
    assert sorted(s.states(tmp_path / "mixed")) == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("split, said", [("", "data.split.kind: is FIXED"), ("split { kind: K_FOLD folds: 3 validation_share: 0 }", "data.split.validation_share")])
def test_no_validation_split_is_said_before_anything_is_trained(split, said, tmp_path):
    mp.tiny_data(tmp_path / "data.h5", splits=["train", "train", "test"] * 8)
    base = mp.SMALL_LATE_FUSION + f'data {{ path: "data.h5" {split} }}\ntraining {{ batch_size: 8 }}\n'
    text = s.search(s.write_search(tmp_path, base=base, spec=s.space(s.RATE)), tmp_path / "search", 2, code=78).stderr
    assert text.count("muster: ") == 1 and said in text and "data.h5" in text and "validation" in text, text
    assert not (tmp_path / "search").exists()


def test_a_trial_without_a_validation_split_says_so(tmp_path):
    """Its data is chosen by the search; so is that of one that has the split."""
    for name, splits in (("without", ["train", "train", "test"] * 8), ("whole", ["train", "valid", "test"] * 8)):
        mp.tiny_data(tmp_path / f"{name}.h5", splits=splits)
    base = mp.SMALL_LATE_FUSION + 'data { path: "without.h5" }\ntraining { batch_size: 8 }\n'
    s.search(s.write_search(tmp_path, base=base, spec=s.space(s.choices("data.path", "without.h5", "whole.h5")), more="sampler { kind: GRID }\n"), tmp_path / "search")
    found = {trial.params["data.path"].split("/")[-1]: (trial.state.name, reason) for trial, reason in zip(s.study(tmp_path / "search").trials, s.reasons(tmp_path / "search"))}
    assert found["whole.h5"] == ("COMPLETE", "")
    assert found["without.h5"][0] == "FAIL" and "data.split.kind: is FIXED" in found["without.h5"][1] and "without.h5 has no usable sample" in found["without.h5"][1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_that_cannot_be_split_into_groups(ranks, tmp_path):
    text = s.search(s.write_search(tmp_path, more="ranks_per_trial: 2\n"), tmp_path / "search", ranks, code=2).stderr
    assert text.count("muster: ") == 1 and "ranks_per_trial" in text and "multiple of 2" in text, text
    assert not (tmp_path / "search").exists()


def lose_a_rank(spec, directory, victim, restarts):
    """Of a search under `muster launch`, once a trial has been saved; returns what launch returns and says, and the log."""
    with s.Disturbed([mp.built("muster"), "launch", "-n", "2", "--max-restarts", str(restarts), *s.command(spec, directory)[1:]]) as job:
        job.wait_for(lambda: len(list(directory.glob("trials/[0-9]*/checkpoints/step-*"))) >= 1)
        os.kill(job.processes()[0][victim], signal.SIGKILL)
        code, said = job.end()
    log = (directory / "logs/rank-0.log").read_text()
    assert log.count("==== ") == 1 + (restarts > 0) and "search: 2 groups" in log
    return code, said


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_job_with_one_message(victim, tmp_path):
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=2, epochs=80)
    code, said = lose_a_rank(spec, directory, victim, 0)
    assert code == 76 and said.count(f"rank {victim} of 2 ") == said.count("is lost") == 1 and "restart 1" not in said, said
    assert "COMPLETE" not in s.states(directory)
    s.search(spec, directory, 2)
    assert s.states(directory) == ["COMPLETE"] * 2


def test_a_trial_that_takes_its_jobs_down_is_given_up(tmp_path):
    """As a trial does that takes more memory than there is: the system kills a process that says nothing."""
    directory = tmp_path / "search"
    spec = s.write_search(tmp_path, trials=2, epochs=1, spec=s.space(s.choices("data.synthetic.samples", 60, 3000000)), more="sampler { kind: GRID }\n")

    def large():
        if not s.is_begun(directory):
            return []
        return [trial for trial in s.study(directory).trials if trial.params.get("data.synthetic.samples") == "3000000" and trial.state.name == "RUNNING"]

    for _ in range(12):  # until it has been lost so often that once more is enough
        with s.start(spec, directory) as job:
            job.wait_for(lambda: large() and large()[0].user_attrs["muster:job"].split("-")[-2] == str(job.process.pid))
            job.kill_all()
        if len(large()) == 1 and large()[0].user_attrs.get("muster:losses", [0])[0] == 4:
            break
    s.search(spec, directory)
    found = {trial.params["data.synthetic.samples"]: (trial.state.name, reason) for trial, reason in zip(s.study(directory).trials, s.reasons(directory))}
    assert found["60"] == ("COMPLETE", "")
    assert found["3000000"] == ("FAIL", "the job was lost 5 times while it was trained, without a validation in between (killed because memory ran out?)")


def test_launch_starts_a_search_again(tmp_path):
    directory = tmp_path / "search"
    code, said = lose_a_rank(s.write_search(tmp_path, trials=2, epochs=80), directory, 1, 2)
    assert code == 0 and "restart 1 of 2: exit code 76" in said and "runs begun" in said, said
    assert s.states(directory) == ["COMPLETE"] * 2


def test_only_one_rank_of_a_trial_has_no_memory(tmp_path):
    """In the middle of a step, while the other one waits in a collective."""
    directory = tmp_path / "search"
    base = "late_fusion { dim: 16 hidden_dim: 65536 } data { synthetic { kind: CLASSIFICATION samples: 2000 } }\n"
    spec = s.write_search(tmp_path, trials=2, epochs=1, base=base, spec=s.space(s.choices("training.batch_size", 200, 2000)), more="sampler { kind: GRID } ranks_per_trial: 2 seed: 3\n")  # the largest comes first
    words = s.command(spec, directory)
    result = mp.execute(["mpirun", "--oversubscribe", "-n", "1", *words, ":", "-n", "1", "bash", "-c", f'ulimit -v 1300000; exec "$@"', "limited", *words])
    assert result.returncode == 0, result.stdout + result.stderr
    found = {trial.params["training.batch_size"]: (trial.state.name, reason[:13]) for trial, reason in zip(s.study(directory).trials, s.reasons(directory))}
    assert found == {"200": ("COMPLETE", ""), "2000": ("FAIL", "out of memory")} and s.states(directory) == ["FAIL", "COMPLETE"]


def test_a_reason_may_be_long_and_in_any_language(tmp_path):
    """Wherever it is cut off, perhaps within a character: it must not stop the search."""
    mp.muster("data", "synth", "--kind", "classification", "--samples", "60", "-o", tmp_path / "good.h5")
    files = [tmp_path / "good.h5"]
    for shift in range(2):
        folder = tmp_path / ("x" * shift + "ä" * 100) / ("ö" * 100)
        folder.mkdir(parents=True)
        files.append(folder / "damaged.h5")
        files[-1].write_text("no data at all")
    values = ", ".join(f'"{file}"' for file in files)
    spec = s.space(f'parameters {{ path: "data.path" categorical {{ values: [{values}] }} }}\n')
    base = mp.SMALL_LATE_FUSION + 'data { path: "good.h5" }\ntraining { epochs: 1 batch_size: 16 }\n'
    s.search(s.write_search(tmp_path, trials=3, epochs=1, spec=spec, base=base, more="sampler { kind: GRID }\n"), tmp_path / "search", ranks=2)
    assert sorted(s.states(tmp_path / "search")) == ["COMPLETE", "FAIL", "FAIL"]
    assert all(len(reason.encode()) <= 300 and reason.endswith("...") for reason in s.reasons(tmp_path / "search") if reason)
