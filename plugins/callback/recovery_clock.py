# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: recovery_clock
type: aggregate
short_description: Measures a recovery against its objectives and writes the ledger and the report
version_added: "0.1.0"
author:
  - Titan DR maintainers (@titan-dr)
description:
  - Measures every play that carries the play variable C(titan_dr_scenario), against the objectives and phase budgets of C(playbooks/vars/scenarios.yml).
  - Writes C(ledger.jsonl) while the run goes on, and C(report.json), into the run directory.
    The report on disk is complete at any moment, and says C(cancelled) until the run reaches its end.
  - It only measures. It never changes the outcome of a run, and an error in it is a warning.
  - The run directory is the environment variable E(TITAN_DR_RUN_DIR), or C(~/.local/state/titan-dr/runs/<run id>).
  - The run id is the environment variable E(TITAN_DR_RUN_ID), or it is made from the time and the scenario.
  - The clock starts at the extra variable C(titan_dr_incident_started_at) or the environment variable E(TITAN_DR_INCIDENT_STARTED_AT),
    in epoch seconds or ISO 8601, else at the start of the playbook.
  - The environment variable E(TITAN_DR_KIND) says whether this is V(real) or V(drill).
  - Exports E(TITAN_DR_RUN_ID), E(TITAN_DR_RUN_DIR), E(TITAN_DR_INCIDENT_STARTED_AT) and E(TITAN_DR_CLOCK_ARMED) to the tasks,
    so that a playbook can refuse to run unmeasured.
    When the run directory cannot be written, E(TITAN_DR_CLOCK_ARMED) is not exported.
"""

import atexit
import functools
import json
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from ansible import context
from ansible.module_utils.ansible_release import __version__ as core_version
from ansible.plugins.callback import CallbackBase

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _ledger, _report, _run_files

_INCLUDES = ("include_tasks", "include_role", "import_role", "import_tasks")
# Text that our own content wrote for the operator; the message of any other module stays out of the ledger.
_OWN_MESSAGES = ("assert", "fail")
_OWN_MODULES = "titan.disaster_recovery."


def _collection(root: Path) -> dict[str, str]:
    """Which copy of the collection runs: an installed one has a manifest, a checkout its galaxy.yml."""
    try:
        if (root / "MANIFEST.json").is_file():
            version = json.loads((root / "MANIFEST.json").read_text(encoding="utf-8"))["collection_info"]["version"]
        else:
            version = yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        version = "unknown"
    return {"version": str(version), "path": str(root)}


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _quiet(method: Callable[..., None]) -> Callable[..., None]:
    """A clock that breaks must not break a recovery."""

    @functools.wraps(method)
    def guarded(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        if self.ledger is None and method.__name__ != "v2_playbook_on_start":
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._display.warning(f"recovery_clock: {method.__name__}: {type(error).__name__}: {error}")

    return guarded


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "titan.disaster_recovery.recovery_clock"
    CALLBACK_NEEDS_ENABLED = False

    _owner: CallbackModule | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = _ledger.Clock()
        self.ledger: _ledger.Ledger | None = None
        self.files: _run_files.RunFiles | None = None
        self.objectives: dict[str, Any] = {}
        self.play_phase: str | None = None
        self.busy: dict[str, tuple[str | None, str, float]] = {}  # host -> phase, task id, since
        self.open: dict[str, float] = {}  # open phase -> its last activity
        self.seen: set[str] = set()
        self.ended = False
        if CallbackModule._owner is None:
            # a flag inherited from the caller's environment would say that nobody measures is somebody
            os.environ.pop(_ledger.ENV_ARMED, None)

    # --- start and end -----------------------------------------------------------------------------------------------

    @_quiet
    def v2_playbook_on_start(self, playbook: Any) -> None:
        # loaded twice (beside the playbook, and enabled in a configuration): the first one measures
        if CallbackModule._owner is not None:
            return
        plays = [play for play in playbook.get_plays() if isinstance(play.vars, dict) and play.vars.get("titan_dr_scenario")]
        if not plays:
            return
        try:
            self._arm(playbook, plays[0])
        except OSError as error:
            os.environ.pop(_ledger.ENV_ARMED, None)
            self.ledger = None
            self._display.warning(f"recovery_clock: THIS RUN IS NOT MEASURED, its run directory cannot be written: {error}")

    def _arm(self, playbook: Any, play: Any) -> None:
        scenario = str(play.vars["titan_dr_scenario"])
        now = self.clock.wall()
        run_id = os.environ.get(_ledger.ENV_RUN_ID, "")
        if not _ledger.is_run_id(run_id):
            if run_id:
                self._display.warning(f"recovery_clock: {_ledger.ENV_RUN_ID} {run_id!r} cannot be a run id, another one is made")
            run_id = _ledger.new_run_id(scenario, now, secrets.token_hex(2))
        notes = []
        incident_at = now
        extra_vars = play.get_variable_manager().extra_vars
        given = extra_vars.get("titan_dr_incident_started_at") or os.environ.get(_ledger.ENV_INCIDENT)
        if given:
            try:
                incident_at = _ledger.parse_instant(given)
            except ValueError as error:
                notes.append(f"The incident start cannot be read, the clock starts with the playbook: {error}")
            if incident_at > now + 1:
                notes.append("The incident start lies in the future, the clock starts with the playbook.")
        check = bool(context.CLIARGS.get("check"))
        kind = os.environ.get(_ledger.ENV_KIND, "real")
        self.objectives = self._objectives(scenario, str(getattr(playbook, "_basedir", "") or ""))
        if not self.objectives:
            notes.append(f"No objectives are known for scenario {scenario}.")

        files = _run_files.RunFiles(_ledger.run_directory(os.environ, run_id))
        files.prepare()
        self.files = files
        self.ledger = _ledger.Ledger(min(incident_at, now), self.clock, files.append)
        self.ledger.add(
            "run_start",
            run_id=run_id,
            kind="check" if check else kind if kind in ("real", "drill") else "real",
            scenario=scenario,
            incident_at=round(self.ledger.incident_at, 3),
            versions={"ansible_core": core_version},
            collection=_collection(Path(__file__).resolve().parents[2]),
            **{key: self.objectives.get(key) for key in ("severity", "rto_target_s", "rto_s", "rpo_s", "phases")},
        )
        for note in notes:
            self._note(note)
            self._display.warning(f"recovery_clock: {note}")
        files.save(_report.build(self.ledger.rows))

        os.environ[_ledger.ENV_RUN_ID] = run_id
        os.environ[_ledger.ENV_RUN_DIR] = str(files.directory)
        os.environ[_ledger.ENV_INCIDENT] = f"{self.ledger.incident_at:.3f}"
        os.environ[_ledger.ENV_ARMED] = "1"
        CallbackModule._owner = self
        self._watch_the_end()
        self._display.display(f"[titan-dr] run {run_id}, {_report.span(self.ledger.elapsed())} after the incident, into {files.directory}")

    def _objectives(self, scenario: str, basedir: str) -> dict[str, Any]:
        """Beside the playbook (as in a checkout, or installed), else those of this collection."""
        for folder in (Path(basedir), Path(__file__).resolve().parents[2] / "playbooks"):
            try:
                known = yaml.safe_load((folder / "vars" / "scenarios.yml").read_text(encoding="utf-8"))["titan_dr_scenarios"]
                if scenario in known:
                    return dict(known[scenario])
            except (OSError, yaml.YAMLError, KeyError, TypeError):
                continue
        return {}

    def _watch_the_end(self) -> None:
        """SIGTERM and Ctrl-C end the controller without a word to its callbacks, and so does an error in a playbook."""
        owner_pid = os.getpid()

        def watched(previous: Any) -> Callable[[int, FrameType | None], None]:
            def handler(signum: int, frame: FrameType | None) -> None:
                if os.getpid() == owner_pid:
                    self._end(cancelled=f"Cancelled by {signal.Signals(signum).name}.")
                if callable(previous):
                    previous(signum, frame)

            return handler

        for signum in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(signum)
            if callable(previous):
                signal.signal(signum, watched(previous))
        atexit.register(lambda: self._end(aborted="The controller stopped before the end of the playbook.") if os.getpid() == owner_pid else None)

    def _end(self, **how: Any) -> None:
        if self.ended or self.ledger is None or self.files is None:
            return
        self.ended = True
        self._close_phases(keep=None)
        self.ledger.add("run_end", **how)
        self.files.save(_report.build(self.ledger.rows))

    @_quiet
    def v2_playbook_on_stats(self, stats: Any) -> None:
        if self.ledger is None or self.files is None:
            return
        self.ended = False  # a command with two playbooks ends twice
        self._end(stats={host: stats.summarize(host) for host in stats.processed})
        for line in _report.closing_lines(_report.build(self.ledger.rows), str(self.files.report)):
            self._display.display(line)
        if self.files.lost:
            self._display.warning(f"recovery_clock: THE LEDGER AND REPORT ON DISK ARE INCOMPLETE: {self.files.lost}")

    # --- plays, phases, tasks ----------------------------------------------------------------------------------------

    @_quiet
    def v2_playbook_on_play_start(self, play: Any) -> None:
        phase = play.vars.get("titan_dr_phase") if isinstance(play.vars, dict) else None
        self.play_phase = str(phase) if phase else None

    def _phase_of(self, task: Any) -> str | None:
        """The role the task belongs to; a role without a budget counts for the role that called it, or for the play, or not at all."""
        roles = []
        node = task
        while node is not None:
            role = getattr(node, "_role", None)
            if role is not None:
                roles.append(_short(role.get_name()))
            node = getattr(node, "_parent", None)
        budgets = self.objectives.get("phases") or {}
        known = next((role for role in roles if role in budgets), None)
        return known or self.play_phase or (roles[0] if roles and not budgets else None)

    @_quiet
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if self.ledger is None or _short(str(task.action)) in _INCLUDES:
            return
        phase = self._phase_of(task)
        now = self.ledger.elapsed()
        self.busy[host.get_name()] = (phase, task._uuid, now)
        if phase is None:
            return
        if phase not in self.open:
            self._close_phases(keep=phase)
            self.ledger.add("phase_start", t=now, phase=phase, budget_s=(self.objectives.get("phases") or {}).get(phase))
            if phase not in self.seen:
                self._display.display(_report.phase_line(phase, now, (self.objectives.get("phases") or {}).get(phase), self.objectives.get("rto_s")))
            self.seen.add(phase)
            self._save()
        self.open[phase] = now

    def _close_phases(self, keep: str | None) -> None:
        """Branches of a recovery overlap: a phase is over when another one starts and none of its tasks runs."""
        if self.ledger is None:
            return
        running = {phase for phase, _task, _since in self.busy.values()}
        for phase in [name for name in self.open if name != keep and (self.ended or name not in running)]:
            last = self.ledger.elapsed() if phase in running else self.open[phase]
            self.ledger.add("phase_end", t=last, phase=phase)
            del self.open[phase]

    def _save(self) -> None:
        if self.files is not None and self.ledger is not None:
            self.files.save(_report.build(self.ledger.rows))

    def _note(self, text: str, **fields: Any) -> None:
        if self.ledger is not None:
            self.ledger.add("note", text=text, **fields)

    @_quiet
    def v2_runner_on_ok(self, result: Any) -> None:
        self._record(result, "changed" if result.is_changed() else "ok")

    @_quiet
    def v2_runner_on_skipped(self, result: Any) -> None:
        self._record(result, "skipped")

    @_quiet
    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._record(result, "ignored" if ignore_errors else "failed")

    @_quiet
    def v2_runner_on_unreachable(self, result: Any) -> None:
        expected = result.task.ignore_unreachable is True
        self._record(result, "ignored" if expected else "unreachable")
        if expected:
            self._note(f"{result.host.get_name()} is unreachable: {result.task.get_name(include_role_fqcn=False)} was not done there.")

    def _record(self, result: Any, status: str) -> None:
        if self.ledger is None:
            return
        task, host = result.task, result.host.get_name()
        if _short(str(task.action)) in _INCLUDES:
            return
        now = self.ledger.elapsed()
        phase, _task, since = self.busy.pop(host, (self._phase_of(task), task._uuid, now))
        if phase in self.open:
            self.open[phase] = now
        name = task.get_name(include_role_fqcn=False)
        role = _short(task._role.get_name()) if getattr(task, "_role", None) is not None else None
        said = _ledger.reported(result.result, name) if task.no_log is not True else {}
        self.ledger.add(
            "task",
            t=now,
            name=name,
            role=role,
            phase=phase,
            host=host,
            status=status,
            duration_s=round(now - since, 3),
            task_id=task._uuid,
            titan_dr=said or None,
        )
        for gate in said.get("gates", []):
            self.ledger.add("gate", t=now, host=host, phase=phase, task_id=task._uuid, **gate)
        for note in said.get("notes", []):
            self._note(note)
        if status in _report.FAILED:
            self._record_reason(result, name, host)
        if said or status in _report.FAILED:
            self._save()

    def _record_reason(self, result: Any, name: str, host: str) -> None:
        task = result.task
        own = _short(str(task.action)) in _OWN_MESSAGES or str(task.action).startswith(_OWN_MODULES)
        message = result.result.get("msg") if own and task.no_log is not True and "censored" not in result.result else None
        reason = f": {str(message)[:500]}" if message else ""
        self._note(f"{name} on {host}{reason}", task_id=task._uuid, failure=True)
