# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import rdb_writer
from ansible_collections.titan.disaster_recovery.plugins.modules import redis_aof_verify

BASE, INCREMENT, MANIFEST = "appendonly.aof.1.base.rdb", "appendonly.aof.1.incr.aof", "appendonly.aof.manifest"
TARGET = {"server": "redis", "version": "7.0.15", "databases": 16, "maxmemory": 0, "modules": []}


def command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


COMMANDS = b"".join(b"#TS:%d\r\n%b" % (1700000000 + number, command("SET", f"key:{number}", "v")) for number in range(9))


@pytest.fixture
def folder(box: Path) -> Path:
    found = box / "appendonlydir"
    found.mkdir()
    parts = (rdb_writer.aux("ctime", "1699999999"), rdb_writer.select(0), rdb_writer.resize(1, 0), rdb_writer.key(b"base", 0, rdb_writer.string(b"1")))
    (found / BASE).write_bytes(rdb_writer.rdb(*parts))
    (found / INCREMENT).write_bytes(command("SELECT", "0") + COMMANDS)
    (found / MANIFEST).write_text(f"file {BASE} seq 1 type b\nfile {INCREMENT} seq 1 type i\n")
    return found


def gate(result: dict[str, Any]) -> dict[str, str]:
    (row,) = result["titan_dr"]["gates"]
    assert row["name"] == "redis_aof"
    return dict(row)


def test_intact_is_unknown_until_its_digests_were_recorded(folder: Path, run_module: Any) -> None:
    arguments = {"path": str(folder), "target": TARGET}
    result = run_module(redis_aof_verify, arguments)
    assert result["failed"] and gate(result)["verdict"] == "unknown" and result["report"]["state"] == "intact"
    result = run_module(redis_aof_verify, {**arguments, "accept_unknown": True})
    assert not result["failed"] and not result["changed"] and gate(result)["verdict"] == "unknown"
    recorded = result["report"]["digests"]
    result = run_module(redis_aof_verify, {**arguments, "recorded": recorded})
    assert not result["failed"] and not result["changed"] and gate(result)["verdict"] == "pass"
    (folder / INCREMENT).write_bytes(command("SELECT", "0") + COMMANDS.replace(b"\r\nv\r\n", b"\r\nw\r\n", 1))
    result = run_module(redis_aof_verify, {**arguments, "recorded": recorded})
    assert result["failed"] and gate(result)["verdict"] == "fail" and result["report"]["state"] == "intact"


def test_what_is_lost_is_named(folder: Path, run_module: Any) -> None:
    (folder / INCREMENT).write_bytes(command("SELECT", "0") + COMMANDS[:-4])
    result = run_module(redis_aof_verify, {"path": str(folder), "target": TARGET, "accept_unknown": True})
    usable = result["report"]["usable"]
    assert not result["failed"] and result["report"]["state"] == "recoverable tail"
    assert (usable["file"], usable["command"], usable["timestamp"], usable["commands_lost"]) == (INCREMENT, 9, 1700000008, 0)
    assert usable["bytes_lost"] == len(command("SET", "key:8", "v")) - 4
    (folder / MANIFEST).unlink()
    result = run_module(redis_aof_verify, {"path": str(folder), "target": TARGET, "accept_unknown": True})
    assert result["failed"] and "starts empty" in result["msg"] and gate(result)["verdict"] == "fail"


def test_salvage(folder: Path, box: Path, run_module: Any) -> None:
    arguments = {"path": str(folder), "target": TARGET, "salvage_to": str(box / "salvaged"), "accept_unknown": True}
    # nothing to salvage
    assert not run_module(redis_aof_verify, arguments)["changed"] and not (box / "salvaged").exists()
    damaged = command("SELECT", "0") + COMMANDS.replace(b"key:5", b"key5")
    (folder / INCREMENT).write_bytes(damaged)
    result = run_module(redis_aof_verify, arguments, check=True)
    assert result["changed"] and not result["failed"] and not (box / "salvaged").exists() and result["report"]["state"] == "corrupt middle"
    result = run_module(redis_aof_verify, arguments)
    assert result["changed"] and not result["failed"] and gate(result)["verdict"] == "unknown" and "corrupt middle" in gate(result)["evidence"]
    assert result["report"]["verdict"] == "fail" and result["salvaged"]["report"]["state"] == "intact"
    assert result["salvaged"]["path"] == str(box / "salvaged") and sorted(os.listdir(box / "salvaged")) == [BASE, INCREMENT, MANIFEST]
    assert (box / "salvaged" / INCREMENT).read_bytes() == damaged[: result["report"]["usable"]["offset"]]
    assert (folder / INCREMENT).read_bytes() == damaged
    # never over something that is there
    result = run_module(redis_aof_verify, arguments)
    assert result["failed"] and "exists" in result["msg"] and gate(result)["verdict"] == "unknown"


def test_point_in_time(folder: Path, box: Path, run_module: Any) -> None:
    arguments = {"path": str(folder), "target": TARGET, "salvage_to": str(box / "salvaged"), "until": 1700000003}
    digests = run_module(redis_aof_verify, {"path": str(folder), "target": TARGET})["report"]["digests"]
    # a copy out of a proven AOF is as good as it
    result = run_module(redis_aof_verify, {**arguments, "recorded": digests})
    assert result["changed"] and gate(result)["verdict"] == "pass" and result["salvaged"]["timestamp"] == 1700000003
    assert (box / "salvaged" / INCREMENT).read_bytes().endswith(command("SET", "key:3", "v"))
    result = run_module(redis_aof_verify, {**arguments, "salvage_to": str(box / "other"), "until": 5})
    assert result["failed"] and "base was taken" in result["msg"] and not (box / "other").exists()


def test_limits_come_from_the_configuration(folder: Path, box: Path, run_module: Any) -> None:
    (folder / INCREMENT).write_bytes(command("SELECT", "3") + COMMANDS + command("FLUSHALL"))
    conf = box / "redis.conf"
    arguments = {"path": str(folder), "config": str(conf), "accept_unknown": True}
    conf.write_text("databases 4\n")
    assert not run_module(redis_aof_verify, arguments)["failed"]
    conf.write_text("databases 3\n")
    assert "database-beyond-target" in [finding["code"] for finding in run_module(redis_aof_verify, arguments)["report"]["findings"]]
    assert not run_module(redis_aof_verify, {**arguments, "target": {"databases": 4}})["failed"]
    conf.write_text('databases 4\nrename-command FLUSHALL ""\n')
    result = run_module(redis_aof_verify, arguments)
    assert result["failed"] and "FLUSHALL" in result["msg"]
    conf.write_text("include other.conf\n")
    result = run_module(redis_aof_verify, arguments)
    assert result["failed"] and gate(result)["verdict"] == "unknown" and "report" not in result


def test_until_needs_a_place(folder: Path, run_module: Any) -> None:
    result = run_module(redis_aof_verify, {"path": str(folder), "until": 1})
    assert result["failed"] and "salvage_to" in result["msg"]
