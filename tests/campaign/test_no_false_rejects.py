# SPDX-License-Identifier: GPL-3.0-or-later
"""Every dump that a real server writes passes for that server, and for other servers the verdict is what they do with it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import campaign
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _rdb_report

# "ziplist" in a directive is "listpack" since 7.0; every version takes the old name
TABLES = {f"{kind}-max-ziplist-entries": "0" for kind in ("hash", "zset")} | {"set-max-intset-entries": "0", "stream-node-max-entries": "1"}
PACKED = {f"{kind}-max-ziplist-{what}": "100000" for kind in ("hash", "zset") for what in ("entries", "value")} | {"set-max-intset-entries": "100000"}
CONFIGURATIONS: dict[str, dict[str, str]] = {
    "default": {},
    "no compression": {"rdbcompression": "no"},
    "no checksum": {"rdbchecksum": "no"},
    "idle times": {"maxmemory-policy": "allkeys-lru"},
    "frequencies": {"maxmemory-policy": "volatile-lfu"},
    "tables": TABLES,
    "packed": PACKED,
    "packed, no compression": PACKED | {"rdbcompression": "no"},
    "one element a node": {"list-max-ziplist-size": "1"},
    "large nodes, compressed": {"list-max-ziplist-size": "-5", "list-compress-depth": "1"},
    "many databases": {"databases": "64"},
}
EVERY = [pytest.param(name, what, id=f"{name} - {what}") for name in servers.BINARIES for what in CONFIGURATIONS]


def judged(name: str, data: bytes, folder: Path, databases: int = 16, **rest: Any) -> dict[str, Any]:
    file = folder / "dump.rdb"
    file.write_bytes(data)
    return _rdb.verify(str(file), level="deep", target=campaign.target(name, databases), now=time.time(), jobs=1, **rest)


def assert_passes(name: str, data: bytes, folder: Path, keyspace: dict[str, dict[str, int]], databases: int = 16) -> None:
    found = judged(name, data, folder, databases)
    assert found["verdict"] == "pass", found["findings"]
    assert found["contents"]["keyspace"] == keyspace
    assert servers.check(name, folder / "dump.rdb").ok


@pytest.mark.parametrize(("name", "what"), EVERY)
def test_a_dump_of_every_encoding_passes(name: str, what: str, tmp_path: Path) -> None:
    settings = CONFIGURATIONS[what]
    databases = int(settings.get("databases", "16"))
    with servers.running(name, **settings) as server:
        servers.fill(server.client)
        if databases > 16:
            server.client.execute_command("SELECT", databases - 1)
            server.client.execute_command("SET", "last", "1")
        data, keyspace = server.dump(), server.keyspace()
    if what != "no checksum":
        assert_passes(name, data, tmp_path, keyspace, databases)
        return
    found = judged(name, data, tmp_path)
    assert (found["verdict"], found["checksum"]) == ("unknown", "disabled")
    assert {finding["code"] for finding in found["findings"] if finding["severity"] != _rdb_report.WARNING} == {"checksum-disabled"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", servers.BINARIES)
def test_a_dump_after_many_changes_passes(name: str, seed: int, tmp_path: Path) -> None:
    settings = [{}, PACKED | {"rdbcompression": "no"}, TABLES][seed]
    with servers.running(name, **settings) as server:
        servers.churn(server.client, seed)
        data, keyspace = server.dump(), server.keyspace()
    assert_passes(name, data, tmp_path, keyspace)


@pytest.mark.parametrize("name", servers.BINARIES)
def test_an_empty_dump_passes(name: str, tmp_path: Path) -> None:
    with servers.running(name) as server:
        data = server.dump()
    assert_passes(name, data, tmp_path, {})


@pytest.mark.parametrize("name", [name for name in servers.BINARIES if name != "6.2"])
def test_the_base_of_an_append_only_file_passes(name: str, tmp_path: Path) -> None:
    with servers.running(name, appendonly="yes") as server:
        servers.fill(server.client)
        server.client.execute_command("BGREWRITEAOF")
        while server.client.info("persistence")["aof_rewrite_in_progress"] or server.client.info("persistence")["aof_rewrite_scheduled"]:
            time.sleep(0.02)
        keyspace = server.keyspace()
        (base,) = (server.folder / "appendonlydir").glob("*.base.rdb")
        data = base.read_bytes()
    assert_passes(name, data, tmp_path, keyspace)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tdr-s-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("name", servers.BINARIES)
def test_the_dump_of_a_replica_passes(name: str, tmp_path: Path, folder: Path) -> None:
    """It carries a replication id, an offset, and the database that the stream of commands was in."""
    port = free_port()
    with servers.running(name, port=str(port), bind="127.0.0.1", repl_diskless_sync_delay="0") as primary:
        servers.fill(primary.client)
        replica = servers.start(name, folder, replicaof=f"127.0.0.1 {port}")
        try:
            while replica.client.info("replication")["master_link_status"] != "up":
                time.sleep(0.02)
            primary.client.execute_command("SET", "later", "1")
            primary.client.execute_command("WAIT", 1, 10000)
            data, keyspace = replica.dump(), replica.keyspace()
        finally:
            replica.close()
    assert_passes(name, data, tmp_path, keyspace)


@pytest.mark.parametrize("name", [name for name in servers.BINARIES if name != "6.2"])
def test_the_dump_of_a_cluster_node_passes(name: str, tmp_path: Path) -> None:
    """With slot information between the keys, where the version writes it."""
    port, bus = free_port(), free_port()
    with servers.running(name, port=str(port), bind="127.0.0.1", cluster_enabled="yes", cluster_port=str(bus)) as server:
        server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while server.client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            time.sleep(0.05)
        servers.fill(server.client, [kind for kind in servers.KINDS if kind not in {"databases", "script"}])
        data, keyspace = server.dump(), server.keyspace()
    assert_passes(name, data, tmp_path, keyspace)


@pytest.mark.parametrize("reader", servers.BINARIES)
@pytest.mark.parametrize("writer", servers.BINARIES)
@pytest.mark.parametrize("plain", [True, False], ids=["old types", "every type"])
def test_for_another_server_the_verdict_is_what_it_does(writer: str, reader: str, plain: bool, tmp_path: Path) -> None:
    with servers.running(writer) as server:
        servers.fill(server.client, ["string", "expiry"] if plain else servers.KINDS)
        data = server.dump()
    outcome = servers.loads(reader, data)
    found = judged(reader, data, tmp_path)
    assert (found["verdict"] == "pass") == outcome.up, found["findings"]
    if outcome.up:
        assert found["contents"]["keyspace"] == outcome.keyspace


def test_the_kept_dumps_pass(tmp_path: Path) -> None:
    """The dumps that the campaign damages are whole."""
    assert sorted(os.listdir(campaign.FIXTURES)) == sorted(f"{name}-{shape}.rdb" for name in servers.BINARIES for shape in campaign.SHAPES)
    for base in campaign.kept():
        found = judged(base.server, base.data, tmp_path)
        assert found["verdict"] == "pass", (base.name, found["findings"])
