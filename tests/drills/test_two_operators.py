# SPDX-License-Identifier: GPL-3.0-or-later
"""Two operators who start the same recovery of the same Titan, each on a controller of his own: one recovers it, the other is told who does.

TITAN_DR_SWEEP   `all`: fifty times (make sweep); a few times without it
TITAN_DR_SEED    who waits how long; a fixed seed without it
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import TRADED, Controller, journal, keys, lease, look, orders_while_halted, trades_again
from lab_runs import sh, titan_with_restore_points

from titan_dr.lab import faults
from titan_dr.lab.state import LabState

SEED = int(os.environ.get("TITAN_DR_SEED", "4"))
RUNS = 50 if os.environ.get("TITAN_DR_SWEEP") == "all" else 2
PLAYBOOK = "database_corruption"
ARGUMENTS = ("-e", "validate_window=2", "-e", "preflight_clock_tolerance=60")
WITHIN_S = 25.0

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


def offsets() -> list[float]:
    """At once first: that is the race. The others are spread over the whole run of the first operator and a little longer."""
    dice = random.Random(SEED)
    rest = [dice.uniform(WITHIN_S * part / (RUNS - 1), WITHIN_S * (part + 1) / (RUNS - 1)) for part in range(RUNS - 1)]
    return [0.0, *rest]


def complaints(first: Controller, second: Controller, struck_at: float, rows_before: int) -> list[str]:
    """What went wrong between the two."""
    runs = {run.report.get("result"): run for run in (first, second)}
    if set(runs) != {"recovered", "refused"}:
        return [f"{run.host_name or 'first'}: {run.rc}, {run.report.get('result')}: {run.report.get('message')}" for run in (first, second)]
    winner, loser = runs["recovered"], runs["refused"]
    found = []
    if winner.rc not in (0, 4) or loser.rc == 0:
        found.append(f"exit codes {winner.rc} and {loser.rc}")
    if loser.report.get("trading") == "resumed":
        found.append("the refused run says that trading was resumed")
    said = loser.report["message"]
    resumed_at = winner.resume_began_at() or 0.0
    if loser.started_at < resumed_at - 5:
        # user@host is the one who holds it, as he is called on his own machine
        holder = f"{'bob' if winner is second else 'alice'}@{winner.host_name}" if winner.host_name else "alice@"
        for what, pattern in {
            "run": re.escape(winner.run_id),
            "owner": re.escape(holder),
            "since": r"since \d\d:\d\d:\d\d UTC",
            "what to do": r"take.over",
        }.items():
            if not re.search(pattern, said):
                found.append(f"the refusal does not name {what} ({pattern}): {said}")
    elif not re.search("take.over|database_corruption_confirm", said):
        found.append(f"refused, but why: {said}")
    rows = journal("titan")[rows_before:]
    strangers = sorted({row["run_id"] for row in rows} - {winner.run_id})
    if strangers or not rows:
        found.append(f"the journal has {len(rows)} rows, of {strangers} too")
    open_step = ""
    for row in rows:
        if row["event"] == "intent" and open_step and row["step"] != open_step and row["attempt"] != rows[0]["attempt"]:
            found.append(f"{row['step']} began while {open_step} was not over")
        open_step = row["step"] if row["event"] == "intent" else ""
    held = lease("titan")
    if (held.get("run_id"), held.get("state"), held.get("result")) != (winner.run_id, "closed", "recovered"):
        found.append(f"the lease: {held}")
    return [*found, *orders_while_halted([winner], struck_at)]


def test_one_recovers_and_the_other_is_refused(state: LabState, tmp_path: Path) -> None:
    ours, traded = keys("titan"), keys("titan", TRADED)
    restored: dict[str, str] = {}
    print(f"\n{RUNS} times two operators, TITAN_DR_SEED={SEED}")
    bad = []
    for number, offset in enumerate(offsets()):
        folder = tmp_path / f"pair{number}"
        folder.mkdir()
        sh("titan", "rm -rf /var/lib/redis.* /var/lib/titan-dr/stage/*")
        fault = faults.find_fault(PLAYBOOK)
        fault.prepare()
        fault.strike()
        struck_at = time.time()
        rows_before = len(journal("titan"))
        with Controller(folder / "first", PLAYBOOK, *ARGUMENTS, user="alice") as first:
            time.sleep(offset)
            with Controller(folder / "second", PLAYBOOK, *ARGUMENTS, elsewhere="second-controller", user="bob") as second:
                first.end()
                second.end()
        problems = complaints(first, second, struck_at, rows_before)
        if not trades_again(time.time()):
            problems.append("no order after the end")
        left = look("titan")
        if left["latch"] or left["marked processes"]:
            problems.append(f"left behind: latch {left['latch']}, processes {left['marked processes']}")
        now = keys("titan")
        restored = restored or now
        if now != restored or not now or now.keys() - ours.keys() or not keys("titan", TRADED).keys() & traded.keys():
            problems.append("the data is not that of the restore point")
        results = "/".join(str(run.report.get("result")) for run in (first, second))
        print(f"  {'FAILED' if problems else 'ok'}  {offset:4.1f} s apart: {results}" + "".join(f"\n      {line}" for line in problems), flush=True)
        bad += [f"{offset:.1f} s apart ({folder}): {line}" for line in problems]
    assert not bad, "\n".join(bad)
