# SPDX-License-Identifier: GPL-3.0-or-later
"""RDB files by hand: any fault in one expression.

    rdb(aux("redis-ver", "7.0.15"), select(0), resize(1, 0), key(b"k", STRING, string(b"v"))) -> bytes of a whole file

Every part is bytes; a fault is a part left out, doubled or made wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as fmt

POLYNOMIAL = 0x95AC9329AC4BC9B5  # CRC64-Jones, reflected
ZERO = bytes(8)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for dummy in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def crc64(data: bytes, crc: int = 0) -> int:
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def footer(body: bytes) -> bytes:
    return struct.pack("<Q", crc64(body))


def rdb(*parts: bytes, version: int = 10, magic: str = "REDIS", crc: bool | bytes = True, eof: bytes = b"\xff", tail: bytes = b"") -> bytes:
    """A whole file. `crc`: True the right one, False zero (checksum disabled), bytes these (b"" none at all)."""
    digits = 4 if magic == "REDIS" else 3
    body = f"{magic}{version:0{digits}}".encode() + b"".join(parts) + eof
    end = (footer(body) if crc else ZERO) if isinstance(crc, bool) else crc
    return body + end + tail


def reseal(data: bytes, crc: bool = True) -> bytes:
    """The same file with the right checksum of what it holds now, or with zero."""
    return data[:-8] + (footer(data[:-8]) if crc else ZERO)


# lengths and strings


def length(value: int) -> bytes:
    if value < 1 << 6:
        return bytes([value])
    if value < 1 << 14:
        return struct.pack(">H", value | 0x4000)
    if value < 1 << 32:
        return b"\x80" + struct.pack(">I", value)
    return b"\x81" + struct.pack(">Q", value)


def string(data: bytes | str) -> bytes:
    """Plain."""
    data = data.encode() if isinstance(data, str) else data
    return length(len(data)) + data


def integer(value: int) -> bytes:
    """A string that is a number, in the shortest of its three encodings."""
    for code, kind, bits in ((0, "<b", 8), (1, "<h", 16), (2, "<i", 32)):
        if -(1 << bits - 1) <= value < 1 << bits - 1:
            return bytes([0xC0 | code]) + struct.pack(kind, value)
    return string(str(value))


def lzf(data: bytes, stream: bytes | None = None) -> bytes:
    """A string in LZF. Without `stream` the compressed bytes are literals alone: longer than the data, and valid."""
    if stream is None:
        stream = b"".join(bytes([len(data[at : at + 32]) - 1]) + data[at : at + 32] for at in range(0, len(data), 32))
    return b"\xc3" + length(len(stream)) + length(len(data)) + stream


# file level


def aux(name: bytes | str, value: bytes | str) -> bytes:
    return bytes([fmt.OP_AUX]) + string(name) + string(value)


def select(database: int) -> bytes:
    return bytes([fmt.OP_SELECTDB]) + length(database)


def resize(keys: int, expires: int) -> bytes:
    return bytes([fmt.OP_RESIZEDB]) + length(keys) + length(expires)


def expire_ms(at: int) -> bytes:
    return bytes([fmt.OP_EXPIRE_MS]) + struct.pack("<q", at)


def expire_s(at: int) -> bytes:
    return bytes([fmt.OP_EXPIRE_S]) + struct.pack("<i", at)


def idle(seconds: int) -> bytes:
    return bytes([fmt.OP_IDLE]) + length(seconds)


def freq(value: int) -> bytes:
    return bytes([fmt.OP_FREQ, value])


def slot_info(slot: int, keys: int, expires: int) -> bytes:
    return bytes([fmt.OP_SLOT_INFO]) + length(slot) + length(keys) + length(expires)


def function(source: bytes | str) -> bytes:
    return bytes([fmt.OP_FUNCTION2]) + string(source)


def key(name: bytes | str, kind: int, value: bytes, *, at_ms: int | None = None, at_s: int | None = None) -> bytes:
    """One key with its raw value, with an expiry where one is given."""
    expiry = b"" if at_ms is None else expire_ms(at_ms)
    return expiry + (b"" if at_s is None else expire_s(at_s)) + bytes([kind]) + string(name) + value


def module_id(name: str, version: int = 0) -> int:
    """The 64-bit number of a module type: nine characters of six bits, ten bits of encoding version."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    value = 0
    for letter in name:
        value = value << 6 | letters.index(letter)
    return value << 10 | version


MODULE_EOF = b"\x00"


def module_uint(value: int) -> bytes:
    return b"\x02" + length(value)


def module_string(value: bytes | str) -> bytes:
    return b"\x05" + string(value)


def module_value(name: str = "graphdata", parts: Sequence[bytes] = (), version: int = 1) -> bytes:
    """Value of type MODULE_2."""
    return length(module_id(name, version)) + b"".join(parts) + MODULE_EOF


def module_aux(name: str = "graphdata", when: int = 2, parts: Sequence[bytes] = (), version: int = 1) -> bytes:
    return bytes([fmt.OP_MODULE_AUX]) + length(module_id(name, version)) + b"\x02" + length(when) + b"".join(parts) + MODULE_EOF


# values


def counted(items: Sequence[bytes | str]) -> bytes:
    """LIST and SET: a count and plain strings."""
    return length(len(items)) + b"".join(string(item) for item in items)


def pairs(fields: Iterable[tuple[bytes | str, bytes | str]]) -> bytes:
    """HASH: a count and fields with values; a doubled field stays doubled."""
    found = list(fields)
    return length(len(found)) + b"".join(string(name) + string(value) for name, value in found)


def hash_of(fields: Mapping[str, str]) -> bytes:
    return pairs(fields.items())


def scores(members: Iterable[tuple[bytes | str, float]]) -> bytes:
    """ZSET_2: binary doubles."""
    found = list(members)
    return length(len(found)) + b"".join(string(name) + struct.pack("<d", score) for name, score in found)


def text_scores(members: Iterable[tuple[bytes | str, str]]) -> bytes:
    """ZSET: scores as text, 'nan', 'inf' and '-inf' in one byte."""
    found = list(members)
    special = {"nan": b"\xfd", "inf": b"\xfe", "-inf": b"\xff"}
    return length(len(found)) + b"".join(string(name) + (special.get(score) or bytes([len(score)]) + score.encode()) for name, score in found)


def _backlen(size: int) -> bytes:
    parts = [size & 0x7F]
    while size := size >> 7:
        parts[-1] |= 0x80
        parts.append(size & 0x7F)
    return bytes(reversed(parts))


def listpack_entry(item: bytes | str | int) -> bytes:
    if isinstance(item, int):
        if 0 <= item < 128:
            entry = bytes([item])
        elif -(1 << 12) <= item < 1 << 12:
            entry = struct.pack(">H", 0xC000 | item & 0x1FFF)
        elif -(1 << 15) <= item < 1 << 15:
            entry = b"\xf1" + struct.pack("<h", item)
        elif -(1 << 23) <= item < 1 << 23:
            entry = b"\xf2" + struct.pack("<i", item)[:3]
        elif -(1 << 31) <= item < 1 << 31:
            entry = b"\xf3" + struct.pack("<i", item)
        else:
            entry = b"\xf4" + struct.pack("<q", item)
    else:
        data = item.encode() if isinstance(item, str) else item
        if len(data) < 64:
            entry = bytes([0x80 | len(data)]) + data
        elif len(data) < 4096:
            entry = struct.pack(">H", 0xE000 | len(data)) + data
        else:
            entry = b"\xf0" + struct.pack("<I", len(data)) + data
    return entry + _backlen(len(entry))


def listpack(items: Sequence[bytes | str | int], *, count: int | None = None, size: int | None = None, end: bytes = b"\xff") -> bytes:
    """A listpack (not yet a string of the file); a wrong count, size or end can be given."""
    body = b"".join(listpack_entry(item) for item in items) + end
    return struct.pack("<IH", 6 + len(body) if size is None else size, len(items) if count is None else count) + body


def ziplist(items: Sequence[bytes | str], *, count: int | None = None, tail: int | None = None, size: int | None = None) -> bytes:
    body, before, last = b"", 0, 10
    for item in items:
        data = item.encode() if isinstance(item, str) else item
        head = bytes([before]) if before < 254 else b"\xfe" + struct.pack("<I", before)
        head += bytes([len(data)]) if len(data) < 64 else struct.pack(">H", 0x4000 | len(data))
        last = 10 + len(body)
        body += head + data
        before = len(head) + len(data)
    whole = 11 + len(body)
    numbers = (whole if size is None else size, last if tail is None else tail, len(items) if count is None else count)
    return struct.pack("<IIH", *numbers) + body + b"\xff"


def intset(values: Sequence[int], *, width: int = 2, count: int | None = None) -> bytes:
    kind = {2: "h", 4: "i", 8: "q"}[width]
    return struct.pack("<II", width, len(values) if count is None else count) + struct.pack(f"<{len(values)}{kind}", *values)


def quicklist2(nodes: Sequence[tuple[int, bytes]]) -> bytes:
    """LIST_QUICKLIST_2: (container, blob) each; 1 is a plain element, 2 a listpack."""
    return length(len(nodes)) + b"".join(length(container) + string(blob) for container, blob in nodes)
