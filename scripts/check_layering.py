#!/usr/bin/env python3
"""Checks the rules of the house that no compiler checks; CONTRIBUTING.md says why they exist.

Usage: check_layering.py [ROOT]. Prints every breach as file:line: what is wrong, and exits 1 if there is any.
"""

import os
import re
import subprocess
import sys

# An arrow means "may include": launcher -> core -> checkpoints -> distributed -> base.
LAYERS = {"base": 0, "distributed": 1, "checkpoints": 2, "core": 3, "launcher": 4}
# In core only run/ and training/ may know ranks and checkpoints, and training/ may know run/; the other folders are pure single-process code.
FREE_IN_CORE = {"run": 0, "training": 1}
# Only distributed/ speaks to MPI and NCCL.
RANK_HEADERS = re.compile(r"^(mpi|nccl)(\.h|/)")

MAX_LINES = 600
README_LINES = (10, 30)
SOURCES = (".cpp", ".h", ".cu", ".cuh", ".py", ".sh", ".proto", ".cmake")
FOLDERS_WITHOUT_README = {"cmake", "scripts"}
FOLDERS_WITH_README = {"base", "distributed", "checkpoints", "core", "launcher", "experiments", "importers", "tests"}
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")


def own_files(root):
    """Paths relative to root: what git tracks or would add, or (without git) everything outside hidden and build folders."""
    listing = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True)
    if listing.returncode == 0 and listing.stdout:
        names = listing.stdout.decode().split("\0")
        return sorted(name for name in names if name and os.path.isfile(os.path.join(root, name)))
    found = []
    for folder, subfolders, names in os.walk(root):
        skip = re.compile(r"^(build.*|runs|__pycache__|\.venv|\.muster|\.git|\.cache)$")
        subfolders[:] = [name for name in subfolders if not skip.match(name)]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names]
    return sorted(found)


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def check_include(file, included, files):
    """The breach of an `#include "included"` in `file`, or None."""
    own, theirs = file.split("/")[0], included.split("/")[0]
    if own not in LAYERS:
        return None
    if theirs not in LAYERS and theirs != "cmake":
        return f'"{included}": write project headers with their path from the root, others in <>'
    if included not in files and not included.endswith(".pb.h"):
        return f'"{included}": there is no such file'
    if theirs == "cmake":
        return None
    if LAYERS[theirs] > LAYERS[own]:
        return f'{own}/ must not know {theirs}/ ("{included}")'
    if own != "core" or theirs == "base":
        return None
    room, theirs_room = file.split("/")[1], included.split("/")[1]
    if room not in FREE_IN_CORE:
        if file.startswith("core/models/encoders/") and included == "checkpoints/safetensors.h":
            return None  # a file format, and what pretrained weights come in
        if theirs != "core":
            return f'only core/run/ and core/training/ may know {theirs}/ ("{included}")'
        if theirs_room in FREE_IN_CORE:
            return f'core/run/ and core/training/ stand above the rest of core/ ("{included}")'
    elif theirs == "core" and FREE_IN_CORE.get(theirs_room, 0) > FREE_IN_CORE[room]:
        return f'core/{room}/ must not know core/{theirs_room}/ ("{included}")'
    return None


def check_source(root, file, files):
    lines = read_lines(os.path.join(root, file))
    if len(lines) > MAX_LINES:
        yield f"{file}:{len(lines)}: {len(lines)} lines, at most {MAX_LINES}: one concept per file"
    for number, line in enumerate(lines, 1):
        if UNFINISHED.search(line):
            yield f"{file}:{number}: unfinished work does not go into the tree"
        include = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
        if not include:
            continue
        breach = check_include(file, include[2], files) if include[1] == '"' else None
        if RANK_HEADERS.match(include[2]) and file.split("/")[0] in LAYERS and not file.startswith("distributed/"):
            breach = f"only distributed/ may include <{include[2]}>"
        if breach:
            yield f"{file}:{number}: {breach}"


def check_script(root, file):
    with open(os.path.join(root, file), "rb") as opened:
        first = opened.readline()
    if not (file.endswith((".sh", ".sbatch")) or re.match(rb"#!.*\b(ba)?sh\b", first)):
        return
    parsed = subprocess.run(["bash", "-n", os.path.join(root, file)], capture_output=True, text=True)
    if parsed.returncode != 0:
        yield f"{file}: bash cannot read it:\n    " + parsed.stderr.strip().replace("\n", "\n    ")
    if first.startswith(b"#!") and not os.access(os.path.join(root, file), os.X_OK):
        yield f"{file}: starts with #! but is not executable (chmod +x)"


def check_readmes(root, files):
    top = {file.split("/")[0] for file in files if "/" in file}
    folders = FOLDERS_WITH_README | {name for name in top if not name.startswith(".")} - FOLDERS_WITHOUT_README
    for folder in sorted(folders):
        path = os.path.join(root, folder, "README.md")
        if not os.path.isfile(path):
            yield f"{folder}/README.md: missing: say what lives there and what it must not know"
            continue
        count = len(read_lines(path))
        if not README_LINES[0] <= count <= README_LINES[1]:
            yield f"{folder}/README.md: {count} lines, should be {README_LINES[0]} to {README_LINES[1]}"


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    root = os.path.abspath(root)
    files = own_files(root)
    breaches = list(check_readmes(root, files))
    sources = 0
    for file in files:
        if file.endswith(SOURCES) or os.path.basename(file) == "CMakeLists.txt":
            sources += 1
            breaches += check_source(root, file, set(files))
        breaches += check_script(root, file)
    if sources == 0:
        breaches.append(f"{root}: no sources found: is this the root of the checkout?")
    print(*breaches, sep="\n")
    print(f"{sources} source files, {len(breaches)} breaches of the house rules")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
