# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Mend what is ours of the way to the exchanges, the least harmful first: routes to nowhere, other resolvers, known addresses, another route, the link.

Each measure is tried only where it fits the cause, is proven by looking again, and stays only if it helped. How it is undone is on the disk before it is done.
What could cut off the operator is undone by a timer of systemd unless it is confirmed over the operator's own way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import shlex
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease, _network, _network_dns, _network_look, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._network import OK, Endpoint

RESOLV_CONF, HOSTS = "/etc/resolv.conf", "/etc/hosts"
# Where an administrator says that a route is meant.
CONFIGURED = ("/etc/network/interfaces", "/etc/network/interfaces.d", "/etc/systemd/network", "/etc/netplan", "/etc/network/if-up.d")
UNITS = ("systemd-networkd.service", "networking.service", "NetworkManager.service")
BEGIN, END = "# titan-dr network: begin", "# titan-dr network: end"
TIMER = "titan-dr-network-revert"
REFUSING = ("blackhole", "unreachable", "prohibit")
TRYING, ARMED, KEPT = "trying", "armed", "kept"
# What a later run takes back as soon as the primary way is well. What was in our way is not put back.
DETOURS = ("route", "hosts", "resolvers")

Row = dict[str, t.Any]
Network = dict[str, t.Any]


class MendError(Exception):
    """A change could not be made or undone."""


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done to the server. `files`: path -> text, or {"link": target}, or None for a file that is not to be there. `hosts`: lines of our block."""

    files: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    hosts: tuple[str, ...] | None = None
    commands: tuple[tuple[str, ...], ...] = ()

    def data(self) -> Row:
        return dataclasses.asdict(self)


def change_of(data: t.Mapping[str, t.Any]) -> Change:
    hosts = data.get("hosts")
    commands = tuple(tuple(command) for command in data.get("commands") or ())
    return Change(dict(data.get("files") or {}), None if hosts is None else tuple(hosts), commands)


@dataclasses.dataclass(frozen=True)
class Measure:
    kind: str
    what: str
    do: Change
    undo: Change
    risky: bool = False

    def record(self, run_id: str, state: str) -> Row:
        return {"kind": self.kind, "what": self.what, "run_id": run_id, "state": state, "do": self.do.data(), "undo": self.undo.data()}


# --- the server -------------------------------------------------------------------------------------------------------


def without_block(text: str) -> str:
    """/etc/hosts without what we wrote into it."""
    kept, ours = [], False
    for line in text.splitlines(keepends=True):
        ours = ours or line.strip() == BEGIN
        if not ours:
            kept.append(line)
        ours = ours and line.strip() != END
    return "".join(kept)


def block(text: str) -> tuple[str, ...]:
    """What we wrote into it."""
    lines = text.splitlines()
    return tuple(lines[lines.index(BEGIN) + 1 : lines.index(END)]) if BEGIN in lines and END in lines else ()


def with_block(text: str, lines: t.Sequence[str]) -> str:
    bare = without_block(text)
    if not lines:
        return bare
    return bare + ("\n" if bare and not bare.endswith("\n") else "") + "\n".join([BEGIN, *lines, END]) + "\n"


def command(argv: t.Sequence[str]) -> tuple[int, str]:
    """What configures the network takes its time."""
    return _network_look.run(argv, timeout=20.0)


class Server:
    """Files and commands of the server; tests give it another root and other commands."""

    def __init__(self, root: str = "/", command: _network_look.Command = command) -> None:
        self.root, self.command = root, command

    def path(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/"))

    def read(self, path: str) -> str | None:
        try:
            with open(self.path(path), encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except (FileNotFoundError, IsADirectoryError):
            return None

    def now(self, path: str) -> t.Any:
        """A file as it is, in the shape of a Change."""
        if os.path.islink(self.path(path)):
            return {"link": os.readlink(self.path(path))}
        return self.read(path)

    def put(self, path: str, content: t.Any) -> None:
        """Replace the file as a whole."""
        place = self.path(path)
        if content is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place)
        elif isinstance(content, dict):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place + ".new")
            os.symlink(content["link"], place + ".new")
            os.rename(place + ".new", place)
        else:
            _lease.write_file(place, content, 0o644)

    def apply(self, change: Change, must: bool = True) -> list[str]:
        """Do it; what went wrong, which raises when it must not."""
        wrong = []
        try:
            for path, content in change.files.items():
                self.put(path, content)
            if change.hosts is not None:
                self.put(HOSTS, with_block(self.read(HOSTS) or "", change.hosts))
        except OSError as exc:
            wrong.append(str(exc))
        for command in change.commands:
            code, said = self.command(command)
            if code != 0:
                wrong.append(f"{shlex.join(command)}: {said.strip()}")
        if wrong and must:
            raise MendError("; ".join(wrong))
        return wrong

    def still(self, row: t.Mapping[str, t.Any]) -> bool:
        """Whether what was done is as it was left. What somebody else changed since is theirs."""
        do = change_of(row["do"])
        if any(self.now(path) != content for path, content in do.files.items()):
            return False
        if row["kind"] != "route":
            return True
        to, via = do.commands[0][3], do.commands[0][5]
        return any(entry.get("gateway") == via for entry in self.json("ip", "-j", "route", "show", "exact", to))

    def json(self, *argv: str) -> list[Row]:
        code, said = self.command(argv)
        return _network_look.rows_of(said) if code == 0 else []

    def texts(self, places: t.Iterable[str]) -> dict[str, str]:
        """The files at and below these places."""
        found = {}
        for place in places:
            folder = self.path(place)
            names = [os.path.join(place, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else [place]
            found.update({name: text for name in names if (text := self.read(name)) is not None})
        return found


# --- what may be done -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Means:
    """What the inventory allows."""

    endpoints: tuple[Endpoint, ...]
    resolvers: tuple[str, ...] = ()
    routes: tuple[t.Mapping[str, t.Any], ...] = ()
    interface: str = ""


Ask = t.Callable[[str, str, float], _network_dns.Answer]


def covers(to: str, address: str) -> bool:
    """Whether a route to this destination leads to this address."""
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network("0.0.0.0/0" if to == "default" else to, strict=False)
    except ValueError:
        return False


class Options:
    """The measures that fit what is seen, in the order of their harm."""

    def __init__(self, means: Means, server: Server, ask: Ask = _network_dns.ask, lookup: t.Callable[..., t.Any] = _network_dns.system) -> None:
        self.means, self.server, self.ask, self.lookup = means, server, ask, lookup

    def fitting(self, network: Network) -> t.Iterator[Measure]:
        causes = {row["name"]: row["cause"] for row in _network.bad(network)}
        hit = [endpoint for endpoint in self.means.endpoints if causes.get(endpoint.name) in _network.OURS]

        def those(*kinds: str) -> list[Endpoint]:
            return [endpoint for endpoint in hit if causes[endpoint.name] in kinds]

        yield from self.blackholes(those("route", "tcp_silent", "dns"), those("route", "tcp_silent"))
        yield from self.resolvers(those("dns"))
        yield from self.hosts(those("dns"))
        yield from self.routes(those("route", "tcp_silent"))
        yield from self.link(those("interface"))
        yield from self.networking(those("interface", "route"))

    def addresses(self, endpoints: t.Sequence[Endpoint]) -> set[str]:
        """What their names say."""
        hosts = {endpoint.host for endpoint in endpoints}
        return {address for host in hosts for address in ([host] if _network_dns.is_address(host) else self.lookup(host, 1.0)[0])}

    def blackholes(self, hit: t.Sequence[Endpoint], named: t.Sequence[Endpoint]) -> t.Iterator[Measure]:
        """Routes that lead to nowhere and that no configuration names. They may hide the name server too."""
        if not hit:
            return
        servers = _network_dns.nameservers(self.server.read(RESOLV_CONF) or "")
        wanted = {*servers, *(address for endpoint in hit for address in endpoint.pinned), *self.addresses(named)}
        meant = self.server.texts(CONFIGURED)
        for kind in REFUSING:
            for route in self.server.json("ip", "-j", "route", "show", "type", kind):
                to = str(route.get("dst", ""))
                if to == "default" or not any(covers(to, address) for address in wanted):
                    continue
                if any(to.partition("/")[0] in text for text in meant.values()):
                    continue
                words = (kind, to, *(("metric", str(route["metric"])) if "metric" in route else ()))
                do, undo = Change(commands=(("ip", "route", "del", *words),)), Change(commands=(("ip", "route", "add", *words),))
                yield Measure("blackhole", f"the {kind} route to {to} taken away, no configuration names it", do, undo)

    def resolvers(self, hit: t.Sequence[Endpoint]) -> t.Iterator[Measure]:
        names = sorted({endpoint.host for endpoint in hit})
        good = [server for server in self.means.resolvers if names and all(self.ask(server, name, 0.8).verdict == OK for name in names)]
        old = self.server.read(RESOLV_CONF) or ""
        if good and _network_dns.nameservers(old) != good[:3]:
            do = Change({RESOLV_CONF: _network_dns.resolv_conf(old, good[:3])})
            yield Measure("resolvers", f"{RESOLV_CONF} names {', '.join(good[:3])}", do, Change({RESOLV_CONF: self.server.now(RESOLV_CONF)}))

    def hosts(self, hit: t.Sequence[Endpoint]) -> t.Iterator[Measure]:
        before = block(self.server.read(HOSTS) or "")
        lines = sorted({f"{address} {endpoint.host}" for endpoint in hit for address in endpoint.pinned})
        if not set(lines) <= set(before):
            do = Change(hosts=tuple(sorted({*before, *lines})))
            yield Measure("hosts", f"{HOSTS} names {', '.join(lines)}", do, Change(hosts=before))

    def routes(self, hit: t.Sequence[Endpoint]) -> t.Iterator[Measure]:
        if not hit:
            return
        wanted = {*self.addresses(hit), *(address for endpoint in hit for address in endpoint.pinned)}
        for route in self.means.routes:
            to, via = str(route["to"]), str(route["via"])
            if not any(covers(to, address) for address in wanted):
                continue
            old = self.server.json("ip", "-j", "route", "show", "exact", to)
            if any(entry.get("gateway") == via for entry in old):
                continue
            device = ("dev", self.means.interface) if self.means.interface else ()
            code, text = self.server.command(["ip", "route", "show", "exact", to])
            was = [tuple(line.split()) for line in text.splitlines() if line.strip()] if code == 0 else []
            back = tuple(("ip", "route", "replace", *line) for line in was) or (("ip", "route", "del", to, "via", via),)
            do = Change(commands=(("ip", "route", "replace", to, "via", via, *device),))
            yield Measure("route", f"route to {to} via {via}", do, Change(commands=back), True)

    def link(self, hit: t.Sequence[Endpoint]) -> t.Iterator[Measure]:
        for entry in self.server.json("ip", "-j", "link", "show") if hit else []:
            name, flags = str(entry.get("ifname", "")), entry.get("flags", [])
            if "LOOPBACK" in flags or "UP" in flags or self.means.interface not in ("", name) or not name:
                continue
            up, down = (("ip", "link", "set", "dev", name, state) for state in ("up", "down"))
            yield Measure("link", f"interface {name} set up", Change(commands=(up,)), Change(commands=(down,)), True)

    def networking(self, hit: t.Sequence[Endpoint]) -> t.Iterator[Measure]:
        """Restart what configures the network; undone by what addresses and routes were before."""
        unit = next((unit for unit in UNITS if hit and self.server.command(["systemctl", "is-enabled", "--quiet", unit])[0] == 0), None)
        if unit is None:
            return
        back: list[tuple[str, ...]] = []
        for link in self.server.json("ip", "-j", "-4", "address", "show"):
            name = str(link.get("ifname"))
            if "LOOPBACK" not in link.get("flags", []):
                back += [("ip", "address", "replace", f"{item['local']}/{item['prefixlen']}", "dev", name) for item in link.get("addr_info", [])]
        code, text = self.server.command(["ip", "-4", "route", "show"])
        lines = [line.split() for line in text.splitlines()] if code == 0 else []
        back += [("ip", "route", "replace", *line) for line in lines if "kernel" not in line and "linkdown" not in line]
        yield Measure("networking", f"{unit} restarted", Change(commands=(("systemctl", "restart", unit),)), Change(commands=tuple(back)), True)


# --- doing it ---------------------------------------------------------------------------------------------------------


class Record:
    """What was changed, on the disk, oldest first."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> list[Row]:
        try:
            with open(self.path, encoding="utf-8") as handle:
                found = json.load(handle)
        except FileNotFoundError:
            return []
        except ValueError as exc:
            raise MendError(f"{self.path} is damaged: look what it names, undo that by hand, then remove it") from exc
        return [row for row in found["measures"] if isinstance(row, dict)]

    def write(self, rows: t.Sequence[Row]) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        _lease.write_file(self.path, json.dumps({"measures": list(rows)}, indent=1) + "\n", 0o600)


def record_path() -> str:
    return _state.path("network.json")


@dataclasses.dataclass
class Mended:
    """What came of it."""

    network: Network
    kept: list[str] = dataclasses.field(default_factory=list)
    reverted: list[str] = dataclasses.field(default_factory=list)
    confirm: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.kept or self.reverted)


Look = t.Callable[[], Network]


class Mender:
    """Tries, proves, keeps or undoes."""

    def __init__(self, server: Server, record: Record, look: Look, run_id: str, confirm_within: float = 30.0, clock: t.Callable[[], float] = time.time) -> None:
        self.server, self.record, self.look, self.run_id, self.confirm_within, self.clock = server, record, look, run_id, confirm_within, clock
        self.number = 0

    # the timer

    def arm(self, change: Change) -> str:
        """Undo it in a while, whatever becomes of us."""
        self.number += 1
        unit = f"{TIMER}-{int(self.clock())}-{self.number}"
        script = "; ".join(shlex.join(command) for command in change.commands)
        argv = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--on-active={self.confirm_within:g}", "--timer-property=AccuracySec=100ms"]
        code, said = self.server.command([*argv, "/bin/sh", "-c", script])
        if code != 0:
            raise MendError(f"the timer that would undo it cannot be set: {said.strip()}")
        return unit

    def disarm(self, unit: str) -> bool:
        """Whether the timer was still to come."""
        waiting = self.server.command(["systemctl", "is-active", "--quiet", f"{unit}.timer"])[0] == 0
        return waiting and self.server.command(["systemctl", "stop", f"{unit}.timer"])[0] == 0

    # one measure

    def attempt(self, measure: Measure, before: Network) -> tuple[Network, bool]:
        """Do it, look, and undo it when it did not help."""
        rows = self.record.read()
        entry = measure.record(self.run_id, TRYING)
        self.record.write([*rows, entry])
        try:
            unit = self.arm(measure.undo) if measure.risky else ""
        except MendError:
            self.record.write(rows)
            raise
        try:
            self.server.apply(measure.do)
            after = self.look()
            helped = _network.progress(before, after)
        except BaseException:
            self.undo(measure.undo, unit)
            self.record.write(rows)
            raise
        if not helped:
            self.undo(measure.undo, unit)
            self.record.write(rows)
            return before, False
        entry.update(state=ARMED if unit else KEPT, unit=unit, at=self.clock())
        self.record.write([*rows, entry])
        return after, True

    def undo(self, change: Change, unit: str = "") -> None:
        wrong = self.server.apply(change, must=False)
        if unit:
            self.disarm(unit)
        if wrong:
            raise MendError(f"a measure that did not help could not be undone: {'; '.join(wrong)}")

    # the whole

    def broken_off(self) -> list[str]:
        """Undo what a run that broke off was trying, and forget what the timer has undone."""
        rows, undone, kept = self.record.read(), [], []
        for row in rows:
            if row["state"] == TRYING:
                if self.server.still(row):
                    self.server.apply(change_of(row["undo"]), must=False)
                undone.append(row["what"])
            elif row["state"] == ARMED and self.server.command(["systemctl", "is-active", "--quiet", f"{row['unit']}.timer"])[0] != 0:
                undone.append(row["what"])
            else:
                kept.append(row)
        if undone:
            self.record.write(kept)
        return undone

    def mend(self, options: Options, end: float) -> Mended:
        """Everything that fits, until nothing of ours is left or the time is over. When all is well, back from the detours of earlier runs."""
        said = Mended({}, reverted=self.broken_off())
        said.network = self.look()
        said.notes = [f"seen: {_network.told(row)}" for row in _network.bad(said.network, required=False)] or ["seen: every exchange is well"]
        tried: set[str] = set()
        if said.network["cause"] == OK:
            self.back(options, said)
        while any(row["cause"] in _network.OURS for row in _network.bad(said.network)) and self.clock() < end:
            measure = next((one for one in options.fitting(said.network) if one.what not in tried), None)
            if measure is None:
                break
            tried.add(measure.what)
            try:
                said.network, helped = self.attempt(measure, said.network)
            except MendError as exc:
                said.notes.append(f"tried, not possible: {measure.what}: {exc}")
                continue
            said.notes.append(f"{'helped' if helped else 'tried, did not help, undone'}: {measure.what}")
            if helped:
                said.kept.append(measure.what)
                said.confirm = said.confirm or measure.risky
        return said

    def back(self, options: Options, said: Mended) -> None:
        """Go back from the detours whose primary way is well again."""
        for row in reversed(self.record.read()):
            if row["kind"] not in DETOURS or row["state"] != KEPT:
                continue
            if not self.server.still(row):
                self.forget(row)
                said.notes.append(f"changed by somebody else since, left alone: {row['what']}")
                continue
            if not self.primary_answers(row, options):
                continue
            do, undo = change_of(row["do"]), change_of(row["undo"])
            unit = self.arm(do) if do.commands else ""
            self.server.apply(undo, must=False)
            after = self.look()
            if after["cause"] != OK:
                self.undo(do, unit)
                said.notes.append(f"still needed: {row['what']}")
                continue
            # it is the way of before any of this: the operator came over it then
            if unit:
                self.disarm(unit)
            self.forget(row)
            said.network = after
            said.reverted.append(row["what"])

    def forget(self, row: Row) -> None:
        self.record.write([other for other in self.record.read() if other != row])

    def primary_answers(self, row: Row, options: Options) -> bool:
        """Without changing anything: whether the name servers of before give addresses again. Of a route nothing can be known."""
        if row["kind"] == "route":
            return True
        before = row["undo"]["files"].get(RESOLV_CONF)
        text = before if isinstance(before, str) else self.server.read(RESOLV_CONF) if row["kind"] == "hosts" else None
        if text is None:
            return row["kind"] == "resolvers"
        servers = _network_dns.nameservers(text)
        names = {endpoint.host for endpoint in options.means.endpoints if not _network_dns.is_address(endpoint.host)}
        return all(any(options.ask(server, name, 0.8).verdict == OK for server in servers) for name in names)

    def revert(self) -> list[str]:
        """Everything back, the newest first."""
        rows, done = self.record.read(), []
        while rows:
            row = rows.pop()
            gone = (row["state"] == ARMED and not self.disarm(row["unit"])) or not self.server.still(row)
            wrong = [] if gone else self.server.apply(change_of(row["undo"]), must=False)
            if wrong:
                raise MendError(f"{row['what']} could not be undone: {'; '.join(wrong)}")
            done.append(row["what"])
            self.record.write(rows)
        return done

    def confirm(self) -> list[str]:
        """What was changed stays. MendError when the timer was faster: then it is undone."""
        rows, kept = self.record.read(), []
        for row in rows:
            if row["state"] == ARMED:
                if not self.disarm(row["unit"]):
                    self.record.write([other for other in rows if other is not row])
                    raise MendError(f"{row['what']}: not confirmed within {self.confirm_within:g} s, so it was undone")
                row.update(state=KEPT)
                kept.append(row["what"])
        if kept:
            self.record.write(rows)
        return kept
