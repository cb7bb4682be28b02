# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis import Redis, RedisError, canary, parse_conf, wait_ready

# --- redis.conf -----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_redis() -> None:
    conf = parse_conf("")
    assert (conf.port, conf.unixsocket, conf.dbfilename, conf.appendonly, conf.databases, conf.password) == (6379, "", "dump.rdb", False, 16, "")
    assert (conf.appendfilename, conf.appenddirname, conf.tls_only) == ("appendonly.aof", "appendonlydir", False)
    assert conf.address == ("127.0.0.1", 6379)


def test_directives() -> None:
    conf = parse_conf(
        '# requirepass commented\n\n PORT 0\nunixsocket /run/r.sock\nrequirepass first\nrequirepass "a \\"b\\" # c"\n'
        'dir /srv/redis\ndbfilename live.rdb\nappendonly YES\nappendfilename "a.aof"\nappenddirname aofs\ndatabases 4\nsave ""\n'
    )
    assert conf.password == 'a "b" # c', "the last one counts, quotes are taken off"
    assert (conf.address, conf.directory, conf.dbfilename, conf.appendonly) == ("/run/r.sock", "/srv/redis", "live.rdb", True)
    assert (conf.appendfilename, conf.appenddirname, conf.databases) == ("a.aof", "aofs", 4)


@pytest.mark.parametrize(
    ("written", "password"),
    [(r"a\b", r"a\b"), (r"'a\b'", r"a\b"), (r'"a\\b"', r"a\b"), (r'"\x41\x42"', "AB"), (r"'it\'s'", "it's"), ('""', ""), ("a#b", "a#b"), ("a'b", "a'b")],
)
def test_a_password_is_read_as_redis_reads_it(written: str, password: str) -> None:
    if written == "a'b":
        with pytest.raises(RedisError, match="line 1"):
            parse_conf(f"requirepass {written}")
    else:
        assert parse_conf(f"requirepass {written}").password == password


@pytest.mark.parametrize("written", [r"a\b", r"'a\b'", r'"a\\b\x41"', r"'it\'s'"])
def test_redis_agrees_on_the_password(redis_server: Any, written: str) -> None:
    server = redis_server(requirepass=written)
    assert server.client.call("PING") == "PONG", "the fixture connects with the password as parse_conf read it"


def test_renamed_and_disabled_commands() -> None:
    conf = parse_conf('rename-command CONFIG ""\nrename-command bgsave hidden-save\n')
    assert (conf.command("config"), conf.command("BGSAVE"), conf.command("info")) == ("", "hidden-save", "INFO")


def test_tls_only() -> None:
    assert parse_conf("port 0\ntls-port 6380\n").tls_only
    assert not parse_conf("port 6379\ntls-port 6380\n").tls_only


@pytest.mark.parametrize(("text", "line"), [("port 1\ninclude /etc/redis/local.conf", 2), ('requirepass "open', 1), ("port many", 0), ("databases x", 0)])
def test_a_file_that_is_not_understood_is_refused(text: str, line: int) -> None:
    with pytest.raises(RedisError, match=f"line {line}:" if line else "not a number"):
        parse_conf(text)


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
    assert time.time() - started < 2


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


def test_wait_ready_ends_when_the_server_dies(box: Path) -> None:
    started = time.time()
    with pytest.raises(RedisError, match="ended while loading"):
        wait_ready(str(box / "none.sock"), "", started + 30, lambda: False)
    assert time.time() - started < 1
