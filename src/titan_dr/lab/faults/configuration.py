# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration is damaged, or says what it must not say."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from titan_dr.lab import hosts, patient
from titan_dr.lab.engine import LabError
from titan_dr.lab.faults.base import VICTIM, Fault
from titan_dr.lab.state import load_state

# Runs on the server. Reads its orders from standard input; says what it did and what came of it, and no value of any file.
CONFIG_FAULT = r"""
import glob, json, os, signal, subprocess, sys, time
order = json.load(sys.stdin)
action, found = order["action"], {}
trader, middle, leaf = order["trader"], order["middle"], order["leaf"]

def read(path):
    with open(path, "rb") as handle:
        return handle.read()

def write(path, data):
    # in place, as an editor or a copy would: owner and mode stay
    with open(path, "r+b") as handle:
        handle.write(data)
        handle.truncate()

def edit(path, change):
    text = read(path).decode()
    changed = change(text)
    if changed == text:
        sys.exit("nothing to change in " + path)
    write(path, changed.encode())

def changed(path, change):
    # a value in the document, as a person would change it: the rest of the text stays
    document = json.loads(read(path))
    change(document)
    write(path, (json.dumps(document, indent=2) + "\n").encode())

def pid_of(app):
    # of the newest process: PM2 leaves the files of dead ones
    pids = [int(read(path)) for path in glob.glob(os.path.join(order["pm2_home"], "pids", app + "-*.pid")) if read(path).strip().isdigit()]
    alive = [pid for pid in pids if os.path.exists("/proc/%d" % pid)]
    return max(alive, default=0)

def listens(port):
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in open(table).read().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False

def until(what, check, seconds=20):
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            sys.exit("not within %d s: %s" % (seconds, what))
        time.sleep(0.05)

def kill(component):
    pid = pid_of(component["app"])
    if not pid:
        sys.exit("no process of " + component["app"])
    os.kill(pid, signal.SIGKILL)
    until("%s still listens" % component["app"], lambda: not listens(component["port"]), 5)

def stays_down(component):
    # PM2 has tried more than once, and nothing listens
    end = time.monotonic() + 4
    while time.monotonic() < end:
        if listens(component["port"]):
            sys.exit(component["app"] + " came up with it")
        time.sleep(0.1)
    found["effect"] = component["app"] + " does not start with it"

def comes_back(component):
    until("%s does not listen again" % component["app"], lambda: listens(component["port"]))
    found["effect"] = component["app"] + " was started with it and runs"

def refused(path):
    try:
        json.loads(read(path))
    except ValueError:
        found["effect"] = "no parser takes it; the services run on with what they have loaded"
        return
    sys.exit(path + " still parses")

def restart_redis():
    subprocess.run(["systemctl", "restart", "--no-block", order["unit"]], check=True)

if action == "invalid-json":
    edit(trader["config"], lambda text: text.replace(",\n", "\n", 1))
    found["damage"] = trader["config"] + ": a comma is missing; the service was killed"
    kill(trader)
    stays_down(trader)
elif action == "truncated":
    data = read(leaf["config"])
    write(leaf["config"], data[: len(data) // 2])
    found["damage"] = "%s: cut from %d to %d bytes" % (leaf["config"], len(data), len(data) // 2)
    refused(leaf["config"])
elif action == "missing":
    os.unlink(middle["config"])
    found["damage"] = middle["config"] + " is gone"
    if not listens(middle["port"]):
        sys.exit(middle["app"] + " does not run on")
    found["effect"] = "the service runs on with what it has loaded, and would not start again"
elif action == "duplicate-keys":
    edit(trader["config"], lambda text: text.replace("{\n", '{\n  "maxQty": 5,\n', 1))
    edit(leaf["config"], lambda text: text.replace('"priority": %d' % json.loads(text)["generate"]["priority"], '"priority": NaN', 1))
    found["damage"] = "%s: a name twice; %s: NaN" % (trader["config"], leaf["config"])
    found["effect"] = "%d names maxQty" % read(trader["config"]).decode().count('"maxQty"')
elif action == "position-limit":
    changed(trader["config"], lambda document: document.update(maxQty=document["maxQty"] * 1000))
    found["damage"] = trader["config"] + ": maxQty times 1000; the service was killed"
    kill(trader)
    comes_back(trader)
elif action == "other-environment":
    def other(document):
        document["environment"] = "titan-staging"
        document["exchanges"]["binance"].update(rest="https://testnet.binancefuture.com", ws="wss://stream.binancefuture.com/ws")
        document["exchanges"]["bybit"].update(rest="https://api-testnet.bybit.com", ws="wss://stream-testnet.bybit.com/v5/public/linear")
    changed(trader["config"], other)
    found["damage"] = trader["config"] + ": that of another environment, with the addresses of test exchanges"
    found["effect"] = "environment " + json.loads(read(trader["config"]))["environment"]
elif action == "placeholder-secret":
    def unfilled(document):
        document["exchanges"]["binance"]["apiSecret"] = "${BINANCE_API_SECRET}"
    changed(order["secrets"], unfilled)
    found["damage"] = order["secrets"] + ": a placeholder instead of a key"
    found["effect"] = "%d placeholder in it" % read(order["secrets"]).count(b"${")
elif action == "secret-mode":
    os.chmod(order["secrets"], 0o644)
    found["damage"] = order["secrets"] + ": mode 0644"
    found["effect"] = "mode %o" % (os.stat(order["secrets"]).st_mode & 0o777)
elif action == "wrong-redis-port":
    edit(order["redis"], lambda text: text.replace("\nport 6379\n", "\nport 6380\n", 1))
    restart_redis()
    until("Redis does not listen on 6380", lambda: listens(6380) and not listens(6379))
    found["damage"] = order["redis"] + ": another port; Redis was restarted"
    found["effect"] = "Redis listens on port 6380"
elif action == "redis-conf-broken":
    edit(order["redis"], lambda text: text.replace("\nmaxclients", "\nmaxclien", 1))
    restart_redis()
    until("Redis still listens", lambda: not listens(6379), 10)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        if listens(6379):
            sys.exit("Redis came up with it")
        time.sleep(0.1)
    found["damage"] = order["redis"] + ": half a directive; Redis was restarted"
    found["effect"] = "Redis does not start"
elif action == "uncommitted-edit":
    edit(leaf["config"], lambda text: text.replace('"everyMs": %d' % json.loads(text)["generate"]["everyMs"], '"everyMs": 3777', 1))
    data = read(middle["config"])
    write(middle["config"], data[: len(data) - 40])
    found["damage"] = "%s: cut off; beside it a good edit of %s that no backup has" % (middle["config"], leaf["config"])
    refused(middle["config"])
elif action == "all-revisions-bad":
    data = read(trader["config"])
    write(trader["config"], data[: len(data) // 2])
    for path in (order["history"], os.path.join(order["repository"], ".git", "HEAD")):
        write(path, b"damaged\n")
    found["damage"] = trader["config"] + ": cut off; the history on the server is damaged too"
    refused(trader["config"])
else:
    sys.exit("no such action: " + action)
print(json.dumps(found))
"""

# Runs on the backup host: a bit of every copy of the configuration flips, and the other store is silent.
STORE_FAULT = r"""
import glob, subprocess, sys
paths = glob.glob("/backups/*/points/*/config.tar.zst.age")
for path in paths:
    with open(path, "r+b") as handle:
        handle.seek(400)
        byte = handle.read(1)[0]
        handle.seek(400)
        handle.write(bytes([byte ^ 1]))
if not paths:
    sys.exit("no restore point to damage")
subprocess.run(["systemctl", "stop", "seaweedfs"], check=True)
print(len(paths))
"""


def order_of(action: str) -> dict[str, Any]:
    """What the fault needs to know of this Titan: who trades, who stands between, and one that nobody depends on."""
    titan = patient.titan_vars(load_state().profile)
    services = [item for item in titan["titan_components"] if item["kind"] == "pm2" and item.get("port") and item.get("config")]
    if len(services) < 3:
        raise LabError("the inventory names no configuration file for three services, so there is nothing to damage")
    folder = Path(titan["titan_ecosystem"]).parent
    return {
        "action": action,
        "trader": services[0],
        "middle": services[1],
        "leaf": services[-1],
        "secrets": str(folder / "secrets.json"),
        "redis": titan["titan_redis"]["config"],
        "unit": titan["titan_redis"]["unit"],
        "pm2_home": titan["titan_pm2_home"],
        "history": "/var/lib/titan-dr/config.bundle",
        "repository": "/backups/config",
    }


def to_configuration(action: str) -> dict[str, str]:
    """Do this to the server's configuration; it fails when the effect cannot be seen."""
    done = hosts.exec(VICTIM, ["/usr/bin/python3", "-c", CONFIG_FAULT], input=json.dumps(order_of(action)), timeout=60, check=False)
    if done.returncode != 0:
        raise LabError(f"the fault {action} did not take effect: {(done.stderr or done.stdout).strip()[-400:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def nowhere_good() -> dict[str, str]:
    """No copy of the configuration is left that could be used."""
    found = to_configuration("all-revisions-bad")
    done = hosts.exec("backup", ["/usr/bin/python3", "-c", STORE_FAULT], timeout=60, check=False)
    if done.returncode != 0:
        raise LabError(f"the stores could not be damaged: {(done.stderr or done.stdout).strip()[-400:]}")
    return {**found, "stores": f"{done.stdout.strip()} restore points with a flipped bit, the other store stopped"}


def _fault(name: str, summary: str, **more: Any) -> Fault:
    return Fault(name, summary, partial(to_configuration, name), **more)


FAULTS = (
    _fault("invalid-json", "a comma is missing in the configuration of the trading service, which does not start any more"),
    _fault("truncated", "a configuration file was cut off in the middle of a write; the services run on", trades_on=True),
    _fault("missing", "a configuration file is gone; its service runs on and would not start again", trades_on=True),
    _fault("duplicate-keys", "a name that occurs twice in one file, NaN in another; the services run on", trades_on=True),
    _fault("position-limit", "the position limit times 1000: every parser takes it, and the trading service runs with it", trades_on=True),
    _fault("other-environment", "the configuration of another environment: its name, and the addresses of test exchanges", trades_on=True),
    _fault("placeholder-secret", "a placeholder instead of an exchange key", trades_on=True),
    _fault("secret-mode", "anybody may read the secrets", trades_on=True),
    _fault("wrong-redis-port", "Redis was restarted with another port", trades_on=True),
    _fault("redis-conf-broken", "half a directive in redis.conf; Redis does not start any more", trades_on=True),
    _fault("uncommitted-edit", "a file that is cut off beside a good edit that no backup has", trades_on=True),
    Fault(
        "all-revisions-bad",
        "a damaged file, and no copy of it anywhere that could be used",
        nowhere_good,
        trades_on=True,
        expect="halted",
        cause="No proven version of the configuration was found",
    ),
)
