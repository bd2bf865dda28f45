"""Calls of tests/probe. The program is started once per test file and runs each call in a process of its own (`probe serve`): starting
LibTorch takes longer than most calls. A rank that mpirun starts is such a call where client() stands in place of the program."""
import atexit
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading

from muster_program import built, environment

_lock = threading.Lock()
_servers = []  # at most one


class Server:
    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="muster-probe-")
        self.path = os.path.join(self.folder.name, "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(64)
            self.process = subprocess.Popen([program(), "serve", str(listener.fileno())], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                            pass_fds=[listener.fileno()], start_new_session=True, env=environment())

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.folder.cleanup()

    def call(self, words, input, timeout, cwd):
        variables = [f"{name}={value}" for name, value in environment().items()]
        strings = [cwd or os.getcwd(), len(variables), *variables, *words]
        request = b"".join(os.fsencode(str(string)) + b"\0" for string in strings)
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            stdin.write(input.encode())
            stdin.seek(0)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self.path)
                socket.send_fds(connection, [struct.pack("I", len(request))], [stdin.fileno(), out.fileno(), err.fileno()])
                connection.sendall(request)
                connection.settimeout(timeout)
                try:
                    status = connection.recv(4, socket.MSG_WAITALL)
                except TimeoutError:
                    raise subprocess.TimeoutExpired(words, timeout) from None
            assert len(status) == 4, "the server of probes ended"
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(struct.unpack("i", status)[0]), *texts)


def program():
    return built("tests/probe")


@atexit.register
def stop_all():
    while _servers:
        _servers.pop().stop()


def server():
    """Started where it is not running."""
    with _lock:
        if not _servers or _servers[0].process.poll() is not None:
            _servers[:] = [Server()]
        return _servers[0]


def client():
    """What stands in place of the probe's path in a command: the same call, but of the server."""
    return [built("tests/probe_client"), server().path]


def probe(*words, input="", timeout=60, cwd=None):
    """Like subprocess.run of `probe WORDS...`, with what it prints as text."""
    return server().call(words, input, timeout, cwd)
