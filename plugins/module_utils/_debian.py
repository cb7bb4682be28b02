# Copyright (c) 2026, Titan DR maintainers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Debian package lists: what a blank server has, what a set of packages needs beyond that. Format: deb-control(5), dpkg's status file."""

from __future__ import annotations

import os
import re
import subprocess

Stanzas = dict[str, dict[str, str]]
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class DebianError(Exception):
    """A package that is needed is neither installed nor in the bundle."""


def system() -> dict[str, str]:
    """What packages depend on: distribution, release and architecture of this machine (os-release(5))."""
    with open("/etc/os-release", encoding="utf-8") as handle:
        fields = dict(line.rstrip().split("=", 1) for line in handle if "=" in line)
    return {"os": fields.get("ID", "").strip('"'), "release": fields.get("VERSION_ID", "").strip('"'), "architecture": os.uname().machine}


def parse_stanzas(text: str) -> Stanzas:
    """Stanzas by package name; continuation lines are kept with their field."""
    found = {}
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] += "\n" + line
            elif ":" in line:
                name, value = line.split(":", 1)
                fields[name] = value.strip()
        if "Package" in fields:
            found[fields["Package"]] = fields
    return found


def render(stanzas: Stanzas) -> str:
    """The inverse of parse_stanzas."""
    return "".join("".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n" for fields in stanzas.values())


def is_installed(stanzas: Stanzas, name: str) -> bool:
    """Installed and configured, on hold or not."""
    return stanzas.get(name, {}).get("Status", "") in ("install ok installed", "hold ok installed")


def depends(fields: dict[str, str]) -> list[list[str]]:
    """Alternatives of each dependency, without versions and architectures."""
    clauses = ",".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
    return [[match.group() for part in clause.split("|") if (match := _NAME.match(part.strip()))] for clause in clauses.split(",") if clause.strip()]


def _providers(stanzas: Stanzas) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, fields in stanzas.items():
        for provided in [name, *(match.group() for part in fields.get("Provides", "").split(",") if (match := _NAME.match(part.strip())))]:
            found.setdefault(provided, []).append(name)
    return found


def closure(stanzas: Stanzas, names: list[str]) -> list[str]:
    """The packages and everything they need, as far as `stanzas` has it, in order of discovery."""
    providers = _providers(stanzas)
    seen: dict[str, None] = {}
    queue = list(names)
    while queue:
        for name in providers.get(queue.pop(0), []):
            if name not in seen:
                seen[name] = None
                queue += [alternative for clause in depends(stanzas[name]) for alternative in clause if alternative in providers]
    return list(seen)


def blank(installed: Stanzas, base: list[str]) -> Stanzas:
    """The part of a status file that a blank server has: essential packages, `base`, and all these need."""
    roots = [name for name, fields in installed.items() if fields.get("Essential") == "yes" or name == "apt"]
    return {name: installed[name] for name in closure(installed, roots + base)}


def missing(wanted: list[str], debs: Stanzas, installed: Stanzas) -> list[str]:
    """Those of `wanted` and of what they need that are not installed; a name that is in neither list is an error."""
    absent = [name for name in dict.fromkeys([*wanted, *closure(debs, wanted)]) if not is_installed(installed, name)]
    lost = [name for name in absent if name not in debs]
    if lost:
        raise DebianError(f"not in the bundle: {', '.join(lost)}")
    return absent


def parse_debs(directory: str) -> Stanzas:
    """Control fields of every .deb in a directory, with its path as `Path`."""
    found = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".deb"):
            path = os.path.join(directory, name)
            done = subprocess.run(["dpkg-deb", "--field", path], capture_output=True, text=True, check=False)
            if done.returncode:
                raise DebianError(f"{path} is not a package: {done.stderr.strip()}")
            found.update({package: {**fields, "Path": path} for package, fields in parse_stanzas(done.stdout).items()})
    return found
