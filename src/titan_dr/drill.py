# SPDX-License-Identifier: GPL-3.0-or-later
"""A drill: a real disaster in the lab, the real recovery, and an outside look at what it claims."""

from __future__ import annotations

import json
import secrets
import threading
import time
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import redis

from titan_dr import lab, playbooks, recovery, report, runner
from titan_dr.cancel import Cancellation
from titan_dr.display import Display
from titan_dr.events import Event, StepFailed
from titan_dr.lab import faults, oracle, patient, profiles
from titan_dr.lab.state import LabState, find_state

REDIS_DB = 1
SEED_SAMPLE = 10000
WRITES_BEFORE_BACKUP = 50
WRITES_AFTER_BACKUP = 150  # at 50 a second: the few seconds between the restore point and the disaster
# An exchange that is well again and gets no order for so long is not traded on: Titan sends one every 1.3 s, in turns.
WATCH_S = 6.0


class DrillError(Exception):
    """The drill could not do its own part. Says nothing about the recovery."""


@dataclass(frozen=True)
class Options:
    scenario: str
    fault: str | None = None  # None: the one that a plain drill of this scenario causes
    profile: str = "guide"
    keys: int = 10000
    keep: bool = False
    installed: bool = False
    check: bool = False
    verbosity: int = 0
    inventory: Sequence[str] = ()
    extra_vars: Mapping[str, Any] | None = None
    extra_vars_files: Sequence[str] = ()


def run(options: Options, run_dir: Path, display: Display, cancellation: Cancellation) -> dict[str, Any]:
    """The drill from bare machine to report. Whatever happens, a report is written and, unless kept, the lab is gone."""
    drill = Drill(options, run_dir, display, cancellation)
    try:
        with cancellation.attentive():
            drill.go()
    except KeyboardInterrupt as interrupt:
        drill.ended("cancelled", f"Cancelled by {cancellation.requested or interrupt} while: {drill.step}.")
    except Exception as error:
        drill.ended("failed", f"The drill failed while: {drill.step}: {error or type(error).__name__}")
    finally:
        drill.clean_up()
        report.save(drill.path, drill.report)
    return drill.report


class Drill:
    def __init__(self, options: Options, run_dir: Path, display: Display, cancellation: Cancellation) -> None:
        self.options = options
        self.display = display
        self.cancellation = cancellation
        self.path = run_dir / report.REPORT_FILE
        objectives = playbooks.scenarios(options.installed)[options.scenario]
        self.fault = faults.find_fault(options.scenario, options.fault, options.profile)
        self.titan = profiles.find(options.profile)
        # where Redis is after the recovery
        self.host = self.titan.recovered(objectives["recovers"], self.titan.data)
        # without a restore of data nothing may be lost
        self.restores = "redis_restore" in objectives["phases"]
        self.request = recovery.Request(
            scenario=options.scenario,
            inventory=options.inventory or [str(self.titan.folder)],
            run_dir=run_dir,
            kind="drill",
            check=options.check,
            installed=options.installed,
            extra_vars=options.extra_vars or {},
            extra_vars_files=options.extra_vars_files,
            verbosity=options.verbosity,
        )
        self.report = report.empty(run_dir.name, self.request.shown_kind, options.scenario, objectives, "cancelled", "The drill did not get far.")
        self.evidence: dict[str, Any] = {"profile": options.profile, "keys": options.keys, "fault": self.fault.name, "expected": self.fault.expect}
        self.seeded: dict[str, str] = {}
        self.step = "starting"
        self.state: LabState | None = None
        self.ack_file = run_dir / "acknowledged.jsonl"
        self.writer: oracle.Writer | None = None
        self.tunnel: oracle.Tunnel | None = None
        self.healing: threading.Timer | None = None
        self.lab_is_ours = False

    # --- the course of a drill ---

    def go(self) -> None:
        self._raise_the_lab()
        self._write_data()
        self._back_up()
        disaster_at, struck_at = self._strike()
        self._now("recovering")
        told = {**self.fault.extra_vars, **self.request.extra_vars}
        self.report = recovery.recover(replace(self.request, incident_at=f"{disaster_at:.3f}", extra_vars=told), self.display, self.cancellation)
        self.report["drill"] = self.evidence
        self.cancellation.check()
        if not self.options.check:
            self._look_at_the_data(disaster_at)
            if self.restores and self.host == self.titan.data and self.report["result"] == "recovered":
                self._look_for_the_old_data()
            self._look_at_the_heal()
            self._watch_on()
            self._look_for_orders(struck_at)
            self._look_at_the_end()

    def _now(self, step: str) -> None:
        self.step = step
        self.display.say(f"Drill: {step}")

    def _raise_the_lab(self) -> None:
        self._now("raising the lab")
        running = find_state()
        if running is not None and running.ready:
            raise DrillError("A lab is up already. A drill destroys its hosts, so it uses its own: `titan-dr lab down` first.")
        self.lab_is_ours = True
        self.state = lab.up(self.options.profile, self.display.say, secrets.token_hex(3))
        self.evidence["isolation"] = self.state.isolation

    def _write_data(self) -> None:
        self._now(f"writing {self.options.keys} keys and starting the writer")
        self.request.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.tunnel = self._tunnel(self.titan.data).__enter__()
        with self._redis(self.tunnel) as client:
            self.evidence["seeded"] = asdict(oracle.seed(client, self.options.keys))
            self.seeded = oracle.read_seed(client, self._every)
        self.writer = oracle.Writer(self.tunnel.host, self.tunnel.port, self._lab.redis_password, REDIS_DB, self.ack_file)
        self.writer.start()
        self.writer.wait_acknowledged(WRITES_BEFORE_BACKUP, timeout=30)
        self.fault.prepare()

    def _back_up(self) -> None:
        self._now("taking a restore point")
        # a restore point is real even when the recovery is only tried
        job = recovery.job(replace(self.request, check=False), "backup", self.request.run_dir / "backup")
        failures: list[str] = []

        def on_event(event: Event) -> None:
            if isinstance(event, StepFailed):
                failures.append(f"{event.name} on {event.host}: {event.message}")
            self.display.event(event)

        outcome = runner.run(job, on_event, self.cancellation)
        self.cancellation.check()
        if outcome.rc != 0:
            raise DrillError(f"backup.yml ended with exit code {outcome.rc}: {failures[-1] if failures else 'see backup/' + runner.LOG_FILE}")
        if self.writer is not None:
            self._now("writing on, so that there is something to lose")
            self.writer.wait_acknowledged(WRITES_AFTER_BACKUP, timeout=60)

    def _strike(self) -> tuple[float, float]:
        self._now(f"DISASTER: {self.fault.name}: {self.fault.summary}")
        disaster_at = time.time()
        evidence = self.fault.strike()
        struck_at = time.time()
        self._stop_writing()
        if self.fault.heal is not None:
            self.healing = threading.Timer(self.fault.heal_after_s, self._heal)
            self.healing.start()
        evidence |= self.fault.prove()
        self.evidence.update(disaster_at=disaster_at, disaster=evidence)
        self.display.say("Drill: " + "; ".join(f"{name}: {text}" for name, text in evidence.items()))
        return disaster_at, struck_at

    def _heal(self) -> None:
        """In a thread of its own: the recovery does not know of it."""
        self.evidence["heal_begun_at"] = time.time()
        try:
            if self.fault.heal is not None:
                self.fault.heal()
            self.evidence["healed_at"] = time.time()
        except Exception as error:
            self.evidence["heal_error"] = str(error) or type(error).__name__

    def _look_at_the_data(self, disaster_at: float) -> None:
        """From outside: what the writer and the seed keep of their own, against what the recovered Redis holds."""
        if self.report["result"] != "recovered":
            return
        self._now("counting the loss")
        name = "acknowledged_writes"
        try:
            taken_at = report.instant(self.report["restore_point"].get("taken_at")) if self.restores else disaster_at
            with self._tunnel(self.host) as tunnel, self._redis(tunnel) as client:
                loss = oracle.count_loss(client, self.ack_file, disaster_at, taken_at)
                now = oracle.read_seed(client, self._every)
        except (ValueError, OSError, oracle.OracleError, redis.RedisError) as error:
            report.add_gate(self.report, name, "unknown", f"the loss could not be counted: {error}")
            return
        self.evidence["oracle"] = asdict(loss)
        report.set_loss(self.report, loss.lost, loss.lost_seconds)
        sound = loss.lost_before_restore_point == 0 and not loss.holes and loss.phantom == 0 and (self.restores or loss.lost == 0)
        evidence = (
            f"{loss.acknowledged} acknowledged, {loss.present} present, {loss.lost} lost ({loss.lost_seconds:.1f} s), "
            f"{loss.lost_before_restore_point} of them older than the restore point, holes {loss.holes[:5]}, never written {loss.phantom}"
        )
        report.add_gate(self.report, name, "pass" if sound else "fail", evidence)
        wrong = sorted(key for key in self.seeded.keys() | now.keys() if self.seeded.get(key) != now.get(key))
        evidence = f"{len(now)} of {self.options.keys} seeded keys read, {len(wrong)} of them not as they were" + (f": {', '.join(wrong[:5])}" if wrong else "")
        report.add_gate(self.report, "seeded_data", "fail" if wrong else "pass", evidence)

    def _look_for_the_old_data(self) -> None:
        """Where Redis was restored in place, what was there before is evidence that nobody may lose."""
        path = f"{patient.titan_vars(self.options.profile)['titan_redis']['data_dir']}.before-{self.request.run_id}"
        done = lab.exec(self.host, ["find", path, "-type", "f", "-printf", "%P %s bytes, "], check=False)
        found = done.stdout.rstrip(", ")
        report.add_gate(self.report, "old_data_kept", "pass" if found else "fail", f"{path}: {found or done.stderr.strip() or 'empty'}")

    def _look_at_the_heal(self) -> None:
        """A recovery that cannot mend what is wrong has to wait until it is: one that resumed before saw nothing."""
        if self.fault.heal is None or self.report["result"] != "recovered":
            return
        resumed_at = trading_time(self.request.run_dir / report.LEDGER_FILE, "resumed")
        begun_at = self.evidence.get("heal_begun_at")
        if resumed_at is None or "heal_error" in self.evidence:
            verdict, evidence = "unknown", str(self.evidence.get("heal_error", "the ledger names no resume"))
        elif begun_at is None or resumed_at < begun_at:
            verdict, evidence = "fail", "trading was resumed while the fault was still there"
        else:
            self.evidence["heal_to_resumed_s"] = round(resumed_at - begun_at, 1)
            verdict, evidence = "pass", f"trading was resumed {self.evidence['heal_to_resumed_s']} s after the fault began to pass"
        report.add_gate(self.report, "resumed_after_heal", verdict, evidence)

    def _watch_on(self) -> None:
        """While the exchange cannot be reached the silence of its log proves little: it is made reachable, and must stay without orders."""
        if self.fault.expect == "halted" or self.fault.halted_venues:
            self._now(f"taking the fault away, and watching for {WATCH_S:g} s whether trading stays halted")
            self.fault.cure()
            time.sleep(WATCH_S)

    def _look_at_the_end(self) -> None:
        """What no recovery may mend has to end halted, and for the right reason."""
        if self.fault.expect != "halted" or self.report["result"] not in ("recovered", "failed"):
            return
        said = [self.report["message"], *(gate["evidence"] for gate in self.report["gates"] if gate["verdict"] != "pass")]
        wrong = [
            *(["it calls itself recovered"] if self.report["result"] == "recovered" else []),
            *([f"trading is {self.report['trading'] or 'unknown'}"] if self.report["trading"] != "halted" else []),
            *([f"it does not name the cause {self.fault.cause}"] if not any(self.fault.cause in text for text in said) else []),
        ]
        failed = [gate["name"] for gate in self.report["gates"] if gate["name"] == "no_orders_while_halted" and gate["verdict"] != "pass"]
        evidence = "; ".join(wrong) or f"trading is halted, the cause is {self.fault.cause}"
        report.add_gate(self.report, "stays_halted", "fail" if wrong else "pass", evidence)
        if not wrong and not failed:
            message = f"Nothing can mend {self.fault.name} ({self.fault.cause}), so it had to end halted, and did. It said: {self.report['message']}"
            self.report.update(result="halted", message=message)

    def _look_for_orders(self, since: float) -> None:
        """The exchanges' own log is the only witness of a halt that the recovered side did not make."""
        self._now("asking the exchanges for orders while trading was halted")
        try:
            with urllib.request.urlopen(f"{self._lab.exchange_control.rstrip('/')}/log", timeout=10) as reply:
                orders = json.load(reply)["orders"]
            ledger = self.request.run_dir / report.LEDGER_FILE
            if self.fault.trades_on:
                halted_at = trading_time(ledger, "halted")
                if halted_at is None:
                    raise ValueError("the ledger names no halt")
                self.evidence["orders_before_the_halt"] = sum(since <= float(order["received"]) < halted_at for order in orders)
                since = halted_at
            verdict, evidence, count = orders_while_halted(orders, since, trading_time(ledger, "resumed"), self.fault.halted_venues)
        except (OSError, ValueError, KeyError, TypeError) as error:
            verdict, evidence, count = "unknown", f"the exchanges' log could not be read: {error!r}", None
        self.report["orders_while_halted"] = count
        report.add_gate(self.report, "no_orders_while_halted", verdict, evidence)

    # --- means ---

    @property
    def _every(self) -> int:
        """Of many keys a sample is read."""
        return max(1, self.options.keys // SEED_SAMPLE)

    @property
    def _lab(self) -> LabState:
        if self.state is None:
            raise DrillError("The lab is not up")
        return self.state

    def _tunnel(self, host: str) -> oracle.Tunnel:
        ssh = self._lab.ssh
        return oracle.Tunnel(f"{ssh['user']}@{self._lab.host(host)['address']}", lab.ssh_options(self._lab))

    def _redis(self, tunnel: oracle.Tunnel) -> redis.Redis:
        return redis.Redis(host=tunnel.host, port=tunnel.port, db=REDIS_DB, password=self._lab.redis_password, socket_timeout=30)

    def _stop_writing(self) -> None:
        writer, self.writer = self.writer, None
        tunnel, self.tunnel = self.tunnel, None
        try:
            if writer is not None:
                writer.stop()
        finally:
            if tunnel is not None:
                tunnel.close()

    # --- the end ---

    def ended(self, result: str, message: str) -> None:
        # what the recovery itself reported stays; only the end is told anew
        self.report.update(result=result, message=message, drill=self.evidence)

    def clean_up(self) -> None:
        if self.healing is not None:
            self.healing.cancel()
            # it may be in the middle of it
            self.healing.join(60)
        try:
            self._stop_writing()
        except oracle.OracleError as error:
            self.report["notes"].append(f"The writer ended badly: {error}")
        if not self.lab_is_ours:
            return
        if self.options.keep:
            self.display.say("The lab is kept: `titan-dr lab status` shows it, `titan-dr lab down` removes it.")
            return
        self.display.say("Drill: taking the lab down")
        try:
            lab.down(self.display.say)
        except Exception as error:
            self.report["notes"].append(f"The lab was not taken down completely: {error}")
            self.display.say(f"The lab was not taken down completely: {error}", "red")


def trading_time(ledger: Path, state: str) -> float | None:
    """When the run first reported that trading was in this state, in epoch seconds. A halt counts from its proof, a resume from its call."""
    for line in ledger.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("event") == "task" and row.get("titan_dr", {}).get("trading") == state:
            return float(row["at"]) - (row.get("duration_s", 0.0) if state == "resumed" else 0.0)
    return None


def orders_while_halted(
    orders: Sequence[Mapping[str, Any]], since: float, resumed_at: float | None, still_halted: Collection[str] = ()
) -> tuple[str, str, int | None]:
    """Verdict, evidence and number of orders between the end of trading (by the disaster or the halt) and the resume (or now, without one).

    `still_halted`: exchanges on which it was not resumed.
    """
    now = time.time()
    until = resumed_at if resumed_at is not None else now
    known = [(str(order["venue"]), float(order["received"]), order) for order in orders]
    before = [venue for venue, at, _ in known if at < since]
    silent = [venue for venue in still_halted if venue not in before]
    if not before or silent:
        # a log that saw no trading before cannot show that trading stopped
        return "unknown", f"the exchanges' log shows no order before the halt{' on ' + ', '.join(silent) if silent else ''}", None
    between = [order for venue, at, order in known if since <= at < (now if venue in still_halted else until)]
    if between:
        names = ", ".join(f"{order.get('venue')} {order.get('clientOrderId')}" for order in between[:5])
        return "fail", f"{len(between)} orders while halted: {names}", len(between)
    told = f"{len(before)} orders before the halt, none in the {until - since:.1f} s until the resume"
    return "pass", told + "".join(f", none on {venue} until now ({now - since:.1f} s)" for venue in still_halted), 0
