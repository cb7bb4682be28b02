# SPDX-License-Identifier: GPL-3.0-or-later
"""A running exchange simulator, and what a client of the real venues would send it."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

EXCHANGES = Path(__file__).resolve().parents[2] / "lab" / "exchanges"
KEYS = {"binance": {"api_key": "bin-key", "api_secret": "bin-secret"}, "bybit": {"api_key": "byb-key", "api_secret": "byb-secret"}}


@dataclass
class Simulator:
    ports: dict[str, int]
    log_file: Path
    process: subprocess.Popen[str]

    def raw(
        self, server: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None, timeout: float = 5
    ) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[server], timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type", ""), response.read().decode()
        finally:
            connection.close()

    def control(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        got, _, text = self.raw("control", method, path, None if body is None else json.dumps(body))
        assert got == status, text
        return json.loads(text)

    def faults(self, venue: str, **faults: Any) -> None:
        self.control("PUT", f"/faults/{venue}", faults)

    def orders(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.control("GET", "/log")["orders"]
        return entries

    def binance(self, method: str, path: str, key: str = "bin-key", secret: str = "bin-secret", skew: float = 0, timeout: float = 5, **params: Any) -> Any:
        query = urlencode(params | {"timestamp": int((time.time() + skew) * 1000)})
        query += "&signature=" + hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
        status, _, text = self.raw("binance", method, f"{path}?{query}", headers={"X-MBX-APIKEY": key}, timeout=timeout)
        return status, json.loads(text)

    def bybit(self, method: str, path: str, key: str = "byb-key", secret: str = "byb-secret", skew: float = 0, timeout: float = 5, **params: Any) -> Any:
        payload = urlencode(params) if method == "GET" else json.dumps(params)
        stamp = str(int((time.time() + skew) * 1000))
        sign = hmac.new(secret.encode(), (stamp + key + "5000" + payload).encode(), hashlib.sha256).hexdigest()
        headers = {"X-BAPI-API-KEY": key, "X-BAPI-TIMESTAMP": stamp, "X-BAPI-RECV-WINDOW": "5000", "X-BAPI-SIGN": sign, "Content-Type": "application/json"}
        url, body = (f"{path}?{payload}", None) if method == "GET" else (path, payload)
        status, _, text = self.raw("bybit", method, url, body, headers, timeout)
        return status, json.loads(text)

    def buy_binance(self, client_id: str, **more: Any) -> Any:
        order = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.5", "newClientOrderId": client_id}
        return self.binance("POST", "/fapi/v1/order", **(order | more))

    def buy_bybit(self, client_id: str, **more: Any) -> Any:
        order = {"category": "linear", "symbol": "BTCUSDT", "side": "Buy", "orderType": "Market", "qty": "0.5", "orderLinkId": client_id}
        return self.bybit("POST", "/v5/order/create", **(order | more))


def start(folder: Path, *options: str) -> Simulator:
    keys, log_file = folder / "keys.json", folder / "orders.jsonl"
    keys.write_text(json.dumps(KEYS))
    command = [sys.executable, str(EXCHANGES / "simulator.py"), "--keys", str(keys), "--log-file", str(log_file), "--bind", "127.0.0.1", *options]
    for name in ("binance", "bybit", "control"):
        command += [f"--{name}-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening "), line
    return Simulator(json.loads(line.removeprefix("listening ")), log_file, process)


def end(simulator: Simulator) -> None:
    simulator.process.terminate()
    assert simulator.process.wait(10) == 0
    assert simulator.process.stdout is not None
    simulator.process.stdout.close()
