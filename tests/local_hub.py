"""A hub on this machine: what the hub's own client asks of one, over real HTTP."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@dataclass
class LocalHub:
    """Folders served as models."""

    address: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    break_after: int | None = None
    """Cut every answer off after so many bytes."""
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """What makes the hub's client come here."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
        }


@contextmanager
def serve_models(**models: Path) -> Iterator[LocalHub]:
    """Serve folders as `test/NAME`."""
    hub = LocalHub(models={f"test/{name}": path for name, path in models.items()})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            model = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
            if model in hub.gated:
                return self.send(b"", 403, {"X-Error-Code": "GatedRepo"})
            if model not in hub.models:
                return self.send(b"", 404, {"X-Error-Code": "RepoNotFound"})
            rest = path.split(model, 1)[1]
            if re.search("/(revision|resolve)/(?!main|1234)", rest):
                return self.send(b"", 404, {"X-Error-Code": "RevisionNotFound"})
            if rest.startswith("/resolve/"):
                return self.send_file(hub.models[model] / rest.split("/", 3)[3])
            files = sorted(hub.models[model].iterdir())
            if rest.startswith("/tree/"):
                return self.send(json.dumps([describe(file) for file in files]).encode())
            siblings = [{"rfilename": file.name} for file in files]
            return self.send(
                json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode()
            )

        def send_file(self, file: Path) -> None:
            if not file.is_file():
                return self.send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            data, about = file.read_bytes(), describe(file)
            etag = about.get("lfs", about)["oid"]
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                return self.send(data[first : last + 1], 206, headers)
            return self.send(data, 200, headers)

        def send(self, body: bytes, status: int = 200, headers: dict | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: hub.break_after])
                if hub.break_after is not None and len(body) > hub.break_after:
                    self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def describe(file: Path) -> dict:
    """Describe a file as the hub's tree does: weights by SHA-256, the rest as git would."""
    data = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": file.name, "size": len(data), "oid": blob}
    if file.suffix == ".safetensors":
        sha = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return entry
