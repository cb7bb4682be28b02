# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Verification of an append-only file: a directory with a manifest (Redis 7 and later, Valkey) or a single file, with or without an RDB in front.

Nothing is written but the copy that `cut` makes. The state tells what is usable, the verdict what is proven: an AOF has no checksum, so that without
digests recorded at backup time even an intact one is unknown. Source of the rules: aof.c of Redis 7.0 and 8.2; tests hold them against real servers.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import stat
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof_commands, _redis_conf, _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import CODES, FATAL, WARNING, Contents, Finding, Target, verdict

INTACT = "intact"
TAIL = "recoverable tail"  # a server with `aof-load-truncated yes` drops the incomplete end and comes up
CORRUPT = "corrupt middle"  # a server refuses it, or commands are known to be lost; usable up to a point
UNUSABLE = "unusable"

BASE, INCREMENT, HISTORY = "b", "i", "h"

_WINDOW = 1 << 20  # read at once; a command that is longer is read in pieces of _PIECE
_PIECE = 1 << 16
_DIGEST_PIECE = 1 << 23
_LONGEST_HEADER = 16
_PROBLEMS = 20  # reported for each file
_MANIFEST_LINE = 1024
_LONGEST_MANIFEST = 1 << 20
_SHAPES = 4096  # pairs of command and number of words that are remembered

_ARRAY = re.compile(rb"\*([1-9][0-9]{0,9})\r\n")
_BULK = re.compile(rb"\$(0|[1-9][0-9]{0,9})\r\n")
_STAMP = re.compile(rb"#TS:([0-9]{1,12})\r\n")
_ANNOTATION = re.compile(rb"#(?!TS:)[A-Z][A-Za-z0-9]*:[ -~]{0,200}\r\n")
# the same, cut off by the end of the file
_PARTIAL = {
    _ARRAY: re.compile(rb"\*(?:[1-9][0-9]{0,9}\r?)?"),
    _BULK: re.compile(rb"(?:\$(?:(?:0|[1-9][0-9]{0,9})\r?)?)?"),
    _STAMP: re.compile(rb"#(?:T(?:S(?::(?:[0-9]{1,12}\r?)?)?)?)?"),
}
_BEGINNING = re.compile(rb"\*[1-9][0-9]{0,6}\r\n\$[1-9][0-9]?\r\n[A-Za-z]")
_MEMBER = re.compile(r"[ -~]+\.(\d+)\.(base\.rdb|base\.aof|incr\.aof)")
_COUNTS = {b"*%d" % number: number for number in range(1, 1025)}

# In an AOF a base keeps its expired keys; trailing bytes are the commands behind an RDB preamble.
_NOT_OF_A_BASE = ("expired-keys", "trailing-bytes")
_NO_CHECKSUM = ("checksum-disabled", "checksum-absent")


class AofError(Exception):
    """No copy can be cut as it was asked for."""


class _Ends(Exception):
    """The file ends inside a command."""


class _Broken(Exception):
    """Bytes that are no command."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


@dataclasses.dataclass(frozen=True)
class Point:
    """A place where a file may end: after a complete command, outside of a transaction."""

    offset: int
    commands: int  # in this file before it
    timestamp: int | None  # of the last annotation before it


@dataclasses.dataclass
class Log:
    """What a scan of the commands of one file found. `good` is where the first fault begins, else the end."""

    good: Point
    commands: int = 0
    first: int | None = None
    last: int | None = None
    problems: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    broken: bool = False  # the server refuses it, or commands are lost
    truncated: bool = False  # the end is incomplete
    stopped: bool = False  # at a timestamp beyond the one that was asked for


class _Headers(dict[int, bytes]):
    """Header of a string by its length."""

    def __missing__(self, size: int) -> bytes:
        return b"$%d" % size


_HEADERS = _Headers({size: b"$%d" % size for size in range(4096)})


class _Scan:
    """Walks the commands of an open file from `start` to `size` in windows, so that memory stays bounded."""

    def __init__(self, descriptor: int, start: int, size: int, commands: _aof_commands.Commands, databases: int | None, until: float | None = None) -> None:
        self.descriptor, self.size = descriptor, size
        self.known, self.databases, self.until = commands, databases, until
        self.log = Log(Point(start, 0, None))
        self.start = start
        self.multi: Point | None = None  # where the open transaction begins
        self.shapes: set[tuple[bytes, int]] = set()  # commands that need no second look
        self.base, self.buffer = start, b""

    def run(self) -> Log:
        at = self.start
        while at < self.size and not self.log.stopped:
            at = self._window(at)
        log = self.log
        if not self._faulty and not log.stopped:
            if self.multi:
                self._fault("aof-tail", "the file ends inside a transaction", self.multi.offset, self.multi)
                log.truncated = True
            else:
                log.good = Point(self.size, log.commands, log.last)
        return log

    @property
    def _faulty(self) -> bool:
        return self.log.broken or self.log.truncated

    # reading

    def _read(self, at: int, size: int) -> bytes:
        return os.pread(self.descriptor, min(size, self.size - at), at)

    def _bytes(self, at: int, size: int) -> bytes:
        """`size` bytes (at most a piece) at `at`; fewer at the end of the file only."""
        here = at - self.base
        if here < 0 or here + size > len(self.buffer):
            self.base, self.buffer, here = at, self._read(at, max(_PIECE, size)), 0
        return self.buffer[here : here + size]

    def _header(self, pattern: re.Pattern[bytes], at: int) -> tuple[int, int]:
        """(its number, position after it)."""
        here = at - self.base
        if here < 0 or here + _LONGEST_HEADER > len(self.buffer):
            self._bytes(at, _LONGEST_HEADER)
            here = at - self.base
        found = pattern.match(self.buffer, here)
        if found:
            return int(found[1]), at + found.end() - here
        rest = self.buffer[here : here + _LONGEST_HEADER + 8]
        if at + len(rest) >= self.size and _PARTIAL[pattern].fullmatch(rest):
            raise _Ends
        raise _Broken(f"not a {'command' if pattern is _ARRAY else 'string'}: {rest[:16]!r}", at)

    def _command(self, at: int) -> tuple[int, int, list[bytes]]:
        """(position after it, number of words, its first two words) of the command at `at`, whatever its size."""
        count, here = self._header(_ARRAY, at)
        words: list[bytes] = []
        for number in range(count):
            length, here = self._header(_BULK, here)
            end = here + length
            if end + 2 > self.size:
                raise _Ends
            if number < 2:
                words.append(self._bytes(here, length) if length <= 64 else b"?" * 65)
            if self._bytes(end, 2) != b"\r\n":
                raise _Broken(f"no line end after a string of {length} bytes", end)
            here = end + 2
        return here, count, words

    # walking

    def _window(self, at: int) -> int:
        """Walk the commands that begin in the window at `at`; returns where the next window begins.

        A split at the line ends is exact as long as no word holds one: then every word is as long as its header says. One comparison tells so for
        the whole command. All else goes through _single.
        """
        window = self.buffer = self._read(at, _WINDOW)
        self.base = at
        if not window:
            raise OSError("the file became shorter while it was read")
        tokens = window.split(b"\r\n")
        last = len(tokens) - 1  # not ended by a line end
        shapes, counts, headers, log = self.shapes, _COUNTS, _HEADERS, self.log
        index, known, known_at = 0, 0, at  # token `known` begins at offset `known_at`
        while index < last:
            count = counts.get(tokens[index])
            if count:
                end = index + 1 + 2 * count
                if end > last:
                    count = 0
                else:
                    words = tokens[index + 2 : end : 2]
                    if tokens[index + 1 : end : 2] == [headers[size] for size in map(len, words)]:
                        if (words[0], count) in shapes:
                            log.commands += 1
                            index = end
                            continue
                    else:
                        count = 0
            known_at += sum(map(len, tokens[known:index])) + 2 * (index - known)
            known = index
            if count:
                self._seen(words[:2], count, known_at)
                index = end
                continue
            following = self._single(known_at)
            if log.stopped:
                return following
            while index < last and known_at < following:
                known_at += len(tokens[index]) + 2
                index += 1
            known = index
            if known_at != following:
                return following
        known_at += sum(map(len, tokens[known:index])) + 2 * (index - known)
        return known_at if index else self._single(at)

    def _single(self, at: int) -> int:
        """Walk one command or annotation; returns where the next one begins, the end of the file after an incomplete one."""
        try:
            if self._bytes(at, 1) == b"#":
                return self._annotation(at)
            following, count, words = self._command(at)
        except _Ends:
            return self._incomplete(at)
        except _Broken as exc:
            self._fault("aof-corrupt", str(exc), exc.at, self.multi or self._here(at))
            self.log.broken = True
            return self._resume(at + 1)
        self._seen(words, count, at)
        return following

    def _annotation(self, at: int) -> int:
        line = self._bytes(at, 256)
        stamp = _STAMP.match(line)
        if stamp:
            now = int(stamp[1])
            if self.until is not None and now > self.until:
                self.log.good, self.log.stopped = self.multi or self._here(at), True
                return at
            if self.log.last is not None and now < self.log.last:
                self._note("aof-clock", f"timestamp {now} follows {self.log.last}", at)
            if self.log.first is None:
                self.log.first = now
            self.log.last = now
            return at + stamp.end()
        other = _ANNOTATION.match(line)
        if other:
            self._note("aof-annotation", f"annotation {other[0][:40]!r}", at)
            return at + other.end()
        if at + len(line) >= self.size and _PARTIAL[_STAMP].fullmatch(line):
            raise _Ends
        raise _Broken(f"not an annotation: {line[:16]!r}", at)

    def _incomplete(self, at: int) -> int:
        """The file ends inside the command at `at`; when complete commands follow, its length is wrong and the middle is damaged."""
        point = self.multi or self._here(at)
        following = self._resume(at + 1)
        if following < self.size:
            self._fault("aof-corrupt", "a length reaches beyond the end of the file, and complete commands follow", at, point)
            self.log.broken = True
        else:
            self._fault("aof-tail", "the file ends inside a command", at, point)
            self.log.truncated = True
        return following

    def _resume(self, at: int) -> int:
        """The next complete command of a known name at or after `at`, to tell how much lies behind a fault; the end of the file when there is none."""
        known, multi = at, self.multi
        self.multi = None
        while known < self.size:
            window = self._read(known, _WINDOW)
            found = _BEGINNING.search(window)
            if not found:
                if known + len(window) >= self.size:
                    break
                known += len(window) - 32
                continue
            known += found.start()
            with contextlib.suppress(_Ends, _Broken):
                dummy, count, words = self._command(known)
                if self.known.find(words[0], words[1] if count > 1 else b""):
                    return known
            known += 1
        self.multi = multi
        return self.size

    # judging

    def _seen(self, words: list[bytes], count: int, at: int) -> None:
        """Judge a complete command that the window does not know yet."""
        first, second = words[0], words[1] if count > 1 else b""
        log = self.log
        problem = self.known.problem(first, second, count)
        if problem:
            code, text = problem
            if CODES[code][0] == FATAL:
                self._fault(code, text, at, self.multi or self._here(at))
                log.broken = True
            else:
                self._note(code, text, at)
            log.commands += 1
            return
        found = self.known.find(first, second)
        name = found[0] if found else ""
        here = self._here(at)
        log.commands += 1
        if name == "MULTI":
            if self.multi:
                self._fault("aof-transaction", "MULTI inside a transaction: its EXEC is lost", at, self.multi)
                log.broken = True
            self.multi = here
        elif name == "EXEC":
            if not self.multi:
                self._fault("aof-transaction", "EXEC without MULTI", at, here)
                log.broken = True
            self.multi = None
        elif name == "SELECT":
            self._select(second, at, here)
        elif len(self.shapes) < _SHAPES and "|" not in name:
            self.shapes.add((first, count))

    def _select(self, index: bytes, at: int, here: Point) -> None:
        if not index.isdigit():
            self._fault("aof-command", f"SELECT {index[:16]!r}", at, self.multi or here)
            self.log.broken = True
        elif self.databases is not None and int(index) >= self.databases:
            text = f"database {int(index)}, the target has {self.databases}: its commands would go to another database"
            self._fault("database-beyond-target", text, at, self.multi or here)
            self.log.broken = True

    def _here(self, at: int) -> Point:
        return Point(at, self.log.commands, self.log.last)

    def _fault(self, code: str, text: str, at: int, usable: Point) -> None:
        if not self._faulty:
            self.log.good = usable
        self._note(code, text, at)

    def _note(self, code: str, text: str, at: int) -> None:
        if len(self.log.problems) < _PROBLEMS or all(code != problem[0] for problem in self.log.problems):
            self.log.problems.append((code, text, at))


# files


@dataclasses.dataclass
class Member:
    """One file of an AOF."""

    name: str
    kind: str
    seq: int
    path: str
    size: int = 0  # -1: it is not there
    sha256: str | None = None
    start: int = 0  # where its commands begin: behind the RDB
    contents: Contents | None = None
    log: Log | None = None

    def as_dict(self) -> dict[str, t.Any]:
        log = self.log
        found: dict[str, t.Any] = {"name": self.name, "kind": self.kind, "seq": self.seq, "size": self.size if self.size >= 0 else None, "sha256": self.sha256}
        found |= {"commands": log.commands if log else 0, "first_timestamp": log.first if log else None, "last_timestamp": log.last if log else None}
        if self.contents:
            base = self.contents
            found["rdb"] = {"version": base.version, "checksum": base.checksum, "keyspace": base.keyspace, "taken_at": base.taken_at, "size": self.start}
        return found


@dataclasses.dataclass(frozen=True)
class Usable:
    """How far an AOF can be used: everything before `offset` of `file`, all files before it included."""

    file: str
    offset: int
    command: int  # number of commands before it, in all files
    timestamp: int | None  # last annotation before it
    bytes_lost: int
    commands_lost: int  # complete ones: at least so many


@dataclasses.dataclass
class AofReport:
    path: str
    state: str = INTACT
    findings: list[Finding] = dataclasses.field(default_factory=list)
    members: list[Member] = dataclasses.field(default_factory=list)  # in the order of loading, then the history
    orphans: list[str] = dataclasses.field(default_factory=list)
    usable: Usable | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)  # of everything that a restore needs, the manifest included
    matched: bool | None = None  # whether they are those recorded; None: none were given
    manifest: str | None = None  # name, None with a single file
    target: Target | None = None

    @property
    def verdict(self) -> str:
        return verdict(self.findings)

    @property
    def loaded(self) -> list[Member]:
        return [member for member in self.members if member.kind != HISTORY]

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "path": self.path,
            "kind": "aof",
            "verdict": self.verdict,
            "state": self.state,
            "findings": [finding.as_dict() for finding in self.findings],
            "files": [member.as_dict() for member in self.members],
            "orphans": self.orphans,
            "usable": dataclasses.asdict(self.usable) if self.usable else None,
            "digests": self.digests,
            "digests_matched": self.matched,
        }

    def evidence(self) -> str:
        """One line for a gate."""
        if not self.usable:
            return "; ".join([self.state, *(finding.text for finding in self.findings if finding.severity != WARNING)][:4])
        usable = self.usable
        text = f"{self.state}, usable up to {usable.file}:{usable.offset} ({usable.command} commands), {usable.bytes_lost} bytes lost"
        return "; ".join([text, *(f"{finding.file or self.path}: {finding.text}" for finding in self.findings if finding.severity != WARNING)][:4])


def verify(path: str, *, target: Target | None, now: float, base: t.Callable[[str], Contents], recorded: t.Mapping[str, str] | None = None) -> AofReport:
    """Verify the AOF at `path`: its directory, its manifest or a single file.

    `base` verifies an RDB; it says "trailing-bytes", with the offset, when something follows it. `recorded`: SHA-256 by file name.
    """
    report = AofReport(path, target=target)
    found = report.findings
    if not target:
        found.append(Finding("no-target", "no target was given: commands and databases were held against all servers"))
    try:
        _collect(report)
    except OSError as exc:
        found.append(Finding("unreadable", exc.strerror or str(exc)))
        report.state = UNUSABLE
    commands = _aof_commands.Commands(target)
    if report.state != UNUSABLE:
        # Digests are taken beside the scans: hashing big pieces leaves the interpreter to them.
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            for member in report.loaded:
                _check_member(report, member, commands, base, beside)
        _conclude(report)
    _compare(report, recorded)
    if any(log.last is not None and log.last > now + 60 for log in (member.log for member in report.members) if log):
        found.append(Finding("aof-clock", "timestamps in the future"))
    return report


def _collect(report: AofReport) -> None:
    """Members of the AOF and what is wrong with their list."""
    path = report.path
    if not os.path.isdir(path) and not path.endswith(".manifest"):
        report.members.append(Member(os.path.basename(path), BASE, 1, path, _size(path)))
        return
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    names = sorted(os.listdir(folder))
    manifests = [os.path.basename(path)] if not os.path.isdir(path) else [name for name in names if name.endswith(".manifest")]
    if len(manifests) != 1:
        text = f"several manifests: {', '.join(manifests)}" if manifests else "no manifest: a server starts empty and writes a new one"
        report.findings.append(Finding("aof-manifest", text))
        report.orphans = [name for name in names if _MEMBER.fullmatch(name)]
        report.state = UNUSABLE
        return
    report.manifest = manifests[0]
    if report.target and report.target.server == "redis" and (_aof_commands.version_of(report.target) or (7, 0)) < (7, 0):
        report.findings.append(Finding("aof-layout", f"Redis {report.target.version} reads a single file only: it would start empty"))
    with open(os.path.join(folder, report.manifest), "rb") as handle:
        lines = handle.read(_LONGEST_MANIFEST)
    report.digests[report.manifest] = hashlib.sha256(lines).hexdigest()
    try:
        report.members = [Member(name, kind, seq, os.path.join(folder, name)) for name, kind, seq in parse_manifest(lines)]
    except _Broken as exc:
        report.findings.append(Finding("aof-manifest", str(exc), exc.at, file=report.manifest))
        report.state = UNUSABLE
    _strays(report, names)
    for member in report.members:
        try:
            member.size = _size(member.path)
        except FileNotFoundError:
            if member.kind == HISTORY:
                continue
            report.findings.append(Finding("aof-missing", "the manifest names it, and it is not there", file=member.name))
            member.size = -1


def _size(path: str) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{os.path.basename(path)} is not a regular file")
    return found.st_size


def parse_manifest(text: bytes) -> list[tuple[str, str, int]]:
    """(name, kind, sequence) of the files in a manifest: base, increments by sequence, history. _Broken where the server refuses it."""
    rows: list[tuple[str, str, int]] = []
    at = 0
    lines = text.splitlines(keepends=True)
    if not lines:
        raise _Broken("the manifest is empty", 0)
    for line in lines:
        row = None if line.startswith(b"#") else _manifest_row(line, at)
        if row:
            if row[1] == BASE and any(kind == BASE for dummy, kind, seq in rows):
                raise _Broken("a second base", at)
            if row[1] == INCREMENT and any(kind == INCREMENT and seq >= row[2] for dummy, kind, seq in rows):
                raise _Broken("sequence numbers of the increments do not grow", at)
            rows.append(row)
        at += len(line)
    return sorted(rows, key=lambda row: "bih".index(row[1]))


def _manifest_row(line: bytes, at: int) -> tuple[str, str, int]:
    if not line.endswith(b"\n") or len(line) > _MANIFEST_LINE:
        raise _Broken("a line that is too long or does not end", at)
    try:
        words = _redis_conf.split(line.decode("utf-8").strip())
    except ValueError as exc:
        raise _Broken(f"a line that cannot be read: {exc}", at) from exc
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    name, seq, kind = (pairs.get(key, "") for key in ("file", "seq", "type"))
    if (
        len(words) % 2
        or not name.isprintable()
        or not name
        or os.path.basename(name) != name
        or not re.fullmatch("[1-9][0-9]{0,17}", seq)
        or kind not in (BASE, INCREMENT, HISTORY)
    ):
        raise _Broken("a line that names no file with sequence and type", at)
    return name, kind, int(seq)


def _strays(report: AofReport, names: list[str]) -> None:
    """Files that the manifest does not name: lost commands, or what an ended rewrite left behind."""
    named = {member.name for member in report.members}
    lowest: dict[str, int] = {}
    for member in report.loaded:
        lowest.setdefault(member.kind, member.seq)
    for name in names:
        numbered = _MEMBER.fullmatch(name)
        if name in named or not (numbered or name.startswith("temp-")):
            continue
        kind = BASE if numbered and numbered[2].startswith("base") else INCREMENT
        if not numbered or int(numbered[1]) < lowest.get(kind, 0):
            report.findings.append(Finding("aof-leftover", "not part of the AOF: older than it, or never finished", file=name))
            continue
        report.orphans.append(name)
        report.findings.append(Finding("aof-orphan", "the manifest does not name it: its data would be dropped silently", file=name))


def _check_member(
    report: AofReport, member: Member, commands: _aof_commands.Commands, base: t.Callable[[str], Contents], beside: concurrent.futures.Executor
) -> None:
    """Read one file; its log stays None when it cannot be used at all."""

    def note(code: str, text: str, offset: int | None = None) -> None:
        report.findings.append(Finding(code, text, offset, file=member.name))

    if member.size < 0:
        return
    if not member.size and member.kind == BASE:
        note("aof-missing", "the base is empty")
        return
    try:
        with open(member.path, "rb", buffering=0) as handle:
            if handle.read(6).startswith((b"REDIS", b"VALKEY")):
                member.contents = base(member.path)
                member.start = min((f.offset for f in member.contents.findings if f.code == "trailing-bytes" and f.offset is not None), default=member.size)
                said = [f for f in member.contents.findings if f.code not in _NOT_OF_A_BASE]
                said += _target.judge(member.contents, report.target) if report.target else []
                report.findings += [dataclasses.replace(f, file=member.name) for f in said]
            # not before: reading an RDB forks, which a thread would disturb
            digest = beside.submit(_digest, member.path, member.size)
            if not _rdb_broken(member):
                databases = report.target.databases if report.target else None
                member.log = _Scan(handle.fileno(), member.start, member.size, commands, databases).run()
                for problem in member.log.problems:
                    note(*problem)
            member.sha256 = report.digests[member.name] = digest.result()
    except OSError as exc:
        note("unreadable", exc.strerror or str(exc))
        member.log = None


def _rdb_broken(member: Member) -> bool:
    return bool(member.contents and verdict(f for f in member.contents.findings if f.code not in _NOT_OF_A_BASE) == "fail")


def _digest(path: str, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as handle:
        for at in range(0, size, _DIGEST_PIECE):
            digest.update(handle.read(min(_DIGEST_PIECE, size - at)))
    return digest.hexdigest()


def _conclude(report: AofReport) -> None:
    """State and usable part out of what the members hold."""
    loaded = report.loaded
    point: tuple[Member, Point] | None = None
    before = commands = lost = 0
    timestamp = seq = None
    whole = True
    for member in loaded:
        log = member.log
        if whole and member.kind == INCREMENT and seq is not None and member.seq != seq + 1:
            report.findings.append(Finding("aof-missing", f"increment {seq + 1} is not in the manifest, and {member.seq} is", file=report.manifest))
            whole = False
        seq = member.seq if member.kind == INCREMENT else None
        whole = whole and log is not None
        if whole and log:
            point = member, log.good
            timestamp = log.good.timestamp or timestamp
            before = commands + log.good.commands
            lost += member.size - log.good.offset
            whole = not (log.broken or log.truncated)
        else:
            lost += max(member.size, 0)
        commands += log.commands if log else 0
    if point is None or (loaded[0].kind == BASE and loaded[0].log is None):
        report.state = UNUSABLE
        if not loaded:
            report.findings.append(Finding("aof-nothing", "the manifest names no file to load"))
        return
    member, good = point
    report.usable = Usable(member.name, good.offset, before, timestamp, lost, commands - before)
    ends = member.log
    if not whole:
        report.state = TAIL if member is loaded[-1] and ends and ends.truncated and not ends.broken else CORRUPT
        if report.state == CORRUPT and ends and ends.truncated:
            report.findings.append(Finding("aof-corrupt", "it is cut off, and it is not the last file: the server refuses it", good.offset, file=member.name))
    bases = [member.contents for member in loaded if member.contents]
    if not before and not any(base.functions or any(item["keys"] for item in base.keyspace.values()) for base in bases):
        report.findings.append(Finding("aof-nothing", "neither keys nor commands: the server would start empty"))
        report.state = UNUSABLE


def _compare(report: AofReport, recorded: t.Mapping[str, str] | None) -> None:
    if recorded:
        wrong = [name for name, digest in report.digests.items() if name in recorded and recorded[name].lower() != digest]
        gone = [name for name in recorded if name not in report.digests and name not in {member.name for member in report.members if member.kind == HISTORY}]
        report.findings += [Finding("digest-mismatch", "not the file whose SHA-256 was recorded", file=name) for name in wrong]
        report.findings += [Finding("digest-mismatch", "recorded, and not part of this AOF", file=name) for name in gone]
        report.matched = not wrong and not gone and report.digests.keys() <= recorded.keys()
    if report.matched:
        report.findings = [finding for finding in report.findings if finding.code not in _NO_CHECKSUM]
    else:
        report.findings.append(Finding("aof-values-unprotected", "an AOF has no checksum: values and the number of commands are not proven"))


# cutting


def cut(report: AofReport, into: str, until: float | None = None) -> dict[str, t.Any]:
    """Copy what is usable of a verified AOF to the new directory `into`, up to the time `until` where it is given; the source is not touched.

    Returns {path, file, offset, timestamp, digests} of the copy. AofError when there is no such point, OSError when it cannot be written.
    """
    if not report.usable:
        raise AofError(f"{report.path} is {report.state}")
    source = os.path.realpath(report.path if os.path.isdir(report.path) else os.path.dirname(report.path) or ".")
    if os.path.commonpath([source, os.path.realpath(into)]) == source and report.manifest:
        raise AofError(f"{into} lies inside of {source}")
    if os.path.lexists(into):
        raise AofError(f"{into} exists")
    name, point = report.usable.file, Point(report.usable.offset, report.usable.command, report.usable.timestamp)
    if until is not None:
        name, point = _point_at(report, until)
    unfinished = f"{into}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished, mode=0o750)
    kept = []
    digests = {}
    for member in report.loaded:
        kept.append(member)
        size = point.offset if member.name == name else member.size
        digests[member.name] = _copy(member.path, os.path.join(unfinished, member.name), size)
        if member.name == name:
            break
    if report.manifest:
        text = "".join(f"file {_quoted(member.name)} seq {member.seq} type {member.kind}\n" for member in kept).encode()
        digests[report.manifest] = hashlib.sha256(text).hexdigest()
        with open(os.path.join(unfinished, report.manifest), "xb") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    _sync(unfinished)
    os.rename(unfinished, into)
    _sync(os.path.dirname(os.path.abspath(into)))
    path = into if report.manifest else os.path.join(into, name)
    return {"path": path, "file": name, "offset": point.offset, "timestamp": point.timestamp, "digests": digests}


def _point_at(report: AofReport, until: float) -> tuple[str, Point]:
    """The end of what was written up to `until`, by the annotations."""
    commands = _aof_commands.Commands(report.target)
    usable = t.cast(Usable, report.usable)
    found: tuple[str, Point] | None = None
    stamped = False
    for member in report.loaded:
        taken = member.contents.taken_at if member.contents else None
        if taken is not None and taken > until:
            raise AofError(f"the base was taken at {taken:.0f}, after {until:.0f}")
        descriptor = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = usable.offset if member.name == usable.file else member.size
            log = _Scan(descriptor, member.start, end, commands, None, until).run()
        finally:
            os.close(descriptor)
        stamped = stamped or log.first is not None or log.stopped
        if log.stopped and not log.commands and not member.contents:
            if found:
                break
            raise AofError(f"nothing was written up to {until:.0f}")
        timestamp = log.good.timestamp or (found[1].timestamp if found else None)
        found = member.name, dataclasses.replace(log.good, timestamp=timestamp)
        if log.stopped or member.name == usable.file:
            break
    if found is None or not stamped:
        raise AofError("it has no timestamps (aof-timestamp-enabled)")
    return found


def _copy(source: str, target: str, size: int) -> str:
    """Copy the first `size` bytes to a new file, on disk when it returns; their SHA-256."""
    digest = hashlib.sha256()
    with open(source, "rb", buffering=0) as old, open(target, "xb") as new:
        while size:
            piece = old.read(min(_WINDOW, size))
            if not piece:
                raise OSError(f"{source} became shorter while it was copied")
            digest.update(piece)
            new.write(piece)
            size -= len(piece)
        new.flush()
        os.fsync(new.fileno())
    os.chmod(target, 0o640)
    return digest.hexdigest()


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(name: str) -> str:
    """A name as the server writes it to a manifest."""
    return name if re.fullmatch(r"[!-~]+", name) and not re.search(r"[\"'\\]", name) else '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
