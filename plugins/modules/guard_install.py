#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: guard_install
short_description: Install the guard that keeps a server from trading once another one has taken over
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Installs a program of the standard library alone in C(/usr/local/lib/titan-dr), its configuration with the credentials of the store (mode 0600), and the
    systemd service C(titan-dr-guard), and starts it.
  - From then on the kernel lets the services' user reach anything but loopback only while the guard renews a permit (nftables, table C(inet titan_dr_permit)).
    It does so only while no higher epoch than this server's own stands in the store (see M(titan.disaster_recovery.guard_claim)).
  - A server that was frozen or cut off comes back without a permit. One that sees a higher epoch fastens its latch, too.
options:
  epoch:
    description: Epoch of this server.
    type: int
    required: true
  key:
    description: Full name of the object with the epoch, as M(titan.disaster_recovery.guard_claim) returned it.
    type: str
    required: true
  store:
    description: The store of kind V(s3) with C(endpoint), C(region), C(bucket), C(access_key) and C(secret_key).
    type: dict
    required: true
  latch:
    description: Path of the latch.
    type: path
    required: true
  user:
    description: User of the services.
    type: str
    required: true
  unit:
    description: The systemd unit of the services. It starts after the guard.
    type: str
    required: true
  store_down:
    description:
      - What to do while the store does not tell. With V(keep) the permit is renewed for O(grace) seconds after the last good answer, with V(fence) it runs out.
    type: str
    choices: [keep, fence]
    default: keep
  grace:
    description: Seconds for which V(keep) goes on. A recovery elsewhere that cannot reach this server is not safe from it before.
    type: float
    default: 300
  every:
    description: Seconds between two looks at the store.
    type: float
    default: 3
  lifetime:
    description: Seconds that a permit lasts. Several looks must fit into it.
    type: float
    default: 10
  directory:
    description: Where the program goes.
    type: path
    default: /usr/local/lib/titan-dr
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Guard this server
  titan.disaster_recovery.guard_install:
    epoch: "{{ claim.epoch }}"
    key: "{{ claim.key }}"
    store: "{{ titan_stores[0] }}"
    latch: /var/lib/titan-dr/halt
    user: titan
    unit: pm2-titan
"""

RETURN = r"""
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import inspect
import json
import os
import pwd
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _guard, _latch, _lease

UNITS = "/etc/systemd/system"
SERVICE = "titan-dr-guard.service"
UNIT = """[Unit]
Description=Titan DR: lets the services reach the exchanges while this server is the one
Before={unit}

[Service]
ExecStartPre=/usr/bin/python3 -B {program} close
ExecStart=/usr/bin/python3 -B {program}
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"""


def put(path: str, text: str, mode: int) -> bool:
    """Whether anything of it is new."""
    try:
        with open(path, encoding="utf-8") as handle:
            if handle.read() == text and os.fstat(handle.fileno()).st_mode & 0o777 == mode:
                return False
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    _lease.write_file(path, text, mode)
    return True


def files(params: dict[str, t.Any], uid: int, nft: str) -> list[tuple[str, str, int]]:
    program = os.path.join(params["directory"], "guard.py")
    store = {name: params["store"].get(name) for name in ("endpoint", "region", "bucket", "access_key", "secret_key")}
    known = {name: params[name] for name in ("epoch", "key", "latch", "store_down", "grace", "every", "lifetime")}
    config = json.dumps({**known, "uid": uid, "nft": nft, "store": store}, indent=1) + "\n"
    unit = params["unit"] if params["unit"].endswith(".service") else f"{params['unit']}.service"
    return [
        (program, inspect.getsource(_guard), 0o644),
        (os.path.join(params["directory"], "_latch.py"), inspect.getsource(_latch), 0o644),
        (_guard.CONFIG, config, 0o600),
        (os.path.join(UNITS, SERVICE), UNIT.format(unit=unit, program=program), 0o644),
    ]


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=30, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"systemctl {words[0]} ended with {done.returncode}")


def permitted(nft: str, uid: int, timeout: float) -> bool:
    """The guard has asked the store and given its permit."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done = subprocess.run([nft, "-n", "list", "set", "inet", _guard.TABLE, "permit"], capture_output=True, text=True, timeout=5, check=False)
        if done.returncode == 0 and f"{uid} timeout" in done.stdout:
            return True
        time.sleep(0.1)
    return False


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "epoch": {"type": "int", "required": True},
            "key": {"type": "str", "required": True, "no_log": False},
            "store": {"type": "dict", "required": True, "no_log": True},
            "latch": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "store_down": {"type": "str", "choices": list(_guard.POLICIES), "default": "keep"},
            "grace": {"type": "float", "default": 300},
            "every": {"type": "float", "default": 3},
            "lifetime": {"type": "float", "default": 10},
            "directory": {"type": "path", "default": "/usr/local/lib/titan-dr"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["every"] * 2 <= params["lifetime"]:
        module.fail_json(msg="lifetime: at least two looks at the store must fit into it")
    nft = module.get_bin_path("nft")
    if not nft:
        module.fail_json(msg="nft is not installed: nothing could hold the services back")
    if module.check_mode:
        module.exit_json(changed=True, titan_dr={"notes": ["would install and start the guard"]})
    with _lease.command(module, "guard_install", {"epoch": params["epoch"]}):
        try:
            uid = pwd.getpwnam(params["user"]).pw_uid
            changed = [put(*entry) for entry in files(params, uid, nft)]
            wrong = ""
            if changed[3]:
                wrong = systemctl("daemon-reload")
            wrong = wrong or systemctl("enable", "--quiet", SERVICE) or systemctl("restart" if any(changed) else "start", SERVICE)
        except (KeyError, OSError, subprocess.TimeoutExpired) as exc:
            wrong, changed = str(exc), [True]
        if wrong or not permitted(nft, uid, 10.0):
            evidence = wrong or "the guard gives no permit: the store does not tell, or another server has the environment"
            module.fail_json(msg=f"The guard does not work: {evidence}", titan_dr={"gates": [{"name": "guard", "verdict": "fail", "evidence": evidence}]})
        gate = {"name": "guard", "verdict": "pass", "evidence": f"epoch {params['epoch']}, the services have their permit"}
        module.exit_json(changed=any(changed), titan_dr={"gates": [gate]})


if __name__ == "__main__":
    main()
