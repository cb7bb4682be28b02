# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts together what the probes found, has the doctor judge it, and writes the report. Runs on the controller and touches nothing else."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _budget, _doctor, _ledger, _run_files

SCENARIO = "diagnosis"


def evidence_of(results: Iterable[Mapping[str, Any]], servers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the probes found, by server, in the shape that the doctor reads."""
    evidence: dict[str, Any] = {"servers": [], "stores": None}
    found: dict[str, dict[str, Any]] = {name: {"name": name, **about, "witnesses": [], "errors": {}} for name, about in servers.items()}
    logins: dict[str, list[tuple[bool, str]]] = {name: [] for name in servers}
    for result in results:
        server, probe, said = found[str(result["server"])], str(result["probe"]), result.get("found")
        if probe == "stores":
            evidence["stores"] = said
        elif probe == "witness":
            witness = str(result["via"])
            reached = [look for look in (said or {}).get("reach") or [] if isinstance(look, Mapping)]
            looks = [{**look, "from": witness} for look in reached] or [
                {"from": witness, "tcp": "unknown", "text": f"it could not look: {result.get('error')}"}
            ]
            server["witnesses"] += looks
        else:
            server[probe] = said
            if probe == "host" and isinstance(said, Mapping) and "clock" in said:
                server[probe] = {**said, "clock": {"skew_s": skew(said, float(result["before"]), float(result["after"]))}}
            if result.get("login") is not None:
                logins[server["name"]].append((bool(result["login"]), str(result.get("error") or "")))
        if result.get("error"):
            server["errors"][probe] = str(result["error"])
    for name, server in found.items():
        tried = logins[name]
        if any(good for good, _text in tried):
            server["login"] = {"verdict": "pass", "text": "a login works"}
        elif tried:
            server["login"] = {"verdict": "fail", "text": f"no login: {tried[0][1]}"}
    evidence["servers"] = list(found.values())
    return evidence


def skew(found: Mapping[str, Any], before: float, after: float) -> float:
    """How far a server's clock is off: its time was taken at some moment between these two of ours."""
    theirs = float(found["clock"])
    return round(max(0.0, before - theirs, theirs - after), 1)


def expected(scenario: str, objectives: Mapping[str, Any], reports: list[dict[str, Any]], hosts: Iterable[str], data_bytes: float | None) -> dict[str, Any]:
    """How long such a recovery takes: as the budget projects it at its start."""
    budget = _budget.make(objectives, reports, scenario, hosts)
    projection = _budget.project(budget, _budget.Progress(), budget["order"][0], 0.0, data_bytes)
    basis = "learnt from earlier runs" if projection.learnt else "declared budgets"
    return {"p50_s": round(projection.p50_end, 1), "p95_s": round(projection.p95_end, 1), "basis": basis}


def run_directory(environ: Mapping[str, str], run_id: str) -> Path:
    """Below the recoveries' own, so that many diagnoses never crowd out what the budget learns from."""
    return Path(environ[_ledger.ENV_RUN_DIR]) if environ.get(_ledger.ENV_RUN_DIR) else _ledger.run_directory(environ, f"{SCENARIO}/{run_id}")


class ActionModule(ActionBase):
    """Judges."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hostvars, groups = variables["hostvars"], variables["groups"]
        servers, now = list(self._task.args["servers"]), time.time()
        results = []
        for alias in groups.get("titan_dr_probes", []):
            said = hostvars[alias].get("diagnose_result")
            if isinstance(said, Mapping) and "probe" in said:
                results.append({**said, "via": hostvars[alias].get("diagnose_via")})
            else:
                # the task was stopped at its time limit
                lost = {"server": hostvars[alias]["diagnose_server"], "probe": hostvars[alias]["diagnose_probe"], "via": hostvars[alias].get("diagnose_via")}
                results.append({**lost, "error": "it did not end in time"})
        evidence = evidence_of(results, {name: hostvars[name]["diagnose_about"] for name in servers})
        run_id = os.environ.get(_ledger.ENV_RUN_ID, "")
        run_id = run_id if _ledger.is_run_id(run_id) else _ledger.new_run_id(SCENARIO, now, secrets.token_hex(2))
        directory = run_directory(os.environ, run_id)
        evidence |= {
            "now": now,
            "environment_id": self._task.args["environment_id"],
            "inventory": [str(path) for path in variables.get("ansible_inventory_sources") or []],
            "times": self._times(directory, evidence, servers, list(groups.get("titan_replacement", []))),
        }
        diagnosis = _doctor.diagnose(evidence)
        report = {
            "run_id": run_id,
            "kind": SCENARIO,
            "scenario": SCENARIO,
            "result": diagnosis["verdict"],
            "message": diagnosis["text"],
            "started_at": now,
            "hosts": servers,
            **{key: diagnosis[key] for key in ("rows", "proposals", "look_at")},
            "probes": [{key: said.get(key) for key in ("server", "probe", "via", "seconds", "error")} for said in results],
        }
        path = self._save(directory, report)
        taken = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        result.update(changed=False, diagnosis=diagnosis, report=path, msg=[f"Diagnosis of {', '.join(servers)}, {taken}", *_doctor.lines(diagnosis)])
        return result

    def _times(self, directory: Path, evidence: Mapping[str, Any], servers: list[str], replacement: list[str]) -> dict[str, Any]:
        runs = directory.parent.parent if directory.parent.name == SCENARIO else directory.parent
        reports = _run_files.earlier_reports(runs, directory)
        points = (evidence.get("stores") or {}).get("points") or [{}]
        data_bytes = points[0].get("bytes")
        times = {}
        for scenario, objectives in dict(self._task.args["scenarios"]).items():
            hosts = [*servers, *(replacement if objectives.get("recovers") == "titan_replacement" else [])]
            times[scenario] = expected(scenario, objectives, reports, hosts, data_bytes)
        return times

    def _save(self, directory: Path, report: dict[str, Any]) -> str:
        """Where it was written; a disk that takes nothing keeps nobody from the diagnosis."""
        files = _run_files.RunFiles(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.save(report)
        except OSError as error:
            files.lost = str(error)
        return f"not written: {files.lost}" if files.lost else str(files.report)
