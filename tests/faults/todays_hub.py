"""The Hugging Face hub in miniature as it answers today, where `fake_hub` answers simply.

A large file is redirected, by an absolute address, to another host that knows nothing of tokens and
whose signed addresses expire; a small one to `/api/resolve-cache/`, by a relative address, and
comes compressed to whoever takes that. An old name is redirected to the new one. The list of a
dataset's files has folders in it and comes in pages. A refusal says why in its headers, and a
client that asks too much is told when to come back by `RateLimit`, without a `Retry-After`.

After docs/hub/rate-limits.md and docs/hub/xet/ of huggingface/hub-docs, and the answers quoted in
huggingface_hub's issues 4815 and 2457 and swift-transformers' 209.
"""

import gzip
import http.server
import json
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from conftest import serving
from fake_hub import COMMIT, child_env, git_sha1, is_large, sha256

CONVERTED = "refs/convert/parquet"
COMMIT_CONVERTED = "c" * 40
PAGE = 3
"""Files on a page of the list."""


@dataclass
class TodaysHub:
    """A hub with one repository."""

    files: dict[str, bytes]
    converted: dict[str, bytes] = field(default_factory=dict)
    """Files of the branch `refs/convert/parquet`; there is none without any."""
    name: str = "owner/set"
    was: str = "set"
    """The old name."""
    gated: bool = False
    """Whether nothing but its list is for everyone."""
    token: str = ""
    """Whoever sends another one is unknown."""
    busy: int = 0
    """So many requests more are refused for the rate limit, which ends in `reset_s` seconds."""
    reset_s: int = 1
    expire_after: int = 0
    """Bytes after which a signed address ends its answer; 0 for none."""
    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    """What was asked for, by its address without the query."""
    faults: list[str] = field(default_factory=list)
    """What a client should not have done."""

    def env(self, home: Path, **more: str) -> dict[str, str]:
        return child_env(self.address, home, **more)


@contextmanager
def serve_today(hub: TodaysHub) -> Iterator[TodaysHub]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            quoted, _, query = self.path.partition("?")
            path, asked = urllib.parse.unquote(quoted), urllib.parse.parse_qs(query)
            hub.asked[path] += 1
            if path.startswith("/cdn/"):
                return self.stored(path, asked)
            if hub.busy:
                hub.busy -= 1
                limit = {"RateLimit": f'"api";r=0;t={hub.reset_s}'}
                policy = {"RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
                return self.send(429, b'{"error":"slow down"}', limit | policy)
            if found := re.fullmatch(r"/api/datasets/(.+?)/(revision|tree)/([^?]+)", quoted):
                return self.about(found[1], found[2], urllib.parse.unquote(found[3]), asked)
            if found := re.fullmatch(r"/api/resolve-cache/(.+?)/([0-9a-f]{40})/(.+)", path):
                return self.small(self.at(found[2])[found[3]])
            found = re.fullmatch(r"/(?:datasets/)?(.+?)/resolve/([^/]+)/(.+)", quoted)
            if not found:
                return self.refuse(404, "", "no such page")
            name, revision, file = map(urllib.parse.unquote, found.groups())
            self.resolve(name, revision, file)

        def at(self, revision: str) -> dict[str, bytes]:
            return hub.converted if revision in (CONVERTED, COMMIT_CONVERTED) else hub.files

        def known(self, name: str) -> bool:
            """Whether a name is that of the repository; answers if not."""
            sent = self.headers.get("Authorization", "")
            if sent and sent != f"Bearer {hub.token}":
                self.refuse(401, "", "Invalid credentials in Authorization header")
            elif name == hub.was:
                self.send(
                    307, b"", {"Location": self.path.replace(f"/{name}/", f"/{hub.name}/", 1)}
                )
            elif name != hub.name:  # to whom it may be hidden it is missing
                self.refuse(401, "", "Invalid username or password.")
            else:
                return True
            return False

        def about(self, name: str, what: str, rest: str, asked: dict[str, list[str]]) -> None:
            if not self.known(name):
                return
            if what == "revision":
                if rest not in ("main", CONVERTED) or not self.at(rest):
                    return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {rest}")
                about = {"id": name, "sha": COMMIT_CONVERTED if rest == CONVERTED else COMMIT}
                if "expand" not in asked:  # a list of every file comes with it
                    about["siblings"] = [{"rfilename": f} for f in self.at(rest)] * 1000
                return self.send(200, json.dumps(about).encode())
            revision, _, under = rest.partition("/")
            paths = self.tree(self.at(revision), under)
            if under and not paths:
                return self.refuse(404, "EntryNotFound", f"{under} does not exist on {revision}")
            start = int(asked.get("cursor", ["0"])[0])
            more = {}
            if start + PAGE < len(paths):
                following = f"{hub.address}{self.path.split('?')[0]}?recursive=true"
                more["Link"] = f'<{following}&limit={PAGE}&cursor={start + PAGE}>; rel="next"'
            self.send(200, json.dumps(paths[start : start + PAGE]).encode(), more)

        def tree(self, files: dict[str, bytes], under: str) -> list[dict[str, object]]:
            """The folders and files below one."""
            found: dict[str, dict[str, object]] = {}
            for name, data in sorted(files.items()):
                for folder in [p for p in map(str, PurePosixPath(name).parents) if p != "."][::-1]:
                    found[folder] = {
                        "type": "directory",
                        "path": folder,
                        "oid": "0" * 40,
                        "size": 0,
                    }
                one: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
                found[name] = one | {"oid": git_sha1(data)}
                if is_large(name) or name.endswith(".gz"):
                    lfs = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
                    found[name] = one | {"oid": "0" * 40, "lfs": lfs, "xetHash": sha256(data)}
            return [
                one
                for name, one in found.items()
                if not under or f"{name}/".startswith(f"{under}/")
            ]

        def resolve(self, name: str, revision: str, file: str) -> None:
            if not self.known(name):
                return
            if hub.gated and self.headers.get("Authorization") is None:
                why = f"Access to dataset {name} is restricted. You must have access to it and be "
                return self.refuse(
                    401, "GatedRepo", f"{why}authenticated to access it. Please log in."
                )
            data = self.at(revision).get(file)
            if data is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            commit = COMMIT_CONVERTED if self.at(revision) is hub.converted else COMMIT
            common = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if not (is_large(file) or file.endswith(".gz")):
                to = f"/api/resolve-cache/datasets/{name}/{commit}/{urllib.parse.quote(file)}"
                return self.send(
                    307, b"", common | {"Location": f"{to}?etag=%22{git_sha1(data)}%22"}
                )
            cdn = f"http://localhost:{self.server.server_address[1]}/cdn/{sha256(data)}"
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"'}
            signed = {"Location": f"{cdn}?X-Amz-Expires=3600&X-Amz-Signature=0"}
            xet = {"X-Xet-Hash": sha256(data), "ETag": '"of-the-redirect-itself"'}
            token = f"{hub.address}/api/models/{name}/xet-read-token/{commit}"  # there is none
            xet["Link"] = f'<{token}>; rel="xet-auth"'
            self.send(302, b"Found. Redirecting to the CDN", common | linked | signed | xet)

        def small(self, data: bytes) -> None:
            headers = {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": COMMIT}
            if "gzip" in self.headers.get("Accept-Encoding", ""):  # whole, whatever the Range
                headers |= {"Content-Encoding": "gzip", "ETag": f'W/"{git_sha1(data)}"'}
                return self.send(200, gzip.compress(data), headers)
            self.part(data, headers)

        def stored(self, path: str, asked: dict[str, list[str]]) -> None:
            """From the store of large files."""
            if self.headers.get("Authorization"):
                hub.faults.append("a token was sent to the CDN")
                return self.send(400, b"<Error>Only one auth mechanism allowed</Error>")
            if "X-Amz-Signature" not in asked:
                return self.send(403, b"<Error>Missing Key-Pair-Id query parameter</Error>")
            every = {**hub.converted, **hub.files}.values()
            data = next(d for d in every if sha256(d) == path.rpartition("/")[2])
            self.part(data, {"ETag": '"an-etag-of-s3"', "Accept-Ranges": "bytes"})

        def part(self, data: bytes, headers: dict[str, str]) -> None:
            """What the Range header asks for."""
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and int(asked[1]) >= len(data):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            if not asked:
                return self.send(200, data, headers)
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.send(206, data[first : last + 1], headers)

        def refuse(self, status: int, code: str, why: str) -> None:
            headers = {"X-Error-Message": why} | ({"X-Error-Code": code} if code else {})
            headers["X-Request-Id"] = "Root=1-68b8a9c2-0a1b2c3d4e5f;0123-4567"
            self.send(status, json.dumps({"error": why}).encode(), headers)

        def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            kind = {"Content-Type": "application/json"} if self.path.startswith("/api/") else {}
            for name, value in (kind | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.expire_after and self.path.startswith("/cdn/") and len(body) > hub.expire_after:
                self.wfile.write(body[: hub.expire_after])
                self.close_connection = True
            else:
                self.wfile.write(body)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that goes away is expected."""

    with serving(Server(("127.0.0.1", 0), Handler)) as hub.address:
        yield hub
