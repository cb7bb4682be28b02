# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For tests only: tells the task events of a run, and at one of them lets the controller die as a machine dies that loses its power.

TITAN_DR_TEST_EVENTS  file, one JSON object a line: n (from 1), kind (start or end), task, role, host, action, status, at
TITAN_DR_TEST_CRASH   "N:SECONDS": die so many seconds after event N; what runs on the servers is not touched
TITAN_DR_TEST_MARK    everything on this machine that carries it dies: workers have sessions of their own, ssh's masters other parents
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

from titan_dr import processes

_INCLUDES = ("include_tasks", "include_role", "import_role", "import_tasks")


def die(mark: str) -> None:
    """Freeze first, for one that forks while it is looked for would leave a child. Then kill in one go, ourselves last: nobody shall have the time to
    notice that the others are gone."""
    doomed: set[int] = set()
    while found := processes.marked(mark, processes.table()) - doomed:
        send(found, signal.SIGSTOP)
        doomed |= found
    send(doomed, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def send(pids: set[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "crash_point"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events = open(os.environ["TITAN_DR_TEST_EVENTS"], "a", encoding="utf-8")  # noqa: SIM115 (until the controller ends)
        number, dummy, delay = os.environ.get("TITAN_DR_TEST_CRASH", "0:0").partition(":")
        self.crash_at, self.delay = int(number), float(delay)
        self.count = 0

    def _event(self, kind: str, host: Any, task: Any, status: str = "") -> None:
        if str(task.action).rsplit(".", 1)[-1] in _INCLUDES:
            return
        self.count += 1
        role = task._role.get_name().rsplit(".", 1)[-1] if getattr(task, "_role", None) is not None else ""
        row = {"n": self.count, "kind": kind, "task": task.get_name(include_role_fqcn=False), "role": role, "host": host.get_name()}
        self._say({**row, "action": str(task.action).rsplit(".", 1)[-1], "status": status, "at": time.time()})
        if self.count != self.crash_at:
            return
        if self.delay:
            timer = threading.Timer(self.delay, self._die)
            timer.daemon = True
            timer.start()
        else:
            self._die()

    def _die(self) -> None:
        self._say({"kind": "crash", "at": time.time()})
        die(os.environ["TITAN_DR_TEST_MARK"])

    def _say(self, row: dict[str, Any]) -> None:
        self.events.write(json.dumps(row) + "\n")
        self.events.flush()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._event("start", host, task)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._event("end", result.host, result.task, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._event("end", result.host, result.task, "failed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._event("end", result.host, result.task, "skipped")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._event("end", result.host, result.task, "unreachable")
