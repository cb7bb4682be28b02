# SPDX-License-Identifier: GPL-3.0-or-later
"""From fault to resumed for each scenario, and the share of it that is orchestration. README.md says what the columns are.

.venv/bin/python tests/benchmarks/scenarios.py [--runs 3] [SCENARIO:FAULT ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("titan-dr"))
DRILLS = (
    "complete_system_failure:destroyed",
    "database_corruption:bitflip",
    "network_partition:link-down",
    "configuration_corruption:invalid-json",
)


def drill(name: str, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Report and ledger of one drill; a drill that did not recover has no figure."""
    scenario, _colon, fault = name.partition(":")
    environment = {**os.environ, "TITAN_DR_LAB_DIR": str(folder / "lab")}
    argv = [COMMAND, "drill", scenario, *(["--fault", fault] if fault else []), "--json", "--runs-dir", str(folder / "runs")]
    done = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=900, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    if done.returncode != 0 or report["trading"] != "resumed":
        raise SystemExit(f"{name}: exit code {done.returncode}, {report['result']}: {report['message']}")
    ledger = (folder / "runs" / report["run_id"] / "ledger.jsonl").read_text(encoding="utf-8")
    return report, [json.loads(line) for line in ledger.splitlines()]


def measured(report: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds. What lies inside the collection's own modules on the servers is work and waiting for them; the rest is orchestration."""
    actual = report["rto"]["actual_s"]
    begun = next(row["t"] for row in rows if row["event"] == "run_start")
    steps = {row["task_id"] for row in rows if row["event"] == "step_start"}
    inside = sum(row["duration_s"] for row in rows if row["event"] == "task" and row.get("task_id") in steps and row["t"] <= actual + 0.1)
    orchestration = actual - begun - inside
    healed = report["drill"].get("heal_to_resumed_s")
    return {"resumed": actual, "before": begun, "modules": inside, "orchestration": orchestration, **({"healed": healed} if healed is not None else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="*", default=DRILLS, metavar="SCENARIO:FAULT", help="default: one of each scenario")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="drills of each (default: %(default)s)")
    options = parser.parse_args()
    print(f"{'drill':<42} {'resumed':>8} {'before':>7} {'modules':>8} {'orchestration':>14} {'share':>6} {'from heal':>10}")
    for name in options.drills:
        found = []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory(prefix="titan-dr-benchmark-") as room:
                found.append(measured(*drill(name, Path(room))))
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        share = middle["orchestration"] / middle["resumed"]
        healed = f"{middle['healed']:.1f}" if "healed" in middle else "-"
        times = f"{middle['resumed']:>8.1f} {middle['before']:>7.1f} {middle['modules']:>8.1f} {middle['orchestration']:>14.1f}"
        print(f"{name:<42} {times} {share:>6.0%} {healed:>10}", flush=True)


if __name__ == "__main__":
    main()
