"""Calls of tests/probe. The program is started once per test file and runs each call in a process of its own (`probe serve`): starting
LibTorch takes longer than most calls. A call that hangs ends with the server, and the next one starts another."""
import atexit
import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path

from muster_program import built, environment

_server = None
_environment = None  # the server's, and so that of its calls
_folder = tempfile.TemporaryDirectory(prefix="muster-probe-")


def program():
    return built("tests/probe")


def stop():
    global _server
    if _server is not None:
        os.killpg(_server.pid, signal.SIGKILL)
        _server.communicate()
        _server = None


atexit.register(stop)


def probe(*words, input="", timeout=60, cwd=None):
    """Like subprocess.run of `probe WORDS...`, with what it prints as text."""
    global _server, _environment
    if _server is not None and environment() != _environment:
        stop()
    if _server is None:
        _environment = environment()
        _server = subprocess.Popen([program(), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   start_new_session=True, env=_environment)
    files = [Path(_folder.name) / name for name in ("stdin", "stdout", "stderr")]
    files[0].write_text(input)
    _server.stdin.write(json.dumps([str(word) for word in (*files, cwd or os.getcwd(), *words)]) + "\n")
    _server.stdin.flush()
    if not select.select([_server.stdout], [], [], timeout)[0]:
        stop()
        raise subprocess.TimeoutExpired(words, timeout)
    status = _server.stdout.readline()
    if not status:
        stop()
        raise AssertionError("the server of probes ended")
    return subprocess.CompletedProcess(words, int(status), files[1].read_text(errors="replace"), files[2].read_text(errors="replace"))
