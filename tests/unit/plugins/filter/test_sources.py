# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import urllib.request
from typing import Any

from ansible_collections.titan.disaster_recovery.plugins.filter import sources as filters
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _stores

SFTP = {
    "name": "shell",
    "kind": "sftp",
    "host": "10.0.0.9",
    "port": 2222,
    "user": "backup",
    "path": "/backups",
    "host_key": "ssh-ed25519 AAAA",
    "private_key": "KEY",
}


def plan(sealed_manifest: Any, key: Any, *stores: str) -> dict[str, list[dict[str, Any]]]:
    manifest = sealed_manifest(key)
    found: dict[str, list[dict[str, Any]]] = _stores.plan({name: {manifest["id"]: json.dumps(manifest).encode()} for name in stores}, "lab", key.identity)[0]
    return found


def test_a_signed_address_opens_one_object_and_holds_no_key(bucket: Any, sealed_manifest: Any, key: Any) -> None:
    [candidate] = filters.sources(plan(sealed_manifest, key, "cloud"), [bucket.store])["redis"]
    [source] = candidate["sources"]
    assert (source["store"], source["kind"]) == ("cloud", "http")
    assert "X-Amz-Expires=3600" in source["url"] and "STORE-SECRET-KEY" not in json.dumps(candidate)
    bucket.objects[f"titan/lab/{candidate['object']['key']}"] = b"content"
    assert urllib.request.urlopen(source["url"]).read() == b"content"


def test_an_sftp_source(sealed_manifest: Any, key: Any) -> None:
    [candidate] = filters.sources(plan(sealed_manifest, key, "shell"), [SFTP])["app"]
    assert candidate["sources"] == [
        {
            "store": "shell",
            "kind": "sftp",
            "path": "/backups/lab/objects/app.tar.age",
            "host": "10.0.0.9",
            "port": 2222,
            "user": "backup",
            "host_key": "ssh-ed25519 AAAA",
            "private_key": "KEY",
        }
    ]


def test_only_stores_that_have_it_in_the_order_of_preference(bucket: Any, sealed_manifest: Any, key: Any) -> None:
    both = plan(sealed_manifest, key, "shell", "cloud")
    for stores in ([SFTP, bucket.store], [bucket.store, SFTP]):
        for candidates in filters.sources(both, stores).values():
            assert [source["store"] for source in candidates[0]["sources"]] == [store["name"] for store in stores]
    one = filters.sources(plan(sealed_manifest, key, "shell"), [bucket.store, SFTP])
    assert [source["store"] for source in one["redis"][0]["sources"]] == ["shell"]


def test_the_shape_is_what_the_modules_take(bucket: Any, sealed_manifest: Any, key: Any) -> None:
    for candidates in filters.sources(plan(sealed_manifest, key, "shell", "cloud"), [SFTP, bucket.store]).values():
        for candidate in candidates:
            assert set(candidate) == set(_fetch.OBJECT_SPEC)
            assert set(candidate["object"]) == set(_fetch.OBJECT_SPEC["object"]["options"])
            assert all(set(source) <= set(_fetch.SOURCE_SPEC) for source in candidate["sources"])


def test_upload_targets(bucket: Any) -> None:
    [entry] = filters.upload_targets([{"key": "objects/a.age", "path": "/backups/lab/objects/a.age"}], [bucket.store, SFTP], "lab")
    assert (entry["key"], entry["path"], [target["kind"] for target in entry["targets"]]) == ("objects/a.age", "/backups/lab/objects/a.age", ["http", "sftp"])
    cloud, shell = entry["targets"]
    urllib.request.urlopen(urllib.request.Request(cloud["url"], data=b"content", method="PUT"))
    assert bucket.objects == {"titan/lab/objects/a.age": b"content"}
    assert urllib.request.urlopen(urllib.request.Request(cloud["head_url"], method="HEAD")).headers["Content-Length"] == "7"
    assert shell["path"] == "/backups/lab/objects/a.age"


def test_names() -> None:
    assert set(filters.FilterModule().filters()) == {"sources", "upload_targets"}
