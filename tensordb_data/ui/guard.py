"""The guard before every page: who may ask, from where, and the headers of every answer.

Behind a proxy of Jupyter the page shares an origin with the kernel, so a script in a caption would run code there: the
content security policy is what holds it off. A page on the loopback interface can be asked by any site that the browser
shows: the names of hosts, the token and the mark of our own pages hold those off.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from tensordb_data.errors import QueryError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MOST_BODY = 1_000_000
"""Bytes of the body of a request."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types tdb"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NEXT = re.compile(r"[a-z]+(\?[!-~]*)?")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(:[0-9]{1,5})?", re.IGNORECASE)


def host_name(given: str) -> str:
    """The name of a host as it is compared: without a port, in small letters.

    Raises:
        QueryError: It is none.
    """
    found = _HOST.fullmatch(given) if isinstance(given, str) else None
    if found is None or re.search(r"[\s/@,]", given):
        raise QueryError(f"hosts= has names such as 'lab.example'; found {given!r:.200}")
    return found["name"].lower()


class Keys:
    """The secrets of one server: its token, and what is made of it.

    Args:
        token: What a user must know. It is in the address that opens the page, and nowhere else.

    Raises:
        QueryError: The token is no text, or empty.
    """

    def __init__(self, token: str) -> None:
        if not isinstance(token, str) or not token:
            raise QueryError("token= is a text that nobody can guess, such as secrets.token_urlsafe(24)")
        self._token = token.encode()
        self.cookie = f"tensordb_{hashlib.sha256(self._token).hexdigest()[:12]}"
        """The name of the cookie. Cookies do not know ports, so that two servers of one host need two names."""
        self.session = self._made("session")
        self.csrf = self._made("csrf")

    def opens(self, given: str) -> bool:
        """Whether this is the token; the time that this takes tells nothing."""
        return hmac.compare_digest(given.encode(errors="replace"), self._token)

    def is_session(self, given: str) -> bool:
        """Whether this is the value of the cookie."""
        return hmac.compare_digest(given.encode(errors="replace"), self.session.encode())

    def is_own(self, given: str) -> bool:
        """Whether this is the mark by which a page shows that it is ours."""
        return hmac.compare_digest(given.encode(errors="replace"), self.csrf.encode())

    def _made(self, name: str) -> str:
        return hmac.new(self._token, name.encode(), hashlib.sha256).hexdigest()


class Guard:
    """An ASGI app around another: it refuses what must not come in, and seals what goes out.

    Args:
        app: The pages.
        keys: The secrets.
        hosts: Names, beside those of the loopback interface, by which a browser may call the server.
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Iterable[str]) -> None:
        self._app, self._keys = app, keys
        self._hosts = frozenset((*LOOPBACK, *map(host_name, hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        answer = self._at_the_door(request) or self._refused(request)
        await (answer or self._app)(scope, receive, sealed)

    def _at_the_door(self, request: Request) -> Response | None:
        """The answer to a call by a wrong name, and to one that brings the token."""
        named = request.headers.getlist("host")
        found = _HOST.fullmatch(named[0]) if len(named) == 1 else None
        if found is None or found["name"].lower() not in self._hosts:
            shown = named[0][:200] if named else "no host"
            return _refusal(421, f"this server is not called by {shown!r}; if it should be, start it with the option "
                                 "--allow-host and that name (hosts= of make_app)")  # fmt: skip
        given = request.query_params.get("token")
        if given is None or request.url.path not in ("", "/") or request.method not in ("GET", "HEAD"):
            return None
        if not self._keys.opens(given):
            return _refusal(401, "this token does not open the page; the server has been started anew since, perhaps")
        wanted = request.query_params.get("next", "")
        answer = RedirectResponse(f"./{wanted}" if _NEXT.fullmatch(wanted) else "./", 303)
        secure = "; Secure" if request.url.scheme == "https" else ""
        # Without a path it holds for the prefix under which the browser knows the server.
        cookie = f"{self._keys.cookie}={self._keys.session}; HttpOnly; SameSite=Lax{secure}"
        answer.headers["Set-Cookie"] = cookie
        return answer

    def _refused(self, request: Request) -> Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        bearer = scheme.lower() == "bearer" and self._keys.opens(token.strip())
        if not bearer and not self._keys.is_session(request.cookies.get(self._keys.cookie, "")):
            return _refusal(401, "open the address with ?token= that `tensordb ui` or `db.ui()` has shown; a program "
                                 "sends the header `Authorization: Bearer TOKEN`")  # fmt: skip
        if request.method in ("GET", "HEAD"):
            return None
        if request.method != "POST":
            return _refusal(405, f"there is no {request.method[:20]!r} here, only GET and POST")
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return _refusal(403, "a change comes from a page of this server")
        if not self._keys.is_own(request.headers.get("x-csrf", "")):
            return _refusal(403, "a change needs the header X-CSRF of the page, which stands in its <meta name=csrf>")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, "a change is sent as application/json")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > MOST_BODY:
            return _refusal(413, f"a change has at most {MOST_BODY:,} bytes")
        return None


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(f"{status}: {escape(text, quote=False)}\n", status)
