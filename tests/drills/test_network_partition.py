# SPDX-License-Identifier: GPL-3.0-or-later
"""The server loses the exchanges in every way there is, one after the other in one lab: recovered, or halted with the right cause, and no order in between.

After each test the lab is as it was before; in what order they run does not matter.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_runs import ANSIBLE, INVENTORY, ROOT, Run, refused, sh

from titan_dr import lab
from titan_dr.lab import faults
from titan_dr.lab.state import LabState

PLAYBOOK = "network_partition"
# Recoveries that follow each other would make each other careful.
QUICK = ("-e", "network_diagnostics_max_seconds=5")
# In every change's own run (dns-dead is molecule's); the others are too slow for it.
CORE = ("egress-blocked", "tls-interception", "key-not-whitelisted", "ws-silent")
NETWORK_FILES = "cat /etc/resolv.conf /etc/hosts; ip route | sort"
AS_USUAL = {
    # what the recovery has to find out, for people to read in the report
    "dns-dead": "dns (dead)",
    "dns-wrong": "dns (wrong)",
    "route-blackhole": "route (blackhole)",
    "egress-blocked": "tcp_silent",
    "link-down": "tcp_silent",
    "replies-lost": "tcp_silent",
    "venue-down": "tcp_silent",
    "ws-blocked": "ws_refused",
    "ws-silent": "ws_silent",
    "maintenance": "maintenance",
    "rate-limited": "rate_limited",
    "store-cut": "cloud: tcp_silent",
}
# What the recovery keeps on the server.
KEPT = {
    "dns-dead": "/etc/resolv.conf names",
    "dns-wrong": "/etc/resolv.conf names",
    "route-blackhole": "the blackhole route",
    "egress-blocked": "route to",
}

# Where one exchange may be gone on without, the probes have to name each of them.
pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state() -> Iterator[LabState]:
    raised = lab.up("guide", print, None)
    try:
        yield raised
    finally:
        lab.down(print)


def status() -> dict[str, Any]:
    program = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:3000/health/trading', timeout=5).read().decode())"
    found: dict[str, Any] = json.loads(sh("titan", f'python3 -c "{program}"'))
    return found


def orders(state: LabState) -> list[dict[str, Any]]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{state.exchange_control}/log", timeout=10) as reply:
        found: list[dict[str, Any]] = json.load(reply)["orders"]
    return found


def moment(run: Run, trading: str, begin: bool = False) -> float:
    """When the run said so; with `begin` when it began to bring it about."""
    for line in (run.folder / "run" / "ledger.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("event") == "task" and (row.get("titan_dr") or {}).get("trading") == trading:
            return float(row["at"]) - (float(row.get("duration_s", 0)) if begin else 0.0)
    raise AssertionError(f"the run never said {trading}")


def between(state: LabState, run: Run, venues: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Orders from the halt to the resume, and for these venues to now."""
    halted = moment(run, "halted")
    resumed = moment(run, "resumed", begin=True) if run.report["trading"] == "resumed" else time.time()
    return [order for order in orders(state) if float(order["received"]) > halted and (float(order["received"]) < resumed or order["venue"] in venues)]


class Healing:
    """What passes by itself in the world outside: so long after the recovery has seen it, however slow this machine is."""

    def __init__(self, fault: faults.Fault, folder: Path) -> None:
        self.fault, self.ledger = fault, folder / "run" / "ledger.jsonl"
        self.at = 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self) -> None:
        while not self.over.wait(0.2):
            if self.ledger.exists() and "network: seen" in self.ledger.read_text():
                break
        if self.fault.heal and not self.over.is_set():
            self.over.wait(self.fault.heal_after_s)
            self.fault.heal()
            self.at = time.time()

    def end(self) -> float:
        self.over.set()
        self.thread.join(120)
        return self.at


def strike_and_recover(folder: Path, fault: faults.Fault, *more: str) -> tuple[Run, float]:
    fault.strike()
    fault.prove()
    healing = Healing(fault, folder)
    try:
        run = Run(folder, PLAYBOOK, *QUICK, *more)
    finally:
        healed_at = healing.end()
    return run, healed_at


@pytest.fixture
def whole(state: LabState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    """Whatever a test leaves, the next one begins with a Titan that trades on both exchanges."""
    yield state
    faults.find_fault(PLAYBOOK).cure()
    sh("titan", "rm -rf /var/lib/titan-dr/network.json /var/lib/titan-dr/halt.d")
    if status()["status"] != "operational":
        run = Run(tmp_path_factory.mktemp("again") / "run", PLAYBOOK, *QUICK)
        assert run.rc == 0, run.output


def test_an_inventory_without_exchanges_is_refused(state: LabState, tmp_path: Path) -> None:
    refused(Run(tmp_path / "run", PLAYBOOK, "-e", '{"titan_venues": []}'), "venues", "names no exchange")
    assert status()["trading"] is True


def test_check_mode_changes_nothing(whole: LabState, tmp_path: Path) -> None:
    faults.find_fault(PLAYBOOK, "dns-dead").strike()
    before = sh("titan", NETWORK_FILES)
    run = Run(tmp_path / "run", PLAYBOOK, "--check")
    assert run.rc == 0, run.output
    assert sh("titan", NETWORK_FILES) == before and status()["trading"] is True
    said = "\n".join(run.report["notes"])
    for word in ("would fasten the halt latch", "would try: /etc/resolv.conf names", "dns (dead)", "would resume"):
        assert word in said, said


def parameters() -> list[Any]:
    return [pytest.param(fault.name, marks=[] if fault.name in CORE else [pytest.mark.slow]) for fault in faults.FAULTS[PLAYBOOK]]


@pytest.mark.parametrize("name", parameters())
def test_every_fault_ends_as_it_has_to(whole: LabState, tmp_path: Path, name: str) -> None:
    fault = faults.find_fault(PLAYBOOK, name)
    before = sh("titan", NETWORK_FILES)
    run, healed_at = strike_and_recover(tmp_path / "run", fault)
    said = "\n".join(run.report["notes"])
    assert between(whole, run, fault.halted_venues) == [], "an order between halt and resume"
    if fault.expect == "halted":
        assert run.rc != 0 and (run.report["result"], run.report["trading"]) == ("failed", "halted"), run.output
        assert fault.cause in run.report["message"], run.report["message"]
        assert status()["status"] == "halted" and sh("titan", NETWORK_FILES) == before
        return
    assert run.rc == 0, run.output
    assert (run.report["result"], run.report["trading"]) == ("recovered", "resumed"), run.report
    assert run.report["rto"]["met"] is True and run.report["rpo"]["met"] is True
    assert AS_USUAL.get(name, "") in said, said
    assert status()["status"] == "operational" and tuple(status()["halted_venues"]) == fault.halted_venues
    if healed_at:
        assert moment(run, "resumed") > healed_at, "it resumed while the exchanges were away"
    if not healed_at:
        # a route to nowhere that was taken away is as it was before; a detour is not
        assert (name in KEPT and name != "route-blackhole") == (sh("titan", NETWORK_FILES) != before), said
        assert KEPT.get(name, "") in said, said


@pytest.mark.slow
def test_a_later_run_goes_back_to_the_primary_way(whole: LabState, tmp_path: Path) -> None:
    fault = faults.find_fault(PLAYBOOK, "dns-dead")
    before = sh("titan", NETWORK_FILES)
    run, _healed = strike_and_recover(tmp_path / "run", fault)
    assert run.rc == 0 and sh("titan", NETWORK_FILES) != before, run.output
    assert fault.heal is None
    # the resolver is back, and nothing else was put back by hand
    sh("exchange", "nft delete table ip titan_lab_fault")
    later = Run(tmp_path / "later", PLAYBOOK, *QUICK)
    assert later.rc == 0 and "put back: /etc/resolv.conf" in "\n".join(later.report["notes"]), later.output
    assert sh("titan", NETWORK_FILES) == before and status()["status"] == "operational"


TINY = """
- hosts: titan_servers
  gather_facts: false
  roles: [titan.disaster_recovery.titan]
  tasks:
    - titan.disaster_recovery.network_mend:
        state: "{{ wanted }}"
        venues: "{{ titan_venues }}"
        network: "{{ titan_network }}"
        confirm_within: 6
        run_id: by-hand
"""


def mend_by_hand(folder: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    (folder / "tiny.yml").write_text(TINY)
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks" / "collections"), "ANSIBLE_NOCOLOR": "1"}
    argv = [ANSIBLE, "-i", str(INVENTORY), "-e", f"wanted={wanted}", str(folder / "tiny.yml")]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_without_a_confirmation_the_server_undoes_what_could_cut_us_off(whole: LabState, tmp_path: Path) -> None:
    faults.find_fault(PLAYBOOK, "egress-blocked").strike()
    before = sh("titan", NETWORK_FILES)
    assert mend_by_hand(tmp_path, "mended").returncode == 0
    end = time.monotonic() + 15
    # nobody comes back to confirm
    while sh("titan", NETWORK_FILES) != before:
        assert time.monotonic() < end, "the timer did not fire"
        time.sleep(0.5)
    late = mend_by_hand(tmp_path, "confirmed")
    assert late.returncode != 0 and "not confirmed within" in late.stdout, late.stdout


def test_a_second_run_of_the_same_id_changes_nothing(whole: LabState, tmp_path: Path) -> None:
    run_id = json.loads(sh("titan", "cat /var/lib/titan-dr/recovered.json"))["run_id"]
    again = Run(tmp_path / "again", PLAYBOOK, run_id=run_id)
    assert (again.rc, again.report["result"], again.changed("titan")) == (0, "recovered", 0), again.output


def test_the_table_of_layers(whole: LabState, tmp_path: Path) -> None:
    argv = [ANSIBLE, "-i", str(INVENTORY), str(ROOT / "playbooks" / "network_diagnostics.yml")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "binance/ws: ok" in done.stdout and "issued by" in done.stdout, done.stdout
    faults.find_fault(PLAYBOOK, "tls-interception").strike()
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "tls_untrusted" in done.stdout and "Somebody else's CA" in done.stdout, done.stdout
