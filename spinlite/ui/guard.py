"""Who may open the page: whoever has the token, from this computer, with no other web site in between.

Other sites in the same browser can send requests to 127.0.0.1. They don't know the token, their `Origin` says where they come
from, and with DNS rebinding the `Host` is their own.
"""

import hmac
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
YEAR = 365 * 86400
REFUSED = "This page is for the person at this computer. Open the address that `spinlite ui` printed."


class Guard:
    """Middleware around the whole server, its web sockets too. The token comes once in the address, then as a cookie."""

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app, self._token = app, token
        self._cookie = f"spinlite-{port}"  # cookies are shared by all ports of a host
        self._hosts = {f"{name}:{port}" for name in NAMES}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        if not self._is_local(scope):
            return await _refuse(scope, receive, send)
        if scope["type"] == "http" and self._fits(parse_qs(scope["query_string"].decode("latin-1")).get("token", [])):
            return await self._welcome(scope)(scope, receive, send)
        if not self._fits(_cookies(scope, self._cookie)):
            return await _refuse(scope, receive, send)

        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self._app(scope, receive, unframed)

    def _is_local(self, scope: Scope) -> bool:
        hosts, origins = _headers(scope, b"host"), _headers(scope, b"origin")
        return len(hosts) == 1 and set(hosts) <= self._hosts and set(origins) <= self._origins

    def _fits(self, tokens: Iterable[str]) -> bool:
        return any(hmac.compare_digest(token.encode(), self._token.encode()) for token in tokens)

    def _welcome(self, scope: Scope) -> Response:
        response = RedirectResponse(scope["path"], status_code=303)  # the address without the token
        response.set_cookie(self._cookie, self._token, max_age=YEAR, httponly=True, samesite="lax")
        return response


def token_in(folder: Path) -> str:
    """The token that is kept in a folder, so that an open page goes on after a restart; made if there is none."""
    path = folder / "ui-token"
    try:
        if len(kept := path.read_text(encoding="ascii").strip()) >= 32:
            return kept
    except (OSError, ValueError):
        pass
    token = secrets.token_urlsafe(32)
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(token, encoding="ascii")
    return token


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in scope["headers"] if key == name]


def _cookies(scope: Scope, name: str) -> list[str]:
    found = []
    for key, value in scope["headers"]:
        if key == b"cookie":
            try:
                cookie = SimpleCookie(value.decode("latin-1"))
            except CookieError:
                continue
            found += [cookie[name].value] if name in cookie else []
    return found


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await PlainTextResponse(REFUSED, status_code=403)(scope, receive, send)
