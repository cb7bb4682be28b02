# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _rdb, _rdb_report
from ansible_collections.titan.disaster_recovery.plugins.module_utils._rdb_report import Contents, Finding, verdict


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], "pass"),
        (["expired-keys"], "pass"),
        (["checksum-disabled"], "unknown"),
        (["empty-container"], "unknown"),
        (["expired-keys", "empty-container"], "unknown"),
        (["truncated"], "fail"),
        (["checksum-disabled", "empty-container", "truncated"], "fail"),
    ],
)
def test_verdict(codes: list[str], expected: str) -> None:
    assert verdict(Finding(code, "") for code in codes) == expected


def test_every_code_has_a_severity_and_a_meaning() -> None:
    severities = {severity for severity, dummy in _rdb_report.CODES.values()}
    assert severities == {_rdb_report.FATAL, _rdb_report.UNPROVEN, _rdb_report.DATA_LOSS, _rdb_report.WARNING} == set(_rdb.SEVERITIES)
    assert all(meaning for dummy, meaning in _rdb_report.CODES.values())


def test_a_finding_says_only_what_is_known() -> None:
    assert Finding("truncated", "cut").as_dict() == {"code": "truncated", "severity": "fatal", "text": "cut"}
    assert Finding("truncated", "cut", offset=0, key="", database=0).as_dict()["offset"] == 0
    with pytest.raises(KeyError):
        Finding("no-such-code", "").as_dict()


@pytest.mark.parametrize(("text", "taken_at"), [("1800000000", 1.8e9), ("-5", None), ("soon", None), ("\u00b2", None), ("9" * 400, None), ("", None)])
def test_taken_at(text: str, taken_at: float | None) -> None:
    assert Contents(aux={"ctime": text}).taken_at == taken_at
    assert Contents().taken_at is None
