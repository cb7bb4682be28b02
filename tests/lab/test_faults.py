# SPDX-License-Identifier: GPL-3.0-or-later
"""What a drill can break: each fault is real, shows its effect, and says so when it has none."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import exchange_simulator
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network
from titan_dr import lab, playbooks
from titan_dr.lab import LabError, LabState, certificates, faults, profiles
from titan_dr.lab.engine import Completed
from titan_dr.lab.faults import network, redis, server


def test_every_scenario_can_be_drilled() -> None:
    scenarios = playbooks.scenarios(installed=False)
    # a rollback is no disaster
    assert set(faults.FAULTS) == set(scenarios) - {"rollback"}
    assert {objectives["recovers"] for objectives in scenarios.values()} == {"titan_replacement", "titan_servers"}
    for name in faults.FAULTS:
        names = [fault.name for fault in faults.FAULTS[name]]
        assert len(set(names)) == len(names) > 0
        assert faults.find_fault(name) is faults.FAULTS[name][0]


def test_what_a_plain_drill_causes() -> None:
    assert faults.find_fault("complete_system_failure").name == "destroyed"
    assert faults.find_fault("database_corruption").name == "bitflip"
    assert faults.find_fault("database_corruption", "hung").name == "hung"


def test_a_fault_that_is_not_known() -> None:
    with pytest.raises(faults.UnknownFault, match="bitflip, truncated-base, manifest-missing, hung"):
        faults.find_fault("database_corruption", "flood")
    with pytest.raises(faults.UnknownFault, match=r"complete_system_failure, .*database_corruption, .*network_partition"):
        faults.find_fault("flood")


def test_what_cannot_be_done_to_a_titan_on_several_servers() -> None:
    for scenario in ("complete_system_failure", "database_corruption"):
        assert faults.find_fault(scenario, profile="split") is faults.FAULTS[scenario][0]
    with pytest.raises(faults.UnknownFault, match="dns-dead of scenario network_partition cannot be caused on profile split; there it can be destroyed of"):
        faults.find_fault("network_partition", "dns-dead", "split")
    for scenario, found in faults.FAULTS.items():
        assert all({"guide", "variant"} <= set(fault.profiles) <= set(profiles.PROFILES) for fault in found), scenario


@pytest.mark.parametrize(("code", "message"), [(0, "is not gone"), (125, "exit code 125")])
def test_a_host_that_may_still_be_there(monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    state: Any = type("State", (), {"profile": "guide", "host": staticmethod(lambda name: {"name": "titan-lab-x-titan"})})
    monkeypatch.setattr(server, "load_state", lambda: state)
    engine: Any = type("Engine", (), {"run": staticmethod(lambda *_, **__: Completed([], code))})
    monkeypatch.setattr(server, "find", lambda: engine)
    with pytest.raises(LabError, match=message):
        server.must_be_gone()


def test_every_server_of_a_split_titan_is_destroyed_and_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = type("State", (), {"profile": "split", "host": staticmethod(lambda name: {"name": f"x-{name}"})})
    monkeypatch.setattr(server, "load_state", lambda: state)
    monkeypatch.setattr(server.hosts, "destroy_host", lambda name: {"host": name, "ssh": "refused"})
    assert server.destroy() == {"host": "data, core, phases", "ssh": "refused, refused, refused"}
    engine: Any = type("Engine", (), {"run": staticmethod(lambda *argv, **_: Completed([], 0 if argv[2] == "x-phases" else 1))})
    monkeypatch.setattr(server, "find", lambda: engine)
    with pytest.raises(LabError, match="x-phases is not gone"):
        server.must_be_gone()


# The order that the script gets, with a systemd that tells of a process of the test's own. What it does to a real unit the drills show.

SYSTEMCTL = """\
#!{python}
import json, sys
print(json.load(open({state!r}))[sys.argv[4]])
"""


class Unit:
    """A Redis of the test, as the script sees it through systemctl."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        self.state = folder / "unit.json"
        self.data = Path(server.folder)
        (folder / "bin").mkdir()
        program = folder / "bin" / "systemctl"
        program.write_text(SYSTEMCTL.format(python=sys.executable, state=str(self.state)))
        program.chmod(0o755)
        self.says(NRestarts=0, MainPID=server.process.pid, ActiveState="active", SubState="running")

    def says(self, **state: Any) -> None:
        known = json.loads(self.state.read_text()) if self.state.exists() else {}
        self.state.write_text(json.dumps({**known, **state}))

    def strike(self, action: str) -> subprocess.CompletedProcess[str]:
        order = {"action": action, "password": "secret", "data_dir": str(self.data), "unit": "redis-server"}
        script = redis.REDIS_FAULT.replace("6379", str(self.server.port)).replace("seconds=20", "seconds=2")
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin"}
        argv = [sys.executable, "-c", script]
        return subprocess.run(argv, input=json.dumps(order), env=environment, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    program = shutil.which("redis-server", path="/usr/bin:/usr/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("needs redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tmp_path / "redis"
    folder.mkdir()
    argv = [program, "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--requirepass", "secret", "--save", "900 1"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    server: Any = type("Server", (), {"process": process, "port": port, "folder": folder})
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
                for command in ["AUTH secret", *(f"SET key:{n} {n:050}" for n in range(199))]:
                    link.sendall(f"{command}\r\n".encode())
                    assert link.recv(64) == b"+OK\r\n"
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    try:
        yield Unit(tmp_path, server)
    finally:
        process.kill()
        process.wait()


def test_a_redis_that_hangs(unit: Unit) -> None:
    done = unit.strike("hung")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["keys_before"] == "199" and "does not answer" in found["effect"]
    assert Path(f"/proc/{unit.server.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_damage_to_the_files(unit: Unit) -> None:
    done = unit.strike("prepare")
    assert done.returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in unit.data.rglob("*") if path.is_file()}
    base = next(name for name in before if name.endswith(".base.rdb"))
    assert len(before[base]) > 1000 and len(before["dump.rdb"]) > 1000, "the data is in the base, not in the increment"
    unit.says(NRestarts=1, ActiveState="activating")  # it is killed, and nobody starts it here: it does not answer
    kill = unit.strike("bitflip")
    # systemd has not started it again since the kill
    assert kill.returncode != 0 and "has not started Redis again" in kill.stderr
    after = {path.name: path.read_bytes() for path in unit.data.rglob("*") if path.is_file()}
    for name in (base, "dump.rdb"):
        assert len(before[name]) == len(after[name])
        assert sum(bin(a ^ b).count("1") for a, b in zip(before[name], after[name], strict=True)) == 8
    unit.server.process.wait(5)


def test_a_base_that_is_cut(unit: Unit) -> None:
    assert unit.strike("prepare").returncode == 0
    (base,) = unit.data.rglob("*.base.rdb")
    size = base.stat().st_size
    unit.says(ActiveState="failed", SubState="failed")
    done = unit.strike("truncated-base")
    assert done.returncode == 0, done.stderr
    assert base.stat().st_size == size // 2 and "does not start: unit failed/failed" in json.loads(done.stdout)["effect"]


def test_a_tail_and_a_base_that_are_damaged(unit: Unit) -> None:
    assert unit.strike("prepare").returncode == 0
    before = {path: path.read_bytes() for path in unit.data.rglob("*") if path.is_file()}
    unit.says(ActiveState="failed", SubState="failed")
    assert unit.strike("aof-tail").returncode == 0
    (log,) = unit.data.rglob("*.incr.aof")
    assert log.read_bytes()[:-512] == before[log] and unit.server.process.wait(5) == -9
    assert all(path.read_bytes() == data for path, data in before.items() if path != log)


def test_a_script_that_deletes(unit: Unit) -> None:
    # there is no order to delete
    assert "no keys are missing" in unit.strike("keys-deleted").stderr
    done = unit.strike("flushed")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["effect"] == "Redis answers and holds 0 of 199 keys"


def test_files_that_are_removed(unit: Unit) -> None:
    done = unit.strike("emptied")
    # nobody starts it here
    assert done.returncode != 0 and "Redis does not answer again" in done.stderr and not list(unit.data.iterdir())


def test_a_fault_without_effect_is_an_error(unit: Unit) -> None:
    with subprocess.Popen(["sleep", "30"]) as another:
        unit.says(MainPID=another.pid)
        done = unit.strike("hung")
        another.kill()
    assert done.returncode != 0 and "Redis still answers" in done.stderr
    assert "no such action" in unit.strike("flood").stderr


# --- the network --------------------------------------------------------------------------------------------------------

PARTITION = "network_partition"


def test_network_faults_say_what_becomes_of_them() -> None:
    for fault in network.FAULTS:
        # the server itself is well, and the lab can go on
        assert fault.trades_on and fault.cure is network.cure, fault.name
        assert (fault.heal is None) == (fault.heal_after_s == 0), fault.name
        assert (fault.expect == "halted") == bool(fault.cause), fault.name
        assert not (fault.heal and fault.expect == "halted"), fault.name
    # in the words of those who have to find them
    assert {fault.cause for fault in network.FAULTS} - {""} <= set(_network.DEFINITE)
    assert set(network.BOTH) == {"binance", "bybit"} >= set(faults.find_fault(PARTITION, "venue-down").halted_venues)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> LabState:
    hosts: Any = {name: {"name": name, "address": f"10.9.9.{last}", "image": "i"} for name, last in lab.hosts.ADDRESSES.items()}
    venues = {
        "binance": {"name": "api.binance.lab", "address": "10.9.9.13", "port": 9001},
        "bybit": {"name": "api.bybit.lab", "address": "10.9.9.14", "port": 9002},
    }
    keys = {venue: dict(pair) for venue, pair in exchange_simulator.KEYS.items()}
    state = LabState("r", "guide", "n", "10.9.9.0/24", {}, hosts, {}, {}, {}, {}, "p", "c", keys, "http://10.9.9.13:9003", venues, "CA")
    monkeypatch.setattr(network, "load_state", lambda: state)
    return state


def test_the_lab_itself_is_never_cut_off(small: LabState) -> None:
    text = network.rules(small, *network.EVERYTHING)
    assert "ip saddr != 10.9.9.1 drop" in text and "hook input" in text
    assert "{ 9001, 9002 } ip daddr != 10.9.9.1 drop" in network.rules(small, "tcp sport {ports} ip daddr != {outside} drop", output=True)
    # it replaces what an earlier fault left
    assert text.startswith(network.EMPTY)


class Told:
    """Stands for the hosts, and keeps what they were told to do."""

    def __init__(self, answer: Completed) -> None:
        self.answer, self.told = answer, list[tuple[str, str, str]]()

    def __call__(self, host: str, argv: list[str], input: str = "", timeout: float = 0, check: bool = True) -> Completed:
        self.told.append((host, argv[-1], input))
        return self.answer


def test_a_rule_that_is_not_taken_is_an_error(small: LabState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.hosts, "exec", Told(Completed([], 1, "", "syntax error, unexpected drop")))
    with pytest.raises(LabError, match="exchange: syntax error"):
        network.cut("exchange", *network.DNS)


def test_an_effect_that_is_not_the_one_meant(small: LabState, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"binance": ["ok", ""], "bybit": ["tcp", "10.9.9.14:9002: timed out"], "store": ["ok", ""]}
    monkeypatch.setattr(network.hosts, "exec", Told(Completed([], 0, json.dumps(found), "")))
    assert network.seen({"bybit": "tcp"}) == {"bybit": "tcp: 10.9.9.14:9002: timed out"}
    for meant in ({}, {"bybit": "dns"}, {"bybit": "tcp", "binance": "tcp"}):
        with pytest.raises(LabError, match="did not take effect as meant"):
            network.seen(meant)
    monkeypatch.setattr(network.hosts, "exec", Told(Completed([], 1, "", "Traceback")))
    with pytest.raises(LabError, match="could not look for the exchanges: Traceback"):
        network.seen({})


class Names(threading.Thread):
    """A name server that gives one address for everything, or says nothing."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.address: str | None = "127.0.0.1"
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.start()

    def run(self) -> None:
        while True:
            question, sender = self.socket.recvfrom(512)
            if self.address:
                self.socket.sendto(question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:] + socket.inet_aton(self.address), sender)


class Ways:
    """The simulated exchanges of a test, as the script on the server sees them."""

    def __init__(self, folder: Path) -> None:
        authority, shown = certificates.make(["api.binance.lab", "api.bybit.lab"])
        self.folder, self.names = folder, Names()
        (folder / "tls").mkdir()
        for name, text in {**{f"tls/{name}": text for name, text in shown.items()}, "ca.pem": authority, "resolv.conf": "nameserver 127.0.0.1\n"}.items():
            (folder / name).write_text(text)
        (folder / "bin").mkdir()
        self.route("true")
        self.exchanges = exchange_simulator.start(folder, "--tls-dir", str(folder / "tls"))

    def route(self, says: str) -> None:
        (self.folder / "bin" / "ip").write_text(f"#!/bin/sh\n{says}\n")
        (self.folder / "bin" / "ip").chmod(0o755)

    def ends(self, **more: Any) -> dict[str, list[str]]:
        ways: dict[str, Any] = {"store": {"address": "127.0.0.1", "port": self.exchanges.ports["control"]}}
        for venue, known in network.wiring.VENUES.items():
            keys = exchange_simulator.KEYS[venue]
            ways[venue] = {"host": known.name, "address": "127.0.0.1", "port": self.exchanges.ports[venue], "ws": known.stream}
            ways[venue] |= {"key": keys["api_key"], "secret": keys["api_secret"], **more}
        port = self.names.socket.getsockname()[1]
        script = network.PROBE.replace("/etc/resolv.conf", str(self.folder / "resolv.conf")).replace("(server, 53)", f"(server, {port})")
        order = json.dumps({"ca": str(self.folder / "ca.pem"), "ways": ways})
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin"}
        argv = [sys.executable, "-c", script.replace("WAIT = 1.5", "WAIT = 0.3")]
        done = subprocess.run(argv, input=order, env=environment, capture_output=True, text=True, timeout=30, check=True)
        found: dict[str, list[str]] = json.loads(done.stdout)
        assert found.pop("store")[0] == ("ok" if "exit" not in (self.folder / "bin" / "ip").read_text() else "route")
        return found

    def both(self, layer: str, *words: str) -> None:
        for end, said in self.ends().values():
            assert end == layer, said
            assert any(word in said for word in words) or not words, said


@pytest.fixture
def ways(tmp_path: Path) -> Iterator[Ways]:
    made = Ways(tmp_path)
    try:
        yield made
    finally:
        exchange_simulator.end(made.exchanges)


def test_how_far_a_server_gets(ways: Ways) -> None:
    ways.both("ok")
    for fault, layer, *words in (
        ({"tls": "unknown_ca"}, "tls", "issuer"),
        ({"tls": "expired"}, "tls", "expired"),
        ({"rate_limit": 429}, "http", "429"),
        ({"maintenance": True}, "http", "503", "10016"),
        ({"key_not_whitelisted": True}, "http", "-2015", "10010"),
        ({"html": True}, "http", "<!DOCTYPE"),
        ({"reject_upgrade": True}, "ws", "403"),
        ({"ws_silent": True}, "ws", "no data"),
        ({}, "ok"),
    ):
        for venue in network.BOTH:
            ways.exchanges.faults(venue, **fault)
        ways.both(str(layer), *words)
    ways.names.address = "127.0.0.9"
    ways.both("dns", "is 127.0.0.9")
    ways.names.address = None
    ways.both("dns", "timed out")
    ways.names.address = "127.0.0.1"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert {end for end, _ in ways.ends(port=closed.getsockname()[1]).values()} == {"tcp"}
    ways.route("echo 'RTNETLINK answers: Invalid argument' >&2; exit 2")
    ways.both("route", "Invalid argument")


@pytest.mark.lab
@pytest.mark.slow
def test_each_network_fault_takes_effect_and_can_be_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITAN_DR_LAB_DIR", str(tmp_path / "lab"))
    state = lab.up("guide", print)
    try:
        for fault in network.FAULTS:
            fault.strike()
            fault.prove()
            if fault.heal is not None:
                fault.heal()
                network.seen({})
            # as a recovery may leave it
            other, bybit = state.host("backup")["address"], state.venues["bybit"]["address"]
            mend = f"ip route replace {bybit}/32 via {other}; echo nameserver {other} > /etc/resolv.conf; echo {bybit} api.bybit.lab >> /etc/hosts"
            lab.exec("titan", ["sh", "-ec", mend])
            fault.cure()
            assert other not in lab.exec("titan", ["sh", "-ec", "cat /etc/resolv.conf; ip route"]).stdout
            assert lab.exec("titan", ["cat", "/etc/hosts"]).stdout == lab.hosts.hosts_file(state, "titan")
    finally:
        lab.down()
