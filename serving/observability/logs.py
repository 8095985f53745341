"""The log: one line for each event on stderr, as text for people or as JSON for collectors.

A background thread writes them. If nobody reads stderr, lines are dropped and counted, and no request waits. What a
client sends can neither forge a line nor control a terminal: JSON escapes it, and text replaces it.
"""

from __future__ import annotations

import atexit
import datetime
import json
import logging
import os
import select
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lipsformer.serving.settings import LogFormat
from lipsformer.system.console import printable

from .background import Background
from .record import RequestRecord

__all__ = ["access_fields", "configure_logs"]

STDERR = 2
WAITING_LINES = 10_000
CLOSE_SECONDS = 2.0
IN_MESSAGE = ("method", "route", "status")  # fields that the text format need not repeat
WHOLE_WRITE = 4096  # PIPE_BUF: the kernel never interleaves a write of this size with those of other workers
FOREIGN = ("bentoml", "circus", "uvicorn", "uvicorn.error", "uvicorn.access")


def configure_logs(log_format: LogFormat, *, descriptor: int = STDERR) -> Background[str]:
    """Sends this process's log to `descriptor` in one format: our own events, and the warnings of other libraries.

    An event carries its fields as `logger.info("reloaded", extra={"fields": {"request_id": "..."}})`.
    """
    handler = _LineHandler(descriptor)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in FOREIGN:
        foreign = logging.getLogger(name)
        foreign.handlers.clear()
        foreign.propagate = True
        foreign.setLevel(logging.WARNING)
    logging.getLogger("lipsformer.serving").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a failing handler would print its traceback in no format
    atexit.register(handler.lines.close, CLOSE_SECONDS)  # a worker that fails while it starts has logged why
    return handler.lines


def access_fields(record: RequestRecord) -> dict[str, object]:
    """The fields of a request's access line; the milliseconds of a stage run from its first start to its last end."""
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "reason": record.reason,
        "bytes": record.bytes,
        "images": record.images,
        "batch": max(record.batches, default=0),
    }
    for stage in dict.fromkeys(span.stage for span in record.spans):
        spans = [span for span in record.spans if span.stage == stage]
        elapsed = max(span.end for span in spans) - min(span.start for span in spans)
        fields[f"{stage}_ms"] = round(elapsed * 1000, 2)
    fields["total_ms"] = round((record.end - record.start) * 1000, 2)
    fields["client"] = record.client
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object per line. It is ASCII only, so that nothing is left that a terminal would interpret."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "pid": record.process,
            "request_id": None,
            **_fields(record),
        }
        if not record.name.startswith("lipsformer."):
            event["logger"] = record.name
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message and the fields that have a value; a traceback follows in indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(
            f" {name}={_shown(value)}"
            for name, value in _fields(record).items()
            if value is not None and value != 0 and name not in IN_MESSAGE
        )
        origin = "" if record.name.startswith("lipsformer.") else f"{record.name}: "
        line = f"{_time(record)} {record.levelname.lower():7} {origin}{record.getMessage()}{fields}"
        lines = [line]
        if record.exc_info:
            lines += ["    " + part for part in self.formatException(record.exc_info).splitlines()]
        return "\n".join(part if part.isprintable() else printable(part) for part in lines)


class _LineHandler(logging.Handler):
    """Hands formatted lines to the background thread that writes them.

    `logging.handlers.QueueListener` wakes for every line and writes each alone: 155 us of CPU per line, against 85 here
    (4,000 access lines, one every 0.5 ms, into a pipe, on 2 cores). python-json-logger adds 20 us.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.lines = Background(self._write, name="log", capacity=WAITING_LINES)
        self._descriptor = descriptor
        self._reported = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put(self.format(record))

    def _write(self, lines: Sequence[str]) -> None:
        for block in _blocks(lines):
            _write_all(self._descriptor, block)
        if self.lines.dropped > self._reported:
            missing, self._reported = self.lines.dropped - self._reported, self.lines.dropped
            note = logging.makeLogRecord(
                {
                    "name": "lipsformer.serving",
                    "levelno": logging.WARNING,
                    "levelname": "WARNING",
                    "msg": f"{missing} log lines were dropped: stderr took no more",
                }
            )
            _write_all(self._descriptor, f"{self.format(note)}\n".encode())


def _blocks(lines: Sequence[str]) -> Iterator[bytes]:
    """The lines, joined into blocks that the kernel writes atomically where a line fits into one."""
    block = b""
    for line in lines:
        encoded = f"{line}\n".encode(errors="replace")
        if block and len(block) + len(encoded) > WHOLE_WRITE:
            yield block
            block = b""
        block += encoded
    if block:
        yield block


def _write_all(descriptor: int, data: bytes) -> None:
    """Writes to a file descriptor. sys.stderr has a lock, and interpreter shutdown would hang on a stuck one."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process that shares stderr has made it non-blocking
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, milliseconds."""
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _shown(value: object) -> str:
    """A field's value as text, quoted if it could be read as several."""
    text = str(value)
    return json.dumps(text) if any(character in text for character in ' "=') or not text else text
