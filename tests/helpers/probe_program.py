"""Calls of tests/probe. The program is started once per test file and runs each call in a process of its own (`probe serve`): starting
LibTorch takes longer than most calls. A call that hangs ends with the server, and the next one starts another."""
import atexit
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

from muster_program import built, environment

# A thread has a server of its own, so that tests may make several calls at once.
_of_thread = threading.local()
_servers = []


class Server:
    def __init__(self):
        self.environment = environment()  # and so that of its calls
        self.folder = tempfile.TemporaryDirectory(prefix="muster-probe-")
        self.process = subprocess.Popen([program(), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                        env=self.environment)
        _servers.append(self)

    def stop(self):
        if self in _servers:
            _servers.remove(self)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            self.folder.cleanup()

    def call(self, words, input, timeout, cwd):
        files = [Path(self.folder.name) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(input)
        self.process.stdin.write(json.dumps([str(word) for word in (*files, cwd or os.getcwd(), *words)]) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.stop()
            raise subprocess.TimeoutExpired(words, timeout)
        status = self.process.stdout.readline()
        if not status:
            self.stop()
            raise AssertionError("the server of probes ended")
        return subprocess.CompletedProcess(words, int(status), files[1].read_text(errors="replace"), files[2].read_text(errors="replace"))


def program():
    return built("tests/probe")


@atexit.register
def stop_all():
    for server in list(_servers):
        server.stop()


def server():
    """This thread's, started where it is not running."""
    mine = getattr(_of_thread, "server", None)
    if mine is not None and mine.environment != environment():
        mine.stop()
    if mine not in _servers:
        mine = _of_thread.server = Server()
    return mine


def probe(*words, input="", timeout=60, cwd=None):
    """Like subprocess.run of `probe WORDS...`, with what it prints as text."""
    return server().call(words, input, timeout, cwd)
