# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""One part of an RDB file: the way from one entry to the next, and what is counted on it. `_rdb_walk` puts the parts together."""

from __future__ import annotations

import array
import bisect
import collections
import contextlib
import dataclasses
import functools
import hashlib
import mmap
import os
import struct
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_feed, _rdb_values
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as fmt
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_classes import OTHER, Classes
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_format import Corrupt
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Finding, text_of

Check = t.Callable[[int, t.Any, int, str], int]
_WINDOW = 1 << 20  # bytes read at once
_SLACK = 128  # more than any opcode and the head of an entry with a short key take
ALONE = 1 << 23  # a file up to this size is walked without forking; a value up to this size is validated in memory, a bigger one in the mapped file
_FINDINGS = 100
_DATABASES = 1 << 16
_MANY = 1000  # aux fields, module types, function libraries; suspected duplicates looked at together
_LONG = 1 << 16  # bytes of a key or an aux value that is not kept
_SAMPLES = 256
_SAMPLE_REACH = (1 << 12, 1 << 16)  # bytes behind a sampling point in which a key without expiry is looked for: at least, at most
PARTITIONS = 256  # by the highest byte of a hash
_PORTION = 1 << 18  # bytes handed to a checker at once, at least
_PLAIN = 1 << 10  # a plain string of more bytes is kept from a checker, which could find nothing in it
UNKNOWN = -1  # the database in which a part begins that is not the first one

EXPIRY = ("expired", "1m", "1h", "1d", "30d", "later")
_SPANS = (0, 60_000, 3_600_000, 86_400_000, 2_592_000_000)  # where these end, in milliseconds from now

# How the value of a type is laid out: one string, strings, pairs of strings, something else
_ONE, _STRINGS, _PAIRS, _MIXED = 1, 2, 3, 4
_LAYOUTS = {
    _ONE: (
        *(fmt.STRING, fmt.HASH_ZIPMAP, fmt.LIST_ZIPLIST, fmt.SET_INTSET, fmt.ZSET_ZIPLIST, fmt.HASH_ZIPLIST),
        *(fmt.HASH_LISTPACK, fmt.ZSET_LISTPACK, fmt.SET_LISTPACK),
    ),
    _STRINGS: (fmt.LIST, fmt.SET, fmt.LIST_QUICKLIST),
    _PAIRS: (fmt.HASH,),
    _MIXED: (
        *(fmt.ZSET, fmt.ZSET_2, fmt.MODULE_2, fmt.LIST_QUICKLIST_2, fmt.STREAM_LISTPACKS, fmt.STREAM_LISTPACKS_2, fmt.STREAM_LISTPACKS_3),
        *(fmt.HASH_2_VALKEY, fmt.HASH_LISTPACK_EX_PRE_GA, fmt.HASH_METADATA, fmt.HASH_LISTPACK_EX),
    ),
}
_NEWEST_TYPE = fmt.HASH_LISTPACK_EX
# First RDB version with a type or an opcode, where it is not 1
_SINCE = {
    **dict.fromkeys((fmt.OP_AUX, fmt.OP_RESIZEDB, fmt.LIST_QUICKLIST), 7),
    **dict.fromkeys((fmt.ZSET_2, fmt.MODULE_2, fmt.OP_MODULE_AUX), 8),
    fmt.STREAM_LISTPACKS: 9,
    **dict.fromkeys((fmt.HASH_LISTPACK, fmt.ZSET_LISTPACK, fmt.LIST_QUICKLIST_2, fmt.STREAM_LISTPACKS_2, fmt.OP_FUNCTION2, fmt.OP_FUNCTION_PRE_GA), 10),
    **dict.fromkeys((fmt.SET_LISTPACK, fmt.STREAM_LISTPACKS_3, fmt.OP_SLOT_INFO), 11),
    **dict.fromkeys((fmt.HASH_METADATA_PRE_GA, fmt.HASH_LISTPACK_EX_PRE_GA, fmt.HASH_METADATA, fmt.HASH_LISTPACK_EX), 12),
}
_FIRST_OPCODE = fmt.OP_SLOT_INFO
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_HIGH = tuple((number & 0x3F) << 8 for number in range(0x80))  # upper bits of a length in two bytes, by the first one
_INTEGERS = (2, 3, 5)  # bytes of a string that is encoded as a number
_M_EOF, _M_SINT, _M_UINT, _M_FLOAT, _M_DOUBLE, _M_STRING = range(6)


class _Unsupported(Exception):
    """What follows cannot be read."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


@dataclasses.dataclass(frozen=True)
class Job:
    """What all parts of a walk have in common."""

    handle: int
    size: int
    magic: str
    version: int
    now_ms: int
    values: Check | None = None
    duplicates: bool = False
    suspects: frozenset[int] | None = None  # hashes of keys whose places are looked for, and nothing else

    @property
    def supported(self) -> bool:
        return self.version <= fmt.NEWEST_REDIS if self.magic == "REDIS" else self.version == fmt.VALKEY

    def since(self, code: int) -> int:
        """First version with this type or opcode; a Valkey file holds those that Valkey knows, whatever their version in Redis."""
        if self.magic == "VALKEY":
            return self.version + 1 if fmt.HASH_2_VALKEY < code <= _NEWEST_TYPE else 1
        return _SINCE.get(code, 1)

    def layouts(self) -> tuple[int, ...]:
        """By type: its layout, 0 when a file of this version cannot hold it."""
        table = [0] * 256
        for layout, kinds in _LAYOUTS.items():
            for kind in kinds:
                if self.since(kind) <= self.version:
                    table[kind] = layout
        return tuple(table)


def module_name(number: int) -> str:
    return "".join(_LETTERS[number >> shift & 0x3F] for shift in range(58, 4, -6))


def read(handle: int, offset: int, size: int) -> bytes:
    data = os.pread(handle, size, offset)
    while len(data) < size:
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            raise OSError(f"it became shorter than {offset + size} bytes while it was read")
        data += more
    return data


# --- what it finds ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Part:
    """What was found between two places of the file. Database UNKNOWN is the one in which the part began."""

    start: int
    database: int
    end: int | None = None  # where it arrived; None when it broke off
    ended: bool = False  # with the opcode EOF
    entries: int = 0
    databases: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # keys, expires
    announced: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # keys, expires, offset
    kinds: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    classes: Classes = dataclasses.field(default_factory=Classes)
    expiry: list[int] = dataclasses.field(default_factory=lambda: [0] * len(EXPIRY))
    aux: dict[str, str] = dataclasses.field(default_factory=dict)
    modules: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    functions: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    samples: list[tuple[int, int, bytes]] = dataclasses.field(default_factory=list)  # sampling point, database, key
    findings: list[Finding] = dataclasses.field(default_factory=list)
    more: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # findings beyond the limit, by code
    places: dict[tuple[int, bytes], list[int]] = dataclasses.field(default_factory=dict)  # of suspected duplicates
    # hashes of keys: of the known databases, of the first one when it is unknown
    hashes: list[array.array[int]] = dataclasses.field(default_factory=list)
    hashes_unknown: list[array.array[int]] = dataclasses.field(default_factory=list)
    suspects: list[int] = dataclasses.field(default_factory=list)  # hashes that stand twice, the first _MANY of them
    suspected: int = 0

    def suspect(self, partition: array.array[int]) -> None:
        """Note what stands twice among these hashes: all of one partition."""
        if len(set(partition)) == len(partition):
            return
        seen: set[int] = set()
        twice: set[int] = set()
        for number in partition:
            (twice if number in seen else seen).add(number)
        self.suspected += len(twice)
        self.suspects += sorted(twice)[: _MANY - len(self.suspects)]

    def add(self, finding: Finding) -> None:
        if len(self.findings) < _FINDINGS:
            self.findings.append(finding)
        else:
            self.more[finding.code] += 1


def salt_of(database: int) -> int:
    """XORed to the hashes of a database's keys: the same key in two databases is no duplicate. Leaves the upper bits, which choose the partition."""
    return database * 0x9E3779B97F4A7C15 & (1 << 52) - 1


def _partitions() -> list[array.array[int]]:
    return [array.array("q") for dummy in range(PARTITIONS)]


@functools.cache
def _steps(behind: int) -> tuple[int, ...]:
    """By the first byte of a short string: from it to what stands `behind` bytes after the string; 0 for a string that is not short."""
    return tuple(first + 1 + behind if first < 0x40 else 0 for first in range(256))


# --- one part ------------------------------------------------------------------------------------------------------------


class Walker:
    """Walks from one place on. `buf` is the window, `at` the place in it, `base` the window's offset in the file."""

    def __init__(self, job: Job, start: int, database: int, stops: t.Sequence[int] = (), feeder: _rdb_feed.Feeder | None = None) -> None:
        self.job = job
        self.feeder = feeder
        self.fed = start  # up to here all was handed to the checker, or kept from it
        self.layouts = job.layouts()
        self.part = Part(start, database)
        self.counts = self.part.databases.setdefault(database, [0, 0])
        self.stops = list(stops)
        self.confirmed = 0  # suspects that really stand twice
        self.window = _WINDOW
        self.base = 0
        self.buf = b""
        self.at = 0
        self.limit = 0
        self.entry = start  # offset of the entry that is being read
        self.key: bytes | None = None
        self.genuine = True
        # keys since the last flush: by type those without expiry; in a row those with expiry, their types and times
        self.plain: list[list[bytes]] = [[] for dummy in range(_NEWEST_TYPE + 1)]
        # what takes a key of this type, where its value is one string
        self.adders = tuple(self.plain[kind].append if layout == _ONE else None for kind, layout in enumerate(self.layouts))
        self.timed: list[bytes] = []
        self.timed_kinds = bytearray()
        self.times: list[bytes] = []
        self.sample_step = max(1, job.size // _SAMPLES)
        self.sample_reach = min(max(self.sample_step // 16, _SAMPLE_REACH[0]), _SAMPLE_REACH[1])
        self.sample = (start // self.sample_step) * self.sample_step  # next sampling point
        self.most = job.size  # elements of a value
        self._map: mmap.mmap | None = None
        if job.duplicates:
            self.part.hashes = _partitions()
            self.part.hashes_unknown = _partitions() if database == UNKNOWN else []

    # the window

    def load(self, offset: int) -> None:
        """Move the window to `offset`."""
        job = self.job
        if offset > job.size:
            raise Corrupt("truncated", f"the data should go on at offset {offset}, the file ends at {job.size}", offset - self.base)
        self.flush()
        wanted = min(self.window, job.size - offset)
        self.buf = read(job.handle, offset, wanted)
        self.base, self.at = offset, 0
        self.limit = wanted if offset + wanted == job.size else wanted - _SLACK

    def need(self) -> None:
        """Have _SLACK bytes in the window, or all that are left."""
        if self.at > self.limit or self.at > len(self.buf):
            self.load(self.base + self.at)

    def flush(self) -> None:
        part, job = self.part, self.job
        count = 0
        hashed: list[bytes] = []
        for kind, keys in enumerate(self.plain):
            if keys:
                part.kinds[kind] += len(keys)
                count += len(keys)
                part.classes.add(0, keys)
                if job.duplicates:
                    hashed += keys
                keys.clear()
        if self.timed:
            timed = len(self.timed)
            count += timed
            self.counts[1] += timed
            part.kinds.update(self.timed_kinds)
            part.classes.add(1, self.timed)
            times = struct.unpack(f"<{timed}q", b"".join(self.times))
            ordered = sorted(times)
            before = 0
            for place, span in enumerate(_SPANS):
                after = bisect.bisect_left(ordered, job.now_ms + span)
                part.expiry[place] += after - before
                before = after
            part.expiry[-1] += timed - before
            if ordered[0] < job.now_ms:
                part.classes.add(2, [key for key, when in zip(self.timed, times, strict=True) if when < job.now_ms])
            if job.duplicates:
                hashed += self.timed
            self.timed.clear()
            self.timed_kinds.clear()
            self.times.clear()
        self.counts[0] += count
        part.entries += count
        if hashed:
            self._hash(hashed)

    def forget(self) -> None:
        for keys in (self.timed, self.times, *self.plain):
            keys.clear()
        self.timed_kinds.clear()

    def _hash(self, keys: list[bytes]) -> None:
        database = self.part.database
        add = [partition.append for partition in (self.part.hashes_unknown if database == UNKNOWN else self.part.hashes)]
        salt = salt_of(max(database, 0))
        # a loop is twice as fast here as sorting
        for number in map(salt.__xor__, map(hash, keys)) if salt else map(hash, keys):
            add[number >> 56](number)

    # what the checker gets

    def hand_over(self, end: int) -> None:
        if self.feeder and end > self.fed:
            self.feeder.add(self.fed, end)
            self.fed = end

    def keep_back(self, start: int, end: int) -> None:
        """An entry in which a checker could find nothing."""
        self.hand_over(start)
        self.fed = end

    # parts of an entry; each leaves `at` behind what it read, perhaps behind the window

    def length(self) -> int:
        self.need()
        value, after, special = fmt.length(self.buf, self.at)
        if special:
            raise Corrupt("bad-length", f"a length is expected, not the encoding of a string (0x{self.buf[self.at]:02x})", self.at)
        self.at = after
        return value

    def count(self) -> int:
        """A number of things that take a byte at least."""
        number = self.length()
        if number > min(self.job.size - self.base - self.at, self.most):
            raise Corrupt("bad-length", f"{number} elements do not fit into the rest of the file", self.at)
        return number

    def skip(self, size: int) -> None:
        self.at += size
        self.need()

    def take(self, size: int) -> bytes:
        """The next few bytes."""
        self.need()
        found = self.buf[self.at : self.at + size]
        if len(found) < size:
            raise IndexError
        self.at += size
        return found

    def skip_string(self) -> None:
        self.need()
        value, after, special = fmt.length(self.buf, self.at)
        if special:
            if value == fmt.ENC_LZF:
                value, after, odd = fmt.length(self.buf, after)
                dummy, after, odder = fmt.length(self.buf, after)
                if odd or odder:
                    raise Corrupt("bad-length", "an encoding instead of a length of an LZF string", self.at)
            elif value <= fmt.ENC_INT32:
                value = 1 << value
            else:
                raise Corrupt("bad-length", f"unknown encoding {value} of a string", self.at)
        if value > self.job.size:
            raise Corrupt("bad-length", f"a string of {value} bytes in a file of {self.job.size}", self.at)
        self.at = after + value

    def string(self) -> bytes:
        """The text of a string; for one that is too long a name made of its digest (then it is not `genuine`)."""
        self.need()
        self.genuine = False
        start = self.base + self.at
        self.skip_string()
        end = self.base + self.at
        if end > self.job.size:
            raise Corrupt("truncated", f"a string ends at offset {end}, the file at {self.job.size}", start - self.base)
        if end - start > _LONG or self._unpacked(start) > _LONG:
            if self.job.values:
                self.validate(fmt.STRING, start, end, b"")
            digest = hashlib.sha256()
            for at in range(start, end, _WINDOW):
                digest.update(read(self.job.handle, at, min(_WINDOW, end - at)))
            return f"({end - start} bytes, SHA-256 {digest.hexdigest()})".encode()
        buf, at = (self.buf, start - self.base) if self.at <= len(self.buf) else (read(self.job.handle, start, end - start), 0)
        try:
            text: bytes = _rdb_values.string(buf, at)[0]
            self.genuine = True
            return text
        except (Corrupt, IndexError) as exc:
            self.part.add(Finding("corrupt-value", f"a string that cannot be decoded: {exc}", start, database=self.part.database))
            return f"(undecodable, at offset {start})".encode()

    def _unpacked(self, start: int) -> int:
        """Size of the text of a string whose head is in the window."""
        at = start - self.base
        if self.buf[at] != 0xC0 | fmt.ENC_LZF:
            return 0
        return fmt.length(self.buf, fmt.length(self.buf, at + 1)[1])[0]

    def strings(self, number: int, behind: int = 0) -> None:
        """Skip so many strings with `behind` bytes after each of them."""
        steps = _steps(behind)
        while number:
            self.need()
            buf, at, limit = self.buf, self.at, self.limit
            try:
                while number and at <= limit:
                    first = buf[at]
                    step = steps[first]
                    if step:
                        at += step
                    elif first < 0x80:
                        at += _HIGH[first] + buf[at + 1] + 2 + behind
                    else:
                        self.at = at
                        self.skip_string()
                        at = self.at + behind
                    number -= 1
            finally:
                self.at = at
        self.need()

    def value(self, kind: int) -> None:
        layout = self.layouts[kind]
        if layout == _ONE:
            self.skip_string()
        elif layout == _STRINGS:
            self.strings(self.count())
        elif layout == _PAIRS:
            self.strings(2 * self.count())
        elif kind == fmt.ZSET_2:
            self.strings(self.count(), 8)
        elif kind == fmt.ZSET:
            for dummy in range(self.count()):
                self.skip_string()
                size = self.take(1)[0]
                # 253 to 255 are NaN and the infinities
                self.skip(size if size < 253 else 0)
        elif kind == fmt.LIST_QUICKLIST_2:
            for dummy in range(self.count()):
                self.length()
                self.skip_string()
        elif kind == fmt.MODULE_2:
            self.module_value()
        elif kind == fmt.HASH_LISTPACK_EX_PRE_GA:
            self.skip_string()
        elif kind == fmt.HASH_LISTPACK_EX:
            self.skip(8)
            self.skip_string()
        elif kind == fmt.HASH_METADATA:
            self.skip(8)
            for dummy in range(self.count()):
                self.length()
                self.strings(2)
        elif kind == fmt.HASH_2_VALKEY:
            for dummy in range(self.count()):
                if self.job.magic == "VALKEY":
                    self.skip_string()
                    self.skip_string()
                    self.skip(8)
                else:
                    self.length()
                    self.strings(2)
        else:
            self.stream(kind)

    def stream(self, kind: int) -> None:
        self.strings(2 * self.count())
        for dummy in range(3 if kind == fmt.STREAM_LISTPACKS else 8):
            self.length()
        for dummy in range(self.count()):
            self.skip_string()
            for dummy in range(2 if kind == fmt.STREAM_LISTPACKS else 3):
                self.length()
            for dummy in range(self.count()):
                self.skip(24)
                self.length()
            for dummy in range(self.count()):
                self.skip_string()
                self.skip(16 if kind == fmt.STREAM_LISTPACKS_3 else 8)
                self.skip(16 * self.count())

    def module_value(self) -> None:
        name = module_name(self.length())
        self.part.modules[name if name in self.part.modules or len(self.part.modules) < _MANY else OTHER] += 1
        self.module_fields()

    def module_fields(self) -> None:
        while (code := self.length()) != _M_EOF:
            if code in (_M_SINT, _M_UINT):
                self.length()
            elif code == _M_FLOAT:
                self.skip(4)
            elif code == _M_DOUBLE:
                self.skip(8)
            elif code == _M_STRING:
                self.skip_string()
            else:
                raise Corrupt("corrupt-value", f"{code} is no field of module data", self.at)

    # entries

    def run(self, entries: int | None = None) -> None:
        """Walk until a stop is met or the data ends; with `entries` until there were so many."""
        part = self.part
        try:
            self.load(part.start)
            while part.end is None and (entries is None or part.entries < entries):
                if self.job.suspects is None:
                    self.quick()
                if self.base + self.at - self.fed >= _PORTION:
                    self.hand_over(self.base + self.at)
                self.step()
                if entries is not None:
                    self.flush()
        except IndexError:
            self._broken("truncated", f"the file ends at offset {self.job.size}, in the middle of its data", self.entry)
        except Corrupt as exc:
            self._broken(exc.code, str(exc), self.base + exc.at)
        except _Unsupported as exc:
            self._broken("unsupported-type", str(exc), exc.at)
        self.flush()
        # what comes behind a place where it broke off, no checker need see: it is asked for the whole file then
        self.hand_over(self.base + self.at - self.part.ended)
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()

    def _broken(self, code: str, text: str, offset: int) -> None:
        self.part.add(Finding(code, text, offset, None if self.key is None else text_of(self.key), self.part.database))

    def quick(self) -> None:
        """Walk over entries that are simple: nearly all of them, and nearly all of the time. Leaves `at` at what is not."""
        limit = min(self.limit, self.sample - self.base, self.stops[0] - self.base if self.stops else self.limit)
        at = self.at
        if at >= limit:
            return
        buf, adders, values, magic = self.buf, self.adders, self.job.values, self.job.magic
        add_timed, add_kind, add_time = self.timed.append, self.timed_kinds.append, self.times.append
        high, integers, whole = _HIGH, _INTEGERS, len(buf)
        plain = _PLAIN if self.feeder else self.job.size
        try:
            while at < limit:
                add = adders[buf[at]]
                head = at + 1
                if add is None:
                    kind = buf[at]
                    if kind == 252:
                        head = at + 10
                        kind = buf[at + 9]
                    if kind == 249:
                        head += 2
                        kind = buf[head - 1]
                    elif kind == 248:
                        size = buf[head]
                        if size > 0x80:
                            break
                        head += 2 if size < 0x40 else 3 if size < 0x80 else 6
                        kind = buf[head - 1]
                    if adders[kind] is None:
                        break
                    if buf[at] != 252:
                        add = adders[kind]
                size = buf[head]
                key = head + 1
                if size > 0x3F:
                    if size > 0x7F:
                        break
                    size = high[size] + buf[key]
                    key += 1
                    if key + size >= limit:
                        break
                value = key + size
                size = buf[value]
                if size < 0x40:
                    after = value + size + 1
                elif size < 0x80:
                    after = value + high[size] + buf[value + 1] + 2
                    if after - value > plain and not buf[head - 1]:
                        self.keep_back(self.base + at, self.base + after)
                elif size == 0xC3:
                    size = buf[value + 1]
                    after = value + 2
                    if size > 0x3F:
                        if size > 0x7F:
                            break
                        size = high[size] + buf[after]
                        after += 1
                    if buf[after] > 0x7F:
                        break
                    after += size + (1 if buf[after] < 0x40 else 2)
                elif 0xC0 <= size < 0xC3:
                    after = value + integers[size - 0xC0]
                else:
                    break
                if values is not None:
                    if after > whole:
                        break
                    try:
                        wrong = values(buf[head - 1], buf, value, magic) - after
                    except (Corrupt, IndexError) as exc:
                        self._bad_value(exc, self.base, buf[key:value], value)
                    else:
                        if wrong:
                            self._bad_value(None, self.base, buf[key:value], value)
                if add is None:
                    add_timed(buf[key:value])
                    add_kind(buf[head - 1])
                    add_time(buf[at + 1 : at + 9])
                else:
                    add(buf[key:value])
                at = after
        except IndexError:
            self.entry = self.base + at
            raise
        finally:
            self.at = at

    def step(self) -> None:
        """One entry or opcode of any kind."""
        self.key = None
        self.need()
        job, part = self.job, self.part
        offset = self.entry = self.base + self.at
        if self.stops and offset >= self.stops[0]:
            if self.stops.pop(0) == offset:
                part.end = offset
            return
        expiry: int | None = None
        hint = False
        while True:
            self.need()
            code = self.buf[self.at]
            if code not in (fmt.OP_EXPIRE_MS, fmt.OP_EXPIRE_S, fmt.OP_IDLE, fmt.OP_FREQ):
                break
            timing = code in (fmt.OP_EXPIRE_MS, fmt.OP_EXPIRE_S)
            if hint if not timing else expiry is not None:
                part.add(Finding("dangling-expiry", "a second one for the same key", self.base + self.at, database=part.database))
            self.at += 1
            if timing:
                expiry = int.from_bytes(self.take(8), "little", signed=True) if code == fmt.OP_EXPIRE_MS else self._seconds()
            else:
                hint = True
                if code == fmt.OP_IDLE:
                    self.length()
                else:
                    self.take(1)
        if code < _FIRST_OPCODE:
            self.entry_of(code, expiry)
            return
        if expiry is not None or hint:
            part.add(Finding("dangling-expiry", "no key follows it", offset, database=part.database))
        if job.since(code) > job.version:
            raise Corrupt("bad-opcode", f"opcode {code} belongs to RDB {job.since(code)}, the file says {job.version}", self.at)
        self.at += 1
        self.opcode(code)

    def _seconds(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True) * 1000

    def entry_of(self, kind: int, expiry: int | None) -> None:
        """A key of this type and its value."""
        job, part = self.job, self.part
        if not self.layouts[kind]:
            self._refuse(kind)
        self.at += 1
        key = self.key = self.string()
        self.need()
        start = self.base + self.at
        plain = self.feeder and self.genuine and kind == fmt.STRING and self.buf[self.at] < 0xC0
        self.value(kind)
        end = self.base + self.at
        if end > job.size:
            raise Corrupt("truncated", f"the value of this key ends at offset {end}, the file at {job.size}", start - self.base)
        if job.suspects is not None:
            if hash(key) ^ salt_of(part.database) in job.suspects:
                places = part.places.setdefault((part.database, key), [])
                places.append(self.entry)
                if len(places) == 2:
                    self.confirmed += 1
                    if self.confirmed == len(job.suspects):
                        part.end = end
            return
        if job.magic == "REDIS" and kind in (fmt.HASH_METADATA_PRE_GA, fmt.HASH_LISTPACK_EX_PRE_GA):
            part.add(Finding("unsupported-type", f"type {kind} of a pre-release of Redis 7.4", self.entry, text_of(key), part.database))
        elif job.values is not None:
            self.validate(kind, start, end, key)
        if expiry is None:
            self.plain[kind].append(key)
        else:
            self.timed.append(key)
            self.timed_kinds.append(kind)
            self.times.append(expiry.to_bytes(8, "little", signed=True))
        if plain and end - start > _PLAIN:
            self.keep_back(self.entry, end)
        self.take_sample(key, expiry is None and self.genuine)

    def _refuse(self, kind: int) -> None:
        if kind == fmt.MODULE_PRE_GA:
            raise Corrupt("bad-opcode", "a module value in a pre-release format that no server reads", self.at)
        if kind > _NEWEST_TYPE:
            raise _Unsupported(f"value type {kind} is not known", self.base + self.at)
        if self.job.magic == "VALKEY":
            raise Corrupt("bad-opcode", f"Valkey has no value type {kind}", self.at)
        raise Corrupt("bad-opcode", f"value type {kind} belongs to RDB {self.job.since(kind)}, the file says {self.job.version}", self.at)

    def take_sample(self, key: bytes, fit: bool) -> None:
        """Keep the first fit key that begins near behind a sampling point."""
        if self.entry < self.sample:
            return
        point = self.entry // self.sample_step
        near = self.entry < point * self.sample_step + self.sample_reach
        if near and fit:
            self.part.samples.append((point, self.part.database, key))
        if fit or not near:
            self.sample = (point + 1) * self.sample_step

    def validate(self, kind: int, start: int, end: int, key: bytes) -> None:
        job = self.job
        buf: t.Any
        if start >= self.base and end - self.base <= len(self.buf):
            buf, base = self.buf, self.base
        elif end - start <= ALONE:
            buf, base = read(job.handle, start, end - start), start
        else:
            self._map = self._map or mmap.mmap(job.handle, job.size, prot=mmap.PROT_READ)
            buf, base = self._map, 0
        check = t.cast(Check, job.values)
        try:
            wrong = check(kind, buf, start - base, job.magic) + base - end
        except (Corrupt, IndexError) as exc:
            self._bad_value(exc, base, key, start - base)
        else:
            if wrong:
                self._bad_value(None, base, key, start - base)

    def _bad_value(self, exc: Corrupt | IndexError | None, base: int, key: bytes, at: int) -> None:
        code, text = "corrupt-value", "the value ends elsewhere than its lengths say"
        if isinstance(exc, Corrupt):
            code, text, at = exc.code, str(exc), exc.at
        elif exc:
            text = "the value ends too early"
        self.part.add(Finding(code, text, base + at, text_of(key), self.part.database))

    def opcode(self, code: int) -> None:
        part = self.part
        if code == fmt.OP_EOF:
            part.end, part.ended = self.base + self.at, True
        elif code == fmt.OP_SELECTDB:
            database = self.length()
            self.flush()
            part.database = database
            self.counts = part.databases.setdefault(database, [0, 0])
            if len(part.databases) > _DATABASES:
                raise Corrupt("bad-opcode", f"more than {_DATABASES} databases", self.at)
        elif code == fmt.OP_RESIZEDB:
            announced = part.announced.setdefault(part.database, [0, 0, self.entry])
            announced[0] += self.length()
            announced[1] += self.length()
        elif code == fmt.OP_AUX:
            name, value = self.string(), self.string()
            if len(part.aux) < _MANY:
                part.aux[text_of(name)] = value.decode("utf-8", "backslashreplace")
        elif code == fmt.OP_SLOT_INFO:
            for dummy in range(3):
                self.length()
        elif code == fmt.OP_MODULE_AUX:
            name_of = module_name(self.length())
            part.modules[name_of if name_of in part.modules or len(part.modules) < _MANY else OTHER] += 1
            if self.length() != _M_UINT:
                raise Corrupt("corrupt-value", f"module data of {name_of} does not say when it is to be loaded", self.at)
            self.length()
            self.module_fields()
        elif code == fmt.OP_FUNCTION2:
            self.need()
            start = self.base + self.at
            self.skip_string()
            self.need()
            if self.job.values:
                self.validate(fmt.STRING, start, self.base + self.at, b"")
            if len(part.functions) >= _MANY:
                raise Corrupt("bad-opcode", f"more than {_MANY} function libraries", self.at)
            part.functions.append((start, self.base + self.at - start))
        else:
            # name, engine, perhaps a description, code
            self.strings(2)
            self.strings(2 if self.length() else 1)
            text = "a function library in the format of the release candidates of 7.0: no other version reads it for certain"
            part.add(Finding("unsupported-type", text, self.entry))
