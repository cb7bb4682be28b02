# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_swap
from ansible_collections.titan.disaster_recovery.plugins.modules.redis_swap import SwapError, build, check_live, layout

EXPECTED = {
    "keyspace": {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}},
    "canary": {"key": "titan:dr:canary", "db": 1, "seq": 7, "at": 1000.0},
    "expired": 0,
    "databases": 16,
}


@pytest.fixture
def source(redis_server: Any) -> Any:
    server = redis_server()
    server.fill()
    return server


def verdicts(gates: list[dict[str, str]]) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in gates}


def failing(gates: list[dict[str, str]]) -> dict[str, str]:
    return {gate["name"]: gate["evidence"] for gate in gates if gate["verdict"] != "pass"}


# --- layout ---------------------------------------------------------------------------------------------------------


def test_start_timeout() -> None:
    assert [redis_swap.start_timeout(size) for size in (0, 2**30 - 1, 2**30, 10 * 2**30)] == [90, 90, 120, 660]


def test_layout_follows_the_configuration() -> None:
    assert layout(_redis.parse_conf("dbfilename live.rdb")) == ("live.rdb", "")
    conf = _redis.parse_conf("appendonly yes\nappendfilename a.aof\nappenddirname aofs")
    assert layout(conf) == ("aofs/a.aof.1.base.rdb", "file a.aof.1.base.rdb seq 1 type b\n")


def stage_of(box: Path, dump: bytes) -> Path:
    stage = box / "redis.stage-r1"
    stage.mkdir()
    (stage / "base.rdb").write_bytes(dump)
    return stage


@pytest.mark.parametrize(
    "directives", [{}, {"appendonly": "yes"}, {"appendonly": "yes", "appendfilename": "t.aof", "appenddirname": "aofs"}, {"dbfilename": "t.rdb"}]
)
def test_redis_starts_with_the_data(source: Any, box: Path, me: str, directives: dict[str, str]) -> None:
    """The proof of the layout: with AOF on, Redis ignores a dump and starts empty."""
    stage = stage_of(box, source.dump())
    text = f"port 0\nunixsocket {box}/live.sock\ndir {box}/redis\n" + "".join(f"{name} {value}\n" for name, value in directives.items())
    conf = _redis.parse_conf(text)
    live = build(str(stage), conf, me)
    os.rename(live, box / "redis")
    process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert process.stdin
        process.stdin.write(text.encode())
        process.stdin.close()
        gates = check_live(conf, EXPECTED, time.time() + 10, lambda: process.poll() is None)
        assert not failing(gates) and len(gates) == 5
    finally:
        process.kill()
        process.wait()


def test_build_goes_on_where_it_was_interrupted(box: Path, me: str) -> None:
    stage = stage_of(box, b"data")
    conf = _redis.parse_conf("appendonly yes")
    assert build(str(stage), conf, me) == build(str(stage), conf, me)
    files = {str(path.relative_to(stage / "live")): path for path in (stage / "live").rglob("*") if path.is_file()}
    assert set(files) == {"appendonlydir/appendonly.aof.1.base.rdb", "appendonlydir/appendonly.aof.manifest"}
    assert files["appendonlydir/appendonly.aof.1.base.rdb"].read_bytes() == b"data"
    assert (stage / "live").stat().st_mode & 0o777 == 0o750


def test_the_data_belongs_to_its_user(box: Path) -> None:
    stage = stage_of(box, b"data")
    build(str(stage), _redis.parse_conf("appendonly yes"), "nobody")
    assert {path.stat().st_uid for path in [stage / "live", *(stage / "live").rglob("*")]} == {65534}


@pytest.mark.parametrize("there", [True, False])
def test_a_stage_without_a_dump_is_refused(box: Path, me: str, there: bool) -> None:
    stage = box / "redis.stage-r1"
    if there:
        stage.mkdir()
    with pytest.raises(SwapError, match="holds no dump"):
        build(str(stage), _redis.parse_conf("appendonly yes"), me)
    assert stage.exists() is there


# --- what a live server says ----------------------------------------------------------------------------------------


def live(server: Any, expected: dict[str, Any] = EXPECTED, seconds: float = 5) -> list[dict[str, str]]:
    found: list[dict[str, str]] = check_live(server.conf, expected, time.time() + seconds, lambda: True)
    return found


def test_good(source: Any) -> None:
    assert verdicts(live(source)) == dict.fromkeys(("redis_keys", "redis_canary", "redis_role", "redis_no_eviction", "redis_write"), "pass")
    assert source.client.call("EXISTS", redis_swap.WRITE_PROBE) == 0 or source.client.call("PTTL", redis_swap.WRITE_PROBE) <= 1, "the probe leaves nothing"


def test_without_a_canary(source: Any) -> None:
    assert "redis_canary" not in verdicts(live(source, {**EXPECTED, "canary": None}))


def test_empty(redis_server: Any) -> None:
    assert set(failing(live(redis_server()))) == {"redis_keys", "redis_canary"}


@pytest.mark.parametrize(("seq", "verdict"), [(6, "fail"), (7, "pass"), (8, "pass")])
def test_canary(source: Any, seq: int, verdict: str) -> None:
    source.fill(seq=seq)
    assert verdicts(live(source))["redis_canary"] == verdict


def test_replica(source: Any, redis_server: Any) -> None:
    """Right data and a PONG, but nobody can write and a master can wipe it."""
    source.client.call("REPLICAOF", "127.0.0.1", 1)
    found = failing(live(source))
    assert found["redis_role"] == "role slave" and "READONLY" in found["redis_write"]


def test_read_only(source: Any) -> None:
    source.client.call("CONFIG", "SET", "min-replicas-to-write", 1)
    assert list(failing(live(source))) == ["redis_write"] and "NOREPLICAS" in failing(live(source))["redis_write"]


def test_evicted(source: Any) -> None:
    source.client.call("CONFIG", "SET", "maxmemory-policy", "volatile-lru", "maxmemory", "100kb")
    with pytest.raises(_redis.RedisError):
        for number in range(100):
            source.client.call("SET", f"more:{number}", "x" * 20_000)
    source.client.call("CONFIG", "SET", "maxmemory", "0")
    evidence = failing(live(source))
    assert evidence["redis_no_eviction"] == "2 keys evicted since the start"


def test_a_server_that_is_not_there(box: Path) -> None:
    conf = _redis.parse_conf(f"port 0\nunixsocket {box}/none.sock")
    with pytest.raises(_redis.RedisError, match="ended while loading"):
        check_live(conf, EXPECTED, time.time() + 5, lambda: False)


def test_password(redis_server: Any) -> None:
    server = redis_server(requirepass="secret")
    server.fill()
    assert not failing(live(server))
    server.client.call("CONFIG", "SET", "requirepass", "changed")
    with pytest.raises(_redis.RedisError, match="WRONGPASS"):
        live(server)


# --- the module -----------------------------------------------------------------------------------------------------


class Host:
    """systemd's part, played with real processes; unit files and records in a private directory."""

    def __init__(self, box: Path, dump: bytes, user: str) -> None:
        self.box, self.log, self.process = box, [""][:0], None
        self.data = box / "redis"
        self.data.mkdir()
        (self.data / "dump.rdb").write_bytes(b"old")
        self.config = box / "redis.conf"
        self.config.write_text(f"port 0\nunixsocket {box}/live.sock\ndir {self.data}\nappendonly yes\nrequirepass secret\n")
        self.stage = stage_of(box, dump)
        self.params = {
            "stage": str(self.stage),
            "expected": EXPECTED,
            "restore_point": "p1",
            "run_id": "r1",
            "data_dir": str(self.data),
            "config": str(self.config),
            "unit": "redis-test",
            "user": user,
            "timeout": 10,
        }

    def systemctl(self, *words: str, deadline: float) -> str:
        self.log.append(" ".join(words))
        if words[0] == "start":
            self.process = subprocess.Popen(["redis-server", str(self.config)], stdout=subprocess.DEVNULL)
        if words[0] == "stop" and self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
        return "active" if self.process and self.process.poll() is None else "inactive"

    process: subprocess.Popen[bytes] | None


@pytest.fixture
def host(source: Any, box: Path, me: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    host = Host(box, source.dump(), me)
    monkeypatch.setattr(redis_swap, "systemctl", host.systemctl)
    monkeypatch.setattr(redis_swap, "RECORD_DIR", str(box))
    made: list[str] = []
    real_open, real_makedirs = open, os.makedirs

    def to_box(path: Any) -> Any:
        if str(path).startswith("/etc/systemd"):
            made.append(str(path))
            return f"{box}{path}"
        return path

    monkeypatch.setattr(redis_swap, "open", lambda path, *rest, **more: real_open(to_box(path), *rest, **more), raising=False)
    monkeypatch.setattr(redis_swap.os, "makedirs", lambda path, *rest, **more: real_makedirs(to_box(path), *rest, **more))
    yield host
    host.systemctl("stop", deadline=0)


def test_swap(host: Any, run_module: Any) -> None:
    result = run_module(redis_swap, host.params)
    assert result["changed"] and not failing(result["titan_dr"]["gates"]) and result["kept"] == f"{host.data}.before-r1"
    assert host.log[:3] == ["daemon-reload", "stop redis-test", "start redis-test"]
    assert (host.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old" and not host.stage.exists()
    drop_in = host.box / "etc/systemd/system/redis-test.service.d/titan-dr.conf"
    assert "TimeoutStartSec=90" in drop_in.read_text()
    assert json.loads((host.box / "redis-live.json").read_text()) == {"restore_point": "p1", "run_id": "r1"}
    # A second time finds it served and does nothing.
    host.log.clear()
    again = run_module(redis_swap, host.params)
    assert again["changed"] is False and host.log == [] and len(again["titan_dr"]["gates"]) == 5


def test_another_restore_point_is_not_served_yet(host: Any, run_module: Any) -> None:
    run_module(redis_swap, host.params)
    host.log.clear()
    result = run_module(redis_swap, {**host.params, "restore_point": "p2"})
    assert result["failed"] and "exists already" in result["msg"]
    assert host.log == [] and host.process.poll() is None, "a server that serves is not stopped for a swap that cannot be made"


def test_a_server_that_fails_a_gate_is_stopped_again(host: Any, run_module: Any) -> None:
    host.params["expected"] = {**EXPECTED, "canary": {**EXPECTED["canary"], "seq": 8}}
    result = run_module(redis_swap, host.params)
    assert result["failed"] and "Redis is stopped again" in result["msg"] and set(failing(result["titan_dr"]["gates"])) == {"redis_canary"}
    assert host.log[-1] == "stop redis-test" and host.process is None
    assert (host.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old" and not (host.box / "redis-live.json").exists()
    # Nor does a second attempt put an empty directory live.
    again = run_module(redis_swap, host.params)
    assert again["failed"] and host.log[-1] == "stop redis-test"


def test_a_server_that_does_not_start(host: Any, run_module: Any) -> None:
    (host.stage / "base.rdb").write_bytes(b"REDIS0010 nothing")
    result = run_module(redis_swap, host.params)
    assert result["failed"] and list(failing(result["titan_dr"]["gates"])) == ["redis_start"]
    assert (host.box / "redis.before-r1" / "dump.rdb").exists()


def test_a_swap_that_broke_off_between_its_renames_goes_on(host: Any, run_module: Any) -> None:
    os.rename(host.data, f"{host.data}.before-r1")
    result = run_module(redis_swap, host.params)
    assert result["changed"] and (host.box / "redis.before-r1" / "dump.rdb").read_bytes() == b"old"


def test_a_blank_server_has_nothing_to_keep(host: Any, run_module: Any) -> None:
    shutil.rmtree(host.data)
    assert run_module(redis_swap, host.params)["changed"] and not (host.box / "redis.before-r1").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [("dir /elsewhere", "says dir /elsewhere"), ("port 0\ntls-port 1", "offers TLS only"), ("include /x", "include"), ("port x", "not a number")],
)
def test_a_configuration_that_does_not_fit_changes_nothing(host: Any, run_module: Any, text: str, why: str) -> None:
    host.config.write_text(f"dir {host.data}\n{text}\n")
    result = run_module(redis_swap, host.params)
    assert result["failed"] and why in result["msg"] and host.log == [] and (host.data / "dump.rdb").exists()


def test_check_mode(host: Any, run_module: Any) -> None:
    result = run_module(redis_swap, host.params, check=True)
    assert result["changed"] and "restore point p1" in result["titan_dr"]["notes"][0] and host.log == []


def test_systemctl_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str], **more: Any) -> Any:
        return subprocess.CompletedProcess(argv, 3, "inactive\n", "no such unit")

    monkeypatch.setattr(redis_swap.subprocess, "run", fail)
    with pytest.raises(SwapError, match="systemctl stop x ended with 3: no such unit"):
        redis_swap.systemctl("stop", "x", deadline=time.time() + 5)
    assert redis_swap.systemctl("is-active", "x", deadline=time.time() + 5) == "inactive"
