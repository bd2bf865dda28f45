"""Reads .npz files, and .npy files with Python objects, which come from strangers: the objects are pickles, which are not executed."""
import io
import math
import zipfile
from pathlib import Path

import numpy as np

import unpickle
from command_line import open_regular
from container import DataError
from pickled import check_text

SPARE = 1 << 27  # bytes that any file may hold, however small it is
LARGEST_MEMBER = 200  # times the size of the .npz file, and SPARE: what is larger is a bomb and no feature file


def load_npz(path, limit=None):
    """{name: array} of an .npz file; of an .npy file {its stem: array}. limit: bytes of the arrays in all. DataError: what is wrong."""
    path = Path(path)
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(6) == b"\x93NUMPY":
            file.seek(0)
            return {path.stem: read_npy(file.read(), str(path))}
        file.seek(0)
        left, arrays = limit or SPARE + LARGEST_MEMBER * size, {}
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    where = f"{path}: {member.filename}"
                    name = member.filename[:-4] if member.filename.endswith(".npy") else member.filename
                    if name in arrays:
                        raise DataError(f"{where}: is there twice")
                    if member.file_size > left:
                        raise DataError(f"{where}: claims {member.file_size} bytes in a file of {size}: that is no plausible array")
                    with archive.open(member) as stream:
                        content = stream.read(member.file_size + 1)
                    if len(content) > member.file_size:
                        raise DataError(f"{where}: is larger than it says")
                    left -= len(content)
                    arrays[name] = read_npy(content, where)
        except DataError:
            raise
        except Exception as error:  # zipfile and its decompressors fail in many ways
            raise DataError(f"{path}: is no valid .npz file ({str(error)[:300]})") from None
    return arrays


def read_npy(content, where):
    """The array of the bytes of an .npy file, whose objects, if it has any, are an admitted pickle."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
                   (3, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # numpy parses the header as Python, whose parser fails in many ways
        raise DataError(f"{where}: is no valid .npy file ({str(error)[:300]})") from None
    start, count = stream.tell(), math.prod(shape)
    if dtype.hasobject:
        array = unpickle.load(content[start:], where)
        if dtype != np.dtype(object) or not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            raise DataError(f"{where}: its objects are no array of shape {list(shape)}, as its header says")
        return array
    if dtype.kind not in "biufcSU" or count < 0 or count * dtype.itemsize != len(content) - start or (dtype.itemsize == 0 and count):
        raise DataError(f"{where}: {len(content) - start} bytes are no values of type {dtype} and shape {list(shape)}")
    array = np.frombuffer(content, dtype, count, start) if count else np.zeros(0, dtype)
    try:
        check_text(array)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    return array.reshape(shape, order="F" if fortran else "C")
