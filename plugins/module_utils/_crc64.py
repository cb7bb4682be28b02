# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""CRC64 of RDB files (polynomial of Jones, reflected, initial value 0), with the package anycrc where it is installed.

Without it big data is folded. The polynomial divides a sparse one, so a block may be replaced by XORing it into the few later blocks that the sparse
one names: 12 XORs of big integers for each block instead of a table look-up for each byte.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import os
import struct
import typing as t

_POLYNOMIAL = 0x95AC9329AC4BC9B5
_ONE = 1 << 63  # x^0: the highest bit is the lowest power
_X8 = 1 << 55

# 0 = x^267 + x^241 + ... + x + 1 modulo the polynomial, and so it is for every x^(2^k): for blocks of every power of two.
_SPAN = 267
_LATER = tuple(_SPAN - power for power in (0, 1, 54, 58, 128, 135, 153, 206, 215, 224, 240, 241))
_GROUP = min(_LATER)  # so many blocks do not depend on each other
_BLOCKS = (4096, 256, 16)  # bytes, the biggest first: what is left of one size is folded again with the next
_CHUNK = 1 << 20  # bytes read at once for anycrc
_SMALL = 1 << 18  # below this importing anycrc takes longer than the fold

Read = t.Callable[[int, int], bytes]


def crc64(data: t.Any, crc: int = 0) -> int:
    """Of bytes-like `data`, continuing from `crc`."""
    view = memoryview(data).cast("B")
    return combine(crc, _of(lambda at, size: view[at : at + size].tobytes(), len(view)), len(view))


def of_file(handle: int, start: int, end: int) -> int:
    """Of bytes `start` to `end` of an open file. EOFError when it ends before."""

    def read(at: int, size: int) -> bytes:
        data = os.pread(handle, size, start + at)
        while len(data) < size:
            more = os.pread(handle, size - len(data), start + at + len(data))
            if not more:
                raise EOFError(f"the file ends before offset {end}")
            data += more
        return data

    return _of(read, end - start)


def combine(crc_a: int, crc_b: int, length_b: int) -> int:
    """Of two pieces in a row, the second `length_b` bytes long."""
    return _multiply(crc_a, _power(length_b)) ^ crc_b if crc_a else crc_b


def engine() -> str:
    """What computes the checksum of big data: anycrc or python."""
    return "anycrc" if importlib.util.find_spec("anycrc") else "python"


@functools.cache
def _anycrc() -> t.Any:
    return importlib.import_module("anycrc").Model("CRC64-REDIS") if engine() == "anycrc" else None


def _of(read: Read, length: int) -> int:
    if length >= _SMALL and (model := _anycrc()):
        crc = 0
        for at in range(0, length, _CHUNK):
            crc = model.calc(read(at, min(_CHUNK, length - at)), crc)
        return crc
    for block in _BLOCKS:
        if length > 2 * _SPAN * block:
            rest = _fold(read, length, block)
            read, length = functools.partial(_slice, rest), len(rest)
    return _by_table(read(0, length))


def _slice(data: bytes, at: int, size: int) -> bytes:
    return data[at : at + size]


def _fold(read: Read, length: int, block: int) -> bytes:
    """Bytes with the same checksum, as many as _SPAN blocks."""
    # Zeros in front change nothing while the initial value is 0.
    size = _GROUP * block
    first = length % size or size
    data = bytes(size - first) + read(0, first)
    window = [0] * _SPAN
    offsets = range(0, size, block)
    number = int.from_bytes
    at = first
    while True:
        # Row by row: a new block and the twelve before it that end in it.
        rows = zip(
            [number(data[offset : offset + block], "little") for offset in offsets],
            *[window[_SPAN - later : _SPAN - later + _GROUP] for later in _LATER],
            strict=True,
        )
        window = window[_GROUP:] + [n ^ a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ i ^ j ^ k ^ m for n, a, b, c, d, e, f, g, h, i, j, k, m in rows]
        if at == length:
            # These blocks stay, so what they passed to one another is taken back.
            rest = [functools.reduce(operator.xor, [window[index - later] for later in _LATER if later <= index], value) for index, value in enumerate(window)]
            return b"".join([value.to_bytes(block, "little") for value in rest])
        data = read(at, size)
        at += size


@functools.cache
def _tables() -> list[list[int]]:
    table = []
    for value in range(256):
        for dummy in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    tables = [table]
    for dummy in range(7):
        tables.append([value >> 8 ^ table[value & 0xFF] for value in tables[-1]])
    return tables


def _by_table(data: bytes) -> int:
    t0, t1, t2, t3, t4, t5, t6, t7 = _tables()
    crc = 0
    whole = len(data) & ~7
    for (word,) in struct.iter_unpack("<Q", data[:whole]):
        crc ^= word
        crc = (
            t7[crc & 0xFF]
            ^ t6[crc >> 8 & 0xFF]
            ^ t5[crc >> 16 & 0xFF]
            ^ t4[crc >> 24 & 0xFF]
            ^ t3[crc >> 32 & 0xFF]
            ^ t2[crc >> 40 & 0xFF]
            ^ t1[crc >> 48 & 0xFF]
            ^ t0[crc >> 56]
        )
    for byte in data[whole:]:
        crc = t0[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _multiply(a: int, b: int) -> int:
    """Product of two polynomials modulo the polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & (1 << 64) - 1
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=64)
def _power(size: int) -> int:
    """x^(8 size): what a checksum is multiplied with when `size` bytes follow."""
    result, square = _ONE, _X8
    while size:
        if size & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        size >>= 1
    return result
