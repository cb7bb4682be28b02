# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import App, Finding, Pm2Error, Sample
from ansible_collections.titan.disaster_recovery.plugins.modules import pm2_health

BRAIN = {"name": "brain", "kind": "pm2"}
REDIS = {"name": "redis", "kind": "redis", "port": 6379}


class FakeWatcher:
    def __init__(self, *findings: Finding, apps: tuple[str, ...] = (), error: Pm2Error | None = None) -> None:
        self.findings, self.apps, self.error = list(findings), apps, error

    def watch(self, components: list[Component], window: float, min_uptime: float) -> tuple[list[Finding], Sample]:
        if self.error:
            raise self.error
        return self.findings, Sample(0, [App(name, 0, 1, "online", 0, 0) for name in self.apps], {}, {}, {}, 1, 0)


def check(watcher: FakeWatcher, foreign: str = "report") -> dict[str, Any]:
    return pm2_health.check(watcher, [Component("brain", "pm2", "titan-brain")], 10, 0, foreign)  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", ["pass", "fail", "unknown"])
def test_result(verdict: str) -> None:
    result = check(FakeWatcher(Finding("brain", verdict, "seen", 7, 1, 2.5, 100), apps=("titan-brain",)))
    assert result == {
        "changed": False,
        "verdict": verdict,
        "foreign": [],
        "components": [{"name": "brain", "verdict": verdict, "evidence": "seen", "pid": 7, "restarts": 1, "uptime_s": 2.5, "memory_bytes": 100}],
        "titan_dr": {"gates": [{"name": "pm2:brain", "verdict": verdict, "evidence": "seen"}]},
    }


@pytest.mark.parametrize("verdict", ["fail", "unknown"])
def test_no_daemon_or_no_answer_is_the_verdict_on_each(verdict: str) -> None:
    result = check(FakeWatcher(error=Pm2Error("why", verdict)))
    assert result["verdict"] == verdict and result["components"][0]["evidence"] == "why" and result["foreign"] == []


@pytest.mark.parametrize(("foreign", "verdict", "named"), [("report", "pass", ["other"]), ("fail", "fail", ["other"]), ("ignore", "pass", [])])
def test_foreign(foreign: str, verdict: str, named: list[str]) -> None:
    result = check(FakeWatcher(Finding("brain", "pass", "seen"), apps=("titan-brain", "other")), foreign)
    assert (result["verdict"], result["foreign"]) == (verdict, named)
    assert ("notes" in result["titan_dr"]) is (foreign == "report")


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args({"pm2_home": "/nonexistent", "user": "root", "components": [BRAIN, REDIS], **arguments}), pytest.raises(SystemExit):
        pm2_health.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_main_without_a_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys)
    assert result["verdict"] == "fail" and [item["name"] for item in result["components"]] == ["brain"]
    assert result["titan_dr"]["gates"][0]["name"] == "pm2:brain" and abs(result["at"] - time.time()) < 5


def test_those_of_other_servers_are_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    components = [{**BRAIN, "server": "core"}, {**BRAIN, "name": "phase", "server": "phases"}, REDIS]
    assert [item["name"] for item in run(capsys, components=components, server="phases")["components"]] == ["phase"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": []}, "empty"),
        ({"components": [REDIS]}, "none of this server is of kind pm2"),
        ({"components": [{**BRAIN, "server": "core"}, REDIS], "server": "data"}, "none of this server is of kind pm2"),
        ({"components": [{**BRAIN, "port": "x"}]}, "component brain: port"),
        ({"user": "no-such-user"}, "there is no user no-such-user"),
        ({"window": -1}, "must not be negative"),
        ({"timeout": 0}, "above 0"),
        ({"pm2_prefix": "/nonexistent"}, "pm2_prefix: there is no /nonexistent/node_modules/pm2/bin/pm2"),
    ],
)
def test_usage_errors(arguments: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, **arguments)
    assert result["failed"] and message in result["msg"]


def test_prefix_is_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "node_modules/pm2/bin").mkdir(parents=True)
    (tmp_path / "node_modules/pm2/bin/pm2").touch()
    assert run(capsys, pm2_prefix=str(tmp_path))["verdict"] == "fail"


def test_documentation_names_the_options() -> None:
    options = yaml.safe_load(pm2_health.DOCUMENTATION)["options"]
    for name, spec in pm2_health.argument_spec().items():
        assert {key: options[name].get(key) for key in spec} == dict(spec), name
    assert set(options) == set(pm2_health.argument_spec())
