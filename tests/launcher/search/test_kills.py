"""kill -9 at random moments: the whole job, one of its ranks, Optuna's process. MUSTER_KILLS: how many (6, in the full run 20; of each kind as many)."""
import json
import os
import random
import signal
import time

import searching as s

mp = s.mp
KILLS = int(os.environ.get("MUSTER_KILLS", 20 if os.environ.get("MUSTER_FULL_TESTS") == "1" else 6))
SPEC = s.space('parameters { path: "optimizer.learning_rate" real { low: 1e-4 high: 1e-1 log: true } }\n',
               s.choices("optimizer.beta1", "0.9", "0.8", "0.5"), s.choices("late_fusion.classes", 0, 4, 5))


def records(directory):
    try:
        return (directory / "journal.log").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def disturb(job, victim, directory, chance):
    """At a moment that is drawn by what the search has written since it was started, not by a clock. Returns whether it came to that."""
    wanted = records(directory) + chance.randrange(30)
    while job.process.poll() is None and records(directory) < wanted:
        time.sleep(0.003)
    time.sleep(0.1 * chance.random())
    if job.process.poll() is not None:
        return False
    if victim == "job":
        job.kill_all()
        return True
    rank, targets = chance.randrange(2), []
    while not targets and job.process.poll() is None:
        ranks, pythons = job.processes()
        targets = pythons if victim == "python" else [pid for number, pid in ranks.items() if number == rank]
    for pid in targets:
        os.kill(pid, signal.SIGKILL)
    return bool(targets)


def test_kills_lose_and_repeat_nothing(tmp_path):
    directory = tmp_path / "search"
    trials = 12 + 8 * KILLS
    spec = s.write_search(tmp_path, trials=trials, epochs=4, spec=SPEC, more="pruner { kind: ASHA reduction: 2 } sampler { kind: RANDOM } keep_weights: 2\n")
    chance = random.Random(7)
    victims = [("job", "rank", "python")[i % 3] for i in range(KILLS)]
    chance.shuffle(victims)
    jobs = done = 0
    while done < KILLS:
        jobs += 1
        with s.start(spec, directory, 2) as job:
            while done < KILLS and disturb(job, victims[done], directory, chance):
                done += 1
                if victims[done - 1] != "python":
                    break
            else:
                if done < KILLS:
                    code, said = job.end()
                    assert code != 0, f"the search ended after {done} kills: give it more trials"
            if done < KILLS and victims[done - 1] == "rank":
                code, said = job.end()
                assert code in (76, 137), said
    s.search(spec, directory, 2)
    study = s.study(directory)
    states = s.states(directory)
    print(f"{done} kills ({victims}) of {jobs} jobs; {[(state, states.count(state)) for state in sorted(set(states))]}")
    assert len(states) == trials and set(states) == {"COMPLETE", "PRUNED", "FAIL"}
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == trials
    for trial, reason in zip(study.trials, s.reasons(directory)):
        assert (trial.state.name == "FAIL") == (trial.params["late_fusion.classes"] == "5"), reason
        assert list(trial.intermediate_values) == list(range(1, 1 + len(trial.intermediate_values)))
        if trial.state.name == "COMPLETE":
            assert trial.value == s.result_of(directory, trial.number)["best"]["value"] == min(trial.intermediate_values.values())
    best = {trial.number for trial in sorted((t for t in study.trials if t.state.name == "COMPLETE"), key=lambda t: t.value)[:2]}
    for trial in study.trials:
        kept = {"weights", "weights/best.safetensors"} if trial.number in best else set()
        assert s.files_of(directory, trial.number) - s.SMALL_FILES == kept, trial
    assert not list((directory / "jobs").iterdir())
    mp.muster("search", "best", directory)
    mp.muster("train", directory / "best.txtpb", "--run-dir", tmp_path / "again")
    assert s.fingerprint(tmp_path / "again" / "weights/best.safetensors") == s.result_of(directory, study.best_trial.number)["best"]["fingerprint"]
