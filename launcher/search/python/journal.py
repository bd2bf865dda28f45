"""Optuna's journal file, made robust: a process that dies while it writes or while it holds the lock does not stop the others."""
import contextlib
import fcntl
import glob
import json
import mmap
import os
import random
import sys
import time

from optuna.storages.journal import JournalFileBackend


def born(pid):
    """When a process of this machine started, in ticks; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        return None


TELL_AFTER = 10  # seconds


class Lock:
    """Optuna's lock of a journal: the symbolic link JOURNAL.lock that leads to the journal, made atomically, also on NFS.

    It leads there by way of a second link that names its holder, so that the lock of a process that died on this machine is freed at
    once. Anybody else's is freed when nothing has moved for a while, as Optuna does. Optuna programs see no difference.
    (Optuna's own class waits 30 s for every dead holder, and for ever if the link leads nowhere, as one made with a relative path does.)
    """

    def __init__(self, journal):
        self.journal, self.link = journal, journal + ".lock"
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            self.here = f"{self.link}.{file.read(8)}-{os.stat('/proc/self/ns/pid').st_ino}-"
        self.me = f"{self.here}{os.getpid()}-{born(os.getpid())}"
        self.grace = 30 + 10 * random.random()  # so that no two machines free a lock at the same instant
        for other in glob.glob(glob.escape(self.here) + "*"):
            if self.is_dead(other) and self.state()[0] != other:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(other)
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.basename(journal), self.me)

    def is_dead(self, holder):
        if not holder or not holder.startswith(self.here):
            return False
        pid, its_birth = holder[len(self.here):].split("-")
        try:
            os.kill(int(pid), 0)
            return born(pid) != its_birth
        except OSError as error:
            return isinstance(error, ProcessLookupError)  # else another user's, and alive

    def state(self):
        """(the holder, when the lock was made, when the journal was last written); None for what there is not."""
        found = []
        for look, path in ((os.readlink, self.link), (os.lstat, self.link), (os.stat, self.journal)):
            try:
                found.append(getattr(at := look(path), "st_mtime_ns", at))
            except OSError:  # free, or the plain file that Optuna's JournalFileOpenLock makes
                found.append(None)
        return tuple(found)

    def acquire(self):
        seen, since, pause, told = None, time.monotonic(), 0.001, False
        while True:
            with contextlib.suppress(FileExistsError):
                os.symlink(self.me, self.link)
                return True
            state = self.state()
            if state != seen:
                seen, since = state, time.monotonic()
            waited = time.monotonic() - since
            if self.is_dead(state[0]) or waited > self.grace:
                self.free(state)
            if waited > TELL_AFTER and not told:
                told = True
                print(f"waiting for {self.link}, held by {self.holder(state[0])}", file=sys.stderr)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def holder(self, target):
        if target and target.startswith(self.here):
            return f"process {target[len(self.here):].split('-')[0]} of this machine"
        return f"a process of another machine ({os.path.basename(target)})" if target else "a program that does not say who it is"

    def free(self, state):
        # One process at a time, where the file system has locks: a second one would take away the lock of whoever acquires it in
        # between. (An abstract socket, which any user of the machine may hold, would let others stall the search.)
        claim = None
        try:
            claim = os.open(self.link + ".free", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(claim).st_ino != os.stat(self.link + ".free").st_ino:
                return self.close(claim)  # whoever held it has removed it
        except (BlockingIOError, FileNotFoundError):
            return self.close(claim)
        except OSError:
            pass  # no such locks here, or another user's file: what is looked at next must do
        try:
            if self.state() == state:
                os.unlink(self.link)
                print(f"freed {self.link}, which {state[0]} had left", file=sys.stderr)
                if self.is_dead(state[0]):
                    os.unlink(state[0])
            os.unlink(self.link + ".free")
        except OSError:
            pass
        finally:
            self.close(claim)

    @staticmethod
    def close(descriptor):
        if descriptor is not None:
            os.close(descriptor)

    def release(self):
        if self.state()[0] == self.me:  # unless this machine was suspended for so long that another one has freed it
            os.unlink(self.link)

    def leave(self):
        with contextlib.suppress(OSError):
            os.unlink(self.me)


class Journal(JournalFileBackend):
    """A journal with transactions: several records under one lock, with one fsync. Before each one a torn end (a full disk, a machine that went
    down) is cut off, because a record appended to a torn one would make the file unreadable. `cut` says what was."""

    def __init__(self, path, read_only=False):
        self.path, self.file, self.cut = path, None, []
        with open(path, "rb" if read_only else "ab+") as file:
            file.seek(0)
            if not b'{"op_code":'.startswith(start := file.read(11)):
                raise OSError(f"{path} is no journal of Optuna (it starts with {start!r})")
        self.lock = None if read_only else Lock(path)
        super().__init__(path, self.lock)
        if not read_only:
            with self.transaction():
                pass

    @contextlib.contextmanager
    def transaction(self):
        if self.file:
            yield
            return
        self.lock.acquire()
        try:
            with open(self.path, "rb+") as self.file:
                self.cut_torn_end()
                start = self.file.seek(0, os.SEEK_END)
                try:
                    yield
                finally:
                    if self.file.tell() > start:
                        os.fsync(self.file.fileno())
        finally:
            self.file = None
            self.lock.release()

    def close(self):
        if self.lock:
            self.lock.leave()

    def append_logs(self, logs):
        with self.transaction():
            self.file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
            self.file.flush()

    def cut_torn_end(self):
        size = end = os.fstat(self.file.fileno()).st_size
        if size == 0:
            return
        with mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            while end and not is_record(line := text[text.rfind(b"\n", 0, end - 1) + 1:end]):
                end -= len(line)
        if end < size:
            self.file.truncate(end)
            self.cut.append(f"cut {size - end} bytes of a torn record off the end of {self.path}")

    def damaged_line(self):
        with open(self.path, "rb") as file:
            return next((number for number, line in enumerate(file, 1) if not is_record(line)), None)


def is_record(line):
    try:
        return line.endswith(b"\n") and "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False
