"""A local server that runs in a thread."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator

__all__ = ["running"]


@contextlib.contextmanager
def running(server: http.server.HTTPServer) -> Iterator[str]:
    """Runs a server on a port of 127.0.0.1 within the block; gives its URL."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)
            assert not thread.is_alive()
