# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Every value of an RDB file, looked at to its last byte: rejected is what no server writes.

Held to what redis-check-rdb 7.0 and 8.2 and valkey-check-rdb 9.1 reject, and further: a stream must hold the entries that it
counts, scores of a sorted set must be numbers in order.

Elements are cut by regular expressions, many in one call: an alternative per length of a short string, and at the end one
that takes all the rest, so that what was found is always contiguous and begins where the search began.
"""

from __future__ import annotations

import array
import collections.abc as c
import functools
import hashlib
import itertools
import math
import operator
import re
import struct
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as rdb
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_format import Corrupt, length

Id = tuple[int, int]  # of a stream entry: milliseconds, sequence

_WINDOW = 1 << 16  # bytes that are cut into elements at once
_BIG_ELEMENT = 1 << 20  # an element of this size is remembered by its digest
_EXACT = 1 << 18  # members that are remembered as they are; of a larger container by their hash
_U64 = (1 << 64) - 1
_LATEST_EXPIRY = (1 << 48) - 1  # of a hash field, in milliseconds: EB_EXPIRE_TIME_MAX
_FIRST = operator.itemgetter(0)


def check(kind: int, buf: t.Any, at: int, magic: str) -> int:
    """Validate the value of type `kind` at `at`; return the position after it.

    Corrupt says what is wrong with it; IndexError: the buffer ends before the value does. `buf` is bytes or an mmap.
    """
    if kind == rdb.STRING:
        return _skip(buf, at)
    validate = _EMBEDDED.get(kind)
    if validate:
        return _inside(validate, buf, at)[0]
    container = _CONTAINERS.get(kind)
    if kind >= rdb.HASH_2_VALKEY and magic == "VALKEY":
        container = _hash_expiring if kind == rdb.HASH_2_VALKEY else None
    if container is None:
        raise Corrupt("unsupported-type", f"value type {kind}", at)
    return container(buf, at)


def string(buf: t.Any, at: int) -> tuple[bytes, int]:
    """Decode the string at `at`: (its bytes, the position after it)."""
    size, start, special = length(buf, at)
    if not special:
        after = start + size
        buf[after - 1]
        return buf[start:after], after
    if size == rdb.ENC_LZF:
        packed, start = _count(buf, start)
        size, start = _count(buf, start)
        after = start + packed
        buf[after - 1]
        return _lzf_decode(buf, start, after, size), after
    after = start + _integer_size(size, at)
    buf[after - 1]
    return b"%d" % int.from_bytes(buf[start:after], "little", signed=True), after


# --- strings


def _count(buf: t.Any, at: int) -> tuple[int, int]:
    """A length that is a number, not the encoding of a string."""
    number, after, special = length(buf, at)
    if special:
        raise Corrupt("bad-length", "a string encoding where a number is due", at)
    return number, after


def _skip_counts(buf: t.Any, at: int, many: int) -> int:
    for dummy in range(many):
        at = _count(buf, at)[1]
    return at


def _integer_size(encoding: int, at: int) -> int:
    if encoding > rdb.ENC_INT32:
        raise Corrupt("corrupt-value", f"no string encoding {encoding}", at)
    return 1 << encoding


def _skip(buf: t.Any, at: int) -> int:
    """Validate the string at `at` without decoding it."""
    after = at + 1 + buf[at]
    if after - at > 64:
        size, start, special = length(buf, at)
        if not special:
            after = start + size
        elif size == rdb.ENC_LZF:
            packed, start = _count(buf, start)
            size, start = _count(buf, start)
            after = start + packed
            buf[after - 1]
            _lzf_check(buf, start, after, size)
        else:
            after = start + _integer_size(size, at)
    buf[after - 1]
    return after


def _near(buf: t.Any, start: int, end: int) -> tuple[t.Any, int, int]:
    """The bytes from `start` to `end` as (buffer, start, end): bytes, whose indexing is faster than that of an mmap, if it is not too much."""
    return (buf[start:end], 0, end - start) if end - start <= _BIG_ELEMENT else (buf, start, end)


# by the first byte of an LZF reference: how far back it reaches at least, how many bytes it gives
_LZF_BACK = tuple(((first & 31) << 8) + 1 for first in range(256))
_LZF_SIZE = tuple((first >> 5) + 2 for first in range(256))
_LZF_LONG = 9  # of this size and more: the next byte says by how much


def _lzf_check(buf: t.Any, start: int, end: int, size: int) -> None:
    """Follow the tokens of an LZF stream: every one whole, no reference before the start, `size` bytes come out."""
    data, at, stop = _near(buf, start, end)
    done = 0
    try:
        while at < stop:
            first = data[at]
            at += 1
            if first < 32:
                at += first + 1
                done += first + 1
                continue
            more = _LZF_SIZE[first]
            if more == _LZF_LONG:
                more += data[at]
                at += 1
            if done < _LZF_BACK[first] + data[at]:
                raise Corrupt("corrupt-value", "an LZF reference before the start of its string", start)
            at += 1
            done += more
    except IndexError:
        at = -1
    if at != stop or done != size or not size:
        raise Corrupt("corrupt-value", "an LZF string that does not come out at its length", start)


def _lzf_decode(buf: t.Any, start: int, end: int, size: int) -> bytes:
    """The same, with what comes out. No second pass: it would double the cost of most dumps."""
    data, at, stop = _near(buf, start, end)
    out = bytearray()
    done = 0
    try:
        while at < stop and done <= size:
            first = data[at]
            at += 1
            if first < 32:
                behind = at + first + 1
                out += data[at:behind]
                at = behind
                done += first + 1
                continue
            more = _LZF_SIZE[first]
            if more == _LZF_LONG:
                more += data[at]
                at += 1
            begin = done - _LZF_BACK[first] - data[at]
            if begin < 0:
                raise Corrupt("corrupt-value", "an LZF reference before the start of its string", start)
            at += 1
            behind = begin + more
            # a reference may reach into what it writes: a pattern that repeats
            out += out[begin:behind] if behind <= done else (out[begin:] * (more // (done - begin) + 1))[:more]
            done += more
    except IndexError:
        at = -1
    if at != stop or done != size or not size:
        raise Corrupt("corrupt-value", "an LZF string that does not come out at its length", start)
    return bytes(out)


def _inside(validate: c.Callable[..., t.Any], buf: t.Any, at: int, *more: t.Any) -> tuple[int, t.Any]:
    """Give the bytes of the string at `at` to `validate`, in place where they are not compressed: (position after, its result)."""
    size, low, special = length(buf, at)
    if special:
        blob, after = string(buf, at)
        low, high = 0, len(blob)
    else:
        blob, high = buf, low + size
        after = high
        buf[high - 1]
    try:
        return after, validate(blob, low, high, *more)
    except IndexError:
        raise Corrupt("corrupt-value", "an element reaches beyond its container", at) from None
    except Corrupt as error:
        raise Corrupt(error.code, str(error), at) from None  # its own position may be one in the decoded bytes


# --- members that must differ


class _Distinct:
    """Members of one container. Of a large one their hashes are kept, at 16 to 32 bytes each: no object a member."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._count = 0
        self._seen: set[bytes] = set()
        self._slots = array.array("Q")  # open addressing, at most half full

    def add(self, members: list[bytes]) -> None:
        self._count += len(members)
        if self._count <= _EXACT:
            self._seen.update(members)
            if len(self._seen) != self._count:
                self._refuse()
            return
        if 2 * self._count > len(self._slots):
            before, self._slots = self._slots, array.array("Q", bytes(8 << (2 * self._count).bit_length()))
            self._mark(filter(None, before))
        if self._seen:
            self._mark(map(hash, self._seen))
            self._seen = set()
        self._mark(map(hash, members))

    def _mark(self, hashes: c.Iterable[int]) -> None:
        slots = self._slots
        mask = len(slots) - 1
        for number in hashes:
            mark = number & _U64 or 1
            slot = mark & mask
            while slots[slot]:
                if slots[slot] == mark:
                    self._refuse()
                slot = (slot + 1) & mask
            slots[slot] = mark

    def _refuse(self) -> t.NoReturn:
        raise Corrupt("duplicate-member", "a field or member stands twice", self._at)


def _not_empty(count: int, at: int) -> None:
    if not count:
        raise Corrupt("empty-container", "a container without elements", at)


# --- containers whose elements are strings of the file


def _either(alternatives: c.Iterable[bytes], after: bytes = b"") -> re.Pattern[bytes]:
    """A pattern whose findall gives one element after the other, and b"" for a rest that does not begin with one."""
    return re.compile(b"(" + b"|".join(alternatives) + b")" + after + b"|.+", re.DOTALL)


def _any(count: int) -> bytes:
    return b".{%d}" % count if count else b""


_STRING = [re.escape(bytes((size,))) + _any(size) for size in range(64)] + [rb"\xc0.", rb"\xc1..", rb"\xc2.{4}"]
# neither a NaN nor an infinity: its exponent is not all ones
_FINITE = rb".{6}(?:[\x00-\xef].|[\xf0-\xff][^\x7f\xff])"
_ELEMENT_SIZE = 72  # of the longest that these know, with a score
_STRINGS = _either(_STRING)
_SCORED = _either(_STRING, after=_FINITE)


def _run(pattern: re.Pattern[bytes], buf: t.Any, at: int, end: int) -> list[bytes]:
    """The elements from `at` on that the pattern knows, up to `end` or as many as are handled at once."""
    found = pattern.findall(buf, at, min(end, at + _WINDOW))
    if found and not found[-1]:
        found.pop()
    return found


def _next(pattern: re.Pattern[bytes], buf: t.Any, at: int, count: int) -> list[bytes]:
    """At most `count` elements from `at` on, where nobody knows yet where they end."""
    return _run(pattern, buf, at, at + _ELEMENT_SIZE * count)[:count]


def _remembered(buf: t.Any, start: int, end: int) -> bytes:
    """An element, or what stands for a big one: its first bytes with what they say of its encoding, and its digest."""
    if end - start < _BIG_ELEMENT:
        return buf[start:end]
    with memoryview(buf) as view, view[start:end] as element:
        return buf[start : start + 5] + hashlib.sha256(element).digest()


def _member(text: bytes) -> bytes:
    """A member whatever its encoding in the file: as a short string stands there."""
    return bytes((min(len(text), 64),)) + text


def _member_at(buf: t.Any, at: int) -> tuple[bytes, int]:
    size, start, special = length(buf, at)
    if special or size < _BIG_ELEMENT:
        text, after = string(buf, at)
        return _member(text), after
    after = start + size
    buf[after - 1]
    return _remembered(buf, start, after), after


def _members(found: list[bytes]) -> list[bytes]:
    """The same for strings as they stand in the file."""
    if max(found, default=b"") < b"\x40":
        return found
    return [each if each[0] < 0x40 else _member(string(each, 0)[0]) for each in found]


def _list(buf: t.Any, at: int) -> int:
    start = at
    count, at = _count(buf, at)
    _not_empty(count, start)
    for dummy in range(count):
        at = _skip(buf, at)
    return at


def _set(buf: t.Any, at: int) -> int:
    start = at
    count, at = _count(buf, at)
    _not_empty(count, start)
    distinct = _Distinct(start)
    while count:
        found = _next(_STRINGS, buf, at, count)
        if found:
            at += sum(map(len, found))
            count -= len(found)
            distinct.add(_members(found))
        else:
            member, at = _member_at(buf, at)
            distinct.add([member])
            count -= 1
    return at


def _hash(buf: t.Any, at: int) -> int:
    start = at
    fields, at = _count(buf, at)
    _not_empty(fields, start)
    distinct = _Distinct(start)
    count = 2 * fields
    while count:
        found = _next(_STRINGS, buf, at, count)
        if found:
            at += sum(map(len, found))
            distinct.add(_members(found[count % 2 :: 2]))
            count -= len(found)
            if not count:
                break
        if count % 2:
            at = _skip(buf, at)
        else:
            member, at = _member_at(buf, at)
            distinct.add([member])
        count -= 1
    return at


def _zset(buf: t.Any, at: int) -> int:
    start = at
    count, at = _count(buf, at)
    _not_empty(count, start)
    distinct = _Distinct(start)
    while count:
        found = _next(_SCORED, buf, at, count)
        if found:
            at += sum(map(len, found)) + 8 * len(found)
            count -= len(found)
            distinct.add(_members(found))
        else:
            member, at = _member_at(buf, at)
            distinct.add([member])
            buf[at + 7]
            if math.isnan(struct.unpack("<d", buf[at : at + 8])[0]):
                raise Corrupt("corrupt-value", "a score that is not a number", at)
            at += 8
            count -= 1
    return at


def _zset_text(buf: t.Any, at: int) -> int:
    """Until Redis 3.2: scores are text."""
    start = at
    count, at = _count(buf, at)
    _not_empty(count, start)
    distinct = _Distinct(start)
    for dummy in range(count):
        member, at = _member_at(buf, at)
        distinct.add([member])
        size = buf[at]
        if size > 253:  # the infinities
            at += 1
            continue
        if size == 253:
            raise Corrupt("corrupt-value", "a score that is not a number", at)
        buf[at + size]
        if not _SCORE.fullmatch(buf[at + 1 : at + 1 + size]):
            raise Corrupt("corrupt-value", "a score that is not a number", at)
        at += 1 + size
    return at


def _hash_expiring(buf: t.Any, at: int) -> int:
    """Valkey: an expiry in milliseconds or -1 after each field and value."""
    start = at
    count, at = _count(buf, at)
    _not_empty(count, start)
    distinct = _Distinct(start)
    for dummy in range(count):
        member, at = _member_at(buf, at)
        distinct.add([member])
        at = _skip(buf, at)
        buf[at + 7]
        if int.from_bytes(buf[at : at + 8], "little", signed=True) < -1:
            raise Corrupt("corrupt-value", "the expiry of a field is negative", at)
        at += 8
    return at


def _hash_metadata(buf: t.Any, at: int, announced: bool = True) -> int:
    """Redis 7.4: an expiry before each field and value, 0 for none, counted from the earliest one before them all."""
    base = 0
    if announced:
        buf[at + 7]
        base = int.from_bytes(buf[at : at + 8], "little") - 1
        if base > _LATEST_EXPIRY:
            raise Corrupt("corrupt-value", "the earliest expiry of the fields cannot be", at)
        at += 8
    start = at
    count, at = _count(buf, at)
    _not_empty(count, start)
    distinct = _Distinct(start)
    for dummy in range(count):
        expiry, after = _count(buf, at)
        if expiry and not 0 <= base + expiry <= _LATEST_EXPIRY:
            raise Corrupt("corrupt-value", "the expiry of a field cannot be", at)
        member, at = _member_at(buf, after)
        distinct.add([member])
        at = _skip(buf, at)
    return at


def _module(buf: t.Any, at: int) -> int:
    """What a module wrote, as far as it can be followed without the module: typed items up to an end mark."""
    at = _skip_counts(buf, at, 1)  # which module
    while True:
        start = at
        item, at = _count(buf, at)
        if item == 0:
            return at
        if item in (1, 2):
            at = _skip_counts(buf, at, 1)
        elif item in (3, 4):
            at += 4 if item == 3 else 8
            buf[at - 1]
        elif item == 5:
            at = _skip(buf, at)
        else:
            raise Corrupt("corrupt-value", f"no module item {item}", start)


# --- listpacks

_LISTPACK_SHORT = [re.escape(bytes((0x80 + size,))) + _any(size) + re.escape(bytes((size + 1,))) for size in range(64)]
_LISTPACK_SMALL = [rb"[\x00-\x7f]\x01", rb"[\xc0-\xdf].\x02"]
_LISTPACK_WIDE = [rb"\xf1..\x03", rb"\xf2.{3}\x04", rb"\xf3.{4}\x05", rb"\xf4.{8}\x09"]
_LISTPACK_ENTRY = _LISTPACK_SMALL + _LISTPACK_SHORT + _LISTPACK_WIDE
_LISTPACK_ENTRIES = _either(_LISTPACK_ENTRY)
_LISTPACK_HEADER = struct.Struct("<IH")
_WIDTHS = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}
_UNKNOWN = 0xFFFF  # a count that the header cannot hold


def _listpack_count(blob: t.Any, low: int, high: int) -> int:
    """Check the frame of a listpack; return the count of its header."""
    if high - low < 7:
        raise Corrupt("corrupt-value", "too short for a listpack", low)
    size, count = _LISTPACK_HEADER.unpack_from(blob, low)
    if size != high - low or blob[high - 1] != 0xFF:
        raise Corrupt("corrupt-value", "a listpack that does not end at its size", low)
    return count


def _listpack(blob: t.Any, low: int, high: int) -> list[bytes]:
    """The entries of a listpack, each with its header and back length."""
    count = _listpack_count(blob, low, high)
    at, end = low + 6, high - 1
    entries = _LISTPACK_ENTRIES.findall(blob, at, end)
    if entries and not entries[-1]:
        entries = []
        while at < end:
            found = _run(_LISTPACK_ENTRIES, blob, at, end)
            if found:
                at += sum(map(len, found))
            else:
                found, at = _listpack_long(blob, at, end)
            entries += found
        if at != end:
            raise Corrupt("corrupt-value", "a listpack entry beyond the end", low)
    if count not in (len(entries), _UNKNOWN):
        raise Corrupt("corrupt-value", f"a listpack of {len(entries)} entries that counts {count}", low)
    return entries


def _listpack_long(blob: t.Any, at: int, end: int) -> tuple[list[bytes], int]:
    """An entry that holds a string of 64 bytes or more."""
    first = blob[at]
    if first >> 4 == 0xE:
        size = 2 + ((first & 15) << 8 | blob[at + 1])
    elif first == 0xF0:
        size = 5 + int.from_bytes(blob[at + 1 : at + 5], "little")
    else:
        raise Corrupt("corrupt-value", "no listpack entry", at)
    back = _back_length(size)
    after = at + size + len(back)
    if after > end or blob[at + size : after] != back:
        raise Corrupt("corrupt-value", "a listpack entry whose back length differs", at)
    return [_remembered(blob, at, after)], after


def _back_length(size: int) -> bytes:
    """The size of an entry, as stands behind it to be read backwards."""
    if size < 128:
        return bytes((size,))
    digits = 2 if size < 16383 else 3 if size < 2097151 else 4 if size < 268435455 else 5
    return bytes((size >> 7 * (digits - 1),)) + bytes(size >> 7 * digit & 127 | 128 for digit in reversed(range(digits - 1)))


def _listpack_value(entry: bytes) -> bytes | int:
    """What an entry holds."""
    first = entry[0]
    if first < 0x80:
        return first
    if first < 0xC0:
        return entry[1:-1]
    if first < 0xE0:
        number = (first & 31) << 8 | entry[1]
        return number - 8192 if number > 4095 else number
    if first < 0xF0:
        return entry[2 : 2 + ((first & 15) << 8 | entry[1])]
    if first == 0xF0:
        return entry[5 : 5 + int.from_bytes(entry[1:5], "little")]
    return int.from_bytes(entry[1 : 1 + _WIDTHS[first]], "little", signed=True)


def _distinct_values(entries: list[bytes], value: c.Callable[[bytes], bytes | int], strings: tuple[bytes, bytes], at: int) -> None:
    """No two of the entries hold the same; only entries outside of `strings` can do so without being the same bytes."""
    if len(set(entries)) == len(entries) and (not entries or (min(entries) >= strings[0] and max(entries) < strings[1])):
        return
    values = (value(entry) for entry in entries)
    if len({each if isinstance(each, bytes) else b"%d" % each for each in values}) != len(entries):
        raise Corrupt("duplicate-member", "a field or member stands twice", at)


def _distinct_entries(entries: list[bytes], at: int) -> None:
    _distinct_values(entries, _listpack_value, (b"\x80", b"\xc0"), at)


def _tuples(entries: list[bytes], size: int, at: int) -> None:
    if len(entries) % size:
        raise Corrupt("corrupt-value", "a field or member without all that belongs to it", at)
    _not_empty(len(entries), at)


def _set_listpack(blob: t.Any, low: int, high: int) -> None:
    entries = _listpack(blob, low, high)
    _not_empty(len(entries), low)
    _distinct_entries(entries, low)


def _hash_listpack(blob: t.Any, low: int, high: int) -> None:
    shape = blob[low + 4 : low + 8]
    pattern = _SHAPES.get(shape)
    if pattern is not None and _listpack_count(blob, low, high) and pattern.fullmatch(blob, low + 6, high - 1):
        return
    entries = _listpack(blob, low, high)
    _tuples(entries, 2, low)
    fields = entries[::2]
    _distinct_entries(fields, low)
    if pattern is None:
        _learn(shape, fields)


_SHAPES: dict[bytes, re.Pattern[bytes]] = {}
_SHAPES_MET: dict[bytes, int] = {}
_SHAPES_LIMIT = 64
_SHAPE_WORTH = 500  # hashes alike before a pattern of their own pays
_LISTPACK_ANY = b"(?:" + b"|".join(_LISTPACK_ENTRY) + b")"


def _learn(shape: bytes, fields: list[bytes]) -> None:
    """Hashes of one kind have the same fields: one pattern for the whole of them. `shape`: count and beginning of the first field."""
    met = _SHAPES_MET[shape] = _SHAPES_MET.get(shape, 0) + 1
    if met == _SHAPE_WORTH and len(fields) <= 64 and len(_SHAPES) < _SHAPES_LIMIT:
        _SHAPES[shape] = re.compile(b"".join(re.escape(field) + _LISTPACK_ANY for field in fields), re.DOTALL)
    elif len(_SHAPES_MET) > 4096:
        _SHAPES_MET.clear()


_NUMBER = rb"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|inf)"
_SCORE = re.compile(_NUMBER)
_SCORES = re.compile(rb"(?:" + _NUMBER + rb"\n)*")


def _ordered_scores(scores: list[bytes | int], at: int) -> None:
    """Scores of a packed sorted set: numbers, and in order, for the server finds by it."""
    texts = [score for score in scores if isinstance(score, bytes)]
    # all in one call; what has a line end within is no number for float
    if texts and not _SCORES.fullmatch(b"\n".join(texts) + b"\n"):
        raise Corrupt("corrupt-value", "a score that is not a number", at)
    try:
        numbers = list(map(float, scores))
    except ValueError:
        raise Corrupt("corrupt-value", "a score that is not a number", at) from None
    if not all(map(operator.le, numbers, itertools.islice(numbers, 1, None))):
        raise Corrupt("corrupt-value", "scores that are not in order", at)


def _zset_listpack(blob: t.Any, low: int, high: int) -> None:
    entries = _listpack(blob, low, high)
    _tuples(entries, 2, low)
    _distinct_entries(entries[::2], low)
    _ordered_scores([entry[1:-1] if 0x80 <= entry[0] < 0xC0 else _listpack_value(entry) for entry in entries[1::2]], low)


def _hash_listpack_expiring(blob: t.Any, low: int, high: int) -> None:
    """Redis 7.4: field, value, expiry; in the order of the expiries, those without (0) last."""
    entries = _listpack(blob, low, high)
    _tuples(entries, 3, low)
    _distinct_entries(entries[::3], low)
    expiries = [_listpack_value(entry) for entry in entries[2::3]]
    numbers = [expiry or _LATEST_EXPIRY + 1 for expiry in expiries if isinstance(expiry, int) and 0 <= expiry <= _LATEST_EXPIRY]
    if len(numbers) != len(expiries) or not all(map(operator.le, numbers, itertools.islice(numbers, 1, None))):
        raise Corrupt("corrupt-value", "expiries of fields that cannot be or are not in order", low)


def _hash_listpack_ex(buf: t.Any, at: int, announced: bool = True) -> int:
    """The earliest expiry stands before the listpack, except in the pre-release format; the server does not read it."""
    if announced:
        at += 8
    return _inside(_hash_listpack_expiring, buf, at)[0]


# --- ziplists, of Redis before 7.0

_ZIPLIST_SHORT = [re.escape(bytes((size,))) + _any(size) for size in range(64)]
_ZIPLIST_INTEGERS = [rb"[\xf1-\xfd]", rb"\xfe.", rb"\xc0..", rb"\xf0.{3}", rb"\xd0.{4}", rb"\xe0.{8}"]
_ZIPLIST_ENTRIES = re.compile(rb"([\x00-\xfd](?:" + b"|".join(_ZIPLIST_SHORT + _ZIPLIST_INTEGERS) + rb"))|.+", re.DOTALL)
_ZIPLIST_HEADER = struct.Struct("<IIH")
_ZIPLIST_WIDTHS = {0xFE: 1, 0xC0: 2, 0xF0: 3, 0xD0: 4, 0xE0: 8}


def _ziplist(blob: t.Any, low: int, high: int) -> list[bytes]:
    """The entries of a ziplist, each without the length of the one before it."""
    if high - low < 11:
        raise Corrupt("corrupt-value", "too short for a ziplist", low)
    size, tail, count = _ZIPLIST_HEADER.unpack_from(blob, low)
    if size != high - low or blob[high - 1] != 0xFF:
        raise Corrupt("corrupt-value", "a ziplist that does not end at its size", low)
    at, end = low + 10, high - 1
    entries = _ZIPLIST_ENTRIES.findall(blob, at, end)
    sizes = list(map(len, entries))
    if entries and (not entries[-1] or bytes(map(_FIRST, entries)) != bytes((0, *sizes[:-1]))):
        entries, last = _ziplist_long(blob, at, end)
    else:
        last = end - sizes[-1] if sizes else at
        entries = [entry[1:] for entry in entries]
    if tail != last - low or count not in (len(entries), _UNKNOWN):
        raise Corrupt("corrupt-value", "a ziplist whose header does not fit its entries", low)
    return entries


def _ziplist_long(blob: t.Any, at: int, end: int) -> tuple[list[bytes], int]:
    """The same where entries are long: (entries, where the last one begins)."""
    entries: list[bytes] = []
    last = after = at
    while after < end:
        before, last = after - last, after
        if blob[after] < 254:
            stated, body = blob[after], after + 1
        else:
            stated, body = int.from_bytes(blob[after + 1 : after + 5], "little"), after + 5
        if stated != before or blob[after] == 255:
            raise Corrupt("corrupt-value", "a ziplist entry that differs on the length of the one before it", after)
        after = body + _ziplist_size(blob, body)
        if after > end:
            raise Corrupt("corrupt-value", "a ziplist entry beyond the end", last)
        entries.append(_remembered(blob, body, after))
    return entries, last


def _ziplist_size(blob: t.Any, at: int) -> int:
    first = blob[at]
    if first < 0x40:
        return 1 + first
    if first < 0x80:
        return 2 + ((first & 63) << 8 | blob[at + 1])
    if first == 0x80:
        return 5 + int.from_bytes(blob[at + 1 : at + 5], "big")
    if 0xF1 <= first <= 0xFD:
        return 1
    if first not in _ZIPLIST_WIDTHS:
        raise Corrupt("corrupt-value", "no ziplist entry", at)
    return 1 + _ZIPLIST_WIDTHS[first]


def _ziplist_value(entry: bytes) -> bytes | int:
    first = entry[0]
    if first < 0x40:
        return entry[1:]
    if first < 0x80:
        return entry[2:]
    if first == 0x80:
        return entry[5:]
    if 0xF1 <= first <= 0xFD:
        return first - 0xF1
    return int.from_bytes(entry[1:], "little", signed=True)


def _list_ziplist(blob: t.Any, low: int, high: int) -> None:
    _not_empty(len(_ziplist(blob, low, high)), low)


def _hash_ziplist(blob: t.Any, low: int, high: int) -> list[bytes]:
    entries = _ziplist(blob, low, high)
    _tuples(entries, 2, low)
    _distinct_values(entries[::2], _ziplist_value, (b"", b"\x40"), low)
    return entries


def _zset_ziplist(blob: t.Any, low: int, high: int) -> None:
    _ordered_scores([_ziplist_value(entry) for entry in _hash_ziplist(blob, low, high)[1::2]], low)


# --- other packed forms


_INTSET_WIDTHS = {2: "h", 4: "i", 8: "q"}


def _intset(blob: t.Any, low: int, high: int) -> None:
    if high - low < 8:
        raise Corrupt("corrupt-value", "too short for an intset", low)
    width, count = struct.unpack_from("<II", blob, low)
    if width not in _INTSET_WIDTHS or 8 + width * count != high - low or not count:
        raise Corrupt("corrupt-value", "an intset of another size than its header says", low)
    last: int | None = None
    for at in range(low + 8, high, _WINDOW):
        piece = blob[at : min(at + _WINDOW, high)]
        numbers = struct.unpack(f"<{len(piece) // width}{_INTSET_WIDTHS[width]}", piece)
        if not all(map(operator.lt, numbers, numbers[1:])) or (last is not None and last >= numbers[0]):
            raise Corrupt("corrupt-value", "an intset that is not in order", low)
        last = numbers[-1]


def _zipmap(blob: t.Any, low: int, high: int) -> None:
    """Hashes of Redis 2.4 and before."""
    if high - low < 2 or blob[high - 1] != 0xFF:
        raise Corrupt("corrupt-value", "a zipmap without its end", low)
    at, end = low + 1, high - 1
    fields = []
    while at < end:
        start, at = _zipmap_length(blob, at)
        if at > end:
            break
        fields.append(blob[start:at])
        start, at = _zipmap_length(blob, at)
        at += 1 + blob[start]  # unused bytes behind the value; their count stands before it
    if at != end:
        raise Corrupt("corrupt-value", "a zipmap entry beyond the end", low)
    if blob[low] not in (len(fields), 254):
        raise Corrupt("corrupt-value", f"a zipmap of {len(fields)} fields that counts {blob[low]}", low)
    _not_empty(len(fields), low)
    if len(set(fields)) != len(fields):
        raise Corrupt("duplicate-member", "a field or member stands twice", low)


def _zipmap_length(blob: t.Any, at: int) -> tuple[int, int]:
    """Beginning and end of the bytes whose length stands at `at`."""
    if blob[at] < 254:
        return at + 1, at + 1 + blob[at]
    size = int.from_bytes(blob[at + 1 : at + 5], "little")
    if blob[at] == 255 or size < 254:
        raise Corrupt("corrupt-value", "no zipmap length", at)
    return at + 5, at + 5 + size


def _entry_count(pack: c.Callable[[t.Any, int, int], list[bytes]], blob: t.Any, low: int, high: int) -> int:
    return len(pack(blob, low, high))


_PLAIN_NODE = 1
_PACKED_NODE = 2


def _quicklist(buf: t.Any, at: int) -> int:
    """Before 7.0: a list of ziplists. The server skips an empty one."""
    start = at
    nodes, at = _count(buf, at)
    _not_empty(nodes, start)
    total = 0
    for dummy in range(nodes):
        at, count = _inside(functools.partial(_entry_count, _ziplist), buf, at)
        total += count
    _not_empty(total, start)
    return at


def _quicklist_2(buf: t.Any, at: int) -> int:
    start = at
    nodes, at = _count(buf, at)
    _not_empty(nodes, start)
    for dummy in range(nodes):
        node = at
        container, at = _count(buf, at)
        if container == _PACKED_NODE:
            at, count = _inside(functools.partial(_entry_count, _listpack), buf, at)
        elif container == _PLAIN_NODE:
            size, dummy, special = length(buf, at)
            count = size or special
            at = _skip(buf, at)
        else:
            raise Corrupt("corrupt-value", f"no list node of kind {container}", node)
        if not count:
            code = "empty-container" if nodes == 1 else "corrupt-value"
            raise Corrupt(code, "an empty node of a list", node)
    return at


# --- streams

_ID_SIZE = 16
_DELETED = 1
_SAME_FIELDS = 2


def _id(raw: bytes) -> Id:
    return t.cast(Id, struct.unpack(">QQ", raw))


def _read_id(buf: t.Any, at: int) -> tuple[Id, int]:
    milliseconds, at = _count(buf, at)
    sequence, at = _count(buf, at)
    return (milliseconds, sequence), at


def _number(entries: list[bytes], index: int) -> int:
    entry = entries[index]
    if entry[0] < 0x80:
        return entry[0]
    value = _listpack_value(entry)
    if isinstance(value, bytes):
        raise Corrupt("corrupt-value", "text in a stream where a number is due", 0)
    return value


def _stream_node(blob: t.Any, low: int, high: int, master: Id, last: Id) -> tuple[int, Id]:
    """A listpack of entries, their ids relative to `master`: (how many live, the last id)."""
    entries = _listpack(blob, low, high)
    live, deleted, fields = (_number(entries, index) for index in range(3))
    at = 4 + fields
    if fields < 0 or _number(entries, at - 1) != 0:
        raise Corrupt("corrupt-value", "the head of a stream node", low)
    found = [0, 0]
    while at < len(entries):
        flags = _number(entries, at)
        entry = (master[0] + _number(entries, at + 1)) & _U64, (master[1] + _number(entries, at + 2)) & _U64
        if flags & ~(_DELETED | _SAME_FIELDS) or entry <= last:
            raise Corrupt("corrupt-value", "stream entries with unknown flags or out of order", low)
        last = entry
        if flags & _SAME_FIELDS:
            size = 3 + fields
        else:
            own = _number(entries, at + 3)
            size = 4 + 2 * own
            if own < 0:
                raise Corrupt("corrupt-value", "a stream entry with a negative number of fields", low)
        at += size + 1
        if _number(entries, at - 1) != size:
            raise Corrupt("corrupt-value", "a stream entry that is not as long as it says", low)
        found[flags & _DELETED] += 1
    if found != [live, deleted]:
        raise Corrupt("corrupt-value", f"a stream node of {found[0]} entries and {found[1]} deleted ones that counts {live} and {deleted}", low)
    return live, last


def _stream(version: int, buf: t.Any, at: int) -> int:
    start = at
    nodes, at = _count(buf, at)
    live = 0
    last: Id = (0, 0)
    for dummy in range(nodes):
        node = at
        key, at = string(buf, at)
        if len(key) != _ID_SIZE or _id(key) <= last:
            raise Corrupt("corrupt-value", "stream nodes out of order", node)
        master = _id(key)
        at, (count, last) = _inside(_stream_node, buf, at, master, (master[0], master[1] - 1))  # its first entry may have its id
        live += count
    announced, at = _count(buf, at)
    if announced != live:
        raise Corrupt("corrupt-value", f"a stream of {live} entries that counts {announced}", start)
    newest, at = _read_id(buf, at)
    if newest < last:
        raise Corrupt("corrupt-value", "a stream whose last id is before its last entry", start)
    if version > 1:
        at = _skip_counts(buf, at, 5)  # the first id, the highest one that was deleted, how many were ever added
    groups, at = _count(buf, at)
    names = _Distinct(start)
    for dummy in range(groups):
        name, at = string(buf, at)
        names.add([name])
        at = _group(version, buf, at)
    return at


def _group(version: int, buf: t.Any, at: int) -> int:
    start = at
    at = _skip_counts(buf, at, 2 if version < 2 else 3)  # the last id that was delivered, how many were read
    at, size, pending = _group_pending(buf, at)
    consumers, at = _count(buf, at)
    names = _Distinct(start)
    for dummy in range(consumers):
        name, at = string(buf, at)
        names.add([name])
        at += 8 if version < 3 else 16  # when it was seen, when it was active
        at, own, delivered = _consumer_pending(buf, at)
        size -= own
        pending -= delivered
    if size or pending:
        raise Corrupt("corrupt-value", "entries pending in a stream group that are not those pending for its consumers", start)
    return at


# an id, when it was delivered and how often
_PENDING = _either([rb".{24}(?:[\x00-\x3f]|[\x40-\x7f].|\x80.{4}|\x81.{8})"])
_PENDING_SIZE = 33  # at most
_IDS = _either([rb".{16}"])


def _group_pending(buf: t.Any, at: int) -> tuple[int, int, int]:
    """The pending entries of a group: (position after, how many, the sum of the hashes of their ids)."""
    left, at = _count(buf, at)
    count, total, last = left, 0, b""
    while left:
        found = _run(_PENDING, buf, at, at + _PENDING_SIZE * left)[:left]
        if not found:
            dummy, after = _count(buf, at + 24)
            found = [buf[at:after]]
        ids = [entry[:_ID_SIZE] for entry in found]
        total += _sum_in_order(last, ids, at)
        last = ids[-1]
        left -= len(found)
        at += sum(map(len, found))
    return at, count, total


def _consumer_pending(buf: t.Any, at: int) -> tuple[int, int, int]:
    """The same of a consumer: ids only."""
    count, at = _count(buf, at)
    after = at + _ID_SIZE * count
    buf[after - 1]
    total, last = 0, b""
    for window in range(at, after, _WINDOW):
        ids = _IDS.findall(buf, window, min(window + _WINDOW, after))
        total += _sum_in_order(last, ids, window)
        last = ids[-1]
    return after, count, total


def _sum_in_order(last: bytes, ids: list[bytes], at: int) -> int:
    if not all(map(operator.lt, itertools.chain((last,), ids), ids)):
        raise Corrupt("corrupt-value", "pending stream entries out of order", at)
    return sum(map(hash, ids))


_EMBEDDED: dict[int, c.Callable[[t.Any, int, int], t.Any]] = {
    rdb.HASH_ZIPMAP: _zipmap,
    rdb.LIST_ZIPLIST: _list_ziplist,
    rdb.SET_INTSET: _intset,
    rdb.ZSET_ZIPLIST: _zset_ziplist,
    rdb.HASH_ZIPLIST: _hash_ziplist,
    rdb.HASH_LISTPACK: _hash_listpack,
    rdb.ZSET_LISTPACK: _zset_listpack,
    rdb.SET_LISTPACK: _set_listpack,
}

_CONTAINERS: dict[int, c.Callable[[t.Any, int], int]] = {
    rdb.LIST: _list,
    rdb.SET: _set,
    rdb.ZSET: _zset_text,
    rdb.HASH: _hash,
    rdb.ZSET_2: _zset,
    rdb.MODULE_2: _module,
    rdb.LIST_QUICKLIST: _quicklist,
    rdb.LIST_QUICKLIST_2: _quicklist_2,
    rdb.STREAM_LISTPACKS: functools.partial(_stream, 1),
    rdb.STREAM_LISTPACKS_2: functools.partial(_stream, 2),
    rdb.STREAM_LISTPACKS_3: functools.partial(_stream, 3),
    rdb.HASH_METADATA_PRE_GA: functools.partial(_hash_metadata, announced=False),
    rdb.HASH_LISTPACK_EX_PRE_GA: functools.partial(_hash_listpack_ex, announced=False),
    rdb.HASH_METADATA: _hash_metadata,
    rdb.HASH_LISTPACK_EX: _hash_listpack_ex,
}
