# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking, copying and finding restore points, from a real Redis to a proven copy."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.filter import sources as filters
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _restore_point, _scratch, _state, _stores
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_stage, restore_point_create, restore_point_info, restore_point_push
from ansible_collections.titan.disaster_recovery.plugins.modules.restore_point_create import BackupError, save_redis

CANARY = {"key": "titan:dr:canary", "db": 1}


# --- the save -------------------------------------------------------------------------------------------------------


def test_a_save(redis_server: Any) -> None:
    server = redis_server()
    server.fill()
    taken_at = save_redis(server.client, time.time() + 10)
    assert abs(time.time() - taken_at) < 5 and (server.folder / "dump.rdb").stat().st_mtime >= int(taken_at)


def test_a_save_that_fails(redis_server: Any) -> None:
    server = redis_server()
    server.client.call("CONFIG", "SET", "dbfilename", "gone")
    os.mkdir(server.folder / "gone")  # the rename onto it fails
    with pytest.raises(BackupError, match="save failed"):
        save_redis(server.client, time.time() + 10)


def test_a_save_of_somebody_else_is_waited_for(redis_server: Any) -> None:
    """It began before this moment, so what it wrote is not all that was acknowledged."""
    server = redis_server(rdb_key_save_delay="100000")
    server.fill()
    server.client.call("BGSAVE")
    server.client.call("SET", "late", "1")
    server.client.call("CONFIG", "SET", "rdb-key-save-delay", "0")
    save_redis(server.client, time.time() + 15)
    found = _scratch.load(str(server.folder / "dump.rdb"), str(server.folder), 16, None, "root", time.time() + 5)
    assert found["keyspace"]["db0"]["keys"] == 11


def test_a_save_that_takes_too_long(redis_server: Any) -> None:
    server = redis_server(rdb_key_save_delay="10000000")
    server.fill()
    time.sleep(1.1)
    with pytest.raises(BackupError, match="did not end in time"):
        save_redis(server.client, time.time() + 0.5)


def test_a_clock_that_went_back_does_not_wait_for_ever(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, now = redis_server(), time.time
    monkeypatch.setattr(restore_point_create.time, "time", lambda: now() - 3600)
    with pytest.raises(BackupError, match="clock is ahead"):
        save_redis(server.client, now() - 3600 + 0.3)


def test_a_command_that_is_renamed_or_disabled(redis_server: Any) -> None:
    server = redis_server(rename_command="BGSAVE keep-it")
    assert save_redis(server.client, time.time() + 10, server.conf.command("BGSAVE"))
    with pytest.raises(BackupError, match="disables BGSAVE"):
        save_redis(server.client, time.time() + 10, "")


# --- a production server in a directory -------------------------------------------------------------------------------


class Production:
    def __init__(self, server: Any, box: Path, key: Any, user: str) -> None:
        self.server, self.box = server, box
        self.config, self.release, self.pm2 = box / "etc", box / "releases" / "v1", box / "pm2"
        self.config.mkdir()
        (self.config / "brain.json").write_text('{"a": 1}')
        self.release.mkdir(parents=True)
        (self.release / "app.js").write_text("//")
        (box / "current").symlink_to(self.release)
        package = self.pm2 / "node_modules" / "pm2" / "package.json"
        package.parent.mkdir(parents=True)
        package.write_text('{"version": "6.0.0"}')
        for name in ("lock", "partial"):
            (self.pm2 / "node_modules" / name).mkdir()
            (self.pm2 / "node_modules" / name / "index.js").write_text("//")
        debs = box / "bundle" / "debs"
        (debs / "partial").mkdir(parents=True)
        (debs / "redis-server_7_all.deb").write_bytes(b"deb")
        (debs / "lock").touch()
        self.params: dict[str, Any] = {
            "environment_id": "lab",
            "directory": str(box / "backups"),
            "recipients": [key.recipient],
            "redis": {"config": str(server.config), "data_dir": str(server.folder)},
            "redis_user": user,
            "canary": CANARY,
            "config_paths": [str(self.config), str(server.config)],
            "config_history": str(box / "config.bundle"),
            "current": str(box / "current"),
            "pm2_prefix": str(self.pm2),
            "timeout": 30,
        }
        self.points = box / "backups" / "lab" / "points"


@pytest.fixture
def production(redis_server: Any, box: Path, key: Any, me: str, monkeypatch: pytest.MonkeyPatch) -> Production:
    monkeypatch.setattr(restore_point_create, "DEBS_DIR", str(box / "bundle" / "debs"))
    server = redis_server()
    server.fill()
    return Production(server, box, key, me)


def opened(path: str, key: Any) -> dict[str, bytes]:
    """Files of a sealed archive."""
    plain = subprocess.run(["age", "--decrypt", "--identity", "-", path], input=key.identity.encode(), stdout=subprocess.PIPE, check=True).stdout
    if ".zst" in path:
        plain = subprocess.run(["zstd", "--decompress", "--stdout", "--quiet"], input=plain, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]


def test_from_production_to_a_proven_copy(production: Production, key: Any, bucket: Any, run_module: Any, me: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = run_module(restore_point_create, production.params)
    assert not taken["failed"], taken["msg"]
    manifest = _restore_point.parse(json.dumps(taken["manifest"]))
    _stores.open_seal(manifest, key.identity)
    assert manifest["redis"]["keyspace"] == {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}}
    assert manifest["redis"]["canary"] == {"seq": 7, "at": 1000.0} and manifest["environment_id"] == "lab"
    assert [entry["key"].rsplit("/", 1)[-1] for entry in taken["objects"]][-1] == "manifest.json"
    paths = {kind: f"{production.box}/backups/lab/{entry['key']}" for kind, entry in manifest["objects"].items()}
    here = str(production.box).lstrip("/")
    assert opened(paths["config"], key)[f"{here}/etc/brain.json"] == b'{"a": 1}' and f"{here}/config.bundle" in opened(paths["config"], key)
    assert opened(paths["app"], key) == {f"{here}/releases/v1/app.js": b"//"}
    assert set(opened(paths["bundle"], key)) == {
        "debs/redis-server_7_all.deb",
        "pm2/node_modules/pm2/package.json",
        "pm2/node_modules/lock/index.js",
        "pm2/node_modules/partial/index.js",
    }
    with tarfile.open(paths["bootstrap"]) as archive:
        assert sorted(archive.getnames()) == ["age", "zstd"]
    for entry in taken["objects"]:
        assert os.stat(entry["path"]).st_mode & 0o077 == 0 or entry["path"].endswith("manifest.json")
    assert not [path for path in production.server.folder.iterdir() if path.name.startswith(".titan-dr-")]

    # Into the store, the manifest last; a second time nothing is copied.
    targets = filters.upload_targets(taken["objects"], [bucket.store], "lab")
    pushed = run_module(restore_point_push, {"objects": targets})
    assert pushed["pushed"] == {"cloud": 6} and "STORE-SECRET-KEY" not in json.dumps(pushed)
    puts = [path for method, path in bucket.service.requests if method == "PUT"]
    assert "/manifest.json" in puts[-1] and not [path for path in puts[:-1] if "/manifest.json" in path]
    again = run_module(restore_point_push, {"objects": targets})
    assert again["changed"] is False and again["pushed"] == {"cloud": 0}

    # Found, planned, fetched and proven.
    monkeypatch.setattr(_state, "STATE_DIR", str(production.box))
    found = run_module(restore_point_info, {"stores": [bucket.store], "environment_id": "lab", "identity": key.identity})
    assert found["titan_dr"]["gates"][0]["verdict"] == "pass"
    plan = filters.sources(found["plan"], [bucket.store])
    (production.box / "marker").touch()
    staged = run_module(
        redis_stage,
        {
            "candidates": plan["redis"],
            "identity": key.identity,
            "data_dir": str(production.box / "redis"),
            "run_id": "r1",
            "user": me,
            "canary": CANARY,
            "incident_started_at": 1100.0,
            "installed_marker": str(production.box / "marker"),
            "timeout": 20,
        },
    )
    assert not staged["failed"] and staged["titan_dr"]["restore_point"]["id"] == manifest["id"] and staged["titan_dr"]["rpo"]["actual_s"] == 100.0


def test_what_did_not_change_is_not_packed_again_and_the_history_grows(production: Production, run_module: Any) -> None:
    first = run_module(restore_point_create, production.params)["manifest"]
    (production.config / "brain.json").write_text('{"a": 2}')
    second = run_module(restore_point_create, production.params)["manifest"]
    for kind in ("bundle", "bootstrap", "app"):
        assert first["objects"][kind] == second["objects"][kind], kind
    assert first["objects"]["config"]["details"]["commit"] != second["objects"]["config"]["details"]["commit"]
    clone = production.box / "clone"
    subprocess.run(["git", "clone", "--quiet", "--branch", "main", str(production.box / "config.bundle"), str(clone)], check=True, capture_output=True)
    log = subprocess.run(["git", "-C", str(clone), "log", "--format=%s"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert log == [f"Restore point {second['id']}", f"Restore point {first['id']}"]
    assert (clone / str(production.config).lstrip("/") / "brain.json").read_text() == '{"a": 2}'


def test_the_history_goes_on_on_another_server(production: Production, run_module: Any) -> None:
    first = run_module(restore_point_create, production.params)["manifest"]
    (production.config / "more.json").write_text("{}")
    elsewhere = {**production.params, "directory": str(production.box / "other-backups")}
    second = run_module(restore_point_create, elsewhere)["manifest"]
    log = subprocess.run(
        ["git", "-C", str(production.box / "other-backups" / "config"), "log", "--format=%s"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert log == [f"Restore point {second['id']}", f"Restore point {first['id']}"]


def test_without_a_canary(production: Production, run_module: Any) -> None:
    production.server.client.call("FLUSHALL")
    production.server.client.call("SET", "x", "1")
    assert run_module(restore_point_create, production.params)["manifest"]["redis"]["canary"] is None


def test_a_stale_dump_is_not_taken(production: Production, run_module: Any) -> None:
    """The server writes elsewhere than its file says: what lies in the named place is old, and loads well."""
    stale = production.server.folder / "dump.rdb"
    production.server.dump()
    os.utime(stale, (1, 1))
    production.server.client.call("CONFIG", "SET", "dbfilename", "elsewhere.rdb")
    result = run_module(restore_point_create, production.params)
    assert result["failed"] and "older than the save" in result["msg"]
    assert list(production.points.iterdir()) == [] if production.points.exists() else True


def spoil_save(production: Production) -> str:
    production.server.client.call("CONFIG", "SET", "dbfilename", "gone")
    os.mkdir(production.server.folder / "gone")
    return "save failed"


def spoil_config(production: Production) -> str:
    production.params["config_paths"].append("/nonexistent/config")
    return "nonexistent"


def spoil_debs(production: Production) -> str:
    (production.box / "bundle" / "debs" / "redis-server_7_all.deb").unlink()
    return "holds no packages"


def spoil_release(production: Production) -> str:
    (production.release / "app.js").unlink()
    production.release.rmdir()
    return "names no release"


def spoil_name(production: Production) -> str:
    production.release.rename(production.release.with_name("v 1"))
    (production.box / "current").unlink()
    (production.box / "current").symlink_to(production.release.with_name("v 1"))
    return "objects.app: key or sha256 is malformed"


def spoil_recipient(production: Production) -> str:
    production.params["recipients"] = ["age1nonsense"]
    return "age ended with"


def spoil_password(production: Production) -> str:
    production.server.client.call("CONFIG", "SET", "requirepass", "changed")
    return "NOAUTH"


def spoil_data(production: Production) -> str:
    production.server.client.call("FLUSHALL")
    return "Redis holds no keys"


@pytest.mark.parametrize("spoil", [spoil_data, spoil_save, spoil_config, spoil_debs, spoil_release, spoil_name, spoil_recipient, spoil_password])
def test_what_is_not_complete_is_no_restore_point(production: Production, run_module: Any, spoil: Any) -> None:
    why = spoil(production)
    result = run_module(restore_point_create, production.params)
    assert result["failed"] and "No restore point was taken" in result["msg"] and why in result["msg"]
    assert not list(production.box.rglob("manifest.json")) and not (production.points.exists() and list(production.points.iterdir()))


def test_nobody_to_open_it(production: Production, run_module: Any) -> None:
    assert "nobody could open" in run_module(restore_point_create, {**production.params, "recipients": []})["msg"]


def test_create_in_check_mode(production: Production, run_module: Any) -> None:
    assert run_module(restore_point_create, production.params, check=True)["changed"] and not production.points.exists()


# --- a Titan on several servers ---------------------------------------------------------------------------------------


def test_a_server_without_redis(production: Production, key: Any, run_module: Any) -> None:
    production.server.close()
    for redis in ({}, {"host": "titan-data", "port": 6379}):
        taken = run_module(restore_point_create, {**production.params, "redis": redis, "config_paths": [str(production.config)]})
        assert not taken["failed"], taken["msg"]
        manifest = _restore_point.parse(json.dumps(taken["manifest"]), ["app"])
        _stores.open_seal(manifest, key.identity)
        assert "redis" not in manifest and set(manifest["objects"]) == {"bootstrap", "bundle", "config", "app"} and abs(manifest["taken_at"] - time.time()) < 20
        with pytest.raises(_restore_point.ManifestError):
            _restore_point.parse(json.dumps(taken["manifest"]))


def test_a_server_without_services(production: Production, key: Any, run_module: Any) -> None:
    (production.box / "current").unlink()
    shutil.rmtree(production.pm2)
    assert "names no release" in run_module(restore_point_create, production.params)["msg"], "where services belong it is none"
    taken = run_module(restore_point_create, {**production.params, "services": False})
    assert not taken["failed"], taken["msg"]
    manifest = _restore_point.parse(json.dumps(taken["manifest"]), ["redis"])
    assert set(manifest["objects"]) == {"bootstrap", "bundle", "config", "redis"} and manifest["redis"]["keyspace"]["db0"]["keys"] == 10
    assert set(opened(f"{production.box}/backups/lab/{manifest['objects']['bundle']['key']}", key)) == {"debs/redis-server_7_all.deb"}


def test_a_release_that_is_there_is_packed_all_the_same(production: Production, run_module: Any) -> None:
    assert "app" in run_module(restore_point_create, {**production.params, "services": False})["manifest"]["objects"]
    (production.release / "app.js").unlink()
    production.release.rmdir()
    assert "names no release" in run_module(restore_point_create, {**production.params, "services": False})["msg"], "a link to nothing is not nothing"


def test_redis_that_is_down_is_not_redis_that_is_elsewhere(production: Production, run_module: Any) -> None:
    production.server.close()
    assert "cannot connect" in run_module(restore_point_create, production.params)["msg"] and not list(production.box.rglob("manifest.json"))


# --- the copy -------------------------------------------------------------------------------------------------------


def objects(folder: Path, *stores: dict[str, Any]) -> list[dict[str, Any]]:
    listed = []
    for name in ("objects/a.age", "points/p1/redis.age", "points/p1/manifest.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
        listed.append({"key": name, "path": str(folder / name)})
    return filters.upload_targets(listed, list(stores), "lab")


def test_what_is_there_in_another_size_is_replaced(bucket: Any, tmp_path: Path, run_module: Any) -> None:
    bucket.objects = {"titan/lab/objects/a.age": b"half", "titan/lab/points/p1/redis.age": b"points/p1/redis.age"}
    assert run_module(restore_point_push, {"objects": objects(tmp_path, bucket.store)})["pushed"] == {"cloud": 2}
    assert bucket.objects == {f"titan/lab/{name}": name.encode() for name in ("objects/a.age", "points/p1/redis.age", "points/p1/manifest.json")}


@pytest.mark.parametrize("fault", ["short", "lost", "denied", "full", "closed", "gibberish"])
def test_a_store_that_does_not_keep_it(bucket: Any, tmp_path: Path, run_module: Any, fault: str) -> None:
    real = bucket.answer

    def answer(method: str, path: str, body: bytes) -> Any:
        if "redis.age" in path:
            if fault == "denied":
                return 403, {}, b""
            if method == "PUT" and fault == "closed":
                return lambda handler: None
            if fault == "gibberish":
                return lambda handler: handler.wfile.write(b"SSH-2.0\r\n\r\n")
            if method == "PUT":
                return {"short": lambda: real(method, path, body[:3]), "lost": lambda: (200, {}, b""), "full": lambda: (507, {}, b"")}[fault]()
        return real(method, path, body)

    bucket.answer = answer
    result = run_module(restore_point_push, {"objects": objects(tmp_path, bucket.store)})
    assert result["failed"] and "cloud" in result["msg"] and "STORE-SECRET-KEY" not in result["msg"]
    assert not [name for name in bucket.objects if name.endswith("manifest.json")], "a store never shows a restore point that is not complete"


def test_the_other_store_is_served_all_the_same(bucket: Any, tmp_path: Path, run_module: Any) -> None:
    gone = {**bucket.store, "name": "gone", "endpoint": "http://127.0.0.1:1"}
    result = run_module(restore_point_push, {"objects": objects(tmp_path, gone, bucket.store)})
    assert result["failed"] and "gone: objects/a.age" in result["msg"] and len(bucket.objects) == 3


def test_no_store(tmp_path: Path, run_module: Any) -> None:
    assert "there is no store" in run_module(restore_point_push, {"objects": objects(tmp_path)})["msg"]


def test_push_in_check_mode(bucket: Any, tmp_path: Path, run_module: Any) -> None:
    assert run_module(restore_point_push, {"objects": objects(tmp_path, bucket.store)}, check=True)["changed"] and bucket.objects == {}


@pytest.mark.parametrize(
    ("text", "size"),
    [("", -1), ("-rw-------    ? 0        0        12345 Jan  1 00:00 /b/a", 12345), ("Can't ls: not found", -1), ("x\n-rw- 1 0 0 7 Jan 1 00:00 a b\n", 7)],
)
def test_listed_size(text: str, size: int) -> None:
    assert restore_point_push.listed_size(text) == size


# --- finding --------------------------------------------------------------------------------------------------------


def find(bucket: Any, identity: str, **more: Any) -> dict[str, Any]:
    return {"stores": [bucket.store], "environment_id": "lab", "identity": identity, **more}


def put(bucket: Any, *manifests: dict[str, Any]) -> None:
    for manifest in manifests:
        bucket.objects[f"titan/lab/points/{manifest['id']}/manifest.json"] = json.dumps(manifest).encode()


def test_found(bucket: Any, sealed_manifest: Any, key: Any, run_module: Any) -> None:
    old, new = sealed_manifest(key), sealed_manifest(key, 300)
    put(bucket, old, new)
    result = run_module(restore_point_info, find(bucket, key.identity))
    assert [candidate["id"] for candidate in result["plan"]["redis"]] == [new["id"], old["id"]] and result["changed"] is False
    evidence = result["titan_dr"]["gates"][0]["evidence"]
    assert evidence == f"2 usable, newest {new['id']} of 2026-01-01 00:05:00 UTC in cloud; its seal opens"


def test_before_a_point_in_time(bucket: Any, sealed_manifest: Any, key: Any, run_module: Any) -> None:
    manifests = [sealed_manifest(key, minutes * 60) for minutes in range(10)]
    put(bucket, *manifests)
    for text in ("2026-01-01T00:02:30Z", "2026-01-01 00:02:30", "1767225750"):
        result = run_module(restore_point_info, find(bucket, key.identity, restore_to=text, at_most=2))
        # however many there are since
        assert [candidate["id"] for candidate in result["plan"]["redis"]] == [manifests[2]["id"], manifests[1]["id"]], result
        assert result["restore_to"] == 1767225750 and result["titan_dr"]["gates"][0]["evidence"].startswith("before 2026-01-01 00:02:30 UTC: 2 usable")
    # one of that very second may hold what came after it
    result = run_module(restore_point_info, find(bucket, key.identity, restore_to="1767225720.5"))
    assert result["plan"]["redis"][0]["id"] == manifests[1]["id"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2025-12-31", "no usable restore point from before 2025-12-31 00:00:00 UTC: the newest 2 are from 2026-01-01 00:00:00 UTC to 2026-01-01 00:01:00 UTC"),
        ("2999-01-01", "is in the future"),
        ("yesterday", "neither ISO 8601 nor seconds since the epoch"),
        ("-5", "is no time"),
    ],
)
def test_a_bad_point_in_time(bucket: Any, sealed_manifest: Any, key: Any, run_module: Any, text: str, why: str) -> None:
    put(bucket, sealed_manifest(key), sealed_manifest(key, 60))
    result = run_module(restore_point_info, find(bucket, key.identity, restore_to=text))
    assert result["failed"] and why in result["msg"] and result["titan_dr"]["refused"] == result["msg"]


@pytest.mark.parametrize("case", ["empty", "foreign", "locked", "damaged", "silent"])
def test_refused(bucket: Any, sealed_manifest: Any, key: Any, other_key: Any, run_module: Any, case: str) -> None:
    params = find(bucket, key.identity)
    why = "they are empty"
    if case == "foreign":
        put(bucket, sealed_manifest(key, environment_id="staging"))
        why = "of environment staging"
    if case == "locked":
        put(bucket, sealed_manifest(other_key))
        why = "titan_age_identity opens no restore point"
    if case == "damaged":
        bucket.objects["titan/lab/points/20260101T000000Z-abcdef/manifest.json"] = b"{"
        why = "not JSON"
    if case == "silent":
        params["stores"] = [{**bucket.store, "endpoint": "http://127.0.0.1:1"}]
        why = "No store can be read"
    result = run_module(restore_point_info, params)
    assert result["failed"] and why in result["msg"] and result["titan_dr"]["refused"] == result["msg"]
    assert result["titan_dr"]["gates"][0]["verdict"] == "fail" and key.identity not in json.dumps(result)


def test_a_silent_store_is_named(bucket: Any, sealed_manifest: Any, key: Any, run_module: Any) -> None:
    put(bucket, sealed_manifest(key))
    gone = {**bucket.store, "name": "gone", "endpoint": "http://127.0.0.1:1"}
    result = run_module(restore_point_info, find(bucket, key.identity, stores=[gone, bucket.store]))
    assert not result["failed"] and result["titan_dr"]["notes"][0].startswith("store gone does not answer")


def test_found_for_a_server_that_has_not_everything(bucket: Any, sealed_manifest: Any, key: Any, run_module: Any) -> None:
    point = sealed_manifest(key, without=("redis",))
    put(bucket, point)
    result = run_module(restore_point_info, find(bucket, key.identity, needs=["app"]))
    assert [candidate["id"] for candidate in result["plan"]["app"]] == [point["id"]] and result["plan"]["redis"] == []
    assert result["titan_dr"]["gates"][0]["evidence"].startswith(f"1 usable, newest {point['id']} of ")
    for needs in ({}, {"needs": ["redis"]}):
        result = run_module(restore_point_info, find(bucket, key.identity, **needs))
        assert result["failed"] and "objects.redis is missing" in result["msg"]
    late = run_module(restore_point_info, find(bucket, key.identity, needs=[], restore_to="2025-12-31"))
    assert late["failed"] and "the newest 1 are from" in late["msg"]
    assert not run_module(restore_point_info, find(bucket, key.identity, needs=[], restore_to="2026-01-02"))["failed"]
