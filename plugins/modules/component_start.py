#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: component_start
short_description: Start PM2 components in dependency order, gated on health
version_added: "0.1.0"
author:
  - Titan DR maintainers (@titan-dr)
description:
  - Starts the components that are not healthy, level by level of their dependencies. The members of a level start together,
    and the next level starts only when all of them are healthy.
  - When all are healthy already, nothing is started and nothing is changed.
  - An application that is registered but not healthy is deleted and started from the ecosystem file, never restarted.
    In between it is proven that its processes have ended and that its port is free.
    A process in the way is ended only if it is a left-over of PM2, which means that it and its parents up to the PM2 daemon or init belong to O(user).
    Any other is named, left alone, and nothing is started in its place.
  - PM2's saved list is not used to start anything. It is put aside when the daemon has to be started,
    and written anew at the end, so that a reboot brings back what runs then.
  - Components of another kind than V(pm2) are not started, but what depends on them waits until their port is listened on.
  - Components of other servers are not started either. What depends on one of them waits until it answers there, by its health or, without one, by its port.
    It is given as long as it and what it depends on may take to start.
  - Cycles and unknown names among the dependencies are refused before anything is started.
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
    details: Tells which components would be started. A missing halt latch is only noted then.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A second run starts nothing as long as all components stay healthy. An optional component that cannot start is tried again.
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
  ecosystem:
    description: The ecosystem file that declares the applications.
    type: path
    required: true
  components:
    description:
      - All components, those that PM2 does not run included.
      - Each has the keys C(name), C(kind), C(server), C(app), C(depends_on), C(port), C(health), C(pm2_status), C(required) and C(start_timeout).
      - An optional component that does not become healthy within its C(start_timeout) is deleted from PM2 again and noted.
    type: list
    elements: dict
    required: true
  server:
    description: The name of this server, where the components are on several. Only its own are started.
    type: str
    default: ""
  deadline:
    description:
      - The moment in epoch seconds at which everything has to be up.
      - Exactly one of O(deadline) and O(timeout) is needed.
    type: float
  timeout:
    description: Seconds from now after which everything has to be up.
    type: float
  settle:
    description:
      - Seconds for which a component without a health endpoint has to stay up before it counts as healthy.
      - A component that was running before has to have been up for as long, or it is watched until then.
    type: float
    default: 3
  probe_timeout:
    description: Seconds for one answer of the PM2 daemon or of a health endpoint.
    type: float
    default: 3
  latch:
    description: The file that exists while trading is halted. It has to belong to root and not be writable by others.
    type: path
  require_latch:
    description: Whether to refuse to start anything while O(latch) does not exist, because what starts then could trade at once.
    type: bool
    default: true
  latch_honoured:
    description:
      - Whether the services stay halted while O(latch) exists.
      - If not, a fence is put up in nftables before anything is started, which drops all packets of O(user) to anything but loopback.
        As soon as the component that answers O(halt_call) listens, the call is made, and the fence is removed once the halt is confirmed.
        When it cannot be confirmed, the fence stays and the module fails.
    type: bool
    default: true
  halt_call:
    description:
      - The call that halts trading, with the keys C(url), C(method), C(body) and C(confirm), which is the probe that proves it.
      - It is needed when O(latch_honoured=false), and one of the components has to listen on its port.
    type: dict
  environment:
    description:
      - Variables for the services, besides a minimal environment.
      - Do not put secrets here. PM2 keeps the environment of its applications in clear text.
    type: dict
    default: {}
  unit:
    description:
      - The systemd unit of the PM2 daemon, restarted when there is no daemon, so that the daemon lives in a cgroup of its own.
      - Without it the daemon is started in a transient unit, and on a host without systemd this is refused.
    type: str
"""

EXAMPLES = r"""
- name: Start the services behind the halt latch
  titan.disaster_recovery.component_start:
    pm2_home: "{{ titan_pm2_home }}"
    pm2_prefix: "{{ titan_pm2_prefix }}"
    user: "{{ titan_user }}"
    ecosystem: "{{ titan_ecosystem }}"
    components: "{{ titan_components }}"
    server: "{{ titan_server }}"
    latch: "{{ titan_latch }}"
    latch_honoured: "{{ titan_latch_honoured }}"
    halt_call: "{{ titan_halt_call }}"
    unit: pm2-titan.service
    timeout: 60
"""

RETURN = r"""
components:
  description: One row for each component that was looked at.
  returned: always
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
    action:
      description: One of none, started, restarted, would start and would restart. Restarted means deleted and started.
      type: str
    duration_s:
      description: Seconds from the start of the level until the component was healthy, null when it was not started.
      type: float
    pid:
      description: Process id according to PM2.
      type: int
    restarts:
      description: Number of restarts that PM2 counts.
      type: int
    uptime_s:
      description: Age of the process in seconds.
      type: float
    memory_bytes:
      description: Memory of the process according to PM2.
      type: int
  sample:
    - name: titan-brain
      verdict: pass
      evidence: state online, 0 restarts, process 812 up 1.3 s, owns port 3000
      action: started
      duration_s: 1.504
      pid: 812
      restarts: 0
      uptime_s: 1.3
      memory_bytes: 51380224
started:
  description: Names of the components that were started.
  returned: always
  type: list
  elements: str
  sample: [titan-brain]
fence:
  description: State of the network fence at the end, one of none, up and removed.
  returned: always
  type: str
  sample: none
saved:
  description: Whether PM2's list was saved for the next boot.
  returned: always
  type: bool
  sample: true
notes:
  description: What else is worth knowing, such as orphan processes that were ended.
  returned: always
  type: list
  elements: str
  sample: []
titan_dr:
  description: Rows for the recovery ledger.
  returned: always
  type: dict
  sample:
    gates:
      - name: "start:titan-brain"
        verdict: pass
        evidence: state online, 0 restarts, process 812 up 1.3 s, owns port 3000
    timings:
      "start:titan-brain": 1.504
"""

import math
import os
import pwd
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _lease
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import ComponentError, here, parse_components
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import Pm2Error, Watcher
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import ProbeSpecError, check_call
from ansible_collections.titan.disaster_recovery.plugins.module_utils._start import (
    Fence,
    Pm2Cli,
    Settings,
    Starter,
    StartError,
    latch_is_set,
    monotonic_end,
)


def argument_spec() -> Mapping[str, Any]:
    return {
        "pm2_home": {"type": "path", "required": True},
        "pm2_prefix": {"type": "path", "required": True},
        "user": {"type": "str", "required": True},
        "ecosystem": {"type": "path", "required": True},
        "components": {"type": "list", "elements": "dict", "required": True},
        "server": {"type": "str", "default": ""},
        "deadline": {"type": "float"},
        "timeout": {"type": "float"},
        "settle": {"type": "float", "default": 3},
        "probe_timeout": {"type": "float", "default": 3},
        "latch": {"type": "path"},
        "require_latch": {"type": "bool", "default": True},
        "latch_honoured": {"type": "bool", "default": True},
        "halt_call": {"type": "dict"},
        "environment": {"type": "dict", "default": {}},
        "unit": {"type": "str"},
    }


class NotThereYet(ValueError):
    """What the steps before this one install; in check mode they install nothing."""


def prepare(module: AnsibleModule) -> Starter:
    """Check the parameters and put the starter together. Raises ValueError with what is wrong."""
    params = module.params
    components = parse_components(params["components"], params["server"])
    if not any(component.kind == "pm2" for component in here(components)):
        raise ValueError("components: none of this server is of kind pm2; there would be nothing to start")
    if params["require_latch"] and not params["latch"]:
        raise ValueError("latch: is needed, unless require_latch is false")
    if params["halt_call"]:
        check_call(params["halt_call"], "halt_call")
    for key in ("deadline", "timeout", "settle", "probe_timeout"):
        value = params[key]
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{key}: must be a number of seconds that is not negative")
    try:
        account = pwd.getpwnam(params["user"])
    except KeyError:
        raise NotThereYet(f"user: there is no user {params['user']} on this host") from None
    environment = {str(key): str(value) for key, value in params["environment"].items()}
    cli = Pm2Cli(params["pm2_prefix"], params["pm2_home"], account, environment)
    for what, path in (("pm2_prefix", cli.executable), ("ecosystem", params["ecosystem"])):
        if not os.path.isfile(path):
            raise NotThereYet(f"{what}: there is no {path}")
    settings = Settings(
        home=params["pm2_home"],
        ecosystem=params["ecosystem"],
        end=monotonic_end(params["deadline"], params["timeout"]),
        latch=params["latch"] or "",
        latch_set=lambda: latch_is_set(params["latch"] or ""),
        require_latch=params["require_latch"],
        latch_honoured=params["latch_honoured"],
        halt_call=params["halt_call"],
        unit=params["unit"],
        settle=params["settle"],
        user=params["user"],
    )
    watcher = Watcher(params["pm2_home"], account.pw_uid, timeout=params["probe_timeout"])
    return Starter(components, settings, watcher, cli, Fence(account.pw_uid, nft=module.get_bin_path("nft")))


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(argument_spec()),
        mutually_exclusive=[("deadline", "timeout")],
        required_one_of=[("deadline", "timeout")],
        supports_check_mode=True,
    )
    try:
        starter = prepare(module)
    except NotThereYet as error:
        if not module.check_mode:
            module.fail_json(msg=str(error))
        components = here(parse_components(module.params["components"], module.params["server"]))
        names = [component.name for component in components if component.kind == "pm2"]
        note = f"would start {', '.join(names)} ({error})"
        module.exit_json(changed=True, components=[], fence="none", notes=[note], saved=False, started=[], titan_dr={"notes": [note]})
    except (ComponentError, ProbeSpecError, ValueError) as error:
        module.fail_json(msg=str(error))
    with _lease.command(module, "component_start", {"components": [component["name"] for component in module.params["components"]]}):
        try:
            starter.run(check=module.check_mode)
        except (StartError, Pm2Error) as error:
            module.fail_json(msg=str(error), **starter.outcome.result())
        module.exit_json(**starter.outcome.result())


if __name__ == "__main__":
    main()
