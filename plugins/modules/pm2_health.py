#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: pm2_health
short_description: Judge the applications that PM2 should be running
version_added: "0.1.0"
author:
  - Titan DR maintainers (@titan-dr)
description:
  - Compares the applications that are expected with what PM2 and the kernel say, and asks each application itself.
  - PM2 calls an application online while it crashes every few seconds, while it listens to nothing and while it never answers.
    So an application passes only when it is registered once, is in an acceptable state, did not restart during the window,
    its process is alive and belongs to O(user), that process or a descendant owns the port, nothing else runs in its place,
    and its health endpoint says what is expected.
  - The module never starts a PM2 daemon. It asks only the daemon whose process is alive, belongs to O(user) and has this O(pm2_home).
  - It returns at once when every application has been up for longer than O(window), as that proves that none restarted.
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
attributes:
  check_mode:
    support: full
    details: The module only reads, so it does the same in check mode.
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
    description:
      - The directory PM2 is installed under.
      - When given, it is checked that the PM2 command exists there. The command is not run.
    type: path
  user:
    description: The user that owns the daemon and the applications.
    type: str
    required: true
  components:
    description:
      - The expected components. Only those of kind V(pm2) on this server are considered.
      - A list without any PM2 component is refused, because nothing could fail.
      - Each has the keys C(name), C(kind), C(server), C(app), C(depends_on), C(port), C(health), C(pm2_status), C(required) and C(start_timeout).
    type: list
    elements: dict
    required: true
  server:
    description: The name of this server, where the components are on several.
    type: str
    default: ""
  window:
    description:
      - Seconds over which no application may restart.
      - It has to be longer than the slowest crash loop.
    type: float
    default: 10
  min_uptime:
    description: Seconds for which an application has to be up at the end of the window.
    type: float
    default: 0
  timeout:
    description: Seconds for one answer of the PM2 daemon or of a health endpoint.
    type: float
    default: 5
  probe:
    description: Whether the health endpoints are asked.
    type: bool
    default: true
  foreign:
    description:
      - What applications in PM2 that nobody expects mean.
      - With V(report) they are returned and noted, with V(fail) the overall verdict is fail, with V(ignore) they are not mentioned.
    type: str
    choices: [report, fail, ignore]
    default: report
"""

EXAMPLES = r"""
- name: All services are healthy
  titan.disaster_recovery.pm2_health:
    pm2_home: "{{ titan_pm2_home }}"
    pm2_prefix: "{{ titan_pm2_prefix }}"
    user: "{{ titan_user }}"
    components: "{{ titan_components }}"
    server: "{{ titan_server }}"
    window: 10
  register: __validate_pm2
  failed_when: __validate_pm2 is failed or __validate_pm2.verdict != 'pass'
"""

RETURN = r"""
at:
  description: The moment of the last look, in seconds since the epoch on the server.
  returned: success
  type: float
  sample: 1767225600.0
verdict:
  description: The overall verdict. One fail is a fail, and anything that could not be found out is unknown.
  returned: success
  type: str
  sample: pass
components:
  description: One verdict for each PM2 component.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the component.
      type: str
    verdict:
      description: One of pass, fail and unknown.
      type: str
    evidence:
      description: What the verdict rests on.
      type: str
    pid:
      description: Process id according to PM2, 0 when there is none.
      type: int
    restarts:
      description: Number of restarts that PM2 counts, null when PM2 does not know the application.
      type: int
    uptime_s:
      description: Age of the process in seconds according to the kernel.
      type: float
    memory_bytes:
      description: Memory of the process according to PM2.
      type: int
  sample:
    - name: titan-brain
      verdict: pass
      evidence: "state online, 0 restarts, process 812 up 34.0 s, owns port 3000; GET http://127.0.0.1:3000/health: status 200; status=\"healthy\""
      pid: 812
      restarts: 0
      uptime_s: 34.0
      memory_bytes: 51380224
foreign:
  description: Names of applications in PM2 that are not expected.
  returned: success
  type: list
  elements: str
  sample: []
titan_dr:
  description: Rows for the recovery ledger.
  returned: success
  type: dict
  sample:
    gates:
      - name: "pm2:titan-brain"
        verdict: pass
        evidence: state online, 0 restarts, process 812 up 34.0 s, owns port 3000
"""

import os
import pwd
import time
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component, ComponentError, here, parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Finding, Pm2Error, Watcher, overall
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import FAIL, probe


def check(watcher: Watcher, components: list[Component], window: float, min_uptime: float, foreign: str) -> dict[str, Any]:
    """Return the result of the module."""
    strangers: list[str] = []
    try:
        findings, sample = watcher.watch(components, window, min_uptime)
        expected = {component.app for component in components}
        if foreign != "ignore":
            strangers = sorted({app.name for app in sample.apps} - expected)
    except Pm2Error as error:
        findings = [Finding(component.name, error.verdict, str(error)) for component in components]
    gates = [{"name": f"pm2:{finding.name}", "verdict": finding.verdict, "evidence": finding.evidence} for finding in findings]
    titan_dr: dict[str, Any] = {"gates": gates}
    verdict = overall(findings)
    if strangers and foreign == "fail":
        verdict = FAIL
        gates.append({"name": "pm2:foreign", "verdict": FAIL, "evidence": f"not expected: {', '.join(strangers)}"})
    elif strangers:
        titan_dr["notes"] = [f"PM2 also runs applications that are not expected: {', '.join(strangers)}"]
    return {"changed": False, "verdict": verdict, "components": [finding.result() for finding in findings], "foreign": strangers, "titan_dr": titan_dr}


def argument_spec() -> Mapping[str, Any]:
    return {
        "pm2_home": {"type": "path", "required": True},
        "pm2_prefix": {"type": "path"},
        "user": {"type": "str", "required": True},
        "components": {"type": "list", "elements": "dict", "required": True},
        "server": {"type": "str", "default": ""},
        "window": {"type": "float", "default": 10},
        "min_uptime": {"type": "float", "default": 0},
        "timeout": {"type": "float", "default": 5},
        "probe": {"type": "bool", "default": True},
        "foreign": {"type": "str", "choices": ["report", "fail", "ignore"], "default": "report"},
    }


def main() -> None:
    module = AnsibleModule(argument_spec=dict(argument_spec()), supports_check_mode=True)
    params = module.params
    try:
        components = [component for component in here(parse_components(params["components"], params["server"])) if component.kind == "pm2"]
        uid = pwd.getpwnam(params["user"]).pw_uid
    except ComponentError as error:
        module.fail_json(msg=str(error))
    except KeyError:
        module.fail_json(msg=f"user: there is no user {params['user']} on this host")
    if not components:
        module.fail_json(msg="components: none of this server is of kind pm2; an empty list would make every check pass")
    if params["window"] < 0 or params["min_uptime"] < 0 or params["timeout"] <= 0:
        module.fail_json(msg="window and min_uptime must not be negative, and timeout must be above 0")
    command = os.path.join(params["pm2_prefix"], "node_modules/pm2/bin/pm2") if params["pm2_prefix"] else None
    if command and not os.path.isfile(command):
        module.fail_json(msg=f"pm2_prefix: there is no {command}")
    watcher = Watcher(params["pm2_home"], uid, timeout=params["timeout"], prober=probe if params["probe"] else None)
    found = check(watcher, components, params["window"], params["min_uptime"], params["foreign"])
    module.exit_json(at=time.time(), **found)


if __name__ == "__main__":
    main()
