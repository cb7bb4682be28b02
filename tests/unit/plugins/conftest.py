# SPDX-License-Identifier: GPL-3.0-or-later
"""Real parts for the unit tests: a private redis-server, an HTTP service, age, and the main() of a module."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pyrage
import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.titan.disaster_recovery.plugins.module_utils import (
    _lease,
    _rdb_walk,
    _redis,
    _redis_proof,
    _redis_unit,
    _restore_point,
    _scratch,
    _state,
)

CANARY = {"key": "titan:dr:canary", "db": 1}


@pytest.fixture
def me() -> str:
    """The user of the tests; stands for the user of Redis."""
    return pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def box() -> Iterator[Path]:
    """A directory with a path that is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="tdr-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def lease_dirs(tmp_path: Path) -> Iterator[Path]:
    """Every test on a server of its own, on which nobody holds the lease."""
    folder = tmp_path / "lease"
    # not the fixture monkeypatch: it would be undone later than what other fixtures clean up with
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "STATE_DIR", str(folder / "state"))
        patch.setattr(_lease, "RUN_DIR", str(folder / "run"))
        patch.delenv("TITAN_DR_COMMAND", raising=False)
        yield folder


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run main() of a module with these arguments; what it printed is its result."""

    def run(module: ModuleType, arguments: dict[str, Any], check: bool = False) -> dict[str, Any]:
        capsys.readouterr()
        with patch_module_args({**arguments, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        result["failed"] = bool(result.get("failed"))
        return result

    return run


class Server:
    """A private redis-server; its configuration file is what the code under test reads."""

    def __init__(self, folder: Path, **directives: str) -> None:
        self.folder = folder
        settings = {
            "port": "0",
            "unixsocket": str(folder / "redis.sock"),
            "dir": str(folder),
            "save": '""',
            "enable-debug-command": "yes",
            "enable-protected-configs": "yes",
        }
        settings.update({name.replace("_", "-"): value for name, value in directives.items()})
        self.config = folder / "redis.conf"
        self.config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        self.conf = _redis.parse_conf(self.config.read_text())
        self.process = subprocess.Popen(["redis-server", str(self.config)], stdout=subprocess.DEVNULL)
        self.client = _redis.wait_ready(self.conf.address, self.conf.password, time.time() + 10, lambda: self.process.poll() is None)

    def fill(self, seq: int = 7, at: float = 1000.0) -> None:
        """Ten keys in db 0 (two with an expiry), two and the canary in db 1."""
        for number in range(10):
            self.client.call("SET", f"key:{number}", "x" * 50, *(("EX", "900") if number < 2 else ()))
        self.client.call("SELECT", 1)
        self.client.call("HSET", "titan:positions:binance:BTC", "side", "long", "size", "1")
        self.client.call("SET", "titan:x", "1")
        self.client.call("SET", CANARY["key"], json.dumps({"seq": seq, "at": at}))
        self.client.call("SELECT", 0)

    def dump(self) -> bytes:
        self.client.call("SAVE")
        return (self.folder / "dump.rdb").read_bytes()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis_server() -> Iterator[Callable[..., Server]]:
    """Start a redis-server with these directives (an underscore stands for a dash)."""
    started: list[Server] = []
    folders: list[str] = []

    def start(**directives: str) -> Server:
        folders.append(tempfile.mkdtemp(prefix="tdr-redis-"))
        started.append(Server(Path(folders[-1]), **directives))
        return started[-1]

    yield start
    for server in started:
        server.close()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _section(dump: bytes, canary: dict[str, Any] | None = CANARY, server: str = "", modules: tuple[str, ...] = ()) -> dict[str, Any]:
    """The manifest's redis section of this dump, made as a backup makes it."""
    with tempfile.TemporaryDirectory(prefix="tdr-") as folder:
        path = Path(folder) / "dump.rdb"
        path.write_bytes(dump)
        contents = _rdb_walk.walk(str(path), now=time.time())
        user = pwd.getpwuid(os.geteuid()).pw_name
        found = _scratch.load(str(path), folder, 16, canary, user, time.time() + 20, samples=contents.samples, server=server)
    section = _redis_proof.manifest_section(_redis.parse_conf(""), "7.0.15", len(dump), contents, found, list(modules))
    return {**section, "sha256": hashlib.sha256(dump).hexdigest()}


@pytest.fixture(scope="session")
def section_of() -> Callable[..., dict[str, Any]]:
    return _section


def _expected(dump: bytes, section: dict[str, Any] | None = None) -> dict[str, Any]:
    """What redis_stage tells redis_swap of this dump."""
    section = section or _section(dump)
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(dump)
        copy.flush()
        contents = _rdb_walk.walk(copy.name, now=time.time())
    found: dict[str, Any] = json.loads(json.dumps(_redis_proof.expectation(section, CANARY, contents, section["used_memory"], "redis 7.0.15")))
    return found


@pytest.fixture(scope="session")
def expected_of() -> Callable[..., dict[str, Any]]:
    return _expected


class Host:
    """A server with a Redis unit. systemd is played, Redis and its processes are real; unit files, lock and record lie in a private directory."""

    def __init__(self, box: Path, user: str) -> None:
        self.box, self.user = box, user
        self.log: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self.data, self.config, self.stage = box / "redis", box / "redis.conf", box / "redis.stage-r1"
        self.lock, self.record = box / "run" / "redis-swap", box / "redis-live.json"
        self.binary = "redis-server"
        self.restart_always = False
        self.before_start: Callable[[], None] = lambda: None
        self.after_start: Callable[[], None] = lambda: None
        self.after_stop: Callable[[], None] = lambda: None
        self.data.mkdir()
        (self.data / "dump.rdb").write_bytes(b"old")
        self.configure("appendonly yes", "requirepass secret")
        self.params: dict[str, Any] = {
            "stage": str(self.stage),
            "expected": {},
            "restore_point": "p1",
            "run_id": "r1",
            "data_dir": str(self.data),
            "config": str(self.config),
            "unit": "redis-test",
            "user": user,
            "timeout": 20,
        }

    def configure(self, *lines: str, port: int = 0) -> None:
        base = [f"port {port}", f"unixsocket {self.box}/live.sock", f"dir {self.data}", 'save ""', "bind 127.0.0.1"]
        self.config.write_text("".join(f"{line}\n" for line in [*base, *lines]))

    def staged(self, dump: bytes, expected: dict[str, Any] | None = None) -> None:
        self.stage.mkdir()
        (self.stage / "base.rdb").write_bytes(dump)
        self.params["expected"] = _expected(dump) if expected is None else expected

    def client(self) -> _redis.Redis:
        conf = _redis.load_conf(str(self.config))
        tls = _redis.client_context(conf.tls) if conf.tls_only and conf.tls else None
        return _redis.wait_ready(conf.address, conf.password, time.time() + 10, lambda: True, conf.username, tls)

    def run_old(self, keys: int = 5) -> _redis.Redis:
        """A server that lives, with data of its own."""
        (self.data / "dump.rdb").unlink(missing_ok=True)
        self.launch()
        client = self.client()
        for number in range(keys):
            client.call("SET", f"old:{number}", "1")
        return client

    def launch(self) -> None:
        self.process = subprocess.Popen([self.binary, str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def systemctl(self, *words: str, deadline: float) -> str:
        if words[0] not in ("is-active", "show"):
            self.log.append(" ".join(words))
        if words[0] == "show":
            return str(self.process.pid) if self.alive() and self.process else "0"
        if words[0] == "start":
            if self.lock.exists():
                raise _redis_unit.UnitError("Assertion failed on job for redis-test.service")
            self.before_start()
            self.launch()
            self.after_start()
        if words[0] == "stop":
            if self.process:
                self.process.terminate()
                if self.restart_always:
                    # a supervisor that does not know of the stop
                    threading.Thread(target=self.come_back, args=(self.process,), daemon=True).start()
            self.after_stop()
        return "active" if self.alive() else "failed"

    def come_back(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        with contextlib.suppress(_redis_unit.UnitError):
            self.systemctl("start", "redis-test", deadline=0)

    def gates(self, result: dict[str, Any]) -> dict[str, str]:
        return {gate["name"]: gate["verdict"] for gate in result["titan_dr"]["gates"]}

    def failing(self, result: dict[str, Any]) -> dict[str, str]:
        return {gate["name"]: gate["evidence"] for gate in result["titan_dr"]["gates"] if gate["verdict"] != "pass"}

    def close(self) -> None:
        self.restart_always = False
        for process in [self.process, *self.others]:
            if process:
                process.kill()
                process.wait()


@pytest.fixture
def host(box: Path, me: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(box, me)
    monkeypatch.setattr(_redis_unit, "systemctl", host.systemctl)
    monkeypatch.setattr(_redis_unit, "DROP_INS", str(box / "units"))
    monkeypatch.setattr(_redis_unit, "LOCK", str(host.lock))
    monkeypatch.setattr(_state, "STATE_DIR", str(box))
    yield host
    host.close()


class Case:
    """A server to be restored, and restore points to take from."""

    def __init__(self, box: Path, key: Any, user: str) -> None:
        self.box, self.key = box, key
        (box / "state" / "stage").mkdir(parents=True)
        (box / "marker").touch()
        self.section: dict[str, Any] = {}  # what manifests say unless told otherwise
        self.directory = box / "redis.stage-r1"
        self.job = box / "state" / "stage" / "redis-r1.json"
        self.params: dict[str, Any] = {
            "candidates": [],
            "identity": key.identity,
            "data_dir": str(box / "redis"),
            "run_id": "r1",
            "user": user,
            "canary": CANARY,
            "config": str(box / "redis.conf"),
            "incident_started_at": 1100.0,
            "installed_marker": str(box / "marker"),
            "timeout": 30,
        }

    def add(
        self,
        name: str,
        plain: bytes,
        section: dict[str, Any] | None = None,
        *,
        stored: bytes | None = None,
        source: dict[str, Any] | None = None,
        taken_at: float = 990.0,
        recorded: bool = False,
        **details: Any,
    ) -> None:
        """A restore point with this dump and this section in its manifest. `recorded`: the damage was done before digest and size were taken."""
        data, entry = self.key.stored(plain, "points/20260101T000000Z-abcdef/redis.rdb.zst.age")
        place = self.box / f"{name}.object"
        place.write_bytes(data if stored is None else stored)
        seen = {"size": len(plain), "sha256": hashlib.sha256(plain).hexdigest()} if recorded else {}
        self.params["candidates"].append(
            {
                "id": name,
                "taken_at": taken_at,
                "object": entry,
                "details": {**(self.section if section is None else section), **seen, **details},
                "sources": [source or {"store": "near", "kind": "file", "path": str(place)}],
            }
        )


@pytest.fixture
def case(box: Path, key: Any, me: str, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(_state, "STATE_DIR", str(box / "state"))
    return Case(box, key, me)


class Web:
    """An HTTP service in a thread. `answer(method, path, body)` returns (status, headers, body), or a callable that gets the handler."""

    def __init__(self, answer: Callable[[str, str, bytes], Any]) -> None:
        self.requests: list[tuple[str, str]] = []
        self.ending = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                web.requests.append((self.command, self.path))
                reply = answer(self.command, self.path, body)
                self.close_connection = True
                with contextlib.suppress(OSError):
                    if callable(reply):
                        reply(self)
                        return
                    status, headers, content = reply
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), "Connection": "close", **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = handle_one

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Service(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away, or a connection that the test broke."""

        self.server = Service(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    """Start an HTTP service."""
    started: list[Web] = []

    def start(answer: Callable[[str, str, bytes], Any]) -> Web:
        started.append(Web(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


class Key:
    """An age identity that seals objects as a backup does."""

    def __init__(self) -> None:
        self.pair = pyrage.x25519.Identity.generate()
        self.identity = str(self.pair)
        self.recipient = str(self.pair.to_public())

    def seal(self, plain: bytes) -> bytes:
        return bytes(pyrage.encrypt(plain, [self.pair.to_public()]))

    def stored(self, plain: bytes, name: str) -> tuple[bytes, dict[str, Any]]:
        """The object as a store keeps it and its entry in the manifest; the name tells the packing."""
        data = plain
        if ".zst" in name:
            data = subprocess.run(["zstd", "-1", "--stdout", "--quiet"], input=plain, stdout=subprocess.PIPE, check=True).stdout
        sealed = name.endswith(".age")
        data = self.seal(data) if sealed else data
        return data, {"key": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "sealed": sealed}


@pytest.fixture(scope="session")
def key() -> Key:
    return Key()


@pytest.fixture(scope="session")
def other_key() -> Key:
    return Key()


EMPTY_SECTION: dict[str, Any] = {
    "version": "7.0.15",
    "databases": 16,
    "keyspace": {},
    "expired": 0,
    "size": 1,
    "sha256": "0" * 64,
    "rdb_version": 10,
    "checksum": "ok",
    "types": {},
    "expiry": {},
    "fingerprint": {"keys": 0, "sha256": "0" * 64},
    "limits": {"databases": 16, "maxmemory": 0, "policy": "noeviction", "modules": []},
}


def _manifest(key: Key, seconds: int = 0, environment_id: str = "lab", without: tuple[str, ...] = (), **redis: Any) -> dict[str, Any]:
    """A sealed manifest of a restore point taken so many seconds after the first one, `without` some kinds of object."""
    point_id = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(1767225600 + seconds)) + "-abcdef"
    objects = {
        kind: {"key": f"objects/{kind}.tar.age", "size": 1, "sha256": hashlib.sha256(kind.encode()).hexdigest(), "sealed": True, "details": {"kind": kind}}
        for kind in _restore_point.KINDS
    }
    objects["redis"]["key"] = f"points/{point_id}/redis.rdb.zst.age"
    manifest: dict[str, Any] = {
        "format": 1,
        "id": point_id,
        "environment_id": environment_id,
        "taken_at": 1767225600.0 + seconds,
        "objects": objects,
        "server": {},
        "redis": {**EMPTY_SECTION, **redis},
    }
    for kind in without:
        del objects[kind]
        manifest.pop(kind, None)
    return reseal(manifest, key)


def reseal(manifest: dict[str, Any], key: Key) -> dict[str, Any]:
    done = subprocess.run(
        ["age", "--encrypt", "--armor", "--recipient", key.recipient],
        input=_restore_point.canonical_digest(manifest),
        capture_output=True,
        text=True,
        check=True,
    )
    return {**manifest, "seal": done.stdout}


@pytest.fixture
def sealed_manifest() -> Callable[..., dict[str, Any]]:
    return _manifest


class Bucket:
    """As much of an S3 service as listing, reading, writing and asking for the size takes."""

    def __init__(self, web: Callable[..., Web]) -> None:
        self.objects: dict[str, bytes] = {}
        self.service = web(lambda *request: self.answer(*request))
        self.store = {
            "name": "cloud",
            "kind": "s3",
            "endpoint": self.service.url,
            "region": "us-east-1",
            "bucket": "backups",
            "prefix": "titan/",
            "access_key": "ACCESS",
            "secret_key": "STORE-SECRET-KEY",
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urllib.parse.urlsplit(path)
        name = urllib.parse.unquote(parts.path).removeprefix("/backups").lstrip("/")
        query = urllib.parse.parse_qs(parts.query)
        if method == "PUT":
            self.objects[name] = body
            return 200, {}, b""
        if "list-type" in query:
            prefix = query["prefix"][0]
            folders = sorted({prefix + item[len(prefix) :].split("/")[0] + "/" for item in self.objects if item.startswith(prefix)})
            found = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
            return 200, {}, f'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>'.encode()
        if name not in self.objects:
            return 404, {}, b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'
        return 200, {}, self.objects[name]


@pytest.fixture
def bucket(web: Callable[..., Web]) -> Bucket:
    return Bucket(web)
