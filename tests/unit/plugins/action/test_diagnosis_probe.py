# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe and the playbook around it, with real connections to nowhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.titan.disaster_recovery.plugins.action import diagnosis_probe
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _stores

ROOT = Path(__file__).resolve().parents[4]
SECRET = "canary-of-a-secret-5d1e"


def candidate(name: str, keys: int) -> dict[str, Any]:
    details = {
        "keyspace": {"db0": {"keys": keys, "expires": 0}, "db1": {"keys": 1, "expires": 0}},
        "size": 99,
        "canary": {"seq": 7, "at": 1.0},
        "classes": {"titan:orders": {"keys": 3, "expires": 0}},
    }
    return {"id": name, "taken_at": 5.0, "stores": ["cloud"], "details": details}


def test_stores_tell_what_a_diagnosis_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stores, "read_all", lambda *_: ({"cloud": {}}, {"offhost": "timed out"}))
    asked: list[Any] = []
    monkeypatch.setattr(_stores, "plan", lambda *args: (asked.append(args), ({"redis": [candidate("p1", 10)]}, [], []))[1])
    of_data = {"stores": [], "environment_id": "lab", "identity": SECRET, "needs": ["redis"]}
    found = diagnosis_probe.stores(of_data)
    # a server with Redis alone has restore points without services
    assert asked[0][1:] == ("lab", SECRET, ["redis"])
    assert found["points"] == [{"id": "p1", "taken_at": 5.0, "stores": ["cloud"], "keys": 11, "bytes": 99, "canary": 7, "classes": {"titan:orders": 3}}]
    assert found["silent"] == {"offhost": "timed out"} and SECRET not in json.dumps(found)
    monkeypatch.setattr(_stores, "read_all", lambda *_: ({}, {"cloud": "timed out"}))
    assert diagnosis_probe.stores(of_data)["points"] == []


def diagnose(tmp_path: Path, hosts: dict[str, Any], **variables: Any) -> tuple[dict[str, Any], str]:
    """diagnose.yml as it is, against these servers."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"vars": {"titan_environment_id": "lab", **variables}, "children": hosts}}))
    environment = {**os.environ, "TITAN_DR_RUN_DIR": str(tmp_path / "run"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_SSH_TIMEOUT": "2"}
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), str(ROOT / "playbooks/diagnose.yml"), "-vvv"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    path = tmp_path / "run" / "report.json"
    assert path.exists(), done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout + done.stderr


@pytest.fixture
def nowhere() -> dict[str, Any]:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return {"ansible_host": "127.0.0.1", "ansible_port": listener.getsockname()[1], "ansible_ssh_retries": 0}


def test_a_server_that_refuses_is_unknown_and_its_secrets_stay_secret(tmp_path: Path, nowhere: dict[str, Any]) -> None:
    store = {"name": "cloud", "kind": "s3", "endpoint": "http://127.0.0.1:1", "bucket": "b", "access_key": "a", "secret_key": SECRET}
    groups = {"titan_servers": {"hosts": {"one": nowhere}}, "titan_replacement": {"hosts": {"other": nowhere}}}
    report, output = diagnose(tmp_path, groups, titan_redis_password=SECRET, titan_age_identity=SECRET, titan_stores=[store])
    assert (report["kind"], report["result"], report["proposals"]) == ("diagnosis", "unknown", [])
    reachable = next(row for row in report["rows"] if row["probe"] == "reachable")
    assert reachable["verdict"] == "unknown" and "refused" in reachable["evidence"]
    assert {probe["probe"] for probe in report["probes"]} == {"reach", "stores", "host", "pm2", "network", "config", "witness"}
    assert SECRET not in output + json.dumps(report)


def test_every_module_of_the_plan_exists_and_only_reads() -> None:
    plan = yaml.safe_load((ROOT / "roles/diagnose/vars/main.yml").read_text())["__diagnose_probes"]
    modules = {probe["module"] for probe in plan.values() if probe["kind"] == "module"}
    assert modules == {"diagnosis_info", "pm2_health", "network_info", "config_verify"}
    for name in modules:
        text = (ROOT / f"plugins/modules/{name}.py").read_text()
        assert "_lease.command" not in text, name
        assert "changed=False" in text or '"changed": False' in text, name
