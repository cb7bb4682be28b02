# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _redis, _redis_data, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_data import build, layout
from ansible_collections.titan.disaster_recovery.plugins.module_utils._redis_live import Refused


def test_layout_follows_the_configuration() -> None:
    assert layout(_redis.parse_conf("dbfilename live.rdb")) == ("live.rdb", "")
    conf = _redis.parse_conf("appendonly yes\nappendfilename a.aof\nappenddirname aofs")
    assert layout(conf) == ("aofs/a.aof.1.base.rdb", "file a.aof.1.base.rdb seq 1 type b\n")


def stage_of(box: Path, dump: bytes) -> Path:
    stage = box / "redis.stage-r1"
    stage.mkdir()
    (stage / "base.rdb").write_bytes(dump)
    return stage


@pytest.mark.parametrize(
    "directives", [{}, {"appendonly": "yes"}, {"appendonly": "yes", "appendfilename": "t.aof", "appenddirname": "aofs"}, {"dbfilename": "t.rdb"}]
)
def test_redis_starts_with_the_data(redis_server: Any, box: Path, me: str, directives: dict[str, str]) -> None:
    """The proof of the layout: with AOF on, Redis ignores a dump and starts empty."""
    source = redis_server()
    source.fill()
    stage = stage_of(box, source.dump())
    text = f"port 0\nunixsocket {box}/live.sock\ndir {box}/redis\n" + "".join(f"{name} {value}\n" for name, value in directives.items())
    conf = _redis.parse_conf(text)
    os.rename(build(str(stage), conf, me), box / "redis")
    process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert process.stdin
        process.stdin.write(text.encode())
        process.stdin.close()
        client = _redis.wait_ready(conf.address, "", time.time() + 10, lambda: process.poll() is None)
        assert _redis.keyspace(client) == {"db0": {"keys": 10, "expires": 2}, "db1": {"keys": 3, "expires": 0}}
    finally:
        process.kill()
        process.wait()


def test_build_goes_on_where_it_was_interrupted(box: Path, me: str) -> None:
    stage = stage_of(box, b"data")
    conf = _redis.parse_conf("appendonly yes")
    assert build(str(stage), conf, me) == build(str(stage), conf, me)
    files = {str(path.relative_to(stage / "live")): path for path in (stage / "live").rglob("*") if path.is_file()}
    assert set(files) == {"appendonlydir/appendonly.aof.1.base.rdb", "appendonlydir/appendonly.aof.manifest"}
    assert files["appendonlydir/appendonly.aof.1.base.rdb"].read_bytes() == b"data"
    assert (stage / "live").stat().st_mode & 0o777 == 0o750 and _redis_data.size_of(str(stage / "live")) == 4 + len(
        "file appendonly.aof.1.base.rdb seq 1 type b\n"
    )


def test_the_data_belongs_to_its_user(box: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    stage = stage_of(box, b"data")
    build(str(stage), _redis.parse_conf("appendonly yes"), "nobody")
    assert {path.stat().st_uid for path in [stage / "live", *(stage / "live").rglob("*")]} == {65534}


@pytest.mark.parametrize("there", [True, False])
def test_a_stage_without_a_dump_is_refused(box: Path, me: str, there: bool) -> None:
    stage = box / "redis.stage-r1"
    if there:
        stage.mkdir()
    with pytest.raises(Refused, match="holds no dump"):
        build(str(stage), _redis.parse_conf("appendonly yes"), me)
    assert stage.exists() is there


# --- the place ------------------------------------------------------------------------------------------------------


def test_a_good_place(box: Path) -> None:
    (box / "redis").mkdir()
    assert _redis_data.place_faults(str(box / "redis"), 1) == [] and _redis_data.place_faults(str(box / "blank"), 1) == []
    _redis_data.refuse_place(str(box / "redis"), 1)


def test_a_link(box: Path) -> None:
    (box / "real").mkdir()
    (box / "redis").symlink_to(box / "real")
    assert "is a link" in _redis_data.place_faults(str(box / "redis"), 1)[0]


def test_a_mount_point() -> None:
    assert "is a mount point" in _redis_data.place_faults("/proc", 0)[0]


def test_no_room(box: Path) -> None:
    with pytest.raises(Refused, match="MiB are needed"):
        _redis_data.refuse_place(str(box / "redis"), 1 << 60)


def test_read_only(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(box)
    fields = list(real)
    fields[8] |= os.ST_RDONLY
    monkeypatch.setattr(_redis_data.os, "statvfs", lambda path: os.statvfs_result(fields))
    assert "is read-only" in _redis_data.place_faults(str(box / "redis"), 1)[0]


def test_no_parent(box: Path) -> None:
    assert "No such file" in _redis_data.place_faults(str(box / "a" / "b"), 1)[0]


# --- the record -----------------------------------------------------------------------------------------------------


def test_the_record(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "STATE_DIR", str(box))
    assert _redis_data.read_record() == {}
    _redis_data.write_record({"state": "live"})
    assert _redis_data.read_record() == {"state": "live"} and (box / "redis-live.json").stat().st_mode & 0o777 == 0o600
    (box / "redis-live.json").write_text("[]")
    assert _redis_data.read_record() == {}
    (box / "redis-live.json").write_text("x")
    with pytest.raises(Refused, match="is damaged"):
        _redis_data.read_record()
