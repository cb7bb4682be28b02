# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease, _network, _network_look, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import network_info
from ansible_collections.titan.disaster_recovery.plugins.modules.network_info import probes_for

VENUE = {"name": "a", "kind": "binance", "rest": "https://a.lab", "ws": "wss://a.lab/ws", "addresses": [], "keys": {}, "symbols": []}
OTHER = {**VENUE, "name": "b", "kind": "bybit"}
Module = Callable[..., dict[str, Any]]


class Sky:
    """What every look sees: causes by venue, one after the other, the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.causes: list[dict[str, str]] = [{}]
        self.looks = 0
        monkeypatch.setattr(_network_look.Looker, "__call__", self.look)

    def look(self, looker: Any = None, deep: bool = True, only: Any = None) -> dict[str, Any]:
        causes = self.causes[min(self.looks, len(self.causes) - 1)]
        self.looks += 1
        rows = []
        for name in ("a", "b"):
            for part in ("rest", "ws"):
                cause = causes.get(name, "ok")
                layers = [{"layer": "tcp", "verdict": "pass" if cause == "ok" else "fail", "evidence": "as seen", "ms": 1.0}]
                more = {"detail": "", "ours": False, "layers": layers, "latency_ms": 1.5, "loss": 0.0, "retry_after": 0.0}
                rows.append({"name": f"{name}/{part}", "owner": name, "kind": "venue", "required": True, "cause": cause, **more})
        return _network.summary(rows, 5.0)


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Sky:
    return Sky(monkeypatch)


def info(run_module: Module, check: bool = False, **more: Any) -> dict[str, Any]:
    return run_module(network_info, {"venues": [VENUE, OTHER], **more}, check)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}


QUICK = {"until": "stable", "looks": 2, "seconds": 0.2, "timeout": 3}


def test_one_look_never_fails(run_module: Module, sky: Sky) -> None:
    sky.causes = [{"a": "dns"}]
    found = info(run_module)
    assert not found["failed"] and found["network"]["cause"] == "dns" and found["network"]["venues"] == {"a": "dns", "b": "ok"}
    assert "gates" not in found["titan_dr"] and any("a/rest: dns" in note for note in found["titan_dr"]["notes"])
    assert any(line.startswith("a/rest: dns") for line in found["table"]) and found["advice"]


def test_check_mode_looks_once(run_module: Module, sky: Sky) -> None:
    sky.causes = [{"a": "dns"}]
    assert not info(run_module, check=True, until="stable")["failed"] and sky.looks == 1


def test_stable(run_module: Module, sky: Sky) -> None:
    sky.causes = [{"a": "tcp_silent"}, {}]
    found = info(run_module, **QUICK)
    assert not found["failed"] and verdicts(found) == {"network:a": "pass", "network:b": "pass"} and found["down"] == []
    assert all(gate["at"] == 5.0 for gate in found["titan_dr"]["gates"]), "a resume asks how old a gate is"
    assert found["titan_dr"]["rpo"] == {"actual_s": 0.0, "basis": "no data was replaced"}
    assert "seen tcp_silent, ok" in found["titan_dr"]["notes"][0]


def test_good_enough_to_go_on_is_no_proof(run_module: Module, sky: Sky) -> None:
    found = info(run_module, until="good", timeout=3)
    assert not found["failed"] and "rpo" not in found["titan_dr"] and "services_well" not in found


@pytest.mark.parametrize("cause", sorted(_network.DEFINITE))
def test_what_waiting_does_not_change_fails_with_what_to_do(run_module: Module, sky: Sky, cause: str) -> None:
    sky.causes = [{"a": cause}]
    found = info(run_module, **{**QUICK, "timeout": 60})
    assert found["failed"] and sky.looks == 2
    assert cause in found["msg"] and _network.ADVICE[cause] in found["msg"] and "waiting does not change it" in found["msg"]
    assert verdicts(found)["network:a"] == "fail"


def test_the_time_is_over(run_module: Module, sky: Sky) -> None:
    sky.causes = [{"a": "maintenance"}]
    found = info(run_module, **{**QUICK, "timeout": 0.5})
    assert found["failed"] and "not well after" in found["msg"] and "maintenance" in found["msg"]


def test_one_exchange_is_gone_on_without(run_module: Module, sky: Sky, web: Any) -> None:
    sky.causes = [{"b": "key_refused"}]
    service = web(lambda method, path, body: (503, {}, b'{"a": "connected", "b": "disconnected"}'))
    probe = {"name": "exchanges", "url": service.url, "status": [200], "expect": {"a": ["connected"], "b": ["connected"]}}
    found = info(run_module, **QUICK, one_down="halt_venue", probes=[probe])
    assert (found["failed"], found["down"], found["services_well"]) == (False, ["b"], True), found
    assert verdicts(found) == {"network:a": "pass"}
    assert found["probes"] == [{**probe, "expect": {"a": ["connected"]}, "status": [200, 503]}]
    assert any("goes on without b" in note for note in found["titan_dr"]["notes"])


def test_services_that_did_not_notice(run_module: Module, sky: Sky, web: Any) -> None:
    service = web(lambda method, path, body: (200, {}, b'{"status": "disconnected"}'))
    probe = {"name": "websockets", "url": service.url, "status": [200], "expect": {"status": ["connected"]}}
    found = info(run_module, **QUICK, probes=[probe], probes_timeout=0.3)
    assert (found["failed"], found["services_well"]) == (False, False)
    assert any("websockets" in note for note in found["titan_dr"]["notes"])


def test_an_earlier_recovery_makes_it_careful(run_module: Module, sky: Sky) -> None:
    Path(_state.STATE_DIR).mkdir(parents=True)
    for step in ("network_mend", "trading_resume"):
        _journal.append(_lease.journal_path(), {"at": time.time(), "run_id": "before", "step": step, "event": "done", "pid": 1})
    assert "over at least 2 s" in info(run_module, **{**QUICK, "seconds": 1.0})["titan_dr"]["notes"][0]
    assert "over at least 1 s" in info(run_module, **{**QUICK, "seconds": 1.0}, max_seconds=1)["titan_dr"]["notes"][0]


# --- before it begins ------------------------------------------------------------------------------------------------------------


def described(run_module: Module, **more: Any) -> dict[str, Any]:
    return info(run_module, until="described", environment_id="lab", **more)


def test_described(run_module: Module, sky: Sky, monkeypatch: pytest.MonkeyPatch) -> None:
    found = described(run_module)
    assert not found["failed"] and verdicts(found) == {"root": "pass", "environment": "pass", "venues": "pass"} and sky.looks == 0
    assert found["recovered"] == {}
    monkeypatch.setattr(network_info.os, "geteuid", lambda: 1000)
    assert described(run_module)["titan_dr"]["refused"].startswith("This recovery cannot begin: root")


@pytest.mark.parametrize(("text", "verdict"), [('{"environment_id": "lab"}', "pass"), ('{"environment_id": "other"}', "fail"), ("{", "unknown")])
def test_whose_server_it_is(run_module: Module, sky: Sky, text: str, verdict: str) -> None:
    Path(_state.STATE_DIR).mkdir(parents=True)
    (Path(_state.STATE_DIR) / "owner.json").write_text(text)
    found = described(run_module)
    assert verdicts(found)["environment"] == verdict and found["failed"] is (verdict != "pass")


def test_a_wrong_description_is_refused(run_module: Module, sky: Sky) -> None:
    found = described(run_module, venues=[{**VENUE, "rest": ""}])
    assert found["failed"] and verdicts(found)["venues"] == "fail"
    assert info(run_module, venues=[{**VENUE, "rest": ""}])["failed"], "and it cannot be looked at"


def test_probes_without_an_exchange() -> None:
    both = {"name": "x", "url": "http://x", "expect": {"broker.a": ["up"], "broker.b": ["up"]}}
    assert probes_for([both], []) == [both]
    assert probes_for([both], ["b"]) == [{**both, "expect": {"broker.a": ["up"]}, "status": [200, 503]}]
    assert probes_for([both], ["a", "b"]) == []
    plain = {"name": "y", "url": "http://y", "status": [200], "expect": {"status": ["up"]}}
    assert probes_for([plain], ["b"]) == [plain]
