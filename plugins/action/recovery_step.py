# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the modules of this collection on the servers; plugin_routing in meta/runtime.yml leads them here. See docs/budget.md."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action.normal import ActionModule as NormalAction

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _budget, _ledger, _notify


def in_a_rescue(task: Any) -> bool:
    """Whether it stands in a rescue or always section, however deep."""
    below: set[Any] = set()
    while task is not None:
        # what a static import brings stands in the section itself, and has the import between it and the block; copies keep their uuid
        if any(other._uuid in below for section in ("rescue", "always") for other in getattr(task, section, None) or []):
            return True
        below.add(task._uuid)
        task = getattr(task, "_parent", None)
    return False


def data_bytes(arguments: Mapping[str, Any], plan: Any) -> float | None:
    """How much Redis data is to be restored, as far as this step or the plan knows."""
    known = [arguments.get("restore_point"), *(arguments.get("candidates") or [])[:1], *((plan or {}).get("redis") or [])[:1]]
    sizes = [(point.get("details") or {}).get("size") for point in known if isinstance(point, Mapping)]
    return next((float(size) for size in sizes if size), None)


class ActionModule(NormalAction):
    """As any module is run, with a gate before it, and a server that cannot be reached is a failure that a rescue can see."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        try:
            said = self._gate(variables)
        except Exception as error:
            # what cannot be judged is not stopped: the deadline itself holds without this gate
            said = {"notes": [f"what is left of the time could not be judged before {self._task.get_name()}: {type(error).__name__}: {error}"]}
        if said.get("failed"):
            return said
        if "controller_time" in self._task.args:
            # as late as can be: what passes until the server looks at its own clock counts as the clocks' difference
            self._task.args = {**self._task.args, "controller_time": time.time()}
        try:
            result: dict[str, Any] = super().run(tmp, task_vars)
        except AnsibleConnectionFailure as error:
            # a play that expects dead servers goes on without them
            if self._task.ignore_unreachable:
                raise
            host = str(variables.get("inventory_hostname"))
            result = {"failed": True, "changed": False, "msg": f"{host} cannot be reached: {error}", "titan_dr": {"unreachable": host}}
        return self._with(result, said)

    def _with(self, result: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
        """The module's own words under titan_dr, and the gate's."""
        rows = result.get("titan_dr", {})
        if said and isinstance(rows, dict):
            notes = rows.get("notes") or []
            notes = [*said.get("notes", []), *(notes if isinstance(notes, list) else [notes])]
            result["titan_dr"] = {**said, **rows, **({"notes": notes} if notes else {})}
        return result

    # --- the gate ----------------------------------------------------------------------------------------------------

    def _gate(self, variables: dict[str, Any]) -> dict[str, Any]:
        """What there is to say before the step; with `failed` it must not start."""
        if os.environ.get(_ledger.ENV_ARMED) != "1" or variables.get("ansible_check_mode") or "titan_dr_deadline" not in variables:
            return {}
        roles = _budget.roles_of(self._task)
        if any(role in _budget.EXEMPT_ROLES for role in roles) or in_a_rescue(self._task):
            return {}
        directory = Path(os.environ[_ledger.ENV_RUN_DIR])
        budget = json.loads((directory / _budget.BUDGET_FILE).read_text(encoding="utf-8"))
        so_far = _budget.progress(_ledger.read_rows((directory / _ledger.LEDGER_FILE).read_text(encoding="utf-8")))

        def value(name: str) -> Any:
            return self._templar.template(variables[name])

        phase = _budget.phase_of(roles, budget["declared"], variables.get("titan_dr_phase"))
        incident_at, deadline, policy = float(value("titan_dr_incident_at")), float(value("titan_dr_deadline")), str(value("titan_dr_policy"))
        arguments = self._task.args
        now = time.time()
        if phase is None:
            return {"failed": True, "changed": False, "msg": "Not started: the time is over."} if now >= deadline else {}
        projection = _budget.project(budget, so_far, phase, now, data_bytes(arguments, variables.get("preflight_plan")))
        notes: list[str] = []
        if _budget.short(self._task.action) == "redis_stage" and arguments.get("mode") != "wait":
            choice = _budget.cheaper(budget, arguments.get("candidates") or [], projection, incident_at)
            if choice:
                self._task.args = {**arguments, "candidates": choice.candidates}
                projection = _budget.sooner(projection, choice.gain_s)
                notes.append(choice.note)
        verdict = _budget.decide(budget, so_far, projection, phase, now, incident_at, deadline, policy)
        said: dict[str, Any] = {"notes": notes} if notes else {}
        basis = "earlier runs" if projection.learnt else "the declared budgets"
        for event, figures in (("breach", verdict.breach), ("late", verdict.late)):
            # hosts that run side by side come here at the same time
            if figures and self._first(directory, event):
                said[event] = figures
                text = f"by {basis} the recovery ends about {figures['projected_s']:.0f} s after the incident (at worst {figures['worst_s']:.0f} s), "
                text += f"{'the RTO' if event == 'breach' else 'the target'} is {figures['limit_s']:.0f} s"
                said.setdefault("notes", []).append(f"{event}: {text}")
                self._display.display(f"[titan-dr] {event.upper()}: {text}")
                if event == "breach":
                    said["notes"] += self._notify(variables, directory, budget, figures, text)
        if verdict.kind != "go":
            if verdict.kind == "refuse":
                said["refused"] = verdict.msg
            return {"failed": True, "changed": False, "msg": verdict.msg, "titan_dr": said}
        return said

    def _first(self, directory: Path, event: str) -> bool:
        try:
            os.close(os.open(directory / f"{event}.said", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        except OSError:
            return True
        return True

    def _notify(self, variables: dict[str, Any], directory: Path, budget: Mapping[str, Any], figures: Mapping[str, Any], text: str) -> list[str]:
        """It is told to whoever the inventory names. What goes wrong with it is a note."""
        try:
            hooks = self._templar.template(variables.get("titan_dr_notify") or [])
            if hooks:
                body = {
                    "run_id": self._templar.template(variables.get("titan_dr_run_id")),
                    "scenario": variables.get("titan_dr_scenario"),
                    "event": "breach",
                    "text": text,
                    "projected_s": figures["projected_s"],
                    "rto_s": budget.get("rto_s"),
                }
                _notify.send(hooks, body, directory)
        except Exception as error:
            return [f"the breach was NOT told: {type(error).__name__}"]
        return []
