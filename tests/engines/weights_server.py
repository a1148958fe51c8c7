"""A small server on 127.0.0.1 that publishes files as the hub and a release page do, and fails on demand."""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# "cut": half of what was asked for, then the line goes dead. "corrupt": the right length, a wrong byte.
# "no range": all of it, whatever was asked for. A number is a status.
Fault = Literal["cut", "corrupt", "no range"] | int


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came in; `span` is its Range header."""

    method: str
    path: str
    span: str
    token: str


@dataclass(slots=True)
class Server:
    """What is published, what was asked, and the faults to come: one per request for a path, the next one first."""

    endpoint: str
    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    faults: defaultdict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    asked: list[Asked] = field(default_factory=list)

    def publish(self, repo: str, name: str, content: bytes, large: bool = True) -> str:
        """Put a file into a hub repository; return its path on main.

        A large one is known by its sha256, others by the id that git gives to their content.
        """
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        tag = hashlib.sha256(content).hexdigest() if large else git
        for revision in (COMMIT, "main"):
            path = f"/{repo}/resolve/{revision}/{name}"
            self.files[path] = content
            self.headers[path] = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{tag}"',
                "X-Linked-ETag": f'"{tag}"',
                "X-Linked-Size": str(len(content)),
            }
        return path

    def release(self, name: str, content: bytes) -> str:
        """Put a file on the release page, which redirects to where it lies; return its URL."""
        self.files[f"/assets/{name}"] = content
        self.moved[f"/releases/{name}"] = f"{self.endpoint}/assets/{name}"
        return f"{self.endpoint}/releases/{name}"

    def spans(self, name: str) -> list[str]:
        """Return the Range headers of all GET requests for the content of a file called `name`."""
        content = (asked for asked in self.asked if asked.method == "GET" and asked.path in self.files)
        return [asked.span for asked in content if asked.path.endswith("/" + name)]


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in a thread until the block ends."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server = Server(f"http://127.0.0.1:{httpd.server_port}")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, body: bool) -> None:
            path = urlsplit(self.path).path  # a proxy is asked for the whole URL
            span = self.headers.get("Range", "")
            server.asked.append(Asked(self.command, path, span, self.headers.get("Authorization", "")))
            faults = server.faults[path]
            fault = faults.pop(0) if faults and (body or isinstance(faults[0], int)) else None
            if isinstance(fault, int):
                self.respond(fault, {})
            elif path in server.moved:
                self.respond(302, {"Location": server.moved[path]})
            elif path not in server.files:
                self.respond(404, {"X-Error-Code": "EntryNotFound"})
            else:
                self.send_file(path, span, fault, body)

        def send_file(self, path: str, span: str, fault: Fault | None, body: bool) -> None:
            content = server.files[path]
            start = int(span.removeprefix("bytes=").removesuffix("-")) if span and fault != "no range" else 0
            headers = {**server.headers.get(path, {}), "Accept-Ranges": "bytes"}
            if start and start >= len(content):
                self.respond(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            sent = content[start:]
            self.respond(206 if start else 200, headers, len(sent))
            if fault == "cut":
                sent = sent[: len(sent) // 2]
            elif fault == "corrupt":
                sent = sent[:-1] + bytes([sent[-1] ^ 1])
            if body:
                self.wfile.write(sent)

        def respond(self, status: int, headers: dict[str, str], length: int = 0) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    httpd.RequestHandlerClass = Handler
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server and let huggingface_hub take it for the hub, whatever the environment says."""
    with serving() as server:
        point_at(server.endpoint, monkeypatch)
        yield server
        huggingface_hub.close_session()


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does before huggingface_hub is imported; without proxies, tokens and offline mode."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    huggingface_hub.close_session()
