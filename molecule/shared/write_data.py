# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes orders and the canary to the lab's Titan: a restore point without them could not be validated."""

from __future__ import annotations

import tempfile
from pathlib import Path

import redis

from titan_dr import lab
from titan_dr.lab import oracle

state = lab.load_state()
with (
    tempfile.TemporaryDirectory() as folder,
    oracle.Tunnel(f"{state.ssh['user']}@{state.host('titan')['address']}", lab.ssh_options(state)) as tunnel,
    redis.Redis(host=tunnel.host, port=tunnel.port, db=1, password=state.redis_password, socket_timeout=30) as client,
):
    oracle.seed(client, 1000)
    writer = oracle.Writer(tunnel.host, tunnel.port, state.redis_password, 1, Path(folder) / "acknowledged.jsonl")
    writer.start()
    # the canary is the first thing it writes
    writer.wait_acknowledged(20, timeout=30)
    writer.stop()
