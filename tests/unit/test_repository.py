# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "ansible_collections.titan.disaster_recovery."
LINK = ROOT / "playbooks/collections/ansible_collections/titan/disaster_recovery"


def tracked() -> list[Path]:
    """What is, or is about to be, in git."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for name in listed.split("\0") if name and (path := ROOT / name).is_file() and not path.is_symlink())


FILES = tracked()
SCRIPTS = [path for path in FILES if path.suffix in {".py", ".sh", ".js", ".mjs"} or path.read_bytes().startswith(b"#!")]
SCRIPTS = [path for path in SCRIPTS if path.stat().st_size]
MODULES = sorted(path for path in (ROOT / "plugins/modules").glob("*.py") if path.name != "__init__.py")
SERVER_SIDE = MODULES + sorted((ROOT / "plugins/module_utils").glob("_*.py"))
UTILS = sorted(path for kind in ("module_utils", "plugin_utils") for path in (ROOT / "plugins" / kind).glob("_*.py") if path.stem != "__init__")
YAML = [path for path in FILES if path.suffix in {".yml", ".yaml"}]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def load(path: str) -> Any:
    return yaml.safe_load(text(ROOT / path))


def test_there_is_something_to_check() -> None:
    assert SCRIPTS
    assert MODULES
    assert YAML


# Licences


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_every_program_says_its_licence(path: Path) -> None:
    licence = "BSD-2-Clause" if path.parent == ROOT / "plugins/module_utils" else "GPL-3.0-or-later"
    head = "\n".join(text(path).splitlines()[:8])
    assert f"SPDX-License-Identifier: {licence}" in head


# One collection, one version, no other collection


def test_the_adjacent_link_leads_back_to_this_checkout() -> None:
    assert LINK.is_symlink()
    assert LINK.readlink() == Path("../../../..")
    assert LINK.resolve() == ROOT


def test_galaxy_and_python_package_have_one_version() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    assert load("galaxy.yml")["version"] == project["version"]


def test_no_other_collection_is_needed_and_our_own_is_never_installed() -> None:
    assert load("galaxy.yml")["dependencies"] == {}
    assert load("requirements.yml")["collections"] == []


def test_the_link_is_not_built_into_the_collection() -> None:
    assert "playbooks/collections" in load("galaxy.yml")["build_ignore"]


def test_action_group_lists_every_module() -> None:
    assert load("meta/runtime.yml")["action_groups"]["all"] == [path.stem for path in MODULES]


def test_python_requirements_are_pinned_and_complete() -> None:
    lines = [line for part in ("run", "dev", "servers", "constraints") for line in text(ROOT / f"requirements/{part}.txt").splitlines()]
    packages = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert [line for line in packages if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    pinned = {re.split("==", line)[0].lower() for line in text(ROOT / "requirements/run.txt").splitlines() if "==" in line}
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    declared = {re.split("[<>=]", item)[0].lower() for item in project["dependencies"] + project["optional-dependencies"]["fast"]}
    assert declared == pinned


# Playbooks


def test_playbooks_are_flat_and_importable() -> None:
    playbooks = sorted((ROOT / "playbooks").glob("*.yml"))
    assert playbooks
    assert [name(path) for path in playbooks if not path.stem.isidentifier()] == []
    allowed = {"vars", "tasks", "templates", "files", "callback_plugins"}
    deep = [path for path in FILES if path.is_relative_to(ROOT / "playbooks") and path.parent != ROOT / "playbooks"]
    assert [name(path) for path in deep if path.relative_to(ROOT / "playbooks").parts[0] not in allowed] == []


def test_objectives_have_one_place() -> None:
    key = re.compile(r"^\s*[\"']?(rto_s|rpo_s|rto_target_s)[\"']?\s*:", re.MULTILINE)
    home = ROOT / "playbooks/vars/scenarios.yml"
    assert key.search(text(home))
    assert [name(path) for path in YAML if path != home and key.search(text(path))] == []


FORBIDDEN = {
    "ignore_errors": r"^\s*-?\s*ignore_errors\s*:",
    "failed_when: false": r"^\s*-?\s*failed_when\s*:\s*(false|no)\b",
    "pause": r"^\s*-?\s*(ansible\.builtin\.)?pause\s*:",
    "a failure thrown away": r"\|\|\s*(true|:)(\s|$)",
    "a git call at run time": r"^\s*-?\s*ansible\.builtin\.git\s*:",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_roles_and_playbooks_hide_no_failure(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{name(path)}:{number}"
        for path in YAML
        if path.is_relative_to(ROOT / "roles") or path.is_relative_to(ROOT / "playbooks")
        for number, line in enumerate(text(path).splitlines(), 1)
        if not line.lstrip().startswith("#") and pattern.search(line)
    ]
    assert found == []


# What runs on a server in ruins


def imports(path: Path) -> set[str]:
    """What the file cannot do without: imports, except those of which it survives the lack (try ... except ImportError)."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(text(path))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "module_utils are imported by their full name"
            found.add(node.module or "")
        if isinstance(node, ast.Try) and any("ImportError" in ast.dump(handler.type) for handler in node.handlers if handler.type):
            waiting += [*node.handlers, *node.orelse, *node.finalbody]
        else:
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", SERVER_SIDE, ids=name)
def test_servers_need_nothing_but_the_standard_library(path: Path) -> None:
    ours = ("ansible.module_utils.", COLLECTION + "plugins.module_utils.")
    strangers = {module for module in imports(path) if module.split(".")[0] not in sys.stdlib_module_names and not module.startswith(ours)}
    assert strangers - {COLLECTION + "plugins.module_utils"} == set()


@pytest.mark.parametrize("path", UTILS, ids=name)
def test_every_pure_layer_has_unit_tests(path: Path) -> None:
    folder = ROOT / "tests/unit" / path.parent.relative_to(ROOT)
    wanted = "test_" + path.stem.lstrip("_")
    assert [found for found in folder.glob("test_*.py") if found.stem == wanted or found.stem.startswith(wanted + "_")], f"no {name(folder)}/{wanted}.py"


# Mirrors and hosts are the machine's choice, never the project's


def test_no_package_registry_is_named() -> None:
    host = re.compile(r"\b(?:(?:deb|ftp|http|security|snapshot)\.debian|pypi|(?:files\.)?pythonhosted|(?:registry\.)?npmjs|galaxy\.ansible)\.(?:org|com)\b")
    texts = [path for path in FILES if b"\0" not in path.read_bytes()[:8192]]
    assert [name(path) for path in texts if host.search(path.read_text(encoding="utf-8", errors="replace"))] == []


def test_no_secret_is_in_the_tree() -> None:
    secret = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}|AGE-SECRET-KEY-1[A-Z0-9]{50}")
    assert [name(path) for path in FILES if secret.search(path.read_bytes())] == []


# Inventories say only what some role listens to


def test_inventories_set_no_unknown_variable() -> None:
    known: set[str] = set()
    for specs in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(text(specs))["argument_specs"].values():
            known |= set(spec.get("options") or {})
    roles = tuple(f"{path.name}_" for path in (ROOT / "roles").iterdir())
    assert known
    unknown = [
        f"{name(path)}: {variable}"
        for path in YAML
        if path.is_relative_to(ROOT / "inventories") and {"group_vars", "host_vars"} & set(path.parts)
        for variable in (yaml.safe_load(text(path)) or {})
        if variable.startswith(roles) and variable not in known and not variable.startswith(("titan_lab_", "titan_dr_"))
    ]
    assert unknown == []
