# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server still holds itself, beside the restore points: on real files of a real Redis, each damage in its own way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb_walk, _redis_unit, _salvage
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_stage, redis_swap

CANARY = {"key": "titan:dr:canary", "db": 1}
INCIDENT = 1020.0


class Titan:
    """A server that was backed up, went on, and broke: `host` is the server, `case` what the recovery is told."""

    def __init__(self, host: Any, case: Any, redis_server: Any, section_of: Any) -> None:
        self.host, self.case = host, case
        host.configure("appendonly yes", "requirepass secret", "aof-timestamp-enabled yes", "appendfsync no")  # with everysec a write may wait for a sync
        host.launch()
        self.client = host.client()
        archived = redis_server()
        archived.fill()
        self.write(archived.client, range(100))
        dump = archived.dump()
        case.section = section_of(dump)
        case.add("point", dump)
        # the same data, then what came after the restore point
        self.fill()
        self.client.call("BGREWRITEAOF")
        self.until_saved()
        self.client.call("BGSAVE")
        self.until_saved()
        case.params |= {"salvage": "auto", "incident_started_at": INCIDENT}

    def write(self, client: Any, numbers: range) -> None:
        for number in numbers:
            client.call("HSET", f"titan:orders:{number}", "side", "long", "qty", str(number))

    def fill(self) -> None:
        for number in range(10):
            self.client.call("SET", f"key:{number}", "x" * 50, *(("EX", "900") if number < 2 else ()))
        self.client.call("SELECT", 1)
        self.client.call("HSET", "titan:positions:binance:BTC", "side", "long", "size", "1")
        self.client.call("SET", "titan:x", "1")
        self.canary(7, 1000.0)
        self.client.call("SELECT", 0)
        self.write(self.client, range(100))

    def canary(self, seq: int, at: float) -> None:
        self.client.call("SELECT", 1)
        self.client.call("SET", CANARY["key"], json.dumps({"seq": seq, "at": at}))
        self.client.call("SELECT", 0)

    def until_saved(self) -> None:
        end = time.monotonic() + 10
        while "in_progress:1" in (said := self.client.call("INFO", "persistence")) or "scheduled:1" in said:
            assert time.monotonic() < end
            time.sleep(0.02)

    def go_on(self) -> None:
        """What no restore point and no dump holds."""
        for seq in range(8, 18):
            self.canary(seq, 1000.0 + seq)
            self.write(self.client, range(seq * 100, seq * 100 + 5))
        self.client.call("SET", "key:5", "changed")
        self.client.call("SET", "last", "value-of-the-last")

    def die(self) -> None:
        self.client.close()
        self.host.process.kill()
        self.host.process.wait()

    @property
    def log(self) -> Path:
        found: Path = next((self.host.data / "appendonlydir").glob("*.incr.aof"))
        return found

    @property
    def base(self) -> Path:
        found: Path = next((self.host.data / "appendonlydir").glob("*.base.rdb"))
        return found

    def rows(self, result: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {row["kind"]: row for row in result["titan_dr"]["candidates"]}

    def verdicts(self, result: dict[str, Any]) -> dict[str, str]:
        return {kind: row["verdict"] for kind, row in self.rows(result).items()}


@pytest.fixture
def titan(host: Any, case: Any, redis_server: Any, section_of: Any) -> Titan:
    found = Titan(host, case, redis_server, section_of)
    found.go_on()
    return found


def chosen(result: dict[str, Any]) -> str:
    assert not result["failed"], result["msg"]
    return str(next(row["kind"] for row in result["titan_dr"]["candidates"] if row["chosen"]))


def stays_as_it_was(titan: Titan) -> Callable[[], None]:
    for path in titan.host.data.rglob("*"):
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)

    def look() -> dict[Path, Any]:
        found = {path: path.stat() for path in titan.host.data.rglob("*")}
        return {path: (path.is_file() and path.read_bytes(), at.st_mtime_ns, at.st_uid, at.st_mode, at.st_nlink) for path, at in found.items()}

    files = look()

    def check() -> None:
        assert look() == files

    return check


def test_an_intact_log_loses_nothing_and_goes_live(titan: Titan, run_module: Any) -> None:
    titan.die()
    unchanged = stays_as_it_was(titan)
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "aof" and titan.verdicts(result) == {"archive": "proven", "dump": "proven", "aof": "proven"}
    unchanged()
    assert os.listdir(titan.case.directory) == ["base.rdb"]
    rows = result["titan_dr"]
    assert rows["rpo"] == {"actual_s": 3.0, "basis": "canary"} and result["data_at"] == 1017.0
    assert rows["restore_point"]["id"] == "aof" and rows["gates"][0]["verdict"] == "pass"
    assert titan.rows(result)["archive"]["loss_s"] == 20.0 and titan.rows(result)["dump"]["loss_s"] == 20.0
    assert "loses less; the restore point point would lose 20.0 s" in rows["notes"][0]
    swapped = run_module(redis_swap, {**titan.host.params, "expected": result["expected"], "restore_point": "aof"})
    assert not swapped["failed"], swapped["msg"]
    client = titan.host.client()
    assert client.call("GET", "last") == "value-of-the-last" and client.call("HGET", "titan:orders:1704", "qty") == "1704"


def test_without_salvage_nothing_of_the_server_is_looked_at(titan: Titan, run_module: Any) -> None:
    titan.die()
    result = run_module(redis_stage, {**titan.case.params, "salvage": "archive_only"})
    assert chosen(result) == "archive" and set(titan.rows(result)) == {"archive"}


def garbage(titan: Titan) -> None:
    with open(titan.log, "ab") as handle:
        handle.write(os.urandom(300).replace(b"*", b"x"))


def cut_tail(titan: Titan) -> None:
    os.truncate(titan.log, titan.log.stat().st_size - 5)


@pytest.mark.parametrize(("damage", "last"), [(garbage, "value-of-the-last"), (cut_tail, None)])
def test_b16_a_damaged_tail_loses_what_it_damages(titan: Titan, run_module: Any, damage: Callable[[Titan], None], last: str | None) -> None:
    titan.die()
    damage(titan)
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "aof", result["titan_dr"]["candidates"]
    assert any("behind the last whole command" in note for note in result["titan_dr"]["notes"])
    swapped = run_module(redis_swap, {**titan.host.params, "expected": result["expected"]})
    assert not swapped["failed"], swapped["msg"]
    assert titan.host.client().call("GET", "last") == last and titan.host.client().call("GET", "key:5") == "changed"
    assert Path(swapped["kept"], "appendonlydir", titan.log.name).stat().st_size > 0


def sampled(dump: Path, at_least: int) -> int:
    """The first order from this number on that is looked at: in which order a dump holds its keys, and so which those are, is random."""
    keys = {key for dummy, key in _rdb_walk.walk(str(dump), now=INCIDENT).samples}
    return next(number for number in range(at_least, 2000) if b"titan:orders:%d" % number in keys)


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def flip_base(titan: Titan) -> None:
    data = bytearray(titan.base.read_bytes())
    data[len(data) // 2] ^= 16
    titan.base.write_bytes(data)


def no_manifest(titan: Titan) -> None:
    next((titan.host.data / "appendonlydir").glob("*.manifest")).unlink()


def no_increment(titan: Titan) -> None:
    titan.log.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(flip_base, "checksum|CRC64|does not end|corrupt", id="base"),
        pytest.param(no_manifest, "no manifest", id="b18_no_manifest"),
        pytest.param(no_increment, "it is not there", id="b19_no_increment"),
    ],
)
def test_a_log_that_cannot_be_used_leaves_the_dump(titan: Titan, run_module: Any, damage: Callable[[Titan], None], said: str) -> None:
    titan.client.call("BGSAVE")
    titan.until_saved()
    titan.client.call("SET", "later", "1")
    titan.die()
    damage(titan)
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "dump" and titan.verdicts(result)["aof"] == "refused"
    import re

    assert re.search(said, titan.rows(result)["aof"]["reason"]), titan.rows(result)["aof"]
    assert result["titan_dr"]["rpo"]["actual_s"] == 3.0


def test_a_damaged_middle_wins_with_consent_alone(titan: Titan, run_module: Any) -> None:
    titan.die()
    data = titan.log.read_bytes()
    at = data.index(b"titan:orders:1502") - 10
    titan.log.write_bytes(data[:at] + b"\0" * 40 + data[at + 40 :])
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "archive" or chosen(result) == "dump"
    row = titan.rows(result)["aof"]
    assert row["verdict"] == "unproven" and "damaged in its middle" in row["reason"] and row["loss_s"] == 5.0
    assert any("canary numbers 8 to 17 (10)" in note for note in result["titan_dr"]["notes"])
    result = run_module(redis_stage, {**titan.case.params, "salvage": "unproven_ok"})
    assert chosen(result) == "aof" and "with consent, although it is not proven" in result["titan_dr"]["notes"][0]
    assert any("titan:orders" in note and "holds keys" in note for note in result["titan_dr"]["notes"]) is False


def test_commands_that_were_cut_out_leave_a_hole_in_the_canary(titan: Titan, run_module: Any) -> None:
    """Framing does not tell: what is left is whole commands."""
    titan.die()
    data = titan.log.read_bytes()
    one, two = (data.index(b'{"seq": %d,' % seq) for seq in (11, 13))
    start = data.rindex(b"*2\r\n$6\r\nSELECT", 0, one)
    end = data.rindex(b"*2\r\n$6\r\nSELECT", 0, two)
    titan.log.write_bytes(data[:start] + data[end:])
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) != "aof" and "its canary jumps from 10 to 13" in titan.rows(result)["aof"]["reason"]


def test_b17_a_changed_value_contradicts_what_is_proven(titan: Titan, redis_server: Any, run_module: Any) -> None:
    """A bit of a key's name: a key that is proven elsewhere is gone, and no command says so."""
    titan.client.call("BGREWRITEAOF")
    titan.until_saved()
    # the keys that are held against each other are those of the dump that was made beside the base
    seen = sampled(titan.host.data / "dump.rdb", 10)
    gone = seen + 1 if seen % 10 < 9 else seen - 1
    titan.client.call("DEL", f"titan:orders:{gone}")
    titan.die()
    rewrite(titan.log, b"titan:orders:%d" % gone, b"titan:orders:%d" % seen)
    # the dump is older than the base here, so that it says nothing; the class never changes
    titan.case.params["invariants"] = [{"class": "titan:orders", "immutable": True}]
    result = run_module(redis_stage, titan.case.params)
    row = titan.rows(result)["aof"]
    assert row["verdict"] == "unproven" and f"titan:orders:{seen} differs" in row["reason"], row


def test_a_difference_that_no_command_explains(titan: Titan, run_module: Any) -> None:
    titan.client.call("BGSAVE")
    titan.until_saved()
    titan.die()
    seen = sampled(titan.host.data / "dump.rdb", 1000)
    rewrite(titan.log, b"$17\r\ntitan:orders:%d\r\n" % seen, b"$17\r\ntitan:orders:%d\r\n" % (seen + 90))
    result = run_module(redis_stage, titan.case.params)
    row = titan.rows(result)["aof"]
    assert row["verdict"] == "unproven" and f"titan:orders:{seen} differs from the dump of the server and no command names it" in row["reason"]
    assert chosen(result) == "dump"


def test_rot_beside_it_takes_the_trust_away(titan: Titan, run_module: Any) -> None:
    titan.die()
    dump = titan.host.data / "dump.rdb"
    data = bytearray(dump.read_bytes())
    data[-20] ^= 1
    dump.write_bytes(data)
    result = run_module(redis_stage, titan.case.params)
    assert titan.verdicts(result) == {"archive": "proven", "dump": "refused", "aof": "unproven"}
    assert "is damaged, so that its own values may be" in titan.rows(result)["aof"]["reason"] and chosen(result) == "archive"


def test_data_that_was_deleted_does_not_come_back_as_the_newest(titan: Titan, run_module: Any) -> None:
    for number in range(100):
        titan.client.call("DEL", f"titan:orders:{number}")
    titan.client.call("BGSAVE")
    titan.until_saved()
    titan.die()
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "archive"
    for kind in ("aof", "dump"):
        row = titan.rows(result)[kind]
        assert row["verdict"] == "unproven" and "titan:orders has 50 keys, the newest restore point has 100" in row["reason"]


def test_without_any_usable_restore_point_the_log_saves_the_day(titan: Titan, run_module: Any) -> None:
    titan.die()
    point = titan.case.box / "point.object"
    point.write_bytes(b"x" * 100)
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "aof" and titan.verdicts(result) == {"archive": "refused", "dump": "proven", "aof": "proven"}
    (titan.host.data / "dump.rdb").unlink()
    result = run_module(redis_stage, titan.case.params)
    # nothing is left that could speak for its values
    assert result["failed"] and "no usable restore point" in result["msg"] and "nothing that is proven can be held against its values" in result["msg"]
    assert {row["kind"]: row["verdict"] for row in result["titan_dr"]["candidates"]} == {"archive": "refused", "aof": "unproven"}
    assert chosen(run_module(redis_stage, {**titan.case.params, "salvage": "unproven_ok"})) == "aof"


def test_an_invariant_that_is_broken_is_never_overruled(titan: Titan, run_module: Any) -> None:
    titan.die()
    titan.case.params |= {"invariants": [{"class": "titan:orders", "max": 110}], "salvage": "unproven_ok"}
    result = run_module(redis_stage, titan.case.params)
    assert titan.verdicts(result)["aof"] == "refused" and chosen(result) in ("archive", "dump")


def test_a_server_that_hangs_is_salvaged_as_it_stands(titan: Titan, run_module: Any) -> None:
    pid = titan.host.process.pid
    os.kill(pid, signal.SIGSTOP)
    result = run_module(redis_stage, titan.case.params)
    assert chosen(result) == "aof" and _redis_unit.state(pid) == "T"


# --- a point in time ------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(titan: Titan) -> float:
    """Orders are deleted by mistake; returns when that was."""
    time.sleep(1.1)
    titan.client.call("SET", "good", "1")
    time.sleep(1.1)
    at = time.time()
    for number in range(100):
        titan.client.call("DEL", f"titan:orders:{number}")
    return at


def test_the_log_up_to_a_point_in_time(titan: Titan, damaged: float, run_module: Any) -> None:
    result = run_module(redis_stage, {**titan.case.params, "restore_to": damaged})
    assert chosen(result) == "aof", result["titan_dr"]["candidates"]
    swapped = run_module(redis_swap, {**titan.host.params, "expected": result["expected"]})
    assert not swapped["failed"], swapped["msg"]
    client = titan.host.client()
    assert client.call("HGET", "titan:orders:50", "qty") == "50" and client.call("GET", "good") == "1"


def test_what_was_taken_later_is_no_candidate(titan: Titan, damaged: float, run_module: Any) -> None:
    titan.client.call("BGSAVE")
    titan.until_saved()
    titan.case.add("later", titan.host.data.joinpath("dump.rdb").read_bytes(), taken_at=damaged + 1)
    titan.case.params["candidates"].reverse()
    before = titan.base.stat().st_mtime - 5
    result = run_module(redis_stage, {**titan.case.params, "restore_to": before, "salvage": "unproven_ok"})
    # the point's own dump was written just now: by its time it is too new as well
    assert result["failed"] and "taken after the point in time" in result["msg"]
    result = run_module(redis_stage, {**titan.case.params, "restore_to": damaged})
    assert chosen(result) == "aof" and "after the point in time" in titan.rows(result)["dump"]["reason"]


# --- a replica ------------------------------------------------------------------------------------------------------


def test_a_replica_is_taken_when_it_loses_least(titan: Titan, redis_server: Any, run_module: Any) -> None:
    server = redis_server(port="0", requirepass="of-the-replica", repl_diskless_sync_delay="0")
    assert server
    titan.die()
    titan.log.unlink()
    import socket as sockets

    with sockets.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    replica = redis_server(port=str(port), repl_diskless_sync_delay="0")
    replica.fill(seq=30, at=1019.0)
    titan.write(replica.client, range(100))
    result = run_module(redis_stage, {**titan.case.params, "replica": {"host": "127.0.0.1", "port": port}})
    assert chosen(result) == "replica" and result["titan_dr"]["rpo"]["actual_s"] == 1.0, result["titan_dr"]["candidates"]
    replica.client.call("CONFIG", "SET", "requirepass", "other")
    result = run_module(redis_stage, {**titan.case.params, "replica": {"host": "127.0.0.1", "port": port, "password": "WRONG-SECRET"}})
    assert "WRONGPASS" in titan.rows(result)["replica"]["reason"] and chosen(result) != "replica"
    assert "WRONG-SECRET" not in json.dumps(result["titan_dr"])


# --- side by side ---------------------------------------------------------------------------------------------------


def test_workers_and_their_servers_end_with_the_one_that_began_them(titan: Titan, run_module: Any, monkeypatch: Any) -> None:
    """Killed on the spot: nobody can clean up, the kernel does."""
    titan.die()
    (titan.case.box / "marker").unlink()  # the restore point waits for ever, and the others hold their proof against it
    run_module(redis_stage, {**titan.case.params, "mode": "start"})
    end = time.monotonic() + 10
    while len(children := _redis_unit.family(int(redis_stage.read(str(titan.case.job)).get("pid", 0)))) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(int(redis_stage.read(str(titan.case.job))["pid"]), signal.SIGKILL)
    while any(_redis_unit.state(pid) not in ("", "Z") for pid in children):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_outcomes_are_kept_where_the_user_of_redis_cannot_write(box: Path) -> None:
    _salvage.write_outcome(str(box), _salvage.Outcome("aof", "x", "y"))
    found = _salvage.read_outcome(str(box), "aof")
    assert found is not None and found.verdict == "refused" and _salvage.read_outcome(str(box), "dump") is None
