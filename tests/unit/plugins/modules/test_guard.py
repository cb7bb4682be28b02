# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import pwd
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _guard, _lease
from ansible_collections.titan.disaster_recovery.plugins.modules import guard_claim, guard_install

KEY = "titan/lab/epoch.json"


def claim(bucket: Any, run_id: str = "r1", **more: Any) -> dict[str, Any]:
    return {"stores": [{"name": "near", "kind": "sftp"}, bucket.store], "environment_id": "lab", "run_id": run_id, **more}


# --- the claim -------------------------------------------------------------------------------------------------------


def test_every_run_claims_the_next_epoch_and_each_once(bucket: Any, run_module: Any) -> None:
    for number, run_id in enumerate(("r1", "r2", "r3"), 1):
        result = run_module(guard_claim, claim(bucket, run_id))
        assert (result["changed"], result["claimed"], result["epoch"], result["key"]) == (True, True, number, KEY)
        assert json.loads(bucket.objects[KEY]) == {"epoch": number, "run_id": run_id}
        assert run_module(guard_claim, claim(bucket, run_id))["changed"] is False
    assert "STORE-SECRET-KEY" not in json.dumps(result["titan_dr"])


def test_check_mode_claims_nothing(bucket: Any, run_module: Any) -> None:
    result = run_module(guard_claim, claim(bucket), check=True)
    assert result["changed"] and not result["claimed"] and bucket.objects == {}


def test_two_at_the_same_moment(bucket: Any, run_module: Any) -> None:
    """The store keeps the last one: the other must not believe that it has it."""
    real = bucket.answer

    def answer(method: str, path: str, body: bytes) -> Any:
        reply = real(method, path, body)
        if method == "PUT":
            bucket.objects[KEY] = b'{"epoch": 1, "run_id": "somebody"}'
        return reply

    bucket.answer = answer
    result = run_module(guard_claim, claim(bucket))
    assert not result["claimed"] and result["epoch"] == 0 and "somebody" in result["titan_dr"]["notes"][0] and "NOT fenced" in result["titan_dr"]["notes"][0]


@pytest.mark.parametrize("what", ["gone", "garbage", "no s3"])
def test_a_store_that_is_none_is_a_note(bucket: Any, run_module: Any, what: str) -> None:
    arguments = claim(bucket)
    if what == "gone":
        bucket.service.close()
    elif what == "garbage":
        bucket.objects[KEY] = b"<html>"
    else:
        arguments["stores"].pop()
    result = run_module(guard_claim, arguments)
    assert not result["failed"] and not result["claimed"] and "fenced" in result["titan_dr"]["notes"][0]
    assert bucket.objects in ({}, {KEY: b"<html>"}), "what cannot be read is not written over"


# --- the guard -------------------------------------------------------------------------------------------------------


class Host:
    """systemd and nftables of a server."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.permit, self.broken = "elements = { 4711 timeout 10s expires 9s }", ""

    def run(self, argv: list[str], **more: Any) -> Any:
        words = " ".join(argv[1:])
        if argv[0] == "systemctl":
            self.calls.append(words)
        code = 1 if self.broken and self.broken in words else 0
        return subprocess.CompletedProcess(argv, code, self.permit if "list set" in words else "", "it broke" if code else "")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host, real = Host(), pwd.getpwnam
    monkeypatch.setattr(guard_install.subprocess, "run", host.run)
    monkeypatch.setattr(guard_install.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=4711) if name == "titan-test" else real(name))
    monkeypatch.setattr(guard_install.AnsibleModule, "get_bin_path", lambda self, name: "/usr/sbin/nft")
    monkeypatch.setattr(guard_install, "UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(_guard, "CONFIG", str(tmp_path / "state/guard.json"))
    return host


def install(tmp_path: Path, bucket: Any, **more: Any) -> dict[str, Any]:
    names = {"epoch": 3, "key": KEY, "store": bucket.store, "latch": "/var/lib/titan-dr/halt", "user": "titan-test", "unit": "pm2-titan"}
    return {**names, "directory": str(tmp_path / "lib"), **more}


def test_installed(host: Host, bucket: Any, tmp_path: Path, run_module: Any) -> None:
    result = run_module(guard_install, install(tmp_path, bucket))
    assert result["changed"] and result["titan_dr"]["gates"][0]["verdict"] == "pass"
    config = tmp_path / "state/guard.json"
    assert config.stat().st_mode & 0o777 == 0o600, "the credentials of the store are in it"
    found = json.loads(config.read_text())
    assert (found["epoch"], found["uid"], found["key"], found["store"]["bucket"]) == (3, 4711, KEY, "backups") and "name" not in found["store"]
    unit = (tmp_path / "units" / guard_install.SERVICE).read_text()
    assert "Before=pm2-titan.service" in unit and f"ExecStart=/usr/bin/python3 -B {tmp_path}/lib/guard.py\n" in unit and "Restart=always" in unit
    assert (tmp_path / "lib/guard.py").exists() and (tmp_path / "lib/_latch.py").exists()
    assert host.calls == ["daemon-reload", "enable --quiet titan-dr-guard.service", "restart titan-dr-guard.service"]
    assert "STORE-SECRET-KEY" not in json.dumps({key: value for key, value in result.items() if key != "invocation"})
    host.calls.clear()
    again = run_module(guard_install, install(tmp_path, bucket))
    assert not again["changed"] and host.calls == ["enable --quiet titan-dr-guard.service", "start titan-dr-guard.service"]
    assert run_module(guard_install, install(tmp_path, bucket, epoch=4))["changed"] and json.loads(config.read_text())["epoch"] == 4


@pytest.mark.parametrize("what", ["restart", "enable", "no permit", "no user"])
def test_a_guard_that_does_not_work_is_none(host: Host, bucket: Any, tmp_path: Path, run_module: Any, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(guard_install.time, "sleep", lambda seconds: None)
    ticks = iter(range(1000))
    monkeypatch.setattr(guard_install.time, "monotonic", lambda: float(next(ticks)))
    if what == "no permit":
        host.permit = "elements = { }"
    else:
        host.broken = what
    result = run_module(guard_install, install(tmp_path, bucket, **({"user": "no-such-user"} if what == "no user" else {})))
    assert result["failed"] and result["titan_dr"]["gates"][0]["verdict"] == "fail"


def test_what_cannot_hold_is_refused(host: Host, bucket: Any, tmp_path: Path, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "two looks" in run_module(guard_install, install(tmp_path, bucket, every=6))["msg"]
    assert run_module(guard_install, install(tmp_path, bucket), check=True)["changed"] and not (tmp_path / "lib").exists()
    monkeypatch.setattr(guard_install.AnsibleModule, "get_bin_path", lambda self, name: None)
    assert "nft is not installed" in run_module(guard_install, install(tmp_path, bucket))["msg"]


def test_only_the_holder_of_the_lease_installs(host: Host, bucket: Any, tmp_path: Path, run_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _lease.write(_lease.Lease(3, "r1", "aaaa", "x", 1.0, 1.0, {}, "held"))
    monkeypatch.setenv("TITAN_DR_COMMAND", "r0/bbbb/2")
    assert run_module(guard_install, install(tmp_path, bucket))["titan_dr"]["refused"] and not (tmp_path / "lib").exists()
