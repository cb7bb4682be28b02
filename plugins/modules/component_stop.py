#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: component_stop
short_description: Stop the PM2 components that use Redis, or chosen ones, and prove that they are gone
version_added: "0.2.0"
author:
  - Titan DR maintainers (@titan-dr)
description:
  - Stops every PM2 component that depends on Redis, directly or through others, in the reverse order of its start. Others are left alone.
    With O(only) it stops those instead, and what depends on them.
  - The applications are deleted from the daemon, because PM2 starts a stopped one again at its next C(cron_restart).
    PM2's saved list keeps them, and is saved first when it does not hold them. M(titan.disaster_recovery.component_start) starts them again.
  - It is proven by the kernel that their processes have ended and that their ports are free. Left-overs of PM2 are ended,
    a process of anybody else is named and left alone, and the module fails.
  - When PM2 has no daemon, or one that does not answer, its unit is stopped as a whole, and left-over processes are ended.
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
    details: Tells which components would be stopped.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  pm2_home:
    description: The PM2_HOME of the daemon.
    type: path
    required: true
  pm2_prefix:
    description: The directory PM2 is installed under.
    type: path
    required: true
  user:
    description: The user that owns the daemon and the applications.
    type: str
    required: true
  components:
    description: All components, as M(titan.disaster_recovery.component_start) takes them.
    type: list
    elements: dict
    required: true
  server:
    description: The name of this server, where the components are on several. Only its own are stopped.
    type: str
    default: ""
  only:
    description: Names of components. They are stopped, and what depends on them; of an empty list nothing. Without it what uses Redis is stopped.
    type: list
    elements: str
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
  probe_timeout:
    description: Seconds for one answer of the PM2 daemon.
    type: float
    default: 3
  unit:
    description: The systemd unit of the PM2 daemon, stopped when PM2 cannot be asked.
    type: str
"""

EXAMPLES = r"""
- name: Stop what uses Redis
  titan.disaster_recovery.component_stop:
    pm2_home: "{{ titan_pm2_home }}"
    pm2_prefix: "{{ titan_pm2_prefix }}"
    user: "{{ titan_user }}"
    components: "{{ titan_components }}"
    server: "{{ titan_server }}"
    unit: pm2-titan.service
    timeout: 30
"""

RETURN = r"""
stopped:
  description: Names of the components of which something was there.
  returned: always
  type: list
  elements: str
  sample: [titan-phase1, titan-brain]
titan_dr:
  description: Rows for the recovery ledger.
  returned: always
  type: dict
  sample:
    gates:
      - name: "stop:titan-brain"
        verdict: pass
        evidence: not known to PM2, no process, port 3000 is free
"""

import pwd
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import ComponentError, parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Pm2Error, Watcher
from ansible_collections.titan.disaster_recovery.plugins.module_utils._start import (
    Fence,
    Pm2Cli,
    Settings,
    StartError,
    monotonic_end,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._stop import Stopper


def prepare(params: dict[str, t.Any]) -> Stopper:
    """Raises ValueError with what is wrong."""
    components = parse_components(params["components"], params["server"])
    try:
        account = pwd.getpwnam(params["user"])
    except KeyError:
        raise ValueError(f"user: there is no user {params['user']} on this host") from None
    settings = Settings(
        home=params["pm2_home"],
        ecosystem="",
        end=monotonic_end(None, params["timeout"]),
        latch_set=lambda: True,
        unit=params["unit"],
        user=params["user"],
    )
    watcher = Watcher(params["pm2_home"], account.pw_uid, timeout=params["probe_timeout"])
    cli = Pm2Cli(params["pm2_prefix"], params["pm2_home"], account, {})
    stopper = Stopper(components, settings, watcher, cli, Fence(account.pw_uid))
    if params["only"] is not None:
        unknown = sorted(set(params["only"]) - {component.name for component in components})
        if unknown:
            raise ValueError(f"only: {', '.join(unknown)} is not a component")
        stopper.only = set(params["only"])
    return stopper


def rows(stopper: Stopper) -> dict[str, t.Any]:
    outcome = stopper.outcome
    gates = [{"name": f"stop:{name}", "verdict": finding.verdict, "evidence": finding.evidence} for name, finding in outcome.findings.items()]
    would = [name for name, action in outcome.actions.items() if action == "would stop"]
    notes = [*outcome.notes, *outcome.ended, *([f"would stop {', '.join(would)}"] if would else [])]
    return {
        "changed": outcome.changed,
        "stopped": sorted(name for name, action in outcome.actions.items() if action == "stopped"),
        "titan_dr": {"gates": gates, "notes": notes},
    }


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "pm2_home": {"type": "path", "required": True},
            "pm2_prefix": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "components": {"type": "list", "elements": "dict", "required": True},
            "server": {"type": "str", "default": ""},
            "only": {"type": "list", "elements": "str"},
            "timeout": {"type": "float", "required": True},
            "probe_timeout": {"type": "float", "default": 3},
            "unit": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        stopper = prepare(module.params)
    except (ComponentError, ValueError) as error:
        module.fail_json(msg=str(error))
    with _lease.command(module, "component_stop", {"components": [component["name"] for component in module.params["components"]]}):
        try:
            stopper.run(check=module.check_mode)
        except (StartError, Pm2Error) as error:
            found = rows(stopper)
            found["titan_dr"]["gates"].append({"name": "stop", "verdict": "fail", "evidence": str(error)})
            module.fail_json(msg=f"The components could not be stopped: {error}", **found)
        module.exit_json(**rows(stopper))


if __name__ == "__main__":
    main()
