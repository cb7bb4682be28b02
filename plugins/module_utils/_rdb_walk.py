# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The way through an RDB file from its first byte to its last: structure, counts and checksum, in little memory whatever its size.

The file is read in windows. A big one is walked in parts by forked processes: each part but the first begins at a guessed border between two entries,
and counts only when the part before it arrives exactly there. So the result does not depend on the number of processes.
"""

from __future__ import annotations

import array
import bisect
import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import mmap
import operator
import os
import pickle
import re
import signal
import stat
import struct
import traceback
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _crc64, _rdb_feed, _rdb_values
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as fmt
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_format import Corrupt
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import CODES, FATAL, WARNING, Contents, Finding

Check = t.Callable[[int, t.Any, int, str], int]
Counts = collections.Counter[bytes]

_WINDOW = 1 << 20  # bytes read at once
_SLACK = 128  # more than any opcode and the head of an entry with a short key take
_ALONE = 1 << 23  # a file up to this size is walked without forking; a value up to this size is validated in memory, a bigger one in the mapped file
_PART = 1 << 25  # bytes of a part, at least
_PARTS = 8  # parts for each process, at most: not all take the same time
_PIECE = 1 << 24  # bytes of a piece of the checksum, at least
MOST_JOBS = 4  # each takes memory
_PROBE = 1 << 16  # bytes in which a border is looked for
_PROBES = 8  # places tried for one border
_TRIES = 4  # chains of entries that are followed from one place
_CHAIN = 64  # entries in a row that make a border likely
_FINDINGS = 100
_DATABASES = 1 << 16
_MANY = 1000  # aux fields, module types, function libraries; suspected duplicates looked at together
_LONG = 1 << 16  # bytes of a key or an aux value that is not kept
_CLASSES = 4096  # key classes that are told apart
_CLASSES_TOLD = 256
_LONG_CLASS = 256
_WHOLE_NAMES, _FIRST_PARTS = 2, 1  # what tells classes apart
_OTHER = "(other)"
_COLON = ord(":")  # bytes look for a number faster than for bytes
_SAMPLES = 256
_SAMPLE_REACH = (1 << 12, 1 << 16)  # bytes behind a sampling point in which a key without expiry is looked for: at least, at most
_PARTITIONS = 256  # by the highest byte of a hash
_PORTION = 1 << 18  # bytes handed to a checker at once, at least
_PLAIN = 1 << 10  # a plain string of more bytes is kept from a checker, which could find nothing in it
_FED_PIECES = 8  # times as many pieces of the checksum when checkers are to be fed between them
_UNKNOWN = -1  # the database in which a part begins that is not the first one

_EXPIRY = ("expired", "1m", "1h", "1d", "30d", "later")
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
# A likely beginning of an entry: perhaps an expiry and an eviction hint, a type, a key that is neither empty nor long and begins with printable text
_ENTRY = re.compile(
    rb"(?s)(?=(?:\xfc.{5}[\x00-\x03]\x00\x00)?(?:\xf9.|\xf8(?:[\x00-\x3f]|[\x40-\x7f].|\x80.{4}))?"
    rb"[\x00-\x19](?:[\x01-\x05][ -~]|(?:[\x06-\x3f]|[\x40-\x7f].)[ -~]{6}))"
)


class _Unsupported(Exception):
    """What follows cannot be read."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


@dataclasses.dataclass(frozen=True)
class _Job:
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


def text_of(raw: bytes) -> str:
    """A key for a finding."""
    text = raw[:200].decode("utf-8", "backslashreplace")
    return text if len(raw) <= 200 else text + "..."


def module_name(number: int) -> str:
    return "".join(_LETTERS[number >> shift & 0x3F] for shift in range(58, 4, -6))


# --- what a part finds ---------------------------------------------------------------------------------------------------


class _Classes:
    """Keys by class in bounded memory. Of the same keys it says the same, in whatever order and portions they came.

    When there are too many classes, only the first parts of their names tell them apart; when these are too many, nothing does.
    """

    def __init__(self) -> None:
        # keys without expiry, with one, with one that has passed
        self.groups: list[Counts] = [collections.Counter() for dummy in range(3)]
        self.singles: list[Counts] = [collections.Counter() for dummy in range(3)]  # keys without a colon
        self.rest = [0, 0, 0]
        self.level = _WHOLE_NAMES
        self.single = True  # whether singles are told apart

    def add(self, index: int, keys: list[bytes]) -> None:
        counter = self.groups[index]
        known = len(counter)
        if self.level == _WHOLE_NAMES:
            counter.update(map(operator.itemgetter(0), map(bytes.rpartition, keys, itertools.repeat(b":"))))
            lonely = counter.pop(b"", 0)
            single = [key for key in keys if _COLON not in key] if lonely else []
            self.rest[index] += lonely - len(single)
        else:
            single = [key for key in keys if _COLON not in key]
            if single:
                keys = [key for key in keys if _COLON in key]
            if self.level == _FIRST_PARTS:
                counter.update(map(operator.itemgetter(0), map(bytes.partition, keys, itertools.repeat(b":"))))
                self.rest[index] += counter.pop(b"", 0)
            else:
                self.rest[index] += len(keys)
        if single:
            if self.single:
                self.singles[index].update(single)
            else:
                self.rest[index] += len(single)
        if single or len(counter) != known:
            self._bound()

    def merge(self, other: _Classes) -> None:
        self.level = min(self.level, other.level)
        self.single = self.single and other.single
        self.rest = [a + b for a, b in zip(self.rest, other.rest, strict=True)]
        for mine, theirs in zip(self.groups + self.singles, other.groups + other.singles, strict=True):
            mine.update(theirs)
        self._regroup()
        self._bound()

    def told(self) -> dict[str, dict[str, int]]:
        counts = [group + single for group, single in zip(self.groups, self.singles, strict=True)]
        keys = counts[0] + counts[1]
        rest = list(self.rest)
        told = {}
        for place, name in enumerate(sorted(keys, key=lambda name: (-keys[name], name))):
            found = [counter[name] for counter in counts]
            if place < _CLASSES_TOLD:
                told[text_of(name)] = {"keys": found[0] + found[1], "expires": found[1], "expired": found[2]}
            else:
                rest = [a + b for a, b in zip(rest, found, strict=True)]
        if any(rest):
            told[_OTHER] = {"keys": rest[0] + rest[1], "expires": rest[1], "expired": rest[2]}
        return told

    def _bound(self) -> None:
        if any(len(name) > _LONG_CLASS for name in itertools.chain(*self.groups, *self.singles)):
            self._shorten()
        while len(self.groups[0].keys() | self.groups[1].keys()) > _CLASSES:
            self.level -= 1
            self._regroup()
        if len(self.singles[0].keys() | self.singles[1].keys()) > _CLASSES:
            self.single = False
            self._regroup()

    def _shorten(self) -> None:
        """A long name is taken for its first part."""
        for index, (group, single) in enumerate(zip(self.groups, self.singles, strict=True)):
            for name in [name for name in group if len(name) > _LONG_CLASS]:
                first = name.partition(b":")[0]
                if 0 < len(first) <= _LONG_CLASS:
                    group[first] += group.pop(name)
                else:
                    self.rest[index] += group.pop(name)
            for name in [name for name in single if len(name) > _LONG_CLASS]:
                self.rest[index] += single.pop(name)

    def _regroup(self) -> None:
        """Bring the counters to the level."""
        for index, (group, single) in enumerate(zip(self.groups, self.singles, strict=True)):
            if self.level == _FIRST_PARTS:
                firsts: Counts = collections.Counter()
                for name, count in group.items():
                    firsts[name.partition(b":")[0]] += count
                self.rest[index] += firsts.pop(b"", 0)
                self.groups[index] = firsts
            elif self.level < _FIRST_PARTS:
                self.rest[index] += group.total()
                group.clear()
            if not self.single:
                self.rest[index] += single.total()
                single.clear()


@dataclasses.dataclass
class _Part:
    """What was found between two places of the file. Database _UNKNOWN is the one in which the part began."""

    start: int
    database: int
    end: int | None = None  # where it arrived; None when it broke off
    ended: bool = False  # with the opcode EOF
    entries: int = 0
    databases: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # keys, expires
    announced: dict[int, list[int]] = dataclasses.field(default_factory=dict)  # keys, expires, offset
    kinds: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    classes: _Classes = dataclasses.field(default_factory=_Classes)
    expiry: list[int] = dataclasses.field(default_factory=lambda: [0] * len(_EXPIRY))
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


def _salt(database: int) -> int:
    """XORed to the hashes of a database's keys: the same key in two databases is no duplicate. Leaves the upper bits, which choose the partition."""
    return database * 0x9E3779B97F4A7C15 & (1 << 52) - 1


def _partitions() -> list[array.array[int]]:
    return [array.array("q") for dummy in range(_PARTITIONS)]


@functools.cache
def _steps(behind: int) -> tuple[int, ...]:
    """By the first byte of a short string: from it to what stands `behind` bytes after the string; 0 for a string that is not short."""
    return tuple(first + 1 + behind if first < 0x40 else 0 for first in range(256))


# --- one part ------------------------------------------------------------------------------------------------------------


class _Walker:
    """Walks from one place on. `buf` is the window, `at` the place in it, `base` the window's offset in the file."""

    def __init__(self, job: _Job, start: int, database: int, stops: t.Sequence[int] = (), feeder: _rdb_feed.Feeder | None = None) -> None:
        self.job = job
        self.feeder = feeder
        self.fed = start  # up to here all was handed to the checker, or kept from it
        self.layouts = job.layouts()
        self.part = _Part(start, database)
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
            self.part.hashes_unknown = _partitions() if database == _UNKNOWN else []

    # the window

    def load(self, offset: int) -> None:
        """Move the window to `offset`."""
        job = self.job
        if offset > job.size:
            raise Corrupt("truncated", f"the data should go on at offset {offset}, the file ends at {job.size}", offset - self.base)
        self.flush()
        wanted = min(self.window, job.size - offset)
        self.buf = _read(job.handle, offset, wanted)
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
        add = [partition.append for partition in (self.part.hashes_unknown if database == _UNKNOWN else self.part.hashes)]
        salt = _salt(max(database, 0))
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
                digest.update(_read(self.job.handle, at, min(_WINDOW, end - at)))
            return f"({end - start} bytes, SHA-256 {digest.hexdigest()})".encode()
        buf, at = (self.buf, start - self.base) if self.at <= len(self.buf) else (_read(self.job.handle, start, end - start), 0)
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
        self.part.modules[name if name in self.part.modules or len(self.part.modules) < _MANY else _OTHER] += 1
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
            if hash(key) ^ _salt(part.database) in job.suspects:
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
        elif end - start <= _ALONE:
            buf, base = _read(job.handle, start, end - start), start
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
            part.modules[name_of if name_of in part.modules or len(part.modules) < _MANY else _OTHER] += 1
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


# --- borders between parts -----------------------------------------------------------------------------------------------


def _borders(job: _Job, parts: int) -> list[int]:
    """Offsets, about evenly spread, at which an entry seems to begin."""
    found: list[int] = []
    step = job.size // parts
    for number in range(1, parts):
        for probe in range(_PROBES):
            border = _border(job, number * step + probe * step // _PROBES)
            if border is not None:
                if border > max(found, default=0):
                    found.append(border)
                break
    return found


def _border(job: _Job, offset: int) -> int | None:
    scout = _Walker(job, offset, _UNKNOWN)
    scout.sample, scout.window = job.size, _PROBE
    scout.load(offset)
    tried = 0
    for match in _ENTRY.finditer(scout.buf):
        scout.at = match.start()
        with contextlib.suppress(IndexError):
            scout.quick()
        lost = scout.at < scout.limit and not scout.layouts[scout.buf[scout.at]]
        keys: list[bytes] = []
        if scout.at > match.start():
            keys = [*scout.timed, *itertools.chain.from_iterable(scout.plain)]
            scout.forget()
        if b"" in keys or (lost and len(keys) < _CHAIN):
            continue
        chain = _Walker(job, offset + match.start(), _UNKNOWN)
        chain.sample, chain.window, chain.most = job.size, _PROBE, _PROBE
        chain.run(_CHAIN)
        if not chain.part.findings and chain.part.end is None:
            return chain.base + chain.at
        tried += 1
        if tried == _TRIES:
            break
    return None


# --- processes -----------------------------------------------------------------------------------------------------------


def _read(handle: int, offset: int, size: int) -> bytes:
    data = os.pread(handle, size, offset)
    while len(data) < size:
        more = os.pread(handle, size - len(data), offset + len(data))
        if not more:
            raise OSError(f"it became shorter than {offset + size} bytes while it was read")
        data += more
    return data


@dataclasses.dataclass
class _Found:
    """What one process found: parts by number, checksums of pieces (start, end, CRC)."""

    parts: dict[int, _Part] = dataclasses.field(default_factory=dict)
    pieces: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


_TASK = struct.Struct("<qQQ")  # part number or -1, and then the piece of the checksum from where to where
_NO_PART = -1


def _tasks(parts: int, jobs: int, end: int) -> list[bytes]:
    """Parts, then pieces of the checksum, the last ones small: all processes end at about the same time."""
    found = [_TASK.pack(number, 0, 0) for number in range(parts)]
    at = 0
    while at < end:
        after = min(end, at + max(_PIECE, (end - at) // (2 * jobs)))
        found.append(_TASK.pack(_NO_PART, at, after))
        at = after
    return found


def _do(job: _Job, borders: list[int], tasks: t.Iterable[bytes], found: _Found, feeder: _rdb_feed.Feeder | None = None) -> None:
    starts = [fmt.HEADER_SIZE, *borders]
    for task in tasks:
        if feeder:
            feeder.push()
        number, start, end = _TASK.unpack(task)
        if number == _NO_PART:
            found.pieces.append((start, end, _crc64.of_file(job.handle, start, end)))
        else:
            walker = _Walker(job, starts[number], _UNKNOWN if number else 0, starts[number + 1 :], feeder)
            walker.run()
            found.parts[number] = walker.part


class _Child:
    """A forked process that takes tasks from a pipe. It ends by itself when its parent does: the pipe to it breaks."""

    def __init__(self, job: _Job, borders: list[int], tasks: int, feeds: t.Sequence[_rdb_feed.Feed] = ()) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.close(reader)
                with open(writer, "wb") as stream:
                    self._serve(job, borders, tasks, stream, _rdb_feed.Feeder(job.handle, feeds) if feeds else None)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self.stream = open(reader, "rb")  # noqa: SIM115

    @staticmethod
    def _serve(job: _Job, borders: list[int], tasks: int, stream: t.BinaryIO, feeder: _rdb_feed.Feeder | None) -> None:
        found = _Found()
        try:
            _do(job, borders, iter(lambda: os.read(tasks, _TASK.size), b""), found, feeder)
        except OSError as exc:
            pickle.dump(str(exc), stream)
            return
        except Exception:
            pickle.dump(RuntimeError(traceback.format_exc()), stream)
            return
        hashes = {number: (part.hashes, part.hashes_unknown) for number, part in found.parts.items()}
        for part in found.parts.values():
            part.hashes, part.hashes_unknown = [], []
        pickle.dump(found, stream)
        if job.duplicates:
            for place in range(_PARTITIONS):
                if feeder:
                    feeder.push()
                pickle.dump([(number, [partitions[place].tobytes() for partitions in pair if partitions]) for number, pair in hashes.items()], stream)
        stream.flush()
        if feeder:
            pickle.dump(feeder.finish(), stream)

    def found(self) -> _Found:
        """OSError when the file could not be read; whatever else went wrong in the child is raised, too."""
        try:
            found = pickle.load(self.stream)
        except (EOFError, pickle.UnpicklingError):
            self.stream.close()
            dummy, status = os.waitpid(self.pid, 0)
            self.pid = 0
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGBUS:
                raise OSError("an I/O error, or it became shorter while it was read") from None
            raise OSError(f"the process that read it ended with status {code}") from None
        if isinstance(found, _Found):
            return found
        raise found if isinstance(found, Exception) else OSError(found)

    def hashes(self) -> list[tuple[int, list[bytes]]]:
        """Of the next partition: part numbers with their hashes of known databases and of the unknown one."""
        return t.cast(list[tuple[int, list[bytes]]], pickle.load(self.stream))

    def fed(self) -> bool:
        """Whether its checker took all; asked at the very end."""
        with contextlib.suppress(EOFError, pickle.UnpicklingError):
            return bool(pickle.load(self.stream))
        return False

    def close(self) -> None:
        self.stream.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _alone(job: _Job, end: int, feeds: t.Sequence[_rdb_feed.Feed] = ()) -> tuple[_Part, list[tuple[int, int, int]], bool]:
    found = _Found()
    feeder = _rdb_feed.Feeder(job.handle, feeds) if feeds else None
    _do(job, [], _tasks(1, _FED_PIECES if feeds else 1, end), found, feeder)
    part = found.parts[0]
    for partition in part.hashes:
        if feeder:
            feeder.push()
        part.suspect(partition)
    return part, found.pieces, bool(feeder and feeder.finish())


def _together(job: _Job, jobs: int, end: int, feeds: t.Sequence[_rdb_feed.Feed]) -> tuple[_Part, list[tuple[int, int, int]], bool]:
    """The whole walk and the checksum of the first `end` bytes, by forked processes."""
    parts = jobs * max(1, min(_PARTS, job.size // (jobs * _PART))) if jobs > 1 else 1
    borders = _borders(dataclasses.replace(job, values=None, duplicates=False, suspects=None), parts)
    reader, writer = os.pipe()
    children: list[_Child] = []
    try:
        # few enough for the buffer of a pipe
        os.write(writer, b"".join(_tasks(len(borders) + 1, jobs * _FED_PIECES if feeds else jobs, end)))
        os.close(writer)
        children += (_Child(job, borders, reader, feeds[number::jobs]) for number in range(jobs))
        everything = [child.found() for child in children]
        found = {number: part for one in everything for number, part in one.parts.items()}
        total, before = found[0], {0: 0}  # the database in which a part began
        starts = {border: number for number, border in enumerate(borders, 1)}
        while not total.ended and total.end is not None:
            number = starts[total.end]
            before[number] = total.database
            _join(total, found[number])
        if job.duplicates:
            for dummy in range(_PARTITIONS):
                partition = array.array("q")
                for number, raws in itertools.chain.from_iterable(child.hashes() for child in children):
                    if number in before:
                        partition.frombytes(raws[0])
                        for raw in raws[1:]:
                            partition.extend(map(_salt(before[number]).__xor__, array.array("q", raw)))
                total.suspect(partition)
        fed = [child.fed() for child in children] if feeds else [False]
        return total, [piece for one in everything for piece in one.pieces], all(fed)
    finally:
        os.close(reader)
        for child in children:
            child.close()


def _join(total: _Part, part: _Part) -> None:
    """Add the part that begins where `total` ends."""

    def real(database: int | None) -> int:
        return total.database if database is None or database == _UNKNOWN else database

    for database, counts in part.databases.items():
        mine = total.databases.setdefault(real(database), [0, 0])
        mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]
    for database, (keys, expires, offset) in part.announced.items():
        announced = total.announced.setdefault(real(database), [0, 0, offset])
        announced[0] += keys
        announced[1] += expires
    total.kinds.update(part.kinds)
    total.classes.merge(part.classes)
    total.expiry = [a + b for a, b in zip(total.expiry, part.expiry, strict=True)]
    total.aux.update(part.aux)
    total.modules.update(part.modules)
    total.functions += part.functions
    reached = total.samples[-1][0] if total.samples else -1
    total.samples += [(point, real(database), key) for point, database, key in part.samples if point > reached]
    for finding in part.findings:
        total.add(dataclasses.replace(finding, database=real(finding.database)) if finding.database == _UNKNOWN else finding)
    total.more.update(part.more)
    total.entries += part.entries
    total.database = real(part.database)
    total.end, total.ended = part.end, part.ended


# --- the whole -----------------------------------------------------------------------------------------------------------


def walk(
    path: str,
    *,
    now: float,
    values: Check | None = None,
    duplicates: bool = False,
    jobs: int | None = None,
    crc: bool = True,
    feeds: t.Sequence[_rdb_feed.Feed] = (),
) -> Contents:
    """Everything that can be said of this RDB file without loading it; a damaged one has findings. Only reads.

    `values` validates each value: it gets type, buffer, position and magic, and returns the position behind the value or raises Corrupt or IndexError.
    `duplicates` looks for a key that stands twice in a database, with 8 bytes of memory for each key. `jobs` processes are forked for a big file,
    as many as processors by default; the caller should have no threads. Without `crc` the checksum is not computed. With `feeds`, one or more for each
    job, all entries but long plain strings are written to them: `fed` tells whether they were.
    """
    contents = Contents()
    try:
        # a FIFO would wait for a writer
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                contents.findings.append(Finding("unreadable", "it is no regular file"))
                return contents
            contents.size = before.st_size
            if _header(_read(handle, 0, min(fmt.HEADER_SIZE, before.st_size)), contents):
                job = _Job(handle, before.st_size, contents.magic, contents.version, int(now * 1000), values, duplicates)
                _examine(job, contents, jobs or len(os.sched_getaffinity(0)), crc, feeds)
            after = os.fstat(handle)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                contents.findings.append(Finding("unreadable", "it was written to while it was read"))
        finally:
            os.close(handle)
    except (OSError, EOFError) as exc:
        contents.findings.append(Finding("unreadable", str(exc)))
    return contents


def _header(raw: bytes, contents: Contents) -> bool:
    match = re.fullmatch(rb"(REDIS)(\d{4})|(VALKEY)(\d{3})", raw)
    if match:
        contents.magic = (match[1] or match[3]).decode()
        contents.version = int(match[2] or match[4])
        if contents.version >= (1 if contents.magic == "REDIS" else fmt.NEWEST_REDIS):
            return True
        contents.findings.append(Finding("not-rdb", f"{contents.magic} in version {contents.version} is written by no server", len(contents.magic)))
    elif raw and len(raw) < fmt.HEADER_SIZE and (b"REDIS".startswith(raw[:5]) or b"VALKEY".startswith(raw[:6])):
        contents.findings.append(Finding("truncated", f"{len(raw)} bytes of a header of {fmt.HEADER_SIZE}", len(raw)))
    else:
        contents.findings.append(Finding("not-rdb", f"it begins with {raw.hex(' ')}" if raw else "it is empty", 0))
    return False


def _examine(job: _Job, contents: Contents, jobs: int, crc: bool, feeds: t.Sequence[_rdb_feed.Feed]) -> None:
    summed = job.version >= fmt.FIRST_WITH_CHECKSUM
    footer = b""
    if summed and job.size > fmt.HEADER_SIZE + fmt.FOOTER_SIZE:
        footer = _read(job.handle, job.size - fmt.FOOTER_SIZE, fmt.FOOTER_SIZE)
    wanted = job.size - fmt.FOOTER_SIZE if crc and any(footer) else 0
    jobs = min(jobs, MOST_JOBS)
    # A read of the mapped file may end the process: in this one nothing is mapped.
    fork = job.size > _ALONE and (jobs > 1 or job.values is not None)
    if not job.supported:
        job = dataclasses.replace(job, values=None, duplicates=False)
    part, pieces, contents.fed = _together(job, jobs, wanted, feeds) if fork else _alone(job, wanted, feeds)
    _checksum(job, contents, part, footer, pieces, crc)
    if not job.supported:
        _tell_newer(job, contents, part)
        return
    if job.duplicates:
        for finding in _duplicates(job, part):
            part.add(finding)
    for database, (keys, expires, offset) in sorted(part.announced.items()):
        counts = part.databases.get(database, [0, 0])
        if part.ended and counts != [keys, expires]:
            text = f"{counts[0]} keys, {counts[1]} with expiry; the file announces {keys} and {expires}"
            part.add(Finding("count-mismatch", text, offset, database=database))
    _tell(contents, part)


def _tell(contents: Contents, part: _Part) -> None:
    contents.keyspace = {f"db{database}": {"keys": keys, "expires": expires} for database, (keys, expires) in sorted(part.databases.items()) if keys}
    contents.encodings = dict(sorted(part.kinds.items()))
    for kind, count in contents.encodings.items():
        contents.types[fmt.TYPE_NAMES[kind]] = contents.types.get(fmt.TYPE_NAMES[kind], 0) + count
    contents.classes = part.classes.told()
    contents.expiry = {name: count for name, count in zip(_EXPIRY, part.expiry, strict=True) if count}
    contents.expired = part.expiry[0]
    contents.aux = part.aux
    contents.modules = dict(sorted(part.modules.items()))
    contents.functions = part.functions
    contents.samples = [(database, key) for dummy, database, key in part.samples]
    contents.findings = part.findings + contents.findings
    if part.more:
        code = max(part.more, key=lambda code: (CODES[code][0] == FATAL, CODES[code][0] != WARNING, part.more[code]))
        text = ", ".join(f"{count} {code}" for code, count in part.more.most_common())
        contents.findings.append(Finding(code, f"more findings than are told one by one: {text}"))


def _tell_newer(job: _Job, contents: Contents, part: _Part) -> None:
    """What is newer may mean something else: nothing is called corrupt, and counts are told only when all of it could be read."""
    whole = part.ended and not part.findings and part.end == job.size - fmt.FOOTER_SIZE
    if whole:
        _tell(contents, part)
    contents.aux = part.aux
    contents.findings.insert(0, Finding("unsupported-version", f"{job.magic} in version {job.version} is newer than this reader", len(job.magic)))


def _checksum(job: _Job, contents: Contents, part: _Part, footer: bytes, pieces: list[tuple[int, int, int]], crc: bool) -> None:
    """Hold the footer against the bytes before it; say what stands behind it."""
    findings = contents.findings
    if job.version < fmt.FIRST_WITH_CHECKSUM:
        contents.checksum = "absent"
        findings.append(Finding("checksum-absent", f"RDB {job.version} has no checksum: a changed value cannot be seen"))
        if part.ended and part.end != job.size:
            findings.append(_trailing(job, t.cast(int, part.end)))
        return
    end = job.size - fmt.FOOTER_SIZE
    # Where the walk did not find the end, the last eight bytes may be a footer all the same.
    if part.ended and job.supported:
        end = t.cast(int, part.end)
        if end + fmt.FOOTER_SIZE > job.size:
            findings.append(Finding("truncated", f"{job.size - end} bytes of a checksum of {fmt.FOOTER_SIZE}", end))
            return
        if end + fmt.FOOTER_SIZE < job.size:
            findings.append(_trailing(job, end + fmt.FOOTER_SIZE))
            footer = _read(job.handle, end, fmt.FOOTER_SIZE)
            pieces = [(0, end, _crc64.of_file(job.handle, 0, end))] if crc and any(footer) else []
    elif not footer or _read(job.handle, end - 1, 1)[0] != fmt.OP_EOF:
        return
    if not any(footer):
        contents.checksum = "disabled"
        findings.append(Finding("checksum-disabled", "written without a checksum: a changed value cannot be seen", end))
    elif crc:
        total = 0
        for start, stop, piece in sorted(pieces):
            total = _crc64.combine(total, piece, stop - start)
        if total == int.from_bytes(footer, "little"):
            contents.checksum = "ok"
        elif job.supported:
            contents.checksum = "mismatch"
            text = f"the file has the CRC64 {total:016x}, its footer says {int.from_bytes(footer, 'little'):016x}"
            findings.append(Finding("checksum-mismatch", text, end))


def _trailing(job: _Job, offset: int) -> Finding:
    head = _read(job.handle, offset, min(5, job.size - offset))
    what = ", and they begin as another RDB file does" if head in (b"REDIS", b"VALKE") else ""
    return Finding("trailing-bytes", f"{job.size - offset} bytes follow the end of the data{what}", offset)


def _duplicates(job: _Job, part: _Part) -> t.Iterator[Finding]:
    """Keys that stand twice in a database. Equal hashes are only a suspicion: the keys themselves are looked at, in a slow second walk."""
    if not part.suspects:
        return
    look = dataclasses.replace(job, values=None, duplicates=False, suspects=frozenset(part.suspects))
    for (database, key), offsets in sorted(_alone(look, 0)[0].places.items(), key=lambda item: item[1]):
        if len(offsets) > 1:
            yield Finding("duplicate-key", f"it stands at offsets {offsets[0]} and {offsets[1]} of the file", offsets[1], text_of(key), database)
    if part.suspected > len(part.suspects):
        yield Finding("duplicate-key", f"{part.suspected} keys in all seem to stand twice: only {len(part.suspects)} of them were looked at")
