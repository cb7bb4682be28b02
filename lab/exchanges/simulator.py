# SPDX-License-Identifier: GPL-3.0-or-later
"""Two exchanges and a control API in one process: `simulator.py --keys keys.json`. See README.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web
from binance import Binance
from bybit import Bybit, uuid_text
from dialects import Call, Dialect, Keys, Reply
from venue import CERTIFICATES, INSTRUMENTS, Faults, Fill, Order, OrderLog, OrderRequest, Position, Rejected, Venue, decimal

MAINTENANCE = "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body><h1>System upgrade in progress</h1></body></html>\n"
TICK = 1.0


class VenueServer:
    """REST and WebSocket of one venue, with its faults in front."""

    def __init__(self, venue: Venue, dialect: Dialect, log: OrderLog, certificates: dict[str, ssl.SSLContext]) -> None:
        self.venue, self.dialect, self.log, self.certificates = venue, dialect, log, certificates
        self.sockets: set[web.WebSocketResponse] = set()
        self.runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=1)

    def tls(self) -> ssl.SSLContext | None:
        """A listening context that takes the certificate of the moment for each handshake; None: plain http."""
        if not self.certificates:
            return None
        context = server_context()

        def choose(tls: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            tls.context = self.certificates[self.venue.faults.tls or "good"]

        context.sni_callback = choose
        return context

    def switch(self, faults: Faults) -> None:
        if faults.tls and not self.certificates:
            raise ValueError("tls: this simulator speaks plain http (no --tls-dir)")
        changed = faults.tls != self.venue.faults.tls
        self.venue.faults = faults
        if changed and self.runner.server is not None:
            for connection in self.runner.server.connections:  # an open connection would hide the other certificate
                connection.force_close()

    def now(self) -> float:
        """The venue's own clock."""
        return time.time() + self.venue.faults.clock_offset

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
            if request.path in self.dialect.position_paths and faults.positions_error:
                return web.Response(status=500, text="Internal Server Error")
            if request.path in self.dialect.position_paths and faults.positions_html:
                return web.Response(text=MAINTENANCE, content_type="text/html")
            if request.path == self.dialect.ws_path or request.path.startswith(self.dialect.ws_path + "/"):
                return await self._websocket(request)
            reply = self.dialect.answer(call, self.venue, self.now())
            outcome, reason = ("rejected", reply.error) if reply.error else ("accepted", "")
            if faults.drop == "reply":
                reason = (reason + " drop: reply").strip()
                return await self._drop(request, "close")
            text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
            return web.json_response(text=text, status=reply.status)
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
                if faults.drop != "hang" and not faults.ws_silent:
                    now = self.now()
                    for symbol in INSTRUMENTS:
                        await socket.send_json(self.dialect.tick(self.venue, symbol, now))
                await asyncio.sleep(TICK)
        except ConnectionError:
            return  # the client went away between two ticks


def told_order(order: Order) -> dict[str, Any]:
    return {
        "orderId": order.order_id, "clientOrderId": order.client_order_id, "symbol": order.symbol, "side": order.side, "type": order.order_type,
        "qty": str(order.qty), "price": str(order.price), "average": str(order.average), "status": order.status, "at": order.at,
    }  # fmt: skip


def told_fill(fill: Fill) -> dict[str, Any]:
    order = fill.order
    return {
        "id": fill.fill_id, "orderId": order.order_id, "clientOrderId": order.client_order_id, "symbol": order.symbol, "side": order.side,
        "qty": str(order.qty), "price": str(fill.price), "fee": str(fill.fee), "at": fill.at,
    }  # fmt: skip


class Control:
    """What drills and tests use. Never subject to faults."""

    def __init__(self, servers: dict[str, VenueServer], log: OrderLog) -> None:
        self.servers, self.log, self.started = servers, log, time.time()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/log", self.get_log)
        app.router.add_get("/state", self.get_state)
        app.router.add_post("/reset", self.reset)
        app.router.add_post("/orders", self.place)
        app.router.add_post("/positions", self.position)
        app.router.add_post("/settings", self.settings)
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
                "open_orders": [told_order(order) for order in venue.open_orders()],
                "fills": [told_fill(fill) for fill in venue.fills],
                "faults": asdict(venue.faults),
                "websockets": len(server.sockets),
            }
        return web.json_response({"venues": venues, "last_seq": self.log.last_seq, "started": self.started, "now": time.time()})

    async def reset(self, _request: web.Request) -> web.Response:
        for server in self.servers.values():
            server.switch(Faults())
            server.venue.reset()
        self.log.reset()
        return web.json_response({"last_seq": self.log.last_seq})

    async def _asked(self, request: web.Request, *names: str) -> tuple[VenueServer, dict[str, Any]]:
        """The venue and the rest of a body in which nothing may stand that is not understood."""
        body = json.loads(await request.read())
        if not isinstance(body, dict) or body.get("venue") not in self.servers:
            raise ValueError("expected a JSON object with a venue of " + ", ".join(self.servers))
        if unknown := body.keys() - {"venue", *names}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
        return self.servers[body.pop("venue")], body

    async def place(self, request: web.Request) -> web.Response:
        """An order from outside, as by hand on the venue's own pages: no log has it, the venue's orders, fills and positions do."""
        try:
            server, body = await self._asked(request, "symbol", "side", "qty", "price", "type", "clientOrderId")
            text = {name: str(value) for name, value in body.items()}
            order = OrderRequest(
                text.get("clientOrderId", ""), text.get("symbol", ""), text.get("side", ""), text.get("type", ""), text.get("qty", ""), text.get("price", "")
            )
            return web.json_response(told_order(server.venue.place(order, server.now())))
        except (ValueError, Rejected) as error:
            return web.json_response({"error": str(error)}, status=400)

    async def position(self, request: web.Request) -> web.Response:
        """Set a position as it is, without an order or a fill that would explain it."""
        try:
            server, body = await self._asked(request, "symbol", "size", "entryPrice")
            if body.get("symbol") not in INSTRUMENTS:
                raise ValueError("symbol: expected one of " + ", ".join(INSTRUMENTS))
            size = decimal(body.get("size"), "size: expected a signed number")
            entry = decimal(body.get("entryPrice", server.venue.price(body["symbol"], server.now()) if size else 0), "entryPrice: expected a number")
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        server.venue.positions[body["symbol"]] = Position(size, entry)
        return web.json_response({"symbol": body["symbol"], "size": str(size), "entryPrice": str(entry)})

    async def settings(self, request: web.Request) -> web.Response:
        """Change leverage and margin mode of a symbol, or the position mode of the venue."""
        try:
            server, body = await self._asked(request, "symbol", "leverage", "margin", "hedged")
            if body.get("symbol", "BTCUSDT") not in INSTRUMENTS:
                raise ValueError("symbol: expected one of " + ", ".join(INSTRUMENTS))
            if decimal(body.get("leverage", 10), "leverage: expected a number") < 1 or body.get("margin", "cross") not in ("cross", "isolated"):
                raise ValueError("leverage: at least 1; margin: cross or isolated")
            if ("leverage" in body or "margin" in body) != ("symbol" in body) or not isinstance(body.get("hedged", False), bool):
                raise ValueError("expected {venue, symbol, leverage and/or margin} and/or {venue, hedged: true or false}")
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        venue = server.venue
        venue.hedged = body.get("hedged", venue.hedged)
        if "symbol" in body:
            setting = venue.setting(body["symbol"])
            setting.leverage, setting.margin = str(body.get("leverage", setting.leverage)), body.get("margin", setting.margin)
        return web.json_response({"hedged": venue.hedged, "symbols": {symbol: asdict(setting) for symbol, setting in venue.settings.items()}})

    async def faults(self, request: web.Request) -> web.Response:
        """GET tells, PUT replaces the whole set by the body, DELETE switches all off."""
        server = self.servers.get(request.match_info["venue"])
        if server is None:
            return web.json_response({"error": "unknown venue; known: " + ", ".join(self.servers)}, status=404)
        if request.method == "PUT":
            try:
                server.switch(Faults.parse(json.loads(await request.read())))
            except ValueError as error:
                return web.json_response({"error": str(error)}, status=400)
        elif request.method == "DELETE":
            server.switch(Faults())
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


def server_context() -> ssl.SSLContext:
    """Without resumption: a client that comes back is shown the certificate of the moment, not spared it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    return context


def load_certificates(folder: Path | None) -> dict[str, ssl.SSLContext]:
    contexts: dict[str, ssl.SSLContext] = {}
    if folder is None:
        return contexts
    for name in ("good", *CERTIFICATES):
        contexts[name] = server_context()
        try:
            contexts[name].load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"{folder / name}.pem, .key: {error}") from None
    return contexts


async def serve(args: argparse.Namespace) -> None:
    keys, certificates = load_keys(args.keys), load_certificates(args.tls_dir)
    log = OrderLog(args.log_file)
    servers = {
        "binance": VenueServer(Venue("binance", unique_client_ids=False), Binance(keys["binance"]), log, certificates),
        "bybit": VenueServer(Venue("bybit", unique_client_ids=True, id_text=uuid_text), Bybit(keys["bybit"]), log, certificates),
    }
    control = web.AppRunner(Control(servers, log).app(), access_log=None, shutdown_timeout=1)
    sites = {
        "binance": (servers["binance"].runner, args.binance_bind or args.bind, args.binance_port, servers["binance"].tls()),
        "bybit": (servers["bybit"].runner, args.bybit_bind or args.bind, args.bybit_port, servers["bybit"].tls()),
        "control": (control, args.bind, args.control_port, None),
    }
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ports: dict[str, Any] = {}
    try:
        for name, (runner, address, port, tls) in sites.items():
            await runner.setup()
            await web.TCPSite(runner, address, port, ssl_context=tls).start()
            ports[name] = runner.addresses[0][1]
        print("listening " + json.dumps(ports), flush=True)
        await stop.wait()
    finally:
        for runner, *_ in sites.values():
            await runner.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description="Binance-like and Bybit-like exchanges with switchable faults.")
    parser.add_argument("--keys", type=Path, required=True, help="JSON file {venue: {api_key, api_secret}}")
    parser.add_argument("--log-file", type=Path, help="append every order request to this file as JSON lines")
    parser.add_argument("--bind", default="0.0.0.0", help="address to listen on (default: all)")
    parser.add_argument("--binance-bind", help="another address for this venue alone")
    parser.add_argument("--bybit-bind", help="another address for this venue alone")
    parser.add_argument("--tls-dir", type=Path, help="folder of {good,expired,not_yet_valid,unknown_ca}.{pem,key}: the venues speak https, not http")
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
