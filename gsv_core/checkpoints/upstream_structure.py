"""A file that torch saved to what it holds, name by name, before anything of it is loaded.

The archive is judged by its central directory. The pickle inside is read by a small machine that knows the opcodes
which tensors and settings need: it imports nothing, calls nothing, and takes a class or function for no more than its
name. Names beyond the few that are allowed end it. Tensors come out as types and shapes, checked against what is
stored, so that describing a file of any size reads some kilobytes of it, and loading it afterwards meets no surprise.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

RELEASE_HEADERS = frozenset({b"00", b"01", b"02", b"03", b"04", b"05", b"06"})
"""Digits that may stand in the place of a zip archive's first two bytes."""
ZIP_HEADER = b"PK"
SETTINGS_CLASS = "utils.HParams"
"""Of the classes a file may ask for, the one that is not torch's."""

_STORAGES: Mapping[str, tuple[str, int]] = {
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.FloatStorage": ("float32", 4),
    "torch.DoubleStorage": ("float64", 8),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
}
_TABLE = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ALLOWED = frozenset({*_STORAGES, _TABLE, _TENSOR, _PARAMETER, SETTINGS_CLASS})

_MOST_MEMBERS = 20_000
_LONGEST_PICKLE = 8 << 20
_MOST_OPCODES = 1_000_000
"""Those of published and resumed files are some ten thousands; each may take a hundred bytes of memory."""
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
"""The number that torch's files before version 1.6 begin with, as a pickle."""
_LOCAL_HEADER_BYTES = 30
_NONSENSE = (ValueError, LookupError, TypeError, OverflowError, AttributeError, RecursionError, struct.error)
"""What reading a pickle of random opcodes raises."""
_LONGEST_SHOWN = 120
MOST_REUSE = 4
"""All tensors together may be this many times the file: tied weights are stored once, expanded ones are refused."""


class Settings(dict[str, Any]):
    """Upstream's settings object as a mapping, told apart from a plain one."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that was not loaded."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a file holds. `content` is made of dicts, lists, tuples, strings, numbers, `Settings` and `StoredTensor`."""

    content: Any
    names: frozenset[str]
    """Every class and function the pickle asks for."""
    header: bytes
    file_bytes: int

    @property
    def is_archive(self) -> bool:
        """Whether it is a zip archive; torch before 1.6 wrote pickles one after the other."""
        return self.header == ZIP_HEADER or self.header in RELEASE_HEADERS


@contextmanager
def checked_file(path: Path) -> Iterator[tuple[IO[bytes], Structure]]:
    """`path` opened and found harmless, with what it holds; digits in the place of the archive's first bytes are gone.

    Raises:
        ValueError: it is missing, damaged, no file of torch's, or asks for more than tensors and settings.
    """
    with open_file(path) as raw:
        header = raw.read(len(ZIP_HEADER))
        raw.seek(0)
        file: IO[bytes] = io.BufferedReader(_Repaired(raw)) if header in RELEASE_HEADERS else raw
        yield file, _structure(file, header, path)


def open_file(path: Path) -> IO[bytes]:
    """`path` opened for reading.

    Raises:
        ValueError: it is missing or forbidden, or a folder, or a pipe or device, which might never end.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}, not a file")
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def check_sums(file: IO[bytes], path: Path) -> None:
    """Compare every member of the archive with the checksum that was stored beside it, which torch does not.

    Raises:
        ValueError: one differs.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: its member {shown(damaged)} is not what was written; fetch it again")
    file.seek(0)


def _structure(file: IO[bytes], header: bytes, path: Path) -> Structure:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    is_archive = header == ZIP_HEADER or header in RELEASE_HEADERS
    try:
        content, names = _of_archive(file, size) if is_archive else _of_old_file(file, size)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is a damaged or truncated archive: {error}") from error
    except NotImplementedError as error:
        raise ValueError(f"{path} is an archive that torch would not write: {error}") from error
    except _RefusedError as error:
        raise ValueError(f"{path} {error}") from error
    finally:
        file.seek(0)
    return Structure(content=content, names=names, header=header, file_bytes=size)


class _RefusedError(ValueError):
    """Why a file is not read: the rest of a sentence that begins with its name."""


class _Repaired(io.RawIOBase):
    """A file whose first two bytes read as a zip archive's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        start = self._file.tell()
        data = self._file.read(len(buffer))
        if start < len(ZIP_HEADER):
            data = (ZIP_HEADER[start:] + data[len(ZIP_HEADER) - start :])[: len(data)]
        buffer[: len(data)] = data
        return len(data)


def _of_archive(file: IO[bytes], size: int) -> tuple[Any, frozenset[str]]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename: entry for entry in _checked(archive.infolist(), size)}
            pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise _RefusedError("is a zip archive, but not one of torch's: it has no data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}constants.pkl" in members:
                raise _RefusedError("is a TorchScript program, which holds code; only tensors and settings are read")
            if members[pickles[0]].file_size > _LONGEST_PICKLE:
                raise _RefusedError(
                    f"holds a pickle of {members[pickles[0]].file_size} bytes, far beyond any checkpoint's"
                )
            if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
                raise _RefusedError("was written on a machine with another byte order; save it again on a usual one")
            data = archive.read(pickles[0])
    except (ValueError, struct.error, OSError, EOFError, UnicodeDecodeError, RuntimeError) as error:
        if isinstance(error, (_RefusedError, NotImplementedError)):
            raise
        raise _RefusedError(f"is a damaged archive: {error}") from error
    machine = _Machine()
    content = machine.run(io.BytesIO(data))
    for key, (_, needed) in machine.storages.items():
        entry = members.get(f"{root}data/{key}")
        if entry is None or entry.file_size != needed:
            found = "is missing" if entry is None else f"has {entry.file_size} bytes"
            raise _RefusedError(f"is damaged: its tensor storage {key!r} {found}, {needed} expected")
    machine.check_total(size)
    return content, frozenset(machine.names)


def _checked(entries: list[zipfile.ZipInfo], size: int) -> list[zipfile.ZipInfo]:
    """`entries` of a central directory, if unpacking them is harmless: stored as they are, side by side."""
    if len(entries) > _MOST_MEMBERS:
        raise _RefusedError(
            f"is an archive of {len(entries)} members, more than {_MOST_MEMBERS}: no checkpoint has as many"
        )
    end = 0
    if len({entry.filename for entry in entries}) != len(entries):
        raise _RefusedError("is an archive with two members of one name")
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = entry.filename
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            raise _RefusedError(f"is an archive with a member outside of it: {name[:80]!r}")
        if entry.flag_bits & 1:
            raise _RefusedError("is an encrypted archive")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise _RefusedError(
                f"is an archive that unpacks to more than it is: {name[:80]!r} has {entry.compress_size} bytes and "
                f"claims {entry.file_size}; torch never compresses"
            )
        if entry.header_offset < end or (end == 0 and entry.header_offset):
            raise _RefusedError(f"is an archive whose members overlap or begin late, at {name[:80]!r}")
        end = entry.header_offset + _LOCAL_HEADER_BYTES + len(name.encode()) + entry.file_size
        if end > size:
            raise _RefusedError(f"is truncated: {name[:80]!r} reaches to byte {end} of {size}")
    return entries


def _of_old_file(file: IO[bytes], size: int) -> tuple[Any, frozenset[str]]:
    """Of a file of torch before 1.6: five pickles (magic, protocol, machine, content, storage keys), then the data."""
    data = io.BytesIO(file.read(_LONGEST_PICKLE))
    machine = _Machine()
    if machine.run(data) != _OLD_MAGIC:
        raise _RefusedError("is a pickle, but none of torch's; only checkpoints that torch saved are read")
    for _ in ("protocol", "machine"):
        machine.run(data)
    content = machine.run(data)
    machine.run(data)
    # torch makes room for what is claimed before it reads it.
    claimed = sum(needed for _, needed in machine.storages.values())
    if data.tell() + claimed > size:
        raise _RefusedError(f"is truncated: {data.tell() + claimed} bytes are needed, {size} there")
    machine.check_total(size)
    return content, frozenset(machine.names)


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle asked for by this name; never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    item_bytes: int
    count: int


class _Machine:
    """The part of pickle's virtual machine that describes, without the part that acts."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.storages: dict[str, tuple[str, int]] = {}
        self._tensor_bytes = 0

    def run(self, data: io.BytesIO) -> Any:
        """The value of the pickle that `data` stands at; `data` then stands behind it."""
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if number >= _MOST_OPCODES:
                    raise _RefusedError(f"is damaged: its pickle has more than {_MOST_OPCODES} steps")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except _RefusedError:
            raise
        except _NONSENSE as error:
            reason = " ".join(str(error).split())[:120]
            raise _RefusedError(f"is damaged: its pickle makes no sense ({reason})") from error
        raise _RefusedError("is damaged: its pickle has no end")

    def check_total(self, file_bytes: int) -> None:
        if self._tensor_bytes > MOST_REUSE * file_bytes:
            raise _RefusedError(f"unpacks to {self._tensor_bytes} bytes of tensors out of {file_bytes}")

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._outer.append(stack)
                self._stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "INT" | "LONG" | "BINFLOAT" | "FLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "UNICODE":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode]())
            case "LIST" | "TUPLE" | "DICT":
                items = self._since_mark()
                self._stack.append(items if opcode == "LIST" else tuple(items) if opcode == "TUPLE" else _pairs(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode[-1])
                self._need(length)
                stack[-length:] = [tuple(stack[-length:])]
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if opcode == "APPEND" else self._since_mark()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if opcode == "SETITEM" else self._since_mark()
                self._top(dict).update(_pairs(items))
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                self._memo[len(self._memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self._memo[argument])
            case "GLOBAL" | "INST" | "STACK_GLOBAL":
                name = argument.replace(" ", ".") if argument else ".".join(map(str, (stack.pop(-2), stack.pop())))
                stack.append(self._allowed(name))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._made(function, arguments))
            case "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                if kind != _Name(SETTINGS_CLASS) or arguments != ():
                    raise _RefusedError(f"makes an object of {getattr(kind, 'name', 'something unnamed')}")
                stack.append(Settings())
            case "BUILD":
                state, made = stack.pop(), self._top(dict)
                if isinstance(made, Settings):
                    made.update({str(key): value for key, value in state.items()})
                # Of a table of tensors it is the version of each module, which nothing here needs.
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _:
                raise _RefusedError(f"asks for more than tensors and settings, so it is not loaded: pickle's {opcode}")

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _need(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError("too few values")

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise TypeError(f"a {type(top).__name__} where a {kind.__name__} is needed")
        return top

    def _allowed(self, name: str) -> _Name:
        if name not in _ALLOWED:
            raise _RefusedError(
                f"asks for more than tensors and settings, so it is not loaded: it asks for {shown(name)}"
            )
        self.names.add(name)
        return _Name(name)

    def _made(self, function: Any, arguments: Any) -> Any:
        if function == _Name(_TABLE):
            return _pairs([part for pair in arguments[0] for part in pair]) if arguments else {}
        if function == _Name(_TENSOR):
            storage, offset, shape, strides = arguments[:4]
            return self._tensor(storage, offset, shape, strides)
        if function == _Name(_PARAMETER):
            if not isinstance(arguments[0], StoredTensor):
                raise TypeError("a parameter without a tensor")
            return arguments[0]
        raise _RefusedError(f"calls {getattr(function, 'name', 'something unnamed')}, which is no function to call")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise TypeError("a tensor without a storage")
        if not all(isinstance(number, int) and 0 <= number < 1 << 48 for number in numbers):
            raise ValueError("a tensor of impossible size")
        count = math.prod(shape)
        reach = offset + sum((length - 1) * stride for length, stride in zip(shape, strides)) + 1
        if count and (reach > storage.count or count > storage.count):
            raise _RefusedError(
                f"is damaged: a tensor of shape {shape} reaches beyond its {storage.count} stored values"
            )
        tensor = StoredTensor(storage.dtype, tuple(shape), count * storage.item_bytes)
        self._tensor_bytes += tensor.bytes
        return tensor

    def _storage(self, identity: Any) -> _Storage:
        kind, storage_type, key, _, count = identity[:5]
        view = identity[5] if len(identity) > 5 else None
        if kind != "storage" or not isinstance(storage_type, _Name) or view is not None:
            raise TypeError("a storage of an unknown kind")
        dtype, item_bytes = _STORAGES[storage_type.name]
        if not isinstance(key, str) or not isinstance(count, int) or not 0 <= count < 1 << 48:
            raise ValueError("a storage of impossible size")
        if self.storages.setdefault(key, (dtype, count * item_bytes)) != (dtype, count * item_bytes):
            raise _RefusedError(f"is damaged: its storage {key[:20]!r} has two sizes or types")
        return _Storage(key, dtype, item_bytes, count)


def shown(text: str) -> str:
    """`text` out of a file as it may be printed: short, on one line, nothing that a terminal obeys."""
    line = text if text.isprintable() else ascii(text)[1:-1]
    return line if len(line) <= _LONGEST_SHOWN else f"{line[:_LONGEST_SHOWN]}…"


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return dict(zip(items[::2], items[1::2]))
