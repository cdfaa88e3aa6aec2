"""TensorFlow's checkpoints (tensor bundles), read and written without TensorFlow.

    model.ckpt.index                 a sorted table: the name of each variable, and what it is and where (a BundleEntryProto)
    model.ckpt.data-00000-of-00001   the variables' bytes, one behind the other

The table is LevelDB's: blocks of keys and values, then a block that tells where those are, then a footer. Each block and each
variable carries a checksum, CRC-32C, and every one that is read is compared. The formats are TensorFlow's tensor_bundle.proto
and LevelDB's doc/table_format.md; what is written is, byte for byte, what TensorFlow 2.21 writes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from gpt2x.files import replacing, write_atomic
from gpt2x.interop.pretrained import PretrainedError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48  # two block handles, filled up to 40 bytes, and the magic number
_BLOCK = 1 << 18  # a block is closed when it has as many bytes
_RESTART = 16  # every so many keys one is written whole
_TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 10: "|b1", 19: "<f2"}  # tensorflow/core/framework/types.proto
_HEADER = b"\x08\x01\x1a\x02\x08\x01"  # BundleHeaderProto: num_shards 1, version {producer 1}


@dataclass(frozen=True)
class Variable:
    """What the index says of a variable."""

    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle(Mapping[str, np.ndarray]):
    """The variables of the checkpoint `prefix`, such as FOLDER/model.ckpt, by name.

    Each is mapped into memory when it is asked for, compared with its checksum, and not kept. `variables` tells their types
    and shapes without that. Raises PretrainedError where a file is missing, cut short, damaged or none of TensorFlow's.
    """

    def __init__(self, prefix: str | os.PathLike):
        self.index = Path(f"{prefix}.index")
        table = read_table(self.index)
        try:
            header = dict(_fields(dict(table)[b""]))
            shards = header[1]
            if not 0 < shards < 100_000:  # their files are numbered with five digits
                raise ValueError(f"{shards} files")
            if header.get(2):
                raise PretrainedError(f"{self.index}: the numbers are big-endian, which is not supported")
            self.variables = {key.decode("utf-8"): _variable(value) for key, value in table if key}
        except (KeyError, ValueError, IndexError, TypeError, struct.error) as error:
            raise PretrainedError(f"{self.index}: not the index of a TensorFlow checkpoint ({error!r})") from None
        self.shards = [Path(f"{prefix}.data-{i:05d}-of-{shards:05d}") for i in range(shards)]
        ends = [0] * shards
        for name, variable in self.variables.items():
            if variable.size != math.prod(variable.shape) * variable.dtype.itemsize or variable.shard >= shards:
                raise PretrainedError(f"{self.index}: what it says of {name} contradicts itself")
            ends[variable.shard] = max(ends[variable.shard], variable.offset + variable.size)
        for path, end in zip(self.shards, ends, strict=True):
            if not path.is_file():
                raise PretrainedError(f"{path}: no such file; {self.index.name} says that the weights are there")
            if (there := path.stat().st_size) < end:
                raise PretrainedError(f"{path}: cut short: it has {there:,} bytes, and {self.index.name} speaks of {end:,}")

    def __getitem__(self, name: str) -> np.ndarray:
        variable = self.variables[name]
        path = self.shards[variable.shard]
        # Changes stay in memory: numpy and torch take nothing for granted that may only be read.
        place = dict(dtype=variable.dtype, mode="c", offset=variable.offset, shape=variable.shape)
        array = np.memmap(path, **place) if variable.size else np.empty(variable.shape, variable.dtype)
        if _checksum(array) != variable.crc:
            raise PretrainedError(f"{path}: {name} is damaged (its checksum is another); fetch or copy the file again")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)


def write_bundle(prefix: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` as the checkpoint `prefix`; each is asked for once, in the order of their names."""
    table, offset = [(b"", _HEADER)], 0
    Path(f"{prefix}.index").unlink(missing_ok=True)  # an old index never meets new data
    with replacing(f"{prefix}.data-00000-of-00001") as temporary, open(temporary, "wb") as file:
        for name in sorted(arrays, key=str.encode):
            array = np.asarray(arrays[name], order="C")
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(array.data)
            table.append((name.encode(), _entry(array, offset, _checksum(array))))
            offset += array.nbytes
    write_atomic(f"{prefix}.index", table_bytes(table))


# -- a variable in the index: protocol buffers --------------------------------------------------------------------


def _variable(value: bytes) -> Variable:
    fields: dict[int, list] = {}
    for number, field in _fields(value):
        fields.setdefault(number, []).append(field)
    first = {number: values[0] for number, values in fields.items()}
    if 7 in fields:
        raise ValueError("a variable is kept in slices")
    dims = [dict(_fields(dim)) for number, dim in _fields(first.get(2, b"")) if number == 2]
    if first[1] not in _TYPES:
        raise ValueError(f"a variable has the type number {first[1]}; known are {', '.join(map(str, _TYPES))}")
    shape, numbers = tuple(dim.get(1, 0) for dim in dims), [first.get(number, 0) for number in (3, 4, 5, 6)]
    if not all(isinstance(number, int) for number in (*shape, *numbers)):
        raise ValueError("a variable has a text where a number belongs")
    return Variable(np.dtype(_TYPES[first[1]]), shape, *numbers)


def _entry(array: np.ndarray, offset: int, crc: int) -> bytes:
    number = next(number for number, name in _TYPES.items() if np.dtype(name) == array.dtype)
    dims = [_field(1, size) for size in array.shape]
    shape = b"".join(b"\x12" + _varint(len(dim)) + dim for dim in dims)
    entry = _field(1, number) + b"\x12" + _varint(len(shape)) + shape + _field(4, offset) + _field(5, array.nbytes)
    return entry + b"\x35" + struct.pack("<I", crc)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of a message's fields, in the wire format of protocol buffers."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(message, at)
        elif kind == 2:
            length, at = _read_varint(message, at)
            value, at = _cut(message, at, length), at + length
        elif kind == 5:
            value, at = struct.unpack_from("<I", message, at)[0], at + 4
        elif kind == 1:
            value, at = struct.unpack_from("<Q", message, at)[0], at + 8
        else:
            raise ValueError(f"there is no wire type {kind}")
        yield tag >> 3, value


def _field(number: int, value: int) -> bytes:
    """A field that holds a whole number; zeros are left out."""
    return _varint(number << 3) + _varint(value) if value else b""


# -- the table ----------------------------------------------------------------------------------------------------


def read_table(path: str | os.PathLike) -> list[tuple[bytes, bytes]]:
    """The keys and values of a table, in order. Raises PretrainedError where it is none, or not whole."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise PretrainedError(f"{path}: no such file") from None
    except OSError as error:
        raise PretrainedError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) < _FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        problem = "it does not end as one, so it is cut short or something else"
        raise PretrainedError(f"{path}: not the index of a TensorFlow checkpoint: {problem}")
    try:
        footer = data[len(data) - _FOOTER :]
        metadata, at = _read_handle(footer, 0)
        list(_read_block(data, *metadata))  # there are none
        index, _ = _read_handle(footer, at)
        return [pair for _, handle in _read_block(data, *index) for pair in _read_block(data, *_read_handle(handle, 0)[0])]
    except (ValueError, IndexError, struct.error) as error:
        raise PretrainedError(f"{path}: damaged: {error}; fetch or copy the file again") from None


def table_bytes(pairs: Iterable[tuple[bytes, bytes]], block_size: int = _BLOCK) -> bytes:
    """The table of `pairs`, whose keys ascend."""
    data, index, block, last = bytearray(), [], [], b""

    def add(block: list[tuple[bytes, bytes]], restart: int = _RESTART) -> bytes:
        """Append a block; returns where it is."""
        content = _block(block, restart)
        handle = _varint(len(data)) + _varint(len(content))
        data.extend(content + b"\0" + struct.pack("<I", _checksum(content + b"\0")))  # 0: it is not compressed
        return handle

    for key, value in pairs:
        if sum(len(k) + len(v) for k, v in block) >= block_size:
            index.append((last, add(block)))
            block = []
        block.append((key, value))
        last = key
    if block:
        index.append((_successor(last), add(block)))
    footer = add([]) + add(index, restart=1)
    return bytes(data) + footer.ljust(_FOOTER - 8, b"\0") + struct.pack("<Q", _MAGIC)


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    content = _cut(data, offset, size + 1)  # and one byte that says how it is compressed
    if _checksum(content) != struct.unpack_from("<I", data, offset + size + 1)[0]:
        raise ValueError("the checksum of a block is another")
    if content[size]:
        raise ValueError("a block is compressed, which TensorFlow's never are")
    (restarts,) = struct.unpack_from("<I", content, size - 4)
    at, end, key = 0, size - 4 - 4 * restarts, b""
    while at < end:
        shared, at = _read_varint(content, at)
        fresh, at = _read_varint(content, at)
        length, at = _read_varint(content, at)
        key = key[:shared] + _cut(content, at, fresh)
        yield key, _cut(content, at + fresh, length)
        at += fresh + length


def _block(pairs: list[tuple[bytes, bytes]], restart: int) -> bytes:
    """Keys and values, of each key only what it has not in common with the one before."""
    content, restarts, before = bytearray(), [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % restart == 0:
            restarts.append(len(content))
        else:
            shared = next((n for n, (a, b) in enumerate(zip(before, key)) if a != b), min(len(before), len(key)))
        content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(content) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _successor(key: bytes) -> bytes:
    """The shortest key that is not before `key`."""
    for i, byte in enumerate(key):
        if byte != 0xFF:
            return key[:i] + bytes([byte + 1])
    return key


def _read_handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Where a block is, offset and size; and where what follows begins."""
    offset, at = _read_varint(data, at)
    size, at = _read_varint(data, at)
    return (offset, size), at


def _cut(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise ValueError("it ends too early")
    return data[offset : offset + size]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, the lowest first; and where what follows begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def _checksum(data: bytes | np.ndarray) -> int:
    """CRC-32C, turned and shifted as both formats do, so that the checksum of data with a checksum in it means something."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
