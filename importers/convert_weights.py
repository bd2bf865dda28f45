#!/usr/bin/env python3
"""Writes the weights of a pretrained model that are a pickle as safetensors, which muster reads.

    python importers/convert_weights.py FOLDER           FOLDER/pytorch_model.bin -> FOLDER/model.safetensors
    python importers/convert_weights.py FOLDER -o OUT    the same into a new folder, with config.json and what tokenizers need

A pickle is a program. Only the part of it that makes tensors is run (torch.load with weights_only); anything else is refused.
Weights in several files (pytorch_model.bin.index.json) become one. Tied weights are written under each of their names. Nothing
is overwritten. Exit codes: 0 done, 2 usage, 65 bad data, 74 cannot read or write.
"""
import argparse
import errno
import json
import math
import os
import re
import secrets
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

from command_line import open_regular, run_importer
from container import DataError, OutputError

WEIGHTS, INDEX, OUTPUT = "pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors"
COPIED = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model")
LARGEST_JSON = 64 << 20  # bytes
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
MOST_TIES = 4  # the tensors together have at most so many times the bytes of the files


def file_names(folder):
    """{file of weights: names of its tensors, or None for whatever is in it}."""
    if os.path.lexists(folder / WEIGHTS):
        return {WEIGHTS: None}
    path = folder / INDEX
    if not os.path.lexists(path):
        raise DataError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}")
    try:
        with open_regular(path) as file:
            weight_map = json.loads(file.read(LARGEST_JSON))["weight_map"]
        names = {}
        for tensor, file in weight_map.items():
            names.setdefault(file, set()).add(tensor)
        wrong = [file for file in names if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\0" in file]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path}: is no index of weights: it has no weight_map from tensors to files") from None
    if wrong:
        raise DataError([f"{path}: {file!r} is not the name of a file in this folder" for file in wrong])
    if not names:
        raise DataError(f"{path}: names no tensors")
    return names


def refusal(error):
    """Why torch.load refuses a file, in one sentence."""
    text = str(error).strip() or type(error).__name__
    unknown = re.search(r"GLOBAL ([\w.]+)", text)
    if unknown:
        return f"asks for {unknown[1]}, which weights do not need: it was not run"
    # What torch advises on its own options does not help, and must not be followed.
    reason = "it is damaged, or no pickle" if re.search("weights_only|mmap", text) else text.splitlines()[0][:200]
    return f"is no file of weights that torch.load reads ({reason})"


def read_tensors(path, problems):
    """What is in one file: {name: tensor}, still on disk where the format allows it."""
    import torch
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    problems.append(f"{path}: is compressed, which torch.save never does")
                    return {}
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes of the reader
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek to before the file
            raise
        problems.append(f"{path}: {refusal(error)}")
        return {}
    if not isinstance(state, dict):
        problems.append(f"{path}: holds a {type(state).__name__}, not tensors by name")
        return {}
    good, total = {}, 0
    for name, tensor in state.items():
        if not isinstance(name, str) or name == "__metadata__":
            problems.append(f"{path}: {name!r} is not the name of a tensor")
        elif not isinstance(tensor, torch.Tensor):
            problems.append(f"{path}: {name}: is a {type(tensor).__name__}, not a tensor")
        elif tensor.layout != torch.strided or tensor.is_quantized or str(tensor.dtype).removeprefix("torch.") not in DTYPES \
                or tensor.device.type != "cpu":
            problems.append(f"{path}: {name}: is a tensor of a kind that is not read ({tensor.layout}, {tensor.dtype})")
        else:
            total += math.prod(tensor.shape) * tensor.element_size()
            good[name] = tensor.detach()
    if total > MOST_TIES * size:
        problems.append(f"{path}: its tensors would have {total} bytes, {total / size:.0f} times those of the file")
        return {}
    if not state:
        problems.append(f"{path}: holds no tensors")
    return good


def read_all(folder):
    tensors, origin, problems = {}, {}, []
    for file, expected in sorted(file_names(folder).items()):
        found = read_tensors(folder / file, problems)
        for name in sorted(found.keys() & tensors.keys()):
            problems.append(f"{folder / file}: {name} is in {origin[name]} too")
        if expected is not None and not problems:
            problems += [f"{folder / file}: lacks {name}, which {INDEX} says is there" for name in sorted(expected - found.keys())]
            problems += [f"{folder / file}: holds {name}, which {INDEX} does not name" for name in sorted(found.keys() - expected)]
        tensors.update(found)
        origin.update(dict.fromkeys(found, file))
    if problems:
        raise DataError(problems)
    return tensors


def write_weights(tensors, path):
    """The file appears complete or not at all."""
    from safetensors.torch import save_file
    ready, storages = {}, set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        # A copy where another name, or more than this tensor, has the same memory.
        ready[name] = tensor.clone().contiguous() if place in storages else tensor.contiguous()
        storages.add(place)
    temporary = path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        mode = os.stat(temporary).st_mode
        save_file(ready, temporary, metadata={"format": "pt"})
        os.chmod(temporary, mode & 0o777)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if os.path.lexists(path):
            raise OutputError(f"{path} is not written: it appeared meanwhile")
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run(options):
    """Returns the lines of the summary. DataError: everything that is wrong."""
    folder, out = Path(options.folder), Path(options.output or options.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if options.output is None and os.path.lexists(folder / OUTPUT):
        raise OutputError(f"{folder / OUTPUT} is not written: it is there already")
    if options.output is not None and os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not written: it is there already, and no empty folder")
    tensors = read_all(folder)
    size = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
    if options.output is None:
        write_weights(tensors, folder / OUTPUT)
    else:
        building = out.absolute().with_name(f".tmp-{out.name}-{secrets.token_hex(4)}")
        try:
            building.mkdir(parents=True)
            for name in COPIED:
                if os.path.lexists(folder / name):
                    with open_regular(folder / name) as source, open(building / name, "xb") as copy:
                        shutil.copyfileobj(source, copy)
            write_weights(tensors, building / OUTPUT)
            try:
                os.rename(building, out)
            except OSError as error:
                raise OutputError(f"{out} is not written: {error.strerror}") from None
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return [f"{out / OUTPUT}: {len(tensors)} tensors, {size / 1e6:.1f} MB"]


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(prog="convert_weights.py",
                                     description="pytorch_model.bin of a pretrained model -> model.safetensors")
    parser.add_argument("folder", metavar="FOLDER", help="folder as Hugging Face lays it out")
    parser.add_argument("-o", "--output", metavar="OUT", help="a new folder; default: FOLDER itself")
    options = parser.parse_args(arguments)
    if options.output == "":
        parser.error("-o: the output has no name")
    return options


def main(arguments=None):
    return run_importer(run, parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
