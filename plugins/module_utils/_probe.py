# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ask a service over HTTP and judge the answer: pass, fail or unknown, with the evidence.

The expectation rule is pure; the network is behind one function, C(http_open), that tests replace.
"""
from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

PASS, FAIL, UNKNOWN = "pass", "fail", "unknown"
MAX_BODY = 256 * 1024
_POLL = 0.2


class ProbeSpecError(ValueError):
    """What to ask is described wrongly."""


class NoAnswer(Exception):
    """The service gave no usable answer: refused, reset, timed out."""


class Refused(NoAnswer):
    """Nobody listens there."""


@dataclass(frozen=True)
class Verdict:
    """One judged check."""

    name: str
    verdict: str
    evidence: str

    def gate(self, name: str | None = None) -> dict[str, str]:
        """Return the verdict in the shape of the ledger."""
        return {"name": name or self.name, "verdict": self.verdict, "evidence": self.evidence}


@dataclass(frozen=True)
class Request:
    """One request, ready to be sent."""

    method: str
    url: str
    body: bytes | None
    timeout: float


@dataclass(frozen=True)
class Response:
    """One answer; the body is at most MAX_BODY + 1 bytes long, so that too long can be told."""

    status: int
    content_type: str
    body: bytes


Opener = Callable[[Request], Response]


def worst(verdicts: Iterable[str]) -> str:
    """Combine verdicts: one fail is a fail, one unknown is unknown, and nothing at all is unknown."""
    found = list(verdicts)
    if FAIL in found:
        return FAIL
    return PASS if found and all(verdict == PASS for verdict in found) else UNKNOWN


# --- the expectation rule -------------------------------------------------------------------------------------------

_MISSING = object()


def lookup(document: object, dotted: str) -> object:
    """Find a dotted path; a key that itself contains dots wins over the nested reading."""
    if not isinstance(document, Mapping):
        return _MISSING
    if dotted in document:
        return document[dotted]
    head, _dot, tail = dotted.partition(".")
    while tail:
        if head in document:
            found = lookup(document[head], tail)
            if found is not _MISSING:
                return found
        more, _dot, tail = tail.partition(".")
        head = f"{head}.{more}"
    return _MISSING


def _same(found: object, acceptable: object) -> bool:
    """Compare like JSON does: true is not 1, but 1 is 1.0."""
    if isinstance(found, bool) or isinstance(acceptable, bool):
        return isinstance(found, bool) and isinstance(acceptable, bool) and found == acceptable
    return found == acceptable


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def judge_document(document: object, expect: Mapping[str, list[Any]]) -> tuple[str, str]:
    """Judge a JSON document; a missing path is unknown, a value that is not acceptable is a fail."""
    if not isinstance(document, Mapping):
        return UNKNOWN, "the body is not a JSON object"
    verdicts, parts = [PASS], []
    for dotted, acceptable in expect.items():
        found = lookup(document, dotted)
        if found is _MISSING:
            verdicts.append(UNKNOWN)
            parts.append(f"{dotted} is missing")
        elif any(_same(found, value) for value in acceptable):
            parts.append(f"{dotted}={_show(found)}")
        else:
            verdicts.append(FAIL)
            parts.append(f"{dotted}={_show(found)}, expected {' or '.join(_show(value) for value in acceptable)}")
    return worst(verdicts), "; ".join(parts) or "a JSON object"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_body(body: bytes) -> object:
    """Parse strictly; a key that occurs twice says two things at once and is refused. Raises ValueError."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def judge_response(response: Response, status: list[int], expect: Mapping[str, list[Any]]) -> tuple[str, str]:
    """Judge an answer: status first, then the body, which has to be a JSON object whatever is expected in it."""
    try:
        if len(response.body) > MAX_BODY:
            raise ValueError(f"longer than {MAX_BODY} bytes")
        document = parse_body(response.body)
    except ValueError as error:
        kind = "HTML or XML" if response.body.lstrip()[:1] == b"<" else "not JSON"
        # The text of a decoder error is kept out: it may quote the body.
        verdict, seen = UNKNOWN, f"the body is {kind}" if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else f"the body is not usable: {error}"
    else:
        verdict, seen = judge_document(document, expect)
    if response.status not in status:
        return FAIL, f"status {response.status}, expected {' or '.join(map(str, status))}; {seen}"
    return verdict, f"status {response.status}; {seen}"


# --- what to ask ----------------------------------------------------------------------------------------------------


def shown_url(url: str) -> str:
    """Return the address without user, password, query and fragment, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_spec(spec: Mapping[str, Any], what: str = "probe") -> None:
    """Refuse a description that cannot be asked or that could not fail."""
    url = spec.get("url")
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ProbeSpecError(f"{what}: url: must be an http or https address")
    status = spec.get("status", [200])
    if not isinstance(status, list) or not status or not all(isinstance(code, int) and not isinstance(code, bool) for code in status):
        raise ProbeSpecError(f"{what}: status: must be a list of HTTP status codes that is not empty")
    expect = spec.get("expect") or {}
    if not isinstance(expect, Mapping):
        raise ProbeSpecError(f"{what}: expect: must map a dotted path to acceptable values")
    for dotted, acceptable in expect.items():
        if not isinstance(acceptable, list) or not acceptable:
            raise ProbeSpecError(f"{what}: expect.{dotted}: must be a list of acceptable values that is not empty")


def check_call(spec: Mapping[str, Any], what: str = "call") -> None:
    """Refuse a call whose effect nobody could confirm."""
    check_spec({"url": spec.get("url"), "status": spec.get("status", [200])}, what)
    confirm = spec.get("confirm")
    if not isinstance(confirm, Mapping):
        raise ProbeSpecError(f"{what}: confirm: is needed, an answer to the call alone proves nothing")
    check_spec(confirm, f"{what}: confirm")
    if not confirm.get("expect"):
        raise ProbeSpecError(f"{what}: confirm.expect: must not be empty, or the confirmation could not fail")


# --- the network ----------------------------------------------------------------------------------------------------


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer to be judged, not an order to ask somebody else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _open(request: Request) -> Response:
    # No proxy: a proxy of the environment would answer in the place of the service.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _StayHere())
    headers = {"Accept": "application/json", "Connection": "close"}
    if request.body is not None:
        headers["Content-Type"] = "application/json"
    wire = urllib.request.Request(request.url, data=request.body, headers=headers, method=request.method)
    try:
        with opener.open(wire, timeout=request.timeout) as answer:
            return Response(answer.status, answer.headers.get("Content-Type", ""), answer.read(MAX_BODY + 1))
    except urllib.error.HTTPError as answer:
        with answer:
            return Response(answer.code, answer.headers.get("Content-Type", ""), answer.read(MAX_BODY + 1))


def http_open(request: Request) -> Response:
    """Send one request. The timeout is for the whole exchange, so a service that drips bytes cannot hold it."""
    results: queue.Queue[Response | BaseException] = queue.Queue()

    def work() -> None:
        try:
            results.put(_open(request))
        except BaseException as error:
            results.put(error)

    # urllib limits each read only; a daemon thread can be left behind when the time is over.
    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=request.timeout)
    except queue.Empty:
        raise NoAnswer(f"no complete answer within {request.timeout:g} s") from None
    if isinstance(result, Response):
        return result
    reason = getattr(result, "reason", None) or result
    if isinstance(reason, TimeoutError):
        raise NoAnswer(f"no complete answer within {request.timeout:g} s") from None
    if isinstance(reason, ConnectionRefusedError):
        raise Refused(str(reason)) from None
    # The class alone for what is not of the system: such a text may quote the answer.
    raise NoAnswer(str(reason) if isinstance(reason, OSError) else type(reason).__name__) from None


# --- probe and call -------------------------------------------------------------------------------------------------


def probe(spec: Mapping[str, Any], timeout: float, opener: Opener = http_open) -> Verdict:
    """Ask C(spec) (name, url, status, expect) with GET and judge the answer."""
    check_spec(spec)
    shown = f"GET {shown_url(spec['url'])}"
    name = str(spec.get("name") or shown)
    try:
        response = opener(Request("GET", spec["url"], None, timeout))
    except NoAnswer as error:
        return Verdict(name, UNKNOWN, f"{shown}: {error}")
    verdict, seen = judge_response(response, list(spec.get("status", [200])), spec.get("expect") or {})
    return Verdict(name, verdict, f"{shown}: {seen}")


def call(
    spec: Mapping[str, Any],
    timeout: float,
    opener: Opener = http_open,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Verdict:
    """Make a call (url, method, body) and confirm it by its effect (confirm: a probe), within the timeout.

    The confirmation decides. The answer to the call itself is evidence only: a service that is
    already in the wanted state may well refuse the call, and one that agrees may do nothing.
    """
    check_call(spec)
    end = clock() + timeout
    method = str(spec.get("method") or "POST").upper()
    shown = f"{method} {shown_url(spec['url'])}"
    body = json.dumps(spec.get("body") or {}).encode("utf-8")
    try:
        # Half of the time at most: a call that hangs leaves time to look at its effect.
        answer = f"status {opener(Request(method, spec['url'], body, timeout / 2)).status}"
    except NoAnswer as error:
        answer = str(error)
    while True:
        left = end - clock()
        confirmed = probe(spec["confirm"], left, opener) if left > 0 else Verdict("", UNKNOWN, "no time was left to look")
        if confirmed.verdict == PASS or end - clock() <= 2 * _POLL:
            word = "confirmed" if confirmed.verdict == PASS else "not confirmed"
            return Verdict(str(spec.get("name") or shown), confirmed.verdict, f"{shown}: {answer}; {word}: {confirmed.evidence}")
        sleep(_POLL)
