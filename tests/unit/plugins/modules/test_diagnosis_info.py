# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _diagnosis, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import diagnosis_info

CANARY = {"key": "titan:dr:canary", "db": 1}
RunModule = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "titan-dr"
    folder.mkdir()
    monkeypatch.setattr(_state, "STATE_DIR", str(folder))
    return folder


def arguments(server: Any, folder: Path, **more: Any) -> dict[str, Any]:
    redis = {"config": str(server.config), "data_dir": str(server.folder), "unit": "titan-test-no-such-unit"}
    return {"redis": redis, "canary": CANARY, "latch": str(folder / "halt"), "timeout": 1, **more}


def test_everything_is_told_and_nothing_is_written(redis_server: Any, tmp_path: Path, run_module: RunModule) -> None:
    server = redis_server(requirepass="canary-of-a-secret")
    server.fill()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    paths = {"application": str(server.folder), "PM2 home": str(tmp_path / "nothing")}
    result = run_module(diagnosis_info, arguments(server, tmp_path, paths=paths))
    found = result["diagnosis"]
    assert result["changed"] is False and not result["failed"]
    assert (found["redis"]["answer"], found["redis"]["keys"], found["redis_conf"]["verdict"]) == ("ok", 13, "pass")
    assert found["paths"] == {"application": True, "PM2 home": False}
    assert found["lease"] == {"state": "none"} and found["latch"]["state"] == "none" and found["owner"] == {}
    assert found["disks"] and found["memory"]["percent"] and found["clock"] > 0
    assert "canary-of-a-secret" not in json.dumps(result)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_configuration_that_cannot_be_read_hides_nothing_else(redis_server: Any, tmp_path: Path, run_module: RunModule) -> None:
    server = redis_server()
    server.config.write_text("include /etc/other.conf\n")
    found = run_module(diagnosis_info, arguments(server, tmp_path))["diagnosis"]
    assert found["redis_conf"]["verdict"] == "fail" and "include" in found["redis_conf"]["text"]
    assert "redis" not in found and found["disks"]


def test_another_directory_than_the_inventory_says(redis_server: Any, tmp_path: Path, run_module: RunModule) -> None:
    server = redis_server()
    wanted = arguments(server, tmp_path)
    wanted["redis"]["data_dir"] = str(tmp_path)
    found = run_module(diagnosis_info, wanted)["diagnosis"]
    assert found["redis_conf"]["verdict"] == "fail" and str(tmp_path) in found["redis_conf"]["text"]


def test_who_claimed_the_server(redis_server: Any, tmp_path: Path, state_dir: Path, run_module: RunModule) -> None:
    server = redis_server()
    (state_dir / "owner.json").write_text('{"environment_id": "production", "run_id": "r1"}')
    assert run_module(diagnosis_info, arguments(server, tmp_path))["diagnosis"]["owner"]["environment_id"] == "production"
    (state_dir / "owner.json").write_text("{")
    assert "cannot be read" in run_module(diagnosis_info, arguments(server, tmp_path))["diagnosis"]["owner"]["text"]


def test_a_part_that_breaks_says_so(redis_server: Any, tmp_path: Path, run_module: RunModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no /proc here")

    monkeypatch.setattr(_diagnosis, "memory", broken)
    found = run_module(diagnosis_info, arguments(redis_server(), tmp_path))["diagnosis"]
    assert found["errors"] == {"memory": "OSError: no /proc here"} and found["redis"]["answer"] == "ok"


def test_the_services_own_reports(redis_server: Any, tmp_path: Path, run_module: RunModule) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    spec = {"name": "trading", "url": f"http://127.0.0.1:{port}/", "status": [200], "expect": {"trading": [True]}}
    found = run_module(diagnosis_info, arguments(redis_server(), tmp_path, probes=[spec]))["diagnosis"]
    assert [(probe["name"], probe["verdict"]) for probe in found["probes"]] == [("trading", "unknown")]
    refused = run_module(diagnosis_info, arguments(redis_server(), tmp_path, probes=[{"name": "x", "url": "ftp://host/"}]))
    assert refused["failed"] and "url" in refused["msg"]


def test_redis_on_another_server_is_looked_at_there(tmp_path: Path, state_dir: Path, run_module: RunModule) -> None:
    asked = {"redis": {"host": "titan-data"}, "latch": str(tmp_path / "halt"), "paths": {"application": str(tmp_path)}, "timeout": 1}
    found = run_module(diagnosis_info, asked)["diagnosis"]
    assert found["errors"] == {} and not set(found) & {"redis", "redis_conf", "unit", "files"}
    assert found["paths"] == {"application": True} and found["disks"] and found["memory"] and found["latch"]["state"] == "none"


def test_without_redis_it_only_looks_at_others(run_module: RunModule) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = run_module(diagnosis_info, {"reach": [{"host": "127.0.0.1", "port": port}]})["diagnosis"]
    assert [look["tcp"] for look in found["reach"]] == ["refused"] and "lease" not in found
