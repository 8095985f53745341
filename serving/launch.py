"""Starting the server: `lipsformer serve` checks what it can first, so that a mistake is one line and no process."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import lipsformer
from lipsformer.bundle.manifest import read_manifest
from lipsformer.bundle.store import resolve_bundle
from lipsformer.system.console import say
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cache_folder, check_device

from .pipeline.shadow import check_shadow
from .settings import Settings

__all__ = ["serve"]

DRAIN_SECONDS = 30


def serve(
    bundle: Path,
    *,
    host: str,
    port: int,
    workers: int | None = None,
    device: str = "auto",
    precision: str | None = None,
    watch: int | None = None,
    shadow: Path | None = None,
) -> NoReturn:
    """Serves a bundle over HTTP: checks the arguments and the bundle, then replaces this process by the server.

    The bundle's hashes are checked here, to fail in one line at once; by the server, which may also be started without
    this function; and by each worker, which may start much later, when the files have changed.

    Args:
        bundle: folder, or `bentoml:NAME:VERSION` in BentoML's model store.
        host: IP address to listen on.
        port: to listen on.
        workers: number of processes; by default one per GPU, or one for every four cores.
        device: "auto", "cpu" or "cuda".
        precision: which of the bundle's precisions to run; by default its first.
        watch: seconds between checks for a newer bundle; by default only SIGHUP triggers one.
        shadow: a second bundle to compare the answers with.

    Raises:
        InputError: if an argument or the bundle cannot be used, or the port is taken.
        GateError: if a file of the bundle does not match its manifest.
    """
    for name, value in (("--workers", workers), ("--watch", watch)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: it must be at least 1")
    check_device(device)
    address = _listenable(host, port)
    chosen = {"DEVICE": device, "PRECISION": precision, "WORKERS": workers, "WATCH": watch}
    bundles = {"BUNDLE": _absolute(bundle), "SHADOW": None if shadow is None else _absolute(shadow)}
    environment = os.environ | _environment(port, {**chosen, **bundles})
    Settings.from_environment(environment)
    manifest = read_manifest(resolve_bundle(bundle))
    manifest.graph(precision)
    if shadow is not None:
        check_shadow(shadow, read_manifest(resolve_bundle(shadow)), manifest)
    shown = f"[{address}]" if ":" in address else address
    say(f"http://{shown}:{port} answers once the workers are ready; Ctrl+C stops them")
    # The working directory is the package's, because in the user's a file named like one of our imports would be
    # imported instead. -P and PYTHONSAFEPATH keep the user's out of the workers as well.
    home = str(Path(lipsformer.__file__).parents[1])
    command = [sys.executable, "-P", "-m", "bentoml", "serve", f"{__package__}.bento.service:Classifier"]
    options = ["--host", address, "--port", str(port), "--working-dir", home]
    os.execve(  # noqa: S606 - the server must receive the signals itself
        sys.executable, [*command, *options, "--timeout-graceful-shutdown", str(DRAIN_SECONDS)], environment
    )


def _listenable(host: str, port: int) -> str:
    """The IP address of `host`, on which `port` is free.

    Raises:
        InputError: if one of them cannot be used.
    """
    address = "127.0.0.1" if host == "localhost" else host
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        raise InputError(
            f"--host {host}: an IP address is needed, such as 127.0.0.1 (this machine) or 0.0.0.0 (every network)"
        ) from None
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port}: a number from 1 to 65535 is needed")
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"--port {port}: in use on {address}; choose another") from None
            raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from None
    return address


def _absolute(bundle: Path) -> Path:
    """The bundle, wherever the server is started from; it may also be a name."""
    return bundle.absolute() if bundle.exists() else bundle


def _environment(port: int, settings: Mapping[str, object]) -> dict[str, str]:
    """The variables for the server's processes; what the user has set for BentoML stays."""
    defaults = {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(_state_folder(port)),
    }
    return {
        **{name: os.environ.get(name, value) for name, value in defaults.items()},
        **{f"LIPSFORMER_{name}": "" if value is None else str(value) for name, value in settings.items()},
        "PYTHONSAFEPATH": "1",
    }


def _state_folder(port: int) -> Path:
    """The folder in which the workers share their metrics: one per port, as two servers would delete each other's.

    It is temporary if the cache is not writable, as in a read-only container.
    """
    folder = cache_folder() / "serve" / str(port)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lipsformer-serve-"))
    return folder
