# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _scratch
from ansible_collections.titan.disaster_recovery.plugins.module_utils._scratch import ProofError

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
    assert time.monotonic() - started < 3


def test_no_redis_server(box: Path, me: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "SERVER", "no-such-redis-server")
    with pytest.raises(ProofError, match="not installed"):
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

    assert _scratch.examine(Client(), None) == {"keyspace": {"db0": {"keys": 1, "expires": 0}}, "expired": 5, "used_memory": 4, "canary": None}  # type: ignore[arg-type]
    assert asked == ["default"]
