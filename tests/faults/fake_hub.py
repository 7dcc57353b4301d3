"""A Hugging Face hub in miniature on this machine, that lies, hangs, drips and refuses on demand.

It answers what the client asks for a file, HEAD and GET of `/NAME/resolve/REVISION/FILE` with
ranges, and about a dataset: its commit and its files with their hashes.
"""

import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conftest import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLOSED = "http://127.0.0.1:9"
"""An address at which nobody listens."""


@dataclass
class Hub:
    """What it serves, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    behaviour: str = ""
    """Of GETs of the `victim`; with `head:` before it, of every HEAD; with `api:`, of what is asked
    about a dataset."""
    victim: str = "model.safetensors"
    address: str = ""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    """The Range header of each GET of the victim."""
    times: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def gets(self, file: str = "") -> int:
        return self.asked["GET", file or self.victim]

    def env(self, home: Path, **more: str) -> dict[str, str]:
        return child_env(self.address, home, **more)


def child_env(address: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a child that uses the hub at `address`, with a cache of its own."""
    return {
        "HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "*", "no_proxy": "*",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", **more,
    }  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(file: str) -> bool:
    """Whether the hub keeps a file as LFS, and so knows its SHA-256."""
    return file.endswith((".safetensors", ".parquet", ".tar", ".bin"))


@contextmanager
def serve(
    files: dict[str, bytes], behaviour: str = "", victim: str = "model.safetensors"
) -> Iterator[Hub]:
    """A hub that serves the files, whatever the model's or dataset's name."""
    hub = Hub(files, behaviour, victim)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer("HEAD")

        def do_GET(self) -> None:
            self.answer("GET")

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, method: str) -> None:
            quoted = self.path.split("?")[0]  # a revision such as refs/convert/parquet is one part
            path = urllib.parse.unquote(quoted)
            file = urllib.parse.unquote(quoted.partition("/resolve/")[2].partition("/")[2])
            file = file or path.rpartition("/")[2]
            about = path.startswith("/api/datasets/")
            hub.asked[method, "api" if about else file] += 1
            hub.times.append(time.monotonic())
            of, _, kind = hub.behaviour.rpartition(":")
            if about:
                ill = getattr(self, kind, None) if of == "api" else None
                return ill(method, "api", b"{}") if ill else self.dataset(path)
            if file not in hub.files:
                return self.send(404, b"no")
            if (method, file) == ("GET", hub.victim):
                hub.ranges.append(self.headers.get("Range", ""))
            mine = method == "HEAD" if of == "head" else (method, file) == ("GET", hub.victim)
            body = hub.files[file]
            getattr(self, kind.replace("-", "_"), self.send_file)(method, file, body) if (
                mine and kind and of != "api"
            ) else self.send_file(method, file, body)

        def dataset(self, path: str) -> None:
            """`/api/datasets/NAME/revision/REVISION` or `/api/datasets/NAME/tree/COMMIT/FOLDER`."""
            under = path.partition("/tree/")[2].partition("/")[2]
            if path.endswith("/refs/convert/parquet"):  # todays_hub.py has that branch
                return self.send(404, b"{}", X_Error_Code="RevisionNotFound")
            if "/tree/" not in path:
                return self.send(200, json.dumps({"id": "a/b", "sha": COMMIT}).encode())
            found = [
                {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
                | ({"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}}
                   if is_large(name) else {})
                for name, data in hub.files.items()
                if name.startswith(under)
            ]  # fmt: skip
            self.send(200, json.dumps(found).encode(), Content_Type="application/json")

        def send(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def send_file(self, method: str, file: str, body: bytes, send: bytes | None = None) -> None:
            true = hub.files[file]
            body = body if send is None else send
            etag = sha256(true) if is_large(file) else git_sha1(true)
            common = {"X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes", "ETag": f'"{etag}"'}
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not asked:
                return self.send(200, body, **common)
            first, last = int(asked[1]), int(asked[2] or len(body) - 1)
            span = f"bytes {first}-{last}/{len(body)}"
            self.send(206, body[first : last + 1], Content_Range=span, **common)

        # Misbehaviour, by name.

        def hang(self, *_: object) -> None:
            hub.over.wait(60)
            self.close_connection = True

        def drip(self, method: str, file: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body:
                if hub.over.wait(0.05):
                    break
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            self.close_connection = True

        def slow(self, method: str, file: str, body: bytes) -> None:
            """Half of it at once, the rest in two seconds."""
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            hub.over.wait(2)
            self.wfile.write(body[len(body) // 2 :])

        def short(self, method: str, file: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True

        def breaks(self, method: str, file: str, body: bytes) -> None:
            """Half of what is asked for, at most, and the connection is gone; whole below 3 kB."""
            start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
            rest = body[start:]
            if len(rest) < 3000:
                return self.send_file(method, file, body)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True

        def short_once(self, method: str, file: str, body: bytes) -> None:
            (self.short if hub.asked[method, file] == 1 else self.send_file)(method, file, body)

        def missing(self, *_: object) -> None:
            self.send(404, b"no")

        def wrong(self, method: str, file: str, body: bytes) -> None:
            self.send_file(method, file, body, body[:-1] + bytes([body[-1] ^ 1]))

        def wrong_once(self, method: str, file: str, body: bytes) -> None:
            (self.wrong if hub.asked[method, file] == 1 else self.send_file)(method, file, body)

        def html(self, *_: object) -> None:
            self.send(200, b"<html>sign in</html>", Content_Type="text/html")

        def busy_twice(self, method: str, file: str, body: bytes) -> None:
            if hub.asked[method, file] <= 2:
                return self.send(503, b"later")
            self.send_file(method, file, body)

        def busy(self, *_: object) -> None:
            self.send(503, b"later", Retry_After="0")

        def too_many(self, method: str, file: str, body: bytes) -> None:
            if hub.asked[method, file] == 1:
                return self.send(429, b"slow down", Retry_After="2")
            self.send_file(method, file, body)

        def loop(self, *_: object) -> None:
            self.send(302, b"", Location=self.path)

        def to_file(self, *_: object) -> None:
            self.send(302, b"", Location="file:///etc/passwd", X_Repo_Commit=COMMIT, ETag='"abc"')

        def to_other(self, *_: object) -> None:
            """To the same server under another name, so another host to the client."""
            port = self.server.server_address[1]
            self.send(302, b"", Location=f"http://localhost:{port}{self.path}")

        def to_other_once(self, method: str, file: str, body: bytes) -> None:
            here = "localhost" in self.headers["Host"]
            self.send_file(method, file, body) if here else self.to_other()

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that goes away is expected."""

    with serving(Server(("127.0.0.1", 0), Handler)) as hub.address:
        try:
            yield hub
        finally:
            hub.over.set()
