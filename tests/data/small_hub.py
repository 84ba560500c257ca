"""A hub in a thread: what huggingface_hub asks of one to write and read a data set repository, kept in memory.

As on huggingface.co, text goes into the commit itself and other files go through git LFS: the batch request tells
where to put them, they are put there and verified, the commit names them by their SHA-256, and who reads them is sent
on to where they lie.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.tags, self.asked = {}, {}, []
        self.large = {}  # by SHA-256

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def store_url(self):
        """Of large files: another host to who asks."""
        return f"http://localhost:{self.server_address[1]}"


@contextmanager
def running_hub():
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()


def _sha(files):
    return hashlib.sha1(repr(sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())).encode()).hexdigest()


def _is_large(name):
    return not name.endswith((".json", ".jsonl", ".md", ".txt", ".gitattributes"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, body, status=200, headers=()):
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def handle_any(self):
        hub = self.server
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append((self.command, path))
        parts = path.strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.repos.setdefault(repo, {})
            return self.answer({"url": f"{hub.url}/datasets/{repo}", "id": "0"})
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return self.answer(
                {"transfer": "basic", "objects": [self.where_to_put(o) for o in json.loads(body)["objects"]]}
            )
        if parts[0] == "lfs" and self.command == "PUT":
            hub.large[parts[1]] = body
            return self.answer({})
        if parts[0] == "lfs" and self.command == "POST":
            asked = json.loads(body)
            there = hub.large.get(asked["oid"], b"")
            good = (hashlib.sha256(there).hexdigest(), len(there)) == (asked["oid"], asked["size"])
            return self.answer({}, 200 if good else 404)
        if parts[0] == "lfs":
            return self.answer(hub.large[parts[1]])
        if parts[0] == "datasets" and parts[3] == "resolve":
            files = hub.repos.get("/".join(parts[1:3]), {})
            name = "/".join(parts[5:])
            if name not in files:
                return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
            if _is_large(name):
                oid = hashlib.sha256(files[name]).hexdigest()
                hub.large[oid] = files[name]
                linked = {
                    "X-Linked-Etag": f'"{oid}"',
                    "X-Linked-Size": str(len(files[name])),
                    "X-Repo-Commit": _sha(files),
                }
                return self.answer(b"", 302, {**linked, "Location": f"{hub.store_url}/lfs/{oid}"})
            etag = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X-Repo-Commit": _sha(files)}
            if self.command == "HEAD":
                return self.answer(b"", headers={**etag, "Content-Length": str(len(files[name]))})
            return self.answer(files[name], headers=etag)
        repo, rest = "/".join(parts[2:4]), parts[4:]
        if parts[:2] != ["api", "datasets"] or repo not in hub.repos:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = hub.repos[repo]
        if rest[:1] == ["preupload"]:
            plan = [
                {"path": f["path"], "uploadMode": "lfs" if _is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": plan})
        if rest[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "lfsFile":
                    files[line["value"]["path"]] = hub.large[line["value"]["oid"]]
                if line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            return self.answer({"commitUrl": f"{hub.url}/datasets/{repo}/commit/0", "commitOid": _sha(files)})
        if rest[:1] == ["tag"]:
            if self.command == "DELETE" and rest[1] not in hub.tags:
                return self.answer({}, 404, {"X-Error-Code": "RevisionNotFound"})
            if self.command == "DELETE":
                del hub.tags[rest[1]]
            else:
                hub.tags[json.loads(body)["tag"]] = rest[1]
            return self.answer({})
        if rest[:1] == ["tree"]:
            oids = {k: hashlib.sha1(v).hexdigest() for k, v in files.items()}
            return self.answer([{"type": "file", "path": k, "size": len(v), "oid": oids[k]} for k, v in files.items()])
        names = [{"rfilename": k} for k in files]
        return self.answer({"id": repo, "_id": "0", "sha": _sha(files), "siblings": names, "private": False,
                            "downloads": 0, "likes": 0, "tags": [], "disabled": False, "gated": False})  # fmt: skip

    def where_to_put(self, wanted):
        hub, oid = self.server, wanted["oid"]
        if oid in hub.large:
            return wanted
        return {
            **wanted,
            "actions": {"upload": {"href": f"{hub.url}/lfs/{oid}"}, "verify": {"href": f"{hub.url}/lfs/verify"}},
        }

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = handle_any
