"""Runs the command line, and turns what goes wrong into an exit status and one line on stderr, never a traceback.

Exit status: 0 done, 1 a check failed, a training diverged or some images were rejected, 2 bad input or usage,
130 interrupted, 143 SIGTERM.
"""

from __future__ import annotations

import itertools
import os
import sys

import typer

from lipsformer.system.errors import LipsFormerError
from lipsformer.system.extras import MissingPackageError, missing_package

from .app import app

__all__ = ["main"]

NO_MEMORY = "not enough memory for these settings; choose a smaller model, batch or image"


def main() -> None:
    """Runs the command line and exits with its status."""
    try:
        status = app(_arguments(), prog_name="lipsformer", standalone_mode=False)
    except LipsFormerError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        found = missing_package(error)
        if not isinstance(found, MissingPackageError):
            raise
        _fail(str(found), found.exit_code)
    except typer.exceptions.TyperException as error:
        if not error.format_message():  # no command given: the help has been shown
            sys.exit(error.exit_code)
        _fail(f"{error.format_message()} (see `lipsformer --help`)", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone; point stdout elsewhere so that its flush at exit is silent too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'the operation'}: {error.strerror or error}; check the path and its permissions", 2)
    except MemoryError:
        _fail(NO_MEMORY, 2)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("allocate memory", "out of memory")):  # as torch says it
            raise
        _fail(NO_MEMORY, 2)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _arguments() -> list[str]:
    """The command line, with a bare `--resume` completed to `--resume auto`: typer has no optional option values."""
    words: list[str] = []
    for word, following in itertools.zip_longest(sys.argv[1:], sys.argv[2:]):
        bare = word == "--resume" and following not in ("auto", "never")
        words += [word, "auto"] if bare else [word]
    return words


def _fail(message: str, status: int) -> None:
    from lipsformer.system.console import printable

    typer.echo(f"lipsformer: {printable(' '.join(message.split()))}", err=True)
    sys.exit(status)
