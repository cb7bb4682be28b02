# SPDX-License-Identifier: GPL-3.0-or-later
"""The product: the built collection holds what it should, works where it is installed, and never runs in place of a checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
IN_THE_TARBALL = {
    "CHANGELOG.md", "FILES.json", "LICENSE", "LICENSES", "MANIFEST.json", "README.md",
    "changelogs", "docs", "meta", "playbooks", "plugins", "requirements.yml", "roles",
}  # fmt: skip
INVENTORY = "[titan_servers]\ntitan\n[titan_replacement]\nreplacement\n"


def run(arguments: list[str], cwd: Path, home: Path, collections: Path | None) -> subprocess.CompletedProcess[str]:
    """Runs a command with no configuration of the user's; `collections` is the path in which installed collections are looked up."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    env |= {"HOME": str(home), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "false", "TITAN_DR_RUN_DIR": str(home / "run")}
    if collections:
        env["ANSIBLE_COLLECTIONS_PATH"] = str(collections)
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


def ok(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the freshly built collection installed under ansible_collections/, and the tarball in dist/."""
    stage = tmp_path_factory.mktemp("staged")
    ok(subprocess.run([ROOT / "tests/stage_collection.sh", stage], capture_output=True, text=True, check=False))
    return stage


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A working directory that has nothing to do with the checkout, with an inventory."""
    (tmp_path / "hosts").write_text(INVENTORY, encoding="utf-8")
    (tmp_path / "home").mkdir()
    yield tmp_path


def test_the_tarball_holds_the_collection_and_nothing_else(staged: Path) -> None:
    (tarball,) = (staged / "dist").glob("*.tar.gz")
    secret = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}|AGE-SECRET-KEY-1[A-Z0-9]{50}")
    with tarfile.open(tarball) as archive:
        members = archive.getmembers()
        assert {member.name.split("/")[0] for member in members} - {"."} == IN_THE_TARBALL
        assert [member.name for member in members if not (member.isfile() or member.isdir())] == []
        assert [member.name for member in members if "__pycache__" in member.name or "playbooks/collections" in member.name] == []
        files = {member.name: archive.extractfile(member) for member in members if member.isfile()}
        assert [name for name, file in files.items() if file and secret.search(file.read())] == []
    assert {name for name in files if re.fullmatch(r"playbooks/\w+\.yml", name)} == {f"playbooks/{name}.yml" for name in PLAYBOOKS}


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_installed_playbook_parses_from_anywhere(staged: Path, elsewhere: Path, playbook: str) -> None:
    command = ["ansible-playbook", "-i", "hosts", "--syntax-check", f"titan.disaster_recovery.{playbook}"]
    ok(run(command, elsewhere, elsewhere / "home", staged))


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_checkout_playbook_parses_from_anywhere(elsewhere: Path, playbook: str) -> None:
    command = ["ansible-playbook", "-i", "hosts", "--syntax-check", str(ROOT / f"playbooks/{playbook}.yml")]
    ok(run(command, elsewhere, elsewhere / "home", None))


INTERPRETER = ["-e", f"ansible_python_interpreter={sys.executable}"]
PROBE_PLAYBOOK = """
- name: Which copy runs
  hosts: localhost
  gather_facts: false
  tasks:
    - name: The role
      ansible.builtin.import_role:
        name: titan.disaster_recovery.which_copy
    - name: The module
      titan.disaster_recovery.which_copy:
"""
PROBE_MODULE = """
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.titan.disaster_recovery.plugins.module_utils._which_copy import COPY
AnsibleModule({}).exit_json(msg="module of the " + COPY)
"""


def plant(collection: Path, copy: str) -> None:
    """Gives a copy of the collection a role, a module and a module util that say which copy they belong to."""
    role = collection / "roles/which_copy/tasks/main.yml"
    role.parent.mkdir(parents=True)
    role.write_text(f"- name: Say it\n  ansible.builtin.debug:\n    msg: role of the {copy}\n", encoding="utf-8")
    (collection / "plugins/modules/which_copy.py").write_text(PROBE_MODULE, encoding="utf-8")
    (collection / "plugins/module_utils/_which_copy.py").write_text(f'COPY = "{copy}"\n', encoding="utf-8")
    (collection / "playbooks/which_copy.yml").write_text(PROBE_PLAYBOOK, encoding="utf-8")


@pytest.fixture
def both(staged: Path, elsewhere: Path) -> tuple[Path, Path]:
    """A checkout, and an old release installed for the user."""
    old = elsewhere / "home/.ansible/collections"
    shutil.copytree(staged / "ansible_collections", old / "ansible_collections")
    plant(old / "ansible_collections/titan/disaster_recovery", "old release")
    checkout = elsewhere / "checkout"
    for part in ("galaxy.yml", "meta", "playbooks", "plugins", "roles"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, checkout / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            checkout.mkdir(exist_ok=True)
            shutil.copy(source, checkout / part)
    plant(checkout, "checkout")
    return checkout, old


@pytest.mark.parametrize("searched", [False, True], ids=["installed-for-the-user", "named-in-the-collections-path"])
def test_checkout_wins_over_an_installed_old_release(both: tuple[Path, Path], elsewhere: Path, searched: bool) -> None:
    checkout, old = both
    command = ["ansible-playbook", "-v", "-i", "localhost,", "-c", "local", *INTERPRETER, str(checkout / "playbooks/which_copy.yml")]
    printed = ok(run(command, elsewhere, elsewhere / "home", old if searched else None))
    assert "role of the checkout" in printed
    assert "module of the checkout" in printed
    assert "old release" not in printed


def test_the_old_release_does_run_when_it_is_called(both: tuple[Path, Path], elsewhere: Path) -> None:
    """Without this, the test above would pass even if the old release could never be found."""
    command = ["ansible-playbook", "-v", "-i", "localhost,", "-c", "local", *INTERPRETER, "titan.disaster_recovery.which_copy"]
    printed = ok(run(command, elsewhere, elsewhere / "home", None))
    assert "role of the old release" in printed
    assert "module of the old release" in printed
