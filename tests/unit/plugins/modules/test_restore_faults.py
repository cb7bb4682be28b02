# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of Redis data (B) and of Redis at run time (C), on real servers: live data is never lost, nothing empty recovered, nothing wrong proven."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rdb_writer as rdb
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format, _redis, _redis_data, _redis_live, _redis_unit
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_stage, redis_swap

CANARY = {"key": "titan:dr:canary", "db": 1}


@pytest.fixture
def dump(redis_server: Any, case: Any, section_of: Any) -> bytes:
    """A good dump; the values are not compressed, so that a changed byte is a changed value."""
    server = redis_server(rdbcompression="no")
    server.fill()
    dump = bytes(server.dump())
    case.section = section_of(dump)
    return dump


def passed_over(case: Any, dump: bytes, run_module: Any) -> dict[str, str]:
    """Stage with a good candidate behind the bad ones; why each of them was passed over."""
    bad = [candidate["id"] for candidate in case.params["candidates"]]
    case.add("good", dump, taken_at=900.0)
    result = run_module(redis_stage, case.params)
    assert not result["failed"], result["msg"]
    assert result["titan_dr"]["restore_point"]["id"] == "good" and (case.directory / "base.rdb").read_bytes() == dump
    assert any("s older than the newest one" in note for note in result["titan_dr"]["notes"]), "the extra loss is stated"
    reasons = [note.removeprefix("passed over: restore point ") for note in result["titan_dr"]["notes"] if note.startswith("passed over")]
    assert [reason.split()[0] for reason in reasons] == bad
    return {reason.split()[0]: reason for reason in reasons}


def refused_alone(case: Any, run_module: Any) -> str:
    """Stage with nothing good: refused, and no stage is left."""
    result = run_module(redis_stage, case.params)
    assert result["failed"] and not case.directory.exists()
    message: str = result["msg"]
    return message


# --- B: the files ---------------------------------------------------------------------------------------------------


def test_b01_zero_length(case: Any, dump: bytes, run_module: Any) -> None:
    case.add("empty", b"")
    case.add("empty-recorded", b"", recorded=True)
    reasons = passed_over(case, dump, run_module)
    assert "0 bytes" in reasons["empty"] and "empty" in reasons["empty-recorded"]


def test_b02_truncated(case: Any, dump: bytes, run_module: Any) -> None:
    lengths = [1, 9, len(dump) // 3, len(dump) // 2, len(dump) - 9, len(dump) - 8, len(dump) - 1]
    for length in lengths:
        case.add(f"cut{length}", dump[:length], recorded=True)
    case.add("cut", dump[:-1])
    reasons = passed_over(case, dump, run_module)
    assert "in the manifest" in reasons["cut"]
    for length in lengths:
        assert "[truncated" in reasons[f"cut{length}"] or "no RDB file" in reasons[f"cut{length}"], reasons[f"cut{length}"]


def test_b03_flipped_bit(case: Any, dump: bytes, run_module: Any) -> None:
    value = dump.index(b"x" * 50) + 10
    for at in (value, len(dump) // 2, len(dump) - 20, len(dump) - 3):
        data = bytearray(dump)
        data[at] ^= 4
        case.add(f"bit{at}", bytes(data), recorded=True)
        case.add(f"after{at}", bytes(data))
    reasons = passed_over(case, dump, run_module)
    assert "checksum-mismatch" in reasons[f"bit{value}"]
    assert all("not the one that was saved" in reason for name, reason in reasons.items() if name.startswith("after"))


def test_b04_flipped_bit_without_a_checksum(case: Any, dump: bytes, redis_server: Any, section_of: Any, run_module: Any) -> None:
    """Redis loads it without a word. The manifest's checksum state tells, and where the server wrote none, the fingerprint."""
    flipped = bytearray(dump)
    flipped[dump.index(b"key:5") + 20] ^= 4
    case.add("zeroed", rdb.reseal(bytes(flipped), crc=False), recorded=True)
    case.add("resealed", rdb.reseal(bytes(flipped)), recorded=True)
    server = redis_server(rdbchecksum="no", rdbcompression="no")
    server.fill()
    unprotected = server.dump()
    assert unprotected[-8:] == bytes(8)
    section = section_of(unprotected)
    assert section["checksum"] == "disabled"
    flipped = bytearray(unprotected)
    flipped[unprotected.index(b"key:5") + 20] ^= 4
    case.add("never", bytes(flipped), section, recorded=True)
    case.add("never-digest", bytes(flipped), section)
    reasons = passed_over(case, dump, run_module)
    assert "its checksum is disabled, the manifest says ok" in reasons["zeroed"]
    assert "the fingerprint is" in reasons["resealed"] and "the fingerprint is" in reasons["never"]
    assert "not the one that was saved" in reasons["never-digest"]


def test_b04_without_a_checksum_but_with_its_digest_it_is_proven(case: Any, redis_server: Any, section_of: Any, run_module: Any) -> None:
    server = redis_server(rdbchecksum="no")
    server.fill()
    dump = server.dump()
    case.add("new", dump, section_of(dump))
    result = run_module(redis_stage, case.params)
    assert not result["failed"] and "checksum disabled" in result["titan_dr"]["gates"][0]["evidence"]


def test_b05_version_digits_lowered(case: Any, dump: bytes, run_module: Any) -> None:
    """With REDIS0001 Redis skips the checksum."""
    lowered = b"REDIS0001" + dump[9:]
    flipped = bytearray(lowered)
    flipped[dump.index(b"x" * 50) + 10] ^= 4
    case.add("lowered", lowered, recorded=True)
    case.add("flipped", bytes(flipped), recorded=True)
    case.add("nine", rdb.reseal(b"REDIS0009" + dump[9:]), recorded=True)
    reasons = passed_over(case, dump, run_module)
    assert all("[version-differs" in reason for reason in reasons.values())


def test_b06_newer_than_the_server(case: Any, dump: bytes, section_of: Any, run_module: Any, box: Path) -> None:
    with servers.running("8.2") as server:
        server.client.set("a", "1")
        newer = server.dump()
    with servers.running("valkey-9.1") as server:
        server.client.set("a", "1")
        foreign = server.dump()
    case.add("future", rdb.reseal(b"REDIS0099" + dump[9:]), recorded=True, rdb_version=99)
    case.add("newer", newer, section_of(newer, canary=None, server=str(servers.BINARIES["8.2"])))
    case.add("foreign", foreign, section_of(foreign, canary=None, server=str(servers.BINARIES["valkey-9.1"])))
    reasons = passed_over(case, dump, run_module)
    assert "RDB 99" in reasons["future"] and "RDB 12: Redis 7.0 reads up to RDB 10" in reasons["newer"]
    assert "Redis reads no file of Valkey 9" in reasons["foreign"]


def test_b07_module_data_without_its_module(case: Any, dump: bytes, run_module: Any) -> None:
    moduled = rdb.rdb(
        rdb.aux("redis-ver", "7.0.15"), rdb.select(0), rdb.resize(1, 0), rdb.key("g", _rdb_format.MODULE_2, rdb.module_value("graphdata", [rdb.module_uint(1)]))
    )
    case.add("module", moduled, recorded=True, keyspace={"db0": {"keys": 1, "expires": 0}}, canary=None)
    assert "graphdata" in passed_over(case, dump, run_module)["module"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"REDUS0010" + bytes(50), "no RDB file"),
        (b"hello\n" * 20, "text"),
        (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "HTML"),
        (b'{"error": "no such key", "code": 404}', "JSON"),
        (None, "gzip data: unpack it first"),
    ],
    ids=["magic", "text", "html", "json", "gzip"],
)
def test_b08_something_else(case: Any, dump: bytes, run_module: Any, content: bytes | None, said: str) -> None:
    data = gzip.compress(dump) if content is None else content
    case.add("recorded", data, recorded=True)
    case.add("digest", data, size=len(data))
    reasons = passed_over(case, dump, run_module)
    assert said in reasons["recorded"] and said in reasons["digest"]


def test_b09_trailing_garbage(case: Any, dump: bytes, run_module: Any) -> None:
    """Redis loads the first part and says nothing."""
    case.add("garbage", dump + b"g" * 100, recorded=True)
    case.add("two", dump + dump, recorded=True)
    assert all("[trailing-bytes" in reason for reason in passed_over(case, dump, run_module).values())


def test_b11_wrong_key(case: Any, dump: bytes, other_key: Any, run_module: Any) -> None:
    case.add("new", dump)
    case.params["identity"] = other_key.identity
    assert "age ended with" in refused_alone(case, run_module)
    # Several keys: the one that fits is found.
    case.params["identity"] = f"{other_key.identity}\n{case.key.identity}\n"
    assert not run_module(redis_stage, case.params)["failed"]


def test_b12_flipped_ciphertext(case: Any, dump: bytes, run_module: Any) -> None:
    data, entry = case.key.stored(dump, "points/x/redis.rdb.zst.age")
    flipped = bytearray(data)
    flipped[len(flipped) // 2] ^= 1
    case.add("store", dump, stored=bytes(flipped))
    case.add("before", dump, stored=bytes(flipped))
    # The manifest has the digest of the damaged object: encryption that authenticates tells nevertheless.
    case.params["candidates"][-1]["object"]["sha256"] = hashlib.sha256(flipped).hexdigest()
    case.params["candidates"][-1]["object"]["size"] = entry["size"]
    assert all("age ended with" in reason for reason in passed_over(case, dump, run_module).values())


@pytest.mark.parametrize("identity", ["", "not a key"])
def test_b13_no_key(case: Any, dump: bytes, run_module: Any, identity: str) -> None:
    live = Path(case.params["data_dir"])
    live.mkdir()
    (live / "dump.rdb").write_bytes(b"live")
    case.add("new", dump)
    case.params["identity"] = identity
    assert "No Redis data was restored" in refused_alone(case, run_module) and (live / "dump.rdb").read_bytes() == b"live"


@pytest.mark.parametrize("there", [True, False], ids=["b14_aof_there", "b15_no_aof"])
def test_b14_b15_a_dump_under_appendonly(host: Any, dump: bytes, run_module: Any, there: bool) -> None:
    """Redis ignores dump.rdb then: it would come up with the old data, or empty."""
    if there:
        host.run_old().close()
    host.staged(dump)
    result = run_module(redis_swap, host.params)
    assert not result["failed"], result["msg"]
    client = host.client()
    assert _redis.keyspace(client) == {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}} and client.call("EXISTS", "old:1") == 0
    # Also after the next start.
    client.call("SET", "after", "1")
    host.systemctl("stop", deadline=0)
    host.process.wait()
    host.systemctl("start", deadline=0)
    assert host.client().call("GET", "after") == "1" and _redis.keyspace(host.client())["db0"]["keys"] == 11


def live_aof(host: Any, damage: Callable[[Path], None]) -> bytes:
    """The live AOF after a stop, damaged; returns what the increment holds."""
    host.run_old().call("SET", "last", "value-of-the-last")
    host.process.kill()
    host.process.wait()
    folder = host.data / "appendonlydir"
    damage(folder)
    increments = list(folder.glob("*.incr.aof"))
    return increments[0].read_bytes() if increments else b""


def cut_tail(folder: Path) -> None:
    path = next(folder.glob("*.incr.aof"))
    os.truncate(path, path.stat().st_size - 5)


def flip_value(folder: Path) -> None:
    path = next(folder.glob("*.incr.aof"))
    path.write_bytes(path.read_bytes().replace(b"value-of-the-last", b"value-of-the-lasu"))


def no_manifest(folder: Path) -> None:
    next(folder.glob("*.manifest")).unlink()


def no_increment(folder: Path) -> None:
    next(folder.glob("*.incr.aof")).unlink()


@pytest.mark.parametrize(
    ("damage", "verdict", "said"),
    [
        pytest.param(cut_tail, "unproven", "canary", id="b16_cut_tail"),
        pytest.param(flip_value, "unproven", "canary", id="b17_flipped_value"),
        pytest.param(no_manifest, "refused", "no manifest", id="b18_no_manifest"),
        pytest.param(no_increment, "refused", "it is not there", id="b19_no_increment"),
    ],
)
def test_b16_b17_b18_b19_a_live_aof_of_other_data(
    host: Any, case: Any, dump: bytes, run_module: Any, damage: Callable[[Path], None], verdict: str, said: str
) -> None:
    """Whatever it holds instead, the restore point is restored, and the AOF is kept as it was. What is salvaged: test_redis_stage_salvage.py."""
    before = live_aof(host, damage)
    (host.data / "dump.rdb").unlink(missing_ok=True)
    case.add("new", dump)
    staged = run_module(redis_stage, {**case.params, "salvage": "auto"})
    archive, aof = staged["titan_dr"]["candidates"]
    assert archive["chosen"] and (aof["kind"], aof["verdict"]) == ("aof", verdict) and said in aof["reason"], aof
    result = run_module(redis_swap, {**host.params, "expected": staged["expected"]})
    assert not result["failed"], result["msg"]
    assert host.client().call("EXISTS", "last") == 0
    kept = Path(result["kept"]) / "appendonlydir"
    assert [path.read_bytes() for path in kept.glob("*.incr.aof")] == ([before] if before else [])


def test_b20_valid_but_wrong(case: Any, dump: bytes, redis_server: Any, section_of: Any, run_module: Any) -> None:
    server = redis_server()
    server.fill()
    for number in range(50):
        server.client.call("SET", f"titan:positions:binance:JUNK{number}", "0", "EX", "100")
    junk = server.dump()
    case.add("junk", junk, section_of(junk))
    case.params["invariants"] = [{"class": "titan:positions:binance", "min": 1, "max": 20, "expires_max": 0}]
    reason = passed_over(case, dump, run_module)["junk"]
    assert "titan:positions:binance has 51 keys, at most 20 can be right" in reason and "50 keys of titan:positions:binance have an expiry" in reason
    case.params["invariants"] = [{"class": "titan:orders", "min": 1}]
    assert "titan:orders has 0 keys, at least 1 must be there" in refused_alone(case, run_module)


def test_b22_a_stale_temporary_dump(host: Any, dump: bytes, run_module: Any) -> None:
    (host.data / "temp-12345.rdb").write_bytes(b"half a dump")
    host.staged(dump)
    result = run_module(redis_swap, host.params)
    assert not result["failed"] and not list(host.data.glob("temp-*")) and (Path(result["kept"]) / "temp-12345.rdb").exists()


def test_b23_wrong_owner_and_mode(host: Any, dump: bytes, run_module: Any) -> None:
    """What goes live belongs to the user of Redis, whatever was there, and nobody else writes there."""
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(host.data, 12345, 12345)
    host.data.chmod(0o000)
    host.staged(dump)
    (host.stage / "base.rdb").chmod(0o666)
    os.chown(host.stage / "base.rdb", 12345, 12345)
    result = run_module(redis_swap, host.params)
    assert not result["failed"]
    for path in [host.data, *host.data.rglob("*")]:
        assert path.stat().st_uid == os.geteuid() and path.stat().st_mode & 0o022 == 0, path


# --- C: at run time -------------------------------------------------------------------------------------------------


def refused(host: Any, run_module: Any, *why: str, ran: bool = True, **more: Any) -> dict[str, Any]:
    """The swap is refused before anything is stopped or moved."""
    result: dict[str, Any] = run_module(redis_swap, {**host.params, **more})
    assert result["failed"] and result["msg"].startswith("Redis was not restored: "), result
    for text in why:
        assert text in result["msg"], result["msg"]
    assert not [line for line in host.log if line.startswith("stop")] and host.data.exists() and not list(host.box.glob("redis.before-*"))
    assert host.stage.exists() and host.alive() is ran
    return result


def put_back(host: Any, result: dict[str, Any], *failing: str) -> None:
    """The swap was undone: the old server serves the old data."""
    assert result["failed"] and set(host.failing(result)) == set(failing), result
    assert host.alive() and host.client().call("EXISTS", "old:1") == 1 and not list(host.box.glob("redis.before-*"))
    assert list(host.box.glob("redis.failed-*"))


@pytest.fixture
def living(host: Any, dump: bytes) -> Any:
    """A Redis that lives with other data, and a stage that was proven."""
    host.run_old()
    host.staged(dump)
    return host


def beside(host: Any, *arguments: str) -> subprocess.Popen[bytes]:
    """Another redis-server."""
    process = subprocess.Popen(["redis-server", "--save", "", *arguments], stdout=subprocess.DEVNULL)
    host.others.append(process)
    return process


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_c01_redis_runs_during_the_restore(living: Any, run_module: Any) -> None:
    """It is stopped; what it wrote goes aside with its directory, and its dump at the stop does not overwrite what is restored."""
    living.client().call("SET", "written-just-before", "1")
    result = run_module(redis_swap, living.params)
    assert not result["failed"] and living.client().call("EXISTS", "written-just-before") == 0
    kept = next((Path(result["kept"]) / "appendonlydir").glob("*.incr.aof"))
    assert b"written-just-before" in kept.read_bytes()


def test_c01_a_second_redis_on_the_data(living: Any, run_module: Any) -> None:
    other = beside(living, "--port", "0", "--dir", str(living.data), "--unixsocket", f"{living.box}/other.sock")
    until((living.box / "other.sock").exists)
    refused(living, run_module, f"process {other.pid} (redis-server)", "nothing was stopped")


def test_c01_a_second_redis_on_the_port(host: Any, dump: bytes, run_module: Any) -> None:
    port = free_port()
    host.configure("appendonly yes", "requirepass secret", port=port)
    host.staged(dump)
    other = beside(host, "--port", str(port), "--dir", str(host.box))
    until(lambda: bool(_redis_unit.listening(other.pid)))
    refused(host, run_module, f"process {other.pid} (redis-server) listens on", f"port {port}", ran=False)


def test_c03_systemd_restarts_redis_during_the_swap(living: Any, run_module: Any) -> None:
    """Restart=always: the unit refuses to start as long as the directory is not whole."""
    living.restart_always = True
    tries: list[str] = []
    real = living.come_back

    def come_back(process: Any) -> None:
        process.wait()
        with pytest.raises(_redis_unit.UnitError):
            living.systemctl("start", "redis-test", deadline=0)
        tries.append("refused")

    living.come_back = come_back
    result = run_module(redis_swap, living.params)
    assert not result["failed"] and tries == ["refused"] and real
    assert living.client().call("EXISTS", "old:1") == 0


def test_c03_somebody_else_restarts_redis_during_the_swap(living: Any, run_module: Any) -> None:
    """A supervisor that does not ask systemd: found by /proc, named, and the directory stays."""

    def supervisor() -> None:
        def work() -> None:
            living.process.wait()
            beside(living, "--port", "0", "--dir", str(living.data), "--appendonly", "yes", "--unixsocket", f"{living.box}/other.sock")

        threading.Thread(target=work).start()
        until(lambda: not living.alive())
        until(lambda: bool(living.others) and _redis_unit.cwd(living.others[-1].pid) == str(living.data))

    living.after_stop = supervisor
    result = run_module(redis_swap, living.params)
    assert result["failed"] and "something else starts Redis" in result["msg"] and f"process {living.others[0].pid} (redis-server)" in result["msg"]
    assert (living.data / "appendonlydir").is_dir() and not list(living.box.glob("redis.before-*")) and living.stage.exists()


@pytest.fixture
def small(box: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of this many bytes below the box."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = box / f"small{len(mounted)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_c04_too_little_room_for_the_stage(case: Any, dump: bytes, small: Any, run_module: Any) -> None:
    place = small(1 << 20)
    (place / "redis").mkdir()
    (place / "redis" / "dump.rdb").write_bytes(b"live")
    case.params["data_dir"] = str(place / "redis")
    case.add("new", dump)
    result = run_module(redis_stage, case.params)
    assert result["failed"] and "are needed: make room" in result["msg"]
    assert os.listdir(place) == ["redis"] and (place / "redis" / "dump.rdb").read_bytes() == b"live"


def test_c04_the_disk_fills_while_it_is_fetched(
    case: Any, dump: bytes, redis_server: Any, section_of: Any, small: Any, run_module: Any, monkeypatch: Any
) -> None:
    """Others need room too: what was there at the beginning may be gone."""
    monkeypatch.setattr(_redis_data, "MARGIN", 0)
    place = small(3 << 20)
    server = redis_server(rdbcompression="no")
    server.client.call("SET", "big", os.urandom(700_000))
    big = server.dump()
    case.params["data_dir"] = str(place / "redis")
    case.add("new", big, section_of(big, canary=None))
    (place / "others").write_bytes(b"x" * (2 << 20))
    monkeypatch.setattr(_redis_data, "place_faults", lambda *rest: [])
    (place / "more").write_bytes(b"x" * (900 << 10))
    result = run_module(redis_stage, case.params)
    assert result["failed"] and "No space left on device" in result["msg"] and sorted(os.listdir(place)) == ["more", "others"]


def test_c04_too_little_room_for_the_swap(host: Any, dump: bytes, small: Any, run_module: Any) -> None:
    place = small(8 << 20)
    host.data = place / "redis"
    host.data.mkdir()
    host.stage = place / "redis.stage-r1"
    host.configure("appendonly yes", "requirepass secret")
    host.params |= {"data_dir": str(host.data), "stage": str(host.stage)}
    host.run_old()
    host.staged(dump)
    refused(host, run_module, "are needed: make room")


def test_c05_the_disk_is_full_when_the_new_base_is_written(living: Any, small: Any, run_module: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(_redis_data, "MARGIN", 0)
    place = small(4 << 20)
    living.close()
    living.data, living.stage = place / "redis", place / "redis.stage-r1"
    living.data.mkdir()
    stage = living.box / "redis.stage-r1"
    shutil.copytree(stage, living.stage)
    living.configure("appendonly yes", "requirepass secret")
    living.params |= {"data_dir": str(living.data), "stage": str(living.stage)}
    living.run_old()

    def fill() -> None:
        if not (place / "others").exists():
            with (place / "others").open("wb", buffering=0) as handle, pytest.raises(OSError, match="No space left"):
                while True:
                    handle.write(b"x" * 4096)
                    handle.flush()

    # Between the write probe and the new base.
    real = _redis_live.new_base

    def new_base(conf: Any, deadline: float) -> Any:
        fill()
        return real(conf, deadline)

    monkeypatch.setattr(_redis_live, "new_base", new_base)
    result = run_module(redis_swap, living.params)
    assert result["failed"] and set(living.failing(result)) == {"redis_new_base"} and "is the disk full?" in result["msg"]
    assert living.client().call("EXISTS", "old:1") == 1 and (place / "redis.failed-r1").exists()


@pytest.mark.parametrize(("policy", "said"), [("allkeys-lru", "would evict keys"), ("noeviction", "every write would be refused")])
def test_c06_the_data_does_not_fit_maxmemory(living: Any, run_module: Any, policy: str, said: str) -> None:
    living.configure("appendonly yes", "requirepass secret", "maxmemory 100kb", f"maxmemory-policy {policy}")
    refused(living, run_module, "does not fit the data", said)


def test_c06_a_candidate_that_does_not_fit_the_living_server(case: Any, dump: bytes, run_module: Any) -> None:
    Path(case.params["config"]).write_text("maxmemory 100kb\nmaxmemory-policy allkeys-lru\n")
    case.add("new", dump)
    assert "would evict keys" in refused_alone(case, run_module)


def test_c06_more_databases_than_the_living_server_has(case: Any, dump: bytes, run_module: Any) -> None:
    Path(case.params["config"]).write_text("databases 1\n")
    case.add("new", dump)
    assert "3 keys in database 1, the target has" in refused_alone(case, run_module)


def test_c06_eviction_that_happens_nevertheless(living: Any, run_module: Any) -> None:
    """The forecast went by too little: the gate after the start sees it, and the old data is back."""
    del living.params["expected"]["facts"]
    old = living.config.read_text()
    living.config.write_text(old + "maxmemory 900kb\nmaxmemory-policy allkeys-lru\n")
    result = run_module(redis_swap, living.params)
    assert result["failed"] and "redis_no_eviction" in living.failing(result)
    living.config.write_text(old)
    assert not list(living.box.glob("redis.before-*"))


def test_c08_keys_that_expired_during_the_outage(case: Any, redis_server: Any, section_of: Any, run_module: Any) -> None:
    server = redis_server()
    server.fill()
    for number in range(6):
        server.client.call("SET", f"titan:signals:{number}", "1", "PX", 700)
    dump = server.dump()
    case.add("new", dump, section_of(dump))
    time.sleep(0.8)
    result = run_module(redis_stage, case.params)
    assert not result["failed"], result["msg"]
    assert "6 keys expired since the snapshot and do not come back: titan:signals 6" in result["titan_dr"]["notes"]


def test_c09_a_clock_that_is_behind(case: Any, dump: bytes, run_module: Any) -> None:
    case.add("future", dump, taken_at=time.time() + 3600)
    assert "this server's clock is wrong" in refused_alone(case, run_module)


def test_c10_another_password(living: Any, run_module: Any) -> None:
    living.configure("appendonly yes", "requirepass changed")
    refused(living, run_module, "Redis is up but refuses", "WRONGPASS", "titan_redis_password")
    refused(living, run_module, "WRONGPASS", password="neither")
    living.configure("appendonly yes")
    refused(living, run_module, "Redis is up but refuses", "NOAUTH")


def test_c10_the_inventory_has_the_password(living: Any, run_module: Any) -> None:
    """The configuration holds a hash of it only."""
    living.close()
    living.configure("appendonly yes", f"user default on #{hashlib.sha256(b'secret').hexdigest()} ~* &* +@all")
    living.launch()
    until((living.box / "live.sock").exists)
    refused(living, run_module, "NOAUTH")
    result = run_module(redis_swap, {**living.params, "password": "secret"})
    assert not result["failed"] and "secret" not in json.dumps(result)


def test_c11_the_acl_file_is_missing(living: Any, run_module: Any) -> None:
    living.configure("appendonly yes", f"aclfile {living.box}/users.acl")
    refused(living, run_module, "users.acl cannot be read", "Redis would not start")


def test_c11_the_acl_file_is_damaged(living: Any, run_module: Any) -> None:
    (living.box / "users.acl").write_text("usr default on nopass\n")
    living.configure("appendonly yes", f"aclfile {living.box}/users.acl")
    refused(living, run_module, "not an ACL user")


def test_c11_users_of_an_acl_file(living: Any, run_module: Any) -> None:
    living.close()
    acl = living.box / "users.acl"
    acl.write_text(
        "user default off\nuser titan on >hush ~* &* +@all\nuser weak on >hush ~* &* +@all -info\nuser reader on >hush ~* &* +@read +info +ping +select\n"
    )
    living.configure("appendonly yes", f"aclfile {acl}")
    living.launch()
    until((living.box / "live.sock").exists)
    refused(living, run_module, "Redis is up but refuses", "NOPERM", username="weak")
    refused(living, run_module, "WRONGPASS", username="titan", password="wrong")
    result = run_module(redis_swap, {**living.params, "username": "titan"})
    assert not result["failed"], result["msg"]


def test_c11_a_user_that_may_not_write_proves_nothing(living: Any, run_module: Any) -> None:
    living.close()
    acl = living.box / "users.acl"
    acl.write_text("user default on >secret ~* &* +@all\nuser reader on >hush ~* &* +@read +info +ping +select\n")
    living.configure("appendonly yes", f"aclfile {acl}")
    living.launch()
    result = run_module(redis_swap, {**living.params, "username": "reader"})
    put_back(living, result, "redis_write")
    assert "NOPERM" in living.failing(result)["redis_write"]


class Certificates:
    """A CA and certificates of it."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.make("ca", days=30, ca=True)

    def make(self, name: str, days: int, ca: bool = False) -> list[str]:
        """Directives of a server with this certificate."""
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = self.key if ca else ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(tz=datetime.UTC)
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        cert, secret = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        return [f"tls-cert-file {cert}", f"tls-key-file {secret}", f"tls-ca-cert-file {self.folder}/ca.crt"]


def tls_only(host: Any, *lines: str) -> int:
    port = free_port()
    host.config.write_text(f'port 0\ntls-port {port}\nbind 127.0.0.1\ndir {host.data}\nsave ""\nappendonly yes\nrequirepass secret\n' + "\n".join(lines) + "\n")
    return port


@pytest.mark.parametrize("clients", ["yes", "no"])
def test_c12_tls_only(host: Any, dump: bytes, run_module: Any, clients: str) -> None:
    tls_only(host, *Certificates(host.box).make("server", days=30), f"tls-auth-clients {clients}")
    host.run_old()
    host.staged(dump)
    result = run_module(redis_swap, host.params)
    assert not result["failed"], result["msg"]


def test_c12_an_expired_certificate_is_named_before_anything_is_stopped(host: Any, dump: bytes, run_module: Any) -> None:
    certificates = Certificates(host.box)
    tls_only(host, *certificates.make("server", days=30))
    host.run_old()
    host.staged(dump)
    tls_only(host, *certificates.make("old", days=-1))
    refused(host, run_module, "the certificate has expired")
    tls_only(host, *certificates.make("server", days=30), f"tls-cert-file {host.box}/none.crt")
    refused(host, run_module, "cannot be used")
    # Of another CA.
    folder = host.box / "other"
    folder.mkdir()
    stranger = Certificates(folder).make("server", days=30)
    tls_only(host, *stranger[:2], f"tls-ca-cert-file {host.box}/ca.crt")
    refused(host, run_module, "TLS: the certificate is not accepted")


def test_c12_the_running_server_has_an_expired_certificate(host: Any, dump: bytes, run_module: Any) -> None:
    """The files were renewed and the server was not told: that is said, and nothing else is tried."""
    certificates = Certificates(host.box)
    port = tls_only(host, *certificates.make("old", days=-1), "tls-auth-clients no")
    host.launch()
    until(lambda: bool(host.process and _redis_unit.listening(host.process.pid)))
    host.staged(dump)
    renewed = certificates.make("server", days=30)
    host.config.write_text(host.config.read_text().replace(f"{host.box}/old.", f"{host.box}/server."))
    assert renewed and str(port) in host.config.read_text()
    refused(host, run_module, "Redis is up but refuses", "the certificate has expired")


def test_c12_plain_text_is_never_tried(host: Any, dump: bytes, run_module: Any) -> None:
    port = free_port()
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", port))

    def work() -> None:
        for dummy in range(1):
            client, _address = listener.accept()
            client.settimeout(5)
            heard.append(client.recv(1000))
            client.sendall(b"-ERR Protocol error\r\n")
            client.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    certificates = Certificates(host.box).make("server", days=30)
    conf = _redis.parse_conf(f"port 0\ntls-port {port}\nbind 127.0.0.1\nrequirepass secret\n" + "\n".join(certificates))
    with pytest.raises(_redis.TlsError, match="handshake failed"):
        _redis.connect(conf)
    thread.join(5)
    listener.close()
    assert heard[0][:1] == b"\x16" and b"AUTH" not in heard[0]


@pytest.mark.parametrize("word", ["replicaof", "slaveof"])
def test_c13_configured_as_a_replica(living: Any, run_module: Any, word: str) -> None:
    living.configure("appendonly yes", "requirepass secret", f"{word} 127.0.0.1 6399")
    number = len(living.config.read_text().splitlines())
    refused(living, run_module, f"line {number}: {word} 127.0.0.1 6399")
    # The last one counts, as in Redis.
    living.configure("appendonly yes", "requirepass secret", f"{word} 127.0.0.1 6399", "replicaof no one")
    assert not run_module(redis_swap, living.params)["failed"]


def test_c13_a_replica_by_a_command_is_watched_beyond_the_sync_delay(living: Any, run_module: Any) -> None:
    """An empty peer pulls it back after the start, as a supervisor of replication would."""
    living.configure("appendonly yes", "requirepass secret", "repl-diskless-sync-delay 0")
    empty = beside(living, "--port", "0", "--dir", str(living.box), "--unixsocket", f"{living.box}/empty.sock")
    until((living.box / "empty.sock").exists)
    living.client().call("REPLICAOF", "127.0.0.1", "1")

    def enslave() -> None:
        def work() -> None:
            client = living.client()
            until(lambda: client.info("persistence")["aof_base_size"] != "0" and (living.box / "redis.before-r1").exists())
            time.sleep(1.5)
            client.call("REPLICAOF", "127.0.0.1", "1")

        if not (living.box / "redis.failed-r1").exists():
            threading.Thread(target=work, daemon=True).start()

    living.after_start = enslave
    result = run_module(redis_swap, living.params)
    assert result["failed"] and "redis_stays_master" in living.failing(result) and empty.poll() is None
    assert any("was a replica of 127.0.0.1" in note for note in result["titan_dr"]["notes"])
    assert living.client().call("EXISTS", "old:1") == 1


def attach(living: Any) -> subprocess.Popen[bytes]:
    """A replica of the living server that is in sync."""
    port = free_port()
    living.close()
    living.configure("appendonly yes", "requirepass secret", "repl-diskless-sync-delay 0", port=port)
    living.launch()
    living.client()
    (living.box / "replica").mkdir()
    arguments = ["--port", "0", "--dir", f"{living.box}/replica", "--unixsocket", f"{living.box}/replica.sock"]
    replica = beside(living, *arguments, "--replicaof", "127.0.0.1", str(port), "--masterauth", "secret")
    until(lambda: living.client().info("replication")["connected_slaves"] == "1")
    until(lambda: "online" in living.client().info("replication").get("slave0", ""))
    return replica


def test_c14_attached_replicas(living: Any, run_module: Any) -> None:
    attach(living)
    client = _redis.Redis(f"{living.box}/replica.sock")
    until(lambda: client.call("EXISTS", "old:1") == 1)
    refused(living, run_module, "replicas are attached and hold newer data", "REPLICAOF NO ONE", "redis_restore_replicas_consent", "offset")
    assert client.call("EXISTS", "old:1") == 1
    result = run_module(redis_swap, {**living.params, "replicas_consent": True})
    assert not result["failed"], result["msg"]
    assert any("lose what they held" in note for note in result["titan_dr"]["notes"])


def test_c14_a_hung_master_cannot_be_asked_for_its_replicas(living: Any, run_module: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(_redis_unit, "peers", lambda pid, ports: {"10.0.0.7"})
    os.kill(living.process.pid, signal.SIGSTOP)
    refused(living, run_module, "10.0.0.7 hold connections to it", "may be replicas")


def test_c15_a_sentinel_watches(living: Any, run_module: Any) -> None:
    sentinel = living.client()
    sentinel.call("CLIENT", "SETNAME", "sentinel-0a1b2c3d-cmd")
    refused(living, run_module, "a Sentinel watches this Redis", "SENTINEL REMOVE")
    sentinel.close()


def slow(living: Any, redis_server: Any, microseconds: int) -> str:
    """A server that takes so long for each of 3000 keys; returns its configuration as it was."""
    text: str = living.config.read_text()
    server = redis_server()
    server.client.call("DEBUG", "POPULATE", 3000, "bulk", 50)
    dump = server.dump()
    (living.stage / "base.rdb").write_bytes(dump)
    living.params["expected"] = {"keyspace": {"db0": {"keys": 3000, "expires": 0}}}
    living.config.write_text(text + f"key-load-delay {microseconds}\nloading-process-events-interval-bytes 1024\n")
    return text


def test_c16_a_long_load_is_waited_for(living: Any, redis_server: Any, run_module: Any) -> None:
    slow(living, redis_server, 400)
    result = run_module(redis_swap, living.params)
    assert not result["failed"], result["msg"]
    evidence = next(gate["evidence"] for gate in result["titan_dr"]["gates"] if gate["name"] == "redis_start")
    assert "last heard while loading: loaded" in evidence and "bytes in" in evidence


def test_c16_a_load_beyond_the_deadline_is_undone_with_its_projection(living: Any, redis_server: Any, run_module: Any) -> None:
    text = slow(living, redis_server, 10_000)
    living.before_start = lambda: living.config.write_text(text) if (living.box / "redis.failed-r1").exists() else None
    result = run_module(redis_swap, {**living.params, "timeout": 4})
    put_back(living, result, "redis_start")
    assert "not ready in time: LOADING: loaded" in result["msg"] and "s to go" in result["msg"]


def test_c18_commands_that_are_renamed_or_disabled(host: Any, dump: bytes, run_module: Any) -> None:
    """As the guide's redis.conf has it, and worse."""
    gone = ("CONFIG", "DEBUG", "KEYS", "SHUTDOWN", "EVAL", "EVALSHA", "FLUSHALL", "FLUSHDB", "SAVE")
    renames = [f'rename-command {name} ""' for name in gone] + [
        "rename-command BGREWRITEAOF rewrite-it",
        "rename-command BGSAVE save-it",
        "rename-command DEL drop-it",
    ]
    host.configure("appendonly yes", "requirepass secret", *renames)
    host.run_old()
    host.staged(dump)
    result = run_module(redis_swap, host.params)
    assert not result["failed"], result["msg"]
    assert "redis_new_base" in host.gates(result)


def test_c18_no_new_base_can_be_asked_for(host: Any, dump: bytes, run_module: Any) -> None:
    host.configure("appendonly yes", "requirepass secret", 'rename-command BGREWRITEAOF ""')
    host.run_old()
    host.staged(dump)
    result = run_module(redis_swap, host.params)
    assert not result["failed"] and "redis_new_base" not in host.gates(result)
    assert "no new base was written: the configuration disables BGREWRITEAOF" in result["titan_dr"]["notes"]


# --- and what has no number -----------------------------------------------------------------------------------------


def test_a_hung_redis_is_killed_within_bounds(living: Any, run_module: Any) -> None:
    pid = living.process.pid
    os.kill(pid, signal.SIGSTOP)
    result = run_module(redis_swap, living.params)
    assert not result["failed"], result["msg"]
    assert not _redis_unit.state(pid) or _redis_unit.state(pid) == "Z"
    assert any(f"process {pid} was killed" in note for note in result["titan_dr"]["notes"])


def test_a_mount_point_is_refused(host: Any, dump: bytes, small: Any, run_module: Any) -> None:
    place = small(200 << 20)
    host.data = place
    host.configure("appendonly yes", "requirepass secret")
    host.params["data_dir"] = str(place)
    host.run_old()
    host.staged(dump)
    refused(host, run_module, "is a mount point", f"{place}/data")


def test_a_read_only_file_system_is_refused(host: Any, dump: bytes, small: Any, run_module: Any) -> None:
    place = small(200 << 20)
    host.data, host.stage = place / "redis", place / "redis.stage-r1"
    host.data.mkdir()
    host.configure("appendonly no", "requirepass secret")
    host.params |= {"data_dir": str(host.data), "stage": str(host.stage)}
    host.run_old()
    host.staged(dump)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    refused(host, run_module, "is read-only")


def test_a_server_that_listens_elsewhere_is_not_proven(living: Any, run_module: Any) -> None:
    """Started by another configuration than the one that is read."""
    elsewhere = free_port()
    real = living.config.read_text()

    def other_configuration() -> None:
        living.config.write_text(real + f"port {elsewhere}\nbind 0.0.0.0\n" if not (living.box / "redis.failed-r1").exists() else real)

    living.before_start = other_configuration
    result = run_module(redis_swap, living.params)
    put_back(living, result, "redis_bind")
    assert f"0.0.0.0 port {elsewhere}" in living.failing(result)["redis_bind"]


def test_a_server_with_another_directory_is_not_proven(living: Any, run_module: Any) -> None:
    real = living.config.read_text()
    (living.box / "elsewhere").mkdir()

    def other_directory() -> None:
        if (living.box / "redis.failed-r1").exists():
            living.config.write_text(real)
            return
        shutil.copytree(living.data, living.box / "elsewhere", dirs_exist_ok=True)
        living.config.write_text(real + f"dir {living.box}/elsewhere\n")

    living.before_start = other_directory
    put_back(living, run_module(redis_swap, living.params), "redis_dir")


def test_appendonly_no(host: Any, dump: bytes, run_module: Any) -> None:
    host.configure("appendonly no", "requirepass secret", "dbfilename live.rdb")
    host.staged(dump)
    result = run_module(redis_swap, host.params)
    assert not result["failed"] and "BGSAVE ended with ok" in json.dumps(result["titan_dr"]["gates"]) and (host.data / "live.rdb").exists()


def test_a_server_whose_addresses_are_others(living: Any) -> None:
    """/proc tells who holds connections from other hosts."""
    port = free_port()
    other = beside(living, "--port", str(port), "--bind", "127.0.0.1", "::1", "--dir", str(living.box))
    until(lambda: _redis_unit.listening(other.pid) == {("127.0.0.1", port), ("::1", port)})
    with socket.create_connection(("127.0.0.1", port)):
        assert _redis_unit.peers(other.pid, (port,)) == set()
