# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The proof of a staged dump: its bytes, its structure and what a scratch Redis makes of it, each held against the manifest.

Its digest is taken while it is written, and it is walked while the scratch Redis loads it: both cost next to no time of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _rdb_walk, _redis, _restore_point, _scratch, _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_report as rep

_BLOCK = 1 << 20
# What cannot be told from the file alone, and is told by its digest or by the scratch Redis.
_SETTLED = ("checksum-disabled", "checksum-absent", "module-unknown", "memory-unknown")


class Faulty(Exception):
    """The dump must not go live, and every reason."""


class Sink:
    """A file that is hashed while a program writes it, through a pipe."""

    def __init__(self, path: str) -> None:
        self.fault: OSError | None = None
        self._digest = hashlib.sha256()
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _BLOCK)
        self.stream = os.fdopen(writing, "wb", buffering=0)
        self._thread = threading.Thread(target=self._copy, args=(reading, path), daemon=True)
        self._thread.start()

    def _copy(self, reading: int, path: str) -> None:
        try:
            with os.fdopen(reading, "rb", buffering=0) as source, open(path, "wb") as target:
                while block := source.read(_BLOCK):
                    self._digest.update(block)
                    target.write(block)
        except OSError as exc:
            self.fault = exc  # the writer is told by its broken pipe

    def close(self) -> str:
        """SHA-256 of what was written; OSError when it could not be."""
        self.stream.close()
        self._thread.join()
        if self.fault:
            raise self.fault
        return self._digest.hexdigest()


def prove(
    dump: str,
    digest: str,
    details: dict[str, t.Any],
    canary: dict[str, t.Any] | None,
    target: rep.Target,
    user: str,
    deadline: float,
    *,
    witness: bool = False,
) -> tuple[rep.Contents, dict[str, t.Any]]:
    """What the walk and the scratch Redis found in `dump`, whose SHA-256 is `digest`; Faulty unless both find what the manifest recorded in `details`.

    ``NotProven`` of the scratch comes through: it says nothing of the dump. Of a `witness` each sampled key is digested, for others to be held against.
    """
    with open(dump, "rb") as handle:
        foreign = _rdb.sniff(handle.read(512), os.path.getsize(dump))
    if foreign:
        raise Faulty(f"it is no RDB file: {foreign}")
    if digest != details["sha256"]:
        raise Faulty(f"the dump is not the one that was saved (SHA-256 {digest[:12]}..., {details['sha256'][:12]}... in the manifest)")
    directory = os.path.dirname(dump)
    walking = _rdb.Beside(lambda: _walk_and_sync(dump))
    contents: rep.Contents | None = None
    try:
        with _scratch.running(directory, user, deadline, dump, "", target) as client:
            found = _scratch.examine(client, canary)
            contents = walking.result()
            found["fingerprint"] = _scratch.fingerprint(client, contents.samples)
            if witness:
                found["digests"] = _scratch.digests(client, contents.samples)
    except _scratch.Refused as exc:
        contents = contents or walking.result()
        raise Faulty("; ".join([*_faults(contents, details, target), f"a scratch Redis does not load it: {exc}"])) from exc
    finally:
        walking.abandon()
    expected = {**details, "canary": canary and details["canary"]}
    problems = _faults(contents, details, target)
    problems += _scratch.judge(expected, found)
    problems += [finding.text for finding in _target.memory(found["used_memory"], target)]
    if found["fingerprint"] != details["fingerprint"]:
        problems.append(f"the fingerprint is {_short(found['fingerprint'])}, {_short(details['fingerprint'])} in the manifest")
    if problems:
        raise Faulty("; ".join(dict.fromkeys(problems)))
    return contents, found


def _walk_and_sync(dump: str) -> rep.Contents:
    """Beside the scratch Redis there is time to bring the dump to the disk, too."""
    with open(dump, "rb") as handle:
        os.fsync(handle.fileno())
    return _rdb_walk.walk(dump, now=time.time(), jobs=1)


def _short(fingerprint: dict[str, t.Any]) -> str:
    return f"{fingerprint['sha256'][:12]}... of {fingerprint['keys']} keys"


def _faults(contents: rep.Contents, details: dict[str, t.Any], target: rep.Target) -> list[str]:
    """Reasons against a dump with the recorded digest, from its structure, the manifest and the target."""
    findings = [*contents.findings, *_rdb.compare(details, contents), *_target.judge(contents, target)]
    if contents.checksum != details["checksum"]:
        findings.append(rep.Finding("checksum-mismatch", f"its checksum is {contents.checksum}, the manifest says {details['checksum']}"))
    texts = []
    for finding in findings:
        if finding.severity == rep.FATAL or (finding.severity == rep.UNPROVEN and finding.code not in _SETTLED):
            place = "" if finding.offset is None else f" at byte {finding.offset}"
            texts.append(f"{finding.text} [{finding.code}{place}]")
    return texts


def invariant_faults(invariants: list[dict[str, t.Any]], contents: rep.Contents) -> list[str]:
    """What the operator knows of the data and this file does not fulfil; each has a `class` and `min`, `max` or `expires_max`."""
    faults = []
    for rule in invariants:
        counts = contents.classes.get(rule["class"], {})
        keys, expires = counts.get("keys", 0), counts.get("expires", 0)
        if rule.get("min") is not None and keys < rule["min"]:
            faults.append(f"{rule['class']} has {keys} keys, at least {rule['min']} must be there")
        if rule.get("max") is not None and keys > rule["max"]:
            faults.append(f"{rule['class']} has {keys} keys, at most {rule['max']} can be right")
        if rule.get("expires_max") is not None and expires > rule["expires_max"]:
            faults.append(f"{expires} keys of {rule['class']} have an expiry, at most {rule['expires_max']} may")
    return faults


# A class may shrink by so many keys whatever its size: queues and locks come and go.
_FEW = 5


def class_faults(details: dict[str, t.Any], contents: rep.Contents, keyspace: dict[str, dict[str, int]], tolerance: float) -> list[str]:
    """Where data without a manifest of its own has far fewer keys than a restore point's manifest (its `details`); keys with an expiry may be gone."""
    faults = []
    for name, counts in details.get("classes", {}).items():
        want, have = counts["keys"] - counts["expires"], contents.classes.get(name, {"keys": 0})["keys"]
        if want - have > max(_FEW, tolerance * want):
            faults.append(f"{name} has {have} keys, the newest restore point has {want} without an expiry")
    for name, counts in details.get("keyspace", {}).items():
        want, have = counts["keys"] - counts["expires"], keyspace.get(name, {"keys": 0})["keys"]
        if want - have > max(_FEW, tolerance * want):
            faults.append(f"{name} has {have} keys, the newest restore point has {want} without an expiry")
    return faults


def losses(contents: rep.Contents) -> list[str]:
    """Notes on what does not come back although the file is good: keys whose time was over, by their class."""
    gone = {name: counts["expired"] for name, counts in contents.classes.items() if counts.get("expired")}
    notes = []
    if gone:
        listed = ", ".join(f"{name} {count}" for name, count in sorted(gone.items(), key=lambda item: -item[1])[:10])
        notes.append(f"{contents.expired} keys expired since the snapshot and do not come back: {listed}")
    dropped = sum(finding.code == "empty-container" for finding in contents.findings)
    if dropped:
        notes.append(f"{dropped} empty keys are dropped on loading")
    return notes


def expectation(details: dict[str, t.Any], canary: dict[str, t.Any], contents: rep.Contents, used_memory: int, server: str) -> dict[str, t.Any]:
    """What the live server must hold after the swap, and what the swap holds against the limits of its configuration. Plain JSON."""
    recorded = details.get("canary")
    return {
        **{name: details[name] for name in ("keyspace", "expired", "databases", "fingerprint")},
        "canary": {**canary, **recorded} if recorded else None,
        "samples": [[database, key.hex()] for database, key in contents.samples],
        "facts": {
            "server": server,
            "used_memory": used_memory,
            "contents": {"magic": contents.magic, "version": contents.version, "keyspace": contents.keyspace, "modules": contents.modules},
        },
    }


def manifest_section(
    conf: _redis.RedisConf, version: str, size: int, contents: rep.Contents, found: dict[str, t.Any], modules: list[str] | None
) -> dict[str, t.Any]:
    """The manifest's redis section, but for the digest of the dump."""
    section = {
        "version": version,
        "databases": conf.databases,
        "size": size,
        "rdb_version": contents.version,
        "checksum": contents.checksum,
        "keyspace": found["keyspace"],
        "expired": found["expired"],
        "types": contents.types,
        # a class of a single key could be the name of that key, and a manifest is not encrypted
        "classes": {name: {"keys": counts["keys"], "expires": counts["expires"]} for name, counts in contents.classes.items() if counts["keys"] > 1},
        "expiry": contents.expiry,
        "fingerprint": found["fingerprint"],
        "used_memory": found["used_memory"],
        "canary": found["canary"],
        "limits": {"databases": conf.databases, "maxmemory": conf.maxmemory, "policy": conf.policy, "modules": modules},
    }
    _restore_point.require_redis({**section, "sha256": "0" * 64})
    return section
