"""Tar shards by URL: downloaded once, each atomically, then read from the cache folder."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath

from lipsformer.datasets.labels import CLASS_FILES
from lipsformer.system.console import say, track
from lipsformer.system.download import DownloadError, download
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cache_folder

from .braces import expand
from .tar_shards import fixed_part

__all__ = ["fetch_shards", "is_url"]

AT_ONCE = 4
ABSENT = (403, 404, 410)  # object stores answer 403 for missing files


def is_url(data: str) -> bool:
    """Whether `data` is an http or https URL."""
    return data.lower().startswith(("http://", "https://"))


def fetch_shards(url: str) -> Path:
    """Downloads the shards of a URL with braces, and their file of class names. Returns their path in the cache folder.

    Files in the cache are not requested again. A query string, such as a signature, is sent with each request.

    Raises:
        InputError: if the URL names no .tar files, or one is unavailable.
    """
    pattern, question, query = url.partition("?")
    if not pattern.lower().endswith(".tar"):
        raise InputError(f"{pattern}: not a .tar shard; give one, or several as in https://host/train-{{000..146}}.tar")
    targets = {name: _target(name) for name in expand(pattern)}
    missing = {name: target for name, target in targets.items() if not target.is_file()}
    if missing:
        folders = dict.fromkeys((fixed_part(pattern), next(iter(targets)).rpartition("/")[0]))
        for folder in folders:
            _fetch_classes(folder, question + query)
        place = _target(pattern).parent
        say(f"downloading {len(missing)} of {len(targets)} shards of {pattern} into {place}")
        _fetch_all(missing, question + query)
    return _target(pattern)


def _target(url: str) -> Path:
    """The path of a URL in the cache folder."""
    parts = urllib.parse.urlsplit(url)
    path = PurePosixPath(parts.path.lstrip("/"))
    host = parts.netloc.rpartition("@")[2].replace(":", "_")
    if not host or ".." in path.parts:
        raise InputError(f"{url}: not a plain URL; write it as in https://host/folder/train-{{000..146}}.tar")
    return cache_folder() / "shards" / host / path


def _fetch_all(missing: Mapping[str, Path], query: str) -> None:
    canceled = threading.Event()
    with track("downloading shards", len(missing)) as advance, ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {
            pool.submit(download, name + query, target, canceled=canceled.is_set): name
            for name, target in missing.items()
        }
        try:
            for job in as_completed(jobs):
                job.result()
                advance(1, jobs[job].rpartition("/")[2])
        finally:  # after a failure, or Ctrl-C
            canceled.set()
            pool.shutdown(cancel_futures=True)


def _fetch_classes(folder: str, query: str) -> None:
    """Downloads the first file of class names in a folder, if there is one."""
    targets = [_target(f"{folder}/{name}") for name in CLASS_FILES]
    if any(target.is_file() for target in targets):
        return
    for name, target in zip(CLASS_FILES, targets, strict=True):
        try:
            download(f"{folder}/{name}{query}", target)
        except DownloadError as error:
            if error.status not in ABSENT:
                raise
        else:
            return
