# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was found -> what is wrong, and what helps. No Ansible, no clock and no files in here. See docs/diagnose.md.

A part that is missing from the evidence is unknown. A proposal that throws data away needs two pieces of evidence from sources that cannot both be wrong
for one reason, and is never made for a Redis that is proven well on a server that answers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"
NONE, PROPOSE = "none", "propose"  # verdicts of a diagnosis, beside UNKNOWN
HIGH, MEDIUM, LOW = "high", "medium", "low"
RULES = {
    HIGH: "two independent pieces of evidence",
    MEDIUM: "one piece of evidence",
    LOW: "all else was looked at and is well",
}
DESTRUCTIVE = ("complete_system_failure", "database_corruption")

# How a connection from outside ends when the machine is gone. One that is refused or taken in silence has a machine behind it, if a frozen one.
GONE = ("no_answer", "no_route")
ALIVE = ("answers", "refused", "other", "silent")
# Causes that no work on our network mends, and who can.
OUTSIDE = {
    "maintenance": "the exchange is in maintenance: wait for its end, its status page tells when",
    "rate_limited": "the exchange limits the rate of calls: find what calls too often, wait for the time that its answer names",
    "key_refused": "the exchange refuses the key, or the address that it comes from: the owner of the account looks at its rights and addresses",
}
REFUSED = ("http_unusable", "ws_refused", "ws_silent")
FULL_PERCENT, LEAST_MIB, MEMORY_PERCENT = 98, 64, 97
CLOCK_S = 5.0
# Above so many waiting processes for each processor, slow is no evidence of broken.
OVERLOAD = 4.0
LEASE_FRESH_S = 30.0
JUST_STARTED_S = 3600.0
# So many orders do not all go at once in the course of trading.
LEAST_ORDERS = 5

# What is to be looked at by a person when a probe fails and no proposal follows from it, or when it cannot be asked.
HINTS = {
    "login": "ssh -v to it with the user and key of the inventory, then its console: sshd, host key, disk",
    "inventory": "is this the right inventory? Nothing may be restored onto a server of another environment",
    "redis": "on the server: systemctl status, the end of Redis's log file, titan-dr verify on its data directory",
    "redis files": "titan-dr verify --level deep; while Redis is well BGREWRITEAOF and BGSAVE write them anew",
    "redis configuration": "the Redis configuration file, and titan_redis in the inventory",
    "services": "pm2 list and pm2 logs on the server, as the user of the services",
    "network": "role network_diagnostics; ip route, resolvectl and curl on the server",
    "configuration": "the configuration files that titan_config_schemas names",
    "trading": "the services' own report of the trading state, and whether somebody halted it in the application",
    "reports": "what the services say of themselves, titan_probes in the inventory",
    "disk": "df -h, df -i and mount on the server",
    "memory": "free and top on the server",
    "clock": "timedatectl on the server and here",
    "lease": "the lease file under /var/lib/titan-dr on the server",
    "restore points": "titan_stores in the inventory, and whether the last backup ran",
    "reachable": "the machine's console or its provider; the way from here to it",
}

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: a probe of one server."""

    probe: str
    host: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Piece:
    """A reason, and where it comes from: reasons of one source count once."""

    source: str
    text: str


@dataclass
class Proposal:
    scenario: str
    host: str
    confidence: str
    evidence: list[str]
    command: str
    why: str
    destructive: bool = False
    restore_point: dict[str, Any] | None = None
    expected_loss_s: float | None = None
    expected_time: dict[str, Any] | None = None
    first: str = ""  # what is worth trying before, because it costs less

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rule": RULES[self.confidence]}


@dataclass
class Server:
    """What is known of one server: the table and the reasons."""

    name: str
    found: Found
    rows: list[Row] = field(default_factory=list)
    lives: bool | None = None
    gone: list[Piece] = field(default_factory=list)
    redis: str = UNKNOWN  # well, sick, stopped, absent or unknown
    redis_pieces: list[Piece] = field(default_factory=list)
    config: list[Piece] = field(default_factory=list)
    network: list[Piece] = field(default_factory=list)
    outside: list[tuple[str, Piece]] = field(default_factory=list)
    services: list[Piece] = field(default_factory=list)
    stale: list[Piece] = field(default_factory=list)  # services that run with other values than their file holds
    all_services: bool = False
    machine: list[Piece] = field(default_factory=list)
    foreign: bool = False
    covered: set[str] = field(default_factory=set)  # probes whose failure a proposal deals with

    def row(self, probe: str, verdict: str, evidence: str) -> None:
        self.rows.append(Row(probe, self.name, verdict, evidence))


def sources(pieces: Iterable[Piece]) -> int:
    return len({piece.source for piece in pieces})


def _part(found: Found, name: str) -> Found | None:
    """A part of the evidence, None when it is not there or has not the form of one."""
    part = found.get(name)
    return part if isinstance(part, Mapping) else None


def _many(found: Found, name: str) -> list[Found]:
    """A list of such parts."""
    parts = found.get(name)
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []


def _texts(found: Found, name: str) -> list[str]:
    texts = found.get(name)
    return [str(text) for text in texts] if isinstance(texts, list) else []


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# --- one server -------------------------------------------------------------------------------------------------------


def look(found: Found, newest: Found | None, environment_id: str) -> Server:
    """The table of one server, and what speaks for which cause."""
    server = Server(str(found.get("name")), found)
    _reachable(server)
    host = _part(found, "host") or {}
    _owner(server, host, environment_id)
    if found.get("has_redis", True):
        _redis(server, host, newest)
    else:
        server.redis = "absent"
    if found.get("has_pm2", True):
        _services(server)
    _configuration(server, host)
    if found.get("has_venues", True):
        _network(server)
    _machine(server, host)
    _trading(server, host)
    _lease(server, host)
    _blank(server, host)
    return server


def _reachable(server: Server) -> None:
    found = server.found
    login = _part(found, "login") or {}
    looks = [look for look in [_part(found, "reach") or {}, *_many(found, "witnesses")] if look]
    for seen in looks:
        where = str(seen.get("from", "the controller"))
        if seen.get("tcp") in GONE:
            server.gone.append(Piece(f"seen from {where}", f"from {where}: {seen.get('text')}"))
    if login.get("verdict") == PASS:
        server.lives = True
    elif any(seen.get("tcp") in ALIVE for seen in looks):
        # only a login proves that it can be worked with, but a machine that refuses a connection is not lost
        server.lives = None
    elif sources(server.gone) and login.get("verdict") == FAIL:
        server.lives = False
    how = {True: PASS, False: FAIL, None: UNKNOWN}[server.lives]
    text = "; ".join([str(login.get("text") or "nobody could log in"), *(f"from {seen.get('from', 'the controller')}: {seen.get('text')}" for seen in looks)])
    server.row("reachable", how, text)


def _owner(server: Server, host: Found, environment_id: str) -> None:
    owner = _part(host, "owner")
    if owner and owner.get("environment_id") not in (None, environment_id):
        server.foreign = True
        server.row("inventory", FAIL, f"the server belongs to environment {owner['environment_id']}, the inventory says {environment_id}")


def _keys(newest: Found | None) -> float:
    return _number((newest or {}).get("keys")) or 0.0


def _recorded(newest: Found | None, template: object) -> float:
    """How many keys of such a name the restore point has: it counts them by their beginnings."""
    classes, start = _part(newest or {}, "classes") or {}, str(template).partition("{")[0]
    return sum(_number(count) or 0.0 for name, count in classes.items() if f"{name}:".startswith(start)) if start else 0.0


def _book_pieces(book: Found, nouns: Found, newest: Found | None) -> list[Piece]:
    """What is wrong with positions and orders: written by no service, or gone."""
    pieces = []
    if _texts(book, "wrong"):
        names = ", ".join(_texts(book, "wrong")[:3])
        pieces.append(Piece("book", f"{book.get('count')} of {book.get('looked')} positions and orders are not what a service writes ({names})"))
    kinds, templates = _part(book, "kinds") or {}, _part(nouns, "book") or {}
    for kind, least in (("order", LEAST_ORDERS), ("position", 1)):
        before = _recorded(newest, templates.get(kind))
        if kinds.get(kind) == 0 and before >= least and book.get("complete"):
            pieces.append(Piece("book", f"it holds no {kind}, the newest restore point {before:.0f}"))
    return pieces


def _data_pieces(server: Server, said: Found, files: Found, unit: Found, newest: Found | None) -> list[Piece]:
    """What speaks against the data of a Redis that answers."""
    pieces = []
    canary, recorded = _part(said, "canary") or {}, _number((newest or {}).get("canary"))
    seq = _number(canary.get("seq"))
    if canary.get("state") == "broken":
        pieces.append(Piece("canary", f"the canary is not one: {canary.get('text')}"))
    elif canary.get("state") == "missing" and recorded is not None:
        pieces.append(Piece("canary", "the canary is gone, the newest restore point has one"))
    elif recorded is not None and seq is not None and seq < recorded:
        pieces.append(Piece("canary", f"the canary went back to {seq:.0f}, the newest restore point has {recorded:.0f}"))
    # with a canary that went on, fewer keys are one fact, and they may have been deleted by whoever wrote it
    goes_on = canary.get("state") == "present" and (recorded is None or (seq is not None and seq >= recorded))
    keys, before = _number(said.get("keys")), _keys(newest)
    if keys is not None and keys * 2 < before:
        pieces.append(Piece("keys" if goes_on else "restore point", f"it holds {keys:.0f} keys, the newest restore point {before:.0f}"))
    beside = _number((_part(files, "dump") or {}).get("keys"))
    if keys is not None and beside is not None and keys * 2 < beside:
        pieces.append(Piece("keys" if goes_on else "dump", f"it holds {keys:.0f} keys, the dump beside it {beside:.0f}"))
    up = _number(said.get("uptime_s"))
    if pieces and not goes_on and up is not None and up < JUST_STARTED_S and (_number(unit.get("restarts")) or 0) > 0:
        pieces.append(Piece("start", f"it died and was started again {up:.0f} s ago"))
    pieces += _book_pieces(_part(said, "book") or {}, _part(server.found, "nouns") or {}, newest)
    return pieces


def _not_serving(said: Found, unit: Found) -> list[Piece]:
    """That nothing serves: one fact, however many say it."""
    state = f"unit {unit.get('active')}/{unit.get('sub')}, {unit.get('restarts')} restarts" if unit else "its unit could not be asked"
    return [Piece("not serving", f"{said.get('text')}; {state}")]


def _file_pieces(files: Found) -> list[Piece]:
    """What is wrong with the files that Redis would load."""
    loaded = "aof" if _part(files, "aof") else "dump"
    part = _part(files, loaded) or {}
    return [Piece("files", f"its {'append only file' if loaded == 'aof' else 'dump'}: {part.get('text')}")] if part.get("verdict") == FAIL else []


def _redis(server: Server, host: Found, newest: Found | None) -> None:
    said, unit, files = _part(host, "redis"), _part(host, "unit") or {}, _part(host, "files") or {}
    broken = _file_pieces(files)
    for name, label in (("aof", "append only file"), ("dump", "dump"), ("owner", "owner")):
        part = _part(files, name)
        if part:
            server.row("redis files", str(part.get("verdict", UNKNOWN)), f"{label}: {part.get('text')}")
    if said is None:
        if server.lives:
            conf = _part(host, "redis_conf") or {}
            server.row("redis", UNKNOWN, f"it could not be asked: {conf.get('text') or 'no answer to the probe'}")
        return
    answer, text = said.get("answer"), str(said.get("text"))
    if answer == "ok":
        persistence = _part(said, "persistence") or {}
        states = {name: persistence.get(name) for name in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")}
        data = _data_pieces(server, said, files, unit, newest)
        wrong = [f"{name} is {state}" for name, state in states.items() if state != "ok"]
        wrong += [f"role {said.get('role')}"] * (said.get("role") != "master") + [piece.text for piece in data]
        wrong += ["it is loading"] * (persistence.get("loading") != "0")
        if not isinstance(said.get("keys"), int):
            wrong.append("its keys are not known")
        server.redis_pieces = [*data, *broken] if data else []
        server.redis = "sick" if data else UNKNOWN if wrong else "well"
        server.row("redis", FAIL if wrong else PASS, "; ".join(wrong) or f"it answers, {said.get('keys')} keys, role master, its last saves ended well")
        return
    if answer == "hung":
        server.redis_pieces = [Piece("answer", f"Redis does not answer: {text}")]
        if unit.get("process") in ("T", "t", "D"):
            server.redis_pieces.append(Piece("process", f"its process {unit.get('pid')} is in state {unit['process']}"))
        if not _overloaded(host):
            server.redis_pieces += _unhealthy(server.found)
        server.redis_pieces += broken
    elif answer == "down":
        starts = unit.get("active") in ("failed", "activating") or (_number(unit.get("restarts")) or 0) > 0
        quiet = unit.get("active") == "inactive" and unit.get("result") == "success"
        owner = _part(files, "owner") or {}
        if owner.get("verdict") == FAIL and not broken:
            server.redis = "stopped"
            server.redis_pieces = [*_not_serving(said, unit), Piece("owner", f"its files are whole, but {owner.get('text')}")]
            server.row("redis", FAIL, f"it does not start: {server.redis_pieces[0].text}")
            return
        if quiet and not broken and files:
            server.redis = "stopped"
            server.row("redis", FAIL, f"it was stopped: {text}; unit inactive, its last end was orderly, its files are whole")
            server.redis_pieces = [Piece("not serving", "its unit was stopped in order and its files are whole")]
            return
        server.redis_pieces = [*_not_serving(said, unit), *broken]
        text = f"{'it does not start' if starts else 'it does not run'}: {server.redis_pieces[0].text}"
    elif answer in ("loading", "auth", "tls"):
        server.row("redis", UNKNOWN, f"{'it is loading' if answer == 'loading' else 'it refuses us'}: {text}")
        return
    elif answer == "error":
        # it speaks: a disk that is full says so here
        server.row("redis", FAIL, text)
        return
    if server.redis_pieces:
        server.redis = "sick"
    server.row("redis", FAIL if server.redis_pieces else UNKNOWN, text)


def _overloaded(host: Found) -> bool:
    """Whether answers may be late because everything is. What is not known counts as overload."""
    memory = _part(host, "memory") or {}
    load, processors = _number(memory.get("load")), _number(memory.get("processors"))
    return load is None or not processors or load / processors > OVERLOAD


def _unhealthy(found: Found) -> list[Piece]:
    """The services' word on it: they use the same Redis by ways of their own."""
    components = _many(_part(found, "pm2") or {}, "components")
    bad = [str(part.get("name")) for part in components if part.get("verdict") != PASS]
    return [Piece("services", f"not healthy: {', '.join(bad)}")] if bad else []


def _services(server: Server) -> None:
    pm2 = _part(server.found, "pm2")
    if pm2 is None:
        if server.lives:
            server.row("services", UNKNOWN, _why_not(server.found, "pm2"))
        return
    components = _many(pm2, "components")
    bad = [part for part in components if part.get("verdict") != PASS]
    server.services = [Piece(f"service {part.get('name')}", f"{part.get('name')}: {part.get('evidence')}") for part in bad]
    server.all_services = bool(components) and len(bad) == len(components)
    if not components:
        server.row("services", UNKNOWN, "PM2 told of no service")
    elif not bad:
        server.row("services", PASS, f"{len(components)} services are up and say that they are healthy")
    for part in bad:
        server.row("services", FAIL if part.get("verdict") == FAIL else UNKNOWN, f"{part.get('name')}: {part.get('evidence')}")


def _why_not(found: Found, probe: str) -> str:
    return str((_part(found, "errors") or {}).get(probe) or "it could not be asked")


def _configuration(server: Server, host: Found) -> None:
    conf, config = _part(host, "redis_conf"), _part(server.found, "config")
    if conf and conf.get("verdict") == FAIL:
        server.config.append(Piece("redis configuration", str(conf.get("text"))))
        server.row("redis configuration", FAIL, str(conf.get("text")))
    if config is None:
        if server.lives:
            server.row("configuration", UNKNOWN, _why_not(server.found, "config"))
        return
    findings = _many(config, "findings")
    texts = [": ".join(str(part[key]) for key in ("path", "where", "kind", "evidence") if part.get(key)) for part in findings]
    verdict = config.get("verdict") if config.get("verdict") in (PASS, FAIL) else UNKNOWN
    if verdict == FAIL:
        server.config += [Piece(f"configuration {part.get('path')}", text) for part, text in zip(findings, texts, strict=True)]
        server.config = server.config or [Piece("configuration", "it fails its verification")]
    stale = {str(name): str(why) for name, why in (_part(config, "stale") or {}).items()}
    server.stale = [Piece(f"service {name}", why) for name, why in stale.items()]
    unsure = _texts(config, "unknown") if verdict == UNKNOWN else []
    texts = texts[:4] + list(stale.values()) + unsure[:4]
    server.row("configuration", FAIL if stale else str(verdict), "; ".join(texts) or "every file is whole, means what it may mean, and is in use")


def _network(server: Server) -> None:
    network = _part(server.found, "network")
    if network is None:
        if server.lives:
            server.row("network", UNKNOWN, _why_not(server.found, "network"))
        return
    endpoints = _many(network, "endpoints")
    bad = [part for part in endpoints if part.get("cause") != "ok"]
    if not endpoints or not network.get("cause"):
        server.row("network", UNKNOWN, "nothing was asked of the network")
        return
    # who says no over REST refuses streams too
    refusing = {part.get("owner") for part in bad if part.get("cause") in OUTSIDE} - {None}
    for part in bad:
        cause = str(part.get("cause") or UNKNOWN)
        text = f"{part.get('name')}: {cause}{_layers(part)}"
        if cause in OUTSIDE:
            server.outside.append((cause, Piece(f"endpoint {part.get('name')}", text)))
        elif cause == "clock":
            server.machine.append(Piece("clock", text))
        elif part.get("owner") in refusing and cause in REFUSED:
            pass
        elif cause != UNKNOWN and part.get("required", True):
            server.network.append(Piece(f"endpoint {part.get('name')}", text))
        server.row("network", UNKNOWN if cause == UNKNOWN else FAIL, text)
    if not bad:
        good = network.get("cause") == "ok"
        text = ", ".join(f"{part.get('name')} {part.get('latency_ms')} ms" for part in endpoints)
        server.row("network", PASS if good else UNKNOWN, text if good else f"cause {network.get('cause')}, though each endpoint is well")


def _layers(part: Found) -> str:
    """The first layer that does not pass, in its own words."""
    for layer in _many(part, "layers"):
        if layer.get("verdict") != PASS:
            return f" ({layer.get('layer')}: {layer.get('evidence')})"
    return ""


def _machine(server: Server, host: Found) -> None:
    disks = _many(host, "disks")
    for part in disks:
        wrong = ["it is read only"] * bool(part.get("read_only"))
        wrong += [f"{part.get('percent')} % full, {part.get('free_mib')} MiB left"] * (_full(part))
        wrong += [f"{part.get('inodes_percent')} % of its inodes are used"] * ((_number(part.get("inodes_percent")) or 0) >= FULL_PERCENT)
        if wrong:
            server.machine.append(Piece("disk", f"{part.get('path')}: {', '.join(wrong)}"))
        server.row("disk", FAIL if wrong else PASS, f"{part.get('path')}: {', '.join(wrong) or str(part.get('percent')) + ' % full'}")
    memory, skew = _part(host, "memory"), _number((_part(host, "clock") or {}).get("skew_s"))
    percent = _number((memory or {}).get("percent"))
    if percent is not None:
        over = percent >= MEMORY_PERCENT
        server.machine += [Piece("memory", f"{percent:.0f} % of the memory is used")] * over
        busy = f", load {(memory or {}).get('load')} on {(memory or {}).get('processors')} processors"
        server.row("memory", FAIL if over else PASS, f"{percent:.0f} % used{busy}")
    if skew is not None:
        off = skew > CLOCK_S
        server.machine += [Piece("clock", f"its clock is {skew:.1f} s off the controller's")] * off
        server.row("clock", FAIL if off else PASS, f"{skew:.1f} s from the controller's, {CLOCK_S:.0f} s allowed")
    if server.lives:
        for name, value in (("disk", disks), ("memory", percent), ("clock", skew)):
            if value is None or value == []:
                server.row(name, UNKNOWN, "it could not be read")


def _full(part: Found) -> bool:
    percent, free = _number(part.get("percent")), _number(part.get("free_mib"))
    return (percent is not None and percent >= FULL_PERCENT) or (free is not None and free < LEAST_MIB)


def _trading(server: Server, host: Found) -> None:
    latch = _part(host, "latch")
    halted = latch is not None and latch.get("state") == "halted"
    if latch and halted:
        text = f"halted by the latch, generation {latch.get('generation')}, {latch.get('age_s')} s ago, run {latch.get('run_id')}: {latch.get('reason')}"
        server.row("trading", FAIL, text)
    elif latch and _texts(latch, "venues"):
        server.row("trading", FAIL, f"halted for {', '.join(_texts(latch, 'venues'))} alone")
    for part in _many(host, "probes"):
        if part.get("name") != "trading":
            server.row("reports", str(part.get("verdict", UNKNOWN)), f"{part.get('name')}: {part.get('evidence')}")
        elif not halted:
            server.row("trading", str(part.get("verdict", UNKNOWN)), str(part.get("evidence")))
    if server.lives and latch is None:
        server.row("trading", UNKNOWN, "the halt latch could not be read")


def _lease(server: Server, host: Found) -> None:
    lease = _part(host, "lease")
    if lease is None:
        return
    if lease.get("state") == "damaged":
        server.row("lease", UNKNOWN, str(lease.get("text")))
    elif lease.get("state") == "held":
        text = f"run {lease.get('run_id')} of {lease.get('scenario')} by {lease.get('owner')}, last sign {lease.get('sign_age_s')} s ago"
        server.row("lease", FAIL, text)
    else:
        server.row("lease", PASS, "no recovery is at work")


def _blank(server: Server, host: Found) -> None:
    """A server that answers and has nothing of a Titan on it was replaced or wiped."""
    paths = _part(host, "paths") or {}
    missing = [str(name) for name, there in paths.items() if there is False]
    if server.lives and len(missing) >= 2 and len(missing) == len(paths):
        server.gone = [Piece(f"no {name}", f"the server has no {name}") for name in missing]


# --- what helps --------------------------------------------------------------------------------------------------------


class Case:
    """Proposals for one server, in the order in which they help."""

    def __init__(self, server: Server, evidence: Found, newest: Found | None) -> None:
        self.server, self.evidence, self.newest = server, evidence, newest
        self.proposals: list[Proposal] = []
        self.host = _part(server.found, "host") or {}

    def propose(
        self, scenario: str, pieces: Sequence[Piece], command: str, why: str, confidence: str = "", covers: Sequence[str] = (), first: str = ""
    ) -> None:
        destructive = scenario in DESTRUCTIVE
        sure = confidence or (HIGH if sources(pieces) > 1 else MEDIUM)
        texts = list(dict.fromkeys(piece.text for piece in pieces))
        made = Proposal(scenario, self.server.name, sure, texts, command, why, destructive, first=first)
        known = (_part(self.evidence, "times") or {}).get(scenario)
        made.expected_time = dict(known) if isinstance(known, Mapping) else None
        if destructive:
            made.restore_point = {key: self.newest.get(key) for key in ("id", "taken_at", "age_s", "stores")} if self.newest else None
            made.expected_loss_s = _number((self.newest or {}).get("age_s"))
        elif scenario in ("network_partition", "configuration_corruption", "restart_services", "restart_redis"):
            made.expected_loss_s = 0.0
        self.proposals.append(made)
        self.server.covered |= set(covers)

    def recover(self, scenario: str, *more: str) -> str:
        return shlex.join(["titan-dr", "recover", scenario, *self._inventory(), *more])

    def playbook(self, name: str, *more: str) -> str:
        return shlex.join(["ansible-playbook", *self._inventory(), f"playbooks/{name}.yml", *more])

    def _inventory(self) -> list[str]:
        return [word for path in _texts(self.evidence, "inventory") for word in ("-i", path)]

    def decide(self) -> list[Proposal]:
        server = self.server
        lease, latch = _part(self.host, "lease") or {}, _part(self.host, "latch") or {}
        if server.foreign:
            return []
        if lease.get("state") == "held" and (_number(lease.get("sign_age_s")) or 0.0) <= LEASE_FRESH_S:
            self._wait(lease)
            return self.proposals
        if lease.get("state") == "held":
            self._go_on(lease, "it broke off: the holder of the lease gave no sign for longer than a step takes")
        self._lost()
        if server.lives:
            self._machine()
            self._configuration()
            self._database()
            self._network()
            self._redis_stopped()
            self._services(latch)
            self._resume(lease, latch)
        return self.proposals

    def _wait(self, lease: Found) -> None:
        text = f"run {lease.get('run_id')} of {lease.get('scenario')} holds the server since epoch {lease.get('epoch')}: {lease.get('owner')}"
        piece = Piece("lease", f"{text}, last sign {lease.get('sign_age_s')} s ago")
        command = shlex.join(["titan-dr", "report", str(lease.get("run_id"))])
        # what it breaks on its way is no evidence of anything
        everything = {row.probe for row in self.server.rows}
        self.propose("wait", [piece], command, "a recovery is at work: two would make it worse", MEDIUM, covers=sorted(everything))

    def _go_on(self, lease: Found, why: str) -> None:
        piece = Piece("lease", f"run {lease.get('run_id')} of {lease.get('scenario')} is not ended ({lease.get('result') or lease.get('state')})")
        scenario = str(lease.get("scenario"))
        command = shlex.join(["titan-dr", "recover", "--resume", str(lease.get("run_id")), *self._inventory()])
        self.propose(
            "go_on", [piece], command, f"first, because the data and the latch are that run's ({scenario}): {why}", MEDIUM, covers=("lease", "trading")
        )

    def _lost(self) -> None:
        """Two observers, or a blank server: never one way that is cut."""
        server = self.server
        if sources(server.gone) < 2 or server.redis == "well" or (server.lives is not False and not self._is_blank()):
            return
        why = "first, because nothing else can be known of a server that is gone" if server.lives is False else "first, because there is nothing to mend"
        self.propose("complete_system_failure", server.gone, self.recover("complete_system_failure"), why, covers=[row.probe for row in server.rows])

    def _is_blank(self) -> bool:
        return bool(self.server.lives) and all(piece.source.startswith("no ") for piece in self.server.gone)

    def _taken(self, *scenarios: str) -> bool:
        return any(made.scenario in scenarios for made in self.proposals)

    def _machine(self) -> None:
        server = self.server
        if not server.machine or self._taken("complete_system_failure"):
            return
        what = "; ".join(piece.text for piece in server.machine)
        why = "before any recovery: each would refuse, or break off, on such a machine"
        self.propose("mend_machine", server.machine, f"on {server.name}: {what}", why, covers=("disk", "memory", "clock", "network"))

    def _configuration(self) -> None:
        server = self.server
        # a Redis that may not read its directory refuses its configuration for it, which is whole
        found = [piece for piece in server.config if not (self._owner() and "Permission denied" in piece.text)]
        if not found or self._taken("complete_system_failure"):
            return
        pieces = [*found, *_unhealthy(server.found)]
        why = "before the database and the services: with a broken configuration neither stays up, and it costs no data"
        covers = ["configuration", "redis configuration", "services", "reports", "trading"]
        # one that does not run, or could not be asked, because of it
        covers += ["redis"] * (server.redis != "well" and sources(server.redis_pieces) < 2)
        self.propose("configuration_corruption", pieces, self.recover("configuration_corruption"), why, covers=covers)

    def _owner(self) -> bool:
        return any(piece.source == "owner" for piece in self.server.redis_pieces)

    def _database(self) -> None:
        server = self.server
        if server.redis != "sick" or sources(server.redis_pieces) < 2 or self._taken("complete_system_failure"):
            return
        said = _part(self.host, "redis") or {}
        # one that answers and trades is given up only when a person says so
        more = ["-e", "database_corruption_confirm=true"] if said.get("answer") == "ok" else []
        first = ""
        if said.get("answer") == "hung" and not _file_pieces(_part(self.host, "files") or {}):
            unit = str((_part(self.server.found, "nouns") or {}).get("redis_unit") or "redis-server")
            first = f"its files look whole: with trading halted, a restart of {unit} on {server.name} may be enough and loses nothing"
        why = "before the network and the services: they cannot be healthy without their data"
        covers = ("redis", "redis files", "services", "reports", "trading")
        command = self.recover("database_corruption", *more)
        self.propose("database_corruption", server.redis_pieces, command, why, covers=covers, first=first)

    def _network(self) -> None:
        server = self.server
        if server.network:
            exchanges = [part for part in _many(self.host, "probes") if part.get("name") in ("exchanges", "websockets")]
            heard = [Piece("services", f"the services say so too: {part.get('evidence')}") for part in exchanges if part.get("verdict") == FAIL]
            why = "what the services cannot reach they cannot trade with; no data are lost"
            covers = ("network", "reports", "trading", "services")
            self.propose("network_partition", [*server.network[:4], *heard], self.recover("network_partition"), why, covers=covers)
        for cause in dict.fromkeys(cause for cause, _piece in server.outside):
            pieces = [piece for other, piece in server.outside if other == cause]
            why = "no recovery of ours helps: the way to the exchange works, and what it says is no"
            self.propose("call", pieces, OUTSIDE[cause], why, covers=("network", "reports", "trading"))

    def _redis_stopped(self) -> None:
        if self.server.redis == "stopped" and not self._taken("database_corruption", "configuration_corruption", "mend_machine"):
            unit = str((_part(self.server.found, "nouns") or {}).get("redis_unit") or "redis-server")
            why = "its data are whole: starting it is enough"
            covers = ["redis", "redis files", "services", "reports", "trading"]
            nouns, command = _part(self.server.found, "nouns") or {}, f"systemctl start {unit}"
            if self._owner():
                covers.append("configuration")
                who = nouns.get("redis_user") or "redis"
                command = f"chown -R {who}: {nouns.get('redis_data_dir') or '/var/lib/redis'} && {command}"
            self.propose("restart_redis", self.server.redis_pieces, f"on {self.server.name}: {command}", why, covers=covers)

    def _services(self, latch: Found) -> None:
        """Nothing below explains it."""
        server = self.server
        explained = self._taken("configuration_corruption", "database_corruption", "network_partition", "restart_redis", "go_on", "complete_system_failure")
        pieces = [*server.services, *server.stale]
        if not pieces or explained or latch.get("state") == "halted" or server.redis != "well":
            return
        if any(row.probe in ("network", "configuration") and row.verdict == UNKNOWN for row in server.rows):
            return
        nouns = _part(server.found, "nouns") or {}
        if server.all_services:
            command = f"on {server.name}: systemctl restart {nouns.get('pm2_unit') or 'pm2-titan'}"
        else:
            names = " ".join(dict.fromkeys(piece.source.removeprefix("service ") for piece in pieces))
            command = f"on {server.name}, as {nouns.get('user') or 'titan'}: PM2_HOME={nouns.get('pm2_home')} {nouns.get('pm2')} restart {names}"
        why = "Redis, configuration and network are well: the smallest thing that helps"
        covers = ("services", "reports", "trading", *(["configuration"] * bool(server.stale)))
        self.propose("restart_services", pieces, command, why, LOW, covers=covers)

    def _resume(self, lease: Found, latch: Found) -> None:
        if latch.get("state") != "halted" or self._taken("go_on", "complete_system_failure"):
            return
        unfinished = lease.get("result") in ("failed", "cancelled") and lease.get("run_id") == latch.get("run_id")
        if unfinished:
            self._go_on(lease, "trading is halted because it did not come to its end")
        elif not self.proposals and all(row.verdict == PASS for row in self.server.rows if row.probe not in ("trading", "reports", "services")):
            piece = Piece("latch", f"halted by the latch, generation {latch.get('generation')}: {latch.get('reason')}")
            why = "nothing but the latch keeps it from trading; whoever halted it should say why it may go on"
            self.propose("resume", [piece], self.playbook("resume"), why, MEDIUM, covers=("trading", "reports", "services"))


# --- all of it ---------------------------------------------------------------------------------------------------------

_RANK = ("wait", "go_on", "complete_system_failure", "mend_machine", "configuration_corruption", "database_corruption", "network_partition", "call")


def _points(evidence: Found, now: float) -> tuple[Found | None, Row]:
    stores = _part(evidence, "stores")
    if stores is None:
        return None, Row("restore points", "controller", UNKNOWN, "the stores could not be asked")
    points = [part for part in _many(stores, "points") if _number(part.get("taken_at")) is not None]
    silent = [f"store {name} does not answer: {text}" for name, text in (_part(stores, "silent") or {}).items()]
    if not points:
        return None, Row("restore points", "controller", FAIL, "; ".join([str(stores.get("error") or "there is none"), *silent]))
    newest = max(points, key=lambda part: float(part["taken_at"]))
    newest = {**newest, "age_s": round(max(0.0, now - float(newest["taken_at"])), 1)}
    text = f"{len(points)} usable, newest {newest.get('id')}, {newest['age_s']:.0f} s old, in {', '.join(_texts(newest, 'stores'))}"
    return newest, Row("restore points", "controller", FAIL if silent else PASS, "; ".join([text, *silent]))


def diagnose(evidence: Found) -> dict[str, Any]:
    """The diagnosis: verdict none, propose or unknown, the table, the proposals in order, and what is to be looked at."""
    now = _number(evidence.get("now")) or 0.0
    newest, stores = _points(evidence, now)
    rows: list[Row] = []
    proposals: list[Proposal] = []
    open_rows: list[Row] = []
    for found in _many(evidence, "servers"):
        server = look(found, newest, str(found.get("environment_id") or evidence.get("environment_id")))
        made = Case(server, evidence, newest).decide()
        proposals += made
        rows += server.rows
        open_rows += [row for row in server.rows if row.verdict != PASS and row.probe not in server.covered]
    rows.append(stores)
    if stores.verdict != PASS:
        open_rows.append(stores)
    proposals.sort(key=lambda made: _RANK.index(made.scenario) if made.scenario in _RANK else len(_RANK))
    verdict = PROPOSE if proposals else UNKNOWN if open_rows or len(rows) == 1 else NONE
    return {
        "verdict": verdict,
        "text": _text(verdict, proposals, rows),
        "rows": [asdict(row) for row in rows],
        "proposals": [made.as_dict() for made in proposals],
        "look_at": [{**asdict(row), "look": HINTS.get(row.probe, "")} for row in open_rows],
    }


def _text(verdict: str, proposals: Sequence[Proposal], rows: Sequence[Row]) -> str:
    if verdict == NONE:
        probes = list(dict.fromkeys(row.probe for row in rows))
        return f"Do nothing. {len(rows)} probes passed: {', '.join(probes)}."
    if verdict == UNKNOWN:
        return "No recovery is proposed: what was found does not prove that one would help. Look at what is listed."
    names = list(dict.fromkeys(made.scenario for made in proposals))
    return f"Proposed, in this order: {', '.join(names)}."


def span(seconds: object) -> str:
    value = _number(seconds)
    if value is None:
        return "unknown"
    return f"{value:.0f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def costs(made: Found) -> str:
    """Restore point, loss and time of a proposal, in words."""
    parts = []
    if made.get("destructive"):
        point = made.get("restore_point") or {}
        parts.append(f"restore point {point['id']}" if point.get("id") else "NO RESTORE POINT is known")
    if made.get("expected_loss_s") is not None:
        loss = float(made["expected_loss_s"])
        parts.append(f"loses at most the last {span(loss)}" if loss else "loses no data")
    if time := made.get("expected_time"):
        parts.append(f"takes about {span(time.get('p50_s'))}, at worst {span(time.get('p95_s'))} ({time.get('basis')})")
    return "; ".join(parts)


def lines(found: Found) -> list[str]:
    """The diagnosis for a plain terminal."""
    told = [str(found["text"])]
    marks = {PASS: "ok  ", FAIL: "FAIL", UNKNOWN: "?   "}
    told += [f"  {marks[row['verdict']]} {row['host']} {row['probe']}: {row['evidence']}" for row in found["rows"]]
    for number, made in enumerate(found["proposals"], 1):
        told.append(f"{number}. {made['scenario']} on {made['host']}, confidence {made['confidence']} ({made['rule']}): {made['why']}")
        told += [f"     because {text}" for text in made["evidence"]]
        told += [f"     {text}" for text in (costs(made), made["first"]) if text]
        told.append(f"     -> {made['command']}")
    if found["look_at"]:
        told.append("Look at:" if found["proposals"] == [] else "Not explained by this:")
        told += [f"  {row['host']} {row['probe']}: {row['evidence']}{' -> ' + row['look'] if row['look'] else ''}" for row in found["look_at"]]
    return told
