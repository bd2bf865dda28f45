"""What the Optuna process of a search survives: kill -9 at any moment, torn journals, full disks, locks that dead processes left."""
import collections
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna_client import FOLDER, SPACE, OptunaProcess, Gone, holding, read, search, states
from optuna.storages.journal import JournalFileBackend

sys.path.insert(0, FOLDER)
from journal import Lock  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.ERROR)
FULL = os.environ.get("MUSTER_FULL_TESTS") == "1"
# Kills of each kind of work (an open includes the start of the process): the everyday sample has them all, the full run has more instants of each.
TRIALS, STEPS, KILLS = (120, 3, 6) if FULL else (40, 3, 2)
LONGEST = {"open": 0.6, "ask": 0.02, "report": 0.01, "tell": 0.01}  # seconds from such a request to the kill: about as long as it takes


class Job:
    """Asks, reports and tells for two groups, as the program does. Its process dies all the time; it starts another one, which adopts."""

    def __init__(self, path):
        self.path, self.random = path, random.Random(0)
        self.running, self.told, self.deaths, self.adopted = {}, {}, 0, 0
        self.left, self.is_dying = dict.fromkeys(LONGEST, KILLS), False
        self.log = open(path.parent / "stderr", "w")
        self.start()

    def perhaps_kill(self, op):
        """While kills of this kind are left: one request in four, and the start after every second death."""
        if self.is_dying or self.left[op] == 0 or not (self.deaths % 2 if op == "open" else self.random.random() < 0.25):
            return
        self.left[op], self.is_dying = self.left[op] - 1, True
        threading.Timer(self.random.uniform(0, LONGEST[op]), self.client.process.kill).start()

    def start(self):
        while True:
            self.client, self.is_dying = OptunaProcess(self.log), False
            self.perhaps_kill("open")
            try:
                answer = self.client("open", **search(self.path, "tpe", {"name": "asha", "reduction_factor": 2}, SPACE))
                assert answer["repaired"] == ""
                known = {row["number"]: row for row in answer["running"]}
                for number in set(known) - set(self.running) - set(self.told):  # asked for, but the answer got lost
                    adopted = self.client("adopt", number=number)
                    assert list(adopted["params"]) == holding(adopted["params"])
                    self.running[number], self.adopted = [adopted["params"], len(adopted["reported"])], self.adopted + 1
                return
            except Gone:
                self.died()

    def died(self):
        self.deaths += 1
        with self.client:
            pass

    def say(self, op, **fields):
        """The answer; None if the process died, then a new one is there."""
        if self.is_dying:  # a kill that came after its answer: on a fast machine all requests would be over before it
            self.client.process.wait(30)
        self.perhaps_kill(op)
        try:
            return self.client(op, **fields)
        except Gone:
            self.died()
            self.start()

    def insist(self, op, **fields):
        while (answer := self.say(op, **fields)) is None:
            pass
        return answer

    def run(self):
        while True:
            while len(self.running) < 2:
                answer = self.say("ask", limit=TRIALS)
                if answer and "full" in answer:
                    break
                if answer:
                    self.running[answer["number"]] = [answer["params"], 0]
            if not self.running:
                while self.is_dying:
                    self.client.process.wait(30)
                    self.died()
                    self.start()
                return
            number = self.random.choice(sorted(self.running))
            params, step = self.running[number]
            stop = step < STEPS and self.insist("report", number=number, step=step + 1, value=params["optimizer.learning_rate"] + step)["prune"]
            self.running[number][1] += 1
            if stop or step == STEPS:
                # Which ones are pruned depends on how requests and kills meet, so one of the later ones may have to fail.
                none_yet = number > TRIALS // 2 and not any(state == "FAIL" for state, *_ in self.told.values())
                state = "PRUNED" if stop else "FAIL" if number % 7 == 0 or none_yet else "COMPLETE"
                self.insist("tell", number=number, state=state, value=params["optimizer.learning_rate"], reason="planted" if state == "FAIL" else None)
                self.told[number] = (state, params, self.running.pop(number)[1] - (state != "PRUNED"))


def test_killed_at_any_moment(tmp_path):
    """Every trial is there once, finished, with what was told and reported; and no kill cost more than a moment."""
    job, started = Job(tmp_path / "journal.log"), time.monotonic()
    try:
        job.run()
        job.client("close")
        job.client.process.wait(30)
    finally:
        job.died()
        job.log.close()
    trials = read(tmp_path / "journal.log")
    assert [trial.number for trial in trials] == sorted(job.told) == list(range(TRIALS))
    assert [(trial.state.name, trial.params) for trial in trials] == [job.told[number][:2] for number in range(TRIALS)]
    assert len({trial.params["optimizer.learning_rate"] for trial in trials}) == TRIALS
    for trial in trials:
        rate = trial.params["optimizer.learning_rate"]
        assert trial.intermediate_values == {step + 1: rate + step for step in range(job.told[trial.number][2])}
        assert trial.value == (None if trial.state.name == "FAIL" else trial.intermediate_values[trial.last_step] if trial.state.name == "PRUNED" else rate)
    assert len(set(states(trials))) == 3 and not any(job.left.values()) and job.deaths == 1 + KILLS * len(LONGEST)  # and its end
    assert sorted(os.listdir(tmp_path)) == ["journal.log", "stderr"]
    seconds, freed = time.monotonic() - started, (tmp_path / "stderr").read_text().count("freed")
    print(f"{job.deaths} deaths, {job.adopted} adopted, {freed} locks freed, {seconds:.0f} s")
    assert seconds < 100  # one lock that is waited for takes 30 s or more


def filled(path, trials=3):
    with OptunaProcess() as client:
        client.opened(path)
        for number in range(trials):
            client("ask")
            client("tell", number=number, state="COMPLETE", value=number)
    for left in path.parent.glob("*.lock*"):
        left.unlink()


WHOLE = b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":"2026-01-01T00:00:00+00:00"}'
TORN = [b"{", WHOLE[:37], WHOLE, b"\0" * 4096, b"\0" * 100 + b"\n", b"\xff\xfe\n", WHOLE[:20] + b"\n", WHOLE[:20] + b"\n" + WHOLE[:30], b"\n"]


@pytest.fixture(scope="module")
def client():
    with OptunaProcess() as client:
        yield client


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "journal.log"
    filled(path)
    return path.read_bytes()


@pytest.mark.parametrize("torn", TORN, ids=range(len(TORN)))
def test_torn_end_is_cut_off(client, sound, tmp_path, torn):
    path = tmp_path / "journal.log"
    path.write_bytes(sound + torn)
    answer = client("open", **search(path))
    assert f"cut {len(torn)} bytes" in answer["repaired"] and str(path) in answer["repaired"] and answer["counts"]["COMPLETE"] == 3
    assert path.read_bytes() == sound and "notes" not in answer
    assert client("ask")["number"] == 3
    # Somebody else's write is torn while this process runs.
    with open(path, "ab") as file:
        file.write(torn)
    answer = client("tell", number=3, state="COMPLETE", value=1)
    assert f"cut {len(torn)} bytes" in answer["notes"][0] and "notes" not in client("counts")
    assert states(read(path)) == ["COMPLETE"] * 4 and client("open", **search(path))["repaired"] == ""


def test_optuna_alone_breaks_on_a_torn_end(sound, tmp_path):
    """Why it must be cut off."""
    path = tmp_path / "journal.log"
    path.write_bytes(sound + WHOLE[:37])
    study = optuna.load_study(study_name="mosi", storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    with pytest.raises(AttributeError):  # its record is glued to the torn one
        study.ask()
    with pytest.raises(json.JSONDecodeError):
        study.set_user_attr("a", 1)
    with pytest.raises(json.JSONDecodeError):
        read(path)


def test_damage_in_the_middle_is_named(client, sound, tmp_path):
    path = tmp_path / "journal.log"
    lines = sound.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5] + [lines[5][:10] + lines[6]] + lines[7:]))
    before = path.read_bytes()
    kind, error = client.refused("open", **search(path))
    assert kind == "storage" and "line 6 " in error and str(path) in error and path.read_bytes() == before
    path.write_bytes(WHOLE[:37])  # nothing but a torn first line
    assert client("open", **search(path))["counts"]["RUNNING"] == 0 and client("ask")["number"] == 0 and len(read(path)) == 1


def test_full_disk(sound, tmp_path):
    path = tmp_path / "journal.log"
    path.write_bytes(sound)
    size = len(sound) + 5000

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with OptunaProcess(limits=limit) as client:
        client("open", **search(path))
        for _ in range(100):
            answer = client.request("ask")
            if not answer["ok"]:
                break
        assert answer["kind"] == "storage" and "File too large" in answer["error"] and path.stat().st_size == size
        assert client.refused("ask")[0] == "storage"
    with OptunaProcess() as client:
        answer = client("open", **search(path))
        asked = answer["counts"]["RUNNING"]
        assert asked > 3 and "cut" in answer["repaired"] and client("ask")["number"] == 3 + asked
        lacking = [row["number"] for row in answer["running"] if not row["complete_params"]]
        for number in lacking:  # one was stopped before it had its parameters
            assert list(client("adopt", number=number)["params"]) == ["x"]
        assert all(row["complete_params"] for row in client("counts")["running"])
    assert len({trial.params["x"] for trial in read(path)}) == 4 + asked


def test_prune_is_not_forgotten(tmp_path):
    """The process dies after it has said, or was about to say, that a trial is to be pruned. ASHA says so only once."""
    spec = search(tmp_path / "journal.log", pruner={"name": "asha", "reduction_factor": 2})
    with OptunaProcess() as client:
        client("open", **spec)
        for number, value in enumerate((1.0, 2.0)):
            client("ask")
            prune = client("report", number=number, step=1, value=value)["prune"]
    assert prune
    with OptunaProcess() as client:
        assert client("open", **spec)["counts"]["RUNNING"] == 2
        assert client("adopt", number=0)["prune"] is False and client("adopt", number=1)["prune"] is True
        assert client("report", number=1, step=1, value=2.0)["prune"] is True and client("report", number=0, step=1, value=1.0)["prune"] is False
        assert client("tell", number=1, state="PRUNED")["state"] == "PRUNED"


def test_the_loss_of_a_job_counts_once(client, tmp_path):
    """Whatever gets lost between the loss and the answer: the request comes again, after a death of this process or from another job."""
    path = tmp_path / "journal.log"
    client.opened(path, job="0")("ask")
    assert client.opened(path, job="1")("adopt", number=0, lost=True)["losses"] == 1
    before = len(path.read_text().splitlines())
    assert client.opened(path, job="2")("adopt", number=0, lost=True)["losses"] == 2
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > before + 1
    for end in range(before, len(lines) + 1):
        (tmp_path / "cut.log").write_text("".join(lines[:end]))
        for job, losses in (("2", 2), ("2", 2), ("3", 3)):
            assert client.opened(tmp_path / "cut.log", job=job)("adopt", number=0, lost=True)["losses"] == losses, (end, job)


def test_parameters_that_a_trial_lacks(tmp_path):
    """A process may die between any two parameters: whatever a trial has stays, the rest is drawn."""
    path = tmp_path / "journal.log"
    spec = search(path, "tpe", space=SPACE)
    with OptunaProcess() as client:
        client("open", **spec)
        whole = [client("ask")["params"] for _ in range(6)]
    lines = path.read_bytes().splitlines(keepends=True)
    owner = [json.loads(line).get("trial_id") if json.loads(line)["op_code"] == 5 else None for line in lines]
    kept, seen = [], collections.Counter()
    for line, trial in zip(lines, owner):
        if trial is None or seen[trial] < trial:  # trial n keeps n parameters
            kept.append(line)
        seen[trial] += 1
    path.write_bytes(b"".join(kept))
    with OptunaProcess() as client:
        rows = client("open", **{**spec, "job": "2"})["running"]
        assert [len(row["params"]) for row in rows] == [min(n, len(params)) for n, params in enumerate(whole)]
        for row, params in zip(rows, whole):
            assert row["complete_params"] == (row["params"] == params) and row["params"].items() <= params.items()
            adopted = client("adopt", number=row["number"])["params"]
            assert list(adopted) == holding(adopted) and row["params"].items() <= adopted.items()
        assert {row["job"] for row in client("counts")["running"]} == {"2"}


def dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_lock_of_a_dead_process(tmp_path):
    """It is freed at once; in Optuna's own class it would hold everybody up for half a minute."""
    path = tmp_path / "journal.log"
    filled(path)
    other = Lock(str(path))
    for born in ("1", other.me.rsplit("-", 1)[1]):  # a process that is gone, and another one under its number
        name = f"{other.here}{dead_process() if born == '1' else os.getpid()}-{born if born == '1' else 7}"
        os.symlink("journal.log", name)
        os.symlink(name, other.link)
        started = time.monotonic()
        with OptunaProcess() as client:
            assert client("open", **search(path))["counts"]["COMPLETE"] == 3
            assert client.request("close")["ok"] and client.process.wait(30) == 0
        assert time.monotonic() - started < 20 and not os.path.lexists(other.link) and not os.path.lexists(name)
    other.leave()
    assert os.listdir(tmp_path) == ["journal.log"]


def test_lock_of_a_living_process(tmp_path):
    """It holds: ours, Optuna's and that of another machine, and Optuna waits for ours."""
    path = tmp_path / "journal.log"
    filled(path)
    lock, theirs = Lock(str(path)), optuna.storages.journal.JournalFileSymlinkLock(str(path))
    far = lock.link + ".00000000-1-1-1"
    os.symlink("journal.log", far)
    with OptunaProcess() as client:
        client("open", **search(path))
        number = 0
        for take, give in ((lock.acquire, lock.release), (theirs.acquire, theirs.release),
                           (lambda: os.symlink(far, lock.link), lambda: os.unlink(lock.link))):
            take()
            client.send(op="ask")
            time.sleep(0.5)
            assert len(read(path)) == 3 + number  # reading needs no lock
            give()
            assert client.receive()["number"] == 3 + number
            number += 1
    lock.acquire()
    waiting = threading.Thread(target=theirs.acquire)
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    lock.release()
    waiting.join(5)
    assert not waiting.is_alive() and os.readlink(lock.link) == str(path)
    theirs.release()


@pytest.mark.parametrize("left", ["relative/journal.log", "far", None])
def test_any_lock_is_freed_in_the_end(tmp_path, left):
    """A link that leads nowhere (Optuna spins on it for ever), that of another machine, and the file that JournalFileOpenLock makes."""
    path = tmp_path / "journal.log"
    filled(path, 0)
    lock = Lock(str(path))
    lock.grace = 0.3
    if left:
        os.symlink(lock.link + ".00000000-1-1-1" if left == "far" else left, lock.link)
    else:
        open(lock.link, "w").close()
    started = time.monotonic()
    assert lock.acquire() and 0.3 < time.monotonic() - started < 10
    lock.release()
    lock.leave()
    assert os.listdir(tmp_path) == ["journal.log"]


def test_processes_that_free_the_same_lock(tmp_path):
    """Four at once: never do two hold it. And nobody frees one that has changed hands since he looked."""
    path = tmp_path / "journal.log"
    filled(path, 0)
    gone = Lock(str(path))
    name = f"{gone.here}{dead_process()}-1"
    os.symlink("journal.log", name)
    os.symlink(name, gone.link)
    seen = gone.state()
    gone.leave()
    work = f"""
import os, sys
sys.path.insert(0, {FOLDER!r})
from journal import Journal
journal = Journal({str(path)!r})
for _ in range(25):
    with journal.transaction():
        os.close(os.open({str(tmp_path / "alone")!r}, os.O_CREAT | os.O_EXCL))
        journal.append_logs([{{"op_code": 10}}, {{"op_code": 10}}])
        os.unlink({str(tmp_path / "alone")!r})
journal.close()
"""
    workers = [subprocess.Popen([sys.executable, "-c", work], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for worker in workers:
        assert "Error" not in worker.communicate()[1] and worker.returncode == 0
    assert path.read_bytes().count(b'{"op_code":10}\n') == 4 * 25 * 2 and os.listdir(tmp_path) == ["journal.log"]
    lock = Lock(str(path))
    lock.acquire()
    lock.free(seen)
    assert os.readlink(lock.link) == lock.me
    lock.release()
    lock.leave()
