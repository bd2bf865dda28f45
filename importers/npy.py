"""Reads .npy files of features, which come from strangers: no pickle is ever loaded, nothing is allocated before the size of the
file has been compared with its header."""
import math

import numpy as np

from command_line import open_regular
from container import TOKENS_DTYPE, whole_numbers_problem


def read_shape(path):
    """Shape of a .npy file, without reading its values. ValueError: what is wrong, for people."""
    with open_regular(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            # Version 3 differs from 2 only in the encoding of names of fields, which no numeric array has.
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
                       (3, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"has the unknown format version {version[0]}.{version[1]}")
            shape, _, dtype = readers[version](file)
        except Exception as error:  # NumPy parses the header as Python, whose parser fails in many ways
            raise ValueError(f"is no valid .npy file ({str(error)[:300]})") from None
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are never loaded; save a plain numeric array")
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise ValueError(f"holds values of type {dtype}; expected real numbers (float16, float32, float64, integers or booleans)")
        header = file.tell()
        held, expected = file.seek(0, 2) - header, math.prod(shape) * dtype.itemsize
        if held != expected:
            raise ValueError(f"is damaged: {held} bytes of values, expected {expected}")
    return shape


def read_header(path):
    """Shape [frames, features] of a .npy file, without reading its values; [features] counts as one frame.

    ValueError: what is wrong, for people."""
    shape = read_shape(path)
    if len(shape) not in (1, 2) or shape[-1] < 1 or shape[0] < 0:
        raise ValueError(f"has shape {list(shape)}; expected [frames, features], or [features] for one frame")
    return (1, shape[0]) if len(shape) == 1 else shape


def read_frames(path):
    """[frames, features] of a file whose header is good; [features] becomes one frame."""
    with open_regular(path) as file:
        frames = np.load(file, allow_pickle=False)
    return frames[None] if frames.ndim == 1 else frames


def read_tokens(path):
    """[tokens, 1 or 2] of a file that holds ids of tokens, [tokens], or ids and segment ids. ValueError: what is wrong, for people."""
    read_header(path)
    with open_regular(path) as file:
        tokens = np.load(file, allow_pickle=False)
    tokens = tokens[:, None] if tokens.ndim == 1 else tokens
    if tokens.shape[1] > 2:
        raise ValueError(f"has shape {list(tokens.shape)}; expected [tokens], or [tokens, 2] for ids and segment ids")
    problem = whole_numbers_problem(tokens, TOKENS_DTYPE)
    if problem:
        raise ValueError(problem)
    return tokens
