#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_baseline
short_description: Give a blank server the user, directories, limits and tools that a recovery needs
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Creates the service user, the directories, drop-in files for sysctl and limits, and the state directory of the recovery.
  - Unpacks the bootstrap of the restore point (age and zstd), so that sealed objects can be opened before any package is installed.
  - Writes where the other servers are, in a block of its own in C(/etc/hosts). Elsewhere in it these names are taken away, as they may be of servers that died.
  - Writes the owner record that makes this server ours for later runs.
options:
  environment_id:
    description: The environment this server belongs to.
    type: str
    required: true
  run_id:
    description: The run that claims the server.
    type: str
    required: true
  user:
    description: User and group of the services.
    type: str
    required: true
  home:
    description: Home directory of the user.
    type: path
    required: true
  directories:
    description: Further directories that belong to the user. Those that exist are left as they are.
    type: list
    elements: path
    default: []
  sysctl:
    description: Kernel settings, kept in a drop-in file and applied where the kernel lets us.
    type: dict
    default: {}
  limits:
    description: Limits of the user by item (C(nofile), C(nproc)), kept in a drop-in file.
    type: dict
    default: {}
  hosts:
    description: The address of each server by its name. Empty leaves C(/etc/hosts) as it is.
    type: dict
    default: {}
  timeout:
    description: Seconds for all of it.
    type: float
    required: true
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.lease
  - titan.disaster_recovery.candidates
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Prepare the server
  titan.disaster_recovery.server_baseline:
    environment_id: production
    run_id: 20260101T000000Z-1234
    user: titan
    home: /opt/titan
    candidates: "{{ plan.bootstrap }}"
    identity: ""
    timeout: 60
"""

RETURN = r"""
actions:
  description: What was done.
  type: list
  elements: str
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import grp
import ipaddress
import json
import os
import pwd
import re
import shutil
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _fetch, _lease, _state

OWNER = _state.path("owner.json")
SYSCTL = "/etc/sysctl.d/90-titan.conf"
LIMITS = "/etc/security/limits.d/90-titan.conf"
HOSTS = "/etc/hosts"
BLOCK = ("# BEGIN servers of Titan, managed by titan.disaster_recovery", "# END servers of Titan")


def with_servers(text: str, servers: t.Mapping[str, t.Any]) -> str:
    """The hosts file with these servers in its block, the first in it. Another address of theirs would be as good as the right one to a resolver."""
    lines = []
    ours = False
    found = text.splitlines()
    for number, line in enumerate(found):
        # a block without an end would take the rest of the file with it
        if line == BLOCK[0] and not ours:
            ours = BLOCK[1] in found[number:]
        elif ours:
            ours = line != BLOCK[1]
        else:
            words, comment = line.partition("#")[0].split(), line.partition("#")[1:]
            if not set(words[1:]) & set(servers):
                lines.append(line)
            elif set(words[1:]) - set(servers):
                lines.append(" ".join(word for word in words if word not in servers) + "".join(("  ", *comment)).rstrip())
    block = [BLOCK[0], *(f"{address} {name}" for name, address in sorted(servers.items())), BLOCK[1]]
    return "\n".join([*block, *lines]) + "\n"


def check_servers(servers: t.Mapping[str, t.Any]) -> None:
    """ValueError for what is no name or no address."""
    for name, address in servers.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
            raise ValueError(f"hosts: {name!r} is not the name of a server")
        ipaddress.ip_address(address)


class Baseline:
    """Collects what is to be done; does it unless `dry`."""

    def __init__(self, params: dict[str, t.Any], dry: bool) -> None:
        self.params = params
        self.dry = dry
        self.actions: list[str] = []
        self.notes: list[str] = []

    def directory(self, path: str, mode: int, owner: str = "root") -> None:
        uid, gid = (pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid) if not self.dry or owner == "root" else (-1, -1)
        if os.path.isdir(path):
            found = os.stat(path)
            if (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (mode, uid, gid) or self.dry:
                return
        self.actions.append(f"directory {path}")
        if not self.dry:
            os.makedirs(path, exist_ok=True)
            os.chmod(path, mode)
            os.chown(path, uid, gid)

    def content(self, path: str, text: str) -> bool:
        try:
            with open(path, encoding="utf-8") as handle:
                if handle.read() == text:
                    return False
        except FileNotFoundError:
            pass
        self.actions.append(f"file {path}")
        if not self.dry:
            with open(path + ".new", "w", encoding="utf-8") as handle:
                handle.write(text)
            os.chmod(path + ".new", 0o644)
            os.rename(path + ".new", path)
        return True

    def user(self) -> None:
        name = self.params["user"]
        try:
            pwd.getpwnam(name)
        except KeyError:
            self.actions.append(f"user {name}")
            if not self.dry:
                argv = ["useradd", "--system", "--user-group", "--home-dir", self.params["home"], "--no-create-home", "--shell", "/bin/bash", name]
                subprocess.run(argv, check=True, capture_output=True)

    def bootstrap(self) -> None:
        if not self.params["candidates"] or all(os.path.exists(os.path.join(_fetch.TOOLS_DIR, name)) for name in ("age", "zstd")):
            return
        self.actions.append(f"tools in {_fetch.TOOLS_DIR}")
        if self.dry:
            return
        # Not into its place before the hash was right: a later run would take what lies there for good.
        stage = _fetch.TOOLS_DIR + ".stage"
        deadline = time.time() + self.params["timeout"]
        sink = [_fetch.tool("tar"), "--extract", "--gzip", "--directory", stage]

        def attempt(candidate: dict[str, t.Any], source: dict[str, t.Any]) -> None:
            shutil.rmtree(stage, ignore_errors=True)
            os.makedirs(stage, mode=0o755)
            _fetch.fetch(candidate["object"], source, "", sink, deadline)

        try:
            tried = _fetch.first_good(self.params["candidates"], attempt)
            shutil.rmtree(_fetch.TOOLS_DIR, ignore_errors=True)
            os.rename(stage, _fetch.TOOLS_DIR)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        self.notes += [f"passed over: {reason}" for reason in tried[3]]

    def all(self) -> None:
        params = self.params
        self.directory(_state.STATE_DIR, 0o755)
        self.directory(_state.path("stage"), 0o700)
        if not os.path.exists(OWNER):
            self.content(OWNER, json.dumps({"environment_id": params["environment_id"], "run_id": params["run_id"]}) + "\n")
        self.user()
        self.directory(params["home"], 0o755, params["user"])
        for path in params["directories"]:
            # one that is there may have been restored already, with a mode of its own
            if not os.path.isdir(path):
                self.directory(path, 0o755, params["user"])
        if params["sysctl"] and self.content(SYSCTL, "".join(f"{key} = {value}\n" for key, value in sorted(params["sysctl"].items()))) and not self.dry:
            done = subprocess.run(["sysctl", "--quiet", "--load", SYSCTL], capture_output=True, text=True, check=False)
            if done.returncode:
                self.notes.append(f"kernel settings that take effect at the next boot only: {'; '.join(done.stderr.strip().splitlines())}")
        if params["limits"]:
            if not self.dry:
                os.makedirs(os.path.dirname(LIMITS), exist_ok=True)
            self.content(LIMITS, "".join(f"{params['user']} - {item} {value}\n" for item, value in sorted(params["limits"].items())))
        if params["hosts"]:
            check_servers(params["hosts"])
            self.content(HOSTS, with_servers(read(HOSTS), params["hosts"]))
        self.bootstrap()


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return ""


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "environment_id": {"type": "str", "required": True},
            "run_id": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "home": {"type": "path", "required": True},
            "directories": {"type": "list", "elements": "path", "default": []},
            "sysctl": {"type": "dict", "default": {}},
            "limits": {"type": "dict", "default": {}},
            "hosts": {"type": "dict", "default": {}},
            "candidates": _fetch.CANDIDATES,
            "identity": _fetch.IDENTITY,
            "timeout": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    baseline = Baseline(module.params, module.check_mode)
    with _lease.command(module, "server_baseline"):
        try:
            baseline.all()
        except (_fetch.FetchError, OSError, ValueError, subprocess.CalledProcessError) as exc:
            module.fail_json(msg=f"The server cannot be prepared: {exc}", titan_dr={"gates": [{"name": "baseline", "verdict": "fail", "evidence": str(exc)}]})
        notes = baseline.notes + ([f"would make: {', '.join(baseline.actions)}"] if module.check_mode and baseline.actions else [])
        module.exit_json(changed=bool(baseline.actions), actions=baseline.actions, titan_dr={"notes": notes})


if __name__ == "__main__":
    main()
