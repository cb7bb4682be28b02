# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis and its data are damaged."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from titan_dr.lab import hosts, patient
from titan_dr.lab.engine import LabError
from titan_dr.lab.faults.base import VICTIM, Fault
from titan_dr.lab.state import load_state

# Runs on the server, because Redis listens on its loopback address only and its files belong to it. Reads its orders from standard input.
REDIS_FAULT = r"""
import glob, json, os, signal, socket, subprocess, sys, time
order = json.load(sys.stdin)
folder, unit = order["data_dir"], order["unit"]

def shown(key):
    return subprocess.run(["systemctl", "show", "--value", "--property", key, unit], capture_output=True, text=True, check=True).stdout.strip()

def ask(*commands, timeout=1.0):
    # the last line of the last answer; OSError when nobody answers
    with socket.create_connection(("127.0.0.1", 6379), timeout=timeout) as link:
        stream = link.makefile("rwb")
        for command in (("AUTH", order["password"]),) + commands:
            stream.write(b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in command))
            stream.flush()
            line = stream.readline()
            if not line or line[:1] == b"-":
                raise OSError(line.decode() or "connection closed")
            if line[:1] == b"$":
                line = stream.read(int(line[1:]) + 2)
        return line.decode()

def keys():
    return sum(int(part.split(",")[0]) for part in ask(("INFO", "keyspace")).split("keys=")[1:])

def until(what, check, seconds=20):
    end = time.monotonic() + seconds
    while True:
        try:
            found = check()
        except OSError as error:
            found, what = None, what + ": " + str(error) if str(error) not in what else what
        if found:
            return found
        if time.monotonic() > end:
            sys.exit("not within %d s: %s" % (seconds, what))
        time.sleep(0.05)

def idle():
    return "in_progress:1" not in (text := ask(("INFO", "persistence"))) and "scheduled:1" not in text

def one(pattern):
    found = glob.glob(os.path.join(folder, pattern))
    if len(found) != 1:
        sys.exit("%d files %s, one expected" % (len(found), pattern))
    return found[0]

def kill():
    before, pid = int(shown("NRestarts")), int(shown("MainPID"))
    os.kill(pid, signal.SIGKILL)
    return before

def refuses(before):
    # started again by systemd, gone again, and for a second nobody has answered
    until("systemd has not started Redis again", lambda: int(shown("NRestarts")) > before or shown("ActiveState") == "failed")
    quiet = time.monotonic() + 1.0
    while time.monotonic() < quiet:
        try:
            ask(("PING",))
            sys.exit("Redis still answers")
        except OSError as error:
            said = str(error)
        time.sleep(0.1)
    return "it does not start: unit %s/%s after %s restarts; %s" % (shown("ActiveState"), shown("SubState"), shown("NRestarts"), said)

def flip(path):
    size, at = os.path.getsize(path), []
    with open(path, "r+b") as handle:
        for offset in sorted({size * part // 9 for part in range(1, 9)}) if size else []:
            handle.seek(offset)
            byte = handle.read(1)[0]
            handle.seek(offset)
            handle.write(bytes([byte ^ 0x10]))
            at.append(offset)
    return "%s: a bit flipped at %s of %d bytes" % (os.path.basename(path), ", ".join(map(str, at)), size)

base, increment, manifest = "appendonlydir/*.base.rdb", "appendonlydir/*.incr.aof", "appendonlydir/*.manifest"
action, found = order["action"], {}
if action == "prepare":
    # a base that holds the data, and a dump beside it: as on any server that has run for a while
    for command in ("BGREWRITEAOF", "BGSAVE"):
        ask((command,))
        until("still busy with " + command, idle, 60)
    print(json.dumps({}))
    sys.exit()
found["keys_before"] = str(keys())
if action == "bitflip":
    found["damage"] = "; ".join([flip(path) for path in (one(base), one(increment), one("dump.rdb"))])
    found["effect"] = refuses(kill())
elif action == "truncated-base":
    path = one(base)
    size = os.path.getsize(path)
    os.truncate(path, size // 2)
    found["damage"] = "%s: cut from %d to %d bytes" % (os.path.basename(path), size, size // 2)
    found["effect"] = refuses(kill())
elif action == "manifest-missing":
    path = one(manifest)
    os.unlink(path)
    found["damage"] = os.path.basename(path) + " removed"
    before = kill()
    now = until("Redis does not answer again", lambda: int(shown("NRestarts")) > before and "%d" % keys())
    if int(now) * 2 > int(found["keys_before"]):
        sys.exit("Redis has not lost its keys: %s of %s" % (now, found["keys_before"]))
    found["effect"] = "it started by itself with %s of %s keys" % (now, found["keys_before"])
elif action == "hung":
    os.kill(int(shown("MainPID")), signal.SIGSTOP)
    found["damage"] = "process %s stopped" % shown("MainPID")
    try:
        ask(("PING",))
        sys.exit("Redis still answers")
    except OSError as error:
        found["effect"] = "it does not answer: %s; unit %s" % (error, shown("ActiveState"))
else:
    sys.exit("no such action: " + action)
print(json.dumps(found))
"""


def to_redis(action: str) -> dict[str, str]:
    """Do this to the server's Redis; it fails when the effect cannot be seen."""
    state = load_state()
    nouns = patient.titan_vars(state.profile)["titan_redis"]
    order = {"action": action, "password": state.redis_password, "data_dir": nouns["data_dir"], "unit": nouns["unit"]}
    done = hosts.exec(VICTIM, ["/usr/bin/python3", "-c", REDIS_FAULT], input=json.dumps(order), timeout=150, check=False)
    if done.returncode != 0:
        raise LabError(f"the fault {action} did not take effect: {(done.stderr or done.stdout).strip()[-400:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _redis_fault(name: str, summary: str, **more: Any) -> Fault:
    return Fault(name, summary, partial(to_redis, name), partial(to_redis, "prepare"), **more)


FAULTS = (
    _redis_fault("bitflip", "bits flipped in the append only file and in the dump; Redis is killed and does not start again"),
    _redis_fault("truncated-base", "the base of the append only file is cut in half; Redis is killed and does not start again"),
    _redis_fault("manifest-missing", "the manifest of the append only file is gone; Redis is killed and starts EMPTY", trades_on=True),
    _redis_fault("hung", "Redis lives and answers nothing"),
)
