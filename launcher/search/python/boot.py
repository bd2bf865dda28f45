"""Runs optuna_process.py from text: these files are embedded in the program, so that it needs no path to them.

python -u -c BOOT JOURNAL SAMPLING OPTUNA_PROCESS, each the text of a file.
"""
import contextlib
import sys
import types

for name, text in (("journal", sys.argv[1]), ("sampling", sys.argv[2])):
    sys.modules[name] = types.ModuleType(name)
    with contextlib.suppress(ImportError):  # optuna_process.py gets the same one, and reports it
        exec(compile(text, name + ".py", "exec"), sys.modules[name].__dict__)
exec(compile(sys.argv[3], "optuna_process.py", "exec"))
