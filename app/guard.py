"""Who may ask at all, decided before a route is found: the Host header, the page that asks, and the key.

Loopback is no boundary: any page in a browser on this machine can send requests here, and with DNS rebinding under a name of its own.
So a Host that is not ours is refused, and so is a change asked from another site's page.
"""

import hmac
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import CrossOrigin, Misdirected, PayloadTooLarge, Problem, Unauthenticated, problem_response, show
from app.settings import Settings

PROBES = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware; answers a refusal itself and passes everything else on."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = LOOPBACK_NAMES | set(settings.allowed_hosts)
        # a page that was rebound to this address cannot know the key, so with a key and no list any Host will do
        self._any_host = settings.api_key is not None and not settings.allowed_hosts
        self._key_digest = None if settings.api_key is None else sha256(settings.api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (problem := self._refusal(scope)) is not None:
            await problem_response(problem, scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, _SizeProblems(scope, receive, send))

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        return (
            self._wrong_host(headers.getlist("host"))
            or self._wrong_origin(scope["method"], headers)
            or self._wrong_key(scope["path"], headers.getlist("authorization"))
        )

    def _wrong_host(self, hosts: list[str]) -> Problem | None:
        if len(hosts) == 1 and (self._any_host or _host_name(hosts[0]) in self._hosts):
            return None
        given = show(", ".join(hosts)) if hosts else "no Host"
        return Misdirected(
            f"{given} was asked for; this server answers to {', '.join(sorted(self._hosts))};"
            " name more with GANSERVE_ALLOWED_HOSTS or --allowed-host"
        )

    def _wrong_origin(self, method: str, headers: Headers) -> Problem | None:
        origins = headers.getlist("origin")
        if method in SAFE_METHODS or not origins:
            return None
        scheme, _, netloc = origins[0].partition("://")
        if len(origins) == 1 and scheme in ("http", "https") and netloc == headers.get("host"):
            return None
        return CrossOrigin(f"a page of {show(', '.join(origins))} asked for a change; only pages of this server may")

    def _wrong_key(self, path: str, given: list[str]) -> Problem | None:
        if self._key_digest is None or path in PROBES:
            return None
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        # digests are compared, in constant time, so that nothing of the key shows in how long a refusal takes
        if hmac.compare_digest(sha256(key.strip().encode()).digest(), self._key_digest) and scheme.lower() == "bearer":
            return None
        return Unauthenticated(
            "this server wants its key: send the header `Authorization: Bearer <key>`", headers={"WWW-Authenticate": "Bearer"}
        )


class _SizeProblems:
    """FastAPI's body limit answers in plain text before any handler is asked; this says the same in the language of all problems."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 413:
            self._replaced = b"text/plain" in dict(message["headers"]).get(b"content-type", b"")
        if not self._replaced:
            await self._send(message)
        elif message["type"] == "http.response.start":
            given = show(Headers(scope=self._scope).get("content-length", "more")).strip("'")
            limit = self._scope.get(MAX_BODY_SIZE_SCOPE_KEY)
            problem = PayloadTooLarge(f"the body has {given} bytes; {limit} are allowed on {self._scope['path']}")
            await problem_response(problem, self._scope["path"])(self._scope, self._receive, self._send)


def _host_name(host: str) -> str:
    """The name in a Host header, without its port, in small letters."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()
