# SPDX-License-Identifier: GPL-3.0-or-later
"""The counterparts of the guide's scripts, each by itself on real hosts: those that look on the production server, those that build on a blank one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_runs import Run, sh, titan_with_restore_points

from titan_dr.lab.state import LabState

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabState]:
    with titan_with_restore_points(tmp_path_factory.mktemp("lab"), 1) as raised:
        yield raised


@pytest.mark.parametrize("name", ["validate_config", "test_exchange_connectivity", "network_diagnostics"])
def test_what_looks_passes_on_a_healthy_titan(state: LabState, tmp_path: Path, name: str) -> None:
    run = Run(tmp_path / "run", name)
    assert run.rc == 0 and run.changed("titan") == 0, run.output


def test_what_looks_fails_on_a_broken_one(state: LabState, tmp_path: Path) -> None:
    sh("titan", "cp -a /opt/titan/config/brain.config.json /root/kept && echo '{' >> /opt/titan/config/brain.config.json")
    try:
        assert Run(tmp_path / "config", "validate_config").rc != 0
    finally:
        sh("titan", "cp -a /root/kept /opt/titan/config/brain.config.json && rm /root/kept")
    sh("titan", f"ip route replace blackhole {state.host('exchange')['address']}/32")
    try:
        for name in ("test_exchange_connectivity", "network_diagnostics"):
            run = Run(tmp_path / name, name)
            assert run.rc != 0 and "route" in run.output, run.output
    finally:
        sh("titan", f"ip route flush root {state.host('exchange')['address']}/32 type blackhole")


def test_what_builds_works_step_by_step_and_twice(state: LabState, tmp_path: Path) -> None:
    proofs = {
        "provision_infrastructure": "id titan && test -d /opt/titan/releases && grep -q titan-lab /var/lib/titan-dr/owner.json",
        "setup_dependencies": "redis-server --version && node --version && test -f /opt/pm2/node_modules/pm2/bin/pm2",
        "restore_config": "test -s /opt/titan/config/brain.config.json && test -s /etc/redis/redis.conf",
        "restore_application": "test -s /opt/titan/current/package.json",
    }
    for name, proof in proofs.items():
        run = Run(tmp_path / name, name)
        assert run.rc == 0 and run.changed("replacement") > 0, run.output
        sh("replacement", proof)
    for name in proofs:
        again = Run(tmp_path / f"{name}-again", name)
        assert again.rc == 0 and again.changed("replacement") == 0, again.output
    # nothing was started, and nothing trades beside the production server
    assert sh("replacement", "pgrep --uid titan || echo nobody") == "nobody\n"
    assert sh("replacement", "pgrep -x redis-server || echo nobody") == "nobody\n"


def test_they_are_refused_while_a_recovery_holds_the_server(state: LabState, tmp_path: Path) -> None:
    lease = '{"epoch": 9, "run_id": "r9", "attempt": "a", "scenario": "complete_system_failure", "incident_at": 1, "since": 1, "owner": {}, "state": "held"}'
    sh("replacement", f"cp -a /var/lib/titan-dr/lease.json /root/kept 2>/dev/null || rm -f /root/kept; echo '{lease}' > /var/lib/titan-dr/lease.json")
    try:
        run = Run(tmp_path / "run", "provision_infrastructure")
        assert run.rc != 0 and "r9" in run.output, run.output
    finally:
        sh("replacement", "rm /var/lib/titan-dr/lease.json; if [ -f /root/kept ]; then mv /root/kept /var/lib/titan-dr/lease.json; fi")
