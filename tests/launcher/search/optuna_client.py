"""Starts the Optuna process of a search as the program does, and speaks with it; reads its journals with Optuna alone."""
import json
import os
import socket
import subprocess
import sys

import optuna
from optuna.storages.journal import JournalFileBackend

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "launcher", "search", "python")
TEXTS = [open(os.path.join(FOLDER, name), encoding="utf-8").read() for name in ("boot.py", "journal.py", "sampling.py", "optuna_process.py")]

LINE = [{"path": "x", "float": {"low": -5, "high": 5}}]
SPACE = [
    {"path": "optimizer.learning_rate", "float": {"low": 1e-5, "high": 1e-2, "log": True, "step": None}},
    {"path": "foal_net.fusion", "categorical": {"values": ["a", "b", 3, True]}},
    {"path": "foal_net.heads", "int": {"low": 1, "high": 8, "log": False, "step": 1}, "when": {"path": "foal_net.fusion", "in": ["a", 3]}},
    {"path": "foal_net.scale", "float": {"low": 0, "high": 1}, "when": {"path": "foal_net.heads", "in": [1, 2, 3, 4]}},
    {"path": "training.batch_size", "int": {"low": 8, "high": 64, "step": 8}}]


def holding(params):
    """The paths of SPACE whose conditions hold, written down apart from the program."""
    paths = ["optimizer.learning_rate", "foal_net.fusion"]
    if params["foal_net.fusion"] in ("a", 3) and params["foal_net.fusion"] is not True:
        paths.append("foal_net.heads")
        if params["foal_net.heads"] <= 4:
            paths.append("foal_net.scale")
    return paths + ["training.batch_size"]


class Gone(Exception):
    """The process ended before it answered."""


class OptunaProcess:
    """Its standard input and output are one socket."""

    def __init__(self, log=None, environment=None, limits=None):
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen([sys.executable, "-u", "-c", *TEXTS], stdin=theirs, stdout=theirs, stderr=log,
                                            env={**os.environ, **(environment or {})}, preexec_fn=limits)
        self.answers = self.socket.makefile("r", encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.socket.close()

    def send(self, text=None, **request):
        try:
            self.socket.sendall((text or json.dumps(request)).encode() + b"\n")
        except ConnectionError as error:
            raise Gone from error

    def receive(self):
        try:
            line = self.answers.readline()
        except ConnectionError as error:
            raise Gone from error
        if not line.endswith("\n"):
            raise Gone
        return json.loads(line, parse_constant=lambda name: 1 / 0)  # JSON has no NaN

    def request(self, op, **fields):
        self.send(op=op, **fields)
        return self.receive()

    def __call__(self, op, **fields):
        answer = self.request(op, **fields)
        assert answer["ok"], answer
        return answer

    def refused(self, op, **fields):
        answer = self.request(op, **fields)
        assert not answer["ok"] and "\n" not in answer["error"], answer
        return answer["kind"], answer["error"]

    def opened(self, *arguments, **others):
        """Itself, with another study."""
        self("open", **search(*arguments, **others))
        return self

    def end(self):
        """Ends its standard input; returns its exit status."""
        self.socket.shutdown(socket.SHUT_WR)
        return self.process.wait(30)


def search(storage, sampler="random", pruner=None, space=None, **others):
    """What `open` needs."""
    sampler = {"name": sampler} if isinstance(sampler, str) else sampler
    return {"storage": str(storage), "study": "mosi", "direction": "minimize", "metric": "mae", "sampler": sampler, "pruner": pruner or {"name": "none"},
            "seed": 7, "space": space or LINE, "job": "1", **others}


def read(storage):
    """The trials, as any program of Optuna reads them."""
    if "://" not in str(storage):
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(storage)))
    return optuna.load_study(study_name="mosi", storage=storage).trials


def states(trials):
    return [trial.state.name for trial in trials]
