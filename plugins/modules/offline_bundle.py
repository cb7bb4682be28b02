#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: offline_bundle
short_description: Install Debian packages and the PM2 tree without any package registry
version_added: "0.1.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - With O(source=bundle) the packages and the PM2 tree come out of the restore point's bundle.
  - The bundle of a server without services may hold no PM2 tree. Where O(services) says that there are some, it is refused.
  - With O(source=kept) they come out of what an earlier call left on this server, nothing is fetched, and PM2 is left alone.
  - With O(source=registry), on a healthy day, the packages are downloaded by apt into the same place and installed from there in the same way,
    so that what a backup packs later is what was installed.
  - The list of packages is closed over everything that a blank Debian with O(base_packages) does not have.
  - Services that a package would start are not started. What is installed already is left alone.
options:
  source:
    description: Where packages come from.
    type: str
    choices: [bundle, kept, registry]
    default: bundle
  packages:
    description: Packages that are needed.
    type: list
    elements: str
    required: true
  first:
    description: Those of O(packages) to be installed before the others, so that what waits for them can go on.
    type: list
    elements: str
    default: []
  base_packages:
    description: Packages that a blank server has beside the essential ones.
    type: list
    elements: str
    default: []
  pm2_prefix:
    description: Where the PM2 tree belongs.
    type: path
    required: true
  services:
    description: Whether services are on this server, so that it needs PM2.
    type: bool
    default: true
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
    details: Says what is missing. Nothing is fetched.
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Install from the bundle of the restore point
  titan.disaster_recovery.offline_bundle:
    packages: [redis-server, nodejs, age, zstd]
    first: [redis-server]
    pm2_prefix: /opt/pm2
    candidates: "{{ plan.bundle }}"
    identity: "{{ titan_age_identity }}"
    timeout: 180
"""

RETURN = r"""
installed:
  description: Packages that were installed now.
  type: list
  elements: str
  returned: success
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import contextlib
import os
import shutil
import subprocess
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _debian, _fetch, _lease, _state

BUNDLE_DIR = _state.path("bundle")
DEBS_DIR = os.path.join(BUNDLE_DIR, "debs")
REDIS_MARKER = os.path.join(BUNDLE_DIR, "redis-installed")
POLICY = "/usr/sbin/policy-rc.d"
NO_STARTS = "#!/bin/sh\n# titan.disaster_recovery installs packages\nexit 101\n"


class BundleError(Exception):
    """Packages cannot be had or installed."""


def run(argv: list[str], deadline: float) -> str:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=max(1.0, deadline - time.time()), env=env, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        tail = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise BundleError(f"{argv[0]} ended with {done.returncode}: {' | '.join(tail)}")
    return done.stdout


@contextlib.contextmanager
def no_service_starts() -> t.Iterator[None]:
    """A package must not start its service before the restored configuration is there."""
    before = POLICY + ".titan-dr"
    with contextlib.suppress(FileNotFoundError), open(POLICY, encoding="utf-8", errors="replace") as handle:
        # One of ours is left when a run was killed in here.
        if handle.read() != NO_STARTS:
            os.rename(POLICY, before)
    with open(POLICY, "w", encoding="ascii") as handle:
        handle.write(NO_STARTS)
    os.chmod(POLICY, 0o755)
    try:
        yield
    finally:
        os.unlink(POLICY)
        if os.path.exists(before):
            os.rename(before, POLICY)


def status() -> dict[str, dict[str, str]]:
    with open("/var/lib/dpkg/status", encoding="utf-8") as handle:
        return _debian.parse_stanzas(handle.read())


def download(params: dict[str, t.Any], deadline: float) -> None:
    """Let apt resolve and download against the package list of a blank server."""
    os.makedirs(os.path.join(DEBS_DIR, "partial"), exist_ok=True)
    blank = os.path.join(BUNDLE_DIR, "blank-status")
    with open(blank, "w", encoding="utf-8") as handle:
        handle.write(_debian.render(_debian.blank(status(), params["base_packages"])))
    run(["apt-get", "update", "-qq"], deadline)
    options = [f"Dir::State::status={blank}", f"Dir::Cache::archives={DEBS_DIR}", "APT::Sandbox::User=root", "APT::Install-Recommends=false"]
    argv = ["apt-get", "install", "--yes", "--quiet", "--download-only"]
    for option in options:
        argv += ["-o", option]
    run([*argv, *params["packages"]], deadline)
    os.unlink(blank)


def unpack(params: dict[str, t.Any], deadline: float) -> tuple[str, list[str]]:
    """Fetch and unpack the bundle; returns the restore point's id and what was passed over."""
    stage = BUNDLE_DIR + ".stage"

    def attempt(candidate: dict[str, t.Any], source: dict[str, t.Any]) -> None:
        shutil.rmtree(stage, ignore_errors=True)
        os.makedirs(stage, mode=0o700)
        _fetch.fetch(candidate["object"], source, params["identity"], [_fetch.tool("tar"), "--extract", "--directory", stage], deadline)
        if not os.path.isdir(os.path.join(stage, "debs")) or (params["services"] and not os.path.isdir(os.path.join(stage, "pm2"))):
            raise _fetch.FetchError("the bundle holds no debs and no pm2")

    candidate, *dummy, rejected = _fetch.first_good(params["candidates"], attempt)
    if not os.path.exists(params["pm2_prefix"]) and os.path.isdir(os.path.join(stage, "pm2")):
        os.makedirs(os.path.dirname(params["pm2_prefix"]), exist_ok=True)
        shutil.move(os.path.join(stage, "pm2"), params["pm2_prefix"])
    shutil.rmtree(BUNDLE_DIR, ignore_errors=True)
    os.rename(stage, BUNDLE_DIR)
    return candidate["id"], rejected


def install(params: dict[str, t.Any], deadline: float, timings: dict[str, float]) -> list[str]:
    """Install what is missing, those of `first` first; returns the names."""
    done = []
    debs = _debian.parse_debs(DEBS_DIR)
    for group in ("first", "packages"):
        started = time.monotonic()
        missing = _debian.missing(params[group], debs, status())
        if missing:
            with no_service_starts():
                run(["dpkg", "--install", "--force-unsafe-io", "--force-confold", *(debs[name]["Path"] for name in missing)], deadline)
        timings[f"install_{group}"] = round(time.monotonic() - started, 2)
        done += missing
        if group == "first":
            with open(REDIS_MARKER, "w", encoding="ascii"):
                pass
    return done


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["bundle", "kept", "registry"], "default": "bundle"},
            "packages": {"type": "list", "elements": "str", "required": True},
            "first": {"type": "list", "elements": "str", "default": []},
            "base_packages": {"type": "list", "elements": "str", "default": []},
            "pm2_prefix": {"type": "path", "required": True},
            "services": {"type": "bool", "default": True},
            "candidates": _fetch.CANDIDATES,
            "identity": _fetch.IDENTITY,
            "timeout": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    deadline = time.time() + params["timeout"]
    present = status()
    lacking = [name for name in params["packages"] if not _debian.is_installed(present, name)]
    pm2_lacking = params["source"] == "bundle" and params["services"] and not os.path.exists(params["pm2_prefix"])
    if not lacking and not pm2_lacking and os.path.exists(REDIS_MARKER):
        module.exit_json(changed=False, installed=[])
    if module.check_mode:
        note = f"would install {', '.join(lacking) or 'no package'}{' and PM2' if pm2_lacking else ''} from the {params['source']}"
        module.exit_json(changed=True, installed=lacking, titan_dr={"notes": [note]})
    with _lease.command(module, "offline_bundle", {"source": params["source"], "lacking": lacking}):
        timings: dict[str, float] = {}
        rejected: list[str] = []
        started = time.monotonic()
        try:
            if params["source"] == "kept":
                origin = "the bundle that this server keeps"
            elif params["source"] == "registry":
                download(params, deadline)
                origin = "the registry"
            else:
                point_id, rejected = unpack(params, deadline)
                origin = f"the bundle of restore point {point_id}"
            timings["bundle"] = round(time.monotonic() - started, 2)
            installed = install(params, deadline, timings)
        except (BundleError, _fetch.FetchError, _debian.DebianError, OSError, subprocess.TimeoutExpired) as exc:
            module.fail_json(msg=str(exc), titan_dr={"gates": [{"name": "packages", "verdict": "fail", "evidence": str(exc)}], "timings": timings})
        rows = {
            "gates": [{"name": "packages", "verdict": "pass", "evidence": f"{len(installed)} packages installed from {origin}"}],
            "notes": [f"passed over: {reason}" for reason in rejected],
            "timings": timings,
        }
        module.exit_json(changed=True, installed=installed, titan_dr=rows)


if __name__ == "__main__":
    main()
