# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import server_baseline


@pytest.fixture
def params(tmp_path: Path, me: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(_state, "STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(_fetch, "TOOLS_DIR", str(tmp_path / "state" / "bin"))
    monkeypatch.setattr(server_baseline, "OWNER", str(tmp_path / "state" / "owner.json"))
    (tmp_path / "sysctl.d").mkdir()
    monkeypatch.setattr(server_baseline, "SYSCTL", str(tmp_path / "sysctl.d" / "90-titan.conf"))
    monkeypatch.setattr(server_baseline, "HOSTS", str(tmp_path / "hosts"))
    monkeypatch.setattr(server_baseline, "LIMITS", str(tmp_path / "limits.d" / "90-titan.conf"))
    return {
        "environment_id": "lab",
        "run_id": "r1",
        "user": me,
        "home": str(tmp_path / "home"),
        "directories": [str(tmp_path / "home" / "logs")],
        "sysctl": {"vm.overcommit_memory": 1},
        "limits": {"nofile": 65536},
        "candidates": [],
        "identity": "",
        "timeout": 10,
    }


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No kernel setting and no user of this machine is changed."""
    asked: list[list[str]] = []

    def run(argv: list[str], **more: Any) -> Any:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 1 if argv[0] == "sysctl" else 0, "", "permission denied on key")

    monkeypatch.setattr(server_baseline.subprocess, "run", run)
    return asked


def bootstrap(folder: Path, key: Any, name: str, *tools: str) -> dict[str, Any]:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for tool in tools:
            member = tarfile.TarInfo(tool)
            member.size, member.mode = len(name), 0o755
            archive.addfile(member, io.BytesIO(name.encode()))
    data, entry = key.stored(raw.getvalue(), "objects/bootstrap.tar.gz")
    (folder / name).write_bytes(data)
    return {"id": name, "taken_at": 1.0, "object": entry, "details": {}, "sources": [{"store": "near", "kind": "file", "path": str(folder / name)}]}


def test_prepared_and_then_nothing_to_do(params: dict[str, Any], tmp_path: Path, run_module: Any, commands: list[list[str]]) -> None:
    result = run_module(server_baseline, params)
    assert result["changed"] and len(result["actions"]) == 6
    assert json.loads((tmp_path / "state" / "owner.json").read_text()) == {"environment_id": "lab", "run_id": "r1"}
    assert (tmp_path / "state" / "stage").stat().st_mode & 0o777 == 0o700 and (tmp_path / "home" / "logs").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "sysctl.d" / "90-titan.conf").read_text() == "vm.overcommit_memory = 1\n"
    assert (tmp_path / "limits.d" / "90-titan.conf").read_text() == f"{params['user']} - nofile 65536\n"
    assert result["titan_dr"]["notes"] == ["kernel settings that take effect at the next boot only: permission denied on key"]
    again = run_module(server_baseline, {**params, "run_id": "r2"})
    assert again["changed"] is False and again["actions"] == []
    assert json.loads((tmp_path / "state" / "owner.json").read_text())["run_id"] == "r1", "the first claim stays"


def test_mode_is_mended(params: dict[str, Any], tmp_path: Path, run_module: Any) -> None:
    run_module(server_baseline, params)
    (tmp_path / "home").chmod(0o700)
    assert run_module(server_baseline, params)["actions"] == [f"directory {tmp_path}/home"]


SERVERS = {"titan-data": "10.0.0.1", "titan-core": "10.0.0.2"}
BLOCK = f"{server_baseline.BLOCK[0]}\n10.0.0.2 titan-core\n10.0.0.1 titan-data\n{server_baseline.BLOCK[1]}\n"


def test_the_servers_are_known_by_name(params: dict[str, Any], tmp_path: Path, run_module: Any) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    assert f"file {hosts}" not in run_module(server_baseline, params)["actions"] and hosts.read_text() == "127.0.0.1 localhost\n", "one server knows itself"
    result = run_module(server_baseline, {**params, "hosts": SERVERS}, check=True)
    assert result["actions"] == [f"file {hosts}"] and hosts.read_text() == "127.0.0.1 localhost\n"
    assert run_module(server_baseline, {**params, "hosts": SERVERS})["actions"] == [f"file {hosts}"]
    assert hosts.read_text() == BLOCK + "127.0.0.1 localhost\n" and hosts.stat().st_mode & 0o777 == 0o644
    assert run_module(server_baseline, {**params, "hosts": SERVERS})["changed"] is False
    run_module(server_baseline, {**params, "hosts": {**SERVERS, "titan-core": "10.0.0.9"}})
    assert hosts.read_text() == BLOCK.replace("10.0.0.2", "10.0.0.9") + "127.0.0.1 localhost\n"


def test_a_hosts_file_that_is_missing_is_made(params: dict[str, Any], tmp_path: Path, run_module: Any) -> None:
    run_module(server_baseline, {**params, "hosts": SERVERS})
    assert (tmp_path / "hosts").read_text() == BLOCK


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("192.0.2.1 titan-data\n", ""),
        ("192.0.2.1\ttitan-data  db # the dead one\n", "192.0.2.1 db  # the dead one\n"),
        ("127.0.1.1 titan-core.example titan-core\n", "127.0.1.1 titan-core.example\n"),
        ("# titan-data was here\n\n::1 ip6-localhost", "# titan-data was here\n\n::1 ip6-localhost\n"),
        ("192.0.2.1 other-titan-data  x#y\n", "192.0.2.1 other-titan-data  x#y\n"),
        (BLOCK.replace("10.0", "192.0") + "::1 a\n", "::1 a\n"),
        ("::1 a\n" + BLOCK + "::1 b\n", "::1 a\n::1 b\n"),
    ],
)
def test_a_name_has_one_address(before: str, after: str) -> None:
    found = server_baseline.with_servers(before, SERVERS)
    assert found == BLOCK + after and server_baseline.with_servers(found, SERVERS) == found


def test_a_block_without_an_end_takes_nothing_with_it() -> None:
    found = server_baseline.with_servers(BLOCK.splitlines()[0] + "\n127.0.0.1 localhost\n", SERVERS)
    assert found == BLOCK + "127.0.0.1 localhost\n" and server_baseline.with_servers(found, SERVERS) == found


@pytest.mark.parametrize("wrong", [{"titan data": "10.0.0.1"}, {"titan-data": "nowhere"}, {"a\n192.0.2.1 b": "10.0.0.1"}, {"": "10.0.0.1"}, {"a": ""}])
def test_what_is_no_name_or_no_address_is_refused(params: dict[str, Any], tmp_path: Path, run_module: Any, wrong: dict[str, str]) -> None:
    result = run_module(server_baseline, {**params, "hosts": wrong})
    assert result["failed"] and not (tmp_path / "hosts").exists()


def test_a_user_that_is_missing_is_made(params: dict[str, Any], run_module: Any, commands: list[list[str]]) -> None:
    result = run_module(server_baseline, {**params, "user": "no-such-user"}, check=True)
    assert "user no-such-user" in result["actions"] and commands == []
    baseline = server_baseline.Baseline({**params, "user": "no-such-user"}, dry=False)
    baseline.user()
    assert commands[0][0] == "useradd" and commands[0][-1] == "no-such-user" and "--system" in commands[0]


def test_check_mode_makes_nothing(params: dict[str, Any], tmp_path: Path, key: Any, run_module: Any, commands: list[list[str]]) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run_module(server_baseline, params, check=True)
    assert result["changed"] and "would make" in result["titan_dr"]["notes"][0]
    assert sorted(tmp_path.rglob("*")) == before and commands == []


def test_the_tools_come_out_of_the_bootstrap(params: dict[str, Any], tmp_path: Path, key: Any, run_module: Any) -> None:
    params["candidates"] = [bootstrap(tmp_path, key, "p1", "age", "zstd")]
    assert run_module(server_baseline, params)["changed"]
    assert _fetch.tool("age") == str(tmp_path / "state" / "bin" / "age") and (tmp_path / "state" / "bin" / "zstd").read_text() == "p1"
    assert run_module(server_baseline, params)["changed"] is False


def test_tools_that_are_not_what_was_recorded_are_never_used(params: dict[str, Any], tmp_path: Path, key: Any, run_module: Any) -> None:
    """They would run as root. Nor does a second run take what a first one left."""
    params["candidates"] = [bootstrap(tmp_path, key, "p2", "age", "zstd")]
    params["candidates"][0]["object"]["sha256"] = "0" * 64
    for _attempt in (1, 2):
        result = run_module(server_baseline, params)
        assert result["failed"] and "is not what the manifest recorded" in result["msg"]
        assert result["titan_dr"]["gates"][0]["verdict"] == "fail"
        assert not [path for path in (tmp_path / "state").rglob("*") if path.name in ("age", "zstd")]
    params["candidates"].append(bootstrap(tmp_path, key, "p1", "age", "zstd"))
    result = run_module(server_baseline, params)
    assert not result["failed"] and "passed over: restore point p2" in result["titan_dr"]["notes"][-1]
    assert (tmp_path / "state" / "bin" / "age").read_text() == "p1"
