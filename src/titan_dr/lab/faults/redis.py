# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis and its data are damaged."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from titan_dr.lab import hosts, patient, profiles
from titan_dr.lab.engine import LabError
from titan_dr.lab.faults.base import ANY, Fault
from titan_dr.lab.state import load_state

# Runs on the server, because Redis listens on its loopback address only and its files belong to it. Reads its orders from standard input.
REDIS_FAULT = r"""
import glob, json, os, shutil, signal, socket, subprocess, sys, time
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

def delete(pattern):
    # as a script does that somebody let loose: a few keys at once, and no command that could be disabled
    gone = 0
    with socket.create_connection(("127.0.0.1", 6379), timeout=5) as link:
        stream = link.makefile("rwb")
        def one(*words):  # this connection's
            stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            stream.flush()
            return reply()
        def reply():
            line = stream.readline()
            if line[:1] == b"*":
                return [reply() for number in range(int(line[1:]))]
            if line[:1] == b"$":
                return stream.read(int(line[1:]) + 2)[:-2] if line[1:2] != b"-" else None
            if not line or line[:1] == b"-":
                raise OSError(line.decode() or "connection closed")
            return line[1:-2]
        one(b"AUTH", order["password"].encode())
        for line in one(b"INFO", b"keyspace").decode().splitlines():
            if not line.startswith("db"):
                continue
            one(b"SELECT", line[2:].partition(":")[0].encode())
            cursor = None
            while cursor != b"0":
                cursor, found = one(b"SCAN", cursor or b"0", b"MATCH", pattern, b"COUNT", b"1000")
                gone += int(one(b"DEL", *found)) if found else 0
    return gone

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

def freeze():
    # until it is killed it writes nothing into what is damaged
    os.kill(int(shown("MainPID")), signal.SIGSTOP)

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
elif action == "aof-tail":
    freeze()
    path = one(increment)
    size = os.path.getsize(path)
    with open(path, "ab") as handle:
        handle.write(bytes(range(128, 256)) * 4)
    found["damage"] = "%s: 512 bytes that are no command appended to %d" % (os.path.basename(path), size)
    found["effect"] = refuses(kill())
elif action == "bitflip-base":
    found["damage"] = flip(one(base))
    found["effect"] = refuses(kill())
elif action == "wrong-owner":
    for path, folders, files in os.walk(folder):
        for name in [path] + [os.path.join(path, item) for item in files]:
            os.chown(name, 0, 0)
        os.chmod(path, 0o700)
    found["damage"] = "%s and all in it belong to root, mode 0700" % folder
    found["effect"] = refuses(kill())
elif action in ("keys-deleted", "flushed"):
    gone = delete(b"titan:orders:*" if action == "keys-deleted" else b"*")
    now = keys()
    if not gone or now + gone // 2 > int(found["keys_before"]):
        sys.exit("no keys are missing: %d deleted, %d of %s there" % (gone, now, found["keys_before"]))
    found["damage"] = "%d keys deleted by a script" % gone
    found["effect"] = "Redis answers and holds %d of %s keys" % (now, found["keys_before"])
elif action == "emptied":
    freeze()
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    before = kill()
    now = until("Redis does not answer again", lambda: int(shown("NRestarts")) > before and "%d" % keys())
    if int(now) * 2 > int(found["keys_before"]):
        sys.exit("Redis has not lost its keys: %s of %s" % (now, found["keys_before"]))
    found["damage"] = "everything in %s removed" % folder
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
    """Do this to the Redis of the server that has it; it fails when the effect cannot be seen."""
    state = load_state()
    nouns = patient.titan_vars(state.profile)["titan_redis"]
    order = {"action": action, "password": state.redis_password, "data_dir": nouns["data_dir"], "unit": nouns["unit"]}
    server = profiles.find(state.profile).data
    done = hosts.exec(server, ["/usr/bin/python3", "-c", REDIS_FAULT], input=json.dumps(order), timeout=150, check=False)
    if done.returncode != 0:
        raise LabError(f"the fault {action} did not take effect: {(done.stderr or done.stdout).strip()[-400:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _redis_fault(name: str, summary: str, **more: Any) -> Fault:
    return Fault(name, summary, partial(to_redis, name), partial(to_redis, "prepare"), profiles=ANY, **more)


FAULTS = (
    _redis_fault("bitflip", "bits flipped in the append only file and in the dump; Redis is killed and does not start again"),
    _redis_fault("truncated-base", "the base of the append only file is cut in half; Redis is killed and does not start again"),
    _redis_fault("manifest-missing", "the manifest of the append only file is gone; Redis is killed and starts EMPTY", trades_on=True),
    _redis_fault("hung", "Redis lives and answers nothing"),
    _redis_fault("aof-tail", "bytes that are no command behind the last one of the append only file; Redis is killed and does not start again"),
    _redis_fault("bitflip-base", "bits flipped in the base of the append only file alone; Redis is killed and does not start again"),
    _redis_fault("wrong-owner", "the data belongs to root; Redis is killed and does not start again"),
    _redis_fault(
        "keys-deleted",
        "a script deletes every order: Redis is well, its data is not",
        trades_on=True,
        # a person says that Redis is to be restored although it is well, and to when
        extra_vars={"database_corruption_confirm": True, "redis_restore_to": "{{ titan_dr_incident_at }}"},
    ),
    _redis_fault("flushed", "a script deletes every key: Redis answers, and is empty", trades_on=True),
    _redis_fault("emptied", "append only file and dump are removed, Redis is killed and starts EMPTY", trades_on=True),
)
