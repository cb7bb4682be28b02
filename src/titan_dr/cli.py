# SPDX-License-Identifier: GPL-3.0-or-later
"""The titan-dr command."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_dr import playbooks, report, streams
from titan_dr.cancel import SIGNALS, Cancellation, Cancelled
from titan_dr.errors import UsageError

# Rich, PyYAML and Ansible are imported where they are needed: `titan-dr verify` has milliseconds.
if TYPE_CHECKING:
    from rich.console import Console

EXIT_CODES = """\
exit codes:
  0  recovered, and the objectives were met; or a drill ended halted, as it had to
  1  failed; trading was not resumed, nothing old was removed
  2  the command was used wrongly
  3  refused in preflight; nothing was changed
  4  recovered, but the RTO or the RPO was missed or is not proven
  5  cancelled; trading is halted, the report says so
"""
VERIFY_EXIT_CODES = """\
exit codes:
  0  every file passed
  1  a file failed
  2  the command was used wrongly, or there is no such file
  4  none failed, but of one it cannot be told
  5  cancelled
"""
DIAGNOSE_EXIT_CODES = """\
exit codes:
  0  nothing is wrong, nothing is proposed
  1  something is proposed
  2  the command was used wrongly
  4  something is wrong or could not be found out, and nothing proves that a recovery would help
  5  cancelled
"""
MONTHLY_EXIT_CODES = """\
exit codes:
  0  every test passed
  1  a test failed
  2  the command was used wrongly
  4  none failed, but not every test was run or could be judged
  5  cancelled
"""


@dataclass
class ExtraVars:
    values: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="titan-dr",
        description="Recovers a Titan trading system from a disaster, inside measured objectives, and drills that in a lab.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    recover = _command(commands, "recover", "recover real servers from a disaster", _recover, EXIT_CODES)
    recover.add_argument("scenario", nargs="?", metavar="SCENARIO", help="what happened; `titan-dr scenarios` lists them; with --resume it may be left out")
    _run_options(recover, "change nothing on the servers; say what would be done")
    recover.add_argument("--incident-started-at", metavar="TIME", help="when it happened, epoch seconds or ISO 8601 in UTC (default: now)")
    recover.add_argument("--resume", metavar="RUN", help="go on where this run broke off")
    recover.add_argument("--take-over", metavar="RUN", help="take the server from this run, because you know that it is dead")
    recover.add_argument("--on-breach", choices=("continue", "abort"), help="what to do when the RTO cannot be met any more (default: the inventory's)")

    doctor = _command(commands, "diagnose", "say what is wrong and which recovery helps; changes nothing", _diagnose, DIAGNOSE_EXIT_CODES)
    _inventory_options(doctor)
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.add_argument("-v", "--verbose", action="count", default=0, help="show Ansible's own output; repeat for more of it")

    drill = _command(commands, "drill", "cause a disaster in the lab and recover from it", _drill, EXIT_CODES)
    drill.add_argument("scenario", metavar="SCENARIO", help="the disaster to cause; `titan-dr scenarios` lists them")
    _run_options(drill, "only try the recovery; the lab's Titan is backed up and struck all the same")
    drill.add_argument("--fault", metavar="NAME", help="how the disaster comes about; `titan-dr faults` lists the ways, the first is the default")
    drill.add_argument("--profile", choices=("guide", "variant", "split"), default="guide", help="which Titan stands in the lab (default: %(default)s)")
    drill.add_argument("--keys", type=_count, default=10000, metavar="N", help="keys in Redis before the disaster (default: %(default)s)")
    drill.add_argument("--keep", action="store_true", help="leave the lab's hosts up afterwards")

    monthly = _command(commands, "monthly", "run the guide's five monthly tests in the lab and write one summary", _monthly, MONTHLY_EXIT_CODES)
    monthly.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="only these; the summary then says what was left out")
    monthly.add_argument("--profile", choices=("guide", "variant"), default="guide", help="which Titan stands in the lab (default: %(default)s)")
    monthly.add_argument("--keys", type=_count, default=10000, metavar="N", help="keys in Redis before each disaster (default: %(default)s)")
    monthly.add_argument("--installed", action="store_true", help="test the installed collection, not this checkout's playbooks")
    monthly.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where the summary and the drills' reports go (default: ./%(default)s)"
    )
    monthly.add_argument("--json", action="store_true", help="print the summary as JSON on stdout; progress goes to stderr")

    check = _command(commands, "verify", "tell whether Redis snapshots and append only files can be trusted", _verify, VERIFY_EXIT_CODES)
    check.add_argument("paths", nargs="+", metavar="PATH", help="an RDB or AOF file, an appendonlydir, or a directory that is searched for them")
    check.add_argument("--level", choices=("fast", "deep", "proof"), default="fast", help="how much is proven (default: %(default)s)")
    check.add_argument("--target", metavar="FACTS", help="the server that is to load them: redis:7.0.15, JSON, a JSON file or a redis.conf")
    check.add_argument("--recorded", type=Path, metavar="FILE", help="what the backup recorded: a manifest.json, or the output of sha256sum")
    check.add_argument("--checksum", choices=("required", "digest"), default="required", help="digest: only a recorded SHA-256 proves a file")
    check.add_argument("--max-age", type=_count, metavar="SECONDS", help="oldest snapshot that meets the RPO")
    check.add_argument("--server", metavar="PROGRAM", help="server program of level proof (default: redis-server)")
    check.add_argument("--jobs", type=_jobs, metavar="N", help="processes that work at the same time (default: one for each processor)")
    check.add_argument("--installed", action="store_true", help="verify with the installed collection, not with this checkout")
    check.add_argument("--json", action="store_true", help="print the reports as JSON")

    faults = _command(commands, "faults", "list what a drill can break, by scenario", _faults)
    faults.add_argument("scenario", nargs="?", metavar="SCENARIO", help="only those of this one")
    faults.add_argument("--json", action="store_true", help="print them as JSON")

    lab = _command(commands, "lab", "raise, show or remove the lab's hosts", _lab)
    lab.add_argument("action", choices=("up", "status", "down"), help="what to do")
    lab.add_argument("--profile", choices=("guide", "variant", "split"), default="guide", help="which Titan to raise (default: %(default)s)")
    lab.add_argument("--json", action="store_true", help="print the result as JSON")

    show = _command(commands, "report", "print the report of a run again, and exit as that run did", _report, EXIT_CODES)
    show.add_argument("run", metavar="RUN", help="a run id, its directory or its report.json; `last` is the newest run")
    show.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (default: ./%(default)s)")
    show.add_argument("--json", action="store_true", help="print the report as JSON")

    scenarios = _command(commands, "scenarios", "list the scenarios with their objectives", _scenarios)
    scenarios.add_argument("--installed", action="store_true", help="those of the installed collection, not of this checkout")
    scenarios.add_argument("--json", action="store_true", help="print them as JSON")
    return top


def _command(commands: Any, name: str, text: str, function: Any, epilog: str = "") -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.set_defaults(function=function)
    return made


def _inventory_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("-i", "--inventory", action="append", default=[], metavar="PATH", help="inventory file or directory; may be repeated")
    command.add_argument("-e", "--extra-vars", action="append", default=[], metavar="VARS", help="key=value, JSON, or @file; as in ansible-playbook")
    command.add_argument("--installed", action="store_true", help="run the installed collection, not this checkout's playbooks")
    command.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="where ledger and report go (default: ./%(default)s)")


def _run_options(command: argparse.ArgumentParser, check: str) -> None:
    _inventory_options(command)
    command.add_argument("--check", action="store_true", help=check)
    command.add_argument("--json", action="store_true", help="print the report as JSON on stdout; progress goes to stderr")
    command.add_argument("-v", "--verbose", action="count", default=0, help="show Ansible's own output; repeat for more of it")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _jobs(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parse_extra_vars(given: Sequence[str]) -> ExtraVars:
    extra = ExtraVars()
    for text in given:
        if text.startswith("@"):
            path = Path(text[1:]).expanduser()
            if not path.is_file():
                raise UsageError(f"--extra-vars: there is no file {path}")
            extra.files.append(str(path))
        elif text.lstrip().startswith(("{", "[")):
            import yaml

            try:
                values = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise UsageError(f"--extra-vars: neither JSON nor YAML: {error}") from error
            if not isinstance(values, dict):
                raise UsageError("--extra-vars: a mapping is needed")
            extra.values.update(values)
        else:
            for word in shlex.split(text):
                name, separator, value = word.partition("=")
                if not separator or not name:
                    raise UsageError(f"--extra-vars: {word!r} is not key=value")
                extra.values[name] = value
    return extra


def _incident(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return f"{report.instant(text):.3f}"
    except ValueError as error:
        raise UsageError(f"--incident-started-at: {error}") from error


def _known(scenario: str, installed: bool) -> None:
    known = playbooks.scenarios(installed)
    if scenario not in known:
        raise UsageError(f"There is no scenario {scenario}; known: {', '.join(known)}")


def _run_id(option: str, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise UsageError(f"{option}: {text!r} is no run id")
    return text


def _inventories(given: Sequence[str]) -> list[str]:
    for path in given:
        # a list of hosts ("a,b,") is an inventory too
        if "," not in path and not Path(path).exists():
            raise UsageError(f"--inventory: there is no {path}")
    return [path if "," in path else str(Path(path).resolve()) for path in given]


def _wanted_inventory(options: argparse.Namespace) -> list[str]:
    inventory = _inventories(options.inventory or [path for path in [os.environ.get("ANSIBLE_INVENTORY", "")] if path])
    if not inventory:
        raise UsageError(f"{options.command}: which servers? Give their inventory with -i (inventories/example shows its shape).")
    return inventory


def _console(to_stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False)


def _finish(found: dict[str, Any], path: Path, as_json: bool) -> int:
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        report.render(_console(False), found, path)
    return report.exit_code(found)


def _recover(options: argparse.Namespace) -> int:
    from titan_dr import display, recovery

    extra = parse_extra_vars(options.extra_vars)
    scenario, incident_at = options.scenario, _incident(options.incident_started_at)
    if options.resume:
        known = playbooks.scenarios(options.installed)
        was, since = recovery.earlier(_run_id("--resume", options.resume), options.runs_dir, known)
        scenario, incident_at = scenario or was, incident_at or since
        if scenario is None:
            raise UsageError(f"--resume: of which scenario was {options.resume}? Its id does not say so, and there is no such run in {options.runs_dir}.")
        if was is not None and scenario != was:
            raise UsageError(f"--resume: {options.resume} was a {was}, not a {scenario}")
        extra.values["titan_dr_resume"] = options.resume
    if scenario is None:
        raise UsageError("recover: from what? Give a scenario (`titan-dr scenarios` lists them) or --resume RUN.")
    if options.take_over:
        extra.values["titan_dr_take_over"] = _run_id("--take-over", options.take_over)
    if options.on_breach:
        extra.values["titan_dr_on_breach"] = options.on_breach
    if extra.values.get("titan_dr_on_breach", "abort") not in ("continue", "abort"):
        raise UsageError(f"titan_dr_on_breach is continue or abort, not {extra.values['titan_dr_on_breach']!r}")
    _known(scenario, options.installed)
    inventory = _wanted_inventory(options)
    request = recovery.Request(
        scenario=scenario,
        inventory=inventory,
        run_dir=recovery.new_run_dir(options.runs_dir, scenario),
        check=options.check,
        installed=options.installed,
        extra_vars=extra.values,
        extra_vars_files=extra.files,
        incident_at=incident_at,
        verbosity=max(0, options.verbose - 1),
    )
    with Cancellation() as cancellation:
        found = recovery.recover(request, display.make(_console(options.json), options.verbose > 0), cancellation)
        return _finish(found, request.run_dir / report.REPORT_FILE, options.json)


def _diagnose(options: argparse.Namespace) -> int:
    from titan_dr import diagnose

    extra = parse_extra_vars(options.extra_vars)
    request = diagnose.Request(
        inventory=_wanted_inventory(options),
        runs_dir=options.runs_dir,
        installed=options.installed,
        extra_vars=extra.values,
        extra_vars_files=extra.files,
        verbosity=max(0, options.verbose - 1),
        shown=options.verbose > 0,
    )
    with Cancellation() as cancellation, cancellation.attentive():
        found, path = diagnose.run(request, cancellation, _console(options.json))
        return diagnose.finish(found, path, _console(False), options.json)


def _drill(options: argparse.Namespace) -> int:
    from titan_dr import display, drill, recovery  # the lab's needs are not a recovery's
    from titan_dr.lab import faults

    _known(options.scenario, options.installed)
    try:
        faults.find_fault(options.scenario, options.fault, options.profile)
    except faults.UnknownFault as error:
        raise UsageError(str(error)) from error
    extra = parse_extra_vars(options.extra_vars)
    wanted = drill.Options(
        scenario=options.scenario,
        fault=options.fault,
        profile=options.profile,
        keys=options.keys,
        keep=options.keep,
        installed=options.installed,
        check=options.check,
        verbosity=max(0, options.verbose - 1),
        inventory=_inventories(options.inventory),
        extra_vars=extra.values,
        extra_vars_files=extra.files,
    )
    run_dir = recovery.new_run_dir(options.runs_dir, options.scenario)
    with Cancellation() as cancellation:
        found = drill.run(wanted, run_dir, display.make(_console(options.json), options.verbose > 0), cancellation)
        return _finish(found, run_dir / report.REPORT_FILE, options.json)


def _monthly(options: argparse.Namespace) -> int:
    from titan_dr import display, drill, monthly, recovery

    for name in options.scenarios:
        if name not in monthly.TESTS:
            raise UsageError(f"There is no monthly test of {name}; there are {', '.join(monthly.TESTS)}")
    folder = recovery.new_run_dir(options.runs_dir / "monthly", "monthly")
    shown = display.make(_console(options.json))
    with Cancellation() as cancellation:

        def one(scenario: str) -> dict[str, Any]:
            wanted = drill.Options(scenario=scenario, profile=options.profile, keys=options.keys, installed=options.installed)
            return drill.run(wanted, recovery.new_run_dir(folder, scenario), shown, cancellation)

        found = monthly.run(options.scenarios or monthly.TESTS, folder, one, shown.say)
        monthly.save(folder, found)
        print(json.dumps(found, indent=2, ensure_ascii=False) if options.json else f"{monthly.markdown(found)}\n{folder / monthly.PAGES[1]}")
        return report.CANCELLED if cancellation.requested else monthly.exit_code(found)


def _verify(options: argparse.Namespace) -> int:
    from titan_dr import verify

    with Cancellation() as cancellation, cancellation.attentive():
        return verify.run(options)


def _faults(options: argparse.Namespace) -> int:
    from titan_dr.lab.faults import FAULTS

    if options.scenario not in (None, *FAULTS):
        raise UsageError(f"There is no fault for a scenario {options.scenario}; there are some for {', '.join(FAULTS)}")
    known = {name: {fault.name: fault.summary for fault in found} for name, found in FAULTS.items() if options.scenario in (None, name)}
    if options.json:
        print(json.dumps(known, indent=2))
        return report.OK
    for name, found in known.items():
        print(name)
        for fault, summary in found.items():
            print(f"  {fault:<20} {summary}")
    return report.OK


def _lab(options: argparse.Namespace) -> int:
    from titan_dr import lab
    from titan_dr.lab.engine import LabError

    console = _console(options.json)
    try:
        if options.action == "up":
            with Cancellation() as cancellation, cancellation.attentive():
                lab.up(options.profile, console.print, os.urandom(3).hex())
        if options.action == "down":
            for item in lab.down():
                console.print(f"removed {item}")
            console.print("No lab is up.")
            return report.OK
        now = lab.status()
    except LabError as error:
        print(f"titan-dr lab {options.action}: {error}", file=sys.stderr)
        return report.FAILED
    if options.json:
        # the state holds the lab's secrets too: only these may be shown
        state = now.state
        hosts = {name: {**state.host(name), "status": how} for name, how in now.hosts.items()} if state else {}
        known = {"run_id": state.run_id, "profile": state.profile, "network": state.network, "ready": state.ready} if state else {}
        print(json.dumps({**known, "hosts": hosts, "leftovers": now.leftovers}, indent=2))
    else:
        print("\n".join(now.lines()))
    return report.OK if now.state is not None and now.state.ready else report.FAILED


def _report(options: argparse.Namespace) -> int:
    path = _report_path(options.run, options.runs_dir)
    found = report.load(path)
    if found.get("kind") == "diagnosis":
        from titan_dr import diagnose

        return diagnose.finish(found, path, _console(False), options.json)
    return _finish(found, path, options.json)


def _report_path(run: str, runs_dir: Path) -> Path:
    if run == "last":
        runs = sorted(path for path in runs_dir.glob(f"*/{report.REPORT_FILE}"))
        if not runs:
            raise UsageError(f"There are no runs in {runs_dir}")
        return runs[-1]
    for path in (Path(run), runs_dir / run):
        if path.is_dir():
            return path / report.REPORT_FILE
        if path.is_file():
            return path
    raise UsageError(f"There is no run {run}, neither as a path nor in {runs_dir}")


def _scenarios(options: argparse.Namespace) -> int:
    known = playbooks.scenarios(options.installed)
    if options.json:
        print(json.dumps(known, indent=2))
        return report.OK
    for name, objectives in known.items():
        limits = ", ".join(f"{label} {report.seconds(objectives[key])}" for label, key in (("RTO", "rto_s"), ("target", "rto_target_s"), ("RPO", "rpo_s")))
        print(f"{name}  ({objectives['severity']}; {limits})")
        print("  " + " -> ".join(objectives["phases"]))
    return report.OK


def main(arguments: Sequence[str] | None = None) -> int:
    if arguments is None:
        streams.outlast()
    options = parser().parse_args(arguments)
    try:
        code: int = options.function(options)
        return code
    except (UsageError, playbooks.NotFound, report.NoReport, FileNotFoundError) as error:
        print(f"titan-dr: {error}", file=sys.stderr)
        return report.USAGE
    except (Cancelled, KeyboardInterrupt):
        print("titan-dr: cancelled", file=sys.stderr)
        return report.CANCELLED
    finally:
        if arguments is None:
            # the process ends: one more impatient Ctrl-C must not take the exit code away
            for signum in SIGNALS:
                signal.signal(signum, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
