"""The middleware of every request: its id, API key and record, and early rejection by a full server."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence

from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lipsformer.serving.observability import OTHER, Observer, RequestRecord

from .auth import KeyRing, given_keys
from .problems import Problem

__all__ = ["RequestMiddleware", "record_of"]

RECORD = "lipsformer.record"
SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HOW = "send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'; in a browser, the key is the password"
# Basic first: Chromium only considers the first scheme, and asks for no password if it does not know it.
CHALLENGE = {"WWW-Authenticate": 'Basic realm="lipsformer", Bearer realm="lipsformer"'}
NO_KEY = Problem(401, "unauthorised", f"a key is needed: {HOW}", CHALLENGE)
WRONG_KEY = Problem(401, "unauthorised", f"the key that was sent is not valid: {HOW}", CHALLENGE)


class RequestMiddleware:
    """ASGI middleware that authenticates, rejects and records requests.

    Args:
        app: the application behind it.
        routes: its routes; requests to any other are recorded as one, because a scanner would fill memory with names.
            Those of a route with parameters are recorded under its template.
        keyless: paths that need no key.
        keys: the valid keys; None admits everybody.
        rejection: gives the refusal of a POST for which there is no room. Here it costs a fraction of a response.
        observer: gets the record of each request at its end.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[Route],
        keyless: Collection[str],
        keys: KeyRing | None,
        rejection: Callable[[], Problem | None],
        observer: Observer,
    ) -> None:
        self._app = app
        self._rejection = rejection
        self._paths = frozenset(route.path for route in routes if not route.param_convertors)
        self._templates = [route for route in routes if route.param_convertors]
        self._keyless = frozenset(keyless)
        self._keys = keys
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request. A path with a slash at its end is the one without.

        Starlette would redirect, to an address that lacks the prefix that a proxy has taken off.
        """
        path = scope["path"].rstrip("/") or "/"
        route = self._route(path)
        if route != OTHER:
            scope = {**scope, "path": path}
        record = scope[RECORD] = self._record(scope, route)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-ID"] = record.request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            problem = self._refusal(scope, route)
            if problem is None:
                await self._app(scope, receive, send_with_headers)
            else:
                record.reason = problem.reason
                await problem.response(path)(scope, receive, send_with_headers)
        finally:
            record.end = time.perf_counter()
            self._observer.observe(record)

    def _route(self, path: str) -> str:
        if path in self._paths:
            return path
        return next((route.path for route in self._templates if route.path_regex.match(path)), OTHER)

    def _refusal(self, scope: Scope, route: str) -> Problem | None:
        if self._keys is not None and route not in self._keyless:
            given = given_keys(scope["headers"])
            if not self._keys.allows(given):
                return WRONG_KEY if given else NO_KEY
        return self._rejection() if scope["method"] == "POST" and route != OTHER else None

    def _record(self, scope: Scope, route: str) -> RequestRecord:
        given = traceparent = None
        for name, value in scope["headers"]:
            if name == b"x-request-id" and SANE_ID.fullmatch(value):
                given = value.decode("ascii")
            elif name == b"traceparent":
                traceparent = value.decode("latin-1")
        client = scope.get("client")
        return RequestRecord(
            request_id=given or secrets.token_hex(8),
            method=scope["method"],
            route=route,
            client=client[0] if client else None,
            traceparent=traceparent,
            start=time.perf_counter(),
        )


def record_of(scope: Scope) -> RequestRecord:
    """The record that the middleware keeps of a request."""
    record: RequestRecord = scope[RECORD]
    return record
