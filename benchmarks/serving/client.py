"""The load generator: bare HTTP/1.1 on uvloop's transports, for it shares the processors with what it measures.

    python benchmarks/serving/client.py '{"url": "http://127.0.0.1:3000/classify", ...}'

The argument is a `Load` as JSON; `load.generate` starts it. Requests are bytes made beforehand; no task and no future
is made for one, and of an answer only status, length, label and reason are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import random
import re
import resource
import sys
import urllib.parse
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, cast

import uvloop
from bodies import Kind, kinds
from load import Load
from tally import Tally

__all__: list[str] = []

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
PAUSE = 0.05  # seconds that a client of a closed loop waits after it was shed or refused


@dataclasses.dataclass(slots=True)
class Exchange:
    """A request on its way. `due` is when it was to be sent; `ended` is called with the outcome."""

    kind: Kind
    due: float
    ended: Callable[[str], None] | None = None
    sent: float = 0
    retried: bool = False


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self, pool: Pool, exchange: Exchange) -> None:
        self.pool = pool
        self.exchange: Exchange | None = exchange
        self.answers = 0  # that came on it before
        self.received = b""
        self.to_send: deque[bytes] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.pool.open.add(self)
        if self.exchange is not None:
            self.begin(self.exchange)

    def begin(self, exchange: Exchange) -> None:
        """Sends the request of `exchange`, or its first piece."""
        self.exchange = exchange
        exchange.sent = perf_counter()
        self.pool.tally.begun(exchange.due, exchange.sent)
        kind = exchange.kind
        if kind.pieces == 1:
            self.transport.write(kind.request)
            self._wait_to_leave(kind)
            return
        size = -(-len(kind.request) // kind.pieces)
        self.to_send.extend(kind.request[start : start + size] for start in range(0, len(kind.request), size))
        self._trickle(kind)

    def _trickle(self, kind: Kind) -> None:
        self.transport.write(self.to_send.popleft())
        if self.to_send:
            self.timer = self.pool.loop.call_later(kind.seconds / kind.pieces, self._trickle, kind)
        else:
            self._wait_to_leave(kind)

    def _wait_to_leave(self, kind: Kind) -> None:
        if kind.leaves_after is not None:
            self.timer = self.pool.loop.call_later(kind.leaves_after, self.give_up, "left", "")

    def give_up(self, outcome: str, detail: str) -> None:
        """Ends the exchange and the connection from this side."""
        self._end(outcome, detail)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received = self.received + data if self.received else data
        end = self.received.find(b"\r\n\r\n")
        if end < 0 or self.exchange is None:
            return
        head = self.received[:end]
        length = LENGTH.search(head)
        if length is None:
            self.give_up("unexpected", "an answer without content-length")
            return
        if len(self.received) < end + 4 + int(length[1]):
            return
        exchange, self.exchange, body, self.received = self.exchange, None, self.received[end + 4 :], b""
        self.answers += 1
        reusable = not self.to_send and exchange.kind.leaves_after is None and CLOSE.search(head) is None
        self._stop_sending()
        if not reusable:
            self.transport.close()
        now = perf_counter()
        latency, waited = now - exchange.due, now - exchange.sent
        outcome = self.pool.tally.answered(exchange.kind, int(head[9:12]), body, latency, now, waited)
        self.pool.finished(self if reusable else None, exchange, outcome)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.lost(self)
        exchange = self.exchange
        if exchange is None:
            return
        waited = perf_counter() - exchange.sent
        may_retry = self.answers > 0 and not self.received and not exchange.retried and self.pool.load.retry
        if may_retry:
            self._stop_sending()
            self.exchange = None
            exchange.retried = True
            self.pool.tally.raced(waited)
            self.pool.connect(exchange)
            return
        age = "kept" if self.answers else "new"
        half = ", half an answer" if self.received else ""
        self._end("lost", f"{type(exc).__name__ if exc else 'closed'}, {age} connection{half}")

    def _end(self, outcome: str, detail: str) -> None:
        self._stop_sending()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            now = perf_counter()
            self.pool.tally.ended(exchange.kind, outcome, detail, now - exchange.due, now)
            self.pool.finished(None, exchange, outcome)

    def _stop_sending(self) -> None:
        self.to_send.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Pool:
    """Connections kept alive, at most `load.clients` of them; what finds none waits, and its latency runs."""

    def __init__(self, load: Load, tally: Tally) -> None:
        parts = urllib.parse.urlsplit(load.url)
        self.load = load
        self.tally = tally
        self.loop = asyncio.get_running_loop()
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []
        self.waiting: deque[Exchange] = deque()
        self.active = 0
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, exchange: Exchange) -> None:
        """Sends a request as soon as there is a connection for it."""
        if self.active >= self.load.clients:
            self.waiting.append(exchange)
            return
        self.active += 1
        if self.idle:
            self.idle.pop().begin(exchange)
        else:
            self.connect(exchange)

    def connect(self, exchange: Exchange) -> None:
        """Opens a connection for `exchange`."""
        task = self.loop.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: Exchange) -> None:
        try:
            await self.loop.create_connection(lambda: Connection(self, exchange), self.host, self.port)
        except OSError as error:
            now = perf_counter()
            self.tally.ended(exchange.kind, "refused", type(error).__name__, now - exchange.due, now)
            self.finished(None, exchange, "refused")

    def finished(self, connection: Connection | None, exchange: Exchange, outcome: str) -> None:
        """Frees a place; `connection` can carry the next request."""
        self.active -= 1
        if connection is not None:
            self.idle.append(connection)
        if exchange.ended is not None:
            exchange.ended(outcome)
        if self.waiting and self.active < self.load.clients:
            self.send(self.waiting.popleft())

    def lost(self, connection: Connection) -> None:
        """Forgets a closed connection."""
        self.open.discard(connection)
        with contextlib.suppress(ValueError):
            self.idle.remove(connection)

    def lose_the_late(self, now: float) -> None:
        """Gives up what has had no answer for longer than `load.patience`."""
        for connection in list(self.open):
            exchange = connection.exchange
            if exchange is not None and now - exchange.sent > self.load.patience:
                connection.give_up("lost", "no answer")

    def abort(self) -> None:
        """Ends everything that is still open."""
        for connection in list(self.open):
            connection.give_up("lost", "no answer")


class Generator:
    """Begins the requests of one load, in a closed or an open loop."""

    def __init__(self, load: Load) -> None:
        parts = urllib.parse.urlsplit(load.url)
        self.load = load
        draw = random.Random(load.seed)  # noqa: S311 - an order, not a secret
        families = draw.choices(list(load.mix), list(load.mix.values()), k=4096)
        pools = {family: kinds(family, parts.path, parts.netloc, load.expected) for family in load.mix}
        self.order = [draw.choice(pools[family]) for family in families]
        self.begun = 0
        self.start = perf_counter()
        self.stop = self.start + load.seconds
        self.pool = Pool(load, Tally(self.start, self.start + load.warm_up, self.stop))

    def next(self) -> Kind:
        """The next request of the mix."""
        self.begun += 1
        return self.order[self.begun % len(self.order)]

    async def closed_loop(self) -> None:
        """Each of the clients sends its next request when the last has ended."""

        def again(outcome: str) -> None:
            if outcome in ("shed", "refused", "lost"):
                self.pool.loop.call_later(PAUSE, send)
            else:
                self.pool.loop.call_soon(send)

        def send() -> None:
            now = perf_counter()
            if now < self.stop:
                self.pool.send(Exchange(self.next(), now, again))

        for _ in range(self.load.clients):
            send()
        await self._until(self.stop)

    async def open_loop(self, rate: float) -> None:
        """Requests are due at a fixed rate, whatever has become of those before; late ones are sent at once."""
        planned = int(rate * self.load.seconds)
        while self.begun < planned:
            now = perf_counter()
            while self.begun < planned and self.start + self.begun / rate <= now:
                due = self.start + self.begun / rate
                self.pool.send(Exchange(self.next(), due))
            await asyncio.sleep(max(0.0, min(0.5, self.start + self.begun / rate - perf_counter())))
            self.pool.lose_the_late(perf_counter())

    async def run(self) -> Tally:
        """The account, once every request has ended."""
        if self.load.rate is None:
            await self.closed_loop()
        else:
            await self.open_loop(self.load.rate)
        end = perf_counter() + self.load.patience
        while (self.pool.active or self.pool.waiting) and perf_counter() < end:
            await asyncio.sleep(0.01)
            self.pool.lose_the_late(perf_counter())
        for exchange in self.pool.waiting:
            self.pool.tally.ended(exchange.kind, "lost", "never sent", perf_counter() - exchange.due, perf_counter())
        self.pool.waiting.clear()
        self.pool.abort()
        return self.pool.tally

    async def _until(self, end: float) -> None:
        while (left := end - perf_counter()) > 0:
            await asyncio.sleep(min(left, 0.5))
            self.pool.lose_the_late(perf_counter())


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def run(load: Load) -> dict[str, Any]:
    generator = Generator(load)
    gc.freeze()
    before = cpu_seconds()
    tally = await generator.run()
    report = tally.report(cpu_seconds() - before)
    if report["requests"] != generator.begun:
        raise RuntimeError(f"{generator.begun} requests begun, {report['requests']} accounted for")
    return report


def main() -> None:
    load = Load(**json.loads(sys.argv[1]))
    json.dump(uvloop.run(run(load)), sys.stdout)


if __name__ == "__main__":
    main()
