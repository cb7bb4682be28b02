# SPDX-License-Identifier: GPL-3.0-or-later
"""Real PM2, real Node applications, real faults: PM2 lies, and the modules do not believe it.

Needs root, node and a PM2 tree, from TITAN_TEST_PM2_PREFIX or built by the lab into .cache/patient/.
"""
from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from titan_dr.lab import patient

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]

APP = """
const http = require('http'), fs = require('fs');
const mode = process.env.MODE, port = Number(process.env.APP_PORT || 0);
const serve = (trading) => {
  let armed = trading;
  const server = http.createServer((request, response) => {
    if (mode === 'mute') return;
    if (request.method === 'POST') { if (mode !== 'stubborn') armed = false; }
    const dependency = process.env.NEEDS;
    const answer = (ok) => {
      response.writeHead(ok ? 200 : 503, {'content-type': 'application/json'});
      response.end(JSON.stringify({status: ok ? 'healthy' : 'degraded', trading: armed}));
    };
    if (!dependency) return answer(mode !== 'sick');
    http.get({port: dependency, path: '/health'}, (r) => { r.resume(); answer(r.statusCode === 200); }).on('error', () => answer(false));
  });
  if (mode === 'swallow') process.on('uncaughtException', () => setInterval(() => {}, 1000));
  server.listen(port, '127.0.0.1', () => { if (process.send) process.send('ready'); });
};
if (process.env.STARTS) fs.appendFileSync(process.env.STARTS, `${process.env.name} ${Date.now()}\\n`);
if (mode === 'crash') throw new Error('no configuration');
else if (mode === 'slowcrash') { serve(true); setTimeout(() => process.exit(1), 2500); }
else if (mode === 'idle') setInterval(() => {}, 1000);
else if (mode === 'job') setTimeout(() => process.exit(0), 300);
else if (mode === 'parent') require('child_process').spawn(process.execPath, [__filename], {env: {...process.env, MODE: 'ok'}, stdio: 'inherit'});
else serve(true);
"""


def find_prefix() -> Path:
    """The PM2 tree of the lab's Titan; built when the images were there already and nothing had to be built for them."""
    given = os.environ.get("TITAN_TEST_PM2_PREFIX")
    return Path(given) if given else Path(patient.load_builder().build(ROOT, print).pm2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def daemons() -> set[int]:
    """Return the process ids of all PM2 daemons of this machine."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(b"PM2 v"):
                    found.add(int(entry.name))
    return found


class Pm2:
    """One PM2 home with toy applications."""

    def __init__(self, prefix: Path, folder: Path, user: str = "root") -> None:
        self.prefix, self.folder, self.user = prefix, folder, user
        self.account = pwd.getpwnam(user)
        self.home = folder / "pm2home"
        self.home.mkdir()
        os.chown(self.home, self.account.pw_uid, self.account.pw_gid)
        self.script = folder / "app.js"
        self.script.write_text(APP)
        (folder / "ansible.cfg").touch()
        self.starts = folder / "starts"
        self.starts.touch()
        os.chown(self.starts, self.account.pw_uid, self.account.pw_gid)
        self.ecosystem = folder / "ecosystem.config.js"
        self.latch = folder / "halt"
        self.apps: list[dict[str, Any]] = []
        self.components: list[dict[str, Any]] = []
        self.calls = 0

    def add(self, name: str, mode: str, listens: bool = True, **more: Any) -> dict[str, Any]:
        """Declare an application and its component."""
        port = free_port() if listens else None
        needs = [component["port"] for component in self.components if component["name"] in more.get("depends_on", [])]
        environment = {"MODE": mode, "STARTS": str(self.starts), "CANARY": "s3cr3t-canary"}
        environment |= {"APP_PORT": str(port)} if port else {}
        environment |= {"NEEDS": str(needs[0])} if needs else {}
        self.apps.append({"name": name, "script": str(self.script), "env": environment, **more.pop("pm2", {})})
        component: dict[str, Any] = {"name": name, "kind": "pm2", "app": name, "depends_on": [], "port": port, "start_timeout": 10}
        component["health"] = {"path": "/health", "status": [200], "expect": {"status": ["healthy"]}} if listens else None
        self.components.append({**component, **more})
        self.write()
        return self.components[-1]

    def mode(self, name: str, mode: str) -> None:
        """Change what an application does at its next start."""
        next(app for app in self.apps if app["name"] == name)["env"]["MODE"] = mode
        self.write()

    def write(self) -> None:
        self.ecosystem.write_text(f"module.exports = {json.dumps({'apps': self.apps})}")

    def pm2(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run PM2's own command, as an operator would."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "PM2_HOME": str(self.home), "PM2_DISCRETE_MODE": "true"}
        return subprocess.run(
            [str(self.prefix / "node_modules/pm2/bin/pm2"), *arguments], env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False,
            user=self.account.pw_uid, group=self.account.pw_gid,
        )

    def daemon(self) -> int:
        return int((self.home / "pm2.pid").read_text())

    def pid(self, name: str) -> int:
        return next(int(app["pid"]) for app in json.loads(self.pm2("jlist").stdout) if app["name"] == name)

    def status(self, name: str) -> str:
        return next(str(app["pm2_env"]["status"]) for app in json.loads(self.pm2("jlist").stdout) if app["name"] == name)

    def module(self, name: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run a module through Ansible, as it is shipped to a server."""
        self.calls += 1
        tree = self.folder / f"result{self.calls}"
        common = {"pm2_home": str(self.home), "pm2_prefix": str(self.prefix), "user": self.user, "components": self.components}
        environment = {
            **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks/collections"), "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_HOME": str(self.folder / "ansible"), "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"), "ANSIBLE_LOCALHOST_WARNING": "false",
        }
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible"), "localhost", "-c", "local", "-t", str(tree), "-m", f"titan.disaster_recovery.{name}",
             "-a", json.dumps({**common, **arguments}), *(["--check"] if check else [])],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )
        result_file = tree / "localhost"
        assert result_file.is_file(), done.stdout + done.stderr
        text = result_file.read_text()
        assert "s3cr3t-canary" not in text + done.stdout, "a secret of the applications' environment got out"
        result: dict[str, Any] = json.loads(text)
        return {**result, "failed": done.returncode != 0}

    def health(self, **arguments: Any) -> dict[str, Any]:
        return self.module("pm2_health", **{"window": 4, "timeout": 2, **arguments})

    def start(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        defaults = {"ecosystem": str(self.ecosystem), "latch": str(self.latch), "timeout": 40, "settle": 1, "environment": {"PATH": os.environ["PATH"]}}
        return self.module("component_start", check, **{**defaults, **arguments})

    def orphan(self, name: str) -> int:
        """Leave a process behind as PM2 does when a restart goes wrong: its environment, init as its parent."""
        app = next(app for app in self.apps if app["name"] == name)
        environment = {"PATH": os.environ["PATH"], **app["env"], "name": name, "pm_id": "0", "PM2_HOME": str(self.home)}
        # the program itself: a `node` on the path may be a wrapper that stays as its parent
        node = subprocess.run(["node", "-p", "process.execPath"], capture_output=True, text=True, check=True).stdout.strip()
        done = subprocess.run(
            ["sh", "-c", '"$0" "$1" >/dev/null 2>&1 & echo $!', node, str(self.script)], env=environment, start_new_session=True,
            user=self.account.pw_uid, group=self.account.pw_gid, capture_output=True, text=True, check=True,
        )
        port = next(item["port"] for item in self.components if item["name"] == name)
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        return int(done.stdout)

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(self.daemon(), signal.SIGTERM)
        for entry in Path("/proc").iterdir():  # orphans on purpose
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ProcessLookupError):
                    if f"PM2_HOME={self.home}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                        os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def pm2_for(user: str) -> Iterator[Pm2]:
    if os.geteuid() != 0 or not shutil.which("node"):
        pytest.skip("needs root and node")
    prefix = find_prefix()
    folder = Path(tempfile.mkdtemp(prefix="titan-pm2-"))
    folder.chmod(0o755)
    pm2 = Pm2(prefix, folder, user)
    try:
        yield pm2
    finally:
        pm2.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pm2() -> Iterator[Pm2]:
    with pm2_for("root") as instance:
        yield instance


@pytest.fixture
def nobody() -> Iterator[Pm2]:
    with pm2_for("nobody") as instance:
        yield instance


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    assert "components" in result, result
    return next(item for item in result["components"] if item["name"] == name)


def wait_until(condition: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the fault did not come about"
        time.sleep(0.1)


# --- pm2_health -----------------------------------------------------------------------------------------------------


def test_each_lie_is_seen_through_and_the_truth_is_believed(pm2: Pm2) -> None:
    """One PM2 with a fault of each kind; PM2 itself calls most of them online."""
    pm2.add("good", "ok")
    pm2.add("parent", "parent")
    pm2.add("ready", "ok", pm2={"wait_ready": True, "listen_timeout": 5000})
    pm2.add("dead", "crash", pm2={"restart_delay": 60000})
    pm2.add("loop", "slowcrash")
    pm2.add("unbound", "idle")
    pm2.add("mute", "mute")
    pm2.add("sick", "sick")
    pm2.add("job", "job", listens=False, pm2_status=["stopped"], pm2={"autorestart": False, "cron_restart": "0 0 * * *"})
    pm2.add("absent-optional", "ok", required=False)
    pm2.add("absent", "ok")
    pm2.pm2("start", str(pm2.ecosystem), "--only", "good,parent,ready,dead,loop,unbound,mute,sick,job")
    pm2.add("taken", "swallow")
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", pm2.components[-1]["port"]))
        squatter.listen()
        started = pm2.pm2("start", str(pm2.ecosystem), "--only", "taken")
        assert started.returncode == 0
        wait_until(lambda: pm2.status("dead") == "waiting restart" and pm2.status("job") == "stopped" and pm2.status("taken") == "online")
        daemon = pm2.daemon()
        result = pm2.health(window=6)
        assert pm2.daemon() == daemon
    assert result["verdict"] == "fail"
    verdicts = {item["name"]: item["verdict"] for item in result["components"]}
    assert verdicts == {
        "good": "pass", "parent": "pass", "ready": "pass", "dead": "fail", "loop": "fail", "unbound": "fail", "mute": "unknown", "sick": "fail",
        "job": "pass", "absent-optional": "pass", "absent": "fail", "taken": "fail",
    }, result
    assert "waiting restart" in row(result, "dead")["evidence"]
    assert "restarts within" in row(result, "loop")["evidence"] or "waiting restart" in row(result, "loop")["evidence"]
    assert "nothing listens" in row(result, "unbound")["evidence"]
    assert str(os.getpid()) in row(result, "taken")["evidence"]
    assert "503" in row(result, "sick")["evidence"]
    assert "within 2 s" in row(result, "mute")["evidence"]
    assert row(result, "good")["uptime_s"] >= 6 and row(result, "good")["memory_bytes"] > 1_000_000
    assert {"name": "pm2:absent", "verdict": "fail", "evidence": "PM2 does not know absent"} in result["titan_dr"]["gates"]


def test_long_uptime_is_proof_at_once(pm2: Pm2) -> None:
    pm2.add("good", "ok")
    pm2.pm2("start", str(pm2.ecosystem))
    began = time.monotonic()
    assert pm2.health(window=5)["verdict"] == "pass"
    waited = time.monotonic() - began
    began = time.monotonic()
    assert pm2.health(window=5)["verdict"] == "pass"
    assert time.monotonic() - began < waited - 1.5


def test_wrong_home_and_wrong_user_start_no_daemon(pm2: Pm2) -> None:
    pm2.add("good", "ok")
    pm2.pm2("start", str(pm2.ecosystem))
    before = daemons()
    assert pm2.daemon() in before
    empty = pm2.folder / "empty"
    for arguments in ({"pm2_home": str(empty)}, {"user": "nobody"}, {"pm2_home": str(empty), "user": "nobody"}):
        result = pm2.health(**arguments)
        assert result["verdict"] == "fail" and "daemon" in row(result, "good")["evidence"], result
    other = Path(shutil.copytree(pm2.home, pm2.folder / "copied", ignore=lambda _d, names: [n for n in names if n.endswith(".sock")]))
    assert "PM2_HOME" in row(pm2.health(pm2_home=str(other)), "good")["evidence"]
    assert daemons() == before
    assert not empty.exists()


def test_killed_daemon(pm2: Pm2) -> None:
    pm2.add("good", "ok")
    pm2.pm2("start", str(pm2.ecosystem))
    daemon = pm2.daemon()
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: daemon not in daemons())
    result = pm2.health()
    assert result["verdict"] == "fail" and f"process {daemon}" in row(result, "good")["evidence"]
    assert daemon not in daemons() and not any(Path(f"/proc/{found}/environ").read_bytes().count(str(pm2.home).encode()) for found in daemons())


def test_orphan_that_answers_in_the_place_of_an_application(pm2: Pm2) -> None:
    pm2.add("good", "ok")
    orphan = pm2.orphan("good")
    pm2.mode("good", "swallow")
    pm2.pm2("start", str(pm2.ecosystem))
    result = pm2.health()
    assert row(result, "good")["verdict"] == "fail" and f"process {orphan} of uid 0 holds port" in row(result, "good")["evidence"], result
    pm2.pm2("delete", "good")
    assert f"process {orphan}" in row(pm2.health(), "good")["evidence"]


def test_frozen_daemon_is_unknown(pm2: Pm2) -> None:
    pm2.add("good", "ok")
    pm2.pm2("start", str(pm2.ecosystem))
    os.kill(pm2.daemon(), signal.SIGSTOP)
    try:
        result = pm2.health()
    finally:
        os.kill(pm2.daemon(), signal.SIGCONT)
    assert result["verdict"] == "unknown" and "did not answer" in row(result, "good")["evidence"]


def test_usage_errors_and_foreign_applications(pm2: Pm2) -> None:
    pm2.add("good", "ok")
    pm2.add("stranger", "idle", listens=False)
    pm2.pm2("start", str(pm2.ecosystem))
    strangers = pm2.components.pop()
    result = pm2.health(window=1)
    assert result["foreign"] == ["stranger"] and result["verdict"] == "pass" and "stranger" in result["titan_dr"]["notes"][0]
    assert pm2.health(window=1, foreign="fail")["verdict"] == "fail"
    assert "empty" in pm2.health(components=[])["msg"]
    assert "component stranger: ports" in pm2.health(components=[{**strangers, "ports": 1}])["msg"]


# --- component_start ------------------------------------------------------------------------------------------------


def latched(pm2: Pm2) -> None:
    pm2.latch.write_text('{"generation": 1}')
    pm2.latch.chmod(0o644)


def test_starts_in_order_then_changes_nothing(pm2: Pm2) -> None:
    pm2.add("brain", "ok", pm2={"wait_ready": True, "listen_timeout": 5000})
    for name in ("phase1", "phase2", "phase3"):
        pm2.add(name, "ok", depends_on=["brain"])
    pm2.add("job", "job", listens=False, pm2_status=["stopped"], pm2={"autorestart": False})
    pm2.pm2("ping")
    refused = pm2.start()
    assert refused["failed"] and "latch" in refused["msg"] and pm2.starts.read_text() == ""
    latched(pm2)
    planned = pm2.start(check=True)
    assert planned["changed"] and {item["action"] for item in planned["components"]} == {"would start"} and pm2.starts.read_text() == ""
    result = pm2.start()
    assert not result["failed"], result
    assert result["changed"] and result["saved"] and sorted(result["started"]) == ["brain", "job", "phase1", "phase2", "phase3"]
    order = [line.split()[0] for line in pm2.starts.read_text().splitlines()]
    assert set(order[:2]) == {"brain", "job"} and set(order[2:]) == {"phase1", "phase2", "phase3"}
    assert {gate["verdict"] for gate in result["titan_dr"]["gates"]} == {"pass"}
    assert result["titan_dr"]["timings"]["start:brain"] > 0
    dump = pm2.home / "dump.pm2"
    assert {item["name"] for item in json.loads(dump.read_text())} == {"brain", "phase1", "phase2", "phase3", "job"}
    assert dump.stat().st_mode & 0o077 == 0
    pm2.latch.unlink()
    again = pm2.start()
    assert not again["failed"] and again["changed"] is False and again["started"] == [], again
    assert len(pm2.starts.read_text().splitlines()) == 5


def test_unhealthy_is_deleted_and_the_orphan_on_its_port_is_ended(pm2: Pm2) -> None:
    pm2.add("brain", "ok")
    pm2.add("other", "ok")
    orphan = pm2.orphan("brain")
    pm2.pm2("start", str(pm2.ecosystem))  # brain loops on EADDRINUSE, the orphan answers the probes
    latched(pm2)
    result = pm2.start()
    assert not result["failed"], result
    assert row(result, "brain")["action"] == "restarted" and any(str(orphan) in note for note in result["notes"])
    state = Path(f"/proc/{orphan}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert pm2.health(window=1)["verdict"] == "pass"


def test_a_stranger_on_the_port_is_named_and_not_touched(nobody: Pm2) -> None:
    nobody.add("brain", "ok")
    nobody.pm2("ping")
    latched(nobody)
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", nobody.components[0]["port"]))
        squatter.listen()
        result = nobody.start()
    assert result["failed"] and f"process {os.getpid()}" in result["msg"] and nobody.starts.read_text() == ""
    result = nobody.start()
    assert not result["failed"], result
    pid = row(result, "brain")["pid"]
    assert os.stat(f"/proc/{pid}").st_uid == nobody.account.pw_uid


def test_a_crash_loop_stops_what_depends_on_it(pm2: Pm2) -> None:
    pm2.add("brain", "crash", pm2={"restart_delay": 200})
    pm2.add("phase1", "ok", depends_on=["brain"])
    pm2.pm2("ping")
    latched(pm2)
    began = time.monotonic()
    result = pm2.start()
    assert result["failed"] and "brain did not start: crash loop" in result["msg"] and time.monotonic() - began < 10
    assert "phase1" not in pm2.starts.read_text()
    assert {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]} == {"start:brain": "fail", "start:phase1": "fail"}
    pm2.mode("brain", "ok")
    assert not pm2.start()["failed"]


def test_never_healthy_ends_at_the_deadline_and_optional_is_left_out(pm2: Pm2) -> None:
    pm2.add("brain", "ok")
    pm2.add("console", "unbound", listens=False, required=False, pm2={"script": str(pm2.folder / "missing.js")})
    pm2.pm2("ping")
    latched(pm2)
    result = pm2.start()
    assert not result["failed"] and "console" in result["notes"][0] and "optional" in row(result, "console")["evidence"], result
    pm2.mode("brain", "mute")
    pm2.pm2("delete", "brain")
    began = time.monotonic()
    result = pm2.start(timeout=4)
    assert result["failed"] and "deadline" in result["msg"] and time.monotonic() - began < 12, result


def test_no_daemon_and_no_systemd_is_refused(pm2: Pm2) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("this host has systemd")
    pm2.add("brain", "ok")
    latched(pm2)
    before = daemons()
    result = pm2.start()
    assert result["failed"] and "systemd" in result["msg"] and daemons() == before


def fence() -> bool:
    return subprocess.run(["nft", "list", "table", "inet", "titan_dr_fence"], capture_output=True, check=False).returncode == 0


def test_services_that_ignore_the_latch_are_fenced_until_they_are_halted(nobody: Pm2) -> None:
    if not shutil.which("nft"):
        pytest.skip("needs nft")
    brain = nobody.add("core", "stubborn")
    nobody.add("scavenger", "ok", depends_on=["core"])
    nobody.pm2("ping")
    latched(nobody)
    url = f"http://127.0.0.1:{brain['port']}/"
    arguments: dict[str, Any] = {
        "latch_honoured": False, "timeout": 8,
        "halt_call": {"url": url, "method": "POST", "body": {"enabled": False}, "confirm": {"url": url, "status": [200], "expect": {"trading": [False]}}},
    }
    try:
        result = nobody.start(**arguments)
        assert result["failed"] and "fence stays" in result["msg"] and result["fence"] == "up" and fence(), result
        assert "scavenger" not in nobody.starts.read_text()
        # the fence is real: the user reaches loopback, and nothing else
        reach = "import socket,sys; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', (sys.argv[1], 9))"
        for address, blocked in (("127.0.0.1", False), ("192.0.2.1", True)):
            done = subprocess.run(["python3", "-c", reach, address], user="nobody", capture_output=True, text=True, check=False)
            assert ("PermissionError" in done.stderr) is blocked, (address, done.stderr)
        nobody.mode("core", "ok")
        nobody.pm2("delete", "core")
        result = nobody.start(**{**arguments, "timeout": 40})
        assert not result["failed"] and result["fence"] == "removed" and not fence(), result
        assert {"name": "start:halt", "verdict": "pass"}.items() <= {**next(g for g in result["titan_dr"]["gates"] if g["name"] == "start:halt")}.items()
        assert nobody.start(**arguments)["changed"] is False
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "titan_dr_fence"], capture_output=True, check=False)
