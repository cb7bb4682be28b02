# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of the bare recovery: choose the restore point, sign addresses, feed bare_recovery.sh to the server.

A process of its own, so that its start is measured like the start of ansible-playbook. It prints one line `@ <step> <start> <end>` for each step and
`resumed <epoch>`. Usage: bare_controller.py STATE_FILE RUN_ID WINDOW, where the state is the lab's.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.time()
HERE = Path(__file__).resolve().parent
# The stores, the manifest and its seal are read by the collection's own code: on both sides the same work on the same bytes.
sys.path.insert(0, str(HERE.parents[1] / "playbooks/collections"))

ENVIRONMENT_ID = "titan-lab"
CANARY = {"key": "titan:dr:canary", "db": 1}
POINTS = 5


def ssh(state: dict[str, Any], host: str, connect_s: int) -> subprocess.Popen[str]:
    access = state["ssh"]
    options = {
        "IdentityFile": access["private_key_file"],
        "UserKnownHostsFile": access["known_hosts"],
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": str(connect_s),
        "LogLevel": "ERROR",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    argv = ["ssh", "-F", "/dev/null", *words, f"{access['user']}@{state['hosts'][host]['address']}", "bash", "-s"]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)


def send(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def parameters(state: dict[str, Any], run_id: str, window: str) -> dict[str, str]:
    """Read both stores, take the newest restore point whose seal opens, and sign an address for each of its objects."""
    from ansible_collections.titan.disaster_recovery.plugins.module_utils import _stores

    s3 = {"name": "cloud", "kind": "s3", "prefix": "", **state["s3"]}
    offhost = {"name": "offhost", "kind": "sftp", **state["sftp"]}
    identity = state["age"]["identity"]
    manifests, silent = _stores.read_all([s3, offhost], ENVIRONMENT_ID, POINTS)
    plan, notes, _locked = _stores.plan(manifests, ENVIRONMENT_ID, identity)
    if not plan["redis"] or "cloud" not in plan["redis"][0]["stores"]:
        raise SystemExit(f"no usable restore point in the S3 store: {notes}, {silent}")
    newest = {kind: candidates[0] for kind, candidates in plan.items()}
    redis = newest["redis"]["details"]
    found = {
        "RUN_ID": run_id,
        "ENVIRONMENT_ID": ENVIRONMENT_ID,
        "AGE_IDENTITY": identity,
        "WINDOW": window,
        "RELEASE": newest["app"]["details"]["path"],
        "SERVER_OS": f"{redis['server']['os']} {redis['server']['release']}",
        "SERVER_ARCHITECTURE": redis["server"]["architecture"],
        "DUMP_SIZE": str(redis["size"]),
        "USED_MEMORY": str(redis["used_memory"]),
        "DATABASES": str(redis["databases"]),
        "CANARY_KEY": CANARY["key"],
        "CANARY_DB": str(CANARY["db"]),
        "EXPECTED": json.dumps({name: redis[name] for name in ("keyspace", "expired", "canary")}),
    }
    client = _stores.s3_client(s3)
    for kind, candidate in newest.items():
        key = _stores.object_path(s3, ENVIRONMENT_ID, candidate["object"]["key"])
        found[f"URL_{kind}"] = client.generate_presigned_url("get_object", Params={"Bucket": s3["bucket"], "Key": key}, ExpiresIn=3600)
        found[f"SHA_{kind}"] = candidate["object"]["sha256"]
    return found


def main() -> int:
    state = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run_id, window = sys.argv[2:4]
    script = (HERE / "bare_recovery.sh").read_text(encoding="utf-8")
    server = ssh(state, "replacement", 8)
    old = ssh(state, "titan", 2)
    try:
        # Connecting and reading the script goes on while the stores are asked.
        send(server, script)
        began = time.time()
        assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in parameters(state, run_id, window).items())
        print(f"@ controller_start {BEGAN} {began}\n@ choose_restore_point {began} {time.time()}", flush=True)
        send(server, f"{assignments}export EXPECTED\nCONTROLLER_TIME={int(time.time())}\nrecover </dev/null\n")
        try:
            old.communicate(f"{script}\nRUN_ID={shlex.quote(run_id)}\nhalt </dev/null\n")
        except BrokenPipeError:
            old.wait()
        # 0: it was halted. 255: nobody answers; it is dead. Anything else: it lives and may trade.
        if old.returncode not in (0, 255):
            raise SystemExit(f"the failed server answers, and its halt ended with {old.returncode}")
        print(f"@ failed_server_settled {began} {time.time()}", flush=True)
        server.communicate("resume </dev/null\n")
    except BrokenPipeError:
        server.wait()
    finally:
        for process in (server, old):
            if process.poll() is None:
                process.kill()
                process.wait()
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
