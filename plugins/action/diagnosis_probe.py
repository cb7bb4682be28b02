# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One look for a diagnosis: a module on a server, a connection from here, or the stores. Whatever goes wrong is what it found, never a failure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _diagnosis, _stores

COLLECTION = "titan.disaster_recovery."
# Seconds for a connection from here.
PATIENCE = 2.0


def stores(args: Mapping[str, Any]) -> dict[str, Any]:
    """Restore points with what a diagnosis needs of them, the newest first."""
    good, bad = _stores.read_all(args["stores"], args["environment_id"], 5)
    if not good:
        return {"points": [], "silent": bad, "error": "no store can be read"}
    plan, notes, _locked = _stores.plan(good, args["environment_id"], args["identity"], args["needs"])
    points = []
    for candidate in plan["redis"]:
        details = candidate["details"]
        keys = sum(entry["keys"] for entry in details.get("keyspace", {}).values())
        known = {"id": candidate["id"], "taken_at": candidate["taken_at"], "stores": candidate["stores"], "keys": keys, "bytes": details.get("size")}
        known["classes"] = {name: counts["keys"] for name, counts in details.get("classes", {}).items()}
        points.append({**known, "canary": (details.get("canary") or {}).get("seq")})
    return {"points": points, "silent": bad, "error": "; ".join(notes) or "no restore point is there"}


class ActionModule(ActionBase):
    """Runs the look that the role diagnose planned for a server."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        variables = task_vars or {}
        server, probe = str(self._task.args["server"]), str(self._task.args["probe"])
        started = time.monotonic()
        result: dict[str, Any] = {"changed": False, "server": server, "probe": probe, "found": None, "error": "", "login": None}
        try:
            self._look(variables["hostvars"][server]["diagnose_probes"][probe], variables, result)
        except AnsibleConnectionFailure as error:
            result.update(login=False, error=str(error))
        except (AnsibleError, OSError, LookupError, TypeError, ValueError) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        result["seconds"] = round(time.monotonic() - started, 2)
        return result

    def _look(self, plan: Mapping[str, Any], variables: dict[str, Any], result: dict[str, Any]) -> None:
        args = dict(plan.get("args") or {})
        if plan["kind"] == "reach":
            result["found"] = _diagnosis.reach(str(args["host"]), int(args["port"]), PATIENCE)
            return
        if plan["kind"] == "stores":
            result["found"] = stores(args)
            return
        if "controller_time" in args:
            # as late as can be: what passes until the server looks at its own clock counts as the clocks' difference
            args["controller_time"] = time.time()
        before = time.time()
        said = self._execute_module(module_name=COLLECTION + plan["module"], module_args=args, task_vars=variables)
        result.update(login=True, before=before, after=time.time())
        found = said.get(plan["key"]) if plan.get("key") else {name: said.get(name) for name in ("verdict", "components", "foreign")}
        if said.get("failed") and not (isinstance(found, Mapping) and any(found.values())):
            last = str(said.get("module_stderr") or said.get("module_stdout") or "").strip().splitlines()[-1:]
            result["error"] = "; ".join([str(said.get("msg") or "the module failed"), *last])
        else:
            result["found"] = found
