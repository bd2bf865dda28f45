"""What a pickle may name, and the arrays that are made of it: see unpickle.py. ValueError, TypeError: what is not admitted."""
import math
import re

import numpy as np

SCALARS = (str, int, float, bool, type(None), bytes)

# What a pickle may name, and by what it is known here. Only full names: numpy.core.multiarray.fromfile would read any file.
GLOBALS = {f"{module}.{name}": meaning for modules, name, meaning in (
    (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", "reconstruct"),
    (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", "scalar"),
    (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", "frombuffer"),
    (("numpy",), "ndarray", "ndarray"), (("numpy",), "dtype", "dtype"),
    (("_codecs",), "encode", "encode"),
    (("collections",), "OrderedDict", "dict"), (("collections",), "defaultdict", "defaultdict"),
    *((("builtins", "__builtin__"), name, name) for name in ("list", "dict", "set", "frozenset", "bytes", "bytearray", "int", "float", "str")))
    for module in modules}


class EightBit(bytes):
    """A string of Python 2: bytes where numpy wants bytes, text anywhere else."""


class Large:
    """A string of bytes that stays in the file. kind: bytes, bytearray or EightBit, which it becomes where it is a value."""

    __slots__ = ("view", "kind")

    def __init__(self, view, kind):
        self.view, self.kind = view, kind


class Global:
    """A name that a pickle may use, but only to call it."""

    __slots__ = ("meaning",)

    def __init__(self, meaning):
        self.meaning = meaning


class Type:
    """A numpy dtype; BUILD gives it its byte order."""

    __slots__ = ("text", "order", "built")

    def __init__(self, text):
        self.text, self.order, self.built = text, "", False

    def dtype(self):
        return np.dtype(self.order + self.text)


class Unfinished:
    """What _reconstruct returns: BUILD makes an array of it. places: where the memo holds it."""

    __slots__ = ("places",)

    def __init__(self):
        self.places = []


def as_text(value):
    """str of a str or a string of Python 2."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        return bytes(value).decode("latin-1")


def plain_text(value):
    if not isinstance(value, (str, EightBit, bytes)):
        raise ValueError("a value is no text")
    return as_text(value)


def raw_bytes(value):
    if isinstance(value, Large):
        return value.view
    if not isinstance(value, (bytes, bytearray)):
        raise ValueError("its values are no bytes")
    return value


# What a pickle calls


def make_type(text, align=False, copy=False):
    text = plain_text(text)
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,9}|O[48]?", text):
        raise ValueError(f'the type "{text[:40]}" is none of booleans, integers, floats, complex numbers, texts and objects')
    return Type("O" if text[0] == "O" else text)


def build_type(value, version, order, subtype, names, fields, size=-1, alignment=-1, flags=0):
    order = plain_text(order)
    if value.built or order not in ("<", ">", "|", "=") or not subtype is names is fields is None:
        raise ValueError("only arrays of plain values are read, not of records")
    if value.text[0] in "SU" and size != value.dtype().itemsize:
        raise ValueError(f"texts of {size} bytes are not of type {value.text}")
    value.built = True
    if order in "<>" and value.text != "O":
        value.order = order


def make_array(content, kind, shape, order):
    if not isinstance(kind, Type) or type(shape) is not tuple or len(shape) > 32 or not all(
            type(length) is int and 0 <= length < 1 << 48 for length in shape):
        raise ValueError("its type or shape is none")
    dtype, count = kind.dtype(), math.prod(shape)
    if dtype == object:
        if type(content) is not list or len(content) != count:
            raise ValueError(f"objects of shape {list(shape)}")
        array = np.empty(count, dtype=object)
        for i, value in enumerate(content):
            array[i] = value
        return array.reshape(shape)  # objects are in C order, whatever the order of the array was
    content = raw_bytes(content)
    if count * dtype.itemsize != len(content) or (count and not dtype.itemsize):
        raise ValueError(f"{len(content)} bytes are no values of type {dtype} and shape {list(shape)}")
    array = np.frombuffer(content, dtype) if count else np.zeros(0, dtype)
    check_text(array)
    return array.reshape(shape, order=order)


def check_text(array):
    """Texts are stored as 4 bytes per character, of which not all are one: numpy finds that out when they are used."""
    if array.dtype.kind == "U" and array.size and array.view(array.dtype.str[0] + "u4").max() > 0x10FFFF:
        raise ValueError("its texts hold what is no character")
