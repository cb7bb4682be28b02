# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""What verification says of an RDB file: findings, contents and the verdict. Plain data, no input or output."""

from __future__ import annotations

import dataclasses
import typing as t

FATAL = "fatal"  # the file is damaged, or this target cannot serve it: verdict fail
UNPROVEN = "unproven"  # nothing can tell whether it is right: verdict unknown
DATA_LOSS = "data loss"  # it loads, but not all of it comes back: verdict unknown
WARNING = "warning"  # worth knowing: no effect on the verdict

# Every code with its severity and what it means; a finding may not use another one.
CODES: dict[str, tuple[str, str]] = {
    # the file
    "unreadable": (FATAL, "the file cannot be read"),
    "not-rdb": (FATAL, "the file is something else"),
    "truncated": (FATAL, "the file ends too early"),
    "trailing-bytes": (FATAL, "bytes follow the end of the data"),
    "checksum-mismatch": (FATAL, "the CRC64 in the footer is of other bytes"),
    "checksum-disabled": (UNPROVEN, "written without a checksum: a changed value cannot be seen"),
    "checksum-absent": (UNPROVEN, "its version has no checksum: a changed value cannot be seen"),
    "digest-missing": (UNPROVEN, "no SHA-256 of it was recorded, and the policy asks for one"),
    "digest-mismatch": (FATAL, "not the file whose SHA-256 was recorded"),
    "sidecar-unusable": (UNPROVEN, "the SHA-256 beside it cannot be read"),
    "size-mismatch": (FATAL, "not the size that was recorded"),
    "version-differs": (FATAL, "the version digits are not those that were recorded"),
    "contents-differ": (FATAL, "the counts are not those that were recorded"),
    "unsupported-version": (UNPROVEN, "newer than this reader"),
    "unsupported-type": (UNPROVEN, "a value type that this reader does not know"),
    # structure
    "bad-opcode": (FATAL, "no opcode and no type of this version"),
    "bad-length": (FATAL, "a length that cannot be"),
    "count-mismatch": (FATAL, "other counts than the file announces"),
    "dangling-expiry": (FATAL, "an expiry or eviction hint without a key"),
    "duplicate-key": (FATAL, "Redis panics on loading it"),
    "corrupt-value": (FATAL, "a value breaks its encoding"),
    "duplicate-member": (FATAL, "a field or member stands twice"),
    "empty-container": (DATA_LOSS, "the server drops the key on loading"),
    "checker-rejects": (FATAL, "redis-check-rdb rejects it"),
    # this target
    "version-too-new": (FATAL, "the target's version does not read this RDB version"),
    "foreign-server": (FATAL, "the target is another server family"),
    "database-beyond-target": (FATAL, "a database index that the target does not have"),
    "module-missing": (FATAL, "module data, and the target has no such module"),
    "module-unknown": (UNPROVEN, "module data, and nothing says which modules the target has"),
    "function-broken": (FATAL, "the server refuses a function library"),
    "eviction-forecast": (FATAL, "the target's maxmemory would evict keys"),
    "memory-forecast": (FATAL, "the target's maxmemory would refuse writes"),
    "memory-unknown": (UNPROVEN, "the target limits its memory, and the file does not say how much its data takes"),
    "load-refused": (FATAL, "a scratch server does not load it"),
    "load-differs": (FATAL, "a scratch server holds other data than the file"),
    "not-proven": (UNPROVEN, "no scratch server could be asked"),
    "snapshot-too-old": (FATAL, "older than the RPO allows"),
    "age-unknown": (UNPROVEN, "it does not say when it was taken"),
    "verifier-failed": (UNPROVEN, "verification itself broke off"),
    "taken-in-future": (WARNING, "taken later than now: one of two clocks is wrong"),
    "expired-keys": (WARNING, "keys whose expiry has passed: gone when it is loaded"),
    "no-target": (WARNING, "no target was given: its limits were not held against the file"),
    # append-only files
    "aof-manifest": (FATAL, "the manifest is missing, or the server refuses it"),
    "aof-missing": (FATAL, "a file of the AOF is missing or empty"),
    "aof-orphan": (FATAL, "a file that the manifest does not name: its commands would be dropped silently"),
    "aof-leftover": (WARNING, "a file that is no longer part of the AOF"),
    "aof-nothing": (FATAL, "neither keys nor commands: the server would start empty"),
    "aof-layout": (FATAL, "the target's version does not read an AOF of several files"),
    "aof-corrupt": (FATAL, "bytes that are no command"),
    "aof-command": (FATAL, "a command that the target does not know, or with a wrong number of words"),
    "aof-command-unjudged": (UNPROVEN, "a command of a module or of a newer server"),
    "aof-transaction": (FATAL, "MULTI and EXEC do not pair"),
    "aof-tail": (DATA_LOSS, "the last command or transaction is incomplete: the server drops it"),
    "aof-annotation": (UNPROVEN, "an annotation that no known server writes"),
    "aof-clock": (WARNING, "timestamps that go back"),
    "aof-values-unprotected": (UNPROVEN, "an AOF has no checksum: without recorded digests a changed value or a lost command cannot be seen"),
    "replication-configured": (WARNING, "carries a replication id and offset"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One reason. `offset` is a byte offset in the file, `key` the key that it concerns (undecodable bytes as \\xNN)."""

    code: str
    text: str
    offset: int | None = None
    key: str | None = None
    database: int | None = None
    file: str | None = None  # where a report is about several files

    @property
    def severity(self) -> str:
        return CODES[self.code][0]

    def as_dict(self) -> dict[str, t.Any]:
        found = {"code": self.code, "severity": self.severity, "text": self.text}
        found.update({name: value for name, value in dataclasses.asdict(self).items() if name not in found and value is not None})
        return found


@dataclasses.dataclass
class Contents:
    """What a file holds, whatever the target. Filled by the walk."""

    size: int = 0
    magic: str = ""  # REDIS or VALKEY
    version: int = 0  # of the RDB format
    checksum: str = "unknown"  # ok, mismatch, disabled, absent, unknown
    aux: dict[str, str] = dataclasses.field(default_factory=dict)
    # "db0" -> {"keys": n, "expires": n}; keys of SELECTDB order do not matter
    keyspace: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    types: dict[str, int] = dataclasses.field(default_factory=dict)  # TYPE name -> keys
    encodings: dict[int, int] = dataclasses.field(default_factory=dict)  # RDB value type -> keys
    # key class (the key up to its last colon, or the whole key) -> {"keys", "expires", "expired"}; the rest under "(other)" beyond a limit
    classes: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    # time to live at `now`: "expired", "1m", "1h", "1d", "30d", "later" -> keys
    expiry: dict[str, int] = dataclasses.field(default_factory=dict)
    expired: int = 0  # keys that a primary drops on loading, at `now`
    modules: dict[str, int] = dataclasses.field(default_factory=dict)  # module type name -> values and aux fields
    functions: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (offset, length on disk) of each FUNCTION2 string, its length header included
    # keys without expiry, spread over the file: (database, key as bytes)
    samples: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    fed: bool = False  # the programs that were to be fed took all they were to get

    @property
    def taken_at(self) -> float | None:
        """When the snapshot was made, in seconds since the epoch."""
        text = self.aux.get("ctime", "")
        return float(text) if text.isdecimal() and len(text) <= 11 else None


@dataclasses.dataclass(frozen=True)
class Target:
    """The server that is to load a file. None: not known."""

    server: str = "redis"  # redis or valkey
    version: str | None = None
    databases: int | None = None
    maxmemory: int | None = None  # bytes, 0 without a limit
    policy: str | None = None  # maxmemory-policy
    modules: tuple[str, ...] | None = None  # names as MODULE LIST gives them
    loadmodule: tuple[tuple[str, ...], ...] = ()  # words of each loadmodule directive: a scratch server loads the same modules
    renamed: t.Mapping[str, str] | None = None  # rename-command: new names by upper-case name, empty when disabled


def text_of(raw: bytes) -> str:
    """A key for a finding."""
    text = raw[:200].decode("utf-8", "backslashreplace")
    return text if len(raw) <= 200 else text + "..."


def verdict(findings: t.Iterable[Finding]) -> str:
    """pass, fail or unknown."""
    severities = {finding.severity for finding in findings}
    if FATAL in severities:
        return "fail"
    return "unknown" if severities & {UNPROVEN, DATA_LOSS} else "pass"
