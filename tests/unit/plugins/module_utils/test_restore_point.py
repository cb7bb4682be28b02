# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _restore_point as points

ENTRY = {"key": "objects/a.tar", "size": 1, "sha256": "0" * 64, "sealed": True, "details": {}}

REDIS = {
    "version": "7",
    "databases": 16,
    "keyspace": {},
    "expired": 0,
    "size": 1,
    "sha256": "0" * 64,
    "rdb_version": 10,
    "checksum": "ok",
    "types": {},
    "expiry": {},
    "fingerprint": {"keys": 0, "sha256": "0" * 64},
    "limits": {"databases": 16, "maxmemory": 0, "policy": "noeviction"},
}


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "id": "20260101T000000Z-abcdef",
        "environment_id": "lab",
        "taken_at": 1.0,
        "server": {},
        "seal": "x",
        "objects": {kind: dict(ENTRY) for kind in points.KINDS},
        "redis": dict(REDIS),
        **changes,
    }


def test_a_good_manifest() -> None:
    assert points.parse(json.dumps(manifest()).encode()) == manifest()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ('{"format": 1', "not JSON"),
        ("<html>", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "format is None"),
        ('{"format": 2}', "format is 2"),
    ],
)
def test_damaged(text: str, complaint: str) -> None:
    with pytest.raises(points.ManifestError, match=complaint):
        points.parse(text)


@pytest.mark.parametrize("name", ["id", "environment_id", "taken_at", "objects", "redis", "server", "seal"])
def test_each_part_is_needed(name: str) -> None:
    broken = manifest()
    del broken[name]
    with pytest.raises(points.ManifestError, match=f"^{name} is missing"):
        points.parse(json.dumps(broken))


@pytest.mark.parametrize("kind", points.KINDS)
def test_each_object_is_needed(kind: str) -> None:
    broken = manifest()
    del broken["objects"][kind]
    with pytest.raises(points.ManifestError, match=f"objects.{kind} is missing"):
        points.parse(json.dumps(broken))


@pytest.mark.parametrize(
    "change",
    [
        {"key": "../etc/passwd"},
        {"key": "objects/../x"},
        {"key": "/objects/x"},
        {"key": 'objects/a"b'},
        {"key": "objects/a\n"},
        {"sha256": "0" * 63},
        {"sha256": "0" * 64 + "\n"},
    ],
)
def test_a_key_or_hash_that_could_mean_something_else(change: dict[str, str]) -> None:
    broken = manifest()
    broken["objects"]["app"].update(change)
    with pytest.raises(points.ManifestError, match=r"objects.app: key or sha256 is malformed"):
        points.parse(json.dumps(broken))


@pytest.mark.parametrize("name", ["x", "20260101T000000Z-abcdef\n", "20260101T000000Z-abcdef/..", "20260101T000000Z-"])
def test_an_id_that_is_none(name: str) -> None:
    with pytest.raises(points.ManifestError, match="is not a restore point id"):
        points.parse(json.dumps(manifest(id=name)))


@pytest.mark.parametrize("name", sorted(REDIS))
def test_what_the_restore_leans_on_is_named_when_it_is_missing(name: str) -> None:
    """A manifest of an earlier release records too little to prove anything by."""
    broken = manifest()
    del broken["redis"][name]
    with pytest.raises(points.ManifestError, match=f"^redis.{name} is missing"):
        points.parse(json.dumps(broken))


@pytest.mark.parametrize(("part", "name"), [("fingerprint", "keys"), ("fingerprint", "sha256"), ("limits", "databases"), ("limits", "maxmemory")])
def test_a_part_of_it_is_named_too(part: str, name: str) -> None:
    broken = manifest()
    broken["redis"][part] = {key: value for key, value in broken["redis"][part].items() if key != name}
    with pytest.raises(points.ManifestError, match=f"^redis.{part}.{name} is missing"):
        points.parse(json.dumps(broken))


@pytest.mark.parametrize("kind", points.OPTIONAL)
def test_a_server_of_several_may_lack_it(kind: str) -> None:
    other = {"app": "redis", "redis": "app"}[kind]
    found = manifest()
    del found["objects"][kind]
    found.pop(kind, None)
    assert points.parse(json.dumps(found), [other]) == found
    with pytest.raises(points.ManifestError, match="is missing"):
        points.parse(json.dumps(found), [kind, other])
    for always in ("bootstrap", "bundle", "config"):
        broken = {**found, "objects": {name: entry for name, entry in found["objects"].items() if name != always}}
        with pytest.raises(points.ManifestError, match=f"objects.{always} is missing"):
            points.parse(json.dumps(broken), [])


def test_what_is_there_is_checked_though_it_may_be_lacking() -> None:
    broken = manifest()
    del broken["redis"]
    with pytest.raises(points.ManifestError, match=r"^redis is missing"):
        points.parse(json.dumps(broken), [])
    with pytest.raises(points.ManifestError, match=r"redis.sha256 is malformed"):
        points.parse(json.dumps(manifest(redis={**REDIS, "sha256": "x"})), [])
    broken = manifest()
    broken["objects"]["app"] = None
    with pytest.raises(points.ManifestError, match=r"objects.app is missing"):
        points.parse(json.dumps(broken), [])


def test_a_digest_that_is_none() -> None:
    with pytest.raises(points.ManifestError, match=r"redis.sha256 is malformed"):
        points.parse(json.dumps(manifest(redis={**REDIS, "sha256": "x"})))


def test_the_digest_covers_everything_but_the_seal() -> None:
    digest = points.canonical_digest(manifest())
    assert points.canonical_digest(manifest(seal="other")) == digest
    assert points.canonical_digest(dict(reversed(manifest().items()))) == digest, "the order of keys does not matter"
    altered = manifest()
    altered["objects"]["redis"]["size"] = 2
    assert points.canonical_digest(altered) != digest


WANT = {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}}


@pytest.mark.parametrize(
    ("found", "problems"),
    [
        (WANT, 0),
        ({**WANT, "db0": {"keys": 8, "expires": 0}}, 0),
        ({**WANT, "db0": {"keys": 7, "expires": 0}}, 1),
        ({**WANT, "db0": {"keys": 11, "expires": 2}}, 1),
        ({**WANT, "db1": {"keys": 2, "expires": 0}}, 1),
        ({"db0": WANT["db0"]}, 1),
        ({**WANT, "db5": {"keys": 1, "expires": 1}}, 1),
        ({}, 2),
    ],
)
def test_compare_keyspace(found: dict[str, dict[str, int]], problems: int) -> None:
    assert len(points.compare_keyspace(WANT, found)) == problems


def test_total_keys() -> None:
    assert (points.total_keys(WANT), points.total_keys({})) == (13, 0)
