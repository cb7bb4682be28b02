# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils._run_files import EARLIER, RunFiles, earlier_reports


def test_lines_are_appended_and_nobody_else_reads_them(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "runs" / "r1")
    files.prepare()
    for line in ("one\n", "two\n"):
        files.append(line)
    files.save({"result": "cancelled"})
    files.save({"result": "recovered"})
    assert files.ledger.read_text() == "one\ntwo\n"
    assert json.loads(files.report.read_text()) == {"result": "recovered"}
    assert sorted(path.name for path in files.directory.iterdir()) == ["ledger.jsonl", "report.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (files.ledger, files.report)} == {0o600}
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert files.lost is None


def test_an_earlier_run_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        files = RunFiles(tmp_path)
        files.prepare()
        files.append(f"{number}\n")
    assert [(tmp_path / name).read_text() for name in ("ledger.jsonl", "ledger.jsonl.1", "ledger.jsonl.2")] == ["2\n", "0\n", "1\n"]


def test_a_place_that_cannot_be_written_is_refused_at_the_start_and_told_later(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        RunFiles(Path("/proc/titan-dr")).prepare()
    files = RunFiles(tmp_path / "run")
    files.prepare()
    files.ledger.unlink()
    files.directory.rmdir()
    files.append("lost\n")
    first = files.lost
    assert first is not None and "ledger.jsonl" in first
    files.save({})
    # the first reason stays
    assert files.lost == first


def test_a_second_attempt_has_not_said_anything_yet(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.prepare()
    files.save_budget({"learnt": {}})
    assert json.loads((tmp_path / "budget.json").read_text()) == {"learnt": {}}
    assert stat.S_IMODE((tmp_path / "budget.json").stat().st_mode) == 0o600
    for name in ("breach.said", "late.said", "notify.jsonl"):
        (tmp_path / name).touch()
    RunFiles(tmp_path).prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["budget.json", "ledger.jsonl", "ledger.jsonl.1"]


def test_reports_of_earlier_runs_the_newest_first(tmp_path: Path) -> None:
    for number in range(EARLIER + 3):
        (tmp_path / f"{number:03}").mkdir()
        (tmp_path / f"{number:03}" / "report.json").write_text(json.dumps({"number": number}))
    (tmp_path / "062" / "report.json").write_text("{torn")
    (tmp_path / "061" / "report.json").unlink()
    (tmp_path / "060" / "report.json").write_text("[]")
    own = tmp_path / "059"
    found = [report["number"] for report in earlier_reports(tmp_path, own)]
    assert found == list(range(58, 58 - EARLIER + 3, -1))
    assert earlier_reports(tmp_path / "none", own) == []
