#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmark: verification of an RDB file against redis-check-rdb, a plain read and the load by a server. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

ROOT = Path(__file__).resolve().parents[2]
SERVER, CHECKER = "redis-server", "redis-check-rdb"
ANCHOR = "redis-check-rdb"
DATA_VERSION = 1  # part of the name of a cached file: count up with every change of the data
SAMPLE_SECONDS = 0.02
QUIET_SECONDS = 0.5
SMALL_RUNS = 15

# One call makes ARGV[3] things of kind KEYS[1], counted from ARGV[2]; ARGV[1] seeds the numbers.
MAKER = r"""
math.randomseed(tonumber(ARGV[1]))
local kind, from, count = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local r, f, call = math.random, string.format, redis.call
local symbols = {"BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "EURUSD", "GBPUSD", "ES", "NQ", "CL", "GC"}
local function symbol() return symbols[r(10)] end
local function hex(n) local s = "" for _ = 1, n do s = s .. f("%08x", r(0, 2147483646)) end return s end
local function price() return f("%d.%02d", r(10, 70000), r(0, 99)) end
local function milliseconds() return 1767225600000 + r(0, 90000000) end
for i = from, from + count - 1 do
  if kind == "order" then
    call("HSET", "order:" .. f("%07x", i) .. hex(1), "symbol", symbol(), "side", r(2) == 1 and "buy" or "sell", "type", "limit", "price", price(),
      "qty", r(1, 99999), "filled", r(0, 999), "status", "open", "ts", milliseconds(), "client", "c" .. hex(1), "account", "acc-" .. hex(1),
      "venue", "exchange-" .. r(1, 9), "strategy", "s" .. r(1, 400), "average", price(), "updated", milliseconds())
  elseif kind == "position" then
    call("HSET", "position:" .. f("%05d", i % 50000) .. ":" .. i, "side", "long", "size", r(1, 5000), "entry", price(), "mark", price(), "pnl", r(-9999, 9999))
  elseif kind == "book" then
    for _ = 1, 10 do
      local args = {}
      for _ = 1, 1000 do args[#args + 1] = price() args[#args + 1] = hex(1) end
      call("ZADD", "book:" .. symbols[i % 10 + 1] .. ":" .. i, unpack(args))
    end
  elseif kind == "ladder" then
    local args = {}
    for n = 1, r(3, 12) do args[#args + 1] = price() args[#args + 1] = "level:" .. n end
    call("ZADD", "ladder:" .. i, unpack(args))
  elseif kind == "tape" then
    for _ = 1, 40 do
      local args = {}
      for _ = 1, 100 do args[#args + 1] = price() .. "|" .. r(1, 9999) .. "|" .. hex(2) end
      call("RPUSH", "tape:" .. symbols[i % 10 + 1] .. ":" .. i, unpack(args))
    end
  elseif kind == "signals" then
    local key = "signals:" .. i
    for n = 1, 6000 do call("XADD", key, (1767225600000 + n * 250) .. "-" .. (n % 3), "symbol", symbol(), "signal", r(-100, 100), "price", price()) end
    for _, group in ipairs({"executor", "risk"}) do
      call("XGROUP", "CREATE", key, group, "0")
      for c = 1, 3 do call("XREADGROUP", "GROUP", group, "worker" .. c, "COUNT", 100, "STREAMS", key, ">") end
    end
  elseif kind == "session" then
    call("SET", "session:" .. f("%06x", i) .. hex(2), "u" .. i .. ":" .. hex(4), "PX", r(3600000, 8640000000))
  elseif kind == "tick" then
    call("SET", "tick:" .. symbol() .. ":" .. i, price())
  elseif kind == "seq" then
    call("SET", "seq:" .. i, r(1, 2147483646))
  elseif kind == "report" then
    local legs = {}
    for n = 1, 12 do legs[n] = '{"leg":' .. n .. ',"symbol":"' .. symbol() .. '","side":"buy","quantity":' .. r(1, 999) .. ',"status":"filled"}' end
    call("SET", "report:daily:" .. i, '{"strategy":"mean-reversion","legs":[' .. table.concat(legs, ",") .. "]}")
  elseif kind == "ids" then
    for n = 1, r(10, 60) do call("SADD", "watch:ids:" .. i, r(1, 1000000)) end
  elseif kind == "tags" then
    for n = 1, r(3, 20) do call("SADD", "watch:tags:" .. i, hex(1)) end
  elseif kind == "field" then
    call("HSET", "index:clients", "client:" .. f("%07d", i) .. hex(1), hex(2) .. ":" .. i)
  end
end
"""
# What, how many of it in 1 GiB, how many in one call
MIX = (
    ("order", 1_680_000, 2000),
    ("position", 280_000, 2000),
    ("book", 168, 2),
    ("ladder", 84_000, 2000),
    ("tape", 500, 10),
    ("signals", 200, 2),
    ("session", 1_120_000, 2000),
    ("tick", 345_000, 2000),
    ("seq", 210_000, 2000),
    ("report", 84_000, 500),
    ("ids", 23_000, 500),
    ("tags", 23_000, 500),
    ("field", 350_000, 2000),
)
SMALL_MIX = tuple(
    (kind, count, count)
    for kind, count in (("order", 60), ("position", 20), ("ladder", 10), ("session", 80), ("tick", 20), ("report", 10), ("ids", 5), ("tags", 5))
)
BLOBS, BLOB_BYTES = 41_000, (500, 7000)
ARCHIVES, ARCHIVE_BYTES = 3, 59 * 2**20
AUDITS = 1220  # keys of a second database
LIBRARY = '#!lua name=desk\nredis.register_function("net", function(keys) return redis.call("HGET", keys[1], "size") end)'
SIZES = {"1g": 1.0, "100m": 0.1}

# The fast and the deep level as a process of its own; "own" is deep without redis-check-rdb beside it, "stdlib" does without anycrc.
VERIFY = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _crc64, _rdb, _rdb_values, _rdb_walk
path, level, engine, jobs = sys.argv[2:]
if engine == "stdlib":
    _crc64._anycrc, _crc64.engine = (lambda: None), (lambda: "python")
if level == "deep":
    report = _rdb.verify(path, level="deep", now=time.time())
    sys.exit(0 if report["verdict"] == "pass" and "checker" in report["engines"] else str(report["findings"] + report["not_checked"]))
own = level == "own"
found = _rdb_walk.walk(path, now=time.time(), values=_rdb_values.check if own else None, duplicates=own, jobs=int(jobs) or None)
if found.findings or found.checksum != "ok":
    sys.exit(str(found.findings))
print(json.dumps(found.keyspace))
"""


class BenchmarkError(Exception):
    """No figure: what was to be measured did not happen as it should."""


@dataclass
class Run:
    wall_s: float
    cpu_s: float
    others_cpu_s: float  # of everything else on the machine meanwhile


@dataclass
class Row:
    name: str
    runs: list[Run] = field(default_factory=list)
    private_mib: float | None = None  # anonymous memory of all its processes at its highest

    @property
    def wall(self) -> float:
        return statistics.median(run.wall_s for run in self.runs)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# --- the data -------------------------------------------------------------------------------------------------------------


def bench_dir() -> Path:
    return Path(os.environ.get("TITAN_DR_BENCH_DIR") or Path.home() / ".cache" / "titan-dr" / "bench")


def trading(size: str) -> Path:
    """A dump of a trading system, written by redis-server; made once."""
    path = bench_dir() / f"trading-{size}-v{DATA_VERSION}.rdb"
    if not path.exists():
        say(f"{path} is made")
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, lambda client: fill(client, SIZES[size]))
    return path


def make(path: Path, filling: Callable[[redis.Redis], None]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="titan-bench-"))
    process = subprocess.Popen([SERVER, *serving(folder)], stdout=subprocess.DEVNULL)
    try:
        client = connect(folder, process)
        filling(client)
        client.save()
        client.close()
        partial = path.with_suffix(".part")
        shutil.copyfile(folder / "dump.rdb", partial)
        partial.replace(path)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def make_kinds(client: redis.Redis, mix: Iterable[tuple[str, int, int]]) -> None:
    script = client.register_script(MAKER)
    seed = 0
    for kind, count, step in mix:
        for start in range(0, count, step):
            seed += 1
            script(keys=[kind], args=[seed, start, min(step, count - start)])


def fill(client: redis.Redis, scale: float) -> None:
    make_kinds(client, [(kind, int(count * scale), step) for kind, count, step in MIX])
    dice = random.Random(1)
    for number in range(int(BLOBS * scale)):
        client.set(f"blob:{number}", dice.randbytes(dice.randrange(*BLOB_BYTES)))
    for number in range(ARCHIVES):
        client.set(f"archive:{number}", dice.randbytes(int(ARCHIVE_BYTES * scale)))
    client.execute_command("FUNCTION", "LOAD", LIBRARY)
    client.execute_command("SELECT", 3)
    for number in range(int(AUDITS * scale)):
        client.set(f"audit:{number}", "x" * 50)


def small() -> Path:
    """About 28 KB with a few keys of many kinds."""
    path = bench_dir() / f"small-v{DATA_VERSION}.rdb"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, lambda client: make_kinds(client, SMALL_MIX))
    return path


def serving(folder: Path) -> list[str]:
    return ["--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder), "--save", "", "--appendonly", "no"]


def connect(folder: Path, process: subprocess.Popen[bytes]) -> redis.Redis:
    """Wait until it has loaded its data."""
    # one connection: SELECT lasts, and a SAVE may take a while
    client = redis.Redis(unix_socket_path=str(folder / "s"), socket_timeout=None, single_connection_client=False, max_connections=1)
    while process.poll() is None:
        try:
            client.ping()
            return client
        except (redis.ConnectionError, redis.BusyLoadingError):
            time.sleep(0.02)
    raise BenchmarkError(f"{SERVER} ended with {process.returncode}")


# --- the contestants ------------------------------------------------------------------------------------------------------


def verifier(path: Path, level: str, engine: str, jobs: int = 0) -> list[str]:
    return [sys.executable, "-I", "-c", VERIFY, str(ROOT / "playbooks" / "collections"), str(path), level, engine, str(jobs)]


def sha256(path: Path) -> list[str]:
    return [sys.executable, "-I", "-c", "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')", str(path)]


def load(path: Path) -> None:
    """From the start of a server to its first answer with the data."""
    folder = Path(tempfile.mkdtemp(prefix="titan-bench-"))
    try:
        (folder / "dump.rdb").symlink_to(path)
        process = subprocess.Popen([SERVER, *serving(folder), "--sanitize-dump-payload", "yes"], stdout=subprocess.DEVNULL)
        try:
            connect(folder, process).close()
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{argv[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


def contestants(path: Path, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {
        "read (cat)": lambda: run(["sh", "-c", 'cat -- "$1" >/dev/null', "sh", str(path)]),
        "sha256 (hashlib)": lambda: run(sha256(path)),
        ANCHOR: lambda: run([CHECKER, str(path)]),
        "fast, anycrc": lambda: run(verifier(path, "fast", "anycrc")),
        "fast, standard library": lambda: run(verifier(path, "fast", "stdlib")),
        "fast, standard library, 1 process": lambda: run(verifier(path, "fast", "stdlib", 1)),
    }
    if options.deep:
        found["deep, anycrc"] = lambda: run(verifier(path, "deep", "anycrc"))
        found["deep, standard library"] = lambda: run(verifier(path, "deep", "stdlib"))
        found["deep without the checker, anycrc"] = lambda: run(verifier(path, "own", "anycrc"))
    if options.load:
        found["load by redis-server"] = lambda: load(path)
    return found


def busy_seconds() -> float:
    """Processor seconds used by everybody since boot."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(limit: float, patience: float) -> None:
    """Until others use fewer processors than `limit`; at most `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = busy_seconds()
        time.sleep(QUIET_SECONDS)
        if (busy_seconds() - before) / QUIET_SECONDS <= limit:
            return


def measure(work: Callable[[], None]) -> Run:
    used, before, began = busy_seconds(), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(round(wall, 4), round(cpu, 4), round(max(0.0, busy_seconds() - used - cpu), 2))


def private_memory(argv: list[str]) -> float:
    """Anonymous memory of a process and its children together, at its highest, in MiB."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    highest = 0
    while process.poll() is None:
        highest = max(highest, sum(anonymous(pid) for pid in [process.pid, *children(process.pid)]))
        time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise BenchmarkError(f"{argv[0]} ended with {process.returncode}")
    return round(highest / 1024, 1)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def anonymous(pid: int) -> int:
    """In KiB; a page that processes share counts once among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


# --- the result -----------------------------------------------------------------------------------------------------------


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {
        "machine": {
            "processors": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
        "redis": subprocess.run([SERVER, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
        "files": [],
    }
    for size in options.size:
        path = trading(size)
        named = contestants(path, options)
        rows = {name: Row(name) for name in named}
        keyspace = json.loads(subprocess.run(verifier(path, "fast", "anycrc"), capture_output=True, text=True, check=True).stdout)
        for number in range(options.runs):
            # the order changes, so that nobody always meets the same neighbour
            for name in list(named)[:: 1 if number % 2 else -1]:
                wait_for_quiet(options.quiet, options.patience)
                done = measure(named[name])
                rows[name].runs.append(done)
                say(f"{size}: {name}: {done.wall_s:.2f} s, {done.cpu_s:.2f} s of processors, others {done.others_cpu_s:.2f} s")
        levels = {"fast, anycrc": ("fast", "anycrc"), "fast, standard library": ("fast", "stdlib")} | (
            {"deep without the checker, anycrc": ("own", "anycrc")} if options.deep else {}
        )
        for name, (level, engine) in levels.items():
            rows[name].private_mib = private_memory(verifier(path, level, engine))
        rows[ANCHOR].private_mib = private_memory([CHECKER, str(path)])
        result["files"].append(report(size, path, keyspace, list(rows.values())))
    path = small()
    rows = {name: Row(name) for name in ("python, no work", "fast, anycrc", "fast, standard library", ANCHOR)}
    argvs = {
        "python, no work": [sys.executable, "-I", "-c", ""],
        "fast, anycrc": verifier(path, "fast", "anycrc"),
        "fast, standard library": verifier(path, "fast", "stdlib"),
        ANCHOR: [CHECKER, str(path)],
    }
    for dummy in range(SMALL_RUNS):
        for name, argv in argvs.items():
            rows[name].runs.append(measure(lambda argv=argv: run(argv)))  # type: ignore[misc]
    result["files"].append(report("small", path, {}, list(rows.values())))
    return result


def report(size: str, path: Path, keyspace: dict[str, dict[str, int]], rows: list[Row]) -> dict[str, Any]:
    anchor = next(row for row in rows if row.name == ANCHOR)
    told = []
    for row in rows:
        # of two runs of the same round: what the machine did meanwhile is in both
        ratios = [theirs.wall_s / mine.wall_s for mine, theirs in zip(row.runs, anchor.runs, strict=True)]
        told.append(
            {**asdict(row), "wall_s": row.wall, "cpu_s": statistics.median(run.cpu_s for run in row.runs), "ratio": round(statistics.median(ratios), 2)}
        )
    return {"size": size, "bytes": path.stat().st_size, "keys": sum(counts["keys"] for counts in keyspace.values()), "rows": told}


def table(result: dict[str, Any]) -> str:
    lines = []
    for file in result["files"]:
        keys = f", {file['keys']:,} keys" if file["keys"] else ""
        lines += [
            f"{file['size']}: {file['bytes']:,} bytes{keys}",
            "",
            f"| what | wall s (min-max) | CPU s | others CPU s, at most | times as fast as {ANCHOR} | private MiB |",
            "|---|---|---|---|---|---|",
        ]
        for row in file["rows"]:
            walls = [run["wall_s"] for run in row["runs"]]
            memory = "" if row["private_mib"] is None else f"{row['private_mib']:.0f}"
            others = max(run["others_cpu_s"] for run in row["runs"])
            wall = f"{row['wall_s']:.2f} ({min(walls):.2f}-{max(walls):.2f})"
            lines.append(f"| {row['name']} | {wall} | {row['cpu_s']:.2f} | {others:.2f} | {row['ratio']:.2f} | {memory} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), nargs="+", default=list(SIZES), help="files to measure with")
    parser.add_argument("--runs", type=int, default=3, help="rounds in which each takes its turn")
    parser.add_argument("--deep", action="store_true", help="the deep level, too: minutes for 1 GiB")
    parser.add_argument("--load", action="store_true", help="the load by redis-server, too: about 2 GiB of memory")
    parser.add_argument("--quiet", type=float, default=0.15, help="processors that others may use before a run begins")
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for that; then the run begins anyhow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args()
    try:
        result = benchmark(options)
    except BenchmarkError as error:
        say(f"no result: {error}")
        return 1
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
