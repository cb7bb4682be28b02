# SPDX-License-Identifier: GPL-3.0-or-later
"""Two exchanges and a control API in one process: `simulator.py --keys keys.json`. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web
from dialects import Binance, Bybit, Call, Dialect, Keys, Reply
from venue import BASE_PRICES, Faults, OrderLog, Venue

MAINTENANCE = "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body><h1>System upgrade in progress</h1></body></html>\n"
TICK = 1.0


class VenueServer:
    """REST and WebSocket of one venue, with its faults in front."""

    def __init__(self, venue: Venue, dialect: Dialect, log: OrderLog) -> None:
        self.venue, self.dialect, self.log = venue, dialect, log
        self.sockets: set[web.WebSocketResponse] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        app.on_shutdown.append(self.close_sockets)
        return app

    async def close_sockets(self, _app: web.Application) -> None:
        for socket in list(self.sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = time.time()
        body = (await request.read()).decode("utf-8", "replace")
        call = Call(request.method, request.path, request.rel_url.raw_query_string, body, request.headers)
        order = self.dialect.order_request(call)
        entry = self.log.arrived(self.venue.name, order, received, request.remote or "") if order else None
        reply: Reply | None = None
        # the first word of what happens to an order; a request cancelled while it waits keeps it
        outcome, reason = "faulted", "interrupted"
        try:
            if self.venue.faults.delay:
                await asyncio.sleep(self.venue.faults.delay)
            faults = self.venue.faults
            if faults.drop in ("close", "hang"):
                reason = f"drop: {faults.drop}"
                return await self._drop(request, faults.drop)
            if faults.rate_limit:
                reason = f"rate_limit: {faults.rate_limit}"
                limited = self.dialect.rate_limited(faults.rate_limit)
                return web.json_response(limited.body, status=limited.status, headers={"Retry-After": "30"})
            if faults.html:
                reason = "html"
                return web.Response(text=MAINTENANCE, content_type="text/html")
            if request.path == self.dialect.ws_path or request.path.startswith(self.dialect.ws_path + "/"):
                return await self._websocket(request)
            reply = self.dialect.answer(call, self.venue, time.time())
            outcome, reason = ("rejected", reply.error) if reply.error else ("accepted", "")
            if faults.drop == "reply":
                reason = (reason + " drop: reply").strip()
                return await self._drop(request, "close")
            return web.json_response(reply.body, status=reply.status)
        finally:
            if entry is not None:
                self.log.finish(entry, outcome, reason)

    async def _drop(self, request: web.Request, mode: str) -> web.Response:
        while mode == "hang" and self.venue.faults.drop == "hang" and request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.1)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)  # never arrives: the connection is gone

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if self.venue.faults.reject_upgrade:
            return web.Response(status=403, text="Forbidden")
        socket = web.WebSocketResponse(autoping=False)  # pings are answered by hand, so that a hung venue leaves them unanswered
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="Expected a WebSocket upgrade")
        await socket.prepare(request)
        self.sockets.add(socket)
        ticker = asyncio.create_task(self._ticks(socket, request))
        try:
            async for message in socket:
                if self.venue.faults.drop == "hang":
                    continue
                if message.type == WSMsgType.PING:
                    await socket.pong(message.data)
                elif message.type == WSMsgType.TEXT:
                    try:
                        answer = self.dialect.ws_answer(json.loads(message.data))
                    except ValueError:
                        answer = None
                    if answer is not None:
                        await socket.send_json(answer)
        finally:
            ticker.cancel()
            self.sockets.discard(socket)
        return socket

    async def _ticks(self, socket: web.WebSocketResponse, request: web.Request) -> None:
        try:
            while not socket.closed:
                faults = self.venue.faults
                if faults.drop in ("close", "reply") and request.transport is not None:
                    request.transport.abort()
                    return
                if faults.reject_upgrade:  # an open stream would hide the fault
                    await socket.close(code=WSCloseCode.GOING_AWAY)
                    return
                if faults.drop != "hang":
                    now = time.time()
                    for symbol in BASE_PRICES:
                        await socket.send_json(self.dialect.tick(self.venue, symbol, now))
                await asyncio.sleep(TICK)
        except ConnectionError:
            return  # the client went away between two ticks


class Control:
    """What drills and tests use. Never subject to faults."""

    def __init__(self, servers: dict[str, VenueServer], log: OrderLog) -> None:
        self.servers, self.log, self.started = servers, log, time.time()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/log", self.get_log)
        app.router.add_get("/state", self.get_state)
        app.router.add_post("/reset", self.reset)
        app.router.add_route("*", "/faults/{venue}", self.faults)
        return app

    async def get_log(self, request: web.Request) -> web.Response:
        """`?since=<seq>` and `?venue=<name>` narrow it."""
        since, name = request.query.get("since", "0"), request.query.get("venue")
        if not since.isdigit() or (name is not None and name not in self.servers):
            return web.json_response({"error": "since must be a number, venue one of " + ", ".join(self.servers)}, status=400)
        orders = [entry for entry in self.log.entries if entry["seq"] > int(since) and name in (None, entry["venue"])]
        return web.json_response({"orders": orders, "last_seq": self.log.last_seq, "now": time.time()})

    async def get_state(self, _request: web.Request) -> web.Response:
        venues = {}
        for name, server in self.servers.items():
            venue = server.venue
            venues[name] = {
                "balance": str(venue.balance),
                "positions": {symbol: {"size": str(p.size), "entryPrice": str(p.entry_price)} for symbol, p in venue.positions.items()},
                "open_orders": [
                    {"clientOrderId": order.client_order_id, "symbol": order.symbol, "side": order.side, "qty": str(order.qty), "price": str(order.price)}
                    for order in venue.open_orders()
                ],
                "faults": asdict(venue.faults),
                "websockets": len(server.sockets),
            }
        return web.json_response({"venues": venues, "last_seq": self.log.last_seq, "started": self.started, "now": time.time()})

    async def reset(self, _request: web.Request) -> web.Response:
        for server in self.servers.values():
            server.venue.reset()
        self.log.reset()
        return web.json_response({"last_seq": self.log.last_seq})

    async def faults(self, request: web.Request) -> web.Response:
        """GET tells, PUT replaces the whole set by the body, DELETE switches all off."""
        server = self.servers.get(request.match_info["venue"])
        if server is None:
            return web.json_response({"error": "unknown venue; known: " + ", ".join(self.servers)}, status=404)
        if request.method == "PUT":
            try:
                server.venue.faults = Faults.parse(json.loads(await request.read()))
            except ValueError as error:
                return web.json_response({"error": str(error)}, status=400)
        elif request.method == "DELETE":
            server.venue.faults = Faults()
        elif request.method != "GET":
            return web.json_response({"error": "GET, PUT or DELETE"}, status=405)
        return web.json_response(asdict(server.venue.faults))


def load_keys(path: Path) -> dict[str, Keys]:
    raw = json.loads(path.read_text(encoding="utf-8"))
    try:
        keys = {name: Keys(raw[name]["api_key"], raw[name]["api_secret"]) for name in ("binance", "bybit")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected {{venue: {{api_key, api_secret}}}} for binance and bybit; {error} is missing or wrong") from None
    if not all(isinstance(text, str) and text for pair in keys.values() for text in (pair.api_key, pair.api_secret)):
        raise ValueError(f"{path}: a key or a secret is empty")
    return keys


async def serve(args: argparse.Namespace) -> None:
    keys = load_keys(args.keys)
    log = OrderLog(args.log_file)
    servers = {
        "binance": VenueServer(Venue("binance", unique_client_ids=False), Binance(keys["binance"]), log),
        "bybit": VenueServer(Venue("bybit", unique_client_ids=True), Bybit(keys["bybit"]), log),
    }
    apps: dict[str, tuple[web.Application, int]] = {
        "binance": (servers["binance"].app(), args.binance_port),
        "bybit": (servers["bybit"].app(), args.bybit_port),
        "control": (Control(servers, log).app(), args.control_port),
    }
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runners: list[web.AppRunner] = []
    ports: dict[str, Any] = {}
    try:
        for name, (app, port) in apps.items():
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, args.bind, port).start()
            ports[name] = runner.addresses[0][1]
        print("listening " + json.dumps(ports), flush=True)
        await stop.wait()
    finally:
        for runner in runners:
            await runner.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description="Binance-like and Bybit-like exchanges with switchable faults.")
    parser.add_argument("--keys", type=Path, required=True, help="JSON file {venue: {api_key, api_secret}}")
    parser.add_argument("--log-file", type=Path, help="append every order request to this file as JSON lines")
    parser.add_argument("--bind", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--binance-port", type=int, default=9001)
    parser.add_argument("--bybit-port", type=int, default=9002)
    parser.add_argument("--control-port", type=int, default=9003)
    args = parser.parse_args()
    try:
        asyncio.run(serve(args))
    except (OSError, ValueError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
