# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell somebody, without a recovery that waits for it: this file is also the program that does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import open_url

NOTIFY_FILE = "notify.jsonl"
TIMEOUT = 2.0


def _add(path: Path, row: Mapping[str, Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def place(url: str) -> str:
    """Only its host: the rest of the address of a webhook is often its key."""
    try:
        return urllib.parse.urlsplit(url).hostname or "a webhook without a host"
    except ValueError:
        return "a webhook with an unreadable address"


def send(hooks: Sequence[Mapping[str, Any]], body: Mapping[str, Any], directory: Path) -> None:
    """Starts the telling and returns. The addresses go over a pipe: on a command line everybody could read them."""
    job = json.dumps({"urls": [str(hook["url"]) for hook in hooks], "body": dict(body), "path": str(directory / NOTIFY_FILE)})
    _add(directory / NOTIFY_FILE, {"event": body.get("event"), "waiting": len(hooks)})
    process = subprocess.Popen(
        [sys.executable, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, text=True
    )
    if process.stdin is not None:
        process.stdin.write(job)
        process.stdin.close()


def _post(url: str, body: bytes) -> str:
    """Why it was not told, or nothing."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        return "only http and https are known"
    answer = open_url(url, data=body, headers={"Content-Type": "application/json"}, method="POST", timeout=TIMEOUT)
    try:
        return "" if 200 <= answer.status < 300 else f"status {answer.status}"
    finally:
        answer.close()


def main() -> None:
    job = json.load(sys.stdin)
    for url in job["urls"]:
        try:
            error = _post(url, json.dumps(job["body"]).encode())
        except Exception as problem:
            # its text may quote the address
            error = f"{type(problem).__name__} {getattr(problem, 'code', '')}".strip()
        _add(Path(job["path"]), {"event": job["body"].get("event"), "to": place(url), "error": error})


def told(directory: Path, wait_s: float = 0.0, last: bool = False, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """Notes on what was told and what was not, in the order in which it was known. Waits at most so long for what is under way."""
    waited = 0.0
    while True:
        try:
            rows = [json.loads(line) for line in (directory / NOTIFY_FILE).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            rows = []
        done = [row for row in rows if "to" in row]
        missing = sum(row.get("waiting", 0) for row in rows) - len(done)
        if missing <= 0 or waited >= wait_s:
            break
        sleep(0.1)
        waited += 0.1
    notes = [f"{row['event']} was told to {row['to']}" if not row["error"] else f"{row['event']} was NOT told to {row['to']}: {row['error']}" for row in done]
    return notes + ([f"{missing} of the notifications had no answer at the end of the run"] if last and missing > 0 else [])


if __name__ == "__main__":
    main()
