"""Who may open the page."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from spinlite.ui.guard import Guard, token_in

GOOD = {"host": "127.0.0.1:8765", "cookie": "other=1; spinlite-8765=secret"}
ASKED = {  # headers that are other, kind, query -> whether the page itself is reached
    "the cookie": ({}, "http", "", True),
    "by the other name": ({"host": "localhost:8765"}, "http", "", True),
    "own origin": ({"origin": "http://127.0.0.1:8765"}, "http", "", True),
    "web socket": ({"origin": "http://localhost:8765"}, "websocket", "", True),
    "no cookie": ({"cookie": ""}, "http", "", False),
    "another cookie": ({"cookie": "spinlite-8765=secrets"}, "http", "", False),
    "broken cookie": ({"cookie": "\x01=;;=\x7f"}, "http", "", False),
    "another port's cookie": ({"cookie": "spinlite-8766=secret"}, "http", "", False),
    "foreign host": ({"host": "evil.example:8765"}, "http", "", False),
    "foreign host with the token": ({"host": "evil.example:8765"}, "http", "token=secret", False),
    "another port": ({"host": "127.0.0.1:80"}, "http", "", False),
    "no host": ({"host": None}, "http", "", False),
    "foreign origin": ({"origin": "http://evil.example"}, "http", "", False),
    "a file's origin": ({"origin": "null"}, "http", "", False),
    "origin with another port": ({"origin": "http://127.0.0.1:8000"}, "http", "", False),
    "web socket from elsewhere": ({"origin": "https://evil.example"}, "websocket", "", False),
    "web socket without cookie": ({"cookie": ""}, "websocket", "", False),
    "web socket with the token": ({"cookie": ""}, "websocket", "token=secret", False),
    "a wrong token": ({"cookie": ""}, "http", "token=secre", False),
    "a token that is no ASCII": ({"cookie": ""}, "http", "token=%C3%A9", False),
}


def ask(headers: dict[str, Any], kind: str, query: str) -> tuple[bool, list[dict[str, Any]]]:
    """(whether the page was reached, what was answered)."""
    reached, sent = [], []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in (GOOD | headers).items() if value is not None]
    scope = {"type": kind, "path": "/run/a", "method": "GET", "query_string": query.encode(), "headers": pairs}
    asyncio.run(Guard(page, 8765, "secret")(scope, receive, send))
    return bool(reached), sent


@pytest.mark.parametrize("name", ASKED)
def test_only_the_person_at_this_computer_reaches_the_page(name: str):
    headers, kind, query, allowed = ASKED[name]
    reached, sent = ask(headers, kind, query)
    assert reached == allowed
    if not allowed:
        assert sent[0] == {"type": "websocket.close", "code": 1008} if kind == "websocket" else sent[0]["status"] == 403


def test_two_hosts_are_none():
    pairs = [(b"host", b"127.0.0.1:8765"), (b"host", b"evil.example"), (b"cookie", b"spinlite-8765=secret")]
    assert not Guard(None, 8765, "secret")._is_local({"headers": pairs})  # pyright: ignore[reportArgumentType]


def test_the_token_in_the_address_becomes_a_cookie_that_no_script_reads():
    reached, sent = ask({"cookie": ""}, "http", "token=secret")
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert not reached and sent[0]["status"] == 303 and headers["location"] == "/run/a"
    assert headers["set-cookie"].startswith("spinlite-8765=secret;")
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=lax" in headers["set-cookie"]


def test_no_page_shows_this_one_in_a_frame():
    headers = dict(ask({}, "http", "")[1][0]["headers"])
    assert headers[b"x-frame-options"] == b"DENY"


def test_the_token_stays_until_it_is_damaged(tmp_path: Path):
    token = token_in(tmp_path / "new")
    assert len(token) >= 32 and token_in(tmp_path / "new") == token
    path = tmp_path / "new" / "ui-token"
    assert path.stat().st_mode & 0o077 == 0 or path.stat().st_mode & 0o777 == 0o666  # Windows has no such modes
    path.write_bytes(b"\xff short")
    assert token_in(tmp_path / "new") != token
