"""The Hugging Face Hub's HTTP API on loopback, as far as dataset repositories need it.

Files without binary bytes are kept in git, others as large files, which are uploaded to an address
of their own and served by a redirect, as the Hub does it. Writing asks for a token.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_token-of-the-tests"


def reach(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the hub be at an address."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own


@dataclass
class Repository:
    """Commits, oldest first: an id, a message, and the files by name. branches: their last ones."""

    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        """Return the files of a branch or of a commit; None if there is no such."""
        wanted = self.branches.get(revision, revision)
        return next((files for oid, _, files in self.commits if oid == wanted), None)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> str:
        """Return the id of a new commit with these files more."""
        before = self.files(branch) or {}
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, {**before, **files}))
        self.branches[branch] = oid
        return oid

    @property
    def messages(self) -> list[str]:
        """Return what the commits say."""
        return [message for _, message, _ in self.commits]


@dataclass
class Hub:
    """What the server knows. refusals: status and error code, by the start of "METHOD /path"."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def new(self, name: str, *, private: bool = False) -> Repository:
        """Return a new repository, as the Hub makes one."""
        made = self.repositories[name] = Repository(private=private)
        made.commit("main", "initial commit", {".gitattributes": b"*.bin filter=lfs\n"})
        return made


class _RefusalError(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


@dataclass
class _Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def _json(value: Any) -> _Answer:
    return _Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Answer as the Hub does; yield what it knows."""
    hub = known = Hub()

    class Handler(_Handler):
        hub, lock = known, threading.Lock()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    lock: threading.Lock

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def log_message(self, format: str, *values: object) -> None:
        pass

    def _handle(self) -> None:
        hub, lock = self.hub, self.lock
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        try:
            with lock:
                hub.requests.append(request)
                for start, (status, code) in hub.refusals.items():
                    if request.startswith(start):
                        raise _RefusalError(status, code)
                answer = self._route(hub, path, body)
        except _RefusalError as refusal:
            answer = _json({"error": refusal.code or "refused"})
            answer.status = refusal.status
            answer.headers["X-Error-Code"] = refusal.code
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, hub: Hub, path: str, body: bytes) -> _Answer:
        if path == "/api/repos/create":
            return self._create(hub, json.loads(body))
        if path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---")[1]
            if not isinstance(yaml.safe_load(front), dict):
                raise _RefusalError(400)
            return _json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/large/([0-9a-f]{64})", path):
            return self._large(hub, found[1], body)
        if found := re.fullmatch(r"/datasets/(.+)\.git/info/lfs/objects/batch", path):
            self._find(hub, found[1], write=True)
            return _json({"objects": [self._batch(hub, o) for o in json.loads(body)["objects"]]})
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(hub, *found.groups())
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._info(hub, found[1], found[2] or "main")
        form = r"/api/datasets/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)"
        if found := re.fullmatch(form, path):
            repository = self._find(hub, found[1], write=True)
            if found[2] == "preupload":
                return self._preupload(repository, found[3], json.loads(body))
            if found[2] == "branch":
                return self._branch(repository, found[3])
            return self._commit(hub, repository, found[3], body)
        raise _RefusalError(404)

    # --- who may do what -------------------------------------------------------------------

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _find(self, hub: Hub, name: str, *, write: bool = False) -> Repository:
        found = hub.repositories.get(name)
        if found is None or (found.private and not self._may()):
            raise _RefusalError(404 if self._may() else 401, "RepoNotFound")
        if write and not self._may():
            raise _RefusalError(403)
        return found

    def _create(self, hub: Hub, wanted: dict[str, Any]) -> _Answer:
        assert wanted["type"] == "dataset"
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self._may():
            raise _RefusalError(401)
        if name in hub.repositories:
            raise _RefusalError(409)
        hub.new(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _json({"url": f"{hub.address}/datasets/{name}", "name": name})

    # --- reading ---------------------------------------------------------------------------

    def _info(self, hub: Hub, name: str, revision: str) -> _Answer:
        found = self._find(hub, name)
        files = found.files(revision)
        if files is None:
            raise _RefusalError(404, "RevisionNotFound")
        return _json(
            {
                "id": name,
                "sha": found.branches.get(revision, revision),
                "private": found.private,
                "siblings": [{"rfilename": file} for file in files],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    def _resolve(self, hub: Hub, name: str, revision: str, file: str) -> _Answer:
        files = self._find(hub, name).files(revision)
        if files is None:
            raise _RefusalError(404, "RevisionNotFound")
        if file not in files:
            raise _RefusalError(404, "EntryNotFound")
        data = files[file]
        if _is_large(data):
            oid = hashlib.sha256(data).hexdigest()
            hub.large[oid] = data
            headers = {"Location": f"{hub.address}/large/{oid}", "X-Linked-Size": str(len(data))}
            return _Answer(status=302, headers=headers)
        return self._ranged(data)

    def _large(self, hub: Hub, oid: str, body: bytes) -> _Answer:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                raise _RefusalError(400)
            hub.large[oid] = body
            return _Answer()
        return self._ranged(hub.large[oid])

    def _ranged(self, data: bytes) -> _Answer:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None:
            return _Answer(data)
        first, last = int(found[1]), min(int(found[2]), len(data) - 1)
        if first >= len(data):
            raise _RefusalError(416)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return _Answer(data[first : last + 1], 206, headers)

    # --- writing ---------------------------------------------------------------------------

    def _batch(self, hub: Hub, wanted: dict[str, Any]) -> dict[str, Any]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in hub.large:
            return answer
        return {
            **answer,
            "actions": {"upload": {"href": f"{hub.address}/large/{wanted['oid']}", "header": {}}},
        }

    def _preupload(self, found: Repository, branch: str, wanted: dict[str, Any]) -> _Answer:
        files = found.files(branch)
        if files is None:
            raise _RefusalError(404, "RevisionNotFound")
        answers = []
        for file in wanted["files"]:
            mode = "lfs" if _is_large(base64.b64decode(file["sample"])) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if (there := files.get(file["path"])) is not None:
                git = hashlib.sha1(f"blob {len(there)}\0".encode() + there).hexdigest()
                large = hashlib.sha256(there).hexdigest()
                answer["oid"] = large if _is_large(there) else git
            answers.append(answer)
        return _json({"files": answers})

    def _branch(self, found: Repository, branch: str) -> _Answer:
        if branch in found.branches:
            raise _RefusalError(409)
        found.branches[branch] = found.branches["main"]
        return _json({})

    def _commit(self, hub: Hub, found: Repository, branch: str, body: bytes) -> _Answer:
        if found.files(branch) is None:
            raise _RefusalError(404, "RevisionNotFound")
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, found.branches[branch]):
            raise _RefusalError(412)
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
        oid = found.commit(branch, lines[0]["value"]["summary"], files)
        return _json({"success": True, "commitOid": oid, "commitUrl": f"{hub.address}/c/{oid}"})


def _is_large(data: bytes) -> bool:
    return b"\0" in data[:512]
