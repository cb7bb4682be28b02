# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.modules import validate_info
from ansible_collections.titan.disaster_recovery.plugins.modules.validate_info import config_gate, logs_gate, redis_gates

CANARY = {"key": "titan:dr:canary", "db": 1}


def verdicts(gates: list[dict[str, str]]) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in gates}


@pytest.fixture
def server(redis_server: Any) -> Any:
    server = redis_server()
    server.fill()
    return server


def look(server: Any) -> list[dict[str, str]]:
    return redis_gates({"redis": {"config": str(server.config)}, "canary": CANARY}, time.time() + 10)


def ask(server: Any) -> dict[str, str]:
    return verdicts(look(server))


GOOD = dict.fromkeys(("redis", "redis_data", "redis_persistence", "redis_eviction"), "pass")


# --- Redis ----------------------------------------------------------------------------------------------------------


def test_redis(server: Any) -> None:
    assert ask(server) == GOOD


def test_a_replica_fails(server: Any) -> None:
    server.client.call("REPLICAOF", "127.0.0.1", 1)
    assert ask(server)["redis"] == "fail"


def test_an_empty_server_fails(server: Any) -> None:
    server.client.call("FLUSHALL")
    assert ask(server)["redis_data"] == "fail"


def test_a_missing_canary_is_stated(server: Any) -> None:
    """A Titan without a canary is valid; that the data loss cannot be measured has to be seen."""
    server.client.call("SELECT", 1)
    server.client.call("DEL", CANARY["key"])
    [found] = [gate for gate in look(server) if gate["name"] == "redis_data"]
    assert (found["verdict"], found["evidence"]) == ("pass", "db0 10 keys, db1 2 keys; no canary")


def test_a_new_base_that_is_being_written_is_waited_for(redis_server: Any) -> None:
    server = redis_server(appendonly="yes")
    server.fill()
    server.client.call("CONFIG", "SET", "rdb-key-save-delay", "50000")
    server.client.call("BGREWRITEAOF")
    began = time.monotonic()
    assert ask(server) == GOOD
    assert time.monotonic() - began > 0.3 and server.client.info("persistence")["aof_rewrite_in_progress"] == "0"


def test_an_aof_that_was_turned_off_fails(redis_server: Any) -> None:
    server = redis_server(appendonly="yes")
    server.fill()
    assert ask(server) == GOOD
    server.client.call("CONFIG", "SET", "appendonly", "no")
    assert ask(server)["redis_persistence"] == "fail"


def test_a_save_that_failed_fails(server: Any) -> None:
    server.client.call("CONFIG", "SET", "dbfilename", "gone")
    os.mkdir(server.folder / "gone")
    server.client.call("BGSAVE")
    end = time.monotonic() + 5
    while server.client.info("persistence")["rdb_last_bgsave_status"] == "ok":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert ask(server)["redis_persistence"] == "fail"


@pytest.mark.parametrize("fault", ["password", "dead", "config", "no canary"])
def test_a_server_that_cannot_be_asked_is_unknown(server: Any, fault: str) -> None:
    if fault == "password":
        server.client.call("CONFIG", "SET", "requirepass", "secret")
    if fault == "dead":
        server.process.kill()
        server.process.wait()
    if fault == "config":
        server.config.unlink()
    if fault == "no canary":
        server.client.call("SELECT", 1)
        server.client.call("SET", CANARY["key"], "text")
    assert ask(server) == {"redis": "unknown"}


# --- files ----------------------------------------------------------------------------------------------------------


def test_config(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "certificate.p12").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.json").write_text('{"a": 1}')
    assert config_gate([str(tmp_path), str(tmp_path / "a.json")]) == {"name": "config", "verdict": "pass", "evidence": "4 files, each JSON file parses"}


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1, "a": 2}', b"\xff"])
def test_config_that_does_not_parse(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    found = config_gate([str(tmp_path)])
    assert found["verdict"] == "fail" and "a.json" in found["evidence"]


def test_config_that_is_not_there(tmp_path: Path) -> None:
    assert config_gate([str(tmp_path / "none")])["verdict"] == "fail"
    assert config_gate([str(tmp_path)])["verdict"] == "fail", "an empty directory is no configuration"
    assert config_gate([])["verdict"] == "fail"


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "verdict"),
    [
        (65534, 0, 0o755, "pass"),
        (65534, 0, 0o555, "fail"),
        (0, 65534, 0o775, "pass"),
        (0, 65534, 0o755, "fail"),
        (0, 0, 0o777, "pass"),
        (0, 0, 0o775, "fail"),
        (65534, 65534, 0o077, "fail"),
    ],
)
def test_logs(tmp_path: Path, uid: int, gid: int, mode: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate_info.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=65534, pw_gid=65534))
    os.chown(tmp_path, uid, gid)
    tmp_path.chmod(mode)
    assert logs_gate(str(tmp_path), "nobody")["verdict"] == verdict


def test_logs_that_are_not_there(tmp_path: Path) -> None:
    assert logs_gate(str(tmp_path / "none"), "root")["verdict"] == logs_gate(str(tmp_path), "no-such-user")["verdict"] == "fail"


# --- the module -----------------------------------------------------------------------------------------------------


@pytest.fixture
def params(server: Any, web: Any, tmp_path: Path, me: str) -> dict[str, Any]:
    (tmp_path / "a.json").write_text("{}")

    def answer(method: str, path: str, body: bytes) -> Any:
        if path == "/slow":
            time.sleep(0.15)
        return 200, {}, b"<html>" if path == "/html" else json.dumps({"status": "connected", "trading": True}).encode()

    url = web(answer).url
    return {
        "redis": {"config": str(server.config), "data_dir": str(server.folder)},
        "canary": CANARY,
        "config_paths": [str(tmp_path)],
        "logs_dir": str(tmp_path),
        "user": me,
        "probes": [{"name": "websockets", "url": f"{url}/ws", "status": [200], "expect": {"status": ["connected"]}}],
        "trading": "resumed",
        "trading_probe": {"url": f"{url}/trading", "status": [200], "expect": {"trading": [True]}},
        "timeout": 0.3,
        "max_memory_percent": 100,
        "max_disk_percent": 100,
    }


def wrong(result: dict[str, Any]) -> dict[str, str]:
    found = {name: verdict for name, verdict in verdicts(result["titan_dr"]["gates"]).items() if verdict != "pass"}
    assert result["failed"] == bool(found)
    return found


def test_good(params: dict[str, Any], run_module: Any) -> None:
    result = run_module(validate_info, params)
    assert wrong(result) == {} and result["changed"] is False and result["titan_dr"]["trading"] == "resumed"
    assert set(verdicts(result["titan_dr"]["gates"])) == {*GOOD, "config", "logs_writable", "memory_use", "disk_use", "websockets", "trading"}


def test_a_server_without_redis_services_or_trading_has_gates_all_the_same(params: dict[str, Any], run_module: Any) -> None:
    """Redis is on another server, so the services; nothing is said of what is not looked at."""
    params |= {"redis": {"host": "titan-data"}, "probes": [], "trading_probe": {}}
    result = run_module(validate_info, params)
    assert wrong(result) == {} and "trading" not in result["titan_dr"]
    assert set(verdicts(result["titan_dr"]["gates"])) == {"config", "logs_writable", "memory_use", "disk_use"}
    assert wrong(run_module(validate_info, {**params, "logs_dir": "/no/such/logs"})) == {"logs_writable": "fail"}
    del params["logs_dir"], params["trading_probe"]
    result = run_module(validate_info, params)
    assert wrong(result) == {} and set(verdicts(result["titan_dr"]["gates"])) == {"config", "memory_use", "disk_use"}
    assert wrong(run_module(validate_info, {**params, "config_paths": [], "max_disk_percent": -1})) == {"config": "fail", "disk_use": "fail"}


def test_the_server_with_redis_is_judged_by_it_although_nothing_trades_there(params: dict[str, Any], server: Any, run_module: Any) -> None:
    del params["logs_dir"]
    params |= {"probes": [], "trading_probe": {}}
    assert wrong(run_module(validate_info, params)) == {}
    server.client.call("FLUSHALL")
    assert wrong(run_module(validate_info, params)) == {"redis_data": "fail"}


def test_trading_in_another_state(params: dict[str, Any], run_module: Any) -> None:
    params["trading_probe"]["expect"] = {"trading": [False]}
    result = run_module(validate_info, params)
    assert wrong(result) == {"trading": "fail"} and "trading" not in result["titan_dr"]


def test_a_gate_has_its_moment(params: dict[str, Any], run_module: Any) -> None:
    """What does not pass too: a resume asks how old it is."""
    for more in ({}, {"max_memory_percent": -1}):
        assert abs(run_module(validate_info, {**params, **more})["at"] - time.time()) < 5


def test_a_page_is_unknown(params: dict[str, Any], run_module: Any) -> None:
    params["probes"][0]["url"] = params["probes"][0]["url"].replace("/ws", "/html")
    assert wrong(run_module(validate_info, params)) == {"websockets": "unknown"}


def test_a_right_answer_that_comes_late_fails(params: dict[str, Any], run_module: Any) -> None:
    params["probes"][0]["url"] = params["probes"][0]["url"].replace("/ws", "/slow")
    assert wrong(run_module(validate_info, {**params, "max_response_ms": 100})) == {"websockets": "fail"}


def test_a_probe_that_passes_later(params: dict[str, Any], web: Any, run_module: Any) -> None:
    ready = time.monotonic() + 0.3
    late = web(lambda *request: (200, {}, json.dumps({"status": "connected" if time.monotonic() > ready else "disconnected"}).encode()))
    params["probes"][0]["url"] = late.url
    assert wrong(run_module(validate_info, {**params, "timeout": 5})) == {}


def test_no_room(params: dict[str, Any], run_module: Any) -> None:
    assert wrong(run_module(validate_info, {**params, "max_memory_percent": -1, "max_disk_percent": -1})) == {"memory_use": "fail", "disk_use": "fail"}


def test_a_probe_that_could_not_fail_is_refused(params: dict[str, Any], run_module: Any) -> None:
    params["probes"][0]["expect"] = {"status": []}
    result = run_module(validate_info, params)
    assert result["failed"] and "websockets" in result["msg"] and result["titan_dr"]["gates"][0]["verdict"] == "unknown"
