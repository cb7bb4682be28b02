# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The server that is to load an RDB file: what it reads, what it has room for. Pure: no input or output happens here."""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format, _redis_conf
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding, Target

# The first version of a server, and the newest RDB version that it reads from there on.
# Redis 6.2.14, 7.0.15, 8.2.3 and Valkey 9.1.2 are measured in the tests. Redis 7.2.6 and 7.4.1 and Valkey 8.0.1 were measured once, by their checkers
# and what they wrote; older ones are by the history of rdb.h (RDB_VERSION), 8.6 and later by public notes that quote it.
_READS = {
    "redis": (((4, 0), 8), ((5, 0), 9), ((7, 0), 10), ((7, 2), 11), ((7, 4), 12), ((8, 6), 13), ((8, 8), 14), ((8, 10), 15)),
    "valkey": (((7, 2), 11), ((9, 0), _rdb_format.VALKEY), ((9, 1), _rdb_format.VALKEY)),
}
_NAMES = {"redis": "Redis", "valkey": "Valkey"}
# Valkey numbers its versions from 80 on under a header of its own; REDIS 12 and later it takes for foreign.
_NEWEST_REDIS_IN_VALKEY = 11
_FAMILIES = {
    "Redis 6.2": ("redis", (6, 2)),
    "Redis 7.0": ("redis", (7, 0)),
    "Redis 7.2": ("redis", (7, 2)),
    "Redis 7.4": ("redis", (7, 4)),
    "Redis 8.x": ("redis", (8, 0)),
    "Valkey 7.2": ("valkey", (7, 2)),
    "Valkey 8": ("valkey", (8, 0)),
    "Valkey 9": ("valkey", (9, 0)),
}
# Modules by the name of a data type in the file, where MODULE LIST gives another one. FalkorDB's is measured, the others are as their sources register them.
_MODULES = {
    "ReJSON-RL": ("ReJSON", "json"),
    "MBbloom--": ("bf",),
    "MBbloomCF": ("bf",),
    "CMSk-TYPE": ("bf",),
    "TopK-TYPE": ("bf",),
    "TDIS-TYPE": ("bf",),
    "bloomfltr": ("bf",),
    "TSDB-TYPE": ("timeseries",),
    "graphdata": ("graph",),
    "graphmeta": ("graph",),
    "ft_index0": ("search",),
    "ft_invidx": ("search",),
    "scdtype00": ("search",),
    "trietype0": ("search",),
}
# Module types that a server brings along, and since when.
_BUILT_IN = {("redis", "vectorset"): (8, 0)}
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")
_SHORT = re.compile(r"(redis|valkey):(\d+\.\d+(?:\.\d+)*)")


def server_and_version(line: str) -> tuple[str, str]:
    """("redis", "7.0.15") out of what `redis-server --version` or `valkey-server --version` prints; ValueError when it holds no version."""
    found = _VERSION.search(line)
    if not found:
        raise ValueError(f"no version in {line!r}")
    return "valkey" if "valkey" in line.lower() else "redis", found[0]


def of_server(conf_text: str, version_line: str) -> Target:
    """The target that this redis.conf and this `--version` describe (empty: not known). RedisError or ValueError when they are not understood."""
    conf = _redis_conf.parse_conf(conf_text)
    server, version = server_and_version(version_line) if version_line else ("redis", None)
    lines = [line.strip() for line in conf_text.splitlines()]
    loadmodule = tuple(tuple(_redis_conf.split(line)[1:]) for line in lines if line.lower().startswith("loadmodule "))
    return Target(
        server=server,
        version=version,
        databases=conf.databases,
        maxmemory=conf.maxmemory,
        policy=conf.policy,
        # A path does not tell the name that a module gives itself.
        modules=None if loadmodule else (),
        loadmodule=loadmodule,
        renamed=conf.renamed,
    )


def parse(text: str) -> Target:
    """A target as a person gives it: "redis:7.0.15", "valkey:9.1.2" or a JSON object with the fields of Target; ValueError when it is neither."""
    short = _SHORT.fullmatch(text.strip())
    if short:
        return Target(server=short[1], version=short[2])
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ValueError(f"a target is written redis:7.0.15, valkey:9.1.2 or as a JSON object, not {text!r}")
    unknown = set(facts) - {field.name for field in dataclasses.fields(Target)}
    if unknown:
        raise ValueError(f"a target has no {', '.join(sorted(unknown))}")
    for name in ("databases", "maxmemory"):
        value = facts.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"the target's {name} is not a number")
    version = facts.get("version")
    if version is not None and not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise ValueError(f"the target's version is not a version: {version!r}")
    if facts.get("server", "redis") not in _NAMES:
        raise ValueError(f"the target's server is redis or valkey, not {facts['server']!r}")
    if not isinstance(facts.get("policy", ""), str):
        raise ValueError("the target's policy is not a maxmemory-policy")
    if "modules" in facts:
        facts["modules"] = _words(facts["modules"], "modules")
    facts["loadmodule"] = tuple(_words(words, "loadmodule") for words in facts.get("loadmodule", []))
    return Target(**facts)


def _words(value: t.Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"the target's {name} is not a list of words")
    return tuple(value)


def family(version: str) -> tuple[int, int]:
    """(7, 0) of "7.0.15": within it, servers read the same files."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def judge(contents: Contents, target: Target) -> list[Finding]:
    """What keeps this target from serving this file as it is, as far as counts, names and numbers tell it."""
    findings: list[Finding] = []
    missing = [name for name in ("version", "databases", "maxmemory") if getattr(target, name) is None]
    if missing:
        findings.append(Finding("no-target", f"not known of the target, so not held against the file: {', '.join(missing)}"))
    if target.version is not None:
        findings += _format(contents, target.server, family(target.version))
    if target.databases is not None:
        for name, counts in contents.keyspace.items():
            index = int(name.removeprefix("db"))
            if index >= target.databases:
                text = f"{counts['keys']} keys in database {index}, the target has databases 0 to {target.databases - 1} and would not start"
                findings.append(Finding("database-beyond-target", text, database=index))
    findings += _modules(contents, target)
    if target.maxmemory:
        used = contents.aux.get("used-mem", "")
        if used.isdecimal():
            findings += memory(int(used), target)
        else:
            findings.append(Finding("memory-unknown", f"maxmemory is {target.maxmemory} bytes, and the file does not record used-mem"))
    return findings


def memory(used: int, target: Target) -> list[Finding]:
    """Whether data that takes so many bytes fits the target's maxmemory."""
    if not target.maxmemory or used <= target.maxmemory:
        return []
    text = f"the data takes {used} bytes, {used - target.maxmemory} more than the target's maxmemory of {target.maxmemory}"
    policy = target.policy or "noeviction"
    if policy == "noeviction":
        return [Finding("memory-forecast", f"{text}: every write would be refused")]
    return [Finding("eviction-forecast", f"{text}: {policy} would evict keys at the first command")]


def loads_on(contents: Contents) -> list[str]:
    """The version families that read such a file, by its header; modules and limits are a matter of the single server."""
    if not contents.magic:
        return []
    return [name for name, (server, version) in _FAMILIES.items() if not _format(contents, server, version)]


def _format(contents: Contents, server: str, version: tuple[int, int]) -> list[Finding]:
    if not contents.magic:
        return []  # not an RDB file: that was said already
    name = f"{_NAMES[server]} {version[0]}.{version[1]}"
    header = f"RDB {contents.version}" if contents.magic == "REDIS" else f"Valkey RDB {contents.version}"
    rows = _READS[server]
    if version < rows[0][0]:
        return [Finding("no-target", f"what {name} reads is not known: not held against the file")]
    since, newest = [row for row in rows if row[0] <= version][-1]
    if contents.magic == "VALKEY" and server == "redis":
        return [Finding("foreign-server", f"{header}: Redis reads no file of Valkey 9 and later", offset=0)]
    if server == "valkey" and contents.magic == "REDIS" and contents.version > _NEWEST_REDIS_IN_VALKEY:
        return [Finding("foreign-server", f"{header} is of Redis: Valkey reads Redis up to RDB {_NEWEST_REDIS_IN_VALKEY}", offset=0)]
    if contents.version <= newest:
        return []
    if (since, newest) == rows[-1] and version > since:
        return [Finding("no-target", f"whether {name} reads {header} is not known: not held against the file")]
    return [Finding("version-too-new", f"{header}: {name} reads up to RDB {newest}", offset=0)]


def _modules(contents: Contents, target: Target) -> list[Finding]:
    findings = []
    have = None if target.modules is None else {name.lower() for name in target.modules}
    for kind, count in contents.modules.items():
        since = _BUILT_IN.get((target.server, kind))
        if since and target.version is not None and family(target.version) >= since:
            continue
        names = {name.lower() for name in (kind, *_MODULES.get(kind, ()))}
        if have is None:
            findings.append(Finding("module-unknown", f"{count} values of the module type {kind}"))
        elif not names & have:
            listed = ", ".join(target.modules or ()) or "no modules"
            findings.append(Finding("module-missing", f"{count} values of the module type {kind}, the target has {listed}"))
    return findings
