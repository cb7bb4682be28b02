# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a recovery will take, by what earlier ones took, and what may still start. No Ansible, no clock and no files in here. See docs/budget.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

BUDGET_FILE = "budget.json"
FEW = 3  # fewer runs than this teach nothing
POLICIES = ("continue", "abort")
PREFLIGHT = "preflight"
DATA_PHASE = "redis_restore"
# A halt or its proof is never too late, and the lease must be given back.
EXEMPT_ROLES = ("trading_halt", "incident")


def short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def roles_of(task: Any) -> list[str]:
    """The role a task belongs to, then the one that called it, and so on."""
    roles = []
    while task is not None:
        role = getattr(task, "_role", None)
        if role is not None:
            roles.append(short(role.get_name()))
        task = getattr(task, "_parent", None)
    return roles


def phase_of(roles: Sequence[str], phases: Mapping[str, Any], play_phase: str | None) -> str | None:
    """The role; one without a budget counts for the role that called it, or for the play, or not at all."""
    known = next((role for role in roles if role in phases), None)
    return known or play_phase or (roles[0] if roles and not phases else None)


# --- learning --------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], fraction: float) -> float:
    """Between the two nearest values; of few values a high percentile is close to the greatest."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * fraction
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def visits(phases: Iterable[str]) -> list[str]:
    """A phase that is entered again has another name: the start of the services is not their stop."""
    names: list[str] = []
    seen: dict[str, int] = {}
    for phase in phases:
        seen[phase] = seen.get(phase, 0) + 1
        names.append(phase if seen[phase] == 1 else f"{phase}#{seen[phase]}")
    return names


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else None


def _durations(report: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    """Visits of the phases and their times. Each lasts until the next, so that nothing counts twice and no gap is lost."""
    end = float(report["rto"]["actual_s"])
    entries = [entry for entry in report["entries"] if entry["start_s"] <= end]
    starts = [float(entry["start_s"]) for entry in entries]
    ends = [*starts[1:], end][: len(starts)]
    return visits(entry["phase"] for entry in entries), [end - start for start, end in zip(starts, ends, strict=True)]


def learn(reports: Iterable[Mapping[str, Any]], scenario: str, hosts: Iterable[str]) -> dict[str, Any]:
    """What recoveries on these servers took: by visit of a phase those of this scenario that went the same way as the newest, by store all of them."""
    wanted = set(hosts) - {"localhost"}
    ways = []
    rates: dict[str, list[float]] = {}
    for report in sorted(reports, key=lambda report: str(report.get("run_id"))):
        try:
            if report["result"] != "recovered" or report["kind"] == "check" or set(report["hosts"]) != wanted:
                continue
            point, adopted = report["restore_point"], (report.get("lease") or {}).get("adopted")
            size, took, source = _positive(point.get("object_bytes")), _positive(report["timings"].get("fetch")), point.get("source")
            names, times = _durations(report)
        except (AttributeError, KeyError, TypeError, ValueError):
            # of another version, or damaged
            continue
        if size and took and source:
            rates.setdefault(str(source), []).append(size / took)
        # one that found everything well, or went on where another had broken off, did not go all the way
        if report.get("scenario") == scenario and set(names) - {PREFLIGHT, "validate"} and not adopted:
            ways.append((names, times, _positive(point.get("bytes"))))
    ways = [way for way in ways if way[0] and way[0] == ways[-1][0]]
    learnt: dict[str, Any] = {}
    for number, name in enumerate(ways[-1][0] if ways else []):
        took_s = [way[1][number] for way in ways]
        sizes = [way[2] for way in ways if way[2]]
        entry: dict[str, Any] = {"p50": round(percentile(took_s, 0.5), 2), "p95": round(percentile(took_s, 0.95), 2), "n": len(took_s)}
        if name.startswith(DATA_PHASE) and sizes:
            entry["ref_bytes"] = median(sizes)
        learnt[name] = entry
    stores = {store: {"bytes_per_s": round(median(values), 1), "n": len(values)} for store, values in rates.items()}
    return {"learnt": learnt, "order": list(learnt), "stores": stores}


def make(objectives: Mapping[str, Any], reports: Iterable[Mapping[str, Any]], scenario: str, hosts: Iterable[str]) -> dict[str, Any]:
    """What the gate needs to know before each step; it becomes budget.json."""
    known = learn(reports, scenario, hosts)
    declared = dict(objectives.get("phases") or {})
    return {
        **known,
        "order": known["order"] or list(declared),
        "declared": declared,
        **{key: objectives.get(key) for key in ("rto_target_s", "rto_s", "rpo_s", "limit_s")},
    }


# --- projecting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """What the ledger says of the run so far."""

    entered: tuple[tuple[str, float], ...] = ()  # phase, epoch seconds
    breached: bool = False
    warned: bool = False

    @property
    def untouched(self) -> bool:
        return all(phase == PREFLIGHT for phase, _at in self.entered)


def progress(rows: Iterable[Mapping[str, Any]]) -> Progress:
    rows = list(rows)
    return Progress(
        tuple((str(row["phase"]), float(row["at"])) for row in rows if row["event"] == "phase_start"),
        any(row["event"] == "breach" for row in rows),
        any(row["event"] == "late" for row in rows),
    )


@dataclass(frozen=True)
class Projection:
    p50_end: float  # epoch seconds
    p95_end: float
    step_p50: float  # what this visit of the phase still takes
    learnt: bool


def _growth(entry: Mapping[str, Any], data_bytes: float | None) -> float:
    reference = _positive(entry.get("ref_bytes"))
    return max(1.0, data_bytes / reference) if reference and data_bytes else 1.0


def project(budget: Mapping[str, Any], so_far: Progress, phase: str, now: float, data_bytes: float | None = None) -> Projection:
    """When the recovery will end: by the way that earlier ones went if they teach enough, else by the declared budgets."""
    entered = list(so_far.entered)
    if not entered or entered[-1][0] != phase:
        # the ledger may hear of this phase later than the gate
        entered.append((phase, now))
    here = visits(name for name, _at in entered)[-1]
    spent = now - entered[-1][1]
    order, learnt = list(budget["order"]), budget["learnt"]
    if here in order and all(learnt.get(name, {}).get("n", 0) >= FEW for name in order):
        rest = order[order.index(here) :]
        p50s, p95s = ([learnt[name][key] * _growth(learnt[name], data_bytes) for name in rest] for key in ("p50", "p95"))
        return _projected(now, spent, p50s, p95s, True)
    # How the phases interleave is not known. One that was left counts as over, or what was quick would be waited for until the end.
    starts = [at for _name, at in entered] + [now]
    spent = sum(starts[number + 1] - at for number, (name, at) in enumerate(entered) if name == phase)
    begun = {name for name, _at in entered}
    p95s = [float(budget["declared"].get(phase) or 0)] + [float(limit) for name, limit in budget["declared"].items() if name not in begun]
    return _projected(now, spent, [limit / 2 for limit in p95s], p95s, False)


def _projected(now: float, spent: float, p50s: list[float], p95s: list[float], learnt: bool) -> Projection:
    step = max(0.0, p50s[0] - spent)
    return Projection(now + step + sum(p50s[1:]), now + max(0.0, p95s[0] - spent) + sum(p95s[1:]), step, learnt)


# --- deciding --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    kind: str = "go"  # or refuse (nothing was touched yet), or fail (into the rescue)
    msg: str = ""
    breach: dict[str, Any] | None = None
    late: dict[str, Any] | None = None


def decide(
    budget: Mapping[str, Any], so_far: Progress, projection: Projection, phase: str, now: float, incident_at: float, deadline: float | None, policy: str
) -> Verdict:
    """May the next step of this phase start?"""
    early = so_far.untouched and phase == PREFLIGHT
    stop = "refuse" if early else "fail"
    if policy not in POLICIES:
        return Verdict(stop, f"titan_dr_on_breach is {policy!r}: it must be continue or abort.")
    ends = projection.p50_end - incident_at
    figures = {"projected_s": round(ends, 1), "worst_s": round(projection.p95_end - incident_at, 1), "phase": phase, "declared_s": round(now - incident_at, 1)}
    target, rto = _positive(budget.get("rto_target_s")), _positive(budget.get("rto_s"))
    over = rto is not None and ends > rto
    breach = {**figures, "limit_s": rto} if over and not so_far.breached else None
    late = {**figures, "limit_s": target} if target is not None and ends > target and not so_far.warned and not so_far.breached and not over else None
    if deadline is not None and (now >= deadline or now + projection.step_p50 > deadline):
        left = f"{deadline - now:.0f} s are left" if now < deadline else "the time is over"
        return Verdict(stop, f"Not started: phase {phase} still takes about {projection.step_p50:.0f} s and {left}.", breach, late)
    if over and policy == "abort":
        msg = f"Not started: the recovery would end about {ends:.0f} s after the incident, {rto:.0f} s are allowed, and titan_dr_on_breach is abort."
        return Verdict(stop, msg, breach)
    return Verdict(breach=breach, late=late)


# --- a cheaper way ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    candidates: list[dict[str, Any]]
    gain_s: float
    note: str


def _fetch_s(budget: Mapping[str, Any], candidate: Mapping[str, Any], source: Mapping[str, Any]) -> float | None:
    known = budget["stores"].get(source["store"], {})
    size = _positive(candidate["object"].get("size"))
    return size / known["bytes_per_s"] if size and known.get("n", 0) >= FEW else None


def cheaper(budget: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]], projection: Projection, incident_at: float) -> Choice | None:
    """When the RTO would be missed with the newest restore point from its first store: one that is fetched fast enough, from another store or older within
    the RPO."""
    rto, rpo = _positive(budget.get("rto_s")), budget.get("rpo_s")
    if not candidates or not candidates[0]["sources"] or rto is None or projection.p50_end <= incident_at + rto:
        return None
    newest = candidates[0]
    usual = _fetch_s(budget, newest, newest["sources"][0])
    if usual is None:
        return None
    for number, candidate in enumerate(candidates):
        loss = incident_at - candidate["taken_at"]
        if number and (not isinstance(rpo, (int, float)) or loss > rpo):
            continue
        for source in candidate["sources"]:
            took = _fetch_s(budget, candidate, source)
            if took is None or projection.p50_end - usual + took > incident_at + rto:
                continue
            first = {**candidate, "sources": [source, *(other for other in candidate["sources"] if other is not source)]}
            rest = [dict(other) for other in candidates if other is not candidate]
            extra = newest["taken_at"] - candidate["taken_at"]
            cost = f"{extra:.0f} s more of data are lost" if number else "nothing more is lost"
            note = f"restore point {candidate['id']} is fetched from {source['store']} (about {took:.0f} s) and not {newest['id']} from "
            note += f"{newest['sources'][0]['store']} (about {usual:.0f} s), which would miss the RTO: {cost}"
            return Choice([first, *rest], usual - took, note)
    return None


def sooner(projection: Projection, seconds: float) -> Projection:
    return replace(projection, p50_end=projection.p50_end - seconds, p95_end=projection.p95_end - seconds)
