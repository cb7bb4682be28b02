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

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _restore_point

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


def _manifest(key: Key, seconds: int = 0, environment_id: str = "lab", **redis: Any) -> dict[str, Any]:
    """A sealed manifest of a restore point taken so many seconds after the first one."""
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
        "redis": {"version": "7.0.15", "databases": 16, "keyspace": {}, "expired": 0, "size": 1, **redis},
    }
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
