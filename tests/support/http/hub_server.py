"""The routes of the Hugging Face Hub that huggingface-hub uses, over a real socket; without Xet."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import time
import types
import urllib.parse
from collections.abc import Iterator, Mapping

import huggingface_hub.constants
import pytest

from .running import running

__all__ = ["HubServer", "hub_server"]

Files = dict[str, bytes]


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: from OWNER/NAME to branches, and from those to files.
        tokens: that are accepted, with whether they may write.
        gated, private: repositories of these kinds; nobody has access to the gated ones.
        cuts: for each download in turn, the number of bytes after which the connection breaks; then it does not.
        damage: downloads differ from what was uploaded.
        requests: the method and path of each request, and its Range.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Files]] = {}
        self.tokens = {"hf_writer": True, "hf_reader": False}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.cuts: list[int] = []
        self.damage = False
        self.status: int | None = None
        self.uploads: Files = {}
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.resolve(body=False)

    def do_GET(self) -> None:
        self.resolve(body=True)

    def do_PUT(self) -> None:
        self.note()
        self.server.uploads[self.path.rpartition("/")[2]] = self.body()
        self.answer(200, {})

    def do_POST(self) -> None:
        self.note()
        body, path = self.body(), urllib.parse.unquote(self.path)
        if path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.refused(write=True):
            return
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/(.+?/.+?)/branch/(.+)", path):
            branches = self.server.repositories[match[1]]
            branches.setdefault(match[2], dict(branches["main"]))
            self.answer(201, {})
        elif re.fullmatch(r"/api/models/.+/preupload/.+", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            entries = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.answer(200, {"files": entries})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/upload/{entry['oid']}"}}
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+?/.+?)/commit/(.+)", path):
            self.commit(match[1], match[2], body)
        else:
            self.answer(404, {})

    def create(self, asked: Mapping[str, str]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, {"main": {}})
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}"})

    def commit(self, name: str, branch: str, body: bytes) -> None:
        files = self.server.repositories[name][branch]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                content = self.server.uploads[line["value"]["oid"]]
                assert hashlib.sha256(content).hexdigest() == line["value"]["oid"]
                files[line["value"]["path"]] = content
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{_oid(files)}", "commitOid": _oid(files)})

    def resolve(self, *, body: bool) -> None:
        self.note()
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None or self.refused(match[1]):
            if match is None:
                self.answer(404, {})
            return
        branches, revision = self.server.repositories[match[1]], urllib.parse.unquote(match[2])
        files = next((files for name, files in branches.items() if revision in (name, _oid(files))), None)
        if files is None:
            self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return
        common = {"X-Repo-Commit": _oid(files)}
        if match[3] not in files:
            self.answer(404, {}, {**common, "X-Error-Code": "EntryNotFound"})
            return
        content = files[match[3]]
        self.send(content, common, body=body)

    def send(self, content: bytes, headers: Mapping[str, str], *, body: bool) -> None:
        asked = self.headers.get("Range")
        start = int(re.sub(r"\D", "", asked)) if asked else 0
        sent = content[start:]
        digest = hashlib.sha256(content).hexdigest()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        lfs = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "ETag": f'"{digest[:32]}"'}
        for name, value in {**headers, **lfs, "Content-Length": str(len(sent))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            sent = sent[:-1] + bytes([sent[-1] ^ 1]) if self.server.damage else sent
            self.wfile.write(sent[: self.server.cuts.pop(0)] if self.server.cuts else sent)

    def refused(self, repository: str | None = None, *, write: bool = False) -> bool:
        """Whether the request is refused, which is then answered."""
        server, token = self.server, (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if server.status is not None:
            self.answer(server.status, {})
        elif token and token not in server.tokens:
            self.answer(401, {}, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif write and not server.tokens.get(token):
            self.answer(403 if token else 401, {"error": "no permission"})
        elif repository in server.gated:
            self.answer(403, {}, {"X-Error-Code": "GatedRepo"})
        elif repository is not None and (
            repository not in server.repositories or (repository in server.private and not token)
        ):
            self.answer(401 if not token else 404, {}, {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def answer(self, status: int, content: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def note(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def _oid(files: Files) -> str:
    """The identifier of a commit: 40 hexadecimal digits."""
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def hub_server(cache: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running server that huggingface-hub speaks to in this process, with its cache in the folder `cache`."""
    constants = huggingface_hub.constants
    with running(server := HubServer()):
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": cache,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_TOKEN_PATH": f"{cache}/token",
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(
            "huggingface_hub.utils._http.time", types.SimpleNamespace(sleep=lambda _: None, time=time.time)
        )
        yield server
