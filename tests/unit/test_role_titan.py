# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on which server: the nouns that the role titan derives, as other roles and plays see them, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = [
    {"name": "redis", "kind": "redis", "port": 6379, "server": "titan-data"},
    {"name": "brain", "kind": "pm2", "port": 3000, "server": "titan-core", "depends_on": ["redis"]},
    {"name": "phase", "kind": "pm2", "port": 3000, "server": "titan-phases", "depends_on": ["brain"]},
]
ELSEWHERE = {"titan_redis": {"host": "titan-data"}}
SERVICES = ["/opt/titan/config", "/etc/systemd/system/pm2-titan.service"]


def run(folder: Path, hosts: dict[str, dict[str, Any]], **nouns: Any) -> tuple[dict[str, Any], str]:
    """A role that depends on titan, run on these hosts: what it sees, by host, and the output."""
    role = folder / "roles" / "user"
    for part, content in (
        ("meta", {"dependencies": [{"role": "titan.disaster_recovery.titan"}]}),
        ("tasks", [{"ansible.builtin.copy": {"dest": f"{folder}/{{{{ inventory_hostname }}}}.json", "content": "{{ seen | to_json }}", "mode": "0600"}}]),
    ):
        (role / part).mkdir(parents=True, exist_ok=True)
        (role / part / "main.yml").write_text(yaml.safe_dump(content))
    seen = {name: f"{{{{ {name} }}}}" for name in ("titan_redis_here", "titan_pm2_here", "titan_restore_point_needs", "titan_config_paths")}
    task = {"ansible.builtin.import_role": {"name": "user"}, "vars": {"seen": seen}, "when": "titan_redis_here or titan_pm2_here or true"}
    (folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    known = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "titan_environment_id": "unit", **nouns}
    (folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": known}}))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventory.yml", "play.yml"]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks/collections"), "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in hosts if (folder / f"{name}.json").exists()}, done.stdout + done.stderr


def test_every_role_knows_what_is_on_its_server_and_no_inventory_can_say_otherwise(tmp_path: Path) -> None:
    hosts = {
        "data": {"titan_server": "titan-data"},
        "core": {"titan_server": "titan-core", "titan_redis_here": True, **ELSEWHERE},
        "phases": {"titan_server": "titan-phases", "titan_pm2_here": False, **ELSEWHERE},
    }
    seen, output = run(tmp_path, hosts, titan_components=COMPONENTS)
    services = {"titan_redis_here": False, "titan_pm2_here": True, "titan_restore_point_needs": ["app"], "titan_config_paths": SERVICES}
    data = {"titan_redis_here": True, "titan_pm2_here": False, "titan_restore_point_needs": ["redis"], "titan_config_paths": ["/etc/redis/redis.conf"]}
    assert seen == {"data": data, "core": services, "phases": services}, output


def test_a_titan_on_one_server_has_all_of_it(tmp_path: Path) -> None:
    seen, output = run(tmp_path, {"titan": {}})
    wanted = {"titan_redis_here": True, "titan_pm2_here": True, "titan_restore_point_needs": ["app", "redis"]}
    assert seen == {"titan": {**wanted, "titan_config_paths": ["/etc/redis/redis.conf", *SERVICES]}}, output


@pytest.mark.parametrize(
    ("host", "word"),
    [
        ({**ELSEWHERE}, 'on this server, which is "" by its titan_server'),
        ({"titan_server": "titan-cor", **ELSEWHERE}, 'on this server, which is "titan-cor" by its titan_server'),
        ({"titan_server": "titan-core"}, "titan_redis.host must name the server of Redis"),
        ({"titan_server": "titan-data", "titan_redis": {"host": "titan-data", "config": "/c", "data_dir": "/d"}}, "titan_redis.host must name"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(tmp_path: Path, host: dict[str, Any], word: str) -> None:
    seen, output = run(tmp_path, {"titan": host}, titan_components=COMPONENTS)
    assert seen == {} and word in output.replace('\\"', '"')
