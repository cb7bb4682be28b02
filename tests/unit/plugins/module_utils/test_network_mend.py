# SPDX-License-Identifier: GPL-3.0-or-later
"""A server of files in a folder and commands that a small model of the kernel answers; what is seen follows from both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _network, _network_dns, _network_mend
from ansible_collections.titan.disaster_recovery.plugins.module_utils._network_mend import (
    BEGIN,
    HOSTS,
    RESOLV_CONF,
    Change,
    Means,
    Mender,
    MendError,
    Options,
    Record,
    Server,
    covers,
    with_block,
    without_block,
)

GOOD, DEAD, SPARE = "10.0.0.1", "10.0.0.53", "10.0.0.54"
VENUE = {"name": "a", "kind": "binance", "rest": "https://a.lab", "ws": "wss://a.lab/ws", "addresses": [GOOD], "keys": {}, "symbols": []}


class World:
    """Names are known to the resolvers in `knowing` and to /etc/hosts; packets get there unless a route refuses or `direct` is off."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.knowing = {SPARE}
        self.direct = True
        self.up = True
        self.routes: dict[str, tuple[str, ...]] = {}
        self.units: dict[str, str] = {}
        self.enabled: set[str] = set()
        self.said: list[str] = []
        self.refused: dict[str, str] = {}
        self.links_fail = False
        self.file(RESOLV_CONF, f"search lab\nnameserver {DEAD}\n")
        self.file(HOSTS, "127.0.0.1 localhost\n")

    def file(self, path: str, text: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    # what is seen

    def cause(self) -> str:
        if not self.up:
            return "interface"
        hosts = [line.split() for line in self.text(HOSTS).splitlines()]
        named = any(line[0] == GOOD and "a.lab" in line for line in hosts if line and line[0] != "#")
        if not named and not set(_network_dns.nameservers(self.text(RESOLV_CONF))) & self.knowing:
            return "dns"
        kind = self.routes.get(GOOD, ("",))[0]
        if kind in _network_mend.REFUSING:
            return "route"
        return "ok" if self.direct or kind == "via" else "tcp_silent"

    def look(self) -> dict[str, Any]:
        cause = self.cause()
        more = {"required": True, "detail": "", "ours": True, "layers": [], "latency_ms": None, "loss": None, "retry_after": 0.0}
        return _network.summary([{"name": f"a/{part}", "owner": "a", "kind": "venue", "cause": cause, **more} for part in ("rest", "ws")], 0.0)

    # commands

    def command(self, argv: Sequence[str]) -> tuple[int, str]:
        text = " ".join(argv)
        self.said.append(text)
        for start, why in self.refused.items():
            if text.startswith(start):
                return 2, why
        words = list(argv)
        if words[:2] == ["systemd-run", "--quiet"]:
            unit = next(word.partition("=")[2] for word in words if word.startswith("--unit="))
            self.units[unit] = words[-1]
            return 0, ""
        if words[0] == "systemctl":
            return self.systemctl(words)
        if words[:3] == ["ip", "-j", "route"]:
            return 0, json.dumps(self.shown(words[4:]))
        if words[:2] == ["ip", "route"]:
            return self.route(words[2], words[3:])
        if words[:4] == ["ip", "-j", "link", "show"]:
            return 0, json.dumps([{"ifname": "lo", "flags": ["LOOPBACK"]}, {"ifname": "eth0", "flags": ["UP", "LOWER_UP"] if self.up else []}])
        if words[:3] == ["ip", "link", "set"]:
            self.up = words[-1] == "up" and not self.links_fail
            return 0, ""
        return (0, "[]") if "-j" in words else (0, "")

    def systemctl(self, words: list[str]) -> tuple[int, str]:
        name = words[-1].removesuffix(".timer")
        if "is-enabled" in words:
            return (0 if words[-1] in self.enabled else 1), ""
        if "is-active" in words:
            return (0 if name in self.units else 3), ""
        if "stop" in words:
            return (0 if self.units.pop(name, None) is not None else 5), ""
        if "restart" in words:
            self.up = True
        return 0, ""

    def shown(self, words: list[str]) -> list[dict[str, Any]]:
        kind = words[-1]
        if words[0] == "type":
            return [{"type": kind, "dst": to} for to, route in self.routes.items() if route[0] == kind]
        return [{"dst": to, "gateway": route[1]} for to, route in self.routes.items() if to == kind and route[0] == "via"]

    def route(self, verb: str, words: list[str]) -> tuple[int, str]:
        if verb == "show":
            return 0, "".join(f"{to} via {route[1]}\n" for to, route in self.routes.items() if to == words[-1] and route[0] == "via")
        kind = words.pop(0) if words[0] in _network_mend.REFUSING else "via"
        to, via = words[0], words[2] if len(words) > 2 else ""
        if verb == "del":
            return (0 if self.routes.pop(to, None) else 2), "RTNETLINK answers: No such process"
        self.routes[to] = (kind, via)
        return 0, ""

    def elapse(self) -> None:
        """The timers fire."""
        for unit, script in list(self.units.items()):
            del self.units[unit]
            for command in script.split("; "):
                self.command(command.split())


def ask_of(world: World) -> Callable[..., _network_dns.Answer]:
    def ask(server: str, name: str, timeout: float) -> _network_dns.Answer:
        return _network_dns.Answer(server, "ok" if server in world.knowing else "silent", (GOOD,))

    return ask


class Setup:
    def __init__(self, tmp_path: Path, **means: Any) -> None:
        self.world = World(tmp_path / "root")
        self.server = Server(str(tmp_path / "root"), self.world.command)
        endpoints = tuple(_network.endpoints([VENUE], []))
        self.options = Options(Means(endpoints, **means), self.server, ask_of(self.world), lambda name, seconds: ([], "no answer"))
        self.record = Record(str(tmp_path / "state" / "network.json"))
        self.now = 0.0

    def mender(self, run_id: str = "run") -> Mender:
        return Mender(self.server, self.record, self.world.look, run_id, clock=self.clock)

    def clock(self) -> float:
        self.now += 1
        return self.now

    def mend(self, end: float = 1000.0, run_id: str = "run") -> _network_mend.Mended:
        return self.mender(run_id).mend(self.options, end)


def test_nothing_is_done_when_all_is_well(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    setup.world.knowing.add(DEAD)
    found = setup.mend()
    assert (found.changed, found.network["cause"], setup.record.read()) == (False, "ok", [])
    assert not any(word in " ".join(setup.world.said) for word in ("replace", "del", "set", "restart"))


def test_other_resolvers(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=("10.0.0.99", SPARE))
    found = setup.mend()
    assert found.network["cause"] == "ok" and found.kept == [f"{RESOLV_CONF} names {SPARE}"] and not found.confirm
    assert setup.world.text(RESOLV_CONF) == f"search lab\nnameserver {SPARE}\n", "one that does not answer is not named"
    assert [row["state"] for row in setup.record.read()] == ["kept"]
    # a second run finds everything well; the old name server is still dead
    again = setup.mend()
    assert (again.changed, again.network["cause"]) == (False, "ok")
    # it is back: a later run goes back to it
    setup.world.knowing.add(DEAD)
    later = setup.mend(run_id="later")
    assert later.reverted == [f"{RESOLV_CONF} names {SPARE}"] and setup.record.read() == []
    assert setup.world.text(RESOLV_CONF) == f"search lab\nnameserver {DEAD}\n"


def test_a_link_to_a_stub_resolver_comes_back_as_a_link(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    place = setup.world.root / RESOLV_CONF.lstrip("/")
    setup.world.file("/run/stub.conf", f"nameserver {DEAD}\n")
    place.unlink()
    place.symlink_to(setup.world.root / "run/stub.conf")
    assert setup.mend().network["cause"] == "ok" and not place.is_symlink()
    assert (setup.world.root / "run/stub.conf").read_text() == f"nameserver {DEAD}\n", "what it led to is not ours"
    setup.mender().revert()
    assert os.readlink(place).endswith("run/stub.conf")


def test_known_addresses_when_no_resolver_helps(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    setup.world.knowing.clear()
    found = setup.mend()
    assert found.kept == [f"{HOSTS} names {GOOD} a.lab"] and BEGIN in setup.world.text(HOSTS)
    # somebody else writes into the file meanwhile
    setup.world.file(HOSTS, setup.world.text(HOSTS) + "10.0.0.7 other\n")
    setup.world.knowing.add(DEAD)
    assert setup.mend(run_id="later").reverted == [f"{HOSTS} names {GOOD} a.lab"]
    assert setup.world.text(HOSTS) == "127.0.0.1 localhost\n10.0.0.7 other\n"


def test_a_route_to_nowhere_that_nobody_meant(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.knowing.add(DEAD)
    setup.world.routes[GOOD] = ("blackhole",)
    found = setup.mend()
    assert found.kept == [f"the blackhole route to {GOOD} taken away, no configuration names it"] and GOOD not in setup.world.routes
    # it was in our way: no later run puts it back by itself
    assert not setup.mend(run_id="later").changed
    assert setup.mender().revert() and setup.world.routes[GOOD] == ("blackhole", "")


def test_a_route_that_the_administrator_meant_stays(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.knowing.add(DEAD)
    setup.world.routes[GOOD] = ("blackhole",)
    setup.world.file("/etc/network/interfaces.d/block", f"up ip route add blackhole {GOOD}\n")
    assert not setup.mend().changed and setup.world.routes[GOOD] == ("blackhole",)


def test_another_route_waits_for_its_confirmation(tmp_path: Path) -> None:
    setup = Setup(tmp_path, routes=({"to": GOOD, "via": "10.0.0.254"},))
    setup.world.knowing.add(DEAD)
    setup.world.direct = False
    found = setup.mend()
    assert found.network["cause"] == "ok" and found.confirm
    assert [row["state"] for row in setup.record.read()] == ["armed"] and len(setup.world.units) == 1
    assert setup.mender().confirm() == found.kept and not setup.world.units
    assert [row["state"] for row in setup.record.read()] == ["kept"]
    # as long as the direct way is dead a later run comes back to the detour
    later = setup.mend(run_id="later")
    assert later.network["cause"] == "ok" and not later.reverted and setup.world.routes[GOOD][0] == "via" and not setup.world.units
    setup.world.direct = True
    assert setup.mend(run_id="latest").reverted == found.kept and GOOD not in setup.world.routes


def test_without_a_confirmation_the_timer_undoes_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path, routes=({"to": GOOD, "via": "10.0.0.254"},))
    setup.world.knowing.add(DEAD)
    setup.world.direct = False
    setup.mend()
    setup.world.elapse()
    assert GOOD not in setup.world.routes
    with pytest.raises(MendError, match="not confirmed"):
        setup.mender().confirm()
    assert setup.record.read() == []


def test_an_old_route_is_put_back_as_it_was(tmp_path: Path) -> None:
    setup = Setup(tmp_path, routes=({"to": GOOD, "via": "10.0.0.254"},))
    setup.world.knowing.add(DEAD)
    setup.world.routes[GOOD] = ("via", "10.0.0.200")
    found = next(setup.options.routes(setup.options.means.endpoints))
    assert found.undo.commands == (("ip", "route", "replace", GOOD, "via", "10.0.0.200"),)


def test_without_a_timer_nothing_dangerous_is_done(tmp_path: Path) -> None:
    setup = Setup(tmp_path, routes=({"to": GOOD, "via": "10.0.0.254"},))
    setup.world.knowing.add(DEAD)
    setup.world.direct = False
    setup.world.refused["systemd-run"] = "no systemd"
    found = setup.mend()
    assert not found.changed and GOOD not in setup.world.routes and "not possible" in " ".join(found.notes)
    assert setup.record.read() == []


def test_what_did_not_help_is_undone(tmp_path: Path) -> None:
    setup = Setup(tmp_path, routes=({"to": GOOD, "via": "10.0.0.254"},))
    setup.world.knowing.add(DEAD)
    setup.world.up = True
    look = setup.world.look

    def cut(*args: Any) -> dict[str, Any]:
        found = look()
        for row in found["endpoints"]:
            row["cause"] = "tcp_silent"
        return _network.summary(found["endpoints"], 0.0)

    setup.world.look = cut  # type: ignore[method-assign]
    found = setup.mend()
    assert not found.changed and GOOD not in setup.world.routes and not setup.world.units and setup.record.read() == []
    assert "did not help" in " ".join(found.notes)


def test_one_after_the_other_until_all_is_well(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,), routes=({"to": "10.0.0.0/24", "via": "10.0.0.254"},))
    setup.world.direct = False
    setup.world.command(["ip", "route", "replace", "10.0.0.0/24", "via", "x"])
    setup.world.routes.clear()
    real = setup.world.cause

    def cause() -> str:
        return "ok" if real() == "tcp_silent" and "10.0.0.0/24" in setup.world.routes else real()

    setup.world.cause = cause  # type: ignore[method-assign]
    found = setup.mend()
    assert [what.split()[0] for what in found.kept] == ["/etc/resolv.conf", "route"] and found.network["cause"] == "ok"


def test_an_interface_that_is_down(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.knowing.add(DEAD)
    setup.world.up = False
    found = setup.mend()
    assert found.kept == ["interface eth0 set up"] and found.confirm and setup.world.up
    setup.mender().confirm()


def test_the_networking_unit_is_the_last_resort(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.knowing.add(DEAD)
    setup.world.up, setup.world.links_fail = False, True
    setup.world.enabled = {"networking.service"}
    found = setup.mend()
    assert found.kept == ["networking.service restarted"] and found.confirm
    assert setup.world.said.index("ip link set dev eth0 up") < setup.world.said.index("systemctl restart networking.service")


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,), routes=({"to": GOOD, "via": "10.0.0.254"},))
    for cause in sorted(set(_network.CAUSES) - _network.OURS):
        setup.world.cause = lambda cause=cause: cause  # type: ignore[method-assign,misc]
        assert not setup.mend().changed, cause
    assert not any(command.startswith(("ip route replace", "systemd-run")) for command in setup.world.said)


def test_the_time_is_kept(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    assert not setup.mend(end=0.0).changed


# --- the record -----------------------------------------------------------------------------------------------------------------


def test_a_run_that_broke_off_in_the_middle_is_undone(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))

    class Killed(BaseException):
        pass

    def look() -> dict[str, Any]:
        if SPARE in setup.world.text(RESOLV_CONF):
            # the undo of before is on the disk by now
            assert setup.record.read()[0]["state"] == "trying"
            kept.append(setup.record.read())
            raise Killed
        return setup.world.look()

    kept: list[Any] = []
    mender = setup.mender()
    mender.look = look
    with pytest.raises(Killed):
        mender.mend(setup.options, 1000)
    # killed outright it could not even undo it
    setup.world.file(RESOLV_CONF, f"search lab\nnameserver {SPARE}\n")
    setup.record.write(kept[0])
    found = setup.mend(run_id="next", end=0)
    assert found.reverted == [f"{RESOLV_CONF} names {SPARE}"] and setup.world.text(RESOLV_CONF) == f"search lab\nnameserver {DEAD}\n"
    assert setup.record.read() == []


def test_a_timer_that_fired_is_known_to_the_next_run(tmp_path: Path) -> None:
    setup = Setup(tmp_path, routes=({"to": GOOD, "via": "10.0.0.254"},))
    setup.world.knowing.add(DEAD)
    setup.world.direct = False
    setup.mend()
    setup.world.elapse()
    found = setup.mend(run_id="next")
    assert found.kept and found.confirm, "it is tried anew"


def test_everything_back(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    setup.mend()
    assert setup.mender().revert() == [f"{RESOLV_CONF} names {SPARE}"]
    assert setup.world.text(RESOLV_CONF) == f"search lab\nnameserver {DEAD}\n" and setup.record.read() == []
    assert setup.mender().revert() == []


def test_what_somebody_else_changed_since_is_theirs(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    setup.mend()
    setup.world.file(RESOLV_CONF, f"nameserver 10.0.0.60\nnameserver {SPARE}\n")
    setup.world.knowing.add(DEAD)
    found = setup.mend(run_id="later")
    assert not found.changed and "left alone" in " ".join(found.notes) and setup.record.read() == []
    assert setup.world.text(RESOLV_CONF) == f"nameserver 10.0.0.60\nnameserver {SPARE}\n"
    setup.world.file(RESOLV_CONF, f"nameserver {DEAD}\n")
    setup.world.knowing.discard(DEAD)
    setup.mend()
    setup.world.file(RESOLV_CONF, "nameserver 10.0.0.60\n")
    setup.mender().revert()
    assert setup.world.text(RESOLV_CONF) == "nameserver 10.0.0.60\n" and setup.record.read() == []


def test_what_cannot_be_undone_stays_in_the_record(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.knowing.add(DEAD)
    setup.world.routes[GOOD] = ("blackhole",)
    setup.mend()
    setup.world.refused["ip route add"] = "not now"
    with pytest.raises(MendError, match="not now"):
        setup.mender().revert()
    assert len(setup.record.read()) == 1


def test_a_damaged_record_is_not_overwritten(tmp_path: Path) -> None:
    setup = Setup(tmp_path, resolvers=(SPARE,))
    os.makedirs(os.path.dirname(setup.record.path))
    Path(setup.record.path).write_text("{")
    with pytest.raises(MendError, match="damaged"):
        setup.mend()
    assert Path(setup.record.path).read_text() == "{" and SPARE not in setup.world.text(RESOLV_CONF)


# --- small parts -------------------------------------------------------------------------------------------------------------------


def test_the_block_in_hosts() -> None:
    text = "127.0.0.1 localhost"
    once = with_block(text, ["10.0.0.1 a"])
    assert with_block(once, ["10.0.0.1 a"]) == once
    assert without_block(once) == text + "\n" and with_block(once, []) == text + "\n"
    assert with_block("", ["x"]).startswith(BEGIN)
    assert _network_mend.block(once) == ("10.0.0.1 a",) and _network_mend.block(text) == () and _network_mend.block(BEGIN) == ()


def test_what_a_route_covers() -> None:
    assert covers("10.0.0.0/24", GOOD) and covers(GOOD, GOOD) and covers("default", GOOD)
    assert not covers("10.0.1.0/24", GOOD) and not covers("nonsense", GOOD) and not covers("10.0.0.0/24", "::1")


def test_a_change_survives_the_disk() -> None:
    change = Change({"/a": None, "/b": {"link": "c"}}, ("x",), (("ip", "route"),))
    assert _network_mend.change_of(json.loads(json.dumps(change.data()))) == change
    assert _network_mend.change_of(json.loads(json.dumps(Change().data()))) == Change()
