# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage dumps of real servers in thousands of ways and ask two judges: our own engine, and the checker of the server that wrote the dump.

The dumps of tests/fixtures/rdb make a run repeatable: the same seed damages the same bytes. For a new server version they are written anew, with
PYTHONPATH=playbooks/collections .venv/bin/python tests/support/campaign.py
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rdb_writer
import servers
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _rdb_report, _rdb_values, _rdb_walk, _target

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "rdb"

MODES = ("stale", "zeroed", "recomputed")
STALE, ZEROED, RECOMPUTED = MODES
KINDS = ("bit", "byte", "nudge", "sector", "delete", "duplicate", "splice", "truncate", "garbage", "version")

# What a dump is made of: configuration of the server, and kinds of keys
SHAPES: dict[str, dict[str, str]] = {
    "packed": {"list_compress_depth": "1"},
    "plain": {
        "rdbcompression": "no",
        "maxmemory-policy": "allkeys-lfu",
        "set-max-intset-entries": "12",
        "hash-max-ziplist-entries": "6",
        "zset-max-ziplist-entries": "4",
        "stream-node-max-entries": "10",
    },
    "churned": {"rdbcompression": "no", "maxmemory-policy": "allkeys-lru"},
    "small": {"rdbcompression": "no"},
}


@dataclass(frozen=True)
class Base:
    """A dump as a server wrote it."""

    server: str
    shape: str
    data: bytes

    @property
    def name(self) -> str:
        return f"{self.server} {self.shape}"


@dataclass(frozen=True)
class Mutant:
    """How to make a damaged file: everything follows from these words."""

    base: int
    mode: str
    kind: str
    seed: str


@dataclass
class Result:
    """Both verdicts on one mutant."""

    mutant: Mutant
    verdict: str  # ours, with everything
    ours: bool  # whether we accept it, an unusable checksum left aside
    codes: tuple[str, ...]  # our reasons
    reasons: str
    checker: bool | None = None  # None: not asked, the checksum decides
    required: str | None = None  # our verdict at the policy that a checksum is required; asked where the structure is accepted
    digest: str | None = None  # our verdict with the digest of the undamaged file; likewise


def table(bases: list[Base], results: Iterable[Result]) -> Iterator[str]:
    """Accepted of all, by base, mode and kind."""
    cells: dict[tuple[int, str], dict[str, list[int]]] = {(index, mode): {} for index in range(len(bases)) for mode in MODES}
    for result in results:
        cell = cells[result.mutant.base, result.mutant.mode].setdefault(result.mutant.kind, [0, 0, 0])
        for column, one in enumerate((result.ours, bool(result.checker), True)):
            cell[column] += one
    yield "accepted by us / by the checker / of (the checker is not asked where we already see a stale checksum)"
    yield f"{'':30}" + "".join(f"{kind:>13}" for kind in (*KINDS, "all")) + f"{'ours':>8}{'checker':>9}"
    for (index, mode), row in cells.items():
        whole = [sum(column) for column in zip(*row.values(), strict=True)] or [0, 0, 0]
        text = "".join(f"{'/'.join(map(str, row[kind])) if kind in row else '-':>13}" for kind in KINDS)
        rates = [f"{count / max(1, whole[2]):.1%}" for count in whole[:2]]
        yield f"{bases[index].name:20}{mode:10}{text}{'/'.join(map(str, whole)):>16}{rates[0]:>7}{rates[1] if mode != STALE else '-':>8}"


# bases


def make(name: str, shape: str, seed: int = 1) -> Base:
    """A new dump by a real server."""
    with servers.running(name, None, **SHAPES[shape]) as server:
        if shape == "small":
            _fill_small(server)
        elif shape == "churned":
            servers.churn(server.client, seed)
        else:
            servers.fill(server.client, seed=seed)
            # long random text only makes the file longer: fewer hits on structure
            server.client.delete("str:long")
        if shape == "packed":
            # a name and (in 6.2) a script that are not kept in memory while the file is read
            server.client.set("long:" + "name" * 20000, "1")
            server.client.eval(f"return '{'text' * 20000}'", 0)
        return Base(name, shape, server.dump())


def _fill_small(server: servers.Server) -> None:
    """One key of most types: short enough to be cut at every length."""
    call = server.client.execute_command
    call("SET", "s", "titan", "PXAT", servers.FAR)
    call("SET", "i", 70000)
    call("RPUSH", "l", "a", 1, "b")
    call("SADD", "n", 1, 2, 300)
    call("SADD", "t", "x", "yy")
    call("ZADD", "z", 1, "a", 2.5, "b")
    call("HSET", "h", "side", "long", "size", "1")
    call("XADD", "x", "5-1", "f", "v")
    call("XADD", "x", "6-1", "f", "w")
    call("XGROUP", "CREATE", "x", "g", "0")
    call("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "x", ">")
    if server.name in {"8.2", "valkey-9.1"}:
        call("HPEXPIREAT", "h", servers.FAR, "FIELDS", 1, "side")
    call("SELECT", 3)
    call("SET", "d", "3")


def kept() -> list[Base]:
    """The dumps that are kept with the tests."""
    return [Base(name, shape, (FIXTURES / f"{name}-{shape}.rdb").read_bytes()) for name in servers.BINARIES for shape in SHAPES]


def target(name: str, databases: int = 16) -> _rdb_report.Target:
    """The server that wrote a dump, as the one that is to load it."""
    family, version = servers.VERSIONS[name]
    return _rdb_report.Target(server=family, version=version, databases=databases, maxmemory=0, policy="noeviction", modules=())


# mutants


def mutants(bases: list[Base], number: int, seed: int) -> Iterator[Mutant]:
    """`number` of each kind for each large base and mode; small bases are cut at every length instead."""
    for index, base in enumerate(bases):
        for mode in MODES:
            if base.shape == "small":
                yield from (Mutant(index, mode, "truncate", str(at)) for at in range(len(base.data) - 8 * (mode != STALE)))
            for kind in KINDS:
                if kind == "version":
                    yield from (Mutant(index, mode, kind, str(version)) for version in (*range(16), 79, 80, 81, 999))
                elif base.shape != "small" or kind != "truncate":
                    yield from (Mutant(index, mode, kind, f"{seed}/{one}") for one in range(number if base.shape != "small" else number // 3))


def mutate(bases: list[Base], mutant: Mutant) -> bytes:
    """The damaged file. It may by chance be the base again."""
    base = bases[mutant.base]
    chance = random.Random(f"{base.name}/{mutant.mode}/{mutant.kind}/{mutant.seed}")
    body = bytearray(base.data[:-8])
    at = chance.randrange(len(body))
    size = chance.randint(1, 64)
    tail = b""
    match mutant.kind:
        case "bit":
            body[at] ^= 1 << chance.randrange(8)
        case "byte":
            body[at] ^= chance.randint(1, 255)
        case "nudge":
            body[at] = (body[at] + chance.choice((-1, 1))) % 256
        case "sector":
            start = at // 512 * 512
            body[start : start + 512] = bytes(len(body[start : start + 512]))
        case "delete":
            del body[at : at + size]
        case "duplicate":
            body[at:at] = body[at : at + size]
        case "splice":
            other = chance.choice(bases).data
            start = chance.randrange(len(other))
            foreign = other[start : start + size]
            body[at : at + len(foreign)] = foreign
        case "truncate":
            del body[int(mutant.seed) if mutant.seed.isdigit() else at :]
        case "garbage":
            tail = chance.randbytes(size)
        case "version":
            digits = 9 - len(base_magic(base))
            body[9 - digits : 9] = f"{int(mutant.seed):0{digits}}".encode()
    if mutant.mode == STALE:
        if mutant.kind == "truncate":
            return base.data[: int(mutant.seed)] if mutant.seed.isdigit() else bytes(body)
        # what the footer of the undamaged file is, also where the server wrote none
        end = rdb_writer.footer(base.data[:-8])
    else:
        end = rdb_writer.ZERO if mutant.mode == ZEROED else rdb_writer.footer(bytes(body))
    return bytes(body) + end + tail


def base_magic(base: Base) -> bytes:
    return b"VALKEY" if base.data.startswith(b"VALKEY") else b"REDIS"


# judges


def judge(path: Path, name: str, databases: int = 16) -> list[_rdb_report.Finding]:
    """Our own deep engine on this file for this server; no checker helps it."""
    contents = _rdb_walk.walk(str(path), now=time.time(), values=_rdb_values.check, duplicates=True, jobs=1)
    return contents.findings + _target.judge(contents, target(name, databases))


UNUSABLE_CHECKSUM = {"checksum-disabled", "checksum-absent"}


def accepted(findings: Iterable[_rdb_report.Finding]) -> bool:
    """Whether the structure is accepted, were it not for the missing checksum."""
    return _rdb_report.verdict(finding for finding in findings if finding.code not in UNUSABLE_CHECKSUM) == "pass"


_bases: list[Base] = []


def _judge_some(batch: list[Mutant]) -> list[Result]:
    """In a worker: both verdicts on each mutant."""
    results = []
    with tempfile.TemporaryDirectory(prefix="tdr-campaign-") as folder:
        path = Path(folder) / "dump.rdb"
        for mutant in batch:
            base = _bases[mutant.base]
            data = mutate(_bases, mutant)
            if data[: len(base.data) - 8] == base.data[:-8] and len(data) == len(base.data):
                continue  # the damage changed nothing
            path.write_bytes(data)
            findings = judge(path, base.server)
            reasons = "; ".join(f"{one.code} at {one.offset}: {one.text}" for one in findings)
            result = Result(mutant, _rdb_report.verdict(findings), accepted(findings), tuple(sorted({one.code for one in findings})), reasons)
            if result.ours:
                result.required = verify(path, base)
                result.digest = verify(path, base, recorded={"sha256": hashlib.sha256(base.data).hexdigest()})
            if mutant.mode != STALE or result.ours:
                result.checker = servers.check(base.server, path).ok
            results.append(result)
    return results


def verify(path: Path, base: Base, level: str = "fast", recorded: dict[str, str] | None = None) -> str:
    """The verdict of the product itself."""
    server = str(servers.BINARIES[base.server])
    to_load = target(base.server)
    report = _rdb.verify(str(path), level=level, target=to_load, now=time.time(), recorded=recorded, checksum="required", server=server, jobs=1)
    return str(report["verdict"])


def run(bases: list[Base], wanted: Iterable[Mutant], workers: int | None = None) -> Iterator[Result]:
    """Judge all mutants on all cores."""
    global _bases
    _bases = bases
    for base in {base.server: base for base in bases}.values():
        servers.checker(base.server)
    everything = list(wanted)
    batches = [everything[at : at + 100] for at in range(0, len(everything), 100)]
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context) as pool:
        for results in pool.map(_judge_some, batches):
            yield from results


if __name__ == "__main__":
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for server_name in servers.BINARIES:
        for shape_name in SHAPES:
            made = make(server_name, shape_name)
            (FIXTURES / f"{server_name}-{shape_name}.rdb").write_bytes(made.data)
            print(f"{made.name}: {len(made.data)} bytes")
