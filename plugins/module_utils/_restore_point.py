# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The restore point: its manifest, names and rules. Pure: no input or output happens here.

Layout of a store, below its path or prefix::

    <environment id>/points/<restore point id>/manifest.json      written last: it commits the restore point
    <environment id>/points/<restore point id>/<object>           Redis and configuration of that moment
    <environment id>/objects/<object>                             releases and bundles, shared by restore points, named by content
"""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

FORMAT = 1
KINDS = ("bootstrap", "bundle", "config", "app", "redis")
# What a server of several may have none of. Whether it has is for whoever reads the manifest to know.
OPTIONAL = ("app", "redis")
_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4,16}")
_KEY = re.compile(r"(points/[0-9A-Za-z-]+|objects)/[0-9A-Za-z._-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(Exception):
    """A manifest that cannot be used, and why."""


def point_prefix(environment_id: str, point_id: str) -> str:
    """Where the manifest of a restore point lies, relative to the store."""
    return f"{environment_id}/points/{point_id}"


def canonical_digest(manifest: dict[str, t.Any]) -> str:
    """SHA-256 of the manifest without its seal, keys sorted: what the seal encloses."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse(text: str | bytes, needs: t.Container[str] = OPTIONAL) -> dict[str, t.Any]:
    """Read and check a manifest that must have, of what is optional, what it `needs`. Each complaint names the path in it."""
    try:
        manifest = json.loads(text)
    except ValueError as exc:
        raise ManifestError(f"not JSON: {exc}") from exc
    if not isinstance(manifest, dict):
        raise ManifestError("not a JSON object")
    if manifest.get("format") != FORMAT:
        raise ManifestError(f"format is {manifest.get('format')!r}, this release reads {FORMAT}")
    _require(manifest, "", {"id": str, "environment_id": str, "taken_at": (int, float), "objects": dict, "server": dict, "seal": str})
    if not _ID.fullmatch(manifest["id"]):
        raise ManifestError(f"id {manifest['id']!r} is not a restore point id")
    for kind in KINDS:
        entry = manifest["objects"].get(kind)
        if kind in OPTIONAL and kind not in needs and kind not in manifest["objects"]:
            continue
        if not isinstance(entry, dict):
            raise ManifestError(f"objects.{kind} is missing")
        _require(entry, f"objects.{kind}.", {"key": str, "size": int, "sha256": str, "sealed": bool})
        if not _KEY.fullmatch(entry["key"]) or not _SHA256.fullmatch(entry["sha256"]):
            raise ManifestError(f"objects.{kind}: key or sha256 is malformed")
    if "redis" in manifest["objects"]:
        _require(manifest, "", {"redis": dict})
        require_redis(manifest["redis"])
    return manifest


def require_redis(section: dict[str, t.Any]) -> None:
    """What the restore leans on is in the redis section of a manifest."""
    kinds = {"version": str, "databases": int, "keyspace": dict, "expired": int, "size": int, "sha256": str, "rdb_version": int, "checksum": str}
    _require(section, "redis.", {**kinds, "types": dict, "expiry": dict, "fingerprint": dict, "limits": dict})
    if not _SHA256.fullmatch(section["sha256"]):
        raise ManifestError("redis.sha256 is malformed")
    _require(section["fingerprint"], "redis.fingerprint.", {"keys": int, "sha256": str})
    _require(section["limits"], "redis.limits.", {"databases": int, "maxmemory": int, "policy": str})


def _require(mapping: dict[str, t.Any], path: str, types: dict[str, t.Any]) -> None:
    for key, kind in types.items():
        if not isinstance(mapping.get(key), kind):
            raise ManifestError(f"{path}{key} is missing or not {getattr(kind, '__name__', 'a number')}")


def total_keys(keyspace: dict[str, dict[str, int]]) -> int:
    """Keys over all databases."""
    return sum(database["keys"] for database in keyspace.values())


def compare_keyspace(expected: dict[str, dict[str, int]], found: dict[str, dict[str, int]]) -> list[str]:
    """Differences between what the manifest counted and what was loaded; keys with an expiry may have gone meanwhile."""
    problems = []
    for name in sorted(set(expected) | set(found)):
        want = expected.get(name, {"keys": 0, "expires": 0})
        have = found.get(name, {"keys": 0, "expires": 0})
        if not want["keys"] - want["expires"] <= have["keys"] <= want["keys"]:
            problems.append(f"{name}: {have['keys']} keys, the manifest counted {want['keys']} of which {want['expires']} may expire")
    return problems
