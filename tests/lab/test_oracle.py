# SPDX-License-Identifier: GPL-3.0-or-later
"""The oracle against a real Redis that is killed, restored from an older dump and tampered with."""

from __future__ import annotations

import json
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from titan_dr.lab.oracle import CANARY_KEY, LOG_KEY, SEQ_KEY, Acks, OracleError, Tunnel, Writer, count_loss, read_seed, seed

REDIS = shutil.which("redis-server") or "/usr/bin/redis-server"
PASSWORD = "oracle-test"
pytestmark = pytest.mark.skipif(not Path(REDIS).exists(), reason="needs redis-server")


class Server:
    def __init__(self, folder: Path, aof: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.folder, self.aof = folder, aof
        self.client = redis.Redis(port=self.port, password=PASSWORD, db=1)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = f'port {self.port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\ndir {self.folder}\nsave ""\nappendonly {"yes" if self.aof else "no"}\n'
        self.process = subprocess.Popen([REDIS, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self.process.stdin is not None
        self.process.stdin.write(config.encode())
        self.process.stdin.close()
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "redis-server did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def writer(self, ack_file: Path, rate: float = 500, port: int | None = None, password: str = PASSWORD, timeout: float = 2.0) -> Writer:
        return Writer("127.0.0.1", port or self.port, password, 1, ack_file, rate=rate, timeout=timeout)

    def last_written(self) -> int:
        value = self.client.get(SEQ_KEY)
        return int(value) if isinstance(value, bytes) else 0


@pytest.fixture(params=[False], ids=["rdb"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, aof=request.param)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def acks(tmp_path: Path) -> Path:
    return tmp_path / "acks.jsonl"


def write_some(server: Server, acks: Path, count: int) -> None:
    writer = server.writer(acks)
    writer.start()
    writer.wait_acknowledged(count, 10)
    writer.stop()


def test_nothing_lost(server: Server, acks: Path) -> None:
    write_some(server, acks, 100)
    loss = count_loss(server.client, acks, time.time(), time.time())
    assert loss.acknowledged == loss.present == server.last_written() >= 100
    assert (loss.lost, loss.lost_before_restore_point, loss.phantom, loss.unknown_outcome, loss.holes) == (0, 0, 0, 0, [])
    assert (loss.lost_seconds, loss.first_lost_at) == (0.0, None)
    assert loss.last_present_at is not None and time.time() - loss.last_present_at < 5
    order = server.client.hgetall("titan:orders:drill-1")
    assert isinstance(order, dict)
    assert {b"venue", b"symbol", b"side", b"qty", b"price", b"status"} <= order.keys()


def test_canary_every_second_and_continued_by_the_next_writer(server: Server, acks: Path) -> None:
    for expected in (3, 6):
        writer = server.writer(acks, rate=20)
        writer.start()
        time.sleep(2.4)  # three canaries: at once, after one and after two seconds
        writer.stop()
        canary = json.loads(server.client.get(CANARY_KEY) or b"{}")
        assert canary["seq"] == expected and time.time() - canary["at"] < 2
    rows = [json.loads(line) for line in acks.read_text().splitlines()]
    assert [row["n"] for row in rows if (row["kind"], row["event"]) == ("canary", "ack")] == [1, 2, 3, 4, 5, 6]
    written = [row["n"] for row in rows if (row["kind"], row["event"]) == ("write", "ack")]
    assert written == list(range(1, len(written) + 1)) and len(written) == server.client.zcard(LOG_KEY)
    assert 60 <= len(written) <= 100  # 20 a second for 4.8 s


@pytest.mark.parametrize("server", [True], indirect=True, ids=["aof"])
def test_kill_minus_nine_and_the_same_writer_goes_on(server: Server, acks: Path) -> None:
    writer = server.writer(acks, rate=2000)
    writer.start()
    writer.wait_acknowledged(200, 10)
    server.kill()
    disaster = time.time()
    time.sleep(0.3)
    assert writer.last_error
    server.start()
    writer.wait_acknowledged(200, 10)
    writer.stop()
    loss = count_loss(server.client, acks, disaster, disaster - 60)
    # the AOF is written before the reply is: kill -9 of Redis alone loses nothing that was acknowledged
    assert (loss.lost, loss.phantom, loss.holes, loss.lost_seconds) == (0, 0, [], 0.0)
    assert loss.unknown_outcome == writer.unknown <= 1
    assert loss.acknowledged == writer.acknowledged >= 400


def test_an_older_dump_is_counted_exactly(server: Server, acks: Path) -> None:
    writer = server.writer(acks)
    writer.start()
    writer.wait_acknowledged(150, 10)
    taken_at = time.time()
    server.client.save()
    writer.wait_acknowledged(300, 10)
    server.kill()  # no AOF, no further save: the dump is what is left
    disaster = time.time()
    writer.stop()
    server.start()
    survived, read = server.last_written(), Acks.read(acks)
    assert 150 <= survived < writer.acknowledged
    loss = count_loss(server.client, acks, disaster, taken_at)
    assert (loss.acknowledged, loss.present, loss.lost) == (writer.acknowledged, survived, writer.acknowledged - survived)
    assert (loss.lost_before_restore_point, loss.phantom, loss.holes) == (0, 0, [])
    assert loss.unknown_outcome == writer.unknown
    assert loss.last_present_at == read.acknowledged[survived]
    assert loss.first_lost_at == read.acknowledged[survived + 1]
    assert loss.lost_seconds == pytest.approx(disaster - read.acknowledged[survived]) and loss.lost_seconds >= 0.5
    # the same data would be a broken restore if the restore point had been taken at the disaster
    assert count_loss(server.client, acks, disaster, disaster + 1).lost_before_restore_point == loss.lost

    write_some(server, acks, 50)  # trading goes on after the recovery: the loss stays what it was, and its tail does not turn into a hole
    after = count_loss(server.client, acks, disaster, taken_at)
    assert (after.lost, after.holes, after.lost_seconds, after.last_present_at) == (loss.lost, [], loss.lost_seconds, loss.last_present_at)
    assert after.acknowledged == loss.acknowledged + after.present - loss.present


def test_holes_and_torn_writes_are_lost(server: Server, acks: Path) -> None:
    write_some(server, acks, 100)
    end, at = time.time(), Acks.read(acks).acknowledged
    server.client.zrem(LOG_KEY, 10, 11, 12)
    server.client.delete("titan:orders:drill-40")  # the number is logged, its order is not there
    server.client.hset("titan:orders:drill-41", "n", 7)  # nor is somebody else's order
    server.client.zrem(LOG_KEY, max(at))  # the newest: a lost tail, not a hole
    loss = count_loss(server.client, acks, end, end)
    assert loss.holes == [(10, 12), (40, 41)]
    assert (loss.lost, loss.lost_before_restore_point, loss.present) == (6, 6, len(at) - 6)
    assert (loss.first_lost_at, loss.last_present_at) == (at[10], at[max(at) - 1])
    assert loss.lost_seconds == pytest.approx(end - at[9])  # complete only up to the first hole


def test_phantoms(server: Server, acks: Path) -> None:
    write_some(server, acks, 20)
    server.client.zadd(LOG_KEY, {"999999": 1.0, "garbage": 2.0, "007": 3.0})
    loss = count_loss(server.client, acks, time.time(), time.time())
    assert (loss.phantom, loss.lost) == (3, 0)


def test_empty_server_loses_everything(server: Server, acks: Path) -> None:
    write_some(server, acks, 20)
    server.client.flushall()
    disaster, at = time.time(), Acks.read(acks).acknowledged
    loss = count_loss(server.client, acks, disaster, 0)
    assert (loss.present, loss.lost, loss.last_present_at, loss.holes) == (0, len(at), None, [])
    assert loss.lost_seconds == pytest.approx(disaster - at[1])


class CuttingProxy(threading.Thread):
    """Passes bytes to Redis; on the nth EXEC it lets Redis act and then cuts the connection instead of passing the reply."""

    def __init__(self, port: int, cut_at: int) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.backend, self.left = self.listener.getsockname()[1], port, cut_at

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.backend)) as backend:
                while data := client.recv(65536):
                    backend.sendall(data)
                    reply = backend.recv(65536)
                    if b"EXEC" in data:
                        self.left -= 1
                        while reply.count(b"+QUEUED") != 3 or b"*3" not in reply:
                            reply += backend.recv(65536)
                        if self.left == 0:
                            break
                    client.sendall(reply)


def test_an_answer_that_never_came_is_unknown(server: Server, acks: Path) -> None:
    proxy = CuttingProxy(server.port, cut_at=30)
    proxy.start()
    writer = server.writer(acks, port=proxy.port)
    writer.start()
    writer.wait_acknowledged(60, 10)
    writer.stop()
    proxy.listener.close()
    read = Acks.read(acks)
    assert (read.unknown, 30 in read.acknowledged, 31 in read.acknowledged) == ({30}, False, True)
    assert server.client.zscore(LOG_KEY, 30) is not None  # Redis did act
    loss = count_loss(server.client, acks, time.time(), time.time())
    assert (loss.unknown_outcome, loss.phantom, loss.lost, loss.holes) == (1, 0, 0, [])


def test_a_silent_server_is_unknown_not_acknowledged(server: Server, acks: Path) -> None:
    writer = server.writer(acks, rate=100, timeout=0.5)
    writer.start()
    writer.wait_acknowledged(20, 10)
    server.client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
    deadline = time.monotonic() + 5
    while not writer.unknown:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    writer.wait_acknowledged(20, 10)
    writer.stop()
    loss = count_loss(server.client, acks, time.time(), time.time())
    assert loss.unknown_outcome == writer.unknown >= 1
    assert (loss.lost, loss.phantom, loss.holes) == (0, 0, [])


def test_refused_writes_use_their_number_again(server: Server, acks: Path) -> None:
    writer = server.writer(acks)
    writer.start()
    writer.wait_acknowledged(20, 10)
    server.client.config_set("maxmemory", 1)
    deadline = time.monotonic() + 5
    while not writer.rejected:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "OutOfMemory" in writer.last_error
    server.client.config_set("maxmemory", 0)
    writer.wait_acknowledged(20, 10)
    writer.stop()
    loss = count_loss(server.client, acks, time.time(), time.time())
    assert (loss.lost, loss.phantom, loss.unknown_outcome, loss.acknowledged) == (0, 0, 0, server.last_written())


def test_a_writer_that_cannot_write_says_so(server: Server, acks: Path, tmp_path: Path) -> None:
    wrong = server.writer(acks, password="wrong")
    wrong.start()
    with pytest.raises(OracleError, match="AuthenticationError"):
        wrong.wait_acknowledged(1, 0.5)
    wrong.stop()
    assert PASSWORD not in acks.read_text()
    with pytest.raises(OracleError, match="no acknowledged write"):  # unknown is not zero
        count_loss(server.client, acks, time.time(), time.time())
    unwritable = server.writer(tmp_path / "missing" / "acks.jsonl")
    unwritable.start()
    with pytest.raises(OracleError, match="FileNotFound"):
        unwritable.wait_acknowledged(1, 5)


def test_a_torn_last_line_is_tolerated_a_torn_middle_is_not(server: Server, acks: Path) -> None:
    write_some(server, acks, 10)
    known = max(Acks.read(acks).sent)
    with acks.open("a") as file:
        file.write('{"kind": "write", "event": "sent", "n": ')
    assert max(Acks.read(acks).sent) == known
    write_some(server, acks, 10)
    assert count_loss(server.client, acks, time.time(), time.time()).phantom == 0
    acks.write_text("not json\n" + acks.read_text())
    with pytest.raises(OracleError, match=":1:"):
        Acks.read(acks)


# --- seeding ---


def test_seed_is_complete_and_repeatable(server: Server) -> None:
    first = seed(server.client, 5500, mix={"order": 0.7, "fill": 0.2, "book": 0.09, "stream": 0.01})
    assert first.keys == server.client.dbsize() == sum(first.by_kind.values()) == 5500
    assert all(first.by_kind.values())
    sample = {kind: next(iter(server.client.scan_iter(f"titan:seed:{kind}:*", count=5000))) for kind in first.by_kind}
    assert server.client.xlen(sample["stream"]) == 100 and server.client.zcard(sample["book"]) == 8
    value = server.client.get(sample["order"])
    assert isinstance(value, bytes) and json.loads(value)["status"] == "FILLED" and 320 <= len(value) <= 380
    dumps = {key: server.client.dump(key) for key in sample.values()}
    seed(server.client, 5500, mix={"order": 0.7, "fill": 0.2, "book": 0.09, "stream": 0.01})  # again, over the first
    assert server.client.dbsize() == 5500
    assert {key: server.client.dump(key) for key in sample.values()} == dumps
    server.client.flushdb()
    seed(server.client, 100, random_seed=2)
    assert server.client.dbsize() == 100


def test_seeded_data_is_read_as_a_whole(server: Server) -> None:
    """One changed field, entry, score or missing key shows, and nothing else does."""
    mix = {"order": 0.5, "fill": 0.3, "book": 0.19, "stream": 0.01}
    seed(server.client, 1000, mix=mix)
    before = read_seed(server.client)
    assert len(before) == 1000 and len(read_seed(server.client, every=10)) == 100
    server.client.save()
    server.kill()  # as in a restore: other encodings in memory, the same data
    server.start()
    assert read_seed(server.client) == before
    of = {kind: next(key for key in before if f":{kind}:" in key) for kind in mix}
    server.client.append(of["order"], "x")
    server.client.hset(of["fill"], "qty", "0")
    server.client.zincrby(of["book"], 0.5, server.client.zrange(of["book"], 0, 0)[0])
    server.client.xtrim(of["stream"], maxlen=99, approximate=False)
    gone = next(key for key in before if key not in of.values())
    server.client.delete(gone)
    after = read_seed(server.client)
    assert {key for key in before if after.get(key) != before[key]} == {*of.values(), gone}


def test_seed_is_fast(server: Server) -> None:
    done = seed(server.client, 100_000)
    assert server.client.dbsize() == 100_000
    assert done.seconds < 6  # a million in a minute


def test_seed_reports_refusals(server: Server) -> None:
    server.client.config_set("maxmemory", "2mb")
    with pytest.raises(OracleError, match="OOM"):
        seed(server.client, 20_000)
    with pytest.raises(OracleError, match="WRONGPASS"):
        seed(redis.Redis(port=server.port, password="wrong", db=1), 10)
    with pytest.raises(OracleError, match="unknown kind"):
        seed(server.client, 10, mix={"ordr": 1})


# --- the tunnel ---

FAKE_SSH = """#!{python}
# Stands in for ssh: forwards as -L says; "-o Fail=yes" ends at once.
import socket, sys, threading
if "Fail=yes" in sys.argv:
    sys.exit("Permission denied (publickey).")
_, port, host, target = sys.argv[sys.argv.index("-L") + 1].split(":")
def copy(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
with socket.create_server(("127.0.0.1", int(port))) as listener:
    while True:
        client, _ = listener.accept()
        try:
            far = socket.create_connection((host, int(target)))
        except OSError:
            client.close()
            continue
        for pair in ((client, far), (far, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@pytest.fixture
def fake_ssh(tmp_path: Path) -> str:
    path = tmp_path / "ssh"
    path.write_text(FAKE_SSH.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_writer_through_a_tunnel(server: Server, acks: Path, fake_ssh: str) -> None:
    with Tunnel("root@host", ["-i", "key"], remote_port=server.port, ssh=fake_ssh) as tunnel:
        process = tunnel._process
        assert process is not None and process.poll() is None
        writer = Writer(tunnel.host, tunnel.port, PASSWORD, 1, acks, rate=500)
        writer.start()
        writer.wait_acknowledged(50, 10)
        writer.stop()
    assert process.poll() is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((tunnel.host, tunnel.port), timeout=1)
    assert count_loss(server.client, acks, time.time(), time.time()).lost == 0


def test_tunnel_that_fails_says_why(server: Server, fake_ssh: str) -> None:
    with pytest.raises(OracleError, match="Permission denied"), Tunnel("root@host", ["-o", "Fail=yes"], remote_port=server.port, ssh=fake_ssh):
        pass
    with socket.create_server(("127.0.0.1", 0)) as probe:
        closed = probe.getsockname()[1]
    with pytest.raises(OracleError, match="nothing answered"), Tunnel("root@host", remote_port=closed, timeout=0.8, ssh=fake_ssh):
        pass
