# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _restore_point, _stores
from ansible_collections.titan.disaster_recovery.plugins.module_utils._stores import StoreError, open_seal


def raw(*manifests: dict[str, Any]) -> dict[str, bytes]:
    return {manifest["id"]: json.dumps(manifest).encode() for manifest in manifests}


def ids(plan: dict[str, list[dict[str, Any]]], kind: str = "redis") -> list[str]:
    return [candidate["id"] for candidate in plan[kind]]


# --- seals ----------------------------------------------------------------------------------------------------------


def test_seal(sealed_manifest: Any, key: Any, other_key: Any) -> None:
    manifest = sealed_manifest(key)
    open_seal(manifest, f" {key.identity}\n")
    with pytest.raises(StoreError, match="does not open it"):
        open_seal(manifest, other_key.identity)
    for wrong in ("", "AGE-SECRET-KEY-1XYZ", key.recipient):
        with pytest.raises(StoreError, match="is not one"):
            open_seal(manifest, wrong)


@pytest.mark.parametrize("path", ["taken_at", "environment_id", "redis.expired", "objects.bootstrap.sha256"])
def test_a_seal_does_not_fit_an_altered_manifest(sealed_manifest: Any, key: Any, path: str) -> None:
    manifest = sealed_manifest(key)
    *folders, last = path.split(".")
    place = manifest
    for folder in folders:
        place = place[folder]
    place[last] = "altered"
    with pytest.raises(StoreError, match="altered"):
        open_seal(manifest, key.identity)


@pytest.mark.parametrize("enclosed", [b"", b"\xff\xfe", b"0" * 64])
def test_a_seal_around_something_else(sealed_manifest: Any, key: Any, enclosed: bytes) -> None:
    import pyrage

    manifest = {**sealed_manifest(key), "seal": pyrage.encrypt(enclosed, [key.pair.to_public()], armored=True).decode()}
    with pytest.raises(StoreError, match="altered"):
        open_seal(manifest, key.identity)


@pytest.mark.parametrize("seal", ["", "x", "-----BEGIN AGE ENCRYPTED FILE-----\n-----END AGE ENCRYPTED FILE-----\n"])
def test_no_seal_at_all(sealed_manifest: Any, key: Any, seal: str) -> None:
    with pytest.raises(StoreError, match="does not open it"):
        open_seal({**sealed_manifest(key), "seal": seal}, key.identity)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_newest_first_whatever_the_names_say(sealed_manifest: Any, key: Any) -> None:
    early, middle, late = (sealed_manifest(key, seconds) for seconds in (0, 300, 600))
    plan, notes, locked = _stores.plan({"a": raw(middle, late, early)}, "lab", key.identity)
    assert ids(plan) == [late["id"], middle["id"], early["id"]] == ids(plan, "app") and not notes and not locked
    assert set(plan) == set(_restore_point.KINDS)


def test_a_candidate_says_all_that_a_restore_needs(sealed_manifest: Any, key: Any) -> None:
    manifest = sealed_manifest(key, expired=3)
    plan, dummy, dummy = _stores.plan({"a": raw(manifest)}, "lab", key.identity)
    entry = manifest["objects"]["redis"]
    assert plan["redis"][0] == {
        "id": manifest["id"],
        "taken_at": manifest["taken_at"],
        "object": {name: entry[name] for name in ("key", "size", "sha256", "sealed")},
        "details": {"kind": "redis", **manifest["redis"]},
        "stores": ["a"],
        "environment_id": "lab",
    }
    assert plan["redis"][0]["details"]["expired"] == 3 and plan["config"][0]["details"] == {"kind": "config"}


def test_stores_in_the_given_order(sealed_manifest: Any, key: Any) -> None:
    one, two = sealed_manifest(key), sealed_manifest(key, 300)
    plan, dummy, dummy = _stores.plan({"near": raw(one), "far": raw(one, two)}, "lab", key.identity)
    assert [(candidate["id"], candidate["stores"]) for candidate in plan["redis"]] == [(two["id"], ["far"]), (one["id"], ["near", "far"])]


def test_wrong_identity(sealed_manifest: Any, key: Any, other_key: Any) -> None:
    plan, notes, locked = _stores.plan({"a": raw(sealed_manifest(key))}, "lab", other_key.identity)
    assert ids(plan) == [] and len(locked) == 1 and "does not open it" in locked[0]
    assert notes == [f"{locked[0]} (not used)"]


def test_a_manifest_that_was_altered(sealed_manifest: Any, key: Any) -> None:
    good, bad = sealed_manifest(key), sealed_manifest(key, 300)
    bad["objects"]["bootstrap"]["sha256"] = "0" * 64
    plan, notes, dummy = _stores.plan({"a": raw(good, bad)}, "lab", key.identity)
    assert ids(plan) == [good["id"]] and "the manifest was altered" in notes[0]


def test_what_this_server_needs(sealed_manifest: Any, key: Any) -> None:
    """A restore point of a server of several has no Redis, or no services: where they are, it is none."""
    whole, no_redis = sealed_manifest(key), sealed_manifest(key, 300, without=("redis",))
    plan, notes, dummy = _stores.plan({"a": raw(whole, no_redis)}, "lab", key.identity)
    assert ids(plan) == ids(plan, "config") == [whole["id"]] and "objects.redis is missing" in notes[0]
    plan, notes, dummy = _stores.plan({"a": raw(whole, no_redis)}, "lab", key.identity, ["app"])
    assert ids(plan, "config") == ids(plan, "app") == [no_redis["id"], whole["id"]] and ids(plan) == [whole["id"]] and notes == []
    no_app = sealed_manifest(key, without=("app",))
    assert ids(_stores.plan({"a": raw(no_app)}, "lab", key.identity, ["redis"])[0]) == [no_app["id"]]
    assert not any(_stores.plan({"a": raw(no_app)}, "lab", key.identity, ["app"])[0].values())


def test_another_environment(sealed_manifest: Any, key: Any) -> None:
    plan, notes, locked = _stores.plan({"a": raw(sealed_manifest(key, environment_id="staging"))}, "lab", key.identity)
    assert ids(plan) == [] and "of environment staging, lab expected" in notes[0] and not locked


def test_a_manifest_under_another_name(sealed_manifest: Any, key: Any) -> None:
    """An old restore point that was copied over the newest one opens, but is not what its place says."""
    old, new = sealed_manifest(key), sealed_manifest(key, 300)
    plan, notes, dummy = _stores.plan({"a": {new["id"]: json.dumps(old).encode()}}, "lab", key.identity)
    assert ids(plan) == [] and f"it calls itself {old['id']}" in notes[0]


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"format": 1}'])
def test_damaged_json(sealed_manifest: Any, key: Any, text: bytes) -> None:
    good, bad = sealed_manifest(key), sealed_manifest(key, 300)
    plan, notes, dummy = _stores.plan({"a": {**raw(good), bad["id"]: text}}, "lab", key.identity)
    assert ids(plan) == [good["id"]] and notes[0].startswith(f"restore point {bad['id']} in a rejected")


def test_one_damaged_copy_leaves_the_other(sealed_manifest: Any, key: Any) -> None:
    good = sealed_manifest(key)
    plan, notes, dummy = _stores.plan({"a": {good["id"]: b"{"}, "b": raw(good)}, "lab", key.identity)
    assert [(candidate["id"], candidate["stores"]) for candidate in plan["redis"]] == [(good["id"], ["b"])] and len(notes) == 1


def test_the_same_id_with_other_content(sealed_manifest: Any, key: Any) -> None:
    """Both seals open: the one in the preferred store counts, and no object of the other is mixed with it."""
    one, other = sealed_manifest(key), sealed_manifest(key, expired=5)
    assert one["id"] == other["id"]
    plan, notes, dummy = _stores.plan({"a": raw(one), "b": raw(other)}, "lab", key.identity)
    assert [(candidate["stores"], candidate["details"]["expired"]) for candidate in plan["redis"]] == [(["a"], 0)]
    assert notes == [f"restore point {one['id']} in b rejected: it differs from the one in a"]


# --- reading --------------------------------------------------------------------------------------------------------


def test_s3(bucket: Any, sealed_manifest: Any, key: Any) -> None:
    points = [sealed_manifest(key, seconds) for seconds in range(4)]
    for manifest in points:
        bucket.objects[f"titan/lab/points/{manifest['id']}/manifest.json"] = raw(manifest)[manifest["id"]]
        bucket.objects[f"titan/lab/points/{manifest['id']}/redis.rdb.zst.age"] = b"x"
    bucket.objects["titan/other/points/20260101T000000Z-abcdef/manifest.json"] = b"{}"
    assert _stores.read_s3(bucket.store, "lab", 2) == raw(*points[-2:])
    assert _stores.read_s3(bucket.store, "lab", 10) == raw(*points)


def test_restore_points_that_were_never_committed_hide_no_good_one(bucket: Any, sealed_manifest: Any, key: Any) -> None:
    """Uploads that break off leave objects without a manifest. However many there are, the good ones behind them count."""
    good = sealed_manifest(key)
    bucket.objects[f"titan/lab/points/{good['id']}/manifest.json"] = raw(good)[good["id"]]
    for number in range(6):
        bucket.objects[f"titan/lab/points/20270101T00000{number}Z-abcdef/redis.rdb.zst.age"] = b"x"
    assert _stores.read_s3(bucket.store, "lab", 5) == raw(good)


def test_stores_that_do_not_answer(web: Any, bucket: Any, sealed_manifest: Any, key: Any) -> None:
    good = sealed_manifest(key)
    bucket.objects[f"titan/lab/points/{good['id']}/manifest.json"] = raw(good)[good["id"]]
    denied = web(lambda method, path, body: (403, {}, b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'))
    stores = [
        bucket.store,
        {**bucket.store, "name": "denied", "endpoint": denied.url},
        {**bucket.store, "name": "gone", "endpoint": "http://127.0.0.1:1"},
        {"name": "shell", "kind": "sftp", "host": "127.0.0.1", "port": 1, "user": "u", "path": "/x", "host_key": "ssh-ed25519 AAAA", "private_key": "x"},
    ]
    started = time.monotonic()
    found, silent = _stores.read_all(stores, "lab", 5)
    assert found == {"cloud": raw(good)} and sorted(silent) == ["denied", "gone", "shell"]
    assert "AccessDenied" in silent["denied"] and time.monotonic() - started < 10
    assert "STORE-SECRET-KEY" not in str(silent)


def test_sftp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches that are sent; the transport itself is proven in the lab."""
    batches: list[str] = []

    def answer(argv: list[str], batch: str, deadline: float) -> str:
        batches.append(batch)
        if batch.startswith("ls"):
            return "/b/lab/points/two\n/b/lab/points/one\n/b/lab/points/three\n"
        for line in batch.splitlines():
            if "/two/" not in line:
                with open(line.split('"')[3], "w") as handle:
                    handle.write(line.split('"')[1])
        return ""

    monkeypatch.setattr(_stores._fetch, "sftp", answer)
    store = {"kind": "sftp", "host": "h", "port": 22, "user": "u", "path": "/b/", "host_key": "k", "private_key": "x"}
    assert _stores.read_sftp(store, "lab", 2) == {name: f"/b/lab/points/{name}/manifest.json".encode() for name in ("one", "three")}
    assert batches[0] == 'ls -1 "/b/lab/points"\n'
    assert len(batches) == 3 and all(line.startswith("-get ") for batch in batches[1:] for line in batch.splitlines()), (
        "one that was never committed does not end the batch"
    )


def test_object_path() -> None:
    assert _stores.object_path({"kind": "s3", "prefix": ""}, "lab", "objects/a") == "lab/objects/a"
    assert _stores.object_path({"kind": "s3", "prefix": "x/"}, "lab", "objects/a") == "x/lab/objects/a"
    assert _stores.object_path({"kind": "s3"}, "lab", "points/") == "lab/points/"
    assert _stores.object_path({"kind": "sftp", "path": "/b"}, "lab", "objects/a") == "/b/lab/objects/a"
