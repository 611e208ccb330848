"""A local HTTP server that speaks the calls of Slack's Web API that kmon makes, and that fails when told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

POST, URL, UPLOAD, COMPLETE = "chat.postMessage", "files.getUploadURLExternal", "upload", "files.completeUploadExternal"
TOKEN = "xoxb-1-secret"


@dataclass(frozen=True)
class Call:
    """One request as it came in."""

    method: str
    fields: dict[str, Any]
    body: bytes
    authorization: str


@dataclass(frozen=True)
class Fault:
    """How a call is answered instead: an HTTP status, an error code, or nothing at all."""

    status: int = 200
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Hang up in the middle of the request's body."""


class SlackServer:
    """Records the calls; `fail` queues faults for a method."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[Call] = []
        self._faults: dict[str, list[Fault]] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/api/"

    def fail(self, method: str, *faults: Fault) -> None:
        """Answer the next calls of `method` with these, one each."""
        self._faults.setdefault(method, []).extend(faults)

    def made(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    @property
    def order(self) -> list[str]:
        return [call.method for call in self.calls]

    @contextmanager
    def running(self) -> Iterator[SlackServer]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def answer(self, method: str) -> dict[str, Any]:
        number = len(self.made(method))
        answers: dict[str, dict[str, Any]] = {
            "auth.test": {"user": "kmon"},
            POST: {"channel": "C0P17", "ts": f"1700000000.00000{number}"},
            URL: {"upload_url": self.url.replace("/api/", f"/upload/{number}"), "file_id": f"F{number}"},
            COMPLETE: {"files": [{"id": f"F{len(self.made(URL))}"}]},
        }
        return answers.get(method, {})

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                method = UPLOAD if self.path.startswith("/upload/") else self.path.removeprefix("/api/")
                queue = server._faults.get(method)
                fault = queue.pop(0) if queue else Fault()
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length // 2 if fault.drop else length)
                fields = {} if fault.drop else self._fields(body)
                server.calls.append(Call(method, fields, body, self.headers.get("Authorization", "")))
                if fault.drop:
                    self.close_connection = True
                    return
                answer = {"ok": False, "error": fault.error} if fault.error else {"ok": True, **server.answer(method)}
                self._reply(fault, answer)

            def _fields(self, body: bytes) -> dict[str, Any]:
                kind = self.headers.get("Content-Type", "")
                if kind.startswith("application/json"):
                    return dict(json.loads(body or b"{}"))
                return dict(parse_qsl(body.decode())) if self.path.startswith("/api/") else {}

            def _reply(self, fault: Fault, answer: dict[str, Any]) -> None:
                text = json.dumps(answer).encode()
                self.send_response(fault.status)
                for key, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(text)),
                    **fault.headers,
                }.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
