"""A load to put on a server: what is sent, by how many clients or at which rate, within bounds; and its process."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MOST_CLIENTS", "Load", "generate", "launch", "result_of"]

# Bounds of a tool that shares its machine with others, and must never be pointed elsewhere.
MOST_CLIENTS = 1024
MOST_SECONDS = 3600
MOST_PER_SECOND = 20_000
MOST_REQUESTS = 5_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """One load.

    Args:
        url: where requests are posted to; its host must be a loopback address.
        mix: kinds of requests (see `bodies.py`) with their weights.
        expected: for each body, the label it has to get, or the reason for which it has to be refused.
        seconds: how long requests are begun for.
        warm_up: seconds at their beginning that do not count towards `per_second`.
        clients: how many requests may be open at once. In a closed loop, that is how many always are.
        rate: requests a second of an open loop; None means a closed loop.
        patience: seconds after which a request without an answer is lost.
        retry: whether a request that a connection kept alive dropped unread is sent once more.
        seed: of the order of the mix.

    Raises:
        ValueError: if it is beyond the bounds.
    """

    url: str
    mix: Mapping[str, float]
    expected: Mapping[str, str]
    seconds: float
    clients: int
    warm_up: float = 0
    rate: float | None = None
    patience: float = 60
    retry: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        host = urllib.parse.urlsplit(self.url).hostname or ""
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"{self.url}: only loopback addresses are loaded")
        if not (0 < self.seconds <= MOST_SECONDS and 0 < self.clients <= MOST_CLIENTS and 0 < self.patience <= 120):
            raise ValueError(f"at most {MOST_SECONDS} s, {MOST_CLIENTS} clients and 120 s of patience")
        if self.rate is not None and not 0 < self.rate <= MOST_PER_SECOND:
            raise ValueError(f"at most {MOST_PER_SECOND} requests a second")
        if (self.rate or 0) * self.seconds > MOST_REQUESTS:
            raise ValueError(f"at most {MOST_REQUESTS} requests")


def launch(load: Load) -> subprocess.Popen[bytes]:
    """Starts a generator in a process of its own; `result_of` waits for it."""
    command = [sys.executable, str(Path(__file__).with_name("client.py")), json.dumps(dataclasses.asdict(load))]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def result_of(process: subprocess.Popen[bytes], load: Load) -> dict[str, Any]:
    """What the generator counted and measured; see `Tally.report`.

    Raises:
        RuntimeError: if it failed, or did not end in time.
    """
    try:
        output, _ = process.communicate(timeout=load.seconds + load.patience + 30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError("the load generator did not end in time") from None
    if process.returncode:
        raise RuntimeError(f"the load generator failed (exit {process.returncode})")
    result: dict[str, Any] = json.loads(output)
    return result


def generate(load: Load) -> dict[str, Any]:
    """Puts a load on a server and waits for its end."""
    return result_of(launch(load), load)
