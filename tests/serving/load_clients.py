"""Clients that send requests to a server without a pause, and count every response."""

from __future__ import annotations

import collections
import contextlib
import ssl
import threading
import time
from collections.abc import Iterator

import httpx

__all__ = ["TLS", "Load", "asking"]

TLS = ssl.create_default_context()  # never used; each new client would read all certificates again


class Load:
    """The responses, counted by status and label, and the requests that were sent and got no response."""

    def __init__(self, url: str, body: bytes) -> None:
        self.url = url
        self.body = body
        self.statuses: collections.Counter[int] = collections.Counter()
        self.labels: collections.Counter[str] = collections.Counter()
        self.lost: list[str] = []
        self.refused = 0
        self.stopping = threading.Event()

    def ask(self) -> None:
        """Sends requests, with a new connection every 20, until `stopping` is set."""
        while not self.stopping.is_set():
            with httpx.Client(base_url=self.url, timeout=30, verify=TLS) as client:
                try:
                    for _ in range(20):
                        answer = client.post("/classify", content=self.body, headers={"Content-Type": "image/jpeg"})
                        self.statuses[answer.status_code] += 1
                        if answer.status_code == 200:
                            self.labels[answer.json()["predictions"][0]["label"]] += 1
                        if self.stopping.is_set():
                            return
                except httpx.ConnectError:  # nobody listens: nothing was accepted
                    self.refused += 1
                    time.sleep(0.01)
                except httpx.TransportError as error:
                    self.lost.append(repr(error))

    def wait_for(self, answers: int) -> None:
        """Returns after so many more responses with status 200."""
        target = self.statuses[200] + answers
        deadline = time.monotonic() + 60
        while self.statuses[200] < target:
            assert time.monotonic() < deadline, (self.statuses, self.lost)
            time.sleep(0.01)


@contextlib.contextmanager
def asking(url: str, body: bytes, clients: int) -> Iterator[Load]:
    """So many clients, active until the block ends."""
    load = Load(url, body)
    threads = [threading.Thread(target=load.ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join()
