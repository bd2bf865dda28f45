"""Reads pickles (protocols 0 to 5), which come from strangers, without executing them.

    import unpickle
    data = unpickle.load("mosi.pkl")  # dict, list, str, numpy arrays ...

A pickle is a program that may call any function of any module. This is an interpreter of its own for it, which knows nothing but
plain values (None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, OrderedDict, defaultdict) and
numpy's arrays, scalars and dtypes, as numpy 1.x and 2.x, Python 2 and Python 3 write them. Anything else is refused by its full name:
nothing is imported and no function of a pickle is called; what stands for a function here is one of this file, or of pickled.py.

Large values are not copied: arrays are read-only views of the file, which is mapped into memory. So a file of many gigabytes needs
little memory, and what else is made of a file is bounded by a small multiple of its size. OrderedDict and defaultdict become dict;
strings of Python 2 become str (UTF-8, otherwise Latin-1).
"""
import codecs
import mmap
import struct

import numpy as np

from command_line import open_regular
from container import DataError
from pickled import GLOBALS, SCALARS, EightBit, Global, Large, Type, Unfinished, as_text, build_type, make_array, make_type, plain_text, raw_bytes

SMALL = 4096  # bytes; larger strings of bytes stay in the file
LONGEST_LINE = 1024  # bytes, of a name or number of protocol 0
LONGEST_INTEGER = 16  # bytes
DEEPEST = 64  # containers in each other
MOST_MARKS = 1024  # containers that are begun at the same time
SPARE, MULTIPLE = 1 << 27, 24  # bytes of memory, and per byte of the file, for containers, copies and small objects


def load(source, what=None):
    """The value of a pickle. source: a path, or bytes. what: its name for messages. DataError: what is wrong, and at which byte."""
    what = str(source) if what is None and not isinstance(source, (bytes, bytearray)) else what or "pickle"
    if isinstance(source, (bytes, bytearray)):
        return Reader(source, what).load()
    with open_regular(source) as file:
        if file.seek(0, 2) == 0:
            raise DataError(f"{what}: is empty; expected a pickle")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Reader(content, what).load()


class Reader:
    """Interprets one pickle."""

    def __init__(self, content, what):
        self.content, self.data, self.size, self.what = content, memoryview(content), len(content), what
        self.position = self.start = 0  # start: of the present opcode
        self.stack, self.marks, self.memo, self.sparse = [], [], [], {}
        self.budget = SPARE + MULTIPLE * self.size
        self.done = {}  # id of a finished container -> (what it was, what it became, its height)

    def fail(self, text):
        raise DataError(f"{self.what}: {text} (byte {self.start})")

    def spend(self, amount):
        self.budget -= amount
        if self.budget < 0:
            self.fail(f"needs far more memory than its {self.size} bytes explain: it is not read on")

    def load(self):
        handlers, data, size = [HANDLERS.get(code) for code in range(256)], self.data, self.size
        while True:
            self.start = position = self.position
            if position >= size:
                self.fail("is cut off: the pickle has no end")
            code = data[position]
            if code == 46:  # STOP
                break
            self.position = position + 1
            handler = handlers[code]
            if handler is None:
                self.fail(f"holds the opcode {code:#04x}, which " + REFUSED.get(code, "no pickle has: it is none, or damaged"))
            try:
                handler(self)
            except IndexError:
                self.fail("is damaged: it uses a value that is not there")
        if self.position + 1 != size:
            self.fail(f"{size - self.position - 1} bytes follow its end: it is damaged, or holds more than one pickle")
        if len(self.stack) != 1 or self.marks:
            self.fail("is damaged: it does not end with one value")
        return self.finish(self.stack.pop(), 0)[0]

    # Bytes of the file

    def take(self, count):
        """The position of the next `count` bytes."""
        position = self.position
        if not 0 <= count <= self.size - position:
            self.fail(f"is cut off or damaged: {count} bytes should follow, there are {self.size - position}")
        self.position = position + count
        return position

    def number(self, code, count):
        return struct.unpack_from(code, self.data, self.take(count))[0]

    def line(self, limit=LONGEST_LINE):
        end = self.content.find(b"\n", self.position, self.size if limit is None else min(self.size, self.position + limit))
        if end < 0:
            self.fail("is cut off or damaged: a line has no end")
        start, self.position = self.position, end + 1
        return bytes(self.data[start:end])

    def text(self, count):
        start = self.take(count)
        try:
            return str(self.data[start:start + count], "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            self.fail(f"holds a string that is not UTF-8 ({error.reason})")

    def string(self, count, kind):
        start = self.take(count)
        return kind(self.data[start:start + count]) if count <= SMALL else Large(self.data[start:start + count], kind)

    # The stack

    def pop(self, *kinds):
        """The top of the stack, of one of these types."""
        value = self.stack.pop()
        if kinds and type(value) not in kinds:
            self.fail(f"is damaged, or wants what is not admitted: a {type(value).__name__} where a {kinds[0].__name__} belongs")
        return value

    def top(self, kind, what):
        if type(self.stack[-1]) is not kind:
            self.fail(f"{what} {self.describe(self.stack[-1])}, which is not admitted")
        return self.stack[-1]

    def describe(self, value):
        return f'the name "{value.meaning}"' if isinstance(value, Global) else f"a value of type {type(value).__name__}"

    def from_mark(self):
        """What was pushed since the last mark."""
        if not self.marks or self.marks[-1] > len(self.stack):
            self.fail("is damaged: a container ends that has not begun")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def mark(self):
        if len(self.marks) >= MOST_MARKS:
            self.fail(f"is nested too deep: more than {MOST_MARKS} containers in each other")
        self.marks.append(len(self.stack))

    def pop_top(self):
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def push_container(self, kind, values=()):
        self.spend(216 + 72 * len(values) if kind in (set, frozenset) else 72 + 8 * len(values))
        self.stack.append(kind(values) if kind in (list, tuple) or not values else kind(self.key(value) for value in values))

    def key(self, value):
        """A key of a dictionary or member of a set: nothing whose hash could be long to compute."""
        flat = value if type(value) is tuple else (value,)
        if len(flat) > DEEPEST or not all(isinstance(part, (*SCALARS, np.generic)) for part in flat):
            self.fail(f"has {self.describe(value)} as a key; only plain values are admitted")
        return value

    def append_to(self, values):
        self.top(list, "appends to").extend(values)

    def set_items(self, values):
        if len(values) % 2:
            self.fail("is damaged: a key has no value")
        target = self.top(dict, "sets items of")
        self.spend(32 * len(values))
        for i in range(0, len(values), 2):
            target[self.key(values[i])] = values[i + 1]

    def add_items(self, values):
        self.spend(72 * len(values))
        self.top(set, "adds to").update(self.key(value) for value in values)

    # The memo

    def put(self, index):
        value = self.stack[-1]
        if isinstance(value, Unfinished):
            value.places.append(index)
        if index == len(self.memo):
            self.memo.append(value)
        elif 0 <= index < len(self.memo):
            self.memo[index] = value
        else:  # however large: pickles of Python 2 begin at 1, and may leave out others
            self.spend(160)
            self.sparse[index] = value

    def get(self, index):
        if 0 <= index < len(self.memo):
            self.stack.append(self.memo[index])
        elif index in self.sparse:
            self.stack.append(self.sparse[index])
        else:
            self.fail(f"is damaged: it uses value {index} before it was stored")

    # Numbers and strings of protocol 0

    def decimal(self, kind, end=b""):
        line = self.line()
        if end and line.endswith(end):
            line = line[:-1]
        try:
            return kind(line.decode("ascii"))
        except ValueError:
            self.fail(f"is damaged: {line[:40]!r} is no number")

    def integer(self):
        line = bytes(self.data[self.position:min(self.size, self.position + 3)])
        if line in (b"00\n", b"01\n"):
            self.position += 3
            return line == b"01\n"
        return self.decimal(int)

    def quoted(self):
        line = self.line(None).strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            self.fail("is damaged: a string without quotes")
        self.spend(4 * len(line))
        try:
            return EightBit(codecs.escape_decode(line[1:-1])[0])
        except ValueError as error:
            self.fail(f"is damaged: {error}")

    def unicode_line(self):
        line = self.line(None)
        self.spend(8 * len(line))
        try:
            return line.decode("raw_unicode_escape")
        except UnicodeDecodeError as error:
            self.fail(f"is damaged: {error.reason}")

    def long(self, count):
        if not 0 <= count <= LONGEST_INTEGER:
            self.fail(f"holds a whole number of {count} bytes; at most {LONGEST_INTEGER} are admitted")
        start = self.take(count)
        return int.from_bytes(self.data[start:start + count], "little", signed=True)

    # Names and what they do

    def find(self, module, name):
        if type(module) not in (str, EightBit) or type(name) not in (str, EightBit):
            self.fail("is damaged: a name is no text")
        name = f"{as_text(module)}.{as_text(name)}"
        if name not in GLOBALS:
            self.fail(f'uses "{name[:300]}", which is not admitted: only plain values and numpy arrays are read, and nothing of a pickle is '
                      "executed; save it as plain numpy arrays")
        self.stack.append(Global(GLOBALS[name]))

    def global_lines(self):
        names = []
        for _ in range(2):
            try:
                names.append(self.line().decode("utf-8"))
            except UnicodeDecodeError:
                self.fail("is damaged: a name is no text")
        self.find(*names)

    def global_stack(self):
        name = self.stack.pop()
        self.find(self.stack.pop(), name)

    def reduce(self):
        arguments, function = self.pop(tuple), self.pop(Global)
        self.spend(160)
        handler = CALLS.get(function.meaning)
        if handler is None:
            self.fail(f'calls "{function.meaning}", which is not admitted')
        try:
            self.stack.append(handler(self, *arguments))
        except (TypeError, ValueError, OverflowError) as error:  # of numbers and arguments that are not what numpy or Python write
            self.fail(f'calls "{function.meaning}" with arguments that are not admitted ({str(error)[:200]})')

    def array(self, content, kind, shape, order):
        if type(content) is list:
            self.spend(8 * len(content))
        elif isinstance(kind, Type) and kind.text[0] == "U":  # takes no memory, but time: each character is looked at
            self.spend(len(raw_bytes(content)))
        return make_array(content, kind, shape, order)

    def reconstruct(self, kind, shape, code):
        if not isinstance(kind, Global) or kind.meaning != "ndarray":
            raise ValueError("only plain arrays are read")
        return Unfinished()

    def build(self):
        state, value = self.pop(tuple), self.stack[-1]
        self.spend(160)
        try:
            if isinstance(value, Type):
                build_type(value, *state)
            elif isinstance(value, Unfinished):
                array = self.stack[-1] = self.build_array(*state)
                for place in value.places:
                    if place < len(self.memo) and self.memo[place] is value:
                        self.memo[place] = array
                    elif self.sparse.get(place) is value:
                        self.sparse[place] = array
            else:
                self.fail(f"sets the state of {self.describe(value)}, which is not admitted")
        except (TypeError, ValueError, OverflowError) as error:
            self.fail(f"describes an array in a way that is not admitted ({str(error)[:200]})")

    def build_array(self, version, shape, kind, fortran, content):
        return self.array(content, kind, shape, "F" if fortran else "C")

    def frombuffer(self, content, kind, shape, order, axes=None):
        shape = (shape,) if type(shape) is int else shape
        order = plain_text(order)
        if order not in ("C", "F", "K"):
            raise ValueError(f"the order {order[:10]}")
        array = self.array(content, kind, shape, "F" if order == "F" else "C")
        return array.transpose(axes) if order == "K" and axes is not None else array

    def scalar(self, kind, content):
        if not isinstance(kind, Type) or kind.text == "O":
            raise ValueError("only plain numbers and texts are read")
        return self.array(content, kind, (1,), "C")[0]

    def encode(self, text, encoding):
        if type(text) is not str or plain_text(encoding).replace("-", "") != "latin1":
            raise ValueError("only how Python 3 writes bytes for Python 2 is read")
        self.spend(len(text))
        return text.encode("latin-1")

    def make_set(self, kind, values=None):
        if values is not None and type(values) not in (list, tuple):
            raise ValueError("it needs a list")
        self.push_container(kind, values or ())
        return self.stack.pop()

    def make_bytes(self, kind, value=b"", encoding=None):
        value = self.encode(value, encoding) if type(value) is str else raw_bytes(value)
        self.spend(len(value))
        return kind(value)

    def make_list(self, values=()):
        if type(values) not in (list, tuple):
            raise ValueError("it needs a list")
        self.spend(8 * len(values))
        return list(values)

    def make_dict(self, items=()):
        result = {}
        if type(items) is not list and items != ():
            raise ValueError("it needs a list of pairs")
        self.spend(72 * len(items))
        for item in items:
            if type(item) not in (list, tuple) or len(item) != 2:
                raise ValueError("it needs a list of pairs")
            result[self.key(item[0])] = item[1]
        return result

    def make_defaultdict(self, factory=None, *items):
        if factory is not None and not (isinstance(factory, Global) and factory.meaning in ("list", "dict", "set", "int", "float", "str")):
            raise ValueError("only the usual kinds of values")
        return self.make_dict(*items)

    # The result

    def finish(self, value, depth):
        """(value, height): of plain Python and numpy, with nothing that only this file knows. height: containers in each other."""
        if isinstance(value, EightBit):
            return as_text(value), 0
        if isinstance(value, (*SCALARS, bytearray, np.generic)):
            return value, 0
        if isinstance(value, Large):
            self.spend(2 * len(value.view))
            return self.finish(value.kind(value.view), depth)
        if isinstance(value, Type):
            return value.dtype(), 0
        if isinstance(value, np.ndarray) and value.dtype != object:
            return value, 0
        if not isinstance(value, (list, tuple, dict, set, frozenset, np.ndarray)):
            self.fail("ends with " + ("an array that was never completed" if isinstance(value, Unfinished) else self.describe(value)))
        if id(value) in self.done:
            _, result, height = self.done[id(value)]
            if height is None:
                self.fail("has a container that contains itself")
            if depth + height > DEEPEST:
                self.fail(f"is nested too deep: more than {DEEPEST} containers in each other")
            return result, height
        if depth >= DEEPEST:
            self.fail(f"is nested too deep: more than {DEEPEST} containers in each other")
        self.done[id(value)] = (value, None, None)
        self.spend(160)
        result, height = self.finish_container(value, depth + 1)
        self.done[id(value)] = (value, result, height + 1)
        return result, height + 1

    def finish_container(self, value, depth):
        height = 0
        if isinstance(value, np.ndarray):
            flat = value.reshape(-1)  # a view: it was made in C order
            for i, item in enumerate(flat):
                flat[i], part = self.finish(item, depth)
                height = max(height, part)
            return value, height
        if isinstance(value, dict):
            items = list(value.items())
            value.clear()
            for key, item in items:
                value[self.finish_key(key)], part = self.finish(item, depth)
                height = max(height, part)
            return value, height
        if isinstance(value, (set, frozenset)):
            return type(value)(map(self.finish_key, value)), 0
        parts = [self.finish(part, depth) for part in value]
        height = max((part for _, part in parts), default=0)
        if isinstance(value, list):
            value[:] = [part for part, _ in parts]
            return value, height
        return tuple(part for part, _ in parts), height

    def finish_key(self, key):
        if type(key) is tuple:
            return tuple(map(self.finish_key, key))
        return as_text(key) if isinstance(key, EightBit) else key


def constant(value):
    return lambda reader: reader.stack.append(value)


def pushes(make):
    return lambda reader: reader.stack.append(make(reader))


def tuple_of(count):
    def handler(reader):
        if len(reader.stack) < count:
            raise IndexError
        values = reader.stack[-count:]
        del reader.stack[-count:]
        reader.push_container(tuple, values)
    return handler


def dictionary(reader):
    values = reader.from_mark()
    reader.push_container(dict)
    reader.set_items(values)


def append(reader):
    value = reader.stack.pop()
    reader.append_to([value])


def set_item(reader):
    value, key = reader.stack.pop(), reader.stack.pop()
    reader.set_items([key, value])


def instance(reader):
    reader.global_lines()
    reader.fail(f'makes an object of "{reader.stack[-1].meaning}", which is not admitted')


def protocol(reader):
    version = reader.number("<B", 1)
    if version > 5:
        reader.fail(f"is of protocol {version}; those up to 5 are known")


CALLS = {
    "reconstruct": Reader.reconstruct, "scalar": Reader.scalar, "frombuffer": Reader.frombuffer, "dtype": lambda reader, *arguments: make_type(*arguments),
    "encode": Reader.encode, "dict": Reader.make_dict, "defaultdict": Reader.make_defaultdict, "list": Reader.make_list,
    "set": lambda reader, *values: reader.make_set(set, *values), "frozenset": lambda reader, *values: reader.make_set(frozenset, *values),
    "bytes": lambda reader, *values: reader.make_bytes(bytes, *values),
    "bytearray": lambda reader, *values: reader.make_bytes(bytearray, *values)}

HANDLERS = {code[0]: handler for code, handler in {
    b"\x80": protocol,
    b"\x95": lambda r: r.take(r.number("<Q", 8)) and setattr(r, "position", r.start + 9),  # FRAME: its bytes must be there
    b"(": Reader.mark, b"0": Reader.pop_top, b"1": Reader.from_mark, b"2": lambda r: r.stack.append(r.stack[-1]),
    b"N": constant(None), b"\x88": constant(True), b"\x89": constant(False),
    b"I": pushes(Reader.integer), b"L": pushes(lambda r: r.decimal(int, b"L")), b"F": pushes(lambda r: r.decimal(float)),
    b"J": pushes(lambda r: r.number("<i", 4)), b"K": pushes(lambda r: r.number("<B", 1)), b"M": pushes(lambda r: r.number("<H", 2)),
    b"G": pushes(lambda r: r.number(">d", 8)),
    b"\x8a": pushes(lambda r: r.long(r.number("<B", 1))), b"\x8b": pushes(lambda r: r.long(r.number("<i", 4))),
    b"S": pushes(Reader.quoted), b"T": pushes(lambda r: r.string(r.number("<i", 4), EightBit)),
    b"U": pushes(lambda r: r.string(r.number("<B", 1), EightBit)),
    b"V": pushes(Reader.unicode_line), b"X": pushes(lambda r: r.text(r.number("<I", 4))),
    b"\x8c": pushes(lambda r: r.text(r.number("<B", 1))), b"\x8d": pushes(lambda r: r.text(r.number("<Q", 8))),
    b"B": pushes(lambda r: r.string(r.number("<I", 4), bytes)), b"C": pushes(lambda r: r.string(r.number("<B", 1), bytes)),
    b"\x8e": pushes(lambda r: r.string(r.number("<Q", 8), bytes)), b"\x96": pushes(lambda r: r.string(r.number("<Q", 8), bytearray)),
    b"]": lambda r: r.push_container(list), b"l": lambda r: r.push_container(list, r.from_mark()),
    b")": constant(()), b"t": lambda r: r.push_container(tuple, r.from_mark()),
    b"\x85": tuple_of(1), b"\x86": tuple_of(2), b"\x87": tuple_of(3),
    b"}": lambda r: r.push_container(dict), b"d": dictionary,
    b"\x8f": lambda r: r.push_container(set), b"\x91": lambda r: r.push_container(frozenset, r.from_mark()),
    b"a": append, b"e": lambda r: r.append_to(r.from_mark()), b"s": set_item, b"u": lambda r: r.set_items(r.from_mark()),
    b"\x90": lambda r: r.add_items(r.from_mark()),
    b"p": lambda r: r.put(r.decimal(int)), b"q": lambda r: r.put(r.number("<B", 1)), b"r": lambda r: r.put(r.number("<I", 4)),
    b"\x94": lambda r: r.put(len(r.memo)),
    b"g": lambda r: r.get(r.decimal(int)), b"h": lambda r: r.get(r.number("<B", 1)), b"j": lambda r: r.get(r.number("<I", 4)),
    b"c": Reader.global_lines, b"i": instance, b"\x93": Reader.global_stack, b"R": Reader.reduce, b"b": Reader.build,
}.items()}

REFUSED = {code[0]: reason for code, reason in {
    b"o": "makes an object of a class: not admitted",
    b"\x81": "makes an object of a class: not admitted", b"\x92": "makes an object of a class: not admitted",
    b"P": "refers to something outside of the file: not admitted", b"Q": "refers to something outside of the file: not admitted",
    b"\x82": "refers to Python's registry of extensions: not admitted", b"\x83": "refers to Python's registry of extensions: not admitted",
    b"\x84": "refers to Python's registry of extensions: not admitted",
    b"\x97": "takes a buffer from outside of the file: not admitted", b"\x98": "takes a buffer from outside of the file: not admitted",
}.items()}
