# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole drill with the collection as users get it: built, installed into an empty place, started from a folder that has nothing to do with either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMAND = str(Path(sys.executable).with_name("titan-dr"))

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_a_drill_with_the_installed_collection(tmp_path: Path) -> None:
    installed = tmp_path / "collections"
    subprocess.run([ROOT / "tests/stage_collection.sh", installed], check=True, timeout=120)
    away = tmp_path / "away"
    away.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment |= {"ANSIBLE_COLLECTIONS_PATH": str(installed), "TITAN_DR_LAB_DIR": str(tmp_path / "lab")}
    argv = [COMMAND, "drill", "complete_system_failure", "--installed", "--json"]
    done = subprocess.run(argv, cwd=away, env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["result"]) == (0, "recovered"), report
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    copy = installed / "ansible_collections/titan/disaster_recovery"
    assert report["collection"] == {"version": version, "path": str(copy)}
    # what Ansible itself says of the files it included
    (run_dir,) = (away / "runs").iterdir()
    log = (run_dir / "ansible.log").read_text()
    assert f"{copy}/roles/" in log
    assert f"{ROOT}/" not in log
