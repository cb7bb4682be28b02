# SPDX-License-Identifier: GPL-3.0-or-later
"""The verifier of append-only files. What real servers make of a file is the oracle: nothing they refuse, or start empty with, may pass for usable."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rdb_writer
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof, _rdb_report, _rdb_walk
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Target

NAMES = ("7.0", "8.2", "valkey-9.1")  # those with a manifest
BASE, INCREMENT, MANIFEST = "appendonly.aof.2.base.rdb", "appendonly.aof.2.incr.aof", "appendonly.aof.manifest"
NOW = time.time()


def command(*words: str | bytes) -> bytes:
    raw = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


def walk(path: str) -> Contents:
    return _rdb_walk.walk(path, now=time.time())


def target(name: str, **facts: Any) -> Target:
    family, version = servers.VERSIONS[name]
    return Target(**{"server": family, "version": version, "databases": 16, "maxmemory": 0, "modules": (), **facts})


def verify(path: Path, name: str | None = "7.0", recorded: dict[str, str] | None = None, **facts: Any) -> _aof.AofReport:
    return _aof.verify(str(path), target=target(name, **facts) if name else None, now=time.time(), base=walk, recorded=recorded)


def single(folder: Path, data: bytes, name: str | None = "7.0", **facts: Any) -> _aof.AofReport:
    (folder / "appendonly.aof").write_bytes(data)
    return verify(folder / "appendonly.aof", name, **facts)


def codes(report: _aof.AofReport) -> set[str]:
    return {finding.code for finding in report.findings}


@dataclasses.dataclass
class Loaded:
    up: bool
    keys: int = 0
    digest: str = ""  # of all data
    log: str = ""


def load(name: str, source: Path, **directives: str) -> Loaded:
    """What a server makes of a copy of this AOF."""
    folder = Path("/tmp") / f"tdr-a-{os.getpid()}-{random.getrandbits(32):x}"
    if source.is_dir():
        shutil.copytree(source, folder / "appendonlydir")
    else:
        folder.mkdir()
        shutil.copy(source, folder / "appendonly.aof")
    try:
        server = servers.start(name, folder, appendonly="yes", **directives)
    except servers.NotUpError as exc:
        return Loaded(False, log=exc.outcome.log)
    else:
        keys = sum(database["keys"] for database in server.keyspace().values())
        found = Loaded(True, keys, str(server.client.execute_command("DEBUG", "DIGEST")), server.log)
        server.close()
        return found
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The AOF of a server that was killed: a base and an increment, in which stands all that a server rewrites."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        with servers.running(name, appendonly="yes", appendfsync="always", aof_timestamp_enabled="yes") as server:
            call = server.client.execute_command
            servers.fill(server.client, kinds=("string", "hash", "zset", "function", "databases"))
            call("BGREWRITEAOF")
            while server.client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)
            time.sleep(1.1)  # annotations have a granularity of a second
            servers.fill(server.client, kinds=("stream", "list", "hash-ttl", "expiry"), seed=2)
            for number in range(60):
                call("HSET", f"order:{number}", "symbol", "BTCUSDT", "side", "buy", "size", number)
                call("SET", f"tick:{number}", b"\r\n" * (number % 3) + b"x" * 30, "EX", 90000)
            pipe = server.client.pipeline(transaction=True)
            pipe.incr("count").hincrby("order:1", "size", 5).lpush("tape", "a", "b\r\n$3")
            pipe.execute()
            call("EVAL", "for i = 1, 5 do redis.call('RPUSH', KEYS[1], i) end return redis.call('SPOP', KEYS[2])", 2, "tape", "nothing")
            call("DEL", "order:2")
            call("COPY", "order:3", "order:33")
            call("SPOP", "set:of:one")
            call("SET", "the:last", "command")
            folder = server.folder / "appendonlydir"
            made[name] = tmp_path_factory.mktemp(name) / "appendonlydir"
            shutil.copytree(folder, made[name])
        return made[name]

    yield make


@pytest.fixture
def copy(original: Callable[[str], Path], box: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        shutil.rmtree(box / "aof", ignore_errors=True)
        return Path(shutil.copytree(original(name), box / "aof"))

    return make


# commands


@pytest.mark.parametrize(
    ("words", "name", "facts", "code"),
    [
        (("SET", "k"), "7.0", {}, "aof-command"),
        (("set", "k", "v"), "7.0", {}, None),
        (("SEU", "k", "v"), "7.0", {}, "aof-command"),
        (("GET", "k"), "7.0", {}, "aof-command"),
        (("", "k"), "7.0", {}, "aof-command"),
        (("x" * 100,), "7.0", {}, "aof-command"),
        (("XGROUP", "CREATE", "s", "g", "0"), "7.0", {}, None),
        (("XGROUP", "CREATF", "s", "g", "0"), "7.0", {}, "aof-command"),
        (("XGROUP",), "7.0", {}, "aof-command"),
        (("HEXPIRE", "h", "1", "FIELDS", "1", "f"), "7.0", {}, "aof-command"),
        (("HEXPIRE", "h", "1", "FIELDS", "1", "f"), "8.2", {}, None),
        (("HEXPIRE", "h", "1", "FIELDS", "1", "f"), "7.0", {"version": "7.4.1"}, None),
        (("HEXPIRE", "h", "1", "FIELDS", "1", "f"), "valkey-9.1", {"version": "8.0.1"}, "aof-command"),
        (("HEXPIRE", "h", "1", "FIELDS", "1", "f"), "valkey-9.1", {}, None),
        (("FUNCTION", "LOAD", "x"), "6.2", {}, "aof-command"),
        (("EXPIRE", "k", "1", "NX"), "6.2", {}, "aof-command"),
        (("EXPIRE", "k", "1", "NX"), "7.0", {}, None),
        (("NEWTHING", "k"), "8.2", {"version": "9.9.9"}, "aof-command-unjudged"),
        (("JSON.SET", "k", "$", "1"), "7.0", {}, "module-missing"),
        (("JSON.SET", "k", "$", "1"), "7.0", {"modules": ("ReJSON",)}, None),
        (("JSON.SET", "k", "$", "1"), "7.0", {"modules": None}, "module-unknown"),
        (("TITAN.SET", "k"), "7.0", {"modules": ("titan",)}, "aof-command-unjudged"),
        (("FLUSHALL",), "7.0", {"renamed": {"FLUSHALL": ""}}, "aof-command"),
        (("FLUSHALL",), "7.0", {"renamed": {"FLUSHALL": "wipe"}}, "aof-command"),
        (("WIPE",), "7.0", {"renamed": {"FLUSHALL": "wipe"}}, None),
        (("SELECT", "15"), "7.0", {}, None),
        (("SELECT", "16"), "7.0", {}, "database-beyond-target"),
        (("SELECT", "x"), "7.0", {}, "aof-command"),
    ],
)
def test_command(box: Path, words: tuple[str, ...], name: str, facts: dict[str, Any], code: str | None) -> None:
    report = single(box, command("SET", "a", "1") + command(*words) + command("SET", "b", "1"), name, **facts)
    assert codes(report) - {"aof-values-unprotected"} == ({code} if code else set())
    fatal = code is not None and _rdb_report.CODES[code][0] == "fatal"
    assert report.state == (_aof.CORRUPT if fatal else _aof.INTACT) and report.verdict == ("fail" if fatal else "unknown")
    if fatal:
        assert report.usable and (report.usable.offset, report.usable.command, report.usable.commands_lost) == (len(command("SET", "a", "1")), 1, 2)


def test_without_a_target_all_servers_are_meant(box: Path) -> None:
    report = single(box, command("HEXPIRE", "h", "1", "FIELDS", "1", "f") + command("DELIFEQ", "k", "v"), None)
    assert report.state == _aof.INTACT and "no-target" in codes(report)


def test_a_renamed_command_stops_the_real_server(box: Path) -> None:
    (box / "appendonly.aof").write_bytes(command("SET", "a", "1") + command("FLUSHDB"))
    loaded = load("7.0", box / "appendonly.aof", rename_command='FLUSHDB ""')
    assert not loaded.up and "Unknown command" in loaded.log


# framing


def reference(data: bytes) -> tuple[int, int]:
    """(commands, end of the last complete one) by the plainest means."""
    at = number = 0
    while True:
        try:
            if data[at : at + 1] == b"#":
                at = data.index(b"\r\n", at) + 2
                continue
            head = re.compile(rb"\*(\d+)\r\n").match(data, at)
            here = head.end()  # type: ignore[union-attr]
            for dummy in range(int(head[1])):  # type: ignore[index]
                bulk = re.compile(rb"\$(\d+)\r\n").match(data, here)
                here = bulk.end() + int(bulk[1]) + 2  # type: ignore[union-attr, index]
                if here > len(data):
                    return number, at
        except (AttributeError, ValueError):
            return number, at
        at, number = here, number + 1


def random_aof(seed: int, size: int) -> bytes:
    chance = random.Random(seed)
    words = [b"\r\n", b"\r", b"\n", b"$3\r\nabc\r\n", b"*1\r\n", b"#TS:1\r\n", b"x", b"", b"titan:order"]
    out = [command("SELECT", "0")]
    while size > 0:
        value = b"".join(chance.choices(words, k=chance.randrange(6))) + chance.randbytes(chance.choice((0, 3, 40, 400)))
        out.append(command("SET", b"k%d" % size, value) if chance.random() < 0.7 else command("RPUSH", "l", *chance.choices(words, k=chance.randrange(1, 20))))
        if chance.random() < 0.1:
            out.append(b"#TS:%d\r\n" % (1700000000 + len(out)))
        size -= len(out[-1])
    return b"".join(out)


@pytest.mark.parametrize("window", [17, 100, 1000, 1 << 20])
def test_windows_change_nothing(box: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(_aof, "_WINDOW", window)
    monkeypatch.setattr(_aof, "_PIECE", max(64, window // 3))
    for seed in range(5):
        data = random_aof(seed, 20000)
        report = single(box, data)
        assert report.state == _aof.INTACT and report.usable
        assert (report.usable.command, report.usable.offset) == reference(data)


def test_cut_at_every_byte(box: Path) -> None:
    """Whatever a truncation leaves is usable up to the last complete command, and the server agrees on how much that is."""
    data = b"#TS:1700000000\r\n" + command("SELECT", "1") + command("SET", "a", b"1\r\n2") + b"#TS:1700000001\r\n" + command("RPUSH", "l", *["x"] * 12)
    for length in range(1, len(data)):
        report = single(box, data[:length])
        commands, end = reference(data[:length])
        if commands == 0:
            assert report.state == _aof.UNUSABLE and "aof-nothing" in codes(report)
            continue
        assert report.usable
        assert (report.usable.command, report.usable.offset, report.usable.bytes_lost) == (commands, end, length - end)
        assert report.state == (_aof.INTACT if end == length else _aof.TAIL), length
        assert report.verdict == "unknown" and ("aof-tail" in codes(report)) == (end != length)


def test_a_length_that_swallows_the_rest_is_no_truncated_tail(box: Path) -> None:
    start = command("SET", "a", "1")
    report = single(box, start + command("SET", "b", "2").replace(b"$1\r\n2", b"$900\r\n2") + command("SET", "c", "3") * 5)
    assert report.state == _aof.CORRUPT and report.verdict == "fail"
    assert report.usable and report.usable.offset == len(start) and report.usable.commands_lost == 5


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, b"\0", b"garbage", b"\r\n", b"*0\r\n", b"*-1\r\n", b"*03\r\n", b"+OK\r\n", b"#\r\n", b"#TS:12x\r\n", b"*1\r\n$-1\r\n"]
)
def test_garbage_at_the_end(box: Path, tail: bytes) -> None:
    start = command("SET", "a", "1")
    report = single(box, start + tail)
    assert report.state == _aof.CORRUPT and report.verdict == "fail" and "aof-corrupt" in codes(report)
    assert report.usable and report.usable.offset == len(start) and report.usable.bytes_lost == len(tail)


def test_annotations(box: Path) -> None:
    report = single(box, b"#TS:5\r\n" + command("SET", "a", "1") + b"#TS:3\r\n#New:thing\r\n" + command("SET", "a", "2"))
    assert report.state == _aof.INTACT and {"aof-clock", "aof-annotation"} <= codes(report)
    assert report.as_dict()["files"][0]["first_timestamp"] == 5 and report.as_dict()["files"][0]["last_timestamp"] == 3
    assert "aof-clock" in codes(single(box, b"#TS:%d\r\n" % (NOW + 5000) + command("SET", "a", "2")))
    assert not {"aof-clock", "aof-annotation"} & codes(single(box, b"#TS:5\r\n" + command("SET", "a", "1") + b"#TS:5\r\n"))


@pytest.mark.parametrize(
    ("parts", "code", "state", "usable"),
    [
        (("MULTI", "SET", "EXEC", "SET"), None, _aof.INTACT, 4),
        (("SET", "MULTI", "SET"), "aof-tail", _aof.TAIL, 1),
        (("SET", "MULTI", "SET", "cut"), "aof-tail", _aof.TAIL, 1),
        (("SET", "MULTI", "SET", "MULTI", "SET", "EXEC"), "aof-transaction", _aof.CORRUPT, 1),
        (("SET", "SET", "EXEC", "SET"), "aof-transaction", _aof.CORRUPT, 2),
        (("SET", "MULTI", "SET", "bad", "EXEC", "SET"), "aof-corrupt", _aof.CORRUPT, 1),
    ],
)
def test_transactions(box: Path, parts: tuple[str, ...], code: str | None, state: str, usable: int) -> None:
    what = {"SET": command("SET", "a", "1"), "MULTI": command("MULTI"), "EXEC": command("EXEC"), "cut": b"*3\r\n$3\r\nSE", "bad": b"\0\0\0\0"}
    report = single(box, b"".join(what[part] for part in parts))
    assert report.state == state and (code is None or code in codes(report))
    assert report.usable and report.usable.command == usable and report.usable.offset == sum(len(what[part]) for part in parts[:usable])


def test_many_faults_are_counted_not_listed(box: Path) -> None:
    report = single(box, command("SET", "a", "1") + (b"garbage" + command("SET", "b", "1")) * 500)
    assert len(report.findings) < 30 and report.usable and report.usable.commands_lost == 500


def test_memory_is_bounded(box: Path) -> None:
    """A value of 400 MiB, and a command of half a million words."""
    with open(box / "appendonly.aof", "wb") as handle:
        handle.write(command("SADD", "s", *[b"%d" % number for number in range(500_000)]))
        handle.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (400 << 20))
        handle.seek(400 << 20, os.SEEK_CUR)
        handle.write(b"\r\n" + command("SET", "a", "1"))
    script = (
        "import resource, sys, time\n"
        "from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "report = _aof.verify(sys.argv[1], target=None, now=time.time(), base=None)\n"
        "print(report.state, report.usable.command, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, box / "appendonly.aof"], capture_output=True, text=True, check=True, env=environment)
    state, number, grown = done.stdout.split()
    assert (state, number) == ("intact", "3") and int(grown) <= 64


# files of an AOF


@pytest.mark.parametrize("name", NAMES)
def test_intact(original: Callable[[str], Path], name: str) -> None:
    folder = original(name)
    report = verify(folder, name)
    assert report.state == _aof.INTACT and report.verdict == "unknown" and codes(report) == {"aof-values-unprotected"}
    found = report.as_dict()
    assert [(item["name"], item["kind"], item["seq"]) for item in found["files"]] == [(BASE, "b", 2), (INCREMENT, "i", 2)]
    assert found["files"][0]["rdb"]["checksum"] == "ok" and found["files"][0]["commands"] == 0 and found["files"][1]["commands"] > 300
    assert found["files"][1]["last_timestamp"] >= found["files"][1]["first_timestamp"] > NOW - 3600
    assert found["digests"] == {item: hashlib.sha256((folder / item).read_bytes()).hexdigest() for item in (BASE, INCREMENT, MANIFEST)}
    assert found["usable"]["bytes_lost"] == found["usable"]["commands_lost"] == 0 and found["usable"]["offset"] == (folder / INCREMENT).stat().st_size
    proven = verify(folder, name, recorded=found["digests"])
    assert proven.verdict == "pass" and proven.matched and not proven.findings
    assert proven.evidence().startswith("intact, usable up to")
    # the manifest stands for its directory
    assert verify(folder / MANIFEST, name).as_dict()["files"] == found["files"]


def test_recorded_digests(original: Callable[[str], Path], copy: Callable[[str], Path]) -> None:
    recorded = verify(original("7.0")).digests
    folder = copy("7.0")
    assert verify(folder, recorded={name: digest for name, digest in recorded.items() if name != MANIFEST}).verdict == "unknown"
    assert verify(folder, recorded={**recorded, "appendonly.aof.3.incr.aof": "0" * 64}).verdict == "fail"
    data = bytearray((folder / INCREMENT).read_bytes())
    data[data.index(b"BTCUSDT")] ^= 1
    (folder / INCREMENT).write_bytes(data)
    plain, compared = verify(folder), verify(folder, recorded=recorded)
    assert plain.state == compared.state == _aof.INTACT and plain.verdict == "unknown"
    assert compared.verdict == "fail" and [finding.file for finding in compared.findings if finding.code == "digest-mismatch"] == [INCREMENT]


def no_checksum(folder: Path) -> None:
    data = (folder / BASE).read_bytes()
    (folder / BASE).write_bytes(data[:-8] + bytes(8))


def test_base_without_checksum(copy: Callable[[str], Path]) -> None:
    folder = copy("7.0")
    no_checksum(folder)
    report = verify(folder)
    assert "checksum-disabled" in codes(report) and report.verdict == "unknown"
    assert verify(folder, recorded=report.digests).verdict == "pass"


def edit(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / file).read_bytes()
        changed = change(data)
        assert changed != data
        (folder / file).write_bytes(changed)

    return apply


def remove(*files: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / file).unlink() for file in files] and None


def row(text: str, text_to: str) -> Callable[[Path], None]:
    return edit(MANIFEST, lambda data: data.replace(text.encode(), text_to.encode(), 1))


def second_increment(data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "appendonly.aof.3.incr.aof").write_bytes(data)
        with (folder / MANIFEST).open("a") as handle:
            handle.write("file appendonly.aof.3.incr.aof seq 3 type i\n")

    return apply


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [step(folder) for step in steps] and None


SET = command("SELECT", "0") + command("SET", "more", "1")
UP, OTHER, EMPTY, DOWN = "same data", "other data", "empty", "refused"
# name: (fault, state, code or None, what the servers do)
SCENARIOS: dict[str, tuple[Callable[[Path], None], str, str | None, str]] = {
    "nothing": (lambda folder: None, _aof.INTACT, None, UP),
    "manifest missing": (remove(MANIFEST), _aof.UNUSABLE, "aof-manifest", EMPTY),
    "manifest and increment missing": (remove(MANIFEST, INCREMENT), _aof.UNUSABLE, "aof-manifest", EMPTY),
    "manifest empty": (edit(MANIFEST, lambda data: b""), _aof.UNUSABLE, "aof-manifest", DOWN),
    "manifest is garbage": (edit(MANIFEST, lambda data: b"\0" * len(data)), _aof.UNUSABLE, "aof-manifest", DOWN),
    "manifest cut to its first line": (edit(MANIFEST, lambda data: data.splitlines(keepends=True)[0]), _aof.INTACT, "aof-orphan", OTHER),
    "manifest cut inside a line": (edit(MANIFEST, lambda data: data[:-1]), _aof.UNUSABLE, "aof-manifest", DOWN),
    "manifest without base line": (edit(MANIFEST, lambda data: data.splitlines(keepends=True)[1]), _aof.INTACT, "aof-orphan", OTHER),
    "manifest with an empty line": (edit(MANIFEST, lambda data: data + b"\n"), _aof.UNUSABLE, "aof-manifest", DOWN),
    "manifest with a comment": (edit(MANIFEST, lambda data: b"# made by hand\n" + data), _aof.INTACT, None, UP),
    "increments not monotonic": (both(second_increment(SET), row("seq 3", "seq 2")), _aof.UNUSABLE, "aof-manifest", DOWN),
    "an increment between is gone": (both(second_increment(SET), row("seq 3", "seq 4")), _aof.CORRUPT, "aof-missing", OTHER),
    "two bases": (edit(MANIFEST, lambda data: data + data.splitlines(keepends=True)[0]), _aof.UNUSABLE, "aof-manifest", DOWN),
    "unknown type": (row("type i", "type x"), _aof.UNUSABLE, "aof-manifest", DOWN),
    "a path as name": (row(INCREMENT, f"./{INCREMENT}"), _aof.UNUSABLE, "aof-manifest", DOWN),
    "a name that no file can have": (row(INCREMENT, f'"{INCREMENT}\\x00"'), _aof.UNUSABLE, "aof-manifest", UP),
    "unknown pairs": (row("type b", "type b colour red"), _aof.INTACT, None, UP),
    "half a pair": (row("type b", "type b colour"), _aof.UNUSABLE, "aof-manifest", DOWN),
    "increment named before the base": (edit(MANIFEST, lambda data: b"".join(data.splitlines(keepends=True)[::-1])), _aof.INTACT, None, UP),
    "history is not loaded": (edit(MANIFEST, lambda data: data + b"file appendonly.aof.1.incr.aof seq 1 type h\n"), _aof.INTACT, None, UP),
    "leftover of a rewrite": (lambda folder: (folder / "appendonly.aof.1.incr.aof").write_bytes(SET) and None, _aof.INTACT, "aof-leftover", UP),
    "base missing": (remove(BASE), _aof.UNUSABLE, "aof-missing", DOWN),
    "increment missing": (remove(INCREMENT), _aof.CORRUPT, "aof-missing", DOWN),
    "increment empty": (edit(INCREMENT, lambda data: b""), _aof.INTACT, None, OTHER),
    "base empty": (edit(BASE, lambda data: b""), _aof.UNUSABLE, "aof-missing", OTHER),
    "base truncated": (edit(BASE, lambda data: data[:-20]), _aof.UNUSABLE, "truncated", DOWN),
    "base with a wrong checksum": (edit(BASE, lambda data: data[:-3] + b"abc"), _aof.UNUSABLE, "checksum-mismatch", DOWN),
    "tail truncated": (edit(INCREMENT, lambda data: data[:-9]), _aof.TAIL, "aof-tail", OTHER),
    "MULTI without EXEC": (edit(INCREMENT, lambda data: data + command("MULTI") + SET), _aof.TAIL, "aof-tail", UP),
    "truncated, and not the last": (both(edit(INCREMENT, lambda data: data[:-9]), second_increment(SET)), _aof.CORRUPT, "aof-corrupt", DOWN),
    "byte of a value flipped": (edit(INCREMENT, lambda data: data.replace(b"BTCUSDT", b"BTCUSDU", 1)), _aof.INTACT, None, OTHER),
    "whole commands cut out": (edit(INCREMENT, lambda data: data.replace(command("DEL", "order:2"), b"")), _aof.INTACT, None, OTHER),
    "command name flipped": (edit(INCREMENT, lambda data: data.replace(b"\r\nDEL\r\n", b"\r\nDEM\r\n", 1)), _aof.CORRUPT, "aof-command", DOWN),
    "unknown command in the middle": (edit(INCREMENT, lambda data: SET + command("TITANIC", "x") + data), _aof.CORRUPT, "aof-command", DOWN),
    "garbage appended": (edit(INCREMENT, lambda data: data + b"garbage"), _aof.CORRUPT, "aof-corrupt", DOWN),
    "zero bytes appended": (edit(INCREMENT, lambda data: data + bytes(512)), _aof.CORRUPT, "aof-corrupt", DOWN),
    "a length flipped": (edit(INCREMENT, lambda data: data.replace(b"$7\r\nBTCUSDT", b"$6\r\nBTCUSDT", 1)), _aof.CORRUPT, "aof-corrupt", DOWN),
    "database beyond the target": (edit(INCREMENT, lambda data: data + command("SELECT", "16") + SET), _aof.CORRUPT, "database-beyond-target", OTHER),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(original: Callable[[str], Path], copy: Callable[[str], Path], box: Path, name: str, scenario: str) -> None:
    fault, state, code, expected = SCENARIOS[scenario]
    intact = load(name, original(name))
    recorded = verify(original(name), name).digests
    folder = copy(name)
    fault(folder)
    report, compared = verify(folder, name), verify(folder, name, recorded=recorded)
    loaded = load(name, folder)
    got = DOWN if not loaded.up else EMPTY if not loaded.keys else UP if loaded.digest == intact.digest else OTHER
    assert got == expected, loaded.log
    assert report.state == state and (code is None or code in codes(report))
    # an AOF alone is never proven; with digests, only what was not touched
    assert report.verdict == ("fail" if code and _rdb_report.CODES[code][0] == "fatal" else "unknown")
    changed = scenario not in ("nothing", "leftover of a rewrite")
    assert compared.verdict == ("fail" if changed else "pass")
    if expected in (DOWN, EMPTY):
        assert report.verdict == "fail"
    if report.usable and state in (_aof.CORRUPT, _aof.TAIL):
        done = _aof.cut(report, str(box / "cut"))
        salvaged = load(name, box / "cut", aof_load_truncated="no")
        assert salvaged.up and salvaged.keys and verify(box / "cut", name, recorded=done["digests"]).verdict == "pass"
        if state == _aof.TAIL:  # what the server itself makes of it
            assert salvaged.digest == loaded.digest


def test_state_is_of_files_that_are_not_there(box: Path) -> None:
    for path in (box / "nothing", box / "nothing.manifest", box):
        report = verify(path)
        assert report.state == _aof.UNUSABLE and report.verdict == "fail" and report.usable is None
        with pytest.raises(_aof.AofError):
            _aof.cut(report, str(box / "cut"))
    os.mkfifo(box / "fifo")
    assert codes(verify(box / "fifo")) >= {"unreadable"}
    assert verify(box / "fifo").evidence().startswith("unusable; ")


def test_target_that_reads_no_directory(original: Callable[[str], Path]) -> None:
    assert "aof-layout" in codes(verify(original("7.0"), "6.2"))


@pytest.mark.parametrize("name", ["7.0", "8.2"])
def test_base_that_the_target_cannot_load(original: Callable[[str], Path], name: str) -> None:
    report = verify(original("8.2"), name)
    assert ("version-too-new" in codes(report)) == (name == "7.0") == (not load(name, original("8.2")).up) == (report.verdict == "fail")


@pytest.mark.parametrize("name", servers.BINARIES)
def test_single_file_with_and_without_rdb(box: Path, name: str) -> None:
    """6.2 writes such files, and the others still load them."""
    for preamble in ("yes", "no"):
        with servers.running("6.2", appendonly="yes", appendfsync="always", aof_use_rdb_preamble=preamble) as server:
            servers.fill(server.client, kinds=("string", "stream", "hash"))
            server.client.execute_command("BGREWRITEAOF")
            while server.client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)
            server.client.set("after", "the rewrite")
            time.sleep(0.05)
            file = Path(shutil.copy(server.folder / "appendonly.aof", box / f"{preamble}.aof"))
            keys = server.client.dbsize()
        report = verify(file, name)
        entry = report.as_dict()["files"][0]
        assert report.state == _aof.INTACT and codes(report) == {"aof-values-unprotected"}
        assert ("rdb" in entry) == (preamble == "yes") and (entry["commands"] == 2) == (preamble == "yes")
        assert load(name, file).keys == keys
        data = file.read_bytes()
        file.write_bytes(data[:-5])
        report = verify(file, name)
        assert report.state == _aof.TAIL
        done = _aof.cut(report, str(box / f"{preamble}-cut"))
        assert Path(done["path"]).parent == box / f"{preamble}-cut" and load(name, Path(done["path"]), aof_load_truncated="no").keys == keys - 1
        if preamble == "yes":
            file.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
            assert verify(file, name).state == _aof.UNUSABLE and not load(name, file).up


def test_empty_aof_is_no_aof(box: Path) -> None:
    (box / BASE).write_bytes(rdb_writer.rdb())
    (box / INCREMENT).write_bytes(b"")
    (box / MANIFEST).write_text(f"file {BASE} seq 2 type b\nfile {INCREMENT} seq 2 type i\n")
    report = verify(box)
    assert report.state == _aof.UNUSABLE and "aof-nothing" in codes(report) and load("7.0", box).keys == 0


def test_nothing_is_opened_for_writing(original: Callable[[str], Path]) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in [original("7.0"), *original("7.0").iterdir()]}
    opened: list[int] = []

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str) and "appendonlydir" in details[0]:
            opened.append(details[2])

    sys.addaudithook(hook)
    assert verify(original("7.0")).state == _aof.INTACT
    assert len(opened) >= 3 and not any(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) for flags in opened)
    opened.clear()
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in before}


# copies


def stamped(folder: Path, taken_at: int = 1000) -> Path:
    """A base and two increments, one key a second from 1001 to 1006; 1003 is a transaction."""
    folder.mkdir()
    base = rdb_writer.rdb(rdb_writer.aux("ctime", str(taken_at)), rdb_writer.select(0), rdb_writer.key(b"base", 0, rdb_writer.string(b"1")))
    (folder / BASE).write_bytes(base)
    for seq, seconds in ((2, (1001, 1002, 1003)), (3, (1004, 1005, 1006))):
        parts = []
        for second in seconds:
            parts += [b"#TS:%d\r\n" % second, command("SELECT", "0") if not parts else b""]
            one = command("SET", f"at:{second}", "1")
            parts.append(command("MULTI") + one + command("EXEC") if second == 1003 else one)
        (folder / f"appendonly.aof.{seq}.incr.aof").write_bytes(b"".join(parts))
    text = "".join(f"file appendonly.aof.{seq}.incr.aof seq {seq} type i startoffset 0\n" for seq in (2, 3))
    (folder / MANIFEST).write_text(f"file {BASE} seq 2 type b\n{text}file appendonly.aof.1.incr.aof seq 1 type h\n")
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("until", "keys", "files"), [(1000.0, 1, 1), (1001, 2, 2), (1003.9, 4, 2), (1004, 5, 3), (1005, 6, 3), (5000, 7, 3)])
def test_point_in_time(box: Path, name: str, until: float, keys: int, files: int) -> None:
    source = stamped(box / "aof")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    report = verify(source, name)
    assert report.state == _aof.INTACT
    done = _aof.cut(report, str(box / "cut"), until)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    again = verify(box / "cut", name, recorded=done["digests"])
    assert again.verdict == "pass" and len(again.members) == files and not (box / "cut.unfinished").exists()
    assert load(name, box / "cut", aof_load_truncated="no").keys == keys
    assert done["timestamp"] == (None if until == 1000 else min(int(until), 1006))


def test_points_that_cannot_be(box: Path) -> None:
    source = stamped(box / "aof")
    report = verify(source)
    for until in (999, 1000 - 1e-3):
        with pytest.raises(_aof.AofError, match="the base was taken at 1000"):
            _aof.cut(report, str(box / "cut"), until)
    with pytest.raises(_aof.AofError, match="lies inside"):
        _aof.cut(report, str(source / "cut"))
    (box / "there").mkdir()
    with pytest.raises(_aof.AofError, match="exists"):
        _aof.cut(report, str(box / "there"))
    with pytest.raises(_aof.AofError, match="no timestamps"):
        _aof.cut(single(box, SET), str(box / "cut"), 1001)
    with pytest.raises(_aof.AofError, match="nothing was written"):
        _aof.cut(single(box, b"#TS:1000\r\n" + SET), str(box / "cut"), 999)
    assert not (box / "cut").exists()


def test_copy_up_to_a_time_ends_at_a_fault_before_it(box: Path) -> None:
    source = stamped(box / "aof")
    edit("appendonly.aof.3.incr.aof", lambda data: data.replace(b"at:1005", b"at:10050"))(source)
    report = verify(source)
    assert report.state == _aof.CORRUPT and report.usable and report.usable.timestamp == 1005
    assert _aof.cut(report, str(box / "cut"), 1006)["offset"] == report.usable.offset
    assert load("7.0", box / "cut").keys == 5


# mutations

KINDS = ("bit", "byte", "zero", "commands", "truncate", "delete", "double")


def mutate(data: bytes, kind: str, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.randrange(1, 65)
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == "byte":
        return data[:at] + bytes([data[at] ^ chance.randrange(1, 256)]) + data[at + 1 :]
    if kind == "zero":
        return data[:at] + bytes(16) + data[at + 16 :]
    if kind == "truncate":
        return data[:at]
    if kind == "delete":
        return data[:at] + data[at + size :]
    if kind == "double":
        return data[:at] + data[at : at + size] + data[at:]
    starts = [found.start() for found in re.finditer(rb"\*\d+\r\n\$\d+\r\n", data)]
    first = chance.randrange(len(starts) - 4)
    return data[: starts[first]] + data[starts[first + chance.randrange(1, 4)] :]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [("7.0", 1), ("8.2", 2)])
def test_mutations(original: Callable[[str], Path], copy: Callable[[str], Path], box: Path, name: str, seed: int) -> None:
    """60 mutations of each kind: none passes; what is called usable loads, and a copy of the usable part loads whatever the fault."""
    chance = random.Random(seed)
    folder = copy(name)
    data = (folder / INCREMENT).read_bytes()
    recorded = verify(folder, name).digests
    table: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        counts = table[kind] = {"intact": 0, "recoverable tail": 0, "corrupt middle": 0, "unusable": 0}
        for number in range(60):
            changed = mutate(data, kind, chance)
            (folder / INCREMENT).write_bytes(changed)
            report = verify(folder, name)
            counts[report.state] += 1
            where = f"{kind} {number}: {report.evidence()}"
            assert report.verdict != "pass" and report.state != _aof.UNUSABLE, where
            if changed != data:
                assert verify(folder, name, recorded=recorded).verdict == "fail", where
            if report.state == _aof.INTACT:
                assert subprocess.run([servers.aof_checker(name), folder / MANIFEST], capture_output=True).returncode == 0, where
            if report.state in (_aof.INTACT, _aof.TAIL):
                loaded = load(name, folder)
                assert loaded.up and loaded.keys, where + loaded.log
                if report.state == _aof.INTACT:
                    assert load(name, folder, aof_load_truncated="no").up, where
                if report.state == _aof.TAIL:
                    assert re.search(r"AOF loaded anyway|Truncating the AOF|truncated", loaded.log), where
            elif number % 6 == 0:
                shutil.rmtree(box / "cut", ignore_errors=True)
                done = _aof.cut(report, str(box / "cut"))
                assert verify(box / "cut", name, recorded=done["digests"]).verdict == "pass", where
                assert load(name, box / "cut", aof_load_truncated="no").up, where
    print(f"\n{name}: {len(data)} bytes")
    for kind, counts in table.items():
        print(f"  {kind:9}", *(f"{state} {count:3}" for state, count in counts.items()))
    assert table["truncate"]["corrupt middle"] == 0
