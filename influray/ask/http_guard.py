"""What stands before the service: who may ask, how much at once, and what every answer says to a browser.

A page on the web can make a browser send requests to 127.0.0.1, and a name of its own can be made to point there.
Hence the Host header must be a name that the service knows, requests of other origins are refused, and a body must be
declared as JSON, which other origins cannot send unasked.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = 256 * 2**10  # bytes
MAX_TARGET = 8 * 2**10  # bytes of path and query
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
# Of all answers but the page, which are data: a browser that shows one must run nothing in it.
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Access:
    """Who may ask. `hosts` are names without a port, in addition to those of the loopback; "" asks for no token."""

    hosts: tuple[str, ...] = ()
    token: str = ""


class Guard:
    """An ASGI application that lets through to `app` what may pass."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in (*LOOPBACK, *access.hosts))
        self._token = access.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":  # the start and end of the server
            await self._app(scope, receive, send)
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce
        sealed = _sealed(send)
        refusal = self._refusal(scope)
        try:
            body = None if refusal else await _body(receive)
        except ConnectionError:
            return
        if refusal is None and body is None:
            refusal = 413, "too_large", f"the body is larger than {MAX_BODY} bytes", {}
        if refusal is not None:
            status, code, told, headers = refusal
            await JSONResponse({"code": code, "detail": told}, status, headers)(scope, receive, sealed)
            return
        await self._app(scope, _replayed(body or b"", receive), sealed)

    def _refusal(self, scope: Scope) -> tuple[int, str, str, dict[str, str]] | None:
        """Return (status, code, message, headers) of what may not pass."""
        headers = Headers(scope=scope)
        host = _one(headers, "host")
        if host is None or _name(host) not in self._hosts:
            return 421, "wrong_host", "the Host header names another service; start this one with --allow-host", {}
        origin = _one(headers, "origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "other_origin", "pages of other origins may not ask", {}
        # A link may lead here: what it leads to cannot be read by the page that it stands on.
        follows_link = scope["method"] == "GET" and _one(headers, "sec-fetch-mode") == "navigate"
        if _one(headers, "sec-fetch-site") in ("cross-site", "same-site") and not follows_link:
            return 403, "other_origin", "pages of other origins may not ask", {}
        if self._token and not self._authorised(_one(headers, "authorization")):
            challenge = {"www-authenticate": 'Basic realm="influray, the token is the password", charset="UTF-8"'}
            return 401, "no_token", "Authorization: Bearer TOKEN is required", challenge
        if len(scope["path"].encode()) + len(scope.get("query_string") or b"") > MAX_TARGET:
            return 414, "too_long", f"the address is longer than {MAX_TARGET} bytes", {}
        length = _one(headers, "content-length")
        if length is not None and (not length.isdigit() or int(length) > MAX_BODY):
            return 413, "too_large", f"the body is larger than {MAX_BODY} bytes", {}
        if scope["method"] == "POST":
            kind = (_one(headers, "content-type") or "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "not_json", "the body must be application/json", {}
        return None

    def _authorised(self, header: str | None) -> bool:
        kind, _, given = (header or "").partition(" ")
        if kind.lower() == "basic":  # what a browser sends after it has asked its user
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self._token)


def page_policy(nonce: str) -> str:
    """Return the content security policy of the page: its own script and style, and questions to its own service."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _name(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _one(headers: Headers, name: str) -> str | None:
    """Return a header's value, None where it is missing, "" where it is given with two values."""
    found = set(headers.getlist(name))
    return None if not found else found.pop() if len(found) == 1 else ""


def _sealed(send: Send) -> Send:
    """Add the headers that every answer has, where it has none of its own."""

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, "content-security-policy": _NOTHING}.items():
                headers.setdefault(name, value)
        await send(message)

    return wrapped


async def _body(receive: Receive) -> bytes | None:
    """Return the whole body, or None where it is too large. Raises ConnectionError where its sender has gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def wrapped() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return wrapped
