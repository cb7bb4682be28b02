# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _journal, _lease, _network, _network_dns, _network_look, _network_mend, _state
from ansible_collections.titan.disaster_recovery.plugins.modules import network_mend

VENUE = {"name": "a", "kind": "binance", "rest": "https://a.lab", "ws": "wss://a.lab/ws", "addresses": ["10.0.0.1"], "keys": {}, "symbols": []}
DEAD, SPARE = "10.0.0.53", "10.0.0.54"
Module = Callable[..., dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server whose files lie in a folder; names are known when resolv.conf names the spare resolver."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text(f"nameserver {DEAD}\n")
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n")

    class Server(_network_mend.Server):
        def __init__(self) -> None:
            super().__init__(str(tmp_path), lambda argv: (0, "[]" if "-j" in argv else ""))

    def look(looker: Any, deep: bool = True, only: Any = None) -> dict[str, Any]:
        cause = "ok" if SPARE in (tmp_path / "etc/resolv.conf").read_text() else "dns"
        more = {"required": True, "detail": "", "ours": True, "layers": [], "latency_ms": None, "loss": None, "retry_after": 0.0}
        return _network.summary([{"name": "a/rest", "owner": "a", "kind": "venue", "cause": cause, **more}], 0.0)

    monkeypatch.setattr(_network_mend, "Server", Server)
    monkeypatch.setattr(_network_look.Looker, "__call__", look)
    monkeypatch.setattr(_network_mend.Options.__init__, "__defaults__", (ask, lambda name, seconds: ([], "")))
    return tmp_path


def ask(server: str, name: str, timeout: float) -> _network_dns.Answer:
    return _network_dns.Answer(server, "ok" if server == SPARE else "silent")


def mend(run_module: Module, check: bool = False, **more: Any) -> dict[str, Any]:
    return run_module(network_mend, {"venues": [VENUE], "network": {"resolvers": [SPARE]}, "run_id": "run", **more}, check)


def test_mended_kept_and_put_back(run_module: Module, root: Path) -> None:
    found = mend(run_module)
    assert (found["failed"], found["changed"], found["network"]["cause"], found["confirm"]) == (False, True, "ok", False), found
    assert found["kept"] == [f"/etc/resolv.conf names {SPARE}"]
    assert any("helped" in note for note in found["titan_dr"]["notes"]) and any("seen: a/rest: dns" in note for note in found["titan_dr"]["notes"])
    assert [row["event"] for row in _journal.read(_lease.journal_path())] == ["intent", "done"]
    again = mend(run_module)
    assert (again["changed"], again["network"]["cause"]) == (False, "ok")
    back = mend(run_module, state="reverted")
    assert back["reverted"] == found["kept"] and (root / "etc/resolv.conf").read_text() == f"nameserver {DEAD}\n"
    assert mend(run_module, state="reverted")["changed"] is False


def test_check_mode_only_says_what_it_would_try(run_module: Module, root: Path) -> None:
    found = mend(run_module, check=True)
    assert found["changed"] and "would try: /etc/resolv.conf" in found["titan_dr"]["notes"][0]
    assert (root / "etc/resolv.conf").read_text() == f"nameserver {DEAD}\n" and not Path(_state.STATE_DIR).exists()


def test_nothing_that_helps_is_no_failure(run_module: Module, root: Path) -> None:
    found = mend(run_module, network={})
    assert not found["failed"] and found["network"]["cause"] == "dns"
    # the known addresses were tried, and taken away again
    assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n" and "did not help" in " ".join(found["titan_dr"]["notes"])


def test_nothing_to_confirm(run_module: Module, root: Path) -> None:
    assert mend(run_module, state="confirmed")["kept"] == []


@pytest.mark.parametrize("more", [{"venues": []}, {"venues": [{**VENUE, "rest": ""}]}, {"network": {"routes": [{"to": "10.0.0.1"}]}}])
def test_a_wrong_description_changes_nothing(run_module: Module, root: Path, more: dict[str, Any]) -> None:
    assert mend(run_module, **more)["failed"]
    assert (root / "etc/resolv.conf").read_text() == f"nameserver {DEAD}\n"


def test_only_under_the_lease(run_module: Module, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = _lease.Lease(3, "other", "x", "network_partition", 0.0, 0.0, {}, _lease.HELD)
    _lease.write(holder)
    found = mend(run_module)
    assert found["failed"] and "Refused" in found["msg"] and (root / "etc/resolv.conf").read_text() == f"nameserver {DEAD}\n"


def test_a_damaged_record_stops_it(run_module: Module, root: Path) -> None:
    Path(_state.STATE_DIR).mkdir(parents=True)
    Path(_network_mend.record_path()).write_text("{")
    found = mend(run_module)
    assert found["failed"] and "damaged" in found["msg"] and found["titan_dr"]["gates"][0]["verdict"] == "fail"
