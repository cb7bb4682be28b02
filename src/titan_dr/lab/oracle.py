# SPDX-License-Identifier: GPL-3.0-or-later
"""The writer with an oracle: it numbers every write it makes to the lab's Redis and keeps each acknowledgement outside the server.

After a recovery `count_loss` compares the two: what was acknowledged, minus what is there. `seed` fills a Redis with a trading mix.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

SEQ_KEY = "titan:drill:writer:seq"
LOG_KEY = "titan:drill:writer:log"
ORDER_KEY = "titan:orders:drill-{}"
CANARY_KEY = "titan:dr:canary"


class OracleError(Exception):
    """The oracle cannot say: never to be read as "nothing lost"."""


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class Tunnel:
    """`ssh -N -L` to a port that listens on the loopback of a host. Ready when the far Redis answers; gone when the block ends.

    `options` are ssh's own (`-i`, `-o UserKnownHostsFile=...`, `-p`), `destination` is `user@address`.
    """

    def __init__(self, destination: str, options: Sequence[str] = (), remote_port: int = 6379, timeout: float = 15.0, ssh: str = "ssh") -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self._command = (destination, tuple(options), remote_port, ssh)
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Tunnel:
        destination, options, remote_port, ssh = self._command
        with socket.create_server((self.host, 0)) as probe:
            self.port = probe.getsockname()[1]
        always = ["-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"]
        command = [ssh, "-N", "-L", f"{self.host}:{self.port}:127.0.0.1:{remote_port}", *options, *always, destination]
        # its own session: Ctrl-C is for the drill, which ends the tunnel when it is done with it
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        atexit.register(self.close)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def _wait(self) -> None:
        assert self._process is not None
        destination = self._command[0]
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                said = self._process.stderr.read().decode(errors="replace").strip()
                raise OracleError(f"tunnel to {destination}: ssh ended with {self._process.returncode}: {said}")
            # ssh accepts on the local port whatever is behind it: only a reply (NOAUTH is one) shows that Redis is there
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(1):
                    return
            time.sleep(0.05)
        raise OracleError(f"tunnel to {destination}: nothing answered at the far port within {self._timeout:g} s")

    def close(self) -> None:
        atexit.unregister(self.close)
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass
class Acks:
    """The ack file, read back. Times are the controller's wall clock."""

    sent: dict[int, float] = field(default_factory=dict)
    acknowledged: dict[int, float] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    last_canary: int = 0

    @property
    def unknown(self) -> set[int]:
        """Sent, but neither acknowledged nor refused: the server may have it or not."""
        return self.sent.keys() - self.acknowledged.keys() - self.rejected

    @classmethod
    def read(cls, path: Path) -> Acks:
        acks = cls()
        lines = path.read_bytes().split(b"\n")
        lines.pop()  # empty, or a line cut short when the writer was killed
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                kind, event, n, at = row["kind"], row["event"], int(row["n"]), float(row["at"])
            except (ValueError, KeyError, TypeError) as error:
                raise OracleError(f"{path}:{number}: not a line of the writer: {error!r}") from None
            if kind == "canary":
                acks.last_canary = max(acks.last_canary, n)
            elif event == "sent":
                acks.sent[n] = at
                acks.rejected.discard(n)  # a refused number is used again
            elif event == "ack":
                acks.acknowledged[n] = at
            elif event == "rejected":
                acks.rejected.add(n)
            elif event != "unknown":
                raise OracleError(f"{path}:{number}: unknown event {event!r}")
        return acks


class Writer(threading.Thread):
    """Writes numbered orders at `rate` a second and the canary once a second, until `stop()`.

    Each write is one transaction: SET seq, ZADD log (member n, score wall time), HSET of an order. Each leaves in `ack_file` a line
    `sent` before its first byte goes out and then `ack`, `rejected` (the server said no: nothing was applied, the number is used again)
    or `unknown` (the connection died between send and reply: the number is never used again). An existing file is continued behind its
    highest number.
    It reconnects for ever; `last_error` says why it does not write at the moment.
    """

    def __init__(
        self,
        host: str,
        port: int,
        password: str | None,
        db: int,
        ack_file: Path,
        rate: float = 50.0,
        timeout: float = 2.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="oracle-writer", daemon=True)
        self.acknowledged = self.unknown = self.rejected = 0
        self.last_error = ""
        self._failure: BaseException | None = None
        self._clock = clock
        self._interval = 1.0 / rate
        # no retries below this class: a write repeated behind its back could be applied twice and be counted once
        self._connection = Connection(
            host=host, port=port, password=password, db=db, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=timeout, socket_connect_timeout=timeout
        )
        before = Acks.read(ack_file) if ack_file.exists() else Acks()
        self._n = max(before.sent, default=0) + 1
        self._canary = before.last_canary + 1
        self._path = ack_file
        self._file: IO[str] | None = None
        self._stopping = threading.Event()
        self._progress = threading.Condition()

    def run(self) -> None:
        try:
            if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
                self._cut_torn_line()
            with self._path.open("a", encoding="utf-8") as self._file:
                self._loop()
        except BaseException as error:  # shown by stop() and wait_acknowledged(): a dead writer must not look like a quiet one
            self._failure = error
        finally:
            self._connection.disconnect()
            with self._progress:
                self._progress.notify_all()

    def stop(self, timeout: float = 10.0) -> None:
        self._stopping.set()
        self.join(timeout)
        if self.is_alive():
            raise OracleError(f"the writer did not stop within {timeout:g} s")
        self._raise_failure()

    def wait_acknowledged(self, more: int, timeout: float) -> None:
        """Until `more` further writes were acknowledged; OracleError at the deadline."""
        goal = self.acknowledged + more
        with self._progress:
            done = self._progress.wait_for(lambda: self.acknowledged >= goal or self._failure is not None, timeout)
        self._raise_failure()
        if not done or self.acknowledged < goal:
            raise OracleError(f"{more} more acknowledged writes expected within {timeout:g} s, {goal - self.acknowledged} are missing: {self.last_error}")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise OracleError(f"the writer failed: {_told(self._failure)}") from self._failure

    def _cut_torn_line(self) -> None:
        whole = self._path.read_bytes()
        with self._path.open("rb+") as file:
            file.truncate(whole.rfind(b"\n") + 1)

    def _loop(self) -> None:
        next_write = next_canary = time.monotonic()
        while not self._stopping.wait(max(0.0, next_write - time.monotonic())):
            try:
                self._connection.connect()
            except (RedisError, OSError) as error:  # nothing was sent: no outcome to record
                self.last_error = _told(error)
                self._connection.disconnect()
                next_write = time.monotonic() + 0.1
                continue
            now = time.monotonic()
            if now >= next_canary:
                next_canary = now + 1.0
                value = json.dumps({"seq": self._canary, "at": self._clock()})
                if self._exchange("canary", self._canary, [("SET", CANARY_KEY, value)]) != "rejected":
                    self._canary += 1
            else:
                # no catching up after an outage: a burst would not be the rate that was asked for
                next_write = max(next_write + self._interval, now - 1.0)
                if self._exchange("write", self._n, self._order(self._n)) != "rejected":
                    self._n += 1

    def _order(self, n: int) -> list[tuple[Any, ...]]:
        at = self._clock()
        dice = random.Random(n)
        venue, symbol, base = dice.choice([("binance", "BTCUSDT", 50000.0), ("bybit", "ETHUSDT", 3000.0)])
        order = {
            "n": n, "venue": venue, "symbol": symbol, "side": dice.choice(("buy", "sell")), "qty": f"{dice.uniform(0.001, 0.1):.3f}",
            "price": f"{base * dice.uniform(0.99, 1.01):.2f}", "status": "filled", "clientOrderId": f"drill-{n}", "createdAt": f"{at:.6f}",
        }  # fmt: skip
        fields = [text for pair in order.items() for text in pair]
        return [("MULTI",), ("SET", SEQ_KEY, n), ("ZADD", LOG_KEY, f"{at:.6f}", n), ("HSET", ORDER_KEY.format(n), *fields), ("EXEC",)]

    def _exchange(self, kind: str, n: int, commands: Sequence[tuple[Any, ...]]) -> str:
        self._record(kind, "sent", n)
        replies: list[Any] = []
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(self._connection.read_response(disconnect_on_error=False))
                except (ResponseError, BusyLoadingError) as error:  # said by the server; the stream goes on
                    replies.append(error)
        except (RedisError, OSError) as error:
            self._connection.disconnect()
            return self._outcome(kind, n, "unknown", _told(error))
        verdict = replies[-1]
        if isinstance(verdict, Exception):
            return self._outcome(kind, n, "rejected", _told(next(reply for reply in replies if isinstance(reply, Exception))))
        if isinstance(verdict, list):  # EXEC: an error inside means a part was applied
            failed = [reply for reply in verdict if isinstance(reply, Exception)]
            if failed or len(verdict) != len(commands) - 2:
                return self._outcome(kind, n, "unknown", "; ".join(map(_told, failed)))
        elif verdict not in (b"OK", "OK"):
            return self._outcome(kind, n, "unknown", repr(verdict))
        return self._outcome(kind, n, "ack", "")

    def _outcome(self, kind: str, n: int, event: str, error: str) -> str:
        self._record(kind, event, n, error)
        self.last_error = error
        if kind == "write":
            with self._progress:
                self.acknowledged += event == "ack"
                self.unknown += event == "unknown"
                self.rejected += event == "rejected"
                self._progress.notify_all()
        return event

    def _record(self, kind: str, event: str, n: int, error: str = "") -> None:
        assert self._file is not None
        row: dict[str, Any] = {"kind": kind, "event": event, "n": n, "at": self._clock()}
        self._file.write(json.dumps(row | ({"error": error} if error else {})) + "\n")
        self._file.flush()


@dataclass(frozen=True)
class Loss:
    """What a recovery lost. Times are epoch seconds of the controller's clock.

    A write is *present* when its number is in the log and its order carries that number. Of the acknowledged writes:
    `lost` are not present; `lost_before_restore_point` are lost though they were acknowledged before the restore point was taken (must be 0);
    `holes` are the runs [first, last] of lost numbers, acknowledged before the disaster, behind which a later one is present (must be empty).
    `unknown_outcome`: sent without an answer; they count neither as lost nor as phantom.
    `phantom`: numbers in the log that were never sent, or that the server had refused.

    `last_present_at`: acknowledgement time of the newest present write that was acknowledged before the disaster (None: none is).
    `lost_seconds`: 0 when nothing is lost. Otherwise `disaster_at` minus the acknowledgement time of the last write up to which
    *everything* is present: the last present write when there are no holes, the write before the first hole when there are.
    If not even the first write is present, it counts from that one's acknowledgement.
    """

    acknowledged: int
    present: int
    lost: int
    lost_before_restore_point: int
    phantom: int
    unknown_outcome: int
    first_lost_at: float | None
    last_present_at: float | None
    lost_seconds: float
    holes: list[tuple[int, int]]


def count_loss(client: redis.Redis, ack_file: Path, disaster_at: float, restore_point_taken_at: float) -> Loss:
    """Compare the ack file with what a recovered Redis holds. `client` is connected to the writer's database.

    `restore_point_taken_at` must not be later than the moment whose data the restore point holds (the start of its save).
    The writer must be stopped, or what it does meanwhile may count as lost.
    """
    acks = Acks.read(ack_file)
    if not acks.acknowledged:
        raise OracleError(f"{ack_file}: no acknowledged write, so a loss cannot be counted")
    logged = _logged(client)
    there = _with_order(client, acks.acknowledged.keys() & logged)
    numbers = sorted(acks.acknowledged)
    lost = [n for n in numbers if n not in there]
    before = [n for n in numbers if acks.acknowledged[n] <= disaster_at]
    kept = [n for n in before if n in there]
    holes = [n for n in before if n not in there and kept and n < kept[-1]]
    lost_seconds = 0.0
    if lost:
        complete_until = [acks.acknowledged[n] for n in numbers if n < lost[0]]
        lost_seconds = max(0.0, disaster_at - (complete_until[-1] if complete_until else acks.acknowledged[numbers[0]]))
    return Loss(
        acknowledged=len(numbers),
        present=len(there),
        lost=len(lost),
        lost_before_restore_point=sum(acks.acknowledged[n] < restore_point_taken_at for n in lost),
        phantom=len(logged - acks.acknowledged.keys() - acks.unknown),
        unknown_outcome=len(acks.unknown),
        first_lost_at=acks.acknowledged[lost[0]] if lost else None,
        last_present_at=acks.acknowledged[kept[-1]] if kept else None,
        lost_seconds=lost_seconds,
        holes=_runs(holes, numbers),
    )


def _logged(client: redis.Redis) -> set[int | str]:
    """The members of the log; one that is not a number of ours stays a string and is a phantom."""
    found: set[int | str] = set()
    for start in range(0, client.zcard(LOG_KEY), 20000):
        for member in client.zrange(LOG_KEY, start, start + 19999):
            text = member.decode(errors="replace") if isinstance(member, bytes) else str(member)
            found.add(int(text) if text.isascii() and text.isdigit() and str(int(text)) == text else text)
    return found


def _with_order(client: redis.Redis, numbers: Iterable[int]) -> set[int]:
    todo, found = sorted(numbers), set()
    for start in range(0, len(todo), 5000):
        part = todo[start : start + 5000]
        with client.pipeline(transaction=False) as pipe:
            for n in part:
                pipe.hget(ORDER_KEY.format(n), "n")
            for n, value in zip(part, pipe.execute(), strict=True):
                if value in (str(n), str(n).encode()):
                    found.add(n)
    return found


def _runs(missing: Sequence[int], numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of missing numbers; a number that was never acknowledged does not part two of them."""
    place = {n: i for i, n in enumerate(numbers)}
    runs: list[tuple[int, int]] = []
    for n in missing:
        if runs and place[n] == place[runs[-1][1]] + 1:
            runs[-1] = (runs[-1][0], n)
        else:
            runs.append((n, n))
    return runs


# --- seeding ---

# About 340 MiB of RDB (not compressed) per million keys: 1 GiB at 3 million.
TRADING_MIX: Mapping[str, float] = {"order": 0.75, "fill": 0.17, "book": 0.0799, "stream": 0.0001}
SEED_KEY = "titan:seed:"
_EPOCH_MS = 1_700_000_000_000
_BATCH = 1000


@dataclass(frozen=True)
class Seeded:
    keys: int
    by_kind: dict[str, int]
    bytes_sent: int
    seconds: float


def seed(client: redis.Redis, keys: int, mix: Mapping[str, float] = TRADING_MIX, random_seed: int = 1) -> Seeded:
    """Write `keys` keys `titan:seed:<kind>:<i>` into the client's database; the same arguments always write the same data.

    Kinds: `order` (JSON string of about 350 bytes), `fill` (hash), `book` (small zset), `stream` (100 entries). `mix` gives their weights.
    RESP is spoken on a socket of its own, one batch ahead of the replies, because encoding by a client library is most of the cost.
    """
    if unknown := mix.keys() - _MAKERS.keys():
        raise OracleError(f"mix: unknown kind {', '.join(sorted(unknown))}")
    started = time.monotonic()
    dice = random.Random(random_seed)
    kinds, weights = list(mix), list(mix.values())
    by_kind = dict.fromkeys(kinds, 0)
    sent = 0
    with _raw_connection(client) as raw:
        replies = raw.makefile("rb")
        waiting = 0
        for first in range(0, keys, _BATCH):
            numbers = range(first, min(first + _BATCH, keys))
            entropy = dice.randbytes(len(numbers) * 64).hex()
            parts = []
            for at, (i, kind) in enumerate(zip(numbers, dice.choices(kinds, weights, k=len(numbers)), strict=True)):
                by_kind[kind] += 1
                parts.append(_MAKERS[kind](i, entropy[at * 128 : at * 128 + 128]))
            parts.append(_resp("ECHO", "end-of-batch"))
            payload = "".join(parts).encode("ascii")
            raw.sendall(payload)
            sent += len(payload)
            waiting += 1
            if waiting > 1:
                _check_batch(replies)
                waiting -= 1
        for _ in range(waiting):
            _check_batch(replies)
    return Seeded(keys, by_kind, sent, time.monotonic() - started)


def read_seed(client: redis.Redis, every: int = 1) -> dict[str, str]:
    """Each seeded key (or each `every`th by number) with a digest of its whole value, read as what it is."""
    readers: Mapping[str, Callable[[Any, str], Any]] = {
        "order": lambda pipe, key: pipe.get(key),
        "fill": lambda pipe, key: pipe.execute_command("HGETALL", key),
        "book": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
        "stream": lambda pipe, key: pipe.execute_command("XRANGE", key, "-", "+"),
    }
    keys = [key.decode() if isinstance(key, bytes) else str(key) for key in client.scan_iter(match=f"{SEED_KEY}*", count=5000)]
    keys = sorted(key for key in keys if int(key.rpartition(":")[2]) % every == 0)
    found: dict[str, str] = {}
    for start in range(0, len(keys), _BATCH):
        part = keys[start : start + _BATCH]
        with client.pipeline(transaction=False) as pipe:
            for key in part:
                readers[key.split(":")[2]](pipe, key)
            for key, value in zip(part, pipe.execute(raise_on_error=False), strict=True):
                ordered = sorted(value.items()) if isinstance(value, dict) else value
                found[key] = hashlib.sha256(repr(ordered).encode()).hexdigest()
    return found


def _raw_connection(client: redis.Redis) -> socket.socket:
    known = client.get_connection_kwargs()
    raw = socket.create_connection((known.get("host", "localhost"), known.get("port", 6379)), timeout=60)
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        login = [known["username"]] if known.get("username") else []
        hello = _resp("AUTH", *login, known["password"]) if known.get("password") else ""
        raw.sendall((hello + _resp("SELECT", str(known.get("db") or 0)) + _resp("ECHO", "end-of-batch")).encode())
        with raw.makefile("rb", buffering=0) as replies:
            _check_batch(replies)
    except BaseException:
        raw.close()
        raise
    return raw


def _check_batch(replies: Any) -> None:
    """Read up to the echo that ends a batch. An error reply is a line that begins with a minus (ids of stream entries never do)."""
    while True:
        line = replies.readline()
        if not line:
            raise OracleError("seed: Redis closed the connection")
        if line.startswith(b"-"):
            raise OracleError("seed: Redis refused: " + line.decode(errors="replace").strip())
        if line == b"end-of-batch\r\n":
            return


def _resp(*args: str) -> str:
    return f"*{len(args)}\r\n" + "".join([f"${len(arg)}\r\n{arg}\r\n" for arg in args])


def _order(i: int, e: str) -> str:
    key = f"{SEED_KEY}order:{i}"
    value = (
        f'{{"clientOrderId":"{e[:24]}","exchangeOrderId":"{int(e[24:38], 16)}","venue":"{"binance" if i & 1 else "bybit"}","symbol":"BTCUSDT",'
        f'"side":"{"BUY" if e[0] < "8" else "SELL"}","type":"LIMIT","qty":"0.{int(e[38:44], 16):08d}","price":"{40000 + int(e[44:48], 16) / 4:.2f}",'
        f'"status":"FILLED","createdAt":{_EPOCH_MS + i * 37},"updatedAt":{_EPOCH_MS + i * 37 + int(e[48:51], 16)},"signal":"{e[51:83]}","sign":"{e[83:128]}"}}'
    )
    return f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n"


def _fill(i: int, e: str) -> str:
    venue, side = "bybit" if i & 1 else "binance", "SELL" if e[0] < "8" else "BUY"
    return _resp(
        "HSET", f"{SEED_KEY}fill:{i}", "orderId", e[:24], "venue", venue, "symbol", "ETHUSDT", "side", side,
        "qty", f"{int(e[24:30], 16) / 1e6:.6f}", "price", f"{2000 + int(e[30:34], 16) / 32:.2f}", "fee", f"0.{int(e[34:40], 16):08d}", "tradeId", e[40:72],
        "at", str(_EPOCH_MS + i * 37), "hash", e[72:128],
    )  # fmt: skip


def _book(i: int, e: str) -> str:
    levels = [text for at in range(0, 128, 16) for text in (f"{int(e[at : at + 4], 16) / 8:.2f}", e[at : at + 16])]
    return _resp("ZADD", f"{SEED_KEY}book:{i}", *levels)


def _stream(i: int, e: str) -> str:
    key = f"{SEED_KEY}stream:{i}"
    prices = (f"{40000 + int(e[j : j + 4], 16) / 4:.2f}" for j in range(100))
    rows = [_resp("XADD", key, f"{_EPOCH_MS + i}-{j}", "event", "tick", "price", price, "ref", e[j : j + 24]) for j, price in enumerate(prices)]
    return _resp("DEL", key) + "".join(rows)  # fixed ids make it repeatable, and an existing stream would refuse them


_MAKERS: Mapping[str, Callable[[int, str], str]] = {"order": _order, "fill": _fill, "book": _book, "stream": _stream}
