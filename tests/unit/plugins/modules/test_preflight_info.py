# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _debian, _fetch
from ansible_collections.titan.disaster_recovery.plugins.modules import preflight_info

GATES = {"operating_system", "python", "root", "disk", "memory", "clock", "blank_or_ours"}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(_fetch, "STATE_DIR", str(tmp_path / "state"))
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
        Path(_fetch.STATE_DIR, f"{name}.json").write_text(json.dumps(content))


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
    Path(_fetch.STATE_DIR, "owner.json").write_text('{"environment_id": "lab"')
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
