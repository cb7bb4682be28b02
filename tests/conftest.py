# SPDX-License-Identifier: GPL-3.0-or-later
"""Where CI runs, everything a test needs has been installed: a skipped test there is a failed set-up, not a pass."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Processes that test side by side raise labs of their own.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["TITAN_DR_LAB_DIR"] = str(Path(os.environ.get("TITAN_DR_LAB_DIR") or Path(__file__).parents[1] / ".lab") / worker)

# Started in the background or with nohup, a shell leaves these ignored, and every process that a test starts would inherit that.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    outcome = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be missing: {report.longrepr}"
