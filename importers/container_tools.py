"""What the commands that make containers of containers share: their options, and writing what they chose."""
import argparse
import hashlib
import os
import shlex
import sys
from pathlib import Path

import numpy as np

from arrays import read_manifest
from command_line import run_importer
from container import is_name
from dataset import Dataset, Modality, write_dataset


def program(name):
    """What the user called: "muster data NAME", which that program says in MUSTER_COMMAND, or the script."""
    command = f"muster data {name.partition('_')[0]}"
    return command if os.environ.get("MUSTER_COMMAND") == command else f"{name}.py"


def tool_parser(name, text):
    """text: of the script; its first paragraph, and after it examples."""
    description, _, examples = text.partition("\n\n")
    command = f"muster data {name.partition('_')[0]}"
    parser = argparse.ArgumentParser(prog=program(name), description=description, epilog=examples.replace(command, program(name)),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(tool=name)
    return parser


def add_common_options(parser):
    parser.add_argument("-o", "--output", required=True, metavar="OUT.h5", help="the container to write; one that exists is replaced")
    parser.add_argument("--name", help="of the data set; default: that of the source")
    parser.add_argument("--nonfinite", choices=("error", "zero"), default="error",
                        help="what to do with NaN and infinite features; zero: write 0 and count them")


def run_tool(run, parser, arguments=None, check=None):
    """Parses the options, calls run(options) and returns the exit code. check(options): usage errors, and what options become."""
    arguments = list(map(str, sys.argv[1:] if arguments is None else arguments))
    options = parser.parse_args(arguments)
    if not options.output:
        parser.error("-o: the output has no name")
    if check:
        check(options)
    options.command = f"{program(options.tool)} {shlex.join(arguments)}".encode("utf-8", "backslashreplace").decode("utf-8")
    return run_importer(run, options)


def name_and_source(text):
    """NAME=SOURCE, or NAME for both."""
    name, sign, source = text.partition("=")
    source = source if sign else name
    if not is_name(name) or not source:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form NAME=SOURCE')
    return name, source


def copy_container(contents, options, sources, notes=()):
    """Writes the contents, reading one sample at a time, and returns the lines of the summary. sources: the Contents they come from."""
    modalities = [Modality(name, stored.dim, stored.lengths, stored.read, lambda row, stored=stored: stored.place, stored.dtype, stored.sample_rate)
                  for name, stored in contents.modalities.items()]
    targets = {name: (values, classes) if classes else values for name, (values, classes) in contents.targets.items()}
    dataset = Dataset(contents.name or Path(contents.path).stem, contents.task, contents.class_names, contents.ids, contents.labels, contents.groups,
                      contents.splits, targets, modalities, notes)
    return write_dataset(dataset, options, [(Path(source.path).name, source.path) for source in sources])


def random_order(rows, names, seed):
    """Rows in an order that depends on the seed and their names only: a name keeps its place among others whatever else there is."""
    keys = [hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    return np.asarray(rows)[sorted(range(len(keys)), key=keys.__getitem__)]


def read_table(path, columns, problems):
    """[(where, cell, ...)] of a CSV file with a header, for the columns asked for."""
    table = read_manifest(path, problems)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        problems += [f'{path}:1: there is no column "{name}"; the columns are {", ".join(table.columns)}' for name in missing if table.columns]
        return []
    return list(zip(map(table.where, range(len(table.rows))), *map(table.column, columns)))
