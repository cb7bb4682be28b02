# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis import Redis, RedisError, canary, wait_ready

# --- the protocol ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(box: Path) -> Iterator[Any]:
    """A server that gives one canned reply to each connection."""
    sockets: list[socket.socket] = []

    def serve(*replies: bytes) -> str:
        path = str(box / f"{len(sockets)}.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        sockets.append(listener)

        def work() -> None:
            with contextlib.suppress(OSError):  # the test is over
                for reply in replies:
                    client, _address = listener.accept()
                    with client:
                        client.recv(1000)
                        client.sendall(reply)

        threading.Thread(target=work, daemon=True).start()
        return path

    yield serve
    for listener in sockets:
        listener.close()


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (b"+OK\r\n", "OK"),
        (b":42\r\n", 42),
        (b"$-1\r\n", None),
        (b"$5\r\na\r\nbc\r\n", "a\r\nbc"),
        (b"*-1\r\n", None),
        (b"*2\r\n:1\r\n*1\r\n$0\r\n\r\n", [1, [""]]),
    ],
)
def test_replies(scripted: Any, reply: bytes, value: object) -> None:
    assert Redis(scripted(reply)).call("X") == value


@pytest.mark.parametrize("code", ["NOAUTH", "WRONGPASS", "LOADING", "ERR", "NOPERM"])
def test_an_error_reply_is_never_an_answer(scripted: Any, code: str) -> None:
    with pytest.raises(RedisError, match=f"^{code} "):
        Redis(scripted(f"-{code} why\r\n".encode())).call("GET", "x")


@pytest.mark.parametrize("reply", [b"", b"$10\r\nabc", b"<html>\r\n", b"+OK", b"*2\r\n:1\r\n", b":x\r\n"])
def test_half_an_answer_raises(scripted: Any, reply: bytes) -> None:
    with pytest.raises(RedisError):
        Redis(scripted(reply)).call("GET", "x")


def test_nothing_listens(box: Path) -> None:
    with pytest.raises(RedisError, match="cannot connect"):
        Redis(str(box / "none.sock"))


# --- a real server --------------------------------------------------------------------------------------------------


def test_password(redis_server: Any) -> None:
    server = redis_server(requirepass="secret")
    with pytest.raises(RedisError, match="NOAUTH"):
        Redis(server.conf.address).call("GET", "x")
    with pytest.raises(RedisError, match="WRONGPASS"):
        Redis(server.conf.address, "wrong")
    assert Redis(server.conf.address, server.conf.password).call("PING") == "PONG"


@pytest.mark.parametrize(("given", "code"), [("", "NOAUTH"), ("wrong", "WRONGPASS")])
def test_waiting_does_not_help_a_wrong_password(redis_server: Any, given: str, code: str) -> None:
    server, started = redis_server(requirepass="secret"), time.time()
    with pytest.raises(RedisError, match=code):
        wait_ready(server.conf.address, given, started + 20, lambda: True)
    assert time.time() - started < 10


def test_keyspace(redis_server: Any) -> None:
    server = redis_server()
    assert _redis.keyspace(server.client) == {}
    server.fill()
    assert _redis.keyspace(server.client) == {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}}


def test_canary(redis_server: Any) -> None:
    client = redis_server().client
    assert canary(client, "c", 1) is None
    client.call("SET", "c", '{"seq": 5, "at": 1.5}')
    assert canary(client, "c", 1) == {"seq": 5, "at": 1.5}
    for text in ("", "7", "null", "[]", "{}", '{"seq": 5}', '{"seq": "x", "at": 1}', '{"seq": Infinity, "at": 1}', "OK"):
        client.call("SET", "c", text)
        with pytest.raises(RedisError, match="is not a canary"):
            canary(client, "c", 1)
    client.call("DEL", "c")
    client.call("HSET", "c", "seq", "1")
    with pytest.raises(RedisError, match="WRONGTYPE"):
        canary(client, "c", 1)


def test_wait_ready_waits_while_loading(scripted: Any) -> None:
    path = scripted(b"-LOADING Redis is loading the dataset in memory\r\n", b"-LOADING again\r\n", b"+PONG\r\n")
    assert wait_ready(path, "", time.time() + 5, lambda: True)


def test_wait_ready_does_not_outlast_a_server_that_keeps_loading(scripted: Any) -> None:
    with pytest.raises(RedisError, match=r"not ready in time: LOADING"):
        wait_ready(scripted(*[b"-LOADING x\r\n"] * 50), "", time.time() + 0.3, lambda: True)


def test_wait_ready_tells_how_loading_goes(redis_server: Any, box: Path) -> None:
    source = redis_server()
    source.client.call("DEBUG", "POPULATE", 2000, "bulk", 50)
    (box / "dump.rdb").write_bytes(source.dump())
    settings = ["--port", "0", "--dir", str(box), "--unixsocket", f"{box}/slow.sock", "--key-load-delay", "500"]
    process = subprocess.Popen(["redis-server", *settings, "--loading-process-events-interval-bytes", "1024"], stdout=subprocess.DEVNULL)
    heard: list[str] = []
    try:
        client = wait_ready(f"{box}/slow.sock", "", time.time() + 20, lambda: process.poll() is None, progress=heard.append)
        assert _redis.keyspace(client)["db0"]["keys"] == 2000
        client.close()
    finally:
        process.kill()
        process.wait()
    assert heard and all(" % of " in text for text in heard)


def test_loading_text() -> None:
    now = int(time.time())
    info = {"loading": "1", "loading_start_time": str(now - 10), "loading_total_bytes": "1000", "loading_loaded_bytes": "250"}
    assert re.fullmatch(r"loaded 25 % of 1000 bytes in 1\d s, about 3\d s to go", _redis.loading_text(info))
    assert _redis.loading_text({"loading": "0"}) == ""
    assert "to go" not in _redis.loading_text({**info, "loading_loaded_bytes": "0"})


def test_who_is_denied_is_not_down(redis_server: Any) -> None:
    server = redis_server(user="weak on >pw +ping")
    with pytest.raises(_redis.AuthError, match="NOPERM"):
        Redis(server.conf.address, "pw", username="weak").call("INFO")
    with pytest.raises(_redis.AuthError, match="WRONGPASS"):
        Redis(server.conf.address, "no", username="weak")


def test_bytes_that_are_no_text(redis_server: Any) -> None:
    client = redis_server().client
    client.call("SET", b"\xff\x00", b"\x80")
    assert client.raw("GET", b"\xff\x00") == b"\x80" and client.call("GET", b"\xff\x00") == "\\x80"
    assert client.raw("KEYS", "*") == [b"\xff\x00"]


def test_wait_ready_ends_when_the_server_dies(box: Path) -> None:
    started = time.time()
    with pytest.raises(RedisError, match="ended while loading"):
        wait_ready(str(box / "none.sock"), "", started + 30, lambda: False)
    assert time.time() - started < 10
