# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a small Titan below a directory, with a git history as a backup makes it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config

CANARY = "CANARY-7d1f9b"
ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


class World:
    """Files are written with `write`, committed with `commit`, and the history packed as the server keeps it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.home, self.etc, self.state = root / "home", root / "etc", root / "state"
        self.repository, self.bundle = root / "backups" / "config", self.state / "config.bundle"
        for folder in (self.home, self.etc, self.state, self.repository):
            folder.mkdir(parents=True, exist_ok=True)
        self.brain, self.phase, self.secrets = str(self.home / "brain.json"), str(self.home / "phase.json"), str(self.home / "secrets.json")
        self.redis, self.ecosystem = str(self.etc / "redis.conf"), str(self.home / "ecosystem.config.js")
        self.commits = 0
        self.documents: dict[str, Any] = {
            self.brain: {"environment": "prod", "port": 3000, "secretsFile": self.secrets, "maxQty": 0.01, "note": "first"},
            self.phase: {"environment": "prod", "port": 3001, "everyMs": 4000},
            self.secrets: {"redisPassword": CANARY, "exchanges": {"binance": {"apiKey": CANARY, "apiSecret": CANARY}}},
        }
        for path in self.documents:
            self.edit(path)
        self.write(self.redis, f"port 6379\nrequirepass {CANARY}\ndir {root}\n")
        self.write(self.ecosystem, "module.exports = {\n  apps: ['titan-brain', 'titan-phase'],\n};\n")
        os.chmod(self.secrets, 0o600)

    def write(self, path: str, text: str | bytes) -> None:
        Path(path).write_bytes(text.encode() if isinstance(text, str) else text)
        if path == self.redis:
            os.chmod(path, 0o640)

    def edit(self, path: str, **values: Any) -> None:
        self.documents[path].update(values)
        self.write(path, json.dumps(self.documents[path], indent=1) + "\n")

    def raw(self, **more: Any) -> dict[str, Any]:
        return {
            "environment_id": "prod",
            "paths": [self.redis, str(self.home)],
            "components": [
                {"name": "redis", "kind": "redis", "port": 6379},
                {"name": "brain", "kind": "pm2", "app": "titan-brain", "depends_on": ["redis"], "port": 3000, "config": self.brain},
                {"name": "phase", "kind": "pm2", "app": "titan-phase", "depends_on": ["brain"], "port": 3001, "config": self.phase},
            ],
            "server": "",
            "venues": [
                {
                    "name": "binance",
                    "rest": "https://fapi.binance.com",
                    "keys": {"file": self.secrets, "api_key": "exchanges.binance.apiKey", "api_secret": "exchanges.binance.apiSecret"},
                }
            ],
            "schemas": {},
            "rules": [{"at": "/environment", "equals": "prod"}],
            "approved": [],
            "redis": {"config": self.redis, "data_dir": str(self.root), "unit": "redis-server", "user": self.user},
            "redis_password": "",
            "user": self.user,
            "pm2_home": str(self.root / ".pm2"),
            "ecosystem": self.ecosystem,
            "history": str(self.bundle),
            "repository": str(self.repository),
            **more,
        }

    def settings(self, **more: Any) -> _config.Settings:
        return _config.parse_settings(self.raw(**more))

    # --- the history, as restore_point_create makes it

    def git(self, *words: str) -> str:
        argv = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main", "-C", str(self.repository), *words]
        # a second between two commits, so that they have an order
        date = f"{1767225600 + 60 * self.commits} +0000"
        return subprocess.run(argv, check=True, capture_output=True, text=True, env={**ENVIRONMENT, "GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date}).stdout

    def commit(self) -> str:
        """A backup of the files as they are; returns the start of its name."""
        self.commits += 1
        if not (self.repository / ".git").exists():
            self.git("init", "--quiet")
        for name in os.listdir(self.repository):
            if name != ".git":
                shutil.rmtree(self.repository / name)
        for path in (self.redis, str(self.home)):
            target = str(self.repository) + path
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.isdir(path):
                shutil.copytree(path, target)
            else:
                shutil.copy2(path, target)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", f"Restore point 20260101T00000{self.commits}Z-abcdef")
        self.git("bundle", "create", "--quiet", str(self.bundle), "main")
        return self.git("rev-parse", "main").strip()[:12]


def fine(data: bytes) -> tuple[str, str]:
    return "pass", ""


TOOLS = _config.Tools(fine, fine, fine)
