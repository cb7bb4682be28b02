# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that froze, was recovered onto another one, and comes back: it must not trade beside its successor (H09)."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_runs import Run, sh, titan_with_restore_points

from titan_dr import lab
from titan_dr.lab import hosts
from titan_dr.lab.state import LabState

GUARD = "titan-dr-guard"
# Every process of the server but its init, which this does not need.
FREEZE, THAW = "kill -STOP -1", "kill -CONT -1"

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 0) as raised:
        yield raised


def ask(state: LabState, path: str) -> Any:
    with urllib.request.urlopen(f"{state.exchange_control.rstrip('/')}/{path}", timeout=10) as reply:
        return json.load(reply)


def orders(state: LabState, host: str, since: float) -> list[str]:
    """Client ids of what the exchanges got from this host."""
    found = ask(state, "log")["orders"]
    return [order["clientOrderId"] for order in found if order["source_ip"] == state.host(host)["address"] and float(order["received"]) >= since]


def until(what: str, check: Any, seconds: float) -> float:
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def signal(state: LabState, word: str) -> None:
    # past lab.exec, which waits for the shell that it froze, too
    hosts.engine_of(state).run("exec", state.host("titan")["name"], "/bin/sh", "-c", f"trap '' CONT; {word}", timeout=20, check=False)


def cost() -> tuple[float, int]:
    """Processor seconds and kilobytes of the guard."""
    pid = sh("titan", f"systemctl show --property MainPID --value {GUARD}").strip()
    used, size = sh("titan", f"cut -d ' ' -f 14-17 /proc/{pid}/stat | tr ' ' '+'; grep VmRSS /proc/{pid}/status").splitlines()
    return sum(map(int, used.split("+"))) / 100, int(size.split()[1])


def dropped() -> int:
    found = re.search(r"counter packets (\d+)", sh("titan", "nft list table inet titan_dr_permit"))
    assert found
    return int(found.group(1))


def test_a_server_that_comes_back_is_fenced(state: LabState, tmp_path: Path) -> None:
    guarded = Run(tmp_path / "guard", "guard")
    assert guarded.rc == 0, guarded.output
    began, (used, _size) = time.monotonic(), cost()
    backup = Run(tmp_path / "backup", "backup")
    assert backup.rc == 0, backup.output
    now = ask(state, "log")["now"]
    until("the guarded server trades", lambda: orders(state, "titan", now), 30)
    used, size = cost()[0] - used, cost()[1]
    share = used / (time.monotonic() - began)
    # some of them from before the first permit
    before = dropped()

    signal(state, FREEZE)
    frozen = ask(state, "log")["now"]
    run = Run(tmp_path / "run", "complete_system_failure", "-e", "titan_guard=true", "-e", "validate_window=2")
    assert (run.report["result"], run.report["trading"]) == ("recovered", "resumed"), run.output
    assert orders(state, "titan", frozen + 1) == [], "it is not frozen"
    until("the new server trades", lambda: orders(state, "replacement", frozen), 30)

    back = ask(state, "log")["now"]
    signal(state, THAW)
    took = until("its latch is fastened", lambda: lab.exec("titan", ["cat", "/var/lib/titan-dr/halt"], check=False).returncode == 0, 20)
    latch = json.loads(sh("titan", "cat /var/lib/titan-dr/halt"))
    assert latch["reason"] == f"fenced: epoch 2 of run {run.report['run_id']}" and took < 15
    time.sleep(6)
    assert orders(state, "titan", back) == [], "it placed an order beside its successor"
    assert orders(state, "replacement", back), "and the successor trades on"
    assert dropped() > before, "its services tried to send"
    assert sh("titan", f"systemctl is-active {GUARD}").strip() == "active"
    print(f"\nlatch fastened {took:.1f} s after the server came back; guard: {share:.2%} of a processor, {size} kB")
