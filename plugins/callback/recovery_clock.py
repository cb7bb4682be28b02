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
  - Writes C(budget.json) at the start, which is what earlier runs beside this one took; the action plugin C(recovery_step) decides with it.
  - Tells the webhooks of C(titan_dr_notify) when a run starts on its servers and how it ended, with the address of a webhook in no file and no message.
  - Says how much time is left at the target and at 50, 80 and 100 % of the RTO, also while a long task runs.
  - It only measures. It never changes the outcome of a run, and an error in it is a warning. Only the exit code of C(ansible-playbook) says more in the end,
    4 after a recovery that missed an objective or could not prove it, and 3 when the run was refused.
  - The run directory is the environment variable E(TITAN_DR_RUN_DIR), or C(~/.local/state/titan-dr/runs/<run id>).
  - The run id is the environment variable E(TITAN_DR_RUN_ID), or it is made from the time and the scenario.
  - The clock starts at the extra variable C(titan_dr_incident_started_at) or the environment variable E(TITAN_DR_INCIDENT_STARTED_AT),
    in epoch seconds or ISO 8601, else at the start of the playbook.
  - The environment variable E(TITAN_DR_KIND) says whether this is V(real) or V(drill).
  - Exports E(TITAN_DR_RUN_ID), E(TITAN_DR_RUN_DIR), E(TITAN_DR_INCIDENT_STARTED_AT), E(TITAN_DR_STARTED_AT), E(TITAN_DR_ATTEMPT)
    (another one for each process) and E(TITAN_DR_CLOCK_ARMED) to the tasks, so that a playbook can refuse to run unmeasured.
    When the run directory cannot be written, E(TITAN_DR_CLOCK_ARMED) is not exported.
"""

import atexit
import functools
import json
import os
import secrets
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from ansible import context
from ansible.module_utils.ansible_release import __version__ as core_version
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar

from ansible_collections.titan.disaster_recovery.plugins.plugin_utils import _budget, _ledger, _notify, _report, _run_files

_INCLUDES = ("include_tasks", "include_role", "import_role", "import_tasks")
# Text that our own content wrote for the operator; the message of any other module stays out of the ledger.
_OWN_MESSAGES = ("assert", "fail")
_OWN_MODULES = "titan.disaster_recovery."
SAFE_STATE_FILE = "safe_state.yml"
# Any notification has its answer by then, or gets none.
LAST_WORDS_S = 2.5


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
        self.endings = 0
        self.safe_state = False
        self.told: list[str] = []
        self.hooks: list[dict[str, Any]] | None = None  # who is told, once the servers are known
        self.over = threading.Event()
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
        try:
            reports = _run_files.earlier_reports(files.directory.parent, files.directory)
            budget = _budget.make(self.objectives, reports, scenario, self._hosts(playbook))
        except Exception as error:
            notes.append(f"Nothing could be learnt from earlier runs: {type(error).__name__}: {error}")
            budget = _budget.make(self.objectives, [], scenario, [])
        files.save_budget(budget)
        self.ledger.add(
            "run_start",
            run_id=run_id,
            kind="check" if check else kind if kind in ("real", "drill") else "real",
            scenario=scenario,
            incident_at=round(self.ledger.incident_at, 3),
            versions={"ansible_core": core_version},
            collection=_collection(Path(__file__).resolve().parents[2]),
            # an inventory may say otherwise: then the lease's row knows
            deadline_at=self._deadline(now, str(extra_vars.get("titan_dr_on_breach", "continue"))),
            **{key: self.objectives.get(key) for key in ("severity", "rto_target_s", "rto_s", "rpo_s", "phases")},
        )
        for note in notes:
            self._note(note)
            self._display.warning(f"recovery_clock: {note}")
        files.save(_report.build(self.ledger.rows))

        os.environ[_ledger.ENV_RUN_ID] = run_id
        os.environ[_ledger.ENV_RUN_DIR] = str(files.directory)
        os.environ[_ledger.ENV_INCIDENT] = f"{self.ledger.incident_at:.3f}"
        os.environ[_ledger.ENV_STARTED] = f"{now:.3f}"
        os.environ[_ledger.ENV_ATTEMPT] = secrets.token_hex(4)
        os.environ[_ledger.ENV_ARMED] = "1"
        CallbackModule._owner = self
        self._watch_the_end()
        if not check:
            threading.Thread(target=self._count_down, name="recovery_clock", daemon=True).start()
        self._display.display(f"[titan-dr] run {run_id}, {_report.span(self.ledger.elapsed())} after the incident, into {files.directory}")

    def _deadline(self, started_at: float, policy: str) -> float | None:
        """As in playbooks/vars/run.yml."""
        incident_at = self.ledger.incident_at if self.ledger is not None else started_at
        since, seconds = (incident_at, self.objectives.get("rto_s")) if policy == "abort" else (started_at, self.objectives.get("limit_s"))
        return round(since + seconds, 3) if isinstance(seconds, (int, float)) else None

    def _hosts(self, playbook: Any) -> set[str]:
        """The servers of this recovery; what cannot be told has no earlier runs."""
        try:
            found = set()
            for play in playbook.get_plays():
                manager = play.get_variable_manager()
                pattern = Templar(loader=manager._loader, variables=manager.extra_vars).template(play.hosts)
                found |= {host.get_name() for host in manager._inventory.get_hosts(pattern)}
            return found
        except Exception:
            return set()

    def _count_down(self) -> None:
        """A thread of its own: while a task runs nothing else comes by here. It must never harm the run."""
        try:
            limit, target = self.objectives.get("rto_s"), self.objectives.get("rto_target_s")
            if self.ledger is None or not limit:
                return
            said = self.ledger.elapsed()
            while not self.over.wait(0.5):
                elapsed = self.ledger.elapsed()
                # an adopted incident can lie many marks back: they are one line
                if any(said < mark <= elapsed for mark in _report.marks(target, limit)):
                    self._display.display(_report.countdown_line(elapsed, target, limit))
                said = elapsed
        except Exception:
            return

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
        self.over.set()
        self._close_phases(keep=None)
        self._hear(last="stats" not in how)
        self.ledger.add("run_end", **how)
        report = _report.build(self.ledger.rows)
        self._tell(report["result"], f"{report['message']} Trading: {report['trading'] or 'unknown'}.")
        self.files.save(_report.build(self.ledger.rows))

    @_quiet
    def v2_playbook_on_stats(self, stats: Any) -> None:
        if self.ledger is None or self.files is None:
            return
        self.ended = False  # a command with two playbooks ends twice
        self.endings += 1
        self._end(stats={host: stats.summarize(host) for host in stats.processed})
        self._hear(wait_s=LAST_WORDS_S, last=True)
        report = _report.build(self.ledger.rows)
        self.files.save(report)
        for line in _report.closing_lines(report, str(self.files.report)):
            self._display.display(line)
        if self.files.lost:
            self._display.warning(f"recovery_clock: THE LEDGER AND REPORT ON DISK ARE INCOMPLETE: {self.files.lost}")
        code = _report.exit_code(report)
        # a playbook that follows in the same command is not kept from running by the objectives of this one
        if code is not None and (report["result"] != "recovered" or self.endings >= len(context.CLIARGS.get("args") or ())):
            raise SystemExit(code)

    # --- plays, phases, tasks ----------------------------------------------------------------------------------------

    @_quiet
    def v2_playbook_on_play_start(self, play: Any) -> None:
        phase = play.vars.get("titan_dr_phase") if isinstance(play.vars, dict) else None
        self.play_phase = str(phase) if phase else None
        if self.hooks is None:
            self._announce(play)

    def _announce(self, play: Any) -> None:
        """The first play with servers begins: their inventory says who is told."""
        manager = play.get_variable_manager()
        servers = [host for host in manager._inventory.get_hosts(play.hosts) if not host.implicit]
        if not servers:
            return
        self.hooks = []
        try:
            variables = manager.get_vars(play=play, host=servers[0])
            self.hooks = list(Templar(loader=manager._loader, variables=variables).template(variables.get("titan_dr_notify") or []))
        except Exception as error:
            self._note(f"titan_dr_notify cannot be read, nobody is told: {type(error).__name__}")
        self._tell("started", f"It works on {', '.join(host.get_name() for host in servers)}.")

    def _tell(self, event: str, text: str) -> None:
        if self.ledger is None or self.files is None or not self.hooks or context.CLIARGS.get("check"):
            return
        begun = self.ledger.rows[0]
        figures = {"elapsed_s": round(self.ledger.elapsed(), 1), "rto_s": self.objectives.get("rto_s")}
        try:
            body = {"run_id": begun["run_id"], "scenario": begun["scenario"], "kind": begun["kind"], "event": event, "text": text, **figures}
            _notify.send(self.hooks, body, self.files.directory)
        except Exception as error:
            self._note(f"{event} was NOT told: {type(error).__name__}")

    def _phase_of(self, task: Any) -> str | None:
        return _budget.phase_of(_budget.roles_of(task), self.objectives.get("phases") or {}, self.play_phase)

    @_quiet
    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        if self.ledger is None or self.safe_state:
            return
        if Path(str(task.get_path() or "").rpartition(":")[0]).name == SAFE_STATE_FILE:
            # from here on nobody who watches this run may cut it short
            self.safe_state = True
            self.ledger.add("safe_state_start", name=task.get_name(include_role_fqcn=False))

    @_quiet
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if self.ledger is None or _budget.short(str(task.action)) in _INCLUDES:
            return
        phase = self._phase_of(task)
        now = self.ledger.elapsed()
        self.busy[host.get_name()] = (phase, task._uuid, now)
        if str(task.action).startswith(_OWN_MODULES):
            name = task.get_name(include_role_fqcn=False)
            module = _budget.short(str(task.action))
            self.ledger.add("step_start", t=now, name=name, module=module, phase=phase, host=host.get_name(), task_id=task._uuid)
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
        if _budget.short(str(task.action)) in _INCLUDES:
            return
        now = self.ledger.elapsed()
        phase, _task, since = self.busy.pop(host, (self._phase_of(task), task._uuid, now))
        if phase in self.open:
            self.open[phase] = now
        name = task.get_name(include_role_fqcn=False)
        role = _budget.short(task._role.get_name()) if getattr(task, "_role", None) is not None else None
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
        for event in ("breach", "late"):
            if event in said:
                self.ledger.add(event, host=host, **said[event])
        self._hold(said)
        for gate in said.get("gates", []):
            self.ledger.add("gate", t=now, host=host, phase=phase, task_id=task._uuid, **gate)
        for note in said.get("notes", []):
            self._note(note)
        if status in _report.FAILED:
            self._record_reason(result, name, host)
        self._hear()
        if said or status in _report.FAILED:
            self._save()

    def _hold(self, said: dict[str, Any]) -> None:
        """What was said of the lease. A run that goes on where another broke off goes on on that one's clock."""
        lease, deadline_at = said.get("lease"), said.get("deadline_at")
        if self.ledger is None or (lease is None and deadline_at is None):
            return
        known = {key: lease.get(key) for key in ("run_id", "epoch", "adopted", "incident_at")} if lease else {}
        known = {key: value for key, value in {**known, "deadline_at": deadline_at}.items() if value is not None}
        before = [row for row in self.ledger.rows if row["event"] == "lease"]
        if any(known.items() <= row.items() for row in before):
            return
        shift = 0.0
        if lease and lease.get("adopted"):
            try:
                shift = self.ledger.rebase(_ledger.parse_instant(lease.get("incident_at")))
            except ValueError as error:
                self._note(f"The incident start of run {lease.get('run_id')} cannot be read, the clock stays: {error}")
            self.open = {phase: last + shift for phase, last in self.open.items()}
            self.busy = {host: (phase, task, since + shift) for host, (phase, task, since) in self.busy.items()}
            os.environ[_ledger.ENV_INCIDENT] = f"{self.ledger.incident_at:.3f}"
            if not any(row.get("adopted") for row in before):
                self._note(f"Goes on with run {lease.get('run_id')}, {_report.span(self.ledger.elapsed())} after the incident.")
        self.ledger.add("lease", **known, shift_s=round(shift, 3) or None)

    def _hear(self, wait_s: float = 0.0, last: bool = False) -> None:
        """What became of the notifications that were sent off."""
        if self.files is None:
            return
        notes = _notify.told(self.files.directory, wait_s, last)
        for note in notes[len(self.told) :]:
            self._note(note)
        self.told = notes

    def _record_reason(self, result: Any, name: str, host: str) -> None:
        task = result.task
        own = _budget.short(str(task.action)) in _OWN_MESSAGES or str(task.action).startswith(_OWN_MODULES)
        message = result.result.get("msg") if own and task.no_log is not True and "censored" not in result.result else None
        reason = f": {str(message)[:500]}" if message else ""
        self._note(f"{name} on {host}{reason}", task_id=task._uuid, failure=True)
