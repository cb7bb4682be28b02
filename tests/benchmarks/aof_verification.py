# SPDX-License-Identifier: GPL-3.0-or-later
"""How long verifying an append-only file takes, beside redis-check-aof on the same file. What is not AOF-specific is in verification.py.

.venv/bin/python tests/benchmarks/aof_verification.py [--mib 417] [--runs 3]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERIFY = """
import json, resource, sys, time
from ansible_collections.titan.disaster_recovery.plugins.module_utils import _aof
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Target
target = Target(version="7.0.15", databases=16, maxmemory=0, modules=())
report = _aof.verify(sys.argv[1], target=target, now=time.time(), base=None)
assert report.state == "intact", report.evidence()
private = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([report.usable.command, private[0] // 1024]))
"""


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def trading(size: int) -> Iterator[bytes]:
    """What a trading system writes, so many bytes of it: orders, ticks with random bytes, books, tapes, signals, documents, transactions."""
    chance = random.Random(1)
    yield command(b"SELECT", b"0")
    number = 0
    while size > 0:
        key = b"%d" % number
        order = (
            b"symbol",
            b"BTCUSDT",
            b"side",
            b"buy",
            b"price",
            b"%d" % chance.randrange(10**6),
            b"status",
            b"filled",
            b"note",
            b"x" * chance.randrange(20, 300),
        )
        tick = command(b"SET", b"titan:tick:" + key, chance.randbytes(chance.randrange(100, 1000)), b"PXAT", b"1800000000000")
        part = b"".join(
            (
                b"#TS:%d\r\n" % (1700000000 + number // 1000) if number % 1000 == 0 else b"",
                command(b"HSET", b"titan:order:" + key, *order),
                tick,
                command(b"ZADD", b"titan:book", b"%f" % chance.random(), b"m" + key),
                command(b"RPUSH", b"titan:tape", *(b"trade-%d-%d" % (number, index) for index in range(10))),
                command(b"XADD", b"titan:signals", b"%d-1" % (number + 1), b"a", b"x" * 300, b"b", b"y" * 200),
                command(b"SET", b"titan:doc:" + key, b'{"a":"%s"}' % (b"json" * 200)),
                command(b"MULTI") + command(b"INCR", b"count") + command(b"HINCRBY", b"h", b"f", b"1") + command(b"EXEC"),
                command(b"DEL", b"titan:tick:%d" % (number - 50)),
            )
        )
        yield part
        size -= len(part)
        number += 1


def timed(runs: int, act: Callable[[], object]) -> tuple[float, float]:
    """Median of wall and of processor seconds."""
    rows = []
    for dummy in range(runs):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        act()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows.append((time.monotonic() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return statistics.median(row[0] for row in rows), statistics.median(row[1] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=417)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "playbooks" / "collections")}
    with tempfile.TemporaryDirectory(prefix="tdr-bench-") as folder:
        file = Path(folder, "appendonly.aof")
        with file.open("wb") as handle:
            handle.writelines(trading(arguments.mib << 20))
        checker = Path(folder, "redis-check-aof")
        checker.symlink_to("/usr/bin/redis-server")
        told = ""

        def verify() -> None:
            nonlocal told
            told = subprocess.run([sys.executable, "-c", VERIFY, file], env=environment, check=True, capture_output=True, text=True).stdout

        def read() -> None:
            subprocess.run(["cat", file], check=True, stdout=subprocess.DEVNULL)

        def check() -> None:
            subprocess.run([checker, file], check=True, capture_output=True)

        rows = {name: timed(arguments.runs, act) for name, act in (("cat", read), ("redis-check-aof", check), ("verify, with SHA-256", verify))}
        size = file.stat().st_size
    numbers = told.strip("[]\n").split(", ")
    print(f"{size / 2**20:.0f} MiB, {numbers[0]} commands, median of {arguments.runs}; peak memory of the verifier with interpreter {numbers[1]} MiB\n")
    print("| | wall s | CPU s | MiB/s | of redis-check-aof |\n|---|---|---|---|---|")
    for name, (wall, cpu) in rows.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {size / 2**20 / wall:.0f} | {wall / rows['redis-check-aof'][0]:.2f} |")


if __name__ == "__main__":
    main()
