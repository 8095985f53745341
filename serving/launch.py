"""`lipsformer serve`: checks everything that can be checked, then becomes the BentoML server."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path

from lipsformer.console import say
from lipsformer.errors import InputError
from lipsformer.prediction import load_predictor

from .settings import Settings

__all__ = ["serve"]

SERVICE = "lipsformer.serving.service:Classifier"


def serve(bundle: Path, *, host: str, port: int, workers: int, device: str = "auto") -> None:
    """Replaces this process by a server of `bundle`; does not return.

    Args:
        bundle: the folder that `lipsformer export` wrote.
        host: the address to listen on, or "localhost".
        port: 1 to 65535, not in use.
        workers: server processes; the cores are shared out among them.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: if the bundle, the address or the device cannot be used.
        GateError: if a file of the bundle is not what its manifest promises.
    """
    if workers < 1:
        raise InputError(f"--workers {workers}: at least 1 is needed")
    address = _address(host)
    _check_port(address, port)
    load_predictor(bundle, device)
    cores = len(os.sched_getaffinity(0))
    given = Settings.from_environment()
    settings = Settings(
        bundle=bundle.resolve(),
        device=device,
        workers=workers,
        threads=max(1, cores // workers),
        max_bytes=given.max_bytes,
        max_pixels=given.max_pixels,
        max_pending=given.max_pending,
        timeout=given.timeout,
    )
    environment = {
        **os.environ,
        **settings.to_environment(),
        "BENTOML_DO_NOT_TRACK": "True",  # a server makes no calls of its own to the outside
    }
    shown = f"[{address}]" if ":" in address else address
    say(f"serving {bundle} on http://{shown}:{port} with {workers} worker{'s' if workers > 1 else ''}; Ctrl-C stops it")
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", address, "--port", str(port)]
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell: our own interpreter and arguments


def _address(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise InputError(
            f"--host {host}: not an IP address; 127.0.0.1 is this machine, 0.0.0.0 every network"
        ) from None


def _check_port(address: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port}: a number from 1 to 65535 is needed")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        raise InputError(f"--port {port} on {address}: cannot be used ({error.strerror}); choose another") from None
