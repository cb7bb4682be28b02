# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _diagnosis, _latch, _lease, _redis

CANARY = {"key": "titan:dr:canary", "db": 1}
BOOK = {"db": 1, "position": "titan:positions:{venue}:{symbol}", "order": "titan:orders:{id}"}


@pytest.fixture
def here(redis_server: Any) -> Any:
    return redis_server()


# --- from outside


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def says(listener: socket.socket, words: bytes) -> None:
    def serve() -> None:
        link, _address = listener.accept()
        with link:
            link.sendall(words)
            time.sleep(0.5)

    threading.Thread(target=serve, daemon=True).start()


@pytest.mark.parametrize(("words", "how"), [(b"SSH-2.0-OpenSSH_9.2\r\n", "answers"), (b"220 hello\r\n", "other"), (b"", "silent")])
def test_reach_tells_who_answers(listener: socket.socket, words: bytes, how: str) -> None:
    says(listener, words)
    found = _diagnosis.reach("127.0.0.1", listener.getsockname()[1], 0.3)
    assert found["tcp"] == how and found["text"].startswith("127.0.0.1 port ")


def test_reach_tells_a_refusal_from_silence(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    assert _diagnosis.reach("127.0.0.1", port, 0.3)["tcp"] == "refused"
    assert _diagnosis.reach("no-such-host.invalid", 22, 0.3)["tcp"] == "unresolved"


def test_reach_tells_that_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> None:
        raise TimeoutError

    def lost(*_: Any) -> None:
        raise OSError(113, "No route to host")

    monkeypatch.setattr(socket, "create_connection", late)
    assert _diagnosis.reach("192.0.2.1", 22, 0.1)["tcp"] == "no_answer"
    monkeypatch.setattr(socket, "create_connection", lost)
    assert _diagnosis.reach("192.0.2.1", 22, 0.1)["tcp"] == "no_route"


# --- Redis


def ask(conf: _redis.RedisConf, book: dict[str, Any] | None = None, patience: float = 1.0) -> dict[str, Any]:
    return _diagnosis.ask_redis(conf, CANARY, book or {}, patience)


def test_a_redis_that_is_well(here: Any) -> None:
    here.fill()
    found = ask(here.conf, BOOK)
    assert (found["answer"], found["keys"], found["role"]) == ("ok", 13, "master")
    assert found["canary"] == {"state": "present", "seq": 7, "at": 1000.0}
    assert found["persistence"]["loading"] == "0"
    # one position without an entry price, as conftest writes it
    assert found["book"]["looked"] == 1 and found["book"]["wrong"] == ["titan:positions:binance:BTC: entryPrice"]


def test_a_canary_that_is_gone_or_broken(here: Any) -> None:
    assert ask(here.conf)["canary"] == {"state": "missing"}
    here.client.call("SELECT", 1)
    here.client.call("SET", CANARY["key"], "chirp")
    assert ask(here.conf)["canary"]["state"] == "broken"


def test_a_redis_that_hangs_and_one_that_is_gone(here: Any) -> None:
    os.kill(here.process.pid, signal.SIGSTOP)
    try:
        assert ask(here.conf, patience=0.3)["answer"] == "hung"
    finally:
        os.kill(here.process.pid, signal.SIGCONT)
    here.close()
    assert ask(here.conf)["answer"] == "down"


def test_a_redis_that_turns_us_away(redis_server: Any) -> None:
    server = redis_server(requirepass="sesame")
    conf = _redis.parse_conf((server.folder / "redis.conf").read_text().replace("sesame", "other"))
    found = ask(conf)
    assert found["answer"] == "auth" and "sesame" not in str(found) and "other" not in str(found)


@pytest.mark.parametrize(
    ("kind", "fields", "wrong"),
    [
        ("position", {"side": "long", "size": "1", "entryPrice": "42000.5"}, []),
        ("position", {"side": "flat", "size": "0", "entryPrice": "0"}, []),
        ("position", {"side": "up", "size": "-1", "entryPrice": "nan"}, ["side", "size", "entryPrice"]),
        ("position", {}, ["side", "size", "entryPrice"]),
        ("order", {"side": "buy", "status": "filled", "qty": "0.01"}, []),
        ("order", {"side": "long", "status": "done", "qty": "1e99"}, ["side", "status", "qty"]),
    ],
)
def test_what_no_service_writes(kind: str, fields: dict[str, str], wrong: list[str]) -> None:
    assert _diagnosis.book_faults(kind, fields) == wrong


def test_a_book_with_something_else_under_its_names(here: Any) -> None:
    here.client.call("SELECT", 1)
    here.client.call("SET", "titan:orders:1", "junk")
    here.client.call("HSET", "titan:orders:2", "side", "buy", "status", "filled", "qty", "1")
    found = ask(here.conf, BOOK)["book"]
    assert found == {"looked": 2, "complete": True, "wrong": ["titan:orders:1: type"], "count": 1, "kinds": {"position": 0, "order": 2}}


def test_a_large_book_is_not_read_to_its_end(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_diagnosis, "BOOK_KEYS", 3)
    for number in range(20):
        here.client.call("HSET", f"titan:orders:{number}", "side", "buy", "status", "filled", "qty", "1")
    found = ask(here.conf, {**BOOK, "db": 0})["book"]
    assert found["looked"] == 3 and found["complete"] is False


# --- its files


def test_files_are_verified_and_counted(redis_server: Any) -> None:
    server = redis_server(appendonly="yes")
    server.fill()
    server.dump()
    found = _diagnosis.files(server.conf, "", time.time())
    assert (found["aof"]["verdict"], found["dump"]["verdict"], found["dump"]["keys"]) == ("pass", "pass", 13)
    manifest = server.folder / "appendonlydir" / "appendonly.aof.manifest"
    manifest.unlink()
    assert _diagnosis.files(server.conf, "", time.time())["aof"]["verdict"] == "fail"


def test_a_torn_end_is_what_any_running_server_has(redis_server: Any) -> None:
    server = redis_server(appendonly="yes")
    server.fill()
    log = server.folder / "appendonlydir" / "appendonly.aof.1.incr.aof"
    with log.open("ab") as handle:
        handle.write(b"*3\r\n$3\r\nSET\r\n$1\r\n")
    assert _diagnosis.files(server.conf, "", time.time())["aof"]["verdict"] == "pass"


def test_large_files_are_not_verified_and_that_is_unknown(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = redis_server(appendonly="yes")
    server.fill()
    server.dump()
    monkeypatch.setattr(_diagnosis, "QUICK_BYTES", 10)
    found = _diagnosis.files(server.conf, "", time.time())
    assert {part["verdict"] for part in found.values()} == {"unknown"}


# --- the server


def test_the_unit_and_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = f"LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nNRestarts=2\nMainPID={os.getpid()}\n"
    done = subprocess.CompletedProcess([], 0, shown, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = _diagnosis.unit("redis-server")
    assert (found["active"], found["restarts"], found["pid"]) == ("active", 2, os.getpid()) and found["process"] in "RS"

    def no_systemd(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("systemctl")

    monkeypatch.setattr(subprocess, "run", no_systemd)
    assert _diagnosis.unit("redis-server") == {}


def test_disks_are_looked_at_once_also_where_the_path_is_gone(tmp_path: Path) -> None:
    found = _diagnosis.disks([str(tmp_path), str(tmp_path / "not" / "there")])
    assert len(found) == 1 and 0 <= found[0]["percent"] <= 100 and found[0]["read_only"] is False


def test_memory() -> None:
    found = _diagnosis.memory()
    assert 0 < found["percent"] < 100 and found["processors"] >= 1


def test_the_lease() -> None:
    assert _diagnosis.lease(100.0) == {"state": "none"}
    owner = {"user": "ann", "host": "controller"}
    _lease.write(_lease.Lease(3, "r1", "a1", "rollback", 10.0, 20.0, owner, _lease.HELD))
    found = _diagnosis.lease(time.time() + 5)
    assert (found["state"], found["run_id"], found["owner"]) == ("held", "r1", "ann@controller") and 4 < found["sign_age_s"] < 8
    Path(_lease.lease_path()).write_text("{")
    assert _diagnosis.lease(100.0)["state"] == "damaged"


def test_the_latch(tmp_path: Path) -> None:
    path = tmp_path / "halt"
    assert _diagnosis.latch(str(path), 100.0) == {"state": "none", "venues": []}
    _latch.fasten(str(path), "operator", "r1", 40.0)
    (tmp_path / "halt.d").mkdir()
    (tmp_path / "halt.d" / "bybit").touch()
    found = _diagnosis.latch(str(path), 100.0)
    assert (found["state"], found["generation"], found["age_s"], found["venues"]) == ("halted", 1, 60, ["bybit"])
    path.write_text("not JSON")
    assert _diagnosis.latch(str(path), 100.0)["generation"] == 0


def test_whose_files_they_are(redis_server: Any, me: str) -> None:
    server = redis_server()
    assert _diagnosis.owner_of(server.conf, me)["verdict"] == "pass"
    other = "nobody" if me != "nobody" else "root"
    found = _diagnosis.owner_of(server.conf, other)
    assert found["verdict"] == "fail" and str(server.folder) in found["text"]
    assert _diagnosis.owner_of(server.conf, "no-such-user")["verdict"] == "fail"
