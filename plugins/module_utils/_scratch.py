# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""The scratch Redis: loads a dump in private and tells what is in it, before any live data is touched.

Redis serves as the judge because loading is the only complete check of a dump; `sanitize-dump-payload yes` makes it look inside every value.
Its exit status says nothing (it is 0 after module data or a broken function library was refused): only an answer to PING and the counts do.
It listens on a socket in its own directory only, saves nothing, has the memory that is free and the time it was given, and is gone afterwards.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _restore_point, _target
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding, Target

SERVERS = {"redis": "redis-server", "valkey": "valkey-server"}
SANITIZE = "yes"
# With an evicting policy keys would be gone before they are counted: the limit is held against used_memory afterwards.
_CONFIG = (
    "port 0",
    "unixsocketperm 700",
    'save ""',
    "maxmemory 0",
    "rdbchecksum yes",
    "crash-memcheck-enabled no",
    "loglevel notice",
    'logfile ""',
    "daemonize no",
)
# With an append only file: loaded to its last byte or not at all, and not rewritten.
_LOG_CONFIG = ("appendonly yes", "appenddirname appendonlydir", "aof-load-truncated no", "auto-aof-rewrite-percentage 0", "appendfsync no")
# What is asked of a scratch server keeps its name, whatever the target calls it.
_ASKED = ("AUTH", "PING", "INFO", "SELECT", "GET", "SAVE")
_READ_AT_ONCE = 100  # keys


class ProofError(Exception):
    """The dump is not what the manifest says, or Redis does not load it."""


class NotProven(ProofError):
    """The scratch server could not be asked: that says nothing of the dump."""


class Refused(ProofError):
    """The scratch server does not load the dump, or dies of it. `keys` are those that were being read, as (database, key)."""

    def __init__(self, text: str, keys: t.Sequence[tuple[int, bytes]] = ()) -> None:
        super().__init__(text)
        self.keys = list(keys)


class _ReadError(_redis.RedisError):
    """What came instead of the values of these keys."""

    def __init__(self, text: str, database: int, keys: list[bytes]) -> None:
        super().__init__(text)
        self.keys = [(database, key) for key in keys]


# --- the server -----------------------------------------------------------------------------------------------------


def locate(server: str = "", family: str = "redis") -> str:
    """The server program: this path, or what is installed of this family; NotProven when there is none."""
    found = shutil.which(server or SERVERS[family])
    if not found:
        raise NotProven(f"{server or SERVERS[family]} is not installed: nothing can prove the dump")
    return found


def version(program: str) -> tuple[str, str]:
    """("redis", "7.0.15") as the program says; NotProven when it says nothing of the kind."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
        return _target.server_and_version(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
        raise NotProven(f"{program} does not tell its version: {exc}") from exc


def free_memory() -> int:
    """Bytes that can be had without pushing anything else out."""
    with open("/proc/meminfo", encoding="ascii") as handle:
        return int(next(line for line in handle if line.startswith("MemAvailable:")).split()[1]) * 1024


def _quoted(text: str) -> str:
    return '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))


@contextlib.contextmanager
def running(
    directory: str, user: str, deadline: float, dump: str = "", server: str = "", target: Target | None = None, aof: str = ""
) -> t.Iterator[_redis.Redis]:
    """A scratch server of this target in `directory` (accessible to `user`), with `dump` (a name in it) loaded; Refused or NotProven when it has not.

    With `aof` it loads the append only file of that name instead, out of `directory`/appendonlydir or as a single file; SAVE writes it to `dump`.
    The same errors when the connection breaks while it is being asked.
    """
    target = target or Target()
    program = locate(server, target.server)
    socket_path = os.path.join(directory, "scratch.sock")
    # a renamed command stands in the file by its new name
    renamed = {name: new for name, new in (target.renamed or {}).items() if aof and new and name not in _ASKED}
    config = [
        *_CONFIG,
        *((*_LOG_CONFIG, f"appendfilename {_quoted(aof)}") if aof else ("appendonly no",)),
        *(f"rename-command {name} {_quoted(new)}" for name, new in renamed.items()),
        f"sanitize-dump-payload {SANITIZE}",
        f"unixsocket {_quoted(socket_path)}",
        f"dir {_quoted(directory)}",
        f"dbfilename {_quoted(os.path.basename(dump) or 'none.rdb')}",
        *([f"databases {target.databases}"] if target.databases else []),
        *(f"loadmodule {' '.join(map(_quoted, words))}" for words in target.loadmodule),
    ]
    # Besides the `finally` below: the kernel ends the server when this process is killed.
    tether = shutil.which("setpriv")
    argv = [*([tether, "--pdeathsig", "KILL"] if tether else []), program, "-"]
    identity: dict[str, t.Any] = {}
    if os.geteuid() == 0 and user:
        identity = {"user": user, "group": user, "extra_groups": []}
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log, **identity)
        except OSError as exc:
            raise NotProven(f"{program} cannot be started as {user or 'this user'}: {exc}") from exc
        try:
            # It waits for its configuration: from here on it has this much memory, and is the first to go when there is none.
            free = free_memory()
            with contextlib.suppress(OSError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (free, free))
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))  # it would hold the data
                with open(f"/proc/{process.pid}/oom_score_adj", "w", encoding="ascii") as handle:
                    handle.write("1000")
            with contextlib.suppress(BrokenPipeError), t.cast("t.IO[bytes]", process.stdin) as stdin:
                stdin.write("\n".join(config).encode())
            _redis.wait_ready(socket_path, "", deadline, lambda: process.poll() is None).close()
            # Reading a big value may take longer than an answer to PING.
            client = _redis.Redis(socket_path, timeout=max(1.0, deadline - time.time()))
            try:
                yield client
            finally:
                client.close()
        except _redis.RedisError as exc:
            if _answers(socket_path):
                raise ProofError(str(exc)) from exc
            # Redis has the same words for a file that ends early and for memory it does not get; data rarely takes more than this.
            scarce = free < 20 * _size(directory, aof or os.path.basename(dump))
            raise _why(exc, process, log, deadline, ["Out Of Memory", *(["OOM loading"] if scarce else [])]) from exc
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket_path)


def _size(directory: str, name: str) -> int:
    """Bytes of what is loaded; 0 when nothing is."""
    folder = os.path.join(directory, "appendonlydir")
    paths = [os.path.join(folder, part) for part in os.listdir(folder)] if os.path.isdir(folder) else [os.path.join(directory, name)] * bool(name)
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def _answers(socket_path: str) -> bool:
    """It serves: what was raised is an answer."""
    try:
        client = _redis.Redis(socket_path, timeout=1)
        client.call("PING")
        client.close()
    except _redis.RedisError:
        return False
    return True


def _why(exc: _redis.RedisError, process: subprocess.Popen[bytes], log: t.IO[bytes], deadline: float, starved: list[str]) -> ProofError:
    """Whether an error is the dump's fault: only a server that started, had memory and time, and ended by itself says so."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, min(5.0, deadline - time.time())))  # a crash report takes its time
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    started = next((at for at, line in enumerate(lines, 1) if "Server initialized" in line), None)
    said = [line.partition(" # ")[2] for line in lines[started or 0 :] if " # " in line and "WARNING" not in line]
    text = str(exc).partition(" (cannot connect")[0]  # it is known by now that it ended
    if said:
        text += f"; its log says: {said[0]}"
    ended = process.poll()
    if ended == -signal.SIGKILL or any(words in line for line in lines for words in starved):
        return NotProven(f"{text}: most likely there is not enough memory for it here")
    if ended is None:
        return NotProven(text)
    if started is None:
        return NotProven(f"the scratch server did not start: {' '.join(lines[-3:])[-500:] or f'status {ended}'}")
    if any("Permission denied" in line or "Can't load module" in line for line in lines[started:]):
        return NotProven(text)
    return Refused(text, exc.keys if isinstance(exc, _ReadError) else ())


# --- what it holds --------------------------------------------------------------------------------------------------


def prove(dump: str, directory: str, expected: dict[str, t.Any], user: str, deadline: float, **options: t.Any) -> dict[str, t.Any]:
    """Load `dump` (a path in `directory`) and compare it with the manifest's redis section; returns what was found, raises ProofError. Options as of `load`.

    `expected` has `keyspace` ({"db0": {"keys", "expires"}}), `expired` (keys that had expired when these were counted), `databases` (int) and
    `canary` ({"key", "db", "seq", "at"} or None).
    """
    found = load(dump, directory, expected["databases"], expected.get("canary"), user, deadline, **options)
    problems = judge(expected, found)
    if problems:
        raise ProofError("; ".join(problems))
    return found


def load(
    dump: str,
    directory: str,
    databases: int,
    canary: dict[str, t.Any] | None,
    user: str,
    deadline: float,
    *,
    server: str = "",
    target: Target | None = None,
    samples: t.Sequence[tuple[int, bytes]] | None = None,
    typed: bool = False,
) -> dict[str, t.Any]:
    """Load `dump` (a path in `directory`, readable by `user`) and tell what is in it; ProofError when Redis refuses it.

    With `samples` their fingerprint is taken too, with `typed` every key is read.
    """
    target = dataclasses.replace(target or Target(), databases=databases)
    with running(directory, user, deadline, dump, server, target) as client:
        found = examine(client, canary)
        if samples is not None:
            found["fingerprint"] = fingerprint(client, samples)
        if typed:
            found["typed"] = typed_read(client, deadline)
    return found


def examine(client: _redis.Redis, canary: dict[str, t.Any] | None) -> dict[str, t.Any]:
    """What a loaded server holds: keyspace, keys that were loaded and that expired while loading, canary, memory."""
    # One reply for all counts: keys go on expiring while we look.
    info = client.info("default")
    loaded = info.get("rdb_last_load_keys_loaded")
    return {
        "keyspace": _redis.keyspace_of(info),
        # Before 7.0 Redis does not count what it loads and drops.
        "loaded": None if loaded is None else int(loaded),
        "expired": int(info.get("rdb_last_load_keys_expired", "0")) + int(info["expired_keys"]),
        "used_memory": int(info["used_memory"]),
        "canary": _redis.canary(client, canary["key"], canary["db"]) if canary else None,
    }


def judge(expected: dict[str, t.Any], found: dict[str, t.Any]) -> list[str]:
    """Pure comparison of a loaded dump with the manifest; the list is empty when they agree."""
    problems = _restore_point.compare_keyspace(expected["keyspace"], found["keyspace"])
    want = _restore_point.total_keys(expected["keyspace"]) + expected["expired"]
    have = _restore_point.total_keys(found["keyspace"])
    if found["loaded"] is not None and have + found["expired"] != want:
        problems.append(f"{have} keys loaded and {found['expired']} expired, {want} in the manifest")
    canary = expected.get("canary")
    if canary and (not found["canary"] or found["canary"]["seq"] != canary["seq"]):
        problems.append(f"canary is {found['canary'] and found['canary']['seq']}, {canary['seq']} in the manifest")
    return problems


# --- the proof of one file ------------------------------------------------------------------------------------------


def proof(path: str, contents: Contents, target: Target | None, *, user: str = "", deadline: float, server: str = "") -> tuple[list[Finding], dict[str, t.Any]]:
    """Have a scratch server load the file and read every key; hold what it found against the walk's contents.

    Returns findings, and what `load` found with the server's `version` (empty when nothing was loaded). A server of another version than the target's
    proves nothing for it, and is not asked.
    """
    target = target or Target(server="valkey" if contents.magic == "VALKEY" else "redis")
    try:
        program = locate(server, target.server)
        family, number = version(program)
        if target.version and (family, _target.family(number)) != (target.server, _target.family(target.version)):
            raise NotProven(f"{program} is {family} {number}, the target is {target.server} {target.version}")
        # Without a word of the target's databases the file has as many as it needs.
        databases = target.databases or max([15, *(int(name[2:]) for name in contents.keyspace)]) + 1
        with _box(user) as directory:
            dump = os.path.join(directory, "dump.rdb")
            os.symlink(os.path.abspath(path), dump)
            try:
                found = load(dump, directory, databases, None, user, deadline, server=program, target=target, samples=contents.samples, typed=True)
            except Refused as exc:
                if not exc.keys:
                    raise
                database, key = _deadly(exc.keys, directory, user, deadline, program, dataclasses.replace(target, databases=databases))
                return [Finding("load-refused", f"{family} {number} loads it and dies of reading a key: {exc}", key=_shown(key), database=database)], {}
    except Refused as exc:
        return [Finding("load-refused", f"{family} {number}: {exc}")], {}
    except ProofError as exc:
        return [Finding("not-proven", str(exc))], {}
    return compare(contents, found) + _target.memory(found["used_memory"], target), {**found, "version": f"{family} {number}"}


def _deadly(keys: t.Sequence[tuple[int, bytes]], directory: str, user: str, deadline: float, program: str, target: Target) -> tuple[int, bytes]:
    """The key among these that the server dies of reading; the first when there is no time to find out."""
    reading = keys[0]
    with contextlib.suppress(ProofError), running(directory, user, deadline, "dump.rdb", program, target) as client:
        script = client.call("SCRIPT", "LOAD", _READ)
        client.call("SELECT", reading[0])
        for reading in keys:
            client.raw("EVALSHA", script, 1, reading[1])
        reading = keys[0]
    return reading


@contextlib.contextmanager
def _box(user: str) -> t.Iterator[str]:
    """A directory of the scratch's own, with a path that is short enough for a socket."""
    directory = tempfile.mkdtemp(prefix="titan-dr-")
    try:
        if os.geteuid() == 0 and user:
            owner = pwd.getpwnam(user)
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        yield directory
    except KeyError as exc:
        raise NotProven(f"there is no user {user} to run the scratch server") from exc
    finally:
        shutil.rmtree(directory)


def compare(contents: Contents, found: dict[str, t.Any]) -> list[Finding]:
    """What a scratch server holds against what the walk counted; keys may have expired, and empty ones are dropped."""
    dropped = collections.Counter(finding.database for finding in contents.findings if finding.code == "empty-container")
    wanted = {name: {**counts, "keys": counts["keys"] - dropped[int(name[2:])]} for name, counts in contents.keyspace.items()}
    texts = [text.replace("the manifest", "the walk") for text in judge({"keyspace": wanted, "expired": 0}, found)]
    findings = [Finding("load-differs", text) for text in texts]
    may_go = sum(counts["expires"] for counts in contents.keyspace.values()) + dropped.total()
    typed = found["typed"]
    for name in sorted(set(contents.types) | set(typed["types"])):
        have, want = typed["types"].get(name, 0), contents.types.get(name, 0)
        if not want - may_go <= have <= want:
            findings.append(Finding("load-differs", f"{have} keys of type {name}, the walk counted {want}"))
    for differing in typed["differing"]:
        text = f"holds {differing['read']} elements, and says {differing['length']}"
        findings.append(Finding("load-differs", text, key=_shown(differing["key"]), database=differing["database"]))
    if found["fingerprint"]["keys"] + dropped.total() < len(contents.samples):
        findings.append(Finding("load-differs", f"{found['fingerprint']['keys']} of {len(contents.samples)} sample keys are there"))
    return findings


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


# --- reading every key ----------------------------------------------------------------------------------------------

# Reads its keys, and returns {elements, {type, keys, ...}, {key, length, elements read, ...}}; the last where the two differ.
# Fields of a hash may expire and a set may be in the middle of a rehash: their count is no proof.
_READ = """
local step = 1000
local elements, types, differing = 0, {}, {}
local function scan(command, key, per)
  local cursor, n = '0', 0
  repeat
    local reply = redis.call(command, key, cursor, 'COUNT', step)
    cursor, n = reply[1], n + #reply[2] / per
  until cursor == '0'
  return n
end
local function slices(command, key, length, per, ...)
  local n = 0
  for at = 0, length - 1, step do
    n = n + #redis.call(command, key, at, at + step - 1, ...) / per
  end
  return n
end
for dummy, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  local length, n
  if kind == 'string' then
    n = 1
    for at = 0, redis.call('STRLEN', key) - 1, 1048576 do
      redis.call('GETRANGE', key, at, at + 1048575)
    end
  elseif kind == 'list' then
    length = redis.call('LLEN', key)
    n = slices('LRANGE', key, length, 1)
  elseif kind == 'zset' then
    length = redis.call('ZCARD', key)
    n = slices('ZRANGE', key, length, 2, 'WITHSCORES')
  elseif kind == 'hash' then
    n = scan('HSCAN', key, 2)
  elseif kind == 'set' then
    n = scan('SSCAN', key, 1)
  elseif kind == 'stream' then
    length, n = redis.call('XLEN', key), 0
    local from = '-'
    repeat
      local entries = redis.call('XRANGE', key, from, '+', 'COUNT', step)
      n = n + #entries
      if #entries > 0 then from = '(' .. entries[#entries][1] end
    until #entries == 0
    redis.call('XINFO', 'STREAM', key)
    for dummy, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      redis.call('XPENDING', key, group[2])
      redis.call('XPENDING', key, group[2], '-', '+', step)
      redis.call('XINFO', 'CONSUMERS', key, group[2])
    end
  elseif kind ~= 'none' then
    kind, n = 'module', 1
    redis.call('DUMP', key)
  end
  if kind ~= 'none' then
    types[kind] = (types[kind] or 0) + 1
    elements = elements + n
    if length and length ~= n then
      differing[#differing + 1] = key
      differing[#differing + 1] = length
      differing[#differing + 1] = n
    end
  end
end
local counted = {}
for kind, n in pairs(types) do
  counted[#counted + 1] = kind
  counted[#counted + 1] = n
end
return {elements, counted, differing}
"""


def typed_read(client: _redis.Redis, deadline: float) -> dict[str, t.Any]:
    """Read every key with the commands of its type, inside the server: {"types": {TYPE: keys}, "elements", "differing": [{key, database, length, read}]}.

    For a scratch server only: it is busy until the end, and scripts run in it.
    """
    script = client.call("SCRIPT", "LOAD", _READ)
    types: collections.Counter[str] = collections.Counter()
    elements = 0
    differing: list[dict[str, t.Any]] = []
    for name in _redis.keyspace(client):
        database = int(name.removeprefix("db"))
        client.call("SELECT", database)
        cursor: int | bytes = 0
        while cursor != b"0":
            if time.time() > deadline:
                raise NotProven(f"not every key was read in time: {types.total()} were")
            cursor, keys = client.raw("SCAN", cursor, "COUNT", _READ_AT_ONCE)
            if not keys:
                continue
            try:
                read, counted, odd = client.raw("EVALSHA", script, len(keys), *keys)
            except _redis.RedisError as exc:
                raise _ReadError(f"{exc}, while one of {len(keys)} keys from {_shown(keys[0])} on was read", database, keys) from exc
            elements += read
            types.update(dict(zip(map(bytes.decode, counted[::2]), counted[1::2], strict=True)))
            for key, length, n in zip(odd[::3], odd[1::3], odd[2::3], strict=True):
                differing.append({"key": key, "database": database, "length": length, "read": n})
    return {"types": dict(types), "elements": elements, "differing": differing}


# --- the fingerprint ------------------------------------------------------------------------------------------------

_SLICE = 1000  # elements asked for at once
_ELEMENTS = 10_000  # read at each end
_BYTES = 1 << 20  # of a string, read at each end
_PIECE = 1 << 16


def fingerprint(client: _redis.Redis, samples: t.Iterable[tuple[int, bytes]], command: t.Callable[[str], str] = str.upper) -> dict[str, t.Any]:
    """{"keys": how many of the samples are there, "sha256": digest of what they hold}: the same on every server version that holds the same data.

    Of a string the first and the last MiB are read, of a list, sorted set or stream the first and the last 10,000 elements, in small pieces; of a stream
    its groups too, and its last id. A hash or set has no order to cut it by: up to 20,000 elements it is read whole, else its length counts alone.
    Of a value of a module only its presence counts. Expiries are not read.

    For live servers: asks for these keys alone. `command` gives the name that a command has there (RedisConf.command); RedisError when it has none.
    The connection stays in the database of the last sample.
    """
    digest = hashlib.sha256()
    present = 0

    def ask(name: str, *words: str | int | bytes) -> t.Any:
        renamed = command(name)
        if not renamed:
            raise _redis.RedisError(f"{name} is disabled on this server")
        return client.raw(renamed, *words)

    def feed(*items: bytes | int | str) -> None:
        for item in items:
            data = item if isinstance(item, bytes) else str(item).encode()
            digest.update(b"%d:" % len(data) + data)

    current = None
    for database, key in sorted(set(samples)):
        if database != current:
            ask("SELECT", database)
            current = database
        # A status reply is text already.
        kind = ask("TYPE", key)
        feed(database, key, kind if kind in _READERS else "module")
        present += kind != "none"
        if kind in _READERS:
            _READERS[kind](ask, feed, key)
    return {"keys": present, "sha256": digest.hexdigest()}


def digests(client: _redis.Redis, samples: t.Iterable[tuple[int, bytes]]) -> dict[tuple[int, bytes], str]:
    """The fingerprint of each of these keys that is there, to tell which of them differ elsewhere."""
    found = {sample: fingerprint(client, [sample]) for sample in samples}
    return {sample: each["sha256"] for sample, each in found.items() if each["keys"]}


_Ask = t.Callable[..., t.Any]
_Feed = t.Callable[..., None]


def _ends(length: int, reach: int, step: int) -> t.Iterator[tuple[int, int]]:
    """(first, last) of pieces that cover both ends of so many elements."""
    parts = [(0, length)] if length <= 2 * reach else [(0, reach), (length - reach, length)]
    for begin, end in parts:
        for at in range(begin, end, step):
            yield at, min(at + step, end) - 1


def _nothing(ask: _Ask, feed: _Feed, key: bytes) -> None:
    """A key that is not there."""


def _string(ask: _Ask, feed: _Feed, key: bytes) -> None:
    length = ask("STRLEN", key)
    feed(length)
    for first, last in _ends(length, _BYTES, _PIECE):
        feed(ask("GETRANGE", key, first, last))


def _list(ask: _Ask, feed: _Feed, key: bytes) -> None:
    length = ask("LLEN", key)
    feed(length)
    for first, last in _ends(length, _ELEMENTS, _SLICE):
        feed(*ask("LRANGE", key, first, last))


def _zset(ask: _Ask, feed: _Feed, key: bytes) -> None:
    length = ask("ZCARD", key)
    feed(length)
    for first, last in _ends(length, _ELEMENTS, _SLICE):
        reply = ask("ZRANGE", key, first, last, "WITHSCORES")
        for member, score in zip(reply[::2], reply[1::2], strict=True):
            feed(member, repr(float(score) + 0.0))  # versions write the same number differently; there is no -0.0 after this


def _scanned(length: str, scan: str, per: int) -> t.Callable[[_Ask, _Feed, bytes], None]:
    def read(ask: _Ask, feed: _Feed, key: bytes) -> None:
        count = ask(length, key)
        feed(count)
        if count > 2 * _ELEMENTS:
            return
        found: set[tuple[bytes, ...]] = set()  # an element may come twice
        cursor: int | bytes = 0
        while cursor != b"0":
            cursor, items = ask(scan, key, cursor, "COUNT", _SLICE)
            found.update(zip(*[iter(items)] * per, strict=True))
        for item in sorted(found):
            feed(*item)

    return read


def _stream(ask: _Ask, feed: _Feed, key: bytes) -> None:
    about = _fields(ask("XINFO", "STREAM", key))
    feed(about[b"length"], about[b"last-generated-id"])
    whole = about[b"length"] <= 2 * _ELEMENTS
    for name, begin, end in (("XRANGE", b"-", b"+"), ("XREVRANGE", b"+", b"-")):
        left = 2 * _ELEMENTS if whole else _ELEMENTS
        while left > 0:
            entries = ask(name, key, begin, end, "COUNT", min(left, _SLICE))
            for entry_id, fields in entries:
                feed(entry_id, *fields)
            if len(entries) < _SLICE:
                break
            left -= len(entries)
            begin = b"(" + entries[-1][0]
        if whole:
            break
    groups = [_fields(group) for group in ask("XINFO", "GROUPS", key)]
    for group in sorted(groups, key=lambda found: found[b"name"]):
        feed(*(group[name] for name in (b"name", b"consumers", b"pending", b"last-delivered-id")))


def _fields(reply: list[t.Any]) -> dict[bytes, t.Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


_READERS: dict[str, t.Callable[[_Ask, _Feed, bytes], None]] = {
    "none": _nothing,
    "string": _string,
    "list": _list,
    "zset": _zset,
    "hash": _scanned("HLEN", "HSCAN", 2),
    "set": _scanned("SCARD", "SSCAN", 1),
    "stream": _stream,
}


# --- function libraries ---------------------------------------------------------------------------------------------

_LIBRARY = re.compile(rb"#!\S+[^\n]*?\bname=(\S+)")


def function_canary(payloads: t.Sequence[bytes], server: str = "", *, user: str = "", deadline: float | None = None) -> list[Finding]:
    """Compile the function libraries of a file (the decoded strings, in their order) as a server does while loading. Takes milliseconds, whatever its size."""
    if not payloads:
        return []
    findings = []
    try:
        program = locate(server)
        with _box(user) as directory, running(directory, user, deadline or time.time() + 10, "", program) as client:
            for payload in payloads:
                named = _LIBRARY.match(payload)
                name = f"the library {_shown(named[1])}" if named else f"a library that begins with {_shown(payload[:40])!r}"
                try:
                    client.call("FUNCTION", "LOAD", payload)
                except _redis.RedisError as exc:
                    client.call("PING")  # a server that died of it is another matter
                    findings.append(Finding("function-broken", f"{name}: {exc}"))
    except Refused as exc:
        findings.append(Finding("function-broken", f"{name} ends the server: {exc}"))
    except NotProven as exc:
        findings.append(Finding("not-proven", f"{len(payloads)} function libraries were not compiled: {exc}"))
    return findings
