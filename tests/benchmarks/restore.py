#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmark: from an encrypted restore point to a serving, proven Redis, against the bare pipeline decrypt | decompress | load, in one run. See README.md."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recovery import BenchmarkError, ansible, backup, foreign_load, own_lab, say, seed

from titan_dr import lab
from titan_dr.lab import oracle

CONTESTANTS = ("collection", "pipeline")
# On the server, as root. Its store is the local copy: no network. The identity comes over standard input and stays in memory.
PIPELINE = """
set -euo pipefail
work=$(mktemp -d /var/lib/bench-XXXXXX)
trap 'kill $server 2>/dev/null || true; rm -rf "$work" /dev/shm/bench-identity' EXIT
umask 077
cat > /dev/shm/bench-identity
began=$(date +%s.%N)
age --decrypt --identity /dev/shm/bench-identity "$1" | zstd --decompress --stdout --quiet > "$work/dump.rdb"
fetched=$(date +%s.%N)
redis-server --port 0 --unixsocket "$work/sock" --dir "$work" --save '' --databases "$2" --loglevel warning > /dev/null &
server=$!
until [ "$(redis-cli -s "$work/sock" PING 2>/dev/null)" = PONG ]; do sleep 0.05; done
echo "$began $fetched $(date +%s.%N)"
"""


def pipeline(state: lab.LabState, manifest: dict[str, Any]) -> dict[str, float]:
    path = f"/backups/{manifest['environment_id']}/{manifest['objects']['redis']['key']}"
    argv = ["podman", "exec", "-i", state.host("titan")["name"], "bash", "-c", PIPELINE, "bench", path, str(manifest["redis"]["databases"])]
    done = subprocess.run(argv, input=state.age["identity"], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise BenchmarkError(f"the pipeline ended with {done.returncode}: {done.stderr.strip()}")
    began, fetched, ended = (float(word) for word in done.stdout.split())
    return {"seconds": ended - began, "fetch": fetched - began, "load": ended - fetched}


def collection(state: lab.LabState, folder: Path) -> dict[str, float]:
    ansible(folder, "database_corruption", state, "-e", "database_corruption_confirm=true")
    report = json.loads((folder / "report.json").read_text())
    if report["result"] != "recovered":
        raise BenchmarkError(f"the report says {report['result']}: {report['message']}")
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    tasks = {row["name"]: row for row in rows if row["event"] == "task" and row.get("role") == "redis_restore"}
    begin, wait, swap = (next(row for name, row in tasks.items() if word in name) for word in ("in the background", "Wait for the proof", "Swap"))
    staged, swapped = wait["titan_dr"]["timings"], swap["titan_dr"]["timings"]
    # The services are stopped beside the staging, which may take longer, and the pipeline has no old Redis to stop: the restore alone counts.
    seconds = begin["duration_s"] + sum(staged.values()) + swap["duration_s"] - swapped["stop"]
    return {"seconds": seconds, **staged, **swapped}


def benchmark(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with own_lab("guide") as state:
        keys, dummy = seed(state, 0, options.gib)
        say("taking the restore point")
        manifest = backup(state, folder / "backup")
        runs: list[dict[str, Any]] = []
        for number in range(options.runs):
            for who in CONTESTANTS if number % 2 == 0 else reversed(CONTESTANTS):
                load = foreign_load(options.quiet, options.patience)
                found = collection(state, folder / f"{number}-{secrets.token_hex(2)}") if who == "collection" else pipeline(state, manifest)
                runs.append({"who": who, "others_before": round(load, 2), **{name: round(value, 2) for name, value in found.items()}})
                say(f"{runs[-1]}")
    median = {who: statistics.median(run["seconds"] for run in runs if run["who"] == who) for who in CONTESTANTS}
    data = {"keys": keys, "dump_bytes": manifest["redis"]["size"], "used_memory": manifest["redis"]["used_memory"]}
    return {"data": data, "runs": runs, "median": median, "ratio": median["collection"] / median["pipeline"]}


def table(found: dict[str, Any]) -> str:
    data = found["data"]
    lines = [f"{data['keys']} keys, {data['used_memory'] / 2**20:.0f} MiB in memory, dump {data['dump_bytes'] / 2**20:.0f} MiB", ""]
    for run in found["runs"]:
        steps = ", ".join(f"{name} {value:.1f}" for name, value in run.items() if name not in ("who", "seconds", "others_before"))
        lines.append(f"{run['who']:<12}{run['seconds']:>8.1f} s  ({steps}; others before {run['others_before']:.2f})")
    lines += ["", "median: " + ", ".join(f"{who} {value:.1f} s" for who, value in found["median"].items()) + f"; ratio {found['ratio']:.2f}"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="memory that the keys take in Redis (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=2, help="pairs, in alternating order (default: %(default)s)")
    parser.add_argument("--quiet", type=float, default=0.3, help="processors that others may use before a run begins")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for that; then the run begins anyhow, and its row tells")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="titan-bench-logs-"))
    try:
        found = benchmark(options, folder)
    except (BenchmarkError, lab.LabError, oracle.OracleError) as error:
        say(f"no result: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
