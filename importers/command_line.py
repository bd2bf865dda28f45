"""What all importers share besides the container: opening inputs, and turning whatever goes wrong into messages and exit codes."""
import contextlib
import os
import signal
import stat
import sys

import numpy as np

from container import DataError, OutputError, finite_frames

DONE, USAGE, BAD_DATA, INTERNAL, IO = 0, 2, 65, 70, 74
LISTED = 50  # problems; a wrong option makes one per sample


def open_regular(path, mode="rb", pipes=False, **options):
    """open() for an ordinary file only: a pipe would be waited for, a device has no end. pipes: also for the pipe of a shell's
    <(command); one that nobody writes to is empty."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind) and not (pipes and stat.S_ISFIFO(kind)):
        os.close(descriptor)
        raise DataError(f"{path}: is not an ordinary file")
    os.set_blocking(descriptor, True)
    return open(descriptor, mode, **options)


def printable(text):
    """Text from a file, for a terminal: what is no printable character is written as its escape, and long text is cut."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return text if len(text) <= 1000 else text[:1000] + "..."


def run_importer(run, arguments=None):
    """Calls run(arguments), which returns the lines of its summary, and returns the exit code. DataError: the data are wrong;
    OSError: the disk is at fault; OutputError: the output file must not be written."""
    for stream in (0, 1, 2):  # a file opened now must not get the number of a closed stream: messages would be written into it
        with contextlib.suppress(OSError):
            os.fstat(stream)
            continue
        os.open(os.devnull, os.O_RDWR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the unfinished file is removed
    try:
        lines = run(arguments)
    except OutputError as error:
        return fail([str(error)], USAGE)
    except DataError as error:
        return fail(error.problems, BAD_DATA)
    except MemoryError as error:
        return fail([f"there is not enough memory: {error}"], IO)
    except OSError as error:
        return fail([f"cannot read or write: {error}"], IO)
    except Exception as error:  # a defect of the importer
        return fail([f"internal error: {type(error).__name__}: {error}"], INTERNAL)
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(map(printable, lines)), flush=True)
    return DONE


def fail(problems, code):
    with contextlib.suppress(OSError):
        for problem in problems[:LISTED]:
            print(printable(problem), file=sys.stderr)
        if len(problems) > LISTED:
            print(f"... and {len(problems) - LISTED} more", file=sys.stderr)
        print(f"{len(problems)} problem{'s' * (len(problems) > 1)}; nothing was written", file=sys.stderr, flush=True)
    return code


def copy_files(modality, read, empty, things, options, out, progress, problems):
    """Reads every good sample of a modality once, checks its values and, if `out` is given, writes them. read(row): its values, which
    may raise; empty: those of a sample that has none, of the dtype to write; things: what does not fit into memory. The modality
    has name, ids, lengths (-1 where there is a problem) and at(row, text), which says what is wrong with a row."""
    for row in np.flatnonzero(modality.lengths >= 0):
        values = empty
        if modality.lengths[row] > 0:
            try:
                values = read(row)
            except (DataError, MemoryError, ValueError) as error:  # ValueError: it has changed since its header was read
                reason = f"its {things} do not fit into memory" if isinstance(error, MemoryError) else error
                problems.append(modality.at(row, reason))
                out = None
                continue
            progress.add(values.nbytes)
        problem = finite_frames(values, empty.dtype.name, options.nonfinite)[2] if empty.dtype.kind == "f" else None
        if problem:
            hint = "" if options.nonfinite == "zero" else "; --nonfinite zero replaces NaN and infinity by 0"
            problems.append(modality.at(row, f'id "{modality.ids[row]}": {problem}') + hint)
            out = None  # continue reading, only to report everything
        if out:
            out.append(modality.name, values)
