# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import (
    MAX_BODY,
    NoAnswer,
    ProbeSpecError,
    Refused,
    Request,
    Response,
    call,
    check_call,
    check_spec,
    http_open,
    judge_response,
    probe,
    shown_url,
    worst,
)

URL = "http://127.0.0.1:3000/health"


def answer(body: object, status: int = 200) -> Response:
    return Response(status, "application/json", body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("found", "expected"),
    [([], "unknown"), (["pass"], "pass"), (["pass", "unknown"], "unknown"), (["unknown", "fail", "pass"], "fail"), (["PASS"], "unknown")],
)
def test_worst(found: list[str], expected: str) -> None:
    assert worst(found) == expected


@pytest.mark.parametrize(
    ("body", "expect", "verdict"),
    [
        ({"status": "healthy"}, {"status": ["healthy", "ok"]}, "pass"),
        ({"status": "degraded"}, {"status": ["healthy", "ok"]}, "fail"),
        ({"status": "Healthy"}, {"status": ["healthy"]}, "fail"),
        ({}, {"status": ["healthy"]}, "unknown"),
        ({"status": "healthy"}, {}, "pass"),
        ({"dependencies": {"redis": "connected"}}, {"dependencies.redis": ["connected"]}, "pass"),
        ({"dependencies": {"redis": "disconnected"}}, {"dependencies.redis": ["connected"]}, "fail"),
        ({"dependencies": "redis"}, {"dependencies.redis": ["connected"]}, "unknown"),
        ({"dependencies": None}, {"dependencies.redis": [None]}, "unknown"),
        ({"a.b": 1, "a": {"b": 2}}, {"a.b": [1]}, "pass"),
        ({"a": {"b.c": 1}}, {"a.b.c": [1]}, "pass"),
        ({"a.b": {"c": 1}}, {"a.b.c": [1]}, "pass"),
        ({"trading": False}, {"trading": [False]}, "pass"),
        ({"trading": 0}, {"trading": [False]}, "fail"),
        ({"trading": "false"}, {"trading": [False]}, "fail"),
        ({"n": 1}, {"n": [True]}, "fail"),
        ({"n": 1.0}, {"n": [1]}, "pass"),
        ({"n": None}, {"n": [None]}, "pass"),
        ({"a": "x"}, {"a": ["y"], "b": [1]}, "fail"),
        ([], {"a": [1]}, "unknown"),
        ([{"a": 1}], {"a": [1]}, "unknown"),
        ("healthy", {}, "unknown"),
        (None, {}, "unknown"),
        (b"", {}, "unknown"),
        (b"OK", {}, "unknown"),
        (b" <!doctype html><title>healthy</title>", {}, "unknown"),
        (b'{"trading": true, "trading": false}', {"trading": [False]}, "unknown"),
        (b'{"n": NaN}', {}, "unknown"),
        (b'\xff{"status": "healthy"}', {}, "unknown"),
        (b"[" * 100_000, {}, "unknown"),
        (b'{"status": "healthy"}' + b" " * MAX_BODY, {"status": ["healthy"]}, "unknown"),
    ],
)
def test_rule(body: object, expect: dict[str, list[Any]], verdict: str) -> None:
    found, evidence = judge_response(answer(body), [200], expect)
    assert found == verdict and evidence


@pytest.mark.parametrize("body", [{"status": "healthy"}, b"<html>", b""])
def test_a_wrong_status_fails_whatever_the_body_says(body: object) -> None:
    assert judge_response(answer(body, 503), [200], {"status": ["healthy"]})[0] == "fail"
    assert judge_response(answer({"status": "healthy"}, 503), [200, 503], {"status": ["healthy"]})[0] == "pass"


def test_evidence_shows_expected_paths_only_and_no_secret_of_the_address() -> None:
    assert shown_url("https://user:word@host:1/x?token=t#f") == "https://host:1/x"
    spec = {"name": "x", "url": "http://user:word@127.0.0.1/x?token=t", "expect": {"long": ["y"]}}
    result = probe(spec, 1, lambda _request: answer({"long": "z" * 500, "password": "hush"}))
    assert result.verdict == "fail" and len(result.evidence) < 200
    assert not any(secret in result.evidence for secret in ("word", "token", "hush"))
    quoted = probe({"url": URL}, 1, lambda _request: answer(b"hush, not JSON"))
    assert quoted.verdict == "unknown" and "hush" not in quoted.evidence


def test_no_answer_is_unknown() -> None:
    def refuse(_request: Request) -> Response:
        raise NoAnswer("refused")

    result = probe({"name": "brain", "url": URL}, 1, refuse)
    assert (result.name, result.verdict) == ("brain", "unknown") and "refused" in result.evidence
    assert result.gate("x") == {"name": "x", "verdict": "unknown", "evidence": result.evidence}


@pytest.mark.parametrize(
    "spec",
    [
        {}, {"url": 3}, {"url": "/health"}, {"url": "file:///etc/passwd"}, {"url": "http://"}, {"url": URL, "status": []}, {"url": URL, "status": [True]},
        {"url": URL, "status": 200}, {"url": URL, "expect": ["status"]}, {"url": URL, "expect": {"status": []}}, {"url": URL, "expect": {"status": "ok"}},
    ],
)
def test_a_wrong_description_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ProbeSpecError):
        check_spec(spec)


HALT = {"url": URL, "method": "POST", "body": {"reason": "recovery"}, "confirm": {"url": URL, "expect": {"trading": [False]}}}


@pytest.mark.parametrize("confirm", [None, {}, {"url": URL}, {"url": URL, "expect": {}}])
def test_a_call_that_nobody_could_confirm_is_refused(confirm: object) -> None:
    with pytest.raises(ProbeSpecError, match="confirm"):
        check_call({**HALT, "confirm": confirm})


class Service:
    """Answers a halt call; stops trading after a number of looks."""

    def __init__(self, looks: float, status: int = 200, hangs: bool = False) -> None:
        self.looks, self.status, self.hangs, self.now, self.posts = looks, status, hangs, 0.0, [b""]

    def __call__(self, request: Request) -> Response:
        if request.method == "POST":
            self.posts.append(request.body or b"")
            if self.hangs:
                self.now += request.timeout
                raise NoAnswer("no complete answer")
            return answer({}, self.status)
        self.looks -= 1
        return answer({"trading": self.looks > 0})

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def halt(self, timeout: float = 5) -> tuple[str, str]:
        result = call(HALT, timeout, self, lambda: self.now, self.sleep)
        return result.verdict, result.evidence


@pytest.mark.parametrize(
    ("service", "verdict"),
    [
        (Service(0), "pass"),
        (Service(3), "pass"),
        (Service(float("inf")), "fail"),
        (Service(0, status=404), "pass"),
        (Service(float("inf"), status=404), "fail"),
        (Service(2, hangs=True), "pass"),
        (Service(float("inf"), hangs=True), "fail"),
    ],
)
def test_a_call_is_judged_by_its_effect(service: Service, verdict: str) -> None:
    found, evidence = service.halt()
    assert found == verdict and service.now <= 5
    assert ("not confirmed" in evidence) is (verdict == "fail")
    assert json.loads(service.posts[-1]) == {"reason": "recovery"} and len(service.posts) == 2


def test_a_call_without_time_is_unknown() -> None:
    assert Service(0, hangs=True).halt(0)[0] == "unknown"


# --- the real network, on loopback ----------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
            return
        body = b'{"status": "healthy"}' if self.path != "/huge" else b"{" + b" " * (MAX_BODY * 4)
        self.send_response(503 if self.path == "/sick" else 200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("path", "verdict"), [("/good", "pass"), ("/sick", "fail"), ("/redirect", "fail"), ("/huge", "unknown")])
def test_http(base: str, path: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert probe({"url": base + path, "expect": {"status": ["healthy"]}}, 5).verdict == verdict


def test_http_post(base: str) -> None:
    assert http_open(Request("POST", f"{base}/good", b"{}", 5)).status == 200


def serve_raw(talk: Callable[[socket.socket], None]) -> str:
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with listener, contextlib.suppress(OSError), listener.accept()[0] as link:
            talk(link)

    threading.Thread(target=work, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_nobody_listens_is_not_the_same_as_no_answer() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    for url, expected in ((refused, Refused), (serve_raw(lambda link: None), NoAnswer), (serve_raw(lambda link: time.sleep(4)), NoAnswer)):
        with pytest.raises(NoAnswer) as caught:
            http_open(Request("GET", url, None, 0.4))
        assert caught.type is expected, url


def test_refused_reset_mute_and_dripping_are_unknown_in_time() -> None:
    def drip(link: socket.socket) -> None:
        link.sendall(b"HTTP/1.1 200 OK\r\n")
        for _second in range(100):
            link.sendall(b"X-Drip: 1\r\n")
            time.sleep(0.05)

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    urls = [refused, serve_raw(lambda link: None), serve_raw(lambda link: time.sleep(4)), serve_raw(drip), serve_raw(lambda link: link.sendall(b"hush"))]
    for url in urls:
        began = time.monotonic()
        result = probe({"url": url}, 0.4)
        assert result.verdict == "unknown" and time.monotonic() - began < 3.5, result
        assert "hush" not in result.evidence
