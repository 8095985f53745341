"""Checkpoints on the Hugging Face Hub, by the name `hf:OWNER/NAME[@REVISION]`.

Only the safetensors file is downloaded, whatever else a repository holds, and nothing of it is executed.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipsformer.system.atomic import sha256_of
from lipsformer.system.console import is_quiet
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.extras import require

__all__ = ["HUB_PREFIX", "WEIGHTS_FILE", "fetch_from_hub", "hub_errors", "hub_progress", "import_hub", "parse_hub_name"]

HUB_PREFIX = "hf:"
WEIGHTS_FILE = "model.safetensors"
PART = r"[A-Za-z0-9](?:[\w.-]*\w)?"  # of a repository's name
NAME = re.compile(rf"hf:({PART}/{PART})(?:@([\w][\w./-]*))?", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """The repository and the revision (None for the default branch) of `hf:OWNER/NAME[@REVISION]`.

    Raises:
        InputError: if `name` is not of that form.
    """
    match = NAME.fullmatch(name)
    if match is None or ".." in name or "--" in match[1]:
        raise InputError(f"{name}: not a name on the Hugging Face Hub; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return match[1], match[2]


def fetch_from_hub(name: str, token: str | None = None) -> Path:
    """The checkpoint of `hf:OWNER/NAME[@REVISION]`, in the cache of huggingface-hub; downloaded if it is new there.

    Without network access, the cached file is used. A file whose SHA-256 differs from the Hub's is removed.

    Raises:
        InputError: if huggingface-hub is missing, or the file is neither available nor in the cache.
        GateError: if the file is damaged.
    """
    repository, revision = parse_hub_name(name)
    hub = import_hub(name)
    with hub_errors(name), hub_progress():
        path = Path(
            hub.hf_hub_download(repository, WEIGHTS_FILE, revision=revision, token=token, library_name="lipsformer")
        )
        stored = path.resolve()  # named by its hash, if the file system has links
        if SHA256.fullmatch(stored.name) and sha256_of(stored) != stored.name:
            stored.unlink()
            path.unlink(missing_ok=True)
            raise GateError(f"{name}: {WEIGHTS_FILE} is damaged and was removed from the cache; run the command again")
    return path


def import_hub(name: str) -> Any:
    """The package huggingface_hub.

    Raises:
        InputError: about `name`, if it is not installed.
    """
    require("hub", what=name)
    import huggingface_hub

    return huggingface_hub


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turns the errors of huggingface_hub into an `InputError` about `name`, in one line."""
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP client

    repository, revision = parse_hub_name(name)
    address = f"{constants.ENDPOINT}/{repository}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        problem = f"access is gated; accept the terms at {address}, then {login}"
    except errors.RepositoryNotFoundError:
        problem = f"no such repository, or a private one; check the name, or {login}"
    except errors.RevisionNotFoundError:
        problem = f"the repository has no revision '{revision or constants.DEFAULT_REVISION}'; see {address}/commits"
    except errors.RemoteEntryNotFoundError:
        problem = f"the repository has no {WEIGHTS_FILE}; `lipsformer push` writes such repositories"
    except errors.LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached{_status(error)}"
        problem = f"{reason}, and it is not in the cache; connect and run `lipsformer download {name}` first"
    except errors.LocalTokenNotFoundError:
        problem = f"a token is needed; {login}"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        denied = {401: f"the token is not valid; {login}", 403: f"the token has no permission for it; {login}"}
        problem = denied.get(status, f"the Hub answers {status} {_server_message(error)}; try again later")
    except (HTTPError, errors.OfflineModeIsEnabled, errors.XetDownloadError, RuntimeError, ValueError) as error:
        problem = f"the transfer failed ({_reason(error)}); check the network and run the command again"
    except OSError as error:
        problem = f"the transfer failed ({_reason(error)}); check the disk and the cache, {constants.HF_HUB_CACHE}"
    else:
        return
    raise InputError(f"{name}: {problem}")


def _server_message(error: Any) -> str:
    return " ".join(str(error.server_message or error.response.reason_phrase).split())


def _status(error: BaseException) -> str:
    response = getattr(error.__cause__, "response", None)
    return "" if response is None else f" (it answers {response.status_code})"


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


@contextlib.contextmanager
def hub_progress() -> Iterator[None]:
    """Shows the progress bars of huggingface_hub on a terminal only, and never its warnings about retries."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity  # imported first: that sets the level
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    visible = sys.stderr.isatty() and not is_quiet()
    before, level = are_progress_bars_disabled(), get_verbosity()
    set_verbosity(logging.ERROR)
    if not visible:
        disable_progress_bars()
    try:
        yield
    finally:
        set_verbosity(level)
        if not before:
            enable_progress_bars()
