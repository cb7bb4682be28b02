# SPDX-License-Identifier: GPL-3.0-or-later
"""Recoveries whose controller dies at a chosen point, controllers that are another machine, and what a server is left like afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab_runs import ANSIBLE, INVENTORY, ROOT, Run

from titan_dr import lab, processes
from titan_dr.drill import trading_time
from titan_dr.lab.state import load_state

# The server does not notice them: a crash before or after one is a crash after or before its neighbour.
ON_THE_CONTROLLER = ("assert", "fail", "set_fact", "validate_argument_spec")
PLUGINS = Path(__file__).with_name("callback_plugins")
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[A-Za-z_]+-[0-9a-f]{4}")

# Another machine as far as a process can tell: its own host name, machine id, boot id and processes. The network and the files are ours.
ELSEWHERE = """
hostname "$1"
for id in /etc/machine-id /proc/sys/kernel/random/boot_id; do mount --bind "$2/$(basename "$id")" "$id"; done
shift 2
exec "$@"
"""


@dataclass(frozen=True)
class Point:
    """Die `delay` seconds after event `n` of a run; `name` says which one that is."""

    n: int
    delay: float
    name: str


class Controller(Run):
    """A run of ansible-playbook that may be told to die, or to be on another machine. It goes on while the test does something else, until `end`,
    or until the block ends, whatever happens in there."""

    def __init__(self, folder: Path, playbook: str, *arguments: str, crash: Point | None = None, elsewhere: str = "", user: str = "") -> None:
        folder.mkdir()
        self.folder = folder
        self.rc = -1
        self.output = ""
        self.report: dict[str, Any] = {}
        self.mark = f"dr-crash-{secrets.token_hex(4)}"
        self.host_name = elsewhere
        # ssh's masters are the controller's: each has its own, and they are found by this name. Short, because sockets lie in it.
        self._control = Path("/tmp") / self.mark
        self._control.mkdir(mode=0o700)
        environment = {
            **os.environ,
            "TITAN_DR_RUN_DIR": str(folder / "run"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_PLUGINS": str(PLUGINS),
            "ANSIBLE_CALLBACKS_ENABLED": "crash_point",
            "TITAN_DR_TEST_EVENTS": str(folder / "events.jsonl"),
            "TITAN_DR_TEST_MARK": self.mark,
        }
        environment.pop("TITAN_DR_TEST_CRASH", None)
        if crash:
            environment["TITAN_DR_TEST_CRASH"] = f"{crash.n}:{crash.delay}"
        if user:
            environment["USER"] = environment["LOGNAME"] = user
        argv = [ANSIBLE, "-i", str(INVENTORY), str(ROOT / "playbooks" / f"{playbook}.yml"), "-e", f"ansible_control_path_dir={self._control}", *arguments]
        if elsewhere:
            (folder / "machine-id").write_text(secrets.token_hex(16) + "\n")
            (folder / "boot_id").write_text(f"{secrets.token_hex(4)}-0000-4000-8000-{secrets.token_hex(6)}\n")
            space = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            argv = [*space, "sh", "-ec", ELSEWHERE, "elsewhere", elsewhere, str(folder), *argv]
        self.started_at = time.time()
        with (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end(self, timeout: float = 300) -> Controller:
        """Wait for its end, and see to it that nothing of it is left on this machine."""
        try:
            self.rc = self.process.wait(timeout)
        finally:
            self._remove()
        self.output = (self.folder / "output.txt").read_text(errors="replace")
        path = self.folder / "run" / "report.json"
        self.report = json.loads(path.read_text()) if path.exists() else {}
        return self

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *dummy: object) -> None:
        self._remove()

    def _remove(self) -> None:
        left = processes.of_run(self.mark)
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self._control, ignore_errors=True)

    @property
    def died(self) -> bool:
        return self.rc == -signal.SIGKILL

    @property
    def run_id(self) -> str:
        return str(self.report.get("run_id", ""))

    @property
    def ledger(self) -> Path:
        return self.folder / "run" / "ledger.jsonl"

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def halted_at(self) -> float | None:
        return trading_time(self.ledger, "halted") if self.ledger.exists() else None

    def resume_began_at(self) -> float | None:
        return next((event["at"] for event in self.events() if event["kind"] == "start" and event["action"] == "trading_resume"), None)


def points(events: Sequence[dict[str, Any]], dice: random.Random, inside: int = 2, second: float = 0.4) -> list[Point]:
    """Where a run with these events can be killed: before each task, after it, and `inside` it (more often in a long one) at random moments."""
    found = []
    for start in (event for event in events if event["kind"] == "start" and event["action"] not in ON_THE_CONTROLLER):
        end = next((other for other in events if other["kind"] == "end" and other["n"] > start["n"] and other["host"] == start["host"]), None)
        if end is None or end["status"] == "skipped":
            continue
        label = f"{start['role'] or 'playbook'}/{start['action']} #{start['n']}"
        found.append(Point(start["n"], 0.0, f"before {label}"))
        lasts = end["at"] - start["at"]
        parts = 0 if lasts < second else inside if lasts < 5 else inside * 2
        for part in range(parts):
            delay = round(lasts * dice.uniform(part / parts, (part + 1) / parts), 3)
            found.append(Point(start["n"], max(delay, 0.02), f"{delay:.2f} s into {label} of {lasts:.1f} s"))
        found.append(Point(end["n"], 0.0, f"after {label}"))
    return found


def chosen_of(found: Sequence[Point], how_many: str, dice: random.Random) -> list[Point]:
    """`all` of them, `2/8`: every eighth from the second on, or so many, spread over the run."""
    part, slash, parts = how_many.partition("/")
    if slash:
        return list(found[int(part) - 1 :: int(parts)])
    count = len(found) if how_many == "all" else int(how_many)
    if count >= len(found):
        return list(found)
    return [found[dice.randrange(len(found) * part // count, len(found) * (part + 1) // count)] for part in range(count)]


# --- the exchange's own log ---------------------------------------------------------------------------------------------


def orders() -> list[float]:
    """When the exchanges received an order."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{load_state().exchange_control.rstrip('/')}/log", timeout=10) as reply:
        return sorted(float(order["received"]) for order in json.load(reply)["orders"])


def halts(attempts: Sequence[Controller], since: float | None) -> list[tuple[float, float]]:
    """Spans without trading, one from `since` on (the disaster) if it is given. Trading may go on from the moment that a run begins to resume it."""
    spans, begun = [], since
    for attempt in attempts:
        begun = begun if begun is not None else attempt.halted_at()
        resumed = attempt.resume_began_at()
        if begun is not None and resumed is not None:
            spans.append((begun, resumed))
            begun = None
    if begun is not None or not spans:
        raise AssertionError("no run resumed trading")
    return spans


def orders_while_halted(attempts: Sequence[Controller], since: float | None) -> list[str]:
    received = orders()
    return [
        f"{sum(begun <= at < resumed for at in received)} orders in the {resumed - begun:.1f} s without trading"
        for begun, resumed in halts(attempts, since)
        if any(begun <= at < resumed for at in received)
    ]


def trades_again(since: float, timeout: float = 20) -> bool:
    """By effect: an order that came after."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if any(at > since for at in orders()):
            return True
        time.sleep(0.5)
    return False


# --- what a server is like ----------------------------------------------------------------------------------------------

# Runs on the server. Left out, because it differs after two uninterrupted recoveries too: what the services write while they trade (logs, pid files,
# PM2's sockets), caches, the numbers of the AOF's files and whether Redis has saved a dump.rdb yet, times, generations and run ids in records,
# and the lease and journal of which only the end counts (looked at apart).
LOOK = r"""
import glob, grp, hashlib, json, os, pwd, re, stat, subprocess, sys
order = json.load(sys.stdin)
run_id = re.compile(order["run_id"])
moment = re.compile(r"\b1[6-9]\d{8}(\.\d+)?\b")
skip = re.compile(order["skip"])
found = {}

def text_of(path):
    with open(path, "rb") as handle:
        return handle.read()

def named(path):
    path = run_id.sub("RUN", path)
    return re.sub(r"\.aof\.\d+\.", ".aof.N.", path)

def look(path):
    if skip.search(path):
        return
    info = os.lstat(path)
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name + ":" + grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        owner = "%d:%d" % (info.st_uid, info.st_gid)
    name, how = named(path), "%o %s" % (stat.S_IMODE(info.st_mode), owner)
    if stat.S_ISLNK(info.st_mode):
        found[name] = "-> " + named(os.readlink(path))
    elif stat.S_ISDIR(info.st_mode):
        found[name] = "directory " + how
        for entry in sorted(os.listdir(path)):
            look(os.path.join(path, entry))
    elif stat.S_ISREG(info.st_mode):
        if path.startswith(tuple(order["opaque"])):
            found[name] = "file " + how
        else:
            content = text_of(path)
            if path.startswith("/var/lib/titan-dr/") and len(content) < 100000:
                content = moment.sub("TIME", run_id.sub("RUN", content.decode(errors="replace"))).encode()
            found[name] = "file %s %s" % (how, hashlib.sha256(content).hexdigest()[:16])

for root in order["roots"]:
    if os.path.lexists(root):
        look(root)

def say(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout.strip()

def listing(pattern):
    return sorted(named(path) for path in glob.glob(pattern))

def processes():
    marked, redis, services = [], 0, 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = text_of("/proc/%s/cmdline" % entry)
            environ = text_of("/proc/%s/environ" % entry)
            services += os.stat("/proc/%s" % entry).st_uid == order["uid"]
        except OSError:
            continue
        if b"TITAN_DR_COMMAND=" in environ:
            marked.append(command.replace(b"\0", b" ").decode(errors="replace")[:100])
        redis += os.path.basename(command.split(b"\0")[0].split(b" ")[0]) == b"redis-server"
    return marked, redis, services

order["uid"] = pwd.getpwnam(order["user"]).pw_uid
marked, redis, services = processes()
records = {}
for name in ("lease.json", "recovered.json", "redis-live.json", "owner.json"):
    try:
        records[name] = json.loads(text_of("/var/lib/titan-dr/" + name))
    except (OSError, ValueError):
        records[name] = None
lease, live = records["lease.json"], records["redis-live.json"] or {}
state = {
    "files": found,
    "leftovers": {pattern: listing(pattern) for pattern in order["leftovers"]},
    "latch": os.path.exists("/var/lib/titan-dr/halt"),
    "units": {unit: [say("systemctl", "is-enabled", unit), say("systemctl", "is-active", unit)] for unit in order["units"]},
    "failed units": say("systemctl", "list-units", "--failed", "--plain", "--no-legend").split(),
    "packages": hashlib.sha256(say("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n").encode()).hexdigest()[:16],
    "dpkg audit": say("dpkg", "--audit"),
    "marked processes": marked,
    "redis servers": redis,
    "processes of the services": services,
    "lease": lease and [lease.get("state"), lease.get("result")],
    "restore": [live.get("state"), live.get("restore_point")],
}
for name in ("saved", "live"):
    state["pm2 " + name] = None
try:
    saved = json.loads(text_of(order["pm2_home"] + "/dump.pm2"))
    state["pm2 saved"] = sorted([app["name"], app.get("status"), app.get("pm_cwd"), app.get("pm_exec_path")] for app in saved)
except (OSError, ValueError, KeyError) as error:
    state["pm2 saved"] = repr(error)
done = subprocess.run(order["jlist"], capture_output=True, text=True)
try:
    apps = json.loads(done.stdout[done.stdout.index("["):])
    state["pm2 live"] = sorted([app["name"], app["pm2_env"]["status"], app["pm2_env"]["pm_cwd"], app["pm2_env"]["pm_exec_path"]] for app in apps)
except (ValueError, KeyError) as error:
    state["pm2 live"] = repr(error) + done.stderr[-200:]
print(json.dumps(state))
"""

LEFTOVERS = ["/var/lib/redis.*", "/var/lib/titan-dr/stage/*", "/var/lib/titan-dr/*.stage*", "/var/lib/titan-dr/*.before-*", "/var/lib/titan-dr/*.new"]
LEFTOVERS += [
    f"{place}.{kind}" for place in ("/opt/*", "/opt/*/*", "/opt/*/*/*", "/etc/*/*", "/etc/systemd/system/*") for kind in ("before-*", "stage-*", "new")
]
LEFTOVERS += ["/usr/sbin/policy-rc.d*", "/run/systemd/system/*"]
OPAQUE = ("/var/lib/redis", "/var/lib/titan-dr/stage/", "/opt/titan/.pm2")
SKIP = "|".join(
    [
        r"^/etc/(mtab|ld\.so\.cache|resolv\.conf|machine-id|\.pwd\.lock|passwd-|shadow-?|group-|gshadow-?|subuid-|subgid-|hosts|hostname)$",
        r"^/opt/titan/logs/",
        r"^/opt/titan/\.pm2/(logs|pids|pm2\.log|.*\.sock|pm2\.pid|touch|modules|module_conf\.json|dump\.pm2\.bak)",
        r"^/var/lib/redis[^/]*/(dump\.rdb|temp-.*)",
        r"^/var/lib/redis\.",
        r"^/var/lib/titan-dr/(lease\.json|journal\.jsonl|network\.json|halt\.generation|bundle/debs)",
    ]
)


def look(host: str) -> dict[str, Any]:
    """The server in a form that two of them can be compared in."""
    from titan_dr.lab import patient

    titan = patient.titan_vars(load_state().profile)
    home, user = titan["titan_home"], titan["titan_user"]
    jlist = ["runuser", "-u", user, "--", "env", "-i", f"HOME={home}", f"PM2_HOME={titan['titan_pm2_home']}", "PATH=/usr/local/bin:/usr/bin:/bin"]
    jlist += ["PM2_DISCRETE_MODE=true", f"{titan['titan_pm2_prefix']}/node_modules/pm2/bin/pm2", "jlist", "--silent"]
    order = {
        "roots": ["/etc", "/opt", "/srv", "/usr/local", "/var/lib/titan-dr", "/var/lib/redis", "/usr/sbin/policy-rc.d", "/var/spool/cron"],
        "skip": SKIP,
        "opaque": OPAQUE,
        "leftovers": LEFTOVERS,
        "run_id": RUN_ID.pattern,
        "units": ["redis-server", titan["titan_pm2_unit"]],
        "pm2_home": titan["titan_pm2_home"],
        "user": user,
        "jlist": jlist,
    }
    done = lab.exec(host, ["/usr/bin/python3", "-c", LOOK], input=json.dumps(order), timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


READ = r"""
import hashlib, json, re, socket, subprocess, sys
order = json.load(sys.stdin)
link = socket.create_connection(("127.0.0.1", 6379), timeout=20).makefile("rwb")

def reply():
    line = link.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"$":
        return None if rest == b"-1" else link.read(int(rest) + 2)[:-2].decode()
    if kind == b"*":
        return [reply() for _ in range(int(rest))]
    if kind == b"-":
        raise SystemExit("Redis says " + line.decode())
    return rest.decode()

def ask(*words):
    link.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words))
    link.flush()
    return reply()

ask("AUTH", order["password"])
ask("SELECT", str(order["db"]))
readers = {
    "string": lambda key: ask("GET", key),
    "hash": lambda key: sorted(zip(*[iter(ask("HGETALL", key))] * 2)),
    "zset": lambda key: ask("ZRANGE", key, "0", "-1", "WITHSCORES"),
    "list": lambda key: ask("LRANGE", key, "0", "-1"),
    "set": lambda key: sorted(ask("SMEMBERS", key)),
    "stream": lambda key: ask("XRANGE", key, "-", "+"),
}
wanted, found = re.compile(order["wanted"]), {}
cursor, names = "0", []
while True:
    cursor, some = ask("SCAN", cursor, "COUNT", "5000")
    names += some
    if cursor == "0":
        break
for key in sorted(set(names)):
    if wanted.search(key):
        kind = ask("TYPE", key)
        if kind in readers:
            found[key] = hashlib.sha256(repr(readers[kind](key)).encode()).hexdigest()[:16]
print(json.dumps(found))
"""

# Written by the tests alone, never by a Titan: so they must be exactly what they were.
OURS = r"^titan:(drill:writer|orders:drill-|seed|test|dr:canary)"
# Titan's own orders: the old ones must all be there, newer ones come as soon as it trades.
TRADED = r"^titan:orders:t-"


def keys(host: str, wanted: str = OURS) -> dict[str, str]:
    """Key -> digest of its value."""
    order = {"password": load_state().redis_password, "db": 1, "wanted": wanted}
    found: dict[str, str] = json.loads(lab.exec(host, ["/usr/bin/python3", "-c", READ], input=json.dumps(order), timeout=120).stdout)
    return found


def summary(content: dict[str, str]) -> str:
    return f"{len(content)} keys, {hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        names = sorted(expected.keys() | found.keys())
        return [line for key in names for line in differences(expected.get(key), found.get(key), f"{path} {key}".strip())]
    return [] if expected == found else [f"{path}: {found!r} instead of {expected!r}"]


def lease(host: str) -> dict[str, Any]:
    """The lease as it lies on the server; empty when there is none."""
    done = lab.exec(host, ["cat", "/var/lib/titan-dr/lease.json"], check=False)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else {}
    return found


def journal(host: str) -> list[dict[str, Any]]:
    done = lab.exec(host, ["cat", "/var/lib/titan-dr/journal.jsonl"], check=False)
    return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []
