# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rdb_writer
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_format, _rdb_values, _rdb_walk, _redis, _scratch
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding, Target, verdict
from ansible_collections.titan.disaster_recovery.plugins.module_utils._scratch import NotProven, ProofError, Refused

CANARY = {"key": "titan:dr:canary", "db": 1}
EXPECTED = {
    "databases": 16,
    "expired": 0,
    "keyspace": {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}},
    "canary": {**CANARY, "seq": 7, "at": 1000.0},
}


@pytest.fixture(autouse=True)
def no_process_is_left(box: Path) -> Any:
    yield
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(box) not in listed
    assert {path.name for path in box.iterdir()} <= {"dump.rdb"}, "a socket, a log or a dump was left"


def prove(box: Path, data: bytes, me: str, expected: dict[str, Any] | None = None, seconds: float = 10) -> dict[str, Any]:
    (box / "dump.rdb").write_bytes(data)
    found = _scratch.prove(str(box / "dump.rdb"), str(box), expected or EXPECTED, me, time.time() + seconds)
    assert (box / "dump.rdb").read_bytes() == data, "the dump is as it was"
    return found


@pytest.fixture
def source(redis_server: Any) -> Any:
    server = redis_server()
    server.fill()
    return server


def test_good(source: Any, box: Path, me: str) -> None:
    found = prove(box, source.dump(), me)
    assert found["keyspace"] == EXPECTED["keyspace"] and found["expired"] == 0 and found["used_memory"] > 0
    assert found["canary"] == {"seq": 7, "at": 1000.0}


def test_as_the_user_of_redis(source: Any, box: Path) -> None:
    try:
        _scratch.shutil.chown(box, "redis", "redis")
    except LookupError:
        pytest.skip("there is no user redis")
    prove(box, source.dump(), "redis")


def test_empty_but_valid_dump(redis_server: Any, box: Path, me: str) -> None:
    with pytest.raises(ProofError, match=r"db0: 0 keys, the manifest counted 10.*0 keys loaded and 0 expired, 13 in the manifest; canary is None, 7"):
        prove(box, redis_server().dump(), me)


def test_no_dump_is_not_an_empty_one(box: Path, me: str) -> None:
    with pytest.raises(ProofError, match="0 keys loaded"):
        _scratch.prove(str(box / "dump.rdb"), str(box), EXPECTED, me, time.time() + 10)


@pytest.mark.parametrize("gone", ["key:5", "key:0"])
def test_one_key_fewer(source: Any, box: Path, me: str, gone: str) -> None:
    """key:0 has an expiry, so it may be gone: but only if Redis says that it expired."""
    source.client.call("DEL", gone)
    with pytest.raises(ProofError, match="12 keys loaded and 0 expired, 13 in the manifest"):
        prove(box, source.dump(), me)


def test_one_key_more(source: Any, box: Path, me: str) -> None:
    source.client.call("SET", "new", "1")
    with pytest.raises(ProofError, match="db0: 11 keys"):
        prove(box, source.dump(), me)


def test_a_key_in_another_database(source: Any, box: Path, me: str) -> None:
    source.client.call("MOVE", "key:5", 2)
    with pytest.raises(ProofError, match="db2: 1 keys, the manifest counted 0"):
        prove(box, source.dump(), me)


@pytest.mark.parametrize("value", ['{"seq": 6, "at": 1000}', '{"seq": 8, "at": 1000}', "OK", None])
def test_another_canary(source: Any, box: Path, me: str, value: str | None) -> None:
    source.client.call("SELECT", 1)
    source.client.call("DEL", CANARY["key"])
    source.client.call("SET", CANARY["key"] if value else "other", value or "1")
    with pytest.raises(ProofError, match="canary"):
        prove(box, source.dump(), me)


def test_without_a_canary(source: Any, box: Path, me: str) -> None:
    assert prove(box, source.dump(), me, {**EXPECTED, "canary": None})["canary"] is None


@pytest.mark.parametrize("at", [0, 12, -60, -4])
def test_flipped_byte(source: Any, box: Path, me: str, at: int) -> None:
    data = bytearray(source.dump())
    data[at] ^= 1
    with pytest.raises(ProofError, match="ended while loading"):
        prove(box, bytes(data), me)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated(source: Any, box: Path, me: str, share: float) -> None:
    data = source.dump()
    with pytest.raises(ProofError, match=r"ended while loading.*log says: .+"):
        prove(box, data[: int(len(data) * share)], me)


def test_more_databases_than_announced(source: Any, box: Path, me: str) -> None:
    source.client.call("MOVE", "key:5", 9)
    with pytest.raises(ProofError):
        prove(box, source.dump(), me, {**EXPECTED, "databases": 4})


def test_the_deadline(source: Any, box: Path, me: str) -> None:
    source.client.call("DEBUG", "POPULATE", 200_000, "bulk", 100)
    started = time.monotonic()
    with pytest.raises(ProofError, match="not ready in time"):
        prove(box, source.dump(), me, seconds=0.05)
    assert time.monotonic() - started < 10


def test_no_redis_server(box: Path, me: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(box))
    with pytest.raises(NotProven, match="redis-server is not installed"):
        _scratch.prove(str(box / "dump.rdb"), str(box), EXPECTED, me, time.time() + 5)


# --- keys that expire -----------------------------------------------------------------------------------------------


def test_keys_that_expire_between_the_backup_and_the_restore(source: Any, box: Path, me: str) -> None:
    for number in range(5):
        source.client.call("SET", f"short:{number}", "1", "PX", 1500)
    data = source.dump()
    (box / "dump.rdb").write_bytes(data)
    counted = _scratch.load(str(box / "dump.rdb"), str(box), 16, CANARY, me, time.time() + 10)
    assert counted["keyspace"]["db0"] == {"keys": 15, "expires": 7} and counted["expired"] == 0
    time.sleep(1.6)
    found = prove(box, data, me, {**EXPECTED, **counted, "canary": EXPECTED["canary"]})
    assert found["keyspace"]["db0"] == {"keys": 10, "expires": 2} and found["expired"] == 5
    # What had expired at the backup already counts too: the same sum is found later.
    prove(box, data, me, {**EXPECTED, "keyspace": found["keyspace"], "expired": 5})
    with pytest.raises(ProofError, match="and 5 expired, 13 in the manifest"):
        prove(box, data, me, EXPECTED)


def test_keys_that_expire_after_the_load_count_too(source: Any) -> None:
    """Redis loads such keys and drops them before it is asked: they are not in rdb_last_load_keys_expired."""
    for number in range(5):
        source.client.call("SET", f"short:{number}", "1", "PX", 30)
    end = time.monotonic() + 5
    while source.client.info("stats")["expired_keys"] != "5":
        assert time.monotonic() < end
        time.sleep(0.02)
    found = _scratch.examine(source.client, CANARY)
    assert found["expired"] == 5
    assert _scratch.judge({**EXPECTED, "keyspace": {"db0": {"keys": 15, "expires": 7}, "db1": {"keys": 3, "expires": 0}}}, found) == []


def test_the_counts_are_of_one_moment() -> None:
    """One INFO for all: with two, a key that expires between them would be counted twice or never."""
    asked: list[Any] = []

    class Client:
        def info(self, section: str) -> dict[str, str]:
            asked.append(section)
            return {"db0": "keys=1,expires=0,avg_ttl=0", "expired_keys": "2", "rdb_last_load_keys_expired": "3", "used_memory": "4"}

    assert _scratch.examine(Client(), None) == {  # type: ignore[arg-type]
        "keyspace": {"db0": {"keys": 1, "expires": 0}},
        "loaded": None,
        "expired": 5,
        "used_memory": 4,
        "canary": None,
    }
    assert asked == ["default"]


# --- the servers, their end and their limits ------------------------------------------------------------------------

GOOD = rdb_writer.key("k", _rdb_format.STRING, rdb_writer.string("v"))
NO_LUA = "#!lua name=broken\nthis is no lua ("
ODD_HASH = rdb_writer.key("odd", _rdb_format.HASH_LISTPACK, rdb_writer.string(rdb_writer.listpack(["a", "b", "c"])))


@pytest.fixture(scope="session")
def dumps() -> dict[str, bytes]:
    """A dump with every encoding by each server."""
    made = {}
    for name in servers.BINARIES:
        with servers.running(name) as server:
            servers.fill(server.client)
            made[name] = server.dump()
    return made


def load(box: Path, data: bytes, name: str = "7.0", seconds: float = 20, **options: Any) -> dict[str, Any]:
    (box / "dump.rdb").write_bytes(data)
    return _scratch.load(str(box / "dump.rdb"), str(box), 16, None, "", time.time() + seconds, server=str(servers.BINARIES[name]), **options)


def walked(path: Path) -> Contents:
    return _rdb_walk.walk(str(path), now=time.time())


def proof(box: Path, data: bytes, name: str = "7.0", target: Target | None = None, seconds: float = 20) -> tuple[list[Finding], dict[str, Any]]:
    (box / "dump.rdb").write_bytes(data)
    contents = walked(box / "dump.rdb")
    return _scratch.proof(str(box / "dump.rdb"), contents, target, deadline=time.time() + seconds, server=str(servers.BINARIES[name]))


@pytest.mark.parametrize("name", servers.BINARIES)
def test_every_encoding_of_every_server_is_proven(dumps: dict[str, bytes], box: Path, name: str) -> None:
    findings, found = proof(box, dumps[name], name)
    assert findings == [] and found["version"] == " ".join(servers.VERSIONS[name])
    assert set(found["typed"]["types"]) == {"string", "list", "set", "zset", "hash", "stream"}
    assert sum(found["typed"]["types"].values()) == sum(counts["keys"] for counts in found["keyspace"].values())
    assert found["typed"]["elements"] > 1000 and found["fingerprint"]["keys"] > 0


@pytest.mark.parametrize(
    "part",
    [
        rdb_writer.key("m", _rdb_format.MODULE_2, rdb_writer.module_value()),
        rdb_writer.module_aux(),
        rdb_writer.function(NO_LUA),
        rdb_writer.key("k", _rdb_format.STRING, rdb_writer.string("again")),
        rdb_writer.select(16),
    ],
    ids=["module", "module-aux", "function", "duplicate", "database"],
)
@pytest.mark.parametrize("name", servers.BINARIES)
def test_what_a_server_refuses_whatever_its_exit_status(box: Path, name: str, part: bytes) -> None:
    with pytest.raises(Refused, match="ended while loading"):
        load(box, rdb_writer.rdb(rdb_writer.select(0), GOOD, part, version=9), name)


def test_a_path_that_needs_quotes(box: Path) -> None:
    folder = box / 'a "b" \\c'
    folder.mkdir()
    try:
        assert load(folder, rdb_writer.rdb(rdb_writer.select(0), GOOD))["loaded"] == 1
    finally:
        (folder / "dump.rdb").unlink()
        folder.rmdir()


def test_too_little_memory_is_no_verdict(source: Any, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.client.call("DEBUG", "POPULATE", 400_000, "bulk", 100)
    data = source.dump()
    assert load(box, data)["loaded"] == 400_013
    monkeypatch.setattr(_scratch, "free_memory", lambda: 100 << 20)
    with pytest.raises(NotProven, match="not enough memory"):
        load(box, data)


def test_no_memory_to_start_with_is_no_verdict(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "free_memory", lambda: 1 << 20)
    with pytest.raises(NotProven):
        load(box, rdb_writer.rdb(rdb_writer.select(0), GOOD))


def test_a_server_that_does_not_start_is_no_verdict(box: Path) -> None:
    with pytest.raises(NotProven, match="no-such-module"):
        load(box, rdb_writer.rdb(rdb_writer.select(0), GOOD), target=Target(loadmodule=(("/no-such-module.so",),)))


def test_a_file_that_its_user_may_not_read_is_no_verdict(box: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to be somebody else")
    _scratch.shutil.chown(box, "nobody", "nogroup")
    (box / "dump.rdb").write_bytes(rdb_writer.rdb(rdb_writer.select(0), GOOD))
    (box / "dump.rdb").chmod(0o600)
    with pytest.raises(NotProven, match="Permission denied"):
        _scratch.load(str(box / "dump.rdb"), str(box), 16, None, "redis", time.time() + 10)


def test_a_user_that_is_not_there_is_no_verdict(box: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to be somebody else")
    (box / "dump.rdb").write_bytes(rdb_writer.rdb(rdb_writer.select(0), GOOD))
    findings, dummy = _scratch.proof(str(box / "dump.rdb"), walked(box / "dump.rdb"), None, user="no-such-user", deadline=time.time() + 10)
    assert [finding.code for finding in findings] == ["not-proven"] and "no-such-user" in findings[0].text


def _child(box: Path, body: str) -> subprocess.Popen[str]:
    """Python that starts a scratch in `box` and says its process id."""
    script = f"""
    import sys, time
    sys.path[:0] = {sys.path!r}
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _scratch
    with _scratch.running({str(box)!r}, "", time.time() + 2) as client:
        print(client.info("server")["process_id"], flush=True)
        {body}
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)


def _gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_the_scratch_ends_with_us_even_when_we_are_killed(box: Path) -> None:
    with _child(box, "time.sleep(60)") as child:
        assert child.stdout
        pid = int(child.stdout.readline())
        child.kill()
        assert _gone(pid, 2)
    (box / "scratch.sock").unlink()


def test_an_error_of_ours_ends_the_scratch(box: Path) -> None:
    with pytest.raises(ZeroDivisionError), _scratch.running(str(box), "", time.time() + 10) as client:
        pid = int(client.info("server")["process_id"])
        _ = 1 / 0
    assert _gone(pid, 0.1)


# --- the proof of a file --------------------------------------------------------------------------------------------


def test_a_limit_of_the_target_is_measured_and_nothing_is_evicted(source: Any, box: Path) -> None:
    source.client.call("DEBUG", "POPULATE", 20_000, "bulk", 100)
    target = Target("redis", "7.0.15", 16, 2_000_000, "allkeys-lru", ())
    findings, found = proof(box, source.dump(), target=target)
    assert [finding.code for finding in findings] == ["eviction-forecast"]
    assert found["loaded"] == 20_013 and f"{found['used_memory'] - 2_000_000} more than" in findings[0].text
    assert proof(box, source.dump(), target=dataclasses.replace(target, maxmemory=200_000_000))[0] == []


def test_a_server_of_another_version_proves_nothing(dumps: dict[str, bytes], box: Path) -> None:
    findings, found = proof(box, dumps["6.2"], "7.0", Target("redis", "8.2.3"))
    assert [finding.code for finding in findings] == ["not-proven"] and found == {}
    assert "redis 7.0.15, the target is redis 8.2.3" in findings[0].text and verdict(findings) == "unknown"


def test_no_server_proves_nothing(dumps: dict[str, bytes], box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "dump.rdb").write_bytes(dumps["6.2"])
    monkeypatch.setenv("PATH", str(box))
    for server in ("redis", "valkey"):
        findings, dummy = _scratch.proof(str(box / "dump.rdb"), walked(box / "dump.rdb"), Target(server), deadline=time.time() + 9)
        assert [finding.code for finding in findings] == ["not-proven"] and f"{server}-server is not installed" in findings[0].text


def test_too_little_time_proves_nothing(source: Any, box: Path) -> None:
    source.client.call("DEBUG", "POPULATE", 200_000, "bulk", 100)
    assert [finding.code for finding in proof(box, source.dump(), seconds=0.1)[0]] == ["not-proven"]


def test_refusals_are_findings(box: Path) -> None:
    twice = rdb_writer.rdb(rdb_writer.select(0), GOOD, GOOD)
    findings, dummy = proof(box, twice)
    assert [finding.code for finding in findings] == ["load-refused"] and "redis 7.0.15: the server ended while loading" in findings[0].text
    findings, dummy = proof(box, rdb_writer.rdb(rdb_writer.function(NO_LUA), rdb_writer.select(0), GOOD))
    assert [finding.code for finding in findings] == ["load-refused"] and "compiling function" in findings[0].text
    assert verdict(findings) == "fail"


def test_a_database_that_nobody_limits_is_loaded(box: Path) -> None:
    data = rdb_writer.rdb(rdb_writer.select(700), GOOD)
    assert proof(box, data)[0] == []
    assert [finding.code for finding in proof(box, data, target=Target(databases=16))[0]] == ["load-refused"]


def test_a_module_of_the_target_is_loaded(box: Path) -> None:
    words = (str(servers.BINARIES["8.2"].parent / "falkordb.so"),)
    with servers.running("8.2", loadmodule=words[0]) as server:
        server.client.execute_command("GRAPH.QUERY", "g", "CREATE (:Titan {side: 'long'})")
        data = server.dump()
    assert [finding.code for finding in proof(box, data, "8.2")[0]] == ["load-refused"]
    findings, found = proof(box, data, "8.2", Target("redis", "8.2.3", 16, 0, "noeviction", ("graph",), (words,)))
    assert findings == [] and found["typed"]["types"] == {"module": 1}


@pytest.mark.parametrize("name", servers.BINARIES)
def test_keys_that_expired_are_no_difference(box: Path, name: str) -> None:
    gone = [rdb_writer.key(f"gone:{number}", _rdb_format.STRING, rdb_writer.string("x"), at_ms=1_000_000_000_000) for number in range(3)]
    findings, found = proof(box, rdb_writer.rdb(rdb_writer.select(0), rdb_writer.resize(4, 3), GOOD, *gone, version=9), name)
    assert findings == [] and found["keyspace"]["db0"]["keys"] == 1 and found["expired"] == (0 if name == "6.2" else 3)


def test_a_walk_that_counted_other_keys_differs(dumps: dict[str, bytes], box: Path) -> None:
    (box / "dump.rdb").write_bytes(dumps["7.0"])
    server = str(servers.BINARIES["7.0"])

    def differs(contents: Contents) -> str:
        findings, dummy = _scratch.proof(str(box / "dump.rdb"), contents, None, deadline=time.time() + 20, server=server)
        assert {finding.code for finding in findings} <= {"load-differs"}
        return "; ".join(finding.text for finding in findings)

    assert differs(walked(box / "dump.rdb")) == ""
    one_more = walked(box / "dump.rdb")
    one_more.keyspace["db0"]["keys"] += 1
    assert "in the walk" in differs(one_more)
    another_type = walked(box / "dump.rdb")
    another_type.types["list"] += 30
    assert "keys of type list, the walk counted" in differs(another_type)
    another_sample = walked(box / "dump.rdb")
    another_sample.samples.append((0, b"not there"))
    assert "sample keys are there" in differs(another_sample)


def test_empty_containers_that_a_server_drops_are_no_difference(box: Path) -> None:
    parts = [rdb_writer.key(f"e{number}", kind, rdb_writer.counted([])) for number, kind in enumerate((_rdb_format.LIST, _rdb_format.SET, _rdb_format.HASH))]
    (box / "dump.rdb").write_bytes(rdb_writer.rdb(rdb_writer.select(2), GOOD, *parts))
    contents = _rdb_walk.walk(str(box / "dump.rdb"), now=time.time(), values=_rdb_values.check)
    assert [finding.code for finding in contents.findings] == ["empty-container"] * 3
    findings, found = _scratch.proof(str(box / "dump.rdb"), contents, None, deadline=time.time() + 20, server=str(servers.BINARIES["7.0"]))
    assert findings == [] and found["keyspace"]["db2"]["keys"] == 1


def test_empty_containers_are_no_difference() -> None:
    contents = Contents(keyspace={"db0": {"keys": 3, "expires": 0}}, types={"string": 2, "list": 1})
    found = {
        "keyspace": {"db0": {"keys": 2, "expires": 0}},
        "loaded": 2,
        "expired": 0,
        "typed": {"types": {"string": 2}, "differing": []},
        "fingerprint": {"keys": 0},
    }
    assert [finding.code for finding in _scratch.compare(contents, found)] == ["load-differs"] * 3
    contents.findings.append(Finding("empty-container", "empty list", key="l", database=0))
    assert _scratch.compare(contents, found) == []


# --- reading every key ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["7.0", "8.2"])
def test_a_key_that_kills_the_server_is_named(box: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As a server without sanitizing loads it: it comes up, and dies of the first read."""
    filler = [rdb_writer.key(f"k{number}", _rdb_format.STRING, rdb_writer.string("v")) for number in range(500)]
    data = rdb_writer.rdb(rdb_writer.select(0), *filler, rdb_writer.select(3), *filler[:250], ODD_HASH, *filler[250:])
    (box / "dump.rdb").write_bytes(data)
    contents = Contents(magic="REDIS", version=10, keyspace={"db0": {"keys": 500, "expires": 0}, "db3": {"keys": 501, "expires": 0}})

    def findings() -> list[Finding]:
        return _scratch.proof(str(box / "dump.rdb"), contents, None, deadline=time.time() + 20, server=str(servers.BINARIES[name]))[0]

    (refused,) = findings()
    assert refused.code == "load-refused" and "integrity check failed" in refused.text and refused.key is None
    monkeypatch.setattr(_scratch, "SANITIZE", "no")
    (deadly,) = findings()
    assert (deadly.code, deadly.key, deadly.database) == ("load-refused", "odd", 3) and "dies of reading a key" in deadly.text


def test_a_stream_that_holds_other_entries_than_it_says(box: Path) -> None:
    with servers.running("7.0") as server:
        for number in (1, 2, 3):
            server.client.execute_command("XADD", "s", f"{number}-1", "a", "b")
        data = server.dump()
    tail = bytes([3, 3, 1, 1, 1, 0, 0, 3, 0])  # length, last id, first id, deleted id, entries added, groups
    assert data.count(tail) == 1
    (box / "dump.rdb").write_bytes(rdb_writer.reseal(data.replace(tail, bytes([4, *tail[1:]]))))
    contents = Contents(magic="REDIS", version=10, keyspace={"db0": {"keys": 1, "expires": 0}}, types={"stream": 1})
    (found,) = _scratch.proof(str(box / "dump.rdb"), contents, None, deadline=time.time() + 20, server=str(servers.BINARIES["7.0"]))[0]
    assert (found.code, found.key, found.text) == ("load-differs", "s", "holds 3 elements, and says 4")


def test_time_runs_out_while_reading(dumps: dict[str, bytes]) -> None:
    with servers.running("7.0", dumps["7.0"]) as server, pytest.raises(NotProven, match="not every key was read in time"):
        _scratch.typed_read(_redis.Redis(str(server.folder / "s")), time.time() - 1)


# --- the fingerprint ------------------------------------------------------------------------------------------------


class Watched:
    """A client that remembers what it was asked, and how much came back."""

    def __init__(self, address: str) -> None:
        self.client = _redis.Redis(address)
        self.asked: list[tuple[Any, ...]] = []
        self.biggest = 0

    def raw(self, *words: Any) -> Any:
        self.asked.append(words)
        reply = self.client.raw(*words)
        parts = reply if isinstance(reply, list) else [reply]
        self.biggest = max(self.biggest, len(parts), *(len(part) for part in parts if isinstance(part, (bytes, list))))
        return reply


@pytest.fixture
def held() -> Iterator[Any]:
    """A server with one key of each kind, some binary."""
    with servers.running("7.0") as server:
        call = server.client.execute_command
        call("SET", b"bin\xff\x00\r\n", b"\xfe" * 40)
        call("SET", "text", "value")
        call("RPUSH", "list", *range(2500))
        call("HSET", "hash", *(part for number in range(1500) for part in (f"f{number}", number)))
        call("SADD", "set", *(f"m{number}" for number in range(1500)))
        call("ZADD", "zset", *(part for number in range(1500) for part in (number / 7, f"m{number}")))
        for number in range(1, 2101):
            call("XADD", "stream", f"{number}-1", "a", number)
        call("XGROUP", "CREATE", "stream", "g", "0")
        call("SELECT", 5)
        call("SET", "text", "in another database")
        call("SELECT", 0)
        yield server


KEYS = [(0, name) for name in (b"bin\xff\x00\r\n", b"text", b"list", b"hash", b"set", b"zset", b"stream")] + [(5, b"text")]


def taken(server: Any, samples: Any = KEYS, **options: Any) -> dict[str, Any]:
    return _scratch.fingerprint(_redis.Redis(str(server.folder / "s")), samples, **options)


def test_the_same_fingerprint_on_every_server(dumps: dict[str, bytes], box: Path) -> None:
    (box / "dump.rdb").write_bytes(dumps["6.2"])
    samples = walked(box / "dump.rdb").samples
    found = []
    for name in servers.BINARIES:
        for size in ("128", "0"):
            # no compact encodings in the second round: what is kept in order and what is not changes places
            limits = {f"{kind}-max-ziplist-{what}": size for kind in ("hash", "zset") for what in ("entries", "value")}
            with servers.running(name, dumps["6.2"], **limits) as server:
                found.append(taken(server, samples))
    assert found == [found[0]] * 8 and found[0]["keys"] == len(samples) > 20


def test_the_order_of_the_samples_does_not_matter(held: Any) -> None:
    assert taken(held) == taken(held, list(reversed(KEYS))) == taken(held, KEYS * 2)


@pytest.mark.parametrize(
    "change",
    [
        ("DEL", "text"),
        ("SET", "text", "valuf"),
        ("SETRANGE", b"bin\xff\x00\r\n", 20, b"\xfd"),
        ("LSET", "list", 1700, "x"),
        ("RPUSH", "list", "x"),
        ("HSET", "hash", "f700", "x"),
        ("HDEL", "hash", "f700"),
        ("SREM", "set", "m3"),
        ("ZINCRBY", "zset", "0.000001", "m900"),
        ("ZREM", "zset", "m900"),
        ("XDEL", "stream", "1100-1"),
        ("XTRIM", "stream", "MAXLEN", "2099"),
        ("XGROUP", "DESTROY", "stream", "g"),
        ("XGROUP", "SETID", "stream", "g", "7-1"),
        ("XREADGROUP", "GROUP", "g", "me", "COUNT", "1", "STREAMS", "stream", ">"),
        ("XSETID", "stream", "9999-9"),
    ],
    ids=lambda words: f"{words[0]} {words[1]}",
)
def test_every_change_changes_it(held: Any, change: tuple[Any, ...]) -> None:
    before = taken(held)
    held.client.execute_command(*change)
    after = taken(held)
    assert before["sha256"] != after["sha256"]
    assert before["keys"] == 8 and after["keys"] == (7 if change[0] == "DEL" else 8)


def test_a_key_of_another_type_or_in_another_database(held: Any) -> None:
    before = taken(held)
    held.client.execute_command("DEL", "set")
    held.client.execute_command("HSET", "set", "a", "b")
    swapped = taken(held)
    held.client.execute_command("SWAPDB", 0, 5)
    assert len({found["sha256"] for found in (before, swapped, taken(held))}) == 3


def test_it_asks_for_its_keys_alone_in_small_pieces(held: Any) -> None:
    call = held.client.execute_command
    call("SET", "big", b"x" * (9 << 20))
    call("EVAL", "for n = 1, 60 do local t = {} for i = 1, 1000 do t[i] = i end redis.call('RPUSH', 'long', unpack(t)) end", 0)
    call("EVAL", "for n = 1, 60 do local t = {} for i = 1, 1000 do t[i] = n * 1000 + i end redis.call('SADD', 'crowd', unpack(t)) end", 0)
    client = Watched(str(held.folder / "s"))
    samples = [*KEYS, (0, b"big"), (0, b"long"), (0, b"crowd")]
    found = _scratch.fingerprint(client, samples)  # type: ignore[arg-type]
    assert client.biggest <= 1 << 16
    names = {words[0] for words in client.asked}
    assert not names & {"KEYS", "SCAN", "CONFIG", "DEBUG", "EVAL", "EVALSHA", "DUMP", "GET", "HGETALL", "SMEMBERS"}
    assert len([words for words in client.asked if words[0] == "LRANGE" and words[1] == b"long"]) == 20
    assert len([words for words in client.asked if words[0] == "GETRANGE" and words[1] == b"big"]) == 32
    # What lies in the middle of a big value is not read; its ends and its length are.
    call("SETRANGE", "big", 4 << 20, "y")
    assert taken(held, samples) == found
    call("SETRANGE", "big", (9 << 20) - 1, "y")
    assert taken(held, samples) != found


def test_renamed_commands(held: Any) -> None:
    plain = taken(held)
    data = held.dump()
    renamed = {name: f"hidden-{name}" for name in ("SELECT", "TYPE", "STRLEN", "GETRANGE", "LRANGE", "HSCAN", "XINFO", "XRANGE", "ZRANGE")}
    text = "".join(f"rename-command {name} {other}\n" for name, other in renamed.items())
    conf = _redis.parse_conf(text + 'rename-command SCARD ""\nrename-command CONFIG ""\n')
    folder = held.folder / "renamed"
    folder.mkdir()
    (folder / "dump.rdb").write_bytes(data)
    settings = f'port 0\nunixsocket {folder}/s\ndir {folder}\nsave ""\n{text}rename-command KEYS ""\nrename-command EVAL ""\n'
    server = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert server.stdin
        with server.stdin as stdin:
            stdin.write(settings.encode())
        client = _redis.wait_ready(str(folder / "s"), "", time.time() + 10, lambda: server.poll() is None)
        with pytest.raises(_redis.RedisError, match="SCARD is disabled"):
            _scratch.fingerprint(client, KEYS, conf.command)
        assert _scratch.fingerprint(client, KEYS, lambda name: renamed.get(name, name)) == plain
        with pytest.raises(_redis.RedisError, match="unknown command"):
            _scratch.fingerprint(client, KEYS)
    finally:
        server.kill()
        server.wait()


def test_an_error_is_never_a_fingerprint(redis_server: Any) -> None:
    server = redis_server(requirepass="secret")
    with pytest.raises(_redis.RedisError, match="NOAUTH"):
        _scratch.fingerprint(_redis.Redis(server.conf.address), [(0, b"k")])


# --- function libraries ---------------------------------------------------------------------------------------------

LIBRARY = servers.LIBRARY.format(name="good").encode()


@pytest.mark.parametrize(
    ("payloads", "complaint"),
    [
        ([LIBRARY], ""),
        ([LIBRARY, servers.LIBRARY.format(name="other").encode()], ""),
        ([NO_LUA.encode()], "the library broken: ERR Error compiling function"),
        ([LIBRARY, LIBRARY], "the library good: ERR Library 'good' already exists"),
        ([b"#!nolua name=foreign\nx"], "the library foreign: ERR Engine 'nolua' not found"),
        ([b"return 1"], "a library that begins with 'return 1'"),
        ([b"#!lua name=none\nlocal nothing = 1"], "No functions registered"),
        ([b"#!lua name=runs\nredis.call('GET', 'k')"], "the library runs: ERR"),
    ],
    ids=["good", "two", "syntax", "twice", "engine", "no name", "no function", "runtime"],
)
@pytest.mark.parametrize("name", ["7.0", "8.2", "valkey-9.1"])
def test_the_canary_says_what_the_load_does(box: Path, name: str, payloads: list[bytes], complaint: str) -> None:
    findings = _scratch.function_canary(payloads, str(servers.BINARIES[name]))
    assert [finding.code for finding in findings] == (["function-broken"] if complaint else [])
    assert complaint in "".join(finding.text for finding in findings)
    data = rdb_writer.rdb(*(rdb_writer.function(payload) for payload in payloads), rdb_writer.select(0), GOOD)
    if complaint:
        with pytest.raises(Refused):
            load(box, data, name)
    else:
        assert load(box, data, name)["loaded"] == 1


def test_the_canary_on_a_server_without_functions() -> None:
    assert [finding.code for finding in _scratch.function_canary([LIBRARY], str(servers.BINARIES["6.2"]))] == ["function-broken"]


def test_the_canary_without_a_server() -> None:
    assert _scratch.function_canary([], "/no/such/server") == []
    (found,) = _scratch.function_canary([LIBRARY], "/no/such/server")
    assert found.code == "not-proven" and found.text.startswith("1 function libraries were not compiled: /no/such/server is not installed")
