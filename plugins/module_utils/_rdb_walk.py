# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The way through an RDB file from its first byte to its last: structure, counts and checksum, in little memory whatever its size.

The file is read in windows. A big one is walked in parts by forked processes: each part but the first begins at a guessed border between two entries,
and counts only when the part before it arrives exactly there. So the result does not depend on the number of processes.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import itertools
import os
import pickle
import re
import signal
import stat
import struct
import traceback
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _crc64, _rdb_feed, _rdb_part
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format as fmt
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_part import EXPIRY, PARTITIONS, UNKNOWN, Check, Job, Part, Walker, read, salt_of
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import CODES, FATAL, WARNING, Contents, Finding, text_of

_PART = 1 << 25  # bytes of a part, at least
_PARTS = 8  # parts for each process, at most: not all take the same time
_PIECE = 1 << 24  # bytes of a piece of the checksum, at least
MOST_JOBS = 4  # each takes memory
_PROBE = 1 << 16  # bytes in which a border is looked for
_PROBES = 8  # places tried for one border
_TRIES = 4  # chains of entries that are followed from one place
_CHAIN = 64  # entries in a row that make a border likely
_FED_PIECES = 8  # times as many pieces of the checksum when checkers are to be fed between them
# A likely beginning of an entry: perhaps an expiry and an eviction hint, a type, a key that is neither empty nor long and begins with printable text
_ENTRY = re.compile(
    rb"(?s)(?=(?:\xfc.{5}[\x00-\x03]\x00\x00)?(?:\xf9.|\xf8(?:[\x00-\x3f]|[\x40-\x7f].|\x80.{4}))?"
    rb"[\x00-\x19](?:[\x01-\x05][ -~]|(?:[\x06-\x3f]|[\x40-\x7f].)[ -~]{6}))"
)


# --- borders between parts -----------------------------------------------------------------------------------------------


def _borders(job: Job, parts: int) -> list[int]:
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


def _border(job: Job, offset: int) -> int | None:
    scout = Walker(job, offset, UNKNOWN)
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
        chain = Walker(job, offset + match.start(), UNKNOWN)
        chain.sample, chain.window, chain.most = job.size, _PROBE, _PROBE
        chain.run(_CHAIN)
        if not chain.part.findings and chain.part.end is None:
            return chain.base + chain.at
        tried += 1
        if tried == _TRIES:
            break
    return None


# --- processes -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Found:
    """What one process found: parts by number, checksums of pieces (start, end, CRC)."""

    parts: dict[int, Part] = dataclasses.field(default_factory=dict)
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


def _do(job: Job, borders: list[int], tasks: t.Iterable[bytes], found: _Found, feeder: _rdb_feed.Feeder | None = None) -> None:
    starts = [fmt.HEADER_SIZE, *borders]
    for task in tasks:
        if feeder:
            feeder.push()
        number, start, end = _TASK.unpack(task)
        if number == _NO_PART:
            found.pieces.append((start, end, _crc64.of_file(job.handle, start, end)))
        else:
            walker = Walker(job, starts[number], UNKNOWN if number else 0, starts[number + 1 :], feeder)
            walker.run()
            found.parts[number] = walker.part


class _Child:
    """A forked process that takes tasks from a pipe. It ends by itself when its parent does: the pipe to it breaks."""

    def __init__(self, job: Job, borders: list[int], tasks: int, feeds: t.Sequence[_rdb_feed.Feed] = ()) -> None:
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
    def _serve(job: Job, borders: list[int], tasks: int, stream: t.BinaryIO, feeder: _rdb_feed.Feeder | None) -> None:
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
            for place in range(PARTITIONS):
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


def _alone(job: Job, end: int, feeds: t.Sequence[_rdb_feed.Feed] = ()) -> tuple[Part, list[tuple[int, int, int]], bool]:
    found = _Found()
    feeder = _rdb_feed.Feeder(job.handle, feeds) if feeds else None
    _do(job, [], _tasks(1, _FED_PIECES if feeds else 1, end), found, feeder)
    part = found.parts[0]
    for partition in part.hashes:
        if feeder:
            feeder.push()
        part.suspect(partition)
    return part, found.pieces, bool(feeder and feeder.finish())


def _together(job: Job, jobs: int, end: int, feeds: t.Sequence[_rdb_feed.Feed]) -> tuple[Part, list[tuple[int, int, int]], bool]:
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
            for dummy in range(PARTITIONS):
                partition = array.array("q")
                for number, raws in itertools.chain.from_iterable(child.hashes() for child in children):
                    if number in before:
                        partition.frombytes(raws[0])
                        for raw in raws[1:]:
                            partition.extend(map(salt_of(before[number]).__xor__, array.array("q", raw)))
                total.suspect(partition)
        fed = [child.fed() for child in children] if feeds else [False]
        return total, [piece for one in everything for piece in one.pieces], all(fed)
    finally:
        os.close(reader)
        for child in children:
            child.close()


def _join(total: Part, part: Part) -> None:
    """Add the part that begins where `total` ends."""

    def real(database: int | None) -> int:
        return total.database if database is None or database == UNKNOWN else database

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
        total.add(dataclasses.replace(finding, database=real(finding.database)) if finding.database == UNKNOWN else finding)
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
            if _header(read(handle, 0, min(fmt.HEADER_SIZE, before.st_size)), contents):
                job = Job(handle, before.st_size, contents.magic, contents.version, int(now * 1000), values, duplicates)
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


def _examine(job: Job, contents: Contents, jobs: int, crc: bool, feeds: t.Sequence[_rdb_feed.Feed]) -> None:
    summed = job.version >= fmt.FIRST_WITH_CHECKSUM
    footer = b""
    if summed and job.size > fmt.HEADER_SIZE + fmt.FOOTER_SIZE:
        footer = read(job.handle, job.size - fmt.FOOTER_SIZE, fmt.FOOTER_SIZE)
    wanted = job.size - fmt.FOOTER_SIZE if crc and any(footer) else 0
    jobs = min(jobs, MOST_JOBS)
    # A read of the mapped file may end the process: in this one nothing is mapped.
    fork = job.size > _rdb_part.ALONE and (jobs > 1 or job.values is not None)
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


def _tell(contents: Contents, part: Part) -> None:
    contents.keyspace = {f"db{database}": {"keys": keys, "expires": expires} for database, (keys, expires) in sorted(part.databases.items()) if keys}
    contents.encodings = dict(sorted(part.kinds.items()))
    for kind, count in contents.encodings.items():
        contents.types[fmt.TYPE_NAMES[kind]] = contents.types.get(fmt.TYPE_NAMES[kind], 0) + count
    contents.classes = part.classes.told()
    contents.expiry = {name: count for name, count in zip(EXPIRY, part.expiry, strict=True) if count}
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


def _tell_newer(job: Job, contents: Contents, part: Part) -> None:
    """What is newer may mean something else: nothing is called corrupt, and counts are told only when all of it could be read."""
    whole = part.ended and not part.findings and part.end == job.size - fmt.FOOTER_SIZE
    if whole:
        _tell(contents, part)
    contents.aux = part.aux
    contents.findings.insert(0, Finding("unsupported-version", f"{job.magic} in version {job.version} is newer than this reader", len(job.magic)))


def _checksum(job: Job, contents: Contents, part: Part, footer: bytes, pieces: list[tuple[int, int, int]], crc: bool) -> None:
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
            footer = read(job.handle, end, fmt.FOOTER_SIZE)
            pieces = [(0, end, _crc64.of_file(job.handle, 0, end))] if crc and any(footer) else []
    elif not footer or read(job.handle, end - 1, 1)[0] != fmt.OP_EOF:
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


def _trailing(job: Job, offset: int) -> Finding:
    head = read(job.handle, offset, min(5, job.size - offset))
    what = ", and they begin as another RDB file does" if head in (b"REDIS", b"VALKE") else ""
    return Finding("trailing-bytes", f"{job.size - offset} bytes follow the end of the data{what}", offset)


def _duplicates(job: Job, part: Part) -> t.Iterator[Finding]:
    """Keys that stand twice in a database. Equal hashes are only a suspicion: the keys themselves are looked at, in a slow second walk."""
    if not part.suspects:
        return
    look = dataclasses.replace(job, values=None, duplicates=False, suspects=frozenset(part.suspects))
    for (database, key), offsets in sorted(_alone(look, 0)[0].places.items(), key=lambda item: item[1]):
        if len(offsets) > 1:
            yield Finding("duplicate-key", f"it stands at offsets {offsets[0]} and {offsets[1]} of the file", offsets[1], text_of(key), database)
    if part.suspected > len(part.suspects):
        yield Finding("duplicate-key", f"{part.suspected} keys in all seem to stand twice: only {len(part.suspects)} of them were looked at")
