#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmark: the recovery of a complete system failure against a hand-optimised shell script doing the same, in one run. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis
import yaml

from titan_dr import lab, paths
from titan_dr.lab import hosts, oracle

HERE = Path(__file__).resolve().parent
CANARY_KEY, CANARY_DB = "titan:dr:canary", 1
SAMPLED_KEYS = 500
SERVICES = {"titan-brain": 3000, "titan-shared": 3001, "titan-phase1": 3002, "titan-phase2": 3003, "titan-phase3": 3004}
RUN_TIMEOUT_S = 1800
ORDER_WITHIN_S = 20.0

# Runs on a server, before the disaster and after each recovery; knows neither the collection nor the script.
LOOK = r"""
import grp, hashlib, json, os, pwd, subprocess, urllib.request
def tree(*roots):
    digest = hashlib.sha256()
    for root in roots:
        for folder, folders, files in [("", [], [root])] if os.path.isfile(root) else os.walk(root):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                seen = os.lstat(path)
                owner, group = pwd.getpwuid(seen.st_uid).pw_name, grp.getgrgid(seen.st_gid).gr_name
                digest.update(f"{path} {seen.st_mode:o} {owner} {group}\n".encode())
                digest.update(os.readlink(path).encode() if os.path.islink(path) else open(path, "rb").read())
    return digest.hexdigest()
def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return json.load(reply)
    except OSError as error:
        return {"error": str(error)}
def enabled(unit):
    return all(subprocess.run(["systemctl", question, "--quiet", unit]).returncode == 0 for question in ("is-enabled", "is-active"))
release = os.path.realpath("/opt/titan/current")
print(json.dumps({
    "release": release,
    "release_content": tree(release),
    "config_content": tree("/opt/titan/config", "/etc/redis/redis.conf"),
    "pm2_content": tree("/opt/pm2/node_modules/pm2"),
    "latch": os.path.exists("/var/lib/titan-dr/halt"),
    "health": {str(port): get(port, "/health").get("status") for port in range(3000, 3005)},
    "trading": get(3000, "/health/trading"),
    "units": {unit: enabled(unit) for unit in ("redis-server", "pm2-titan")},
    "daemons": sum(b"God Daemon" in open(f"/proc/{pid}/cmdline", "rb").read() for pid in os.listdir("/proc") if pid.isdigit()),
    "failed_units": subprocess.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"], capture_output=True, text=True).stdout.strip(),
}))
"""


class BenchmarkError(Exception):
    """No figure: what was to be measured did not happen as it should."""


@dataclass
class Truth:
    """What the production server held when the restore point was taken."""

    keys: int
    canary: int
    samples: dict[str, str]
    look: dict[str, Any]
    dump_bytes: int = 0
    used_memory: int = 0


@dataclass
class Run:
    who: str
    to_resume_s: float
    total_s: float
    foreign_load: float  # processors in use by others in the two seconds before it
    load_average: float
    resume_began_s: float = 0.0  # from here on an order may come
    steps: list[tuple[str, float, float]] = field(default_factory=list)  # name, start, duration
    cpu_s: float = 0.0  # processor seconds of this run
    others_cpu_s: float = 0.0  # of everything else on the machine meanwhile
    tasks: int = 0  # of the collection, skipped ones too
    steps_on_servers: int = 0  # of them modules of the collection
    steps_s: float = 0.0  # what these took


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# --- the machine --------------------------------------------------------------------------------------------------------


def busy_seconds() -> float:
    """Processor seconds used by everybody since boot."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def container_seconds(container: str) -> float:
    """Processor seconds that a container used, from its control group (version 1 or 2)."""
    done = subprocess.run(["podman", "inspect", "--format", "{{.State.Pid}}", container], capture_output=True, text=True, check=True, timeout=30)
    for line in Path(f"/proc/{done.stdout.strip()}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpuacct" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage").read_text()) / 1e9
        usage = Path(f"/sys/fs/cgroup{path.removesuffix('/init.scope')}/cpu.stat")
        if number == "0" and usage.exists():
            return int(usage.read_text().split()[1]) / 1e6
    raise BenchmarkError(f"the processor time of {container} cannot be read")


def own_seconds(state: lab.LabState) -> float:
    """Processor seconds of what is measured: ended children of this process, and the hosts that are left."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + sum(container_seconds(state.host(name)["name"]) for name in ("replacement", "backup", "exchange"))


def foreign_load(limit: float, patience: float) -> float:
    """Processors used by others, after waiting for at most `patience` seconds for it to fall below `limit`."""
    end = time.monotonic() + patience
    while True:
        before = busy_seconds()
        time.sleep(2)
        load = (busy_seconds() - before) / 2
        if load <= limit or time.monotonic() >= end:
            return load


# --- the lab ------------------------------------------------------------------------------------------------------------


def tunnel(state: lab.LabState, host: str) -> oracle.Tunnel:
    return oracle.Tunnel(f"{state.ssh['user']}@{state.host(host)['address']}", lab.ssh_options(state))


def client(state: lab.LabState, link: oracle.Tunnel) -> redis.Redis:
    return redis.Redis(host=link.host, port=link.port, db=CANARY_DB, password=state.redis_password, socket_timeout=60)


def look(state: lab.LabState, host: str) -> dict[str, Any]:
    destination = f"{state.ssh['user']}@{state.host(host)['address']}"
    done = subprocess.run(["ssh", *lab.ssh_options(state), destination, "python3", "-"], input=LOOK, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchmarkError(f"{host} could not be looked at: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def digest(connection: redis.Redis, key: str) -> str:
    raw = connection.dump(key)
    return hashlib.sha256(raw).hexdigest() if isinstance(raw, bytes) else "missing"


def orders(state: lab.LabState) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{state.exchange_control.rstrip('/')}/log", timeout=10) as reply:
        found: list[dict[str, Any]] = json.load(reply)["orders"]
    return found


def end_connections() -> None:
    """Shared ssh connections outlive a playbook, but not the host that is made anew."""
    for path in (paths.lab_dir() / "cm").iterdir():
        if path.is_socket():
            subprocess.run(["ssh", "-F", "/dev/null", "-o", f"ControlPath={path}", "-O", "exit", "lab"], capture_output=True, timeout=10, check=False)


def blank() -> None:
    end_connections()
    lab.destroy_host("replacement")
    lab.start_host("replacement")


def seed(state: lab.LabState, keys: int, gib: float | None) -> tuple[int, dict[str, str]]:
    with tunnel(state, "titan") as link, client(state, link) as connection:
        if gib:
            # How much memory a key takes is known only by writing some.
            before = int(connection.info("memory")["used_memory"])
            oracle.seed(connection, 50_000)
            keys = round(gib * 2**30 / ((int(connection.info("memory")["used_memory"]) - before) / 50_000))
        seeded = oracle.seed(connection, keys)
        say(f"{keys} keys in {seeded.seconds:.0f} s: {seeded.by_kind}")
        connection.set(CANARY_KEY, json.dumps({"seq": 4711, "at": time.time()}))
        sampled: dict[str, str] = {}
        dice = random.Random(7)
        while len(sampled) < SAMPLED_KEYS:
            number = dice.randrange(keys)
            for kind in ("order", "fill", "book", "stream"):
                key = f"{oracle.SEED_KEY}{kind}:{number}"
                if connection.exists(key):
                    sampled[key] = digest(connection, key)
        return keys, sampled


def backup(state: lab.LabState, folder: Path) -> dict[str, Any]:
    """Take the restore point and return the redis section of its manifest."""
    ansible(folder, "backup", state)
    s3 = hosts.s3_client(state)
    names = [item["Key"] for item in s3.list_objects_v2(Bucket=state.s3["bucket"], Prefix="titan-lab/points/")["Contents"]]
    (name,) = [name for name in names if name.endswith("/manifest.json")]
    manifest: dict[str, Any] = json.loads(s3.get_object(Bucket=state.s3["bucket"], Key=name)["Body"].read())
    return manifest


def ansible(folder: Path, playbook: str, state: lab.LabState, *more: str) -> None:
    root = paths.project_root()
    folder.mkdir(parents=True)
    environment = {**os.environ, "TITAN_DR_RUN_DIR": str(folder), "TITAN_DR_LAB_DIR": str(paths.lab_dir()), "ANSIBLE_NOCOLOR": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    inventory = root / ("inventories/lab" if state.profile == "guide" else "inventories/lab_variant")
    argv = ["ansible-playbook", "-i", str(inventory), str(root / f"playbooks/{playbook}.yml"), *more]
    with (folder / "output.log").open("w") as log:
        code = subprocess.run(argv, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=RUN_TIMEOUT_S, check=False).returncode
    if code:
        raise BenchmarkError(f"{playbook} ended with {code}: {(folder / 'output.log').read_text()[-3000:]}")


# --- the two contestants ------------------------------------------------------------------------------------------------


def collection(state: lab.LabState, folder: Path, began: float, run: Run) -> None:
    ansible(folder, "complete_system_failure", state)
    run.total_s = time.time() - began
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    tasks = [row for row in rows if row["event"] == "task"]
    run.steps = [("start of ansible-playbook", 0.0, rows[0]["at"] - began)]
    run.steps += [(f"{row['name']} [{row['host']}]", row["at"] - row["duration_s"] - began, row["duration_s"]) for row in tasks]
    on_servers = {row["task_id"] for row in rows if row["event"] == "step_start"}
    done = [row["duration_s"] for row in tasks if row["task_id"] in on_servers]
    run.tasks, run.steps_on_servers, run.steps_s = len(tasks), len(done), sum(done)
    resumed = next(row for row in tasks if row.get("titan_dr", {}).get("trading") == "resumed")
    run.to_resume_s = resumed["at"] - began
    run.resume_began_s = run.to_resume_s - resumed["duration_s"]
    report = json.loads((folder / "report.json").read_text())
    if report["result"] != "recovered":
        raise BenchmarkError(f"the report says {report['result']}: {report['message']}")


def script(state: lab.LabState, folder: Path, began: float, run: Run) -> None:
    window = yaml.safe_load((paths.project_root() / "roles/trading_halt/defaults/main.yml").read_text())["trading_halt_resume_window"]
    folder.mkdir(parents=True)
    argv = [sys.executable, str(HERE / "bare_controller.py"), str(paths.lab_dir() / "state.json"), f"bare-{secrets.token_hex(4)}", str(window)]
    with (folder / "output.log").open("w") as log:
        code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=RUN_TIMEOUT_S, check=False).returncode
    run.total_s = time.time() - began
    text = (folder / "output.log").read_text()
    resumed = [float(line.split()[1]) for line in text.splitlines() if line.startswith("resumed ")]
    if code or len(resumed) != 1:
        raise BenchmarkError(f"the script ended with {code}: {text[-3000:]}")
    run.to_resume_s = resumed[0] - began
    run.resume_began_s = run.to_resume_s - 1  # the call was made while the step ran
    for line in text.splitlines():
        if line.startswith("@ "):
            _mark, name, start, end = line.split()
            run.steps.append((name, float(start) - began, float(end) - float(start)))
    run.steps.sort(key=lambda step: step[1])


CONTESTANTS: dict[str, Callable[[lab.LabState, Path, float, Run], None]] = {"collection": collection, "script": script}


def measure(who: str, state: lab.LabState, truth: Truth, folder: Path, options: argparse.Namespace) -> Run:
    blank()
    load = foreign_load(options.quiet, options.patience)
    run = Run(who, 0.0, 0.0, round(load, 2), round(os.getloadavg()[0], 2))
    used, own = busy_seconds(), own_seconds(state)
    began = time.time()
    CONTESTANTS[who](state, folder, began, run)
    run.cpu_s = round(own_seconds(state) - own, 1)
    run.others_cpu_s = round(busy_seconds() - used - run.cpu_s, 1)
    verify(state, truth, began, began + run.resume_began_s)
    say(f"{who}: {run.to_resume_s:.1f} s to trading, {run.total_s:.1f} s in all; {run.cpu_s} processor seconds, others {run.others_cpu_s}")
    return run


def verify(state: lab.LabState, truth: Truth, began: float, resume_began: float) -> None:
    """The same look at the end state for both; BenchmarkError names what differs."""
    seen = look(state, "replacement")
    problems = [f"{name} differs" for name in ("release", "release_content", "config_content", "pm2_content") if seen[name] != truth.look[name]]
    problems += [f"{name} is {status}" for name, status in seen["health"].items() if status != "healthy"]
    problems += [f"{unit} is not enabled and active" for unit, well in seen["units"].items() if not well]
    if seen["latch"] or seen["trading"].get("trading") is not True or seen["trading"].get("status") != "operational":
        problems.append(f"trading is not resumed: latch {seen['latch']}, {seen['trading']}")
    if seen["daemons"] != 1 or seen["failed_units"]:
        problems.append(f"{seen['daemons']} PM2 daemons, failed units: {seen['failed_units'] or 'none'}")
    with tunnel(state, "replacement") as link, client(state, link) as connection:
        size, canary = connection.dbsize(), json.loads(connection.get(CANARY_KEY) or "{}").get("seq")
        wrong = [key for key, value in truth.samples.items() if digest(connection, key) != value]
        persistence = connection.info("persistence")
    if not isinstance(size, int) or size < truth.keys:
        problems.append(f"{size} keys, {truth.keys} expected")
    if canary != truth.canary:
        problems.append(f"canary {canary}, {truth.canary} expected")
    if wrong or len(truth.samples) < SAMPLED_KEYS:
        problems.append(f"{len(wrong)} of {len(truth.samples)} sampled keys differ")
    if persistence["aof_enabled"] != 1 or persistence["aof_last_write_status"] != "ok":
        problems.append("the AOF is not written")
    # The exchanges are the last witness: no order while halted, and some afterwards.
    end = time.time() + ORDER_WITHIN_S
    while not (since := [order for order in orders(state) if order["received"] >= began]) and time.time() < end:
        time.sleep(0.5)
    early = [order for order in since if order["received"] < resume_began]
    if early or not since:
        problems.append(f"{len(early)} orders before the resume, {len(since)} in all")
    if problems:
        raise BenchmarkError(f"the end state is wrong: {'; '.join(problems)}")


# --- the course ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_lab(profile: str) -> Iterator[lab.LabState]:
    folder = tempfile.mkdtemp(prefix="titan-bench-")
    os.environ[paths.LAB_VARIABLE] = folder
    try:
        yield lab.up(profile, say, f"bench-{secrets.token_hex(3)}")
    finally:
        end_all = lab.down()
        say(f"lab removed ({len(end_all)} objects)")
        shutil.rmtree(folder, ignore_errors=True)


def benchmark(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with own_lab(options.profile) as state:
        keys, samples = seed(state, options.keys, options.gib)
        say("taking the restore point")
        manifest = backup(state, folder / "backup")
        data = manifest["redis"]
        expiring = sum(one["expires"] for one in data["keyspace"].values())
        counted = data["keyspace"][f"db{CANARY_DB}"]["keys"] - expiring
        truth = Truth(counted, data["canary"]["seq"], samples, look(state, "titan"), data["size"], data["used_memory"])
        lab.destroy_host("titan")
        end_connections()
        runs: list[Run] = []
        for number in range(options.runs):
            order = ["collection", "script"] if number % 2 == 0 else ["script", "collection"]
            runs += [measure(who, state, truth, folder / f"{number}-{who}", options) for who in order]
        return result(options, keys, truth, manifest, runs, state)


def result(options: argparse.Namespace, keys: int, truth: Truth, manifest: dict[str, Any], runs: list[Run], state: lab.LabState) -> dict[str, Any]:
    times = {who: [run.to_resume_s for run in runs if run.who == who] for who in CONTESTANTS}
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    core = subprocess.run([str(Path(sys.executable).parent / "ansible"), "--version"], capture_output=True, text=True, check=True).stdout.split("\n", 1)[0]
    return {
        "machine": {"processors": os.cpu_count(), "memory_mib": memory, "system": platform.platform(), "runtime": state.engine["runtime"]},
        "versions": {"ansible": core, "python": platform.python_version(), "redis": data_version(manifest), **manifest["versions"]},
        "data": {
            "keys": keys,
            "dump_bytes": truth.dump_bytes,
            "used_memory": truth.used_memory,
            "objects": {kind: entry["size"] for kind, entry in manifest["objects"].items()},
        },
        "runs": [asdict(run) for run in runs],
        "seconds_to_trading": {who: {"min": min(values), "median": statistics.median(values)} for who, values in times.items()},
        "ratio": {
            "min": min(times["collection"]) / min(times["script"]),
            "median": statistics.median(times["collection"]) / statistics.median(times["script"]),
        },
    }


def data_version(manifest: dict[str, Any]) -> str:
    return str(manifest["redis"]["version"])


def table(found: dict[str, Any]) -> str:
    machine, data = found["machine"], found["data"]
    lines = [
        f"machine: {machine['processors']} processors, {machine['memory_mib']} MiB, {machine['system']}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        f"data: {data['keys']} keys, {data['used_memory'] / 2**20:.0f} MiB in memory, dump {data['dump_bytes'] / 2**20:.0f} MiB; objects (MiB): "
        + ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in data["objects"].items()),
        "",
        f"{'run':<14}{'to trading s':>14}{'in all s':>10}{'CPU s':>8}{'others CPU s':>14}{'others before':>15}{'load 1 min':>12}",
    ]
    for run in found["runs"]:
        lines.append(
            f"{run['who']:<14}{run['to_resume_s']:>14.1f}{run['total_s']:>10.1f}{run['cpu_s']:>8.1f}{run['others_cpu_s']:>14.1f}"
            f"{run['foreign_load']:>15.2f}{run['load_average']:>12.2f}"
        )
    for who in CONTESTANTS:
        best = min((run for run in found["runs"] if run["who"] == who), key=lambda run: run["to_resume_s"])
        lines += ["", f"{who}, fastest run: start and seconds of each step of 0.1 s and more"]
        lines += [f"  {start:>7.2f} {duration:>7.2f}  {name}" for name, start, duration in best["steps"] if duration >= 0.1]
    seconds = found["seconds_to_trading"]
    ours = min((run for run in found["runs"] if run["who"] == "collection"), key=lambda run: run["to_resume_s"])
    lines += ["", f"collection, fastest run: {ours['tasks']} tasks; {ours['steps_on_servers']} are its own modules and took {ours['steps_s']:.1f} s,"]
    lines += [f"everything else {ours['to_resume_s'] - ours['steps_s']:.1f} s; more than the script {ours['to_resume_s'] - seconds['script']['min']:.1f} s"]
    lines += ["", f"{'seconds to trading':<22}{'collection':>12}{'script':>10}{'ratio':>8}"]
    for how in ("min", "median"):
        lines.append(f"  {how:<20}{seconds['collection'][how]:>12.1f}{seconds['script'][how]:>10.1f}{found['ratio'][how]:>8.2f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--keys", type=int, default=1_000_000)
    size.add_argument("--gib", type=float, help="memory that the keys take in Redis, instead of their number")
    parser.add_argument("--runs", type=int, default=1, help="pairs, in alternating order")
    parser.add_argument("--profile", choices=["guide"], default="guide", help="the script knows only this one")
    parser.add_argument("--quiet", type=float, default=0.3, help="processors that others may use before a run begins")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for that; then the run begins anyhow, and its row tells")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep outputs, ledgers and reports in this new folder")
    options = parser.parse_args()
    if options.runs < 1 or options.keys < SAMPLED_KEYS:
        parser.error(f"at least one pair and {SAMPLED_KEYS} keys")
    folder = options.logs or Path(tempfile.mkdtemp(prefix="titan-bench-logs-"))
    try:
        found = benchmark(options, folder)
    except (BenchmarkError, lab.LabError, oracle.OracleError) as error:
        say(f"no result: {error}")
        return 1
    finally:
        if not options.logs:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
