# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import Checkout
from rich.console import Console

from titan_dr import cli, diagnose, report

MADE = {
    "scenario": "database_corruption",
    "host": "titan",
    "confidence": "high",
    "rule": "two independent pieces of evidence",
    "evidence": ["it does not start", "its dump is damaged"],
    "command": "titan-dr recover database_corruption -i hosts",
    "why": "before the network",
    "destructive": True,
    "restore_point": {"id": "20260101T000000Z-ab12", "taken_at": 1767225600.0},
    "expected_loss_s": 120.0,
    "expected_time": {"p50_s": 20.0, "p95_s": 40.0, "basis": "learnt from earlier runs"},
    "first": "",
}


def found(**fields: Any) -> dict[str, Any]:
    rows = [{"host": "titan", "probe": "redis", "verdict": "fail", "evidence": "it does not start"}]
    return {**diagnose.nothing("r1", "Proposed"), "result": "propose", "hosts": ["titan"], "rows": rows, "proposals": [MADE], **fields}


def shown(**fields: Any) -> str:
    console = Console(file=io.StringIO(), width=300, color_system=None)
    diagnose.render(console, found(**fields), Path("/r/report.json"))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_page() -> None:
    text = shown()
    for words in ("PROPOSED", "database_corruption on titan", "confidence high (two independent", "its dump is damaged", "$ titan-dr recover", "2026-01-01"):
        assert words in text
    assert "loses at most the last 2 min 00 s" in text and "about 20.0 s, at worst 40.0 s (learnt from earlier runs)" in text
    assert "NO RESTORE POINT" in shown(proposals=[{**MADE, "restore_point": None}])
    assert "loses no data" in shown(proposals=[{**MADE, "destructive": False, "expected_loss_s": 0.0, "restore_point": None}])


def test_what_is_left_to_look_at() -> None:
    look = [{"host": "titan", "probe": "redis", "verdict": "unknown", "evidence": "it is loading", "look": "its log"}]
    assert "Look at:" in shown(result="unknown", proposals=[], look_at=look)
    text = shown(look_at=look)
    assert "Not explained by this:" in text and "-> its log" in text


@pytest.mark.parametrize(("result", "code"), [("none", 0), ("propose", 1), ("unknown", 4), ("nonsense", 4)])
def test_exit_codes(result: str, code: int) -> None:
    assert diagnose.exit_code({"result": result}) == code


def playbook(checkout: Checkout, *tasks: dict[str, Any]) -> None:
    (checkout.root / "playbooks" / "diagnose.yml").write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": list(tasks)}]))


def writes(content: dict[str, Any]) -> dict[str, Any]:
    path = "{{ lookup('ansible.builtin.env', 'TITAN_DR_RUN_DIR') }}/report.json"
    return {"name": "Write", "ansible.builtin.copy": {"dest": path, "content": json.dumps(content), "mode": "0600"}}


def test_the_command_shows_what_the_playbook_found(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    playbook(checkout, writes(found()))
    assert cli.main(["diagnose", "-i", "hosts", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["proposals"][0]["scenario"] == "database_corruption"
    (path,) = (checkout.root / "runs" / "diagnosis").glob("*/report.json")
    assert "database_corruption" in path.with_name("report.html").read_text() and path.with_name("report.html").stat().st_mode & 0o77 == 0
    # it does not stand in the way of the recoveries' reports, and can be shown again
    assert cli.main(["report", "last"]) == report.USAGE
    assert cli.main(["report", f"diagnosis/{path.parent.name}"]) == 1
    assert "PROPOSED" in capsys.readouterr().out


def test_an_ansible_that_breaks_is_unknown_with_its_reason(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    playbook(checkout, {"name": "Break", "ansible.builtin.fail": {"msg": "no such inventory"}})
    assert cli.main(["diagnose", "-i", "hosts", "--json"]) == report.MISSED
    said = json.loads(capsys.readouterr().out)
    assert said["result"] == "unknown" and "no such inventory" in said["message"]


def test_a_playbook_that_does_not_load_says_why(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout.root / "playbooks" / "diagnose.yml").write_text("- hosts: localhost\n  roles: [no_such_role]\n")
    assert cli.main(["diagnose", "-i", "hosts", "--json"]) == report.MISSED
    assert "no_such_role" in json.loads(capsys.readouterr().out)["message"]


def test_wrong_use(checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ANSIBLE_INVENTORY", raising=False)
    assert cli.main(["diagnose"]) == report.USAGE and "-i" in capsys.readouterr().err
    assert cli.main(["diagnose", "-i", "nowhere"]) == report.USAGE


def test_a_look_that_hangs_is_ended(checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(diagnose, "LIMIT_S", 6.0)
    playbook(checkout, {"name": "Hang", "ansible.builtin.wait_for": {"timeout": 60}})
    assert cli.main(["diagnose", "-i", "hosts", "--json"]) == report.MISSED
    assert "did not end in time" in json.loads(capsys.readouterr().out)["message"]
