#!/usr/bin/env python3
"""Checks that clang-format would leave the C++ sources as they are.

Usage: check_format.py [--fix]. Prints the files that it would change, and exits 1 if there are any; --fix changes them.
Other versions of clang-format lay some lines out otherwise: this one is used, from .venv (requirements.txt) or the system.
"""

import os
import re
import shutil
import subprocess
import sys

VERSION = "14"
SOURCES = re.compile(r"\.(h|cpp|cu|c)$")


def find_clang_format(root):
    for name in (os.path.join(root, ".venv", "bin", "clang-format"), f"clang-format-{VERSION}", "clang-format"):
        path = shutil.which(name)
        if path and re.search(rf"version {VERSION}\.", subprocess.run([path, "--version"], capture_output=True, text=True).stdout):
            return path
    return None


def main():
    root = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    program = find_clang_format(root)
    if program is None:
        print(f"There is no clang-format {VERSION}: run ./setup.sh --tests, or pip install clang-format=={VERSION}.0.6 into .venv.")
        return 1
    listing = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True)
    if listing.returncode != 0:
        print("Skipped: this is not a git checkout, so what its sources are is not known.")
        return 0
    files = [name for name in listing.stdout.decode().split("\0") if SOURCES.search(name) and os.path.isfile(os.path.join(root, name))]
    if "--fix" in sys.argv[1:]:
        return subprocess.run([program, "-i", *files], cwd=root).returncode
    check = subprocess.run([program, "--dry-run", "-Werror", *files], cwd=root, capture_output=True, text=True)
    wrong = sorted({line.split(":")[0] for line in check.stderr.splitlines() if "clang-format-violations" in line})
    for file in wrong:
        print(f"{file}: not formatted")
    if check.returncode != 0 and not wrong:
        print(check.stderr)
    print(f"{len(files)} C++ sources, {len(wrong)} not formatted" + (": scripts/check_format.py --fix formats them" if wrong else ""))
    return 1 if check.returncode != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
