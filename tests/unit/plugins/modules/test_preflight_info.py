# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _debian, _redis_unit, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import preflight_info

GATES = {"operating_system", "python", "root", "disk", "memory", "clock", "blank_or_ours"}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(_state, "STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(preflight_info, "registry_hosts", lambda: ["packages.invalid"])
    monkeypatch.setattr(preflight_info, "reachable", lambda host: False)
    details = {"size": 1000, "used_memory": 1000, "server": _debian.system()}
    return {
        "environment_id": "lab",
        "restore_point": {"details": details},
        "redis_data_dir": str(tmp_path / "redis"),
        "ports": [],
        "controller_time": time.time(),
    }


def bad(result: dict[str, Any]) -> dict[str, str]:
    found = {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}
    assert set(found) >= GATES
    wrong = {name: verdict for name, verdict in found.items() if verdict != "pass"}
    assert result["failed"] == bool(wrong) == ("refused" in result["titan_dr"])
    return wrong


def test_a_blank_server(params: dict[str, Any], run_module: Any) -> None:
    result = run_module(preflight_info, params)
    assert bad(result) == {} and result["recovered"] == {} and result["changed"] is False
    os.mkdir(params["redis_data_dir"])
    assert bad(run_module(preflight_info, params)) == {}, "an empty directory is blank too"


# --- whose server is it ---------------------------------------------------------------------------------------------


def claim(environment_id: str, **more: Any) -> None:
    for name, content in {"owner": {"environment_id": environment_id, "run_id": "r0"}, **more}.items():
        Path(_state.STATE_DIR, f"{name}.json").write_text(json.dumps(content))


def test_foreign_data_is_refused(params: dict[str, Any], run_module: Any) -> None:
    os.mkdir(params["redis_data_dir"])
    Path(params["redis_data_dir"], "dump.rdb").touch()
    result = run_module(preflight_info, params)
    assert bad(result) == {"blank_or_ours": "fail"} and "holds dump.rdb" in result["msg"] and os.path.exists(f"{params['redis_data_dir']}/dump.rdb")


def test_a_port_in_use_is_refused(params: dict[str, Any], run_module: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run_module(preflight_info, {**params, "ports": [port]})
        assert bad(result) == {"blank_or_ours": "fail"} and f"port {port} is in use" in result["msg"]
    assert bad(run_module(preflight_info, {**params, "ports": [port]})) == {}


def test_a_server_of_another_environment_is_refused(params: dict[str, Any], run_module: Any) -> None:
    claim("staging", recovered={"environment_id": "staging"})
    result = run_module(preflight_info, params)
    assert bad(result) == {"blank_or_ours": "fail"} and "claimed by environment staging, run r0" in result["msg"] and result["recovered"] == {}


def test_our_server_is_accepted_with_its_data(params: dict[str, Any], run_module: Any) -> None:
    claim("lab")
    os.mkdir(params["redis_data_dir"])
    Path(params["redis_data_dir"], "dump.rdb").touch()
    result = run_module(preflight_info, params)
    assert bad(result) == {} and result["recovered"] == {}
    claim("lab", recovered={"environment_id": "lab", "run_id": "r0"})
    assert run_module(preflight_info, params)["recovered"] == {"environment_id": "lab", "run_id": "r0"}


def test_an_owner_record_that_cannot_be_read_proves_nothing(params: dict[str, Any], run_module: Any) -> None:
    Path(_state.STATE_DIR, "owner.json").write_text('{"environment_id": "lab"')
    os.mkdir(params["redis_data_dir"])
    Path(params["redis_data_dir"], "dump.rdb").touch()
    assert bad(run_module(preflight_info, params)) == {"blank_or_ours": "fail"}


# --- what it has ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "verdict"), [((1 << 30) + 2999, "fail"), ((1 << 30) + 3000, None)])
def test_disk(params: dict[str, Any], run_module: Any, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str | None) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert bad(run_module(preflight_info, params)).get("disk") == verdict


def test_disk_is_that_of_the_data_directory(params: dict[str, Any], run_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=1 << 40))  # type: ignore[func-returns-value]
    run_module(preflight_info, {**params, "redis_data_dir": f"{tmp_path}/a/b/redis"})
    assert asked == [str(tmp_path)], "the nearest directory that exists"


def test_memory(params: dict[str, Any], run_module: Any) -> None:
    params["restore_point"]["details"]["used_memory"] = 1 << 50
    assert bad(run_module(preflight_info, params)) == {"memory": "fail"}


@pytest.mark.parametrize(("skew", "verdict"), [(60, "fail"), (-60, "fail"), (3, None), (-3, None)])
def test_clock(params: dict[str, Any], run_module: Any, skew: float, verdict: str | None) -> None:
    assert bad(run_module(preflight_info, {**params, "controller_time": time.time() + skew})).get("clock") == verdict


@pytest.mark.parametrize(("delay", "skew", "verdict"), [(0, 0, None), (20, 0, None), (20, 60, "fail"), (0, 60, "fail"), (0, -60, "fail")])
def test_a_busy_controller_is_no_clock_that_is_wrong(params: dict[str, Any], run_module: Any, delay: float, skew: float, verdict: str | None) -> None:
    """The server's clock by the lease, the controller's, and, so much later, the server's again."""
    told = time.time() - skew - delay
    assert bad(run_module(preflight_info, {**params, "server_time": told + skew - 1, "controller_time": told})).get("clock") == verdict


@pytest.mark.parametrize("name", ["os", "release", "architecture"])
def test_another_system(params: dict[str, Any], run_module: Any, name: str) -> None:
    params["restore_point"]["details"]["server"][name] = "other"
    result = run_module(preflight_info, params)
    assert bad(result) == {"operating_system": "fail"} and "the restore point is of other" in result["msg"]


def test_root(params: dict[str, Any], run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert bad(run_module(preflight_info, params)) == {"root": "fail"}


# --- package registries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hosts", "reached", "verdict"), [(["a"], False, None), (["a"], True, "fail"), ([], False, "unknown")])
def test_a_drill_without_registry(
    params: dict[str, Any], run_module: Any, monkeypatch: pytest.MonkeyPatch, hosts: list[str], reached: bool, verdict: str | None
) -> None:
    """With no registry configured nothing was shown: unknown, not pass."""
    monkeypatch.setattr(preflight_info, "registry_hosts", lambda: hosts)
    monkeypatch.setattr(preflight_info, "reachable", lambda host: reached)
    assert bad(run_module(preflight_info, {**params, "require_no_registry": True})).get("no_package_registry") == verdict
    assert "no_package_registry" not in bad(run_module(preflight_info, params))


def test_reachable(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(web(lambda *request: (200, {}, b"")).url.rsplit(":", 1)[1])
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, **more: real((address[0], port), **more))
    assert preflight_info.reachable("127.0.0.1")
    monkeypatch.setattr(socket, "create_connection", lambda address, **more: real((address[0], 1), **more))
    assert not preflight_info.reachable("127.0.0.1")


# --- in place: a Titan that has its data --------------------------------------------------------------------------------

IN_PLACE = {"python", "root", "disk", "memory", "clock", "environment", "redis_config"}  # and newer_data, redis_copies where there is a Redis to ask for
ON = {"url": "http://127.0.0.1:1/trading", "status": [200], "expect": {"trading": [True]}}


@pytest.fixture
def titan(params: dict[str, Any], redis_server: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Titan on a Redis of its own; `trading` is what it says of itself."""
    server = redis_server()
    for number in range(100):
        server.client.call("SET", f"titan:orders:{number}", "filled")
    monkeypatch.setattr(_redis_unit.Unit, "main_pid", lambda unit: server.process.pid if server.process.poll() is None else 0)
    said = {"trading": True}
    service = web(lambda *request: (200, {"Content-Type": "application/json"}, json.dumps(said).encode()))
    params["restore_point"] |= {"taken_at": time.time() - 60}
    params["restore_point"]["details"]["keyspace"] = {"db0": {"keys": 90, "expires": 0}}
    params |= {"redis_data_dir": str(server.folder), "redis_config": str(server.config), "in_place": True, "run_id": "r1"}
    params["trading_probe"] = {**ON, "url": service.url}
    return SimpleNamespace(server=server, said=said, params=params)


def judged(result: dict[str, Any]) -> dict[str, str]:
    """Verdicts that are not pass; `newer_data` is only asked where there is something to lose."""
    found = {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}
    assert set(found) >= IN_PLACE and not set(found) & {"blank_or_ours", "operating_system", "no_package_registry"}
    wrong = {name: verdict for name, verdict in found.items() if verdict != "pass"}
    assert result["failed"] == bool(wrong) == ("refused" in result["titan_dr"])
    return wrong


def evidence(result: dict[str, Any], name: str) -> str:
    return next(gate["evidence"] for gate in result["titan_dr"]["gates"] if gate["name"] == name)


def test_what_redis_is_and_why(titan: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_module(preflight_info, titan.params)["redis_state"] == "healthy"
    titan.server.client.call("CONFIG", "SET", "requirepass", "secret")
    assert run_module(preflight_info, titan.params)["redis_state"] == "unknown"
    titan.server.process.kill()
    titan.server.process.wait()
    monkeypatch.setattr(preflight_info._redis_cause, "causes", lambda *arguments: ["the disk is full", "its log says: x"])
    result = run_module(preflight_info, titan.params)
    assert result["redis_state"] == "sick" and "why Redis is not healthy: the disk is full; its log says: x" in result["titan_dr"]["notes"]


def test_a_port_that_somebody_else_holds(titan: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_info._redis_cause, "foreign", lambda *arguments: ["process 7 (python3) listens on 127.0.0.1 port 6379"])
    result = run_module(preflight_info, {**titan.params, "confirmed": True})
    assert judged(result) == {"redis_port": "fail"}
    assert "process 7 (python3) listens on 127.0.0.1 port 6379, and is not redis-server: stop it, then run again" in result["msg"]


def test_a_healthy_titan_that_trades_is_refused_without_consent(titan: Any, run_module: Any) -> None:
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {"newer_data": "fail"} and "database_corruption_confirm" in result["msg"]
    assert "with 100 keys, trading is on; the newest restore point is 60 s old" in result["msg"]
    result = run_module(preflight_info, {**titan.params, "confirmed": True})
    assert judged(result) == {} and "all that is newer would be thrown away" in " ".join(result["titan_dr"]["notes"])


def test_a_healthy_redis_whose_titan_is_halted_is_noted(titan: Any, run_module: Any) -> None:
    titan.said["trading"] = False
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {} and "calls itself healthy" in " ".join(result["titan_dr"]["notes"])


@pytest.mark.parametrize("fault", ["gone", "hung", "empty", "read only disk"])
def test_a_redis_that_is_not_well_needs_no_consent(titan: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(preflight_info, "PATIENCE", 0.5)
    if fault == "gone":
        titan.server.process.kill()
        titan.server.process.wait()
    elif fault == "hung":
        titan.server.process.send_signal(signal.SIGSTOP)
    elif fault == "empty":
        titan.server.client.call("FLUSHALL")
        titan.server.client.call("SET", "titan:first", "written after a start from nothing")
    else:
        titan.server.client.call("CONFIG", "SET", "dbfilename", "x" * 300 + ".rdb")
        titan.server.client.call("BGSAVE")
        deadline = time.monotonic() + 5
        while titan.server.client.info("persistence")["rdb_last_bgsave_status"] == "ok":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {} and "Redis is not healthy" in evidence(result, "newer_data"), fault


def test_a_redis_that_turns_us_away_is_unknown_not_ill(titan: Any, run_module: Any) -> None:
    titan.server.client.call("CONFIG", "SET", "requirepass", "changed by somebody")
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {"newer_data": "unknown", "redis_copies": "fail"} and "NOAUTH" in result["msg"]
    assert judged(run_module(preflight_info, {**titan.params, "confirmed": True})) == {"redis_copies": "fail"}, "consent is no password"
    result = run_module(preflight_info, {**titan.params, "redis_password": "changed by somebody"})
    assert judged(result) == {"newer_data": "fail"} and "with 100 keys" in result["msg"]


def test_only_what_this_very_run_recovered_is_not_asked_for_consent(titan: Any, run_module: Any) -> None:
    claim("lab", recovered={"environment_id": "lab", "run_id": "r1"})
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {} and result["recovered"] == {"environment_id": "lab", "run_id": "r1"}
    result = run_module(preflight_info, {**titan.params, "run_id": "r2"})
    assert judged(result) == {"newer_data": "fail"} and result["recovered"] == {}


def test_whose_server_it_is(titan: Any, run_module: Any) -> None:
    titan.params["confirmed"] = True
    assert "claimed by no environment" in evidence(run_module(preflight_info, titan.params), "environment"), "built by hand"
    claim("staging")
    assert judged(run_module(preflight_info, titan.params)) == {"environment": "fail"}
    Path(_state.STATE_DIR, "owner.json").write_text('{"environment_id": "lab"')
    assert judged(run_module(preflight_info, titan.params)) == {"environment": "unknown"}


def test_a_configuration_that_does_not_fit(titan: Any, run_module: Any, tmp_path: Path) -> None:
    titan.params["confirmed"] = True
    result = run_module(preflight_info, {**titan.params, "redis_config": str(tmp_path / "none.conf")})
    assert judged(result) == {"redis_config": "fail"}
    result = run_module(preflight_info, {**titan.params, "redis_data_dir": str(tmp_path)})
    assert judged(result) == {"redis_config": "fail"} and f"the inventory says {tmp_path}" in result["msg"]
    with titan.server.config.open("a") as handle:
        handle.write("replicaof 192.0.2.1 6379\n")
    assert judged(run_module(preflight_info, titan.params)) == {"redis_config": "fail"}


def test_a_mount_point_cannot_be_moved_aside(titan: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titan.params["confirmed"] = True
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(titan.server.folder))
    assert judged(run_module(preflight_info, titan.params)) == {"redis_config": "fail"}


@pytest.mark.parametrize(("free", "verdict"), [((64 << 20) + 2999, "fail"), ((64 << 20) + 3000, None)])
def test_disk_in_place(titan: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str | None) -> None:
    """Neither packages nor releases are brought: a disk that is nearly full is a reason to recover, not to refuse."""
    titan.params["confirmed"] = True
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert judged(run_module(preflight_info, titan.params)).get("disk") == verdict


def test_replicas_that_would_lose_what_they_hold(titan: Any, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titan.params["confirmed"] = True
    assert evidence(run_module(preflight_info, titan.params), "redis_copies") == "no replica and no Sentinel is attached"
    titan.server.client.call("CLIENT", "SETNAME", "sentinel-0a1b2c3d-cmd")
    assert judged(run_module(preflight_info, titan.params)) == {"redis_copies": "fail"}
    titan.server.client.call("CLIENT", "SETNAME", "")
    # a hung master cannot be asked: who is connected to it may be a replica
    monkeypatch.setattr(preflight_info, "PATIENCE", 0.5)
    monkeypatch.setattr(_redis_unit, "peers", lambda pid, ports: {"10.0.0.7"})
    titan.server.process.send_signal(signal.SIGSTOP)
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {"redis_copies": "fail"} and "redis_restore_replicas_consent" in result["msg"]
    assert judged(run_module(preflight_info, {**titan.params, "replicas_consent": True})) == {}


def test_in_place_needs_to_be_told_where(params: dict[str, Any], run_module: Any) -> None:
    assert "run_id" in run_module(preflight_info, {**params, "in_place": True})["msg"]
    assert "redis_config" in run_module(preflight_info, {**params, "in_place": True, "run_id": "r1"})["msg"]


# --- several servers ------------------------------------------------------------------------------------------------------


def elsewhere(params: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The parameters for a server without Redis: the candidate for the configuration tells nothing of data."""
    return {**{name: value for name, value in params.items() if not name.startswith("redis")}, "restore_point": {"details": {"kind": "config"}}, **more}


def test_a_blank_server_without_redis(params: dict[str, Any], run_module: Any) -> None:
    result = run_module(preflight_info, elsewhere(params))
    assert bad(result) == {} and result["redis_state"] == ""
    foreign = {"details": {"server": {**_debian.system(), "release": "99"}}}
    assert bad(run_module(preflight_info, elsewhere(params, restore_point=foreign))) == {"operating_system": "fail"}
    claim("staging")
    assert bad(run_module(preflight_info, elsewhere(params))) == {"blank_or_ours": "fail"}


@pytest.mark.parametrize(("in_place", "free", "verdict"), [(False, (1 << 30) - 1, "fail"), (False, 1 << 30, None), (True, 64 << 20, None), (True, 0, "fail")])
def test_room_without_redis(params: dict[str, Any], run_module: Any, monkeypatch: pytest.MonkeyPatch, in_place: bool, free: int, verdict: str | None) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    result = run_module(preflight_info, elsewhere(params, in_place=in_place, run_id="r1"))
    assert {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}["disk"] == (verdict or "pass")


def test_in_place_without_redis_only_the_server_itself_is_judged(params: dict[str, Any], run_module: Any) -> None:
    asked = elsewhere(params, in_place=True, run_id="r1")
    result = run_module(preflight_info, asked)
    assert {gate["name"] for gate in result["titan_dr"]["gates"]} == IN_PLACE - {"redis_config"} and not result["failed"] and result["redis_state"] == ""
    claim("staging")
    assert "claimed by environment staging" in run_module(preflight_info, asked)["msg"]
    claim("lab", recovered={"environment_id": "lab", "run_id": "r1"})
    assert run_module(preflight_info, asked)["recovered"] == {"environment_id": "lab", "run_id": "r1"}


def test_where_nobody_can_tell_whether_trading_is_on_a_healthy_redis_needs_consent(titan: Any, run_module: Any) -> None:
    del titan.params["trading_probe"]
    result = run_module(preflight_info, titan.params)
    assert judged(result) == {"newer_data": "unknown"} and "whether trading is on cannot be asked from here" in result["msg"]
    assert judged(run_module(preflight_info, {**titan.params, "confirmed": True})) == {}
    titan.server.client.call("FLUSHALL")
    assert judged(run_module(preflight_info, titan.params)) == {}, "one that lost its data needs none"
