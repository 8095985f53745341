"""`lipsformer serve`: everything that can be refused is refused here, in one line, before a server process exists."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import lipsformer
from lipsformer.bundle.manifest import read_manifest
from lipsformer.bundle.pretrained import resolve_model
from lipsformer.system.console import say
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cache_folder, check_device

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
) -> NoReturn:
    """Serves a bundle over HTTP: checks what it can, then becomes the server's process, which checks the rest.

    Args:
        bundle: folder, or the name of a bundle in BentoML's model store.
        host: IP address to listen on.
        port: to listen on.
        workers: processes; by default one for each GPU or every four cores.
        device: "auto", "cpu" or "cuda".
        precision: which of the bundle's; by default its first.
        watch: seconds between looks for a newer bundle; by default SIGHUP alone has it looked for.

    Raises:
        InputError: if an argument or the bundle cannot be used, or the port is taken.
        GateError: if a file of the bundle is not what its manifest promises.
    """
    for name, value in (("--workers", workers), ("--watch", watch)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: at least 1 is needed")
    check_device(device)
    address = _listenable(host, port)
    environment = os.environ | _environment(bundle, port, workers, device, precision, watch)
    Settings.from_environment(environment)
    read_manifest(resolve_model(bundle)).graph(precision)
    shown = f"[{address}]" if ":" in address else address
    say(f"http://{shown}:{port} answers when the workers are ready; Ctrl+C stops them")
    # An absolute working directory that holds the package: where the command was typed, a file named like one of our
    # imports would be run instead of it. -P and PYTHONSAFEPATH keep that directory out of the workers as well.
    home = str(Path(lipsformer.__file__).parents[1])
    command = [sys.executable, "-P", "-m", "bentoml", "serve", f"{__package__}.bento.service:Classifier"]
    options = ["--host", address, "--port", str(port), "--working-dir", home]
    os.execve(  # noqa: S606 - the server must get the signals itself
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


def _environment(
    bundle: Path, port: int, workers: int | None, device: str, precision: str | None, watch: int | None
) -> dict[str, str]:
    """What the server's processes are told; what the user has set for BentoML stays as it is."""
    defaults = {
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(_state_folder(port)),
    }
    return {
        **{name: os.environ.get(name, value) for name, value in defaults.items()},
        "LIPSFORMER_BUNDLE": str(bundle.absolute() if bundle.exists() else bundle),  # where it is not a name
        "LIPSFORMER_DEVICE": device,
        "LIPSFORMER_PRECISION": precision or "",
        "LIPSFORMER_WORKERS": str(workers or ""),
        "LIPSFORMER_WATCH": str(watch or ""),
        "PYTHONSAFEPATH": "1",
    }


def _state_folder(port: int) -> Path:
    """Where the workers put their metrics together: one folder for each port, as two servers would delete each other's.

    A new temporary one where the cache cannot be written, as in a read-only container.
    """
    folder = cache_folder() / "serve" / str(port)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="lipsformer-serve-"))
    return folder
