# SPDX-License-Identifier: GPL-3.0-or-later
"""A Titan of another shape recovers by its inventory alone: other names, user, paths, ports and bodies, and a halt that every restart forgets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("titan-dr"))

pytestmark = pytest.mark.lab


def test_another_titan_recovers_and_places_no_order_before_its_resume(tmp_path: Path) -> None:
    environment = {**os.environ, "TITAN_DR_LAB_DIR": str(tmp_path / "lab")}
    argv = [COMMAND, "drill", "complete_system_failure", "--profile", "variant", "--json", "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True, timeout=900, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["result"], report["trading"]) == (0, "recovered", "resumed"), report
    verdicts = {gate["name"]: gate["verdict"] for gate in report["gates"]}
    assert {f"start:{name}" for name in ("titan-core", "titan-risk", "titan-scavenger", "titan-ai-quant")} <= set(verdicts)
    assert set(verdicts.values()) == {"pass"}
    # its services trade at every start until they are told not to: the fence kept them from the exchanges
    assert report["orders_while_halted"] == 0
