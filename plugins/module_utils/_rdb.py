# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Verification of one RDB file in layers: what it is, its recorded digest, checksum and structure, every value, a load by a scratch server.

Only reads. A damaged file is a verdict, never an exception. Facts behind the layers: docs/verification.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _crc64, _rdb_feed, _rdb_values, _rdb_walk, _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_report as rep

LEVELS = ("fast", "deep", "proof")
POLICIES = ("required", "digest")
CHECKERS = {"REDIS": ("redis-check-rdb", "valkey-check-rdb"), "VALKEY": ("valkey-check-rdb",)}
VALKEY_READS = 11  # valkey-check-rdb says OK to newer Redis files that its own server refuses
SMALL = 4 * 2**20  # below this a process of its own costs more than the digest
LARGE = 64 * 2**20  # above this the inside of values is left to checkers where there are any: in plain Python it takes several times as long
PIPE = 2**20  # bytes between us and a checker that we feed; a system may allow less
TIMEOUT = 900.0
SEVERITIES = (rep.FATAL, rep.UNPROVEN, rep.DATA_LOSS, rep.WARNING)
UNCHECKSUMMED = ("checksum-disabled", "checksum-absent")

_MAGICS = (
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"\xfd7zXZ\x00", "xz data: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"\x04\x22\x4d\x18", "lz4 data: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"age-encryption.org/", "encrypted with age: decrypt it first"),
    (b"-----BEGIN AGE ENCRYPTED FILE-----", "encrypted with age: decrypt it first"),
    (b"-----BEGIN PGP MESSAGE-----", "encrypted with PGP: decrypt it first"),
    (b"Salted__", "encrypted with openssl enc: decrypt it first"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer: the data itself was not fetched"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\x00", "an SQLite database"),
)
_MANIFEST_LINE = re.compile(rb"file \S+ seq \d+ type [bih]")
_RESP = re.compile(rb"(#TS:\d+\r\n)?\*\d+\r\n\$\d+\r\n")
_SIDECAR = re.compile(r"\\?([0-9a-fA-F]{64})(?: [ *]?(.+))?|SHA256 \((.+)\) = ([0-9a-fA-F]{64})")


class RecordedError(Exception):
    """What was given as recorded facts cannot be used."""


# --- what the file is ------------------------------------------------------------------------------------------------


def sniff(head: bytes, size: int) -> str | None:
    """None when it begins as an RDB file does; else what it is."""
    if not size:
        return "empty: nothing was ever written to it"
    if head.startswith((b"REDIS", b"VALKEY")):
        return None
    for magic, meaning in _MAGICS:
        if head.startswith(magic):
            return meaning
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if _RESP.match(head):
        return "an append only file (AOF)"
    if _MANIFEST_LINE.match(head):
        return "the manifest of an append only file: verify its directory"
    if not head.strip(b"\0"):
        return "zero bytes: a file system that lost the data, or a download that never came"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page: most likely the error page of a download"
    if text.startswith(b"<?xml"):
        return "XML: most likely the error message of an object store"
    if re.match(rb"[{\[]\s*[\"{\[\]}\d]", text):
        return "JSON"
    with contextlib.suppress(UnicodeDecodeError):
        if head.decode("ascii").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
            return "plain text"
    return f"no RDB file: it begins with {head[:9].hex(' ')}"


# --- digests ---------------------------------------------------------------------------------------------------------


def timed_digest(path: str) -> str:
    """SHA-256 of a whole file, and the seconds it took."""
    started = time.monotonic()
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return f"{digest} {time.monotonic() - started:.3f}"


class Beside:
    """A function run in a forked process while this one works. A thread would fight the walk for the interpreter, and must not fork."""

    def __init__(self, function: t.Callable[[], t.Any]) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            code = 1
            with contextlib.suppress(BaseException), open(writer, "wb") as stream:
                pickle.dump(function(), stream)
                code = 0
            os._exit(code)
        os.close(writer)

    def result(self) -> t.Any:
        """What the function returned; OSError when its process died."""
        with open(self._reader, "rb") as stream:
            data = stream.read()
        dummy, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            raise OSError(f"its process ended with status {os.waitstatus_to_exitcode(status)}")
        return pickle.loads(data)

    def abandon(self) -> None:
        """End it, unless its result was taken."""
        if self._pid:
            os.close(self._reader)
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def digests_in(text: str) -> dict[str, str]:
    """SHA-256 by file name in what sha256sum prints (GNU or BSD); a digest without a name has the name ""."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _SIDECAR.fullmatch(line.strip())
        if match:
            found[os.path.basename(match[2] or match[3] or "")] = (match[1] or match[4]).lower()
    return found


def sidecar_digest(text: str, name: str) -> str | None:
    """The digest of file `name` in it, or the only one there is; None when it holds none."""
    found = digests_in(text)
    return found.get(name) or (next(iter(found.values())) if len(found) == 1 else None)


def read_recorded(path: str, name: str) -> dict[str, t.Any]:
    """Recorded facts of file `name`: out of a restore point's manifest.json, or out of what sha256sum printed."""
    try:
        with open(path, encoding="utf-8") as handle:
            text = handle.read(16 * 2**20)
    except UnicodeDecodeError as exc:
        raise RecordedError(f"{path} is neither a manifest nor a list of SHA-256 digests") from exc
    if text.lstrip().startswith("{"):
        try:
            facts = json.loads(text)
        except ValueError as exc:
            raise RecordedError(f"{path} is not JSON: {exc}") from exc
        return check_recorded(facts.get("redis", facts), path)
    digest = sidecar_digest(text, name)
    if not digest:
        raise RecordedError(f"{path} holds no SHA-256 of {name}")
    return {"sha256": digest}


def check_recorded(facts: t.Any, where: str) -> dict[str, t.Any]:
    """The facts that verification uses, with their types; RecordedError when there are none or one is not what it should be."""
    if not isinstance(facts, dict):
        raise RecordedError(f"{where}: not a JSON object")
    kinds: dict[str, t.Any] = {"sha256": str, "size": int, "rdb_version": int, "keyspace": dict, "expired": int, "fingerprint": dict}
    used = {name: facts[name] for name in kinds if facts.get(name) is not None}
    for name, value in used.items():
        if not isinstance(value, kinds[name]):
            raise RecordedError(f"{where}: {name} is not of type {kinds[name].__name__}")
    if not used.keys() & {"sha256", "size", "rdb_version", "keyspace"}:
        raise RecordedError(f"{where}: records nothing of a Redis snapshot (sha256, size, rdb_version or keyspace)")
    if "sha256" in used and not re.fullmatch("[0-9a-fA-F]{64}", used["sha256"]):
        raise RecordedError(f"{where}: sha256 is malformed")
    for counted in used.get("keyspace", {}).values():
        if not isinstance(counted, dict) or not isinstance(counted.get("keys"), int):
            raise RecordedError(f"{where}: keyspace is malformed")
    return used


def compare(recorded: dict[str, t.Any], contents: rep.Contents) -> list[rep.Finding]:
    """What the walk found against what was recorded. Counts are those of a server: without what it dropped on loading."""
    findings = []
    if recorded.get("rdb_version") not in (None, contents.version):
        text = f"the file says RDB {contents.version}, recorded was {recorded['rdb_version']}"
        findings.append(rep.Finding("version-differs", text, offset=len(contents.magic)))
    if "keyspace" not in recorded:
        return findings
    want, expired = recorded["keyspace"], recorded.get("expired", 0)
    dropped = expired + sum(finding.code == "empty-container" for finding in contents.findings)
    for name in sorted(want.keys() | contents.keyspace.keys()):
        loaded = want.get(name, {}).get("keys", 0)
        there = contents.keyspace.get(name, {}).get("keys", 0)
        if not loaded <= there <= loaded + dropped:
            findings.append(rep.Finding("contents-differ", f"{name} holds {there} keys, recorded were {loaded}"))
    total, recorded_total = _keys(contents.keyspace), _keys(want) + expired
    if not findings and not recorded_total <= total <= recorded_total + dropped - expired:
        findings.append(rep.Finding("contents-differ", f"it holds {total} keys, recorded were {recorded_total}, of which {expired} had expired"))
    return findings


def _keys(keyspace: dict[str, dict[str, int]]) -> int:
    return sum(database["keys"] for database in keyspace.values())


# --- the second opinion ----------------------------------------------------------------------------------------------


class Checker:
    """redis-check-rdb or valkey-check-rdb, running while we read the file ourselves. Without a path it reads what is written to its `feed`."""

    def __init__(self, program: str, path: str | None, deadline: float) -> None:
        self.name = os.path.basename(program)
        self.deadline = deadline
        self.seconds = 0.0
        self.checksum_ok = False  # it computed the checksum and found it right
        self.feed: _rdb_feed.Feed | None = None
        self._program = program
        self._started = time.monotonic()
        # a file: what an auxiliary field holds is printed whole and would fill a pipe
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        with contextlib.ExitStack() as stack:
            source: t.Any = subprocess.DEVNULL
            if path is None:
                reader, writer = os.pipe()
                source = stack.enter_context(open(reader, "rb"))
                self.feed = _rdb_feed.Feed(writer, deadline)
                with contextlib.suppress(OSError):
                    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
            # absolute: a name that begins with a dash would be an option
            argv = [program, "/dev/stdin" if path is None else os.path.abspath(path)]
            try:
                self._process = subprocess.Popen(argv, stdin=source, stdout=self._output, stderr=subprocess.STDOUT, cwd="/", close_fds=True)
            except OSError:
                self._close_feed()
                raise

    def result(self) -> tuple[bool | None, str, int | None, str | None]:
        """(whether it accepts the file, its reason, the offset and the key that it names). None: it has no opinion."""
        self._close_feed()
        try:
            code = self._process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None, f"{self.name} did not end in time", None, None
        finally:
            self.abandon()
        self.seconds = round(time.monotonic() - self._started, 3)
        self.checksum_ok = code == 0 and "] Checksum OK" in self._text
        return judge_checker(self.name, code, self._text)

    def _close_feed(self) -> None:
        if self.feed:
            os.close(self.feed.pipe)
            self.feed = None

    def abandon(self) -> None:
        self._close_feed()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if not self._output.closed:
            size = self._output.seek(0, os.SEEK_END)
            self._output.seek(max(0, size - 65536))
            self._text = self._output.read().decode("utf-8", "backslashreplace")
            self._output.close()

    def version(self) -> str:
        """Its name with its version where it tells one: several take the option for the name of a file."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([self._program, "--version"], capture_output=True, text=True, errors="replace", timeout=5, check=False, cwd="/")
            match = re.fullmatch(r"\S+ (?:v=)?(\d+(?:\.\d+)+)\b[^\n]*\n?", done.stdout)
            if match and not done.returncode:
                return f"{self.name} {match[1]}"
        return self.name


def judge_checker(name: str, code: int, text: str) -> tuple[bool | None, str, int | None, str | None]:
    """What the exit status and the output of a checker say; see Checker.result."""
    if code == 0 and "RDB looks OK!" in text:
        return True, "", None, None
    failed = text.rpartition("--- RDB ERROR DETECTED ---")[2] if "--- RDB ERROR DETECTED ---" in text else ""
    error = re.search(r"^\[offset (\d+)\] (.*)", failed, re.M)
    if error:
        reason = re.sub(r" reading offset 0, function at \S+ ->", ":", error[2]).strip()
        if reason.startswith(("Can't handle RDB format version", "Wrong signature")):
            return None, f"{name} is of another version or server: {reason}", None, None
        key = re.search(r"^\[additional info\] Reading key '(.*)'$", failed, re.M)
        return False, reason, int(error[1]), key[1] if key else None
    if code < 0:
        return False, f"it crashed with {signal.Signals(-code).name}", None, None
    return None, f"{name} ended with status {code} and no verdict", None, None


def find_checker(contents_magic: str, version: int) -> str | None:
    """A checker that may have an opinion on such a file."""
    for name in CHECKERS.get(contents_magic, ()):
        program = shutil.which(name)
        if program and not (name.startswith("valkey") and contents_magic == "REDIS" and version > VALKEY_READS):
            return program
    return None


def _header(head: bytes) -> tuple[str, int]:
    match = re.match(rb"(REDIS)(\d{4})|(VALKEY)(\d{3})", head)
    if not match:
        return "", 0
    return ("REDIS", int(match[2])) if match[1] else ("VALKEY", int(match[4]))


# --- all of it -------------------------------------------------------------------------------------------------------


def verify(
    path: str,
    *,
    level: str = "fast",
    target: rep.Target | None = None,
    now: float,
    recorded: dict[str, t.Any] | None = None,
    max_age_s: float | None = None,
    checksum: str = "required",
    user: str | None = None,
    server: str | None = None,
    jobs: int | None = None,
    timeout: float = TIMEOUT,
) -> dict[str, t.Any]:
    """The report of one file, see docs/verification.md.

    `checksum`: "required" wants the file's own checksum or a recorded digest, "digest" is content with a recorded digest only. `timeout` bounds the
    programs of others: the checker and the scratch server.
    """
    return _Verification(path, level, target, now, dict(recorded or {}), max_age_s, checksum, user, server, jobs, timeout).run()


@dataclasses.dataclass
class _Verification:
    path: str
    level: str
    target: rep.Target | None
    now: float
    recorded: dict[str, t.Any]
    max_age_s: float | None
    checksum: str
    user: str | None
    server: str | None
    jobs: int | None
    timeout: float
    findings: list[rep.Finding] = dataclasses.field(default_factory=list)
    not_checked: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    engines: dict[str, str] = dataclasses.field(default_factory=dict)
    digest: str | None = None
    proof: dict[str, t.Any] | None = None
    proven_bytes: bool = False  # they are those whose digest was recorded

    def run(self) -> dict[str, t.Any]:
        contents = None
        try:
            found = os.stat(self.path)
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a regular file")
            with open(self.path, "rb") as handle:
                head = handle.read(512)
            foreign = sniff(head, found.st_size)
            wanted = self._wanted()
            self._size(found.st_size)
            if foreign:
                self.findings.append(rep.Finding("not-rdb", foreign, offset=0))
            else:
                contents = self._read(head, found.st_size, wanted)
        except OSError as exc:
            self.findings.append(rep.Finding("unreadable", exc.strerror or str(exc)))
        if contents:
            self._judge(contents)
        return self.report(contents)

    # layer 1: what was recorded

    def _wanted(self) -> list[tuple[str, str]]:
        """(digest, who says so)."""
        wanted = [(self.recorded["sha256"].lower(), "recorded")] if self.recorded.get("sha256") else []
        sidecar = self.path + ".sha256"
        try:
            with open(sidecar, encoding="utf-8") as handle:
                digest = sidecar_digest(handle.read(2**20), os.path.basename(self.path))
        except FileNotFoundError:
            return wanted
        except (OSError, UnicodeDecodeError):
            digest = None
        if digest:
            return [*wanted, (digest, os.path.basename(sidecar))]
        self.findings.append(rep.Finding("sidecar-unusable", f"{os.path.basename(sidecar)} holds no SHA-256 of this file"))
        return wanted

    def _size(self, size: int) -> None:
        if self.recorded.get("size") not in (None, size):
            self.findings.append(rep.Finding("size-mismatch", f"{size} bytes, recorded were {self.recorded['size']}"))

    def _compare_digest(self, wanted: list[tuple[str, str]], timed: str) -> None:
        self.digest, seconds = timed.split()
        self.seconds["digest"] = float(seconds)
        wrong = [f"{who} says {digest}" for digest, who in wanted if digest != self.digest]
        if wrong:
            self.findings.append(rep.Finding("digest-mismatch", f"its SHA-256 is {self.digest}, {', '.join(wrong)}"))
        self.proven_bytes = not wrong

    # layers 1 to 4 and the second opinion, side by side

    def _read(self, head: bytes, size: int, wanted: list[tuple[str, str]]) -> rep.Contents:
        deep = self.level != "fast"
        alone = self.jobs == 1
        beside = Beside(lambda: timed_digest(self.path)) if wanted and size > SMALL and not alone else None
        checkers: list[Checker] = []
        try:
            if deep and not alone:
                self._start_checkers(checkers, head, size)
            left_to_checkers = checkers if size > LARGE else []
            fed = any(checker.feed for checker in left_to_checkers)
            contents = self._walk(deep, left_to_checkers)
            if wanted:
                self._compare_digest(wanted, beside.result() if beside else timed_digest(self.path))
            self.findings += contents.findings
            judged = fed and self._accepted(checkers, contents)
            if deep and not judged:
                if fed or not checkers:
                    self._start_checkers(checkers, head, 0)
                judged = self._second_opinion(checkers[-1] if checkers else None, contents)
            if left_to_checkers and judged:
                self.not_checked.append(f"values beyond what {self.engines['checker']} looks at, such as scores that are no numbers")
                if checkers[-1].checksum_ok:
                    contents.checksum = "ok"
            elif left_to_checkers:
                contents = self._walk(deep, [])
                self.findings = [finding for finding in self.findings if finding not in contents.findings] + contents.findings
            return contents
        finally:
            if beside:
                beside.abandon()
            for checker in checkers:
                checker.abandon()

    def _walk(self, deep: bool, left_to: list[Checker]) -> rep.Contents:
        """The inside of values may be left to checkers: one that reads the file, which computes the checksum, too, or some that are fed."""
        started = time.monotonic()
        feeds = [checker.feed for checker in left_to if checker.feed]
        if left_to:
            # they keep the processors busy, and the walk costs least in few processes
            jobs = max(1, (self.jobs or len(os.sched_getaffinity(0))) - 1)
            contents = _rdb_walk.walk(self.path, now=self.now, duplicates=True, jobs=jobs, crc=bool(feeds), feeds=feeds)
        else:
            contents = _rdb_walk.walk(self.path, now=self.now, values=_rdb_values.check if deep else None, duplicates=deep, jobs=self.jobs)
        if feeds or not left_to:
            self.engines["crc64"] = _crc64.engine()
        self.seconds["walk"] = round(self.seconds.get("walk", 0.0) + time.monotonic() - started, 3)
        return contents

    def _start_checkers(self, checkers: list[Checker], head: bytes, size: int) -> None:
        """Add one that reads the file; or for a large one some that we feed, unless computing the checksum ourselves costs more than is won."""
        program = find_checker(*_header(head))
        if not program:
            return
        deadline = time.monotonic() + self.timeout
        fed = size > LARGE and _crc64.engine() == "anycrc"
        for dummy in range(min(self.jobs or len(os.sched_getaffinity(0)), _rdb_walk.MOST_JOBS) if fed else 1):
            checkers.append(Checker(program, None if fed else self.path, deadline))

    def _accepted(self, checkers: list[Checker], contents: rep.Contents) -> bool:
        """Whether checkers that were fed took all and have nothing against it. If not, only one that reads the file itself tells what is wrong where."""
        if not contents.fed or rep.verdict(contents.findings) == "fail" or not all(checker.result()[0] for checker in checkers):
            return False
        self.engines["checker"] = checkers[0].version()
        self.seconds["checker"] = max(checker.seconds for checker in checkers)
        return True

    def _second_opinion(self, checker: Checker | None, contents: rep.Contents) -> bool:
        """Whether there is one."""
        if not checker:
            self.not_checked.append("a second opinion: no redis-check-rdb or valkey-check-rdb for this file is installed")
            return False
        accepts, reason, offset, key = checker.result()
        if accepts is None:
            self.not_checked.append(f"a second opinion: {reason}")
            return False
        name = self.engines["checker"] = checker.version()
        self.seconds["checker"] = checker.seconds
        if accepts:
            return True
        if key is not None and any(finding.code == "empty-container" and finding.key == key for finding in contents.findings):
            # it stops at an empty key, which every server drops
            self.not_checked.append(f"a second opinion behind the empty key {key}: {name} stops there")
            return False
        self.findings.append(rep.Finding("checker-rejects", f"{name}: {reason}", offset, key))
        return True

    # layer 5: this target, this hour; layer 6: the scratch server

    def _judge(self, contents: rep.Contents) -> None:
        if self.proven_bytes:
            self.findings = [finding for finding in self.findings if finding.code not in UNCHECKSUMMED]
        elif self.checksum == "digest" and not self.digest:
            self.findings.append(rep.Finding("digest-missing", rep.CODES["digest-missing"][1]))
        self.findings += compare(self.recorded, contents)
        if self.target:
            self.findings += _target.judge(contents, self.target)
        else:
            self.findings.append(rep.Finding("no-target", rep.CODES["no-target"][1]))
        if contents.expired and not any(finding.code == "expired-keys" for finding in contents.findings):
            text = f"{contents.expired} keys whose expiry has passed: a primary drops them when it loads the file, as base of an AOF it keeps them"
            self.findings.append(rep.Finding("expired-keys", text))
        if "repl-id" in contents.aux:
            text = f"{rep.CODES['replication-configured'][1]}: replicas of the server that wrote it will ask for what followed"
            self.findings.append(rep.Finding("replication-configured", text))
        self._age(contents)
        if self.level == "proof":
            if rep.verdict(self.findings) == "fail":
                self.not_checked.append("loading: a scratch server is not asked to load what failed already")
            else:
                self._prove(contents)

    def _age(self, contents: rep.Contents) -> None:
        if contents.taken_at is not None and contents.taken_at > self.now + 60:
            self.findings.append(rep.Finding("taken-in-future", f"{contents.taken_at - self.now:.0f} s from now, by its own clock"))
        if self.max_age_s is None:
            return
        if contents.taken_at is None:
            self.findings.append(rep.Finding("age-unknown", "its age cannot be held against the RPO"))
        elif self.now - contents.taken_at > self.max_age_s:
            text = f"taken {self.now - contents.taken_at:.0f} s ago, {self.max_age_s:.0f} s are allowed"
            self.findings.append(rep.Finding("snapshot-too-old", text))

    def _prove(self, contents: rep.Contents) -> None:
        # not above: a client of Redis and TLS would be a fifth of the time that a small file takes
        from ansible_collections.titan.disaster_recovery.plugins.module_utils import _scratch

        started = time.monotonic()
        deadline = time.time() + self.timeout
        findings, found = _scratch.proof(self.path, contents, self.target, user=self.user or "", deadline=deadline, server=self.server or "")
        if contents.functions and any(finding.code == "load-refused" for finding in findings):
            # which library it was
            program = self.server or _scratch.SERVERS[self.target.server if self.target else "redis"]
            findings += _scratch.function_canary(self._libraries(contents), program, user=self.user or "", deadline=deadline)
        self.findings += findings
        if found:
            self.engines["scratch"] = found["version"]
            if self.recorded.get("fingerprint") not in (None, found["fingerprint"]):
                self.findings.append(rep.Finding("contents-differ", "sampled keys have other content than was recorded"))
            self.proof = {name: found[name] for name in ("keyspace", "loaded", "expired", "used_memory", "fingerprint")}
            self.proof["elements"] = found["typed"]["elements"]
        self.seconds["scratch"] = round(time.monotonic() - started, 3)

    def _libraries(self, contents: rep.Contents) -> list[bytes]:
        sources = []
        with open(self.path, "rb") as handle:
            for offset, size in contents.functions:
                handle.seek(offset)
                sources.append(_rdb_values.string(handle.read(size), 0)[0])
        return sources

    # the report

    def report(self, contents: rep.Contents | None) -> dict[str, t.Any]:
        findings = by_severity(self.findings)
        taken_at = contents.taken_at if contents else None
        return {
            "path": self.path,
            "kind": "rdb",
            "level": self.level,
            "verdict": rep.verdict(findings),
            "findings": [finding.as_dict() for finding in findings],
            "contents": describe(contents) if contents else None,
            "checksum": contents.checksum if contents else "unknown",
            "digest": self.digest,
            "digest_matched": self.proven_bytes,
            "taken_at": taken_at,
            "age_s": round(self.now - taken_at, 1) if taken_at is not None else None,
            "proof": self.proof,
            "loads_on": _target.loads_on(contents) if contents else [],
            "engines": self.engines,
            "seconds": self.seconds,
            "not_checked": self.not_checked + (self._left_out(contents) if contents else []),
        }

    def _left_out(self, contents: rep.Contents) -> list[str]:
        left = []
        if self.level == "fast":
            left.append("the inside of values and duplicate keys (level deep)")
        if self.level != "proof":
            functions = f", {len(contents.functions)} function libraries" if contents.functions else ""
            left.append(f"loading by a server{functions} (level proof)")
        if not self.proven_bytes:
            left.append("that it is the file that was saved: no SHA-256 of it matched")
        return left


def by_severity(findings: t.Iterable[rep.Finding]) -> list[rep.Finding]:
    """The most severe first, then in the order of the file."""
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.offset is None, finding.offset or 0))


def describe(contents: rep.Contents) -> dict[str, t.Any]:
    """The contents as plain JSON; the samples are for the proof alone."""
    return {
        "size": contents.size,
        "format": contents.magic,
        "version": contents.version,
        "server": server_of(contents),
        "keys": _keys(contents.keyspace),
        "expires": sum(database.get("expires", 0) for database in contents.keyspace.values()),
        "expired": contents.expired,
        "keyspace": contents.keyspace,
        "types": contents.types,
        "encodings": {str(kind): count for kind, count in contents.encodings.items()},
        "classes": contents.classes,
        "expiry": contents.expiry,
        "modules": contents.modules,
        "functions": len(contents.functions),
        "aux": contents.aux,
    }


def server_of(contents: rep.Contents) -> str | None:
    """The server that wrote it, by its own word."""
    for field, name in (("valkey-ver", "Valkey"), ("redis-ver", "Redis")):
        if field in contents.aux:
            return f"{name} {contents.aux[field]}"
    return None


def evidence(report: dict[str, t.Any]) -> str:
    """One line on a report: the reasons for its verdict, or what was found good."""
    reasons = [finding for finding in report["findings"] if finding["severity"] != rep.WARNING]
    if not reasons:
        contents = report["contents"]
        return printable(f"RDB {contents['version']} by {contents['server'] or 'an unnamed server'}, {contents['keys']} keys, checksum {report['checksum']}")
    told = [f"{finding['text']} [{finding['code']}{' at ' + str(finding['offset']) if 'offset' in finding else ''}]" for finding in reasons[:3]]
    return printable("; ".join(told)) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")


def printable(text: str) -> str:
    """Text out of a file, safe for a terminal: no control, format or surrogate character is left."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text)


def broken_off(path: str, kind: str, level: str, text: str) -> dict[str, t.Any]:
    """The report of a file whose verification did not come to an end."""
    broken = _Verification(path, level, None, 0.0, {}, None, "required", None, None, None, 0.0, findings=[rep.Finding("verifier-failed", text)])
    return {**broken.report(None), "kind": kind}
