# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_walk, _replica


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_the_data_of_a_running_server(redis_server: Any, tmp_path: Path, diskless: str) -> None:
    port = free_port()
    server = redis_server(port=str(port), requirepass="secret", repl_diskless_sync=diskless, repl_diskless_sync_delay="0")
    server.client.call("SET", "big", "x" * 3_000_000)
    server.fill()
    path = tmp_path / "dump.rdb"
    _replica.fetch({"host": "127.0.0.1", "port": port, "password": "secret"}, str(path), time.time() + 20)
    contents = _rdb_walk.walk(str(path), now=time.time())
    assert contents.checksum == "ok" and contents.keyspace["db0"]["keys"] == 11 and not contents.findings
    # it may be a replica itself, and it has not become ours
    assert server.client.info("replication")["role"] == "master"
    with pytest.raises(_replica.ReplicaError, match="NOAUTH"):
        _replica.fetch({"host": "127.0.0.1", "port": port}, str(tmp_path / "other"), time.time() + 5)
    with pytest.raises(_replica.ReplicaError, match="WRONGPASS"):
        _replica.fetch({"host": "127.0.0.1", "port": port, "password": "x", "username": "nobody"}, str(tmp_path / "other"), time.time() + 5)


@pytest.fixture
def serve() -> Iterator[Callable[..., dict[str, Any]]]:
    """A server that answers each command with the next of these."""
    listeners: list[socket.socket] = []

    def start(*answers: bytes) -> dict[str, Any]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def work() -> None:
            client, dummy = listener.accept()
            client.settimeout(10)
            for answer in answers:
                if not client.recv(10000):
                    break
                client.sendall(answer)
            client.close()

        threading.Thread(target=work, daemon=True).start()
        return {"host": "127.0.0.1", "port": listener.getsockname()[1]}

    yield start
    for listener in listeners:
        listener.close()


MARK = b"m" * 40


@pytest.mark.parametrize("stream", [b"\n\n$9\r\nREDIS0010", b"\n$EOF:" + MARK + b"\r\nREDIS0010" + MARK])
def test_both_ways_in_which_an_rdb_is_sent(serve: Any, tmp_path: Path, stream: bytes) -> None:
    path = tmp_path / "dump"
    _replica.fetch(serve(b"+PONG\r\n", b"+OK\r\n", b"\n+FULLRESYNC abc 0\r\n" + stream), str(path), time.time() + 5)
    assert path.read_bytes() == b"REDIS0010"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((b"-LOADING wait\r\n",), "LOADING"),
        ((b"+PONG\r\n", b"+OK\r\n", b"+CONTINUE\r\n"), "answered PSYNC with"),
        ((b"+PONG\r\n", b"+OK\r\n", b"+FULLRESYNC a 0\r\n+huh\r\n"), "no RDB follows"),
        ((b"+PONG\r\n", b"+OK\r\n", b"+FULLRESYNC a 0\r\n$100\r\nREDIS"), "closed the connection"),
        ((b"+PONG\r\n", b"+OK\r\n", b"+FULLRESYNC a 0\r\n$EOF:short\r\nREDIS"), "announces no end"),
        ((b"+PONG\r\n", b"+OK\r\n", b"+FULLRESYNC a 0\r\n$x\r\nREDIS"), "invalid literal"),
        ((b"x" * 70000,), "something else than Redis"),
    ],
)
def test_what_is_no_data(serve: Any, tmp_path: Path, answers: tuple[bytes, ...], said: str) -> None:
    with pytest.raises(_replica.ReplicaError, match=said):
        _replica.fetch(serve(*answers), str(tmp_path / "dump"), time.time() + 5)


def test_nobody_there_and_nobody_that_answers(serve: Any, tmp_path: Path) -> None:
    with pytest.raises(_replica.ReplicaError, match="refused"):
        _replica.fetch({"host": "127.0.0.1", "port": free_port()}, str(tmp_path / "dump"), time.time() + 5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(_replica.ReplicaError, match=r"timed out|time was over"):
        _replica.fetch({"host": "127.0.0.1", "port": silent.getsockname()[1]}, str(tmp_path / "dump"), time.time() + 0.5)
