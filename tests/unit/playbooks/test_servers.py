# SPDX-License-Identifier: GPL-3.0-or-later
"""The plays of the scenarios on three servers. The roles are stand-ins that say what would be done and fail on demand; nothing is connected to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_playbooks import ROOT, Playbooks, Ran

SERVERS = ("data", "core", "phases")
# what the run goes through, and who says so besides the three
ENTRIES = {
    "incident": ("main", "end"),
    "preflight": ("main",),
    "trading_halt": ("main", "resume", "close"),
    "redis_restore": ("main", "stage", "rollback"),
    "dependencies": ("main", "later"),
    "reconcile": ("main", "observe"),
    "services": ("main", "stop"),
    "provision": ("main",),
    "config_restore": ("main", "preflight", "stage", "swap", "prove"),
    "app_restore": ("main",),
    "validate": ("main",),
}
REBUILT = [
    *["trading_halt", "provision", "redis_restore/stage", "dependencies", "config_restore", "reconcile/observe", "app_restore", "redis_restore", "services"],
    *["dependencies/later", "reconcile", "validate", "trading_halt/resume"],
]
RESTORED = [
    *["trading_halt", "redis_restore/stage", "reconcile/observe", "services/stop", "redis_restore", "services", "reconcile", "validate", "trading_halt/resume"],
]
FACTS: dict[str, dict[str, Any]] = {
    "preflight": {"preflight_recovered_already": "{{ inventory_hostname in recovered | default([]) }}"},
    "redis_restore/rollback": {
        "redis_restore_rollback": "{{ rolled_back | default({'pending': true}) if inventory_hostname == 'data' else {'skipped': true} }}",
    },
    "trading_halt": {"trading_halt_result": {"latched": "{{ inventory_hostname not in unlatched | default([]) }}"}},
    "config_restore/preflight": {"config_restore_idle": False},
    "config_restore/stage": {"config_restore_affected": []},
    "config_restore/prove": {"config_restore_gates": []},
    "validate": {"validate_gates": []},
    "reconcile": {"reconcile_gates": []},
}
SAYS = {
    "trading_halt": "{{ {'halt': {}} | combine({'trading': 'halted'} if inventory_hostname == 'core' else {}) }}",
    "trading_halt/resume": "{{ {'trading': 'resumed'} if inventory_hostname == 'core' else {} }}",
    "validate": {
        "gates": [{"name": "config", "verdict": "pass", "evidence": "sound, {{ validate_trading | default('halted') }}"}],
        "rpo": {"actual_s": 1, "basis": "canary"},
    },
}


def stand_in(entry: str) -> list[dict[str, Any]]:
    """Says that it is done, or fails where it is told to: FAIL is a list of entry@host."""
    wanted = f"('{entry}@' ~ inventory_hostname) not in fail | default([])"
    tasks: list[dict[str, Any]] = [{"name": entry, "ansible.builtin.assert": {"that": wanted, "fail_msg": f"{entry} is broken", "quiet": True}}]
    if entry in FACTS:
        tasks.append({"name": f"facts of {entry}", "ansible.builtin.set_fact": FACTS[entry]})
    if entry in SAYS:
        tasks.append({"name": f"words of {entry}", "ansible.builtin.debug": {"var": "titan_dr"}, "vars": {"titan_dr": SAYS[entry]}})
    return tasks


class Three(Playbooks):
    """The real playbooks, and of the roles what decides over several servers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        shutil.copytree(ROOT / "playbooks/vars", self.folder / "vars")
        for role, entries in ENTRIES.items():
            for entry in entries:
                self._tasks(role, entry, stand_in(role if entry == "main" else f"{role}/{entry}"))
        shutil.copy(ROOT / "roles/incident/tasks/begin.yml", self.folder / "roles/incident/tasks")
        lease = {"lease": {"run_id": "r", "epoch": 1, "incident_at": 1767225600.0}}
        told = {"name": "Tell", "ansible.builtin.debug": {"var": "titan_dr"}, "vars": {"titan_dr": lease}, "when": "incident_state == 'held'"}
        taking = {"name": "lease {{ incident_state }}", "ansible.builtin.set_fact": {"__incident_lease": lease}}
        taking["failed_when"] = "(incident_state ~ '@' ~ inventory_hostname) in fail | default([])"
        self._tasks("incident", "lease", [taking, told])
        safe = yaml.safe_load((ROOT / "roles/trading_halt/tasks/safe_state.yml").read_text())
        halt = {**safe[0], "name": "safe state", "vars": {"safe": True}}
        self._tasks("trading_halt", "safe_state", [halt, *stand_in("safe"), *safe[1:]])
        calls = {name: {"url": "http://127.0.0.1:9", "confirm": {}} for name in ("titan_halt_call", "titan_resume_call")}
        servers: dict[str, dict[str, Any]] = {name: {"titan_server": f"titan-{name}"} for name in SERVERS}
        for name in SERVERS:
            servers[name] |= calls if name == "core" else {call: {} for call in calls}
        components = [{"name": name, "kind": kind, "server": f"titan-{name}"} for name, kind in (("data", "redis"), ("core", "pm2"), ("phases", "pm2"))]
        self.inventory: dict[str, Any] = {
            "titan_servers": {"hosts": servers},
            "all": {"vars": {"ansible_connection": "local", "titan_components": components, "titan_environment_id": "x", "titan_latch": "/latch"}},
        }

    def _tasks(self, role: str, entry: str, tasks: list[dict[str, Any]]) -> None:
        text = yaml.safe_dump(tasks, sort_keys=False, width=1000)
        path = self.folder / "roles" / role / "tasks" / f"{entry}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._ours(text))

    def closing(self, role: str, entry: str) -> Ran:
        """Only this entry of a role that finds nothing to do, under a lease that is closed between the look at it and its taking."""
        (self.folder / "hosts.yml").write_text(json.dumps(self.inventory))
        for real, name in ((role, entry), ("trading_halt", "close")):
            self._tasks(real, name, yaml.safe_load((ROOT / f"roles/{real}/tasks/{name}.yml").read_text()))
        begin = self.folder / "roles/incident/tasks/begin.yml"
        begin.write_text(self._ours(begin.read_text()))
        self._tasks("incident", "lease", [{"name": "lease {{ incident_state }}", "ansible.builtin.set_fact": {"incident_lease": {"adopted": False}}}])
        self._tasks("validate", "main", [{"name": "validate", "ansible.builtin.set_fact": {"validate_passed": True}}])
        tasks = [{"ansible.builtin.set_fact": {"incident_lease": {"adopted": True}}}, {"ansible.builtin.include_role": {"name": role, "tasks_from": entry}}]
        play = {"hosts": "core", "gather_facts": False, "vars": {"preflight_in_place": False, "titan_dr_scenario": "resume"}, "tasks": tasks}
        (self.folder / "closing.yml").write_text(yaml.safe_dump([play]))
        return self.play("closing")

    def _ours(self, text: str) -> str:
        """The stand-ins instead of the collection's roles; its plugins stay."""
        return re.sub(rf"titan\.disaster_recovery\.({'|'.join(ENTRIES)})\b(?!\()", r"\1", text)

    def scenario(self, name: str, *arguments: str, fail: tuple[str, ...] = (), **more: Any) -> Ran:
        if name == "complete_system_failure":
            # the servers that died are not there any more
            self.inventory["titan_replacement"] = self.inventory.pop("titan_servers")
        (self.folder / "hosts.yml").write_text(json.dumps(self.inventory))
        for path in [self.folder / f"{name}.yml", *self.folder.glob("roles/*/tasks/begin.yml")]:
            source = ROOT / "playbooks" / path.name if path.parent == self.folder else path
            path.write_text(self._ours(source.read_text()))
        return self.play(name, *arguments, fail=fail, **more)

    def play(self, name: str, *arguments: str, **more: Any) -> Ran:
        command = ["ansible-playbook", "-i", str(self.folder / "hosts.yml"), str(self.folder / f"{name}.yml"), "-e", json.dumps({"fail": (), **more})]
        done = subprocess.run([*command, *arguments], cwd=self.away, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        return Ran(done.returncode, done.stdout + done.stderr, self.run_dir)


@pytest.fixture
def three(tmp_path: Path) -> Three:
    return Three(tmp_path)


def tasks(ran: Ran) -> list[tuple[str, str, str]]:
    return [(row["name"].rpartition(" : ")[2], row["host"], row["status"]) for row in ran.rows if row["event"] == "task"]


def course(ran: Ran, host: str) -> list[str]:
    """What was done on a server, in order."""
    known = {"safe", "lease held", "lease released"}
    known |= {role if entry == "main" else f"{role}/{entry}" for role, entries in ENTRIES.items() for entry in entries}
    done = ("ok", "changed")
    return [name for name, where, status in tasks(ran) if where == host and name in known and status in done]


@pytest.mark.parametrize(("scenario", "steps"), [("complete_system_failure", REBUILT), ("database_corruption", RESTORED)])
def test_all_servers_go_the_same_way_side_by_side(three: Three, scenario: str, steps: list[str]) -> None:
    ran = three.scenario(scenario)
    assert ran.rc == 0 and ran.report["result"] == "recovered", ran.output
    for host in SERVERS:
        assert course(ran, host) == ["incident", "preflight", "lease held", *steps]
    # nobody begins a step before all have ended the one before
    assert [name for name, _host, _status in tasks(ran) if name in steps] == [name for name in steps for _server in SERVERS]
    assert ran.report["trading"] == "resumed" and ran.report["hosts"] == sorted(SERVERS)


@pytest.mark.parametrize("broken", [("services@phases",), ("services@phases", "services@data"), ("trading_halt/resume@data",)])
def test_one_that_fails_leads_all_into_the_safe_state(three: Three, broken: tuple[str, ...]) -> None:
    ran = three.scenario("complete_system_failure", fail=broken)
    step, culprit = broken[0].split("@")
    assert ran.rc == 2 and ran.report["result"] == "failed", ran.output
    for host in SERVERS:
        assert course(ran, host)[-3:] == ["trading_halt", "safe", "incident/end"], course(ran, host)
        assert ("trading_halt/resume" in course(ran, host)) is (step == "trading_halt/resume" and host != culprit)
        assert f"Trading is halted on {host} and everything" in " ".join(ran.output.split())
    assert ran.report["trading"] == "halted"
    names = [item.split("@")[1] for item in broken]
    assert any(ran.report["message"].endswith(f" : {step} on {name}: {step} is broken") for name in names), ran.report["message"]
    # a server that did not fail itself names one that did
    assert any(f"{step} on {name}: {step} is broken Trading is halted on core" in " ".join(ran.output.split()) for name in names), ran.output


def test_one_that_cannot_be_halted_does_not_keep_the_others_from_it(three: Three) -> None:
    ran = three.scenario("database_corruption", fail=("redis_restore@data", "safe@data"))
    assert ran.rc == 2 and ran.report["message"].endswith(" : redis_restore on data: redis_restore is broken")
    assert course(ran, "data")[-1] == "trading_halt"
    for host in ("core", "phases"):
        assert course(ran, host)[-3:] == ["trading_halt", "safe", "incident/end"]


def test_a_lease_that_is_refused_is_left_with_nobody(three: Three) -> None:
    ran = three.scenario("database_corruption", fail=("held@core",))
    assert ran.rc == 2
    for host in SERVERS:
        # nothing was begun, so nothing is halted; and what is another's is not touched
        assert course(ran, host)[2:] == ([] if host == "core" else ["lease held", "lease released"]), ran.output
    assert "on core" in ran.report["message"]


def test_one_that_is_not_recovered_yet_is_enough(three: Three) -> None:
    ran = three.scenario("complete_system_failure", recovered=["data", "core"])
    assert ran.rc == 0 and all(course(ran, host)[3:] == REBUILT for host in SERVERS), ran.output


def test_all_that_are_recovered_are_left_alone(three: Three) -> None:
    ran = three.scenario("database_corruption", recovered=list(SERVERS))
    assert all(course(ran, host) == ["incident", "preflight"] for host in SERVERS), ran.output


@pytest.mark.parametrize(("role", "entry"), [("preflight", "recovered"), ("config_restore", "idle")])
def test_what_broke_off_at_its_end_is_recorded_also_when_its_lease_was_closed_meanwhile(three: Three, role: str, entry: str) -> None:
    ran = three.closing(role, entry)
    assert ran.rc == 0 and course(ran, "core")[-2:] == ["lease held", "trading_halt/resume"], ran.output


def test_a_rollback_concerns_the_servers_that_use_the_data_too(three: Three) -> None:
    ran = three.scenario("rollback")
    for host in SERVERS:
        assert course(ran, host)[2:5] == ["lease held", "trading_halt", "reconcile/observe"], ran.output
        assert course(ran, host)[-1] == "trading_halt/resume"


@pytest.mark.parametrize("trading", ["resumed", "awaiting resume"])
def test_nothing_is_halted_where_nothing_is_to_be_put_back(three: Three, trading: str) -> None:
    """And whoever left the resume to a person finds it well that nothing trades."""
    ran = three.scenario("rollback", rolled_back={"pending": False, "trading": trading})
    assert {gate["evidence"] for gate in ran.report["gates"]} == {f"sound, {trading}"}
    assert ran.rc == 0 and {step for server in SERVERS for step in course(ran, server)} <= {"incident", "redis_restore/rollback", "validate"}, ran.output


def test_a_resume_starts_what_the_halt_stopped_where_nobody_could_be_asked(three: Three) -> None:
    ran = three.scenario("resume")
    for host in SERVERS:
        started = [] if host == "core" else ["services"]
        assert course(ran, host)[-5:] == ["trading_halt", "reconcile/observe", *started, "validate", "reconcile", "trading_halt/resume"][-5:], ran.output


ADOPTED = {"run_id": "r", "epoch": 1, "incident_at": 1767225600.0, "adopted": True}


def test_a_resume_that_broke_off_at_its_very_end_is_recorded(three: Three) -> None:
    ran = three.scenario("resume", unlatched=SERVERS, incident_lease=ADOPTED)
    assert ran.rc == 0 and {gate["evidence"] for gate in ran.report["gates"]} == {"sound, resumed"}, ran.output
    for host in SERVERS:
        assert course(ran, host) == ["incident", "trading_halt", "validate", "trading_halt/close"], ran.output


@pytest.mark.parametrize(("unlatched", "more", "said"), [
    (SERVERS, {}, "there is nothing to resume"), (SERVERS[:1], {"incident_lease": ADOPTED}, "Halt all servers first"),
])  # fmt: skip
def test_a_resume_of_what_is_not_halted_is_refused(three: Three, unlatched: tuple[str, ...], more: dict[str, Any], said: str) -> None:
    ran = three.scenario("resume", unlatched=unlatched, **more)
    assert (ran.rc, ran.report["result"]) == (3, "refused") and said in ran.report["message"], ran.output
    assert not {"validate", "trading_halt/close", "trading_halt/resume"} & {step for host in SERVERS for step in course(ran, host)}


@pytest.mark.parametrize("scenario", ["complete_system_failure", "database_corruption", "rollback", "resume"])
def test_servers_that_are_missing_or_doubled_are_refused(three: Three, scenario: str) -> None:
    three.inventory["titan_servers"]["hosts"]["phases"]["titan_server"] = "titan-core"
    ran = three.scenario(scenario)
    assert (ran.rc, ran.report["result"]) == (3, "refused"), ran.output
    assert "core and phases are all the server titan-core; no host is the server titan-phases" in ran.report["message"]
    assert all(course(ran, host) == [] for host in SERVERS)


@pytest.mark.parametrize("scenario", ["database_corruption", "resume"])
def test_a_part_of_the_servers_is_refused(three: Three, scenario: str) -> None:
    ran = three.scenario(scenario, "--limit", "core,localhost")
    assert (ran.rc, ran.report["result"]) == (3, "refused"), ran.output
    assert "no host is the server titan-data; no host is the server titan-phases" in ran.report["message"]


def test_no_server_at_all_is_refused(three: Three) -> None:
    three.inventory["titan_servers"]["hosts"] = {}
    ran = three.scenario("database_corruption")
    assert (ran.rc, ran.report["result"]) == (3, "refused") and "the server whose Redis is to be restored" in ran.report["message"]


def test_a_titan_on_one_server_takes_one(three: Three) -> None:
    three.inventory["all"]["vars"]["titan_components"] = [{"name": "redis", "kind": "redis"}, {"name": "brain", "kind": "pm2"}]
    ran = three.scenario("database_corruption")
    assert ran.rc == 3 and "exactly one server" in ran.report["message"]
    three.inventory["titan_servers"]["hosts"] = {"core": {}}
    ran = three.scenario("database_corruption")
    assert ran.rc == 0 and course(ran, "core")[3:] == RESTORED, ran.output


@pytest.mark.parametrize("scenario", ["network_partition", "configuration_corruption"])
def test_what_concerns_one_server_asks_which(three: Three, scenario: str) -> None:
    ran = three.scenario(scenario)
    assert (ran.rc, ran.report["result"]) == (3, "refused") and "-e titan_dr_hosts=SERVER" in ran.report["message"], ran.output


@pytest.mark.parametrize("scenario", ["network_partition", "configuration_corruption"])
def test_one_that_does_not_trade_is_refused_alone(three: Three, scenario: str) -> None:
    """Nobody would reconcile and resume there, and it would stay halted."""
    ran = three.scenario(scenario, titan_dr_hosts="phases")
    assert (ran.rc, ran.report["result"]) == (3, "refused") and "phases does not trade itself" in ran.report["message"], ran.output


def test_the_one_that_is_named_is_worked_on(three: Three) -> None:
    ran = three.scenario("configuration_corruption", titan_dr_hosts="core")
    assert ran.rc == 4 and ran.report["result"] == "recovered" and ran.report["hosts"] == ["core"], ran.output
    assert course(ran, "core")[-1] == "trading_halt/resume"


def test_the_safe_state_after_a_run_that_was_stopped(three: Three) -> None:
    """Each server by its own taking of the lease; one that fails does not keep the others from it."""
    facts = {"titan_dr_scenario": "database_corruption", "titan_dr_take_over": "r", "titan_dr_taken": {"core": "r/7"}}
    lease = three.folder / "roles/incident/tasks/lease.yml"
    tasks = yaml.safe_load(lease.read_text())
    lease.write_text(yaml.safe_dump([{"name": "Take", "ansible.builtin.debug": {"msg": "{{ inventory_hostname }} takes {{ incident_take_over }}"}}, *tasks]))
    ran = three.scenario("safe_state", fail=("held@data",), **facts)
    assert ran.rc != 0 and "core takes r/7" in ran.output and "phases takes r" in ran.output
    for host, halted in (("data", 0), ("core", 1), ("phases", 1)):
        assert len(re.findall(rf"ok: \[{host}\]", ran.output.partition("TASK [trading_halt : trading_halt]")[2].partition("TASK")[0])) == halted, ran.output
    again = three.scenario("safe_state", titan_dr_hosts="core,phases", **facts)
    assert again.rc == 0 and "[data]" not in again.output


def test_a_diagnosis_takes_the_restore_points_of_the_data(three: Three) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/diagnose.yml").read_text())
    found = [text for play in plays if (text := play.get("vars", {}).get("diagnose_of_data"))]
    assert len(found) == 2
    about = {"name": "About", "ansible.builtin.set_fact": {"diagnose_about": {"has_redis": "{{ inventory_hostname == where | default('none') }}"}}}
    plays = [{"hosts": "titan_servers", "gather_facts": False, "tasks": [about]}]
    plays += [{"hosts": "localhost", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"msg": f"of {text.strip()}"}}]} for text in found]
    (three.folder / "hosts.yml").write_text(json.dumps(three.inventory))
    for where in ("phases", "none"):
        command = ["ansible-playbook", "-i", str(three.folder / "hosts.yml"), str(three.write(plays)), "-e", f"where={where}"]
        done = subprocess.run(command, cwd=three.away, env=three.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and done.stdout.count(f"of {where if where != 'none' else 'data'}") == 2, done.stdout


def test_exchanges_that_no_server_has_were_not_tested(three: Three) -> None:
    three.inventory["all"]["vars"]["titan_venues"] = []
    for host, known in three.inventory["titan_servers"]["hosts"].items():
        known["titan_redis"] = {"config": "/r", "data_dir": "/d", "unit": "u", "user": "u"} if host == "data" else {"host": "titan-data"}
    ran = three.scenario("test_exchange_connectivity")
    assert ran.rc == 2 and ran.output.count("No server has an exchange in titan_venues") >= 1, ran.output
