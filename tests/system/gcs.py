"""A bucket server on this machine that speaks as much of Google's storage API as tensorstore and gcsfs ask for."""

import importlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def forget():
    """What epath and gcsfs keep of gs:// from one test to the next: file systems, their sessions and listings."""
    importlib.import_module("etils.epath.backend").fsspec_backend._get_filesystem.cache_clear()
    importlib.import_module("gcsfs").GCSFileSystem.clear_instance_cache()


class Server(ThreadingHTTPServer):
    """`objects` is {(bucket, name): (generation, content)}; `asked` is every request as (method, name)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.asked, self.lock, self.generation = {}, [], threading.Lock(), 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.handle_error = lambda *_: None  # a client that has gone
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, code, content=b"", kind="application/json", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _ask(self):
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(?:/(.*))?)?)?", url.path)
        bucket, name, rest = found.groups() if found else (None, None, None)
        name = urllib.parse.unquote(name) if name else None
        self.server.asked.append((self.command, name or query.get("name") or query.get("prefix", "")))
        return url.path, query, bucket, name, rest

    def _body(self):
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _described(self, bucket, name):
        generation, content = self.server.objects[bucket, name]
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content)),
            "generation": str(generation), "metageneration": "1", "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z", "contentType": "application/octet-stream",
        }  # fmt: skip

    def do_GET(self):
        path, query, bucket, name, _ = self._ask()
        with self.server.lock:
            if bucket is None:
                return self._answer(404, {"error": {"code": 404, "message": path}})
            if name is None and not path.endswith("/o"):
                return self._answer(200, {"kind": "storage#bucket", "name": bucket})
            if name is None:
                return self._answer(200, self._list(bucket, query))
            if (bucket, name) not in self.server.objects:
                return self._answer(404, {"error": {"code": 404, "message": "not found"}})
            if query.get("alt") != "media" and not path.startswith("/download"):
                return self._answer(200, self._described(bucket, name))
            generation, content = self.server.objects[bucket, name]
        headers, code, size = {"x_goog_generation": generation, "ETag": generation}, 200, len(content)
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
            last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
            if first >= size:
                return self._answer(416, b"")
            content, code = content[first : last + 1], 206
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
        self._answer(code, content, "application/octet-stream", **headers)

    def _list(self, bucket, query):
        prefix, delimiter, items, prefixes = query.get("prefix", ""), query.get("delimiter"), [], set()
        start, end = query.get("startOffset", ""), query.get("endOffset")
        for of, name in sorted(self.server.objects):
            if of != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                prefixes.add(prefix + name[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                items.append(self._described(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def do_POST(self):
        path, query, bucket, name, rest = self._ask()
        body = self._body()
        if path.startswith("/batch"):
            return self._batch(body)
        with self.server.lock:
            if rest:  # copyTo and rewriteTo
                of, target = re.fullmatch(r"(?:copyTo|rewriteTo)/b/([^/]+)/o/(.+)", rest).groups()
                self._put(of, urllib.parse.unquote(target), self.server.objects[bucket, name][1])
                described = self._described(of, urllib.parse.unquote(target))
                return self._answer(200, {"done": True, "resource": described} if "rewrite" in rest else described)
            kind, name = query.get("uploadType"), query.get("name")
            if kind == "resumable":
                name = name or json.loads(body or b"{}")["name"]
                location = f"{self.server.url}{path}?uploadType=media&name={urllib.parse.quote(name, safe='')}"
                return self._answer(200, {}, Location=location)
            if kind == "multipart":
                line = body.split(b"\r\n" if b"\r\n" in body[:200] else b"\n", 1)[0]
                _, head, content, *_ = body.split(line)
                name = json.loads(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[1])["name"]
                body = re.sub(rb"\r?\n\Z", b"", re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1])
            held = self.server.objects.get((bucket, name), (0, b""))[0]
            if query.get("ifGenerationMatch", str(held)) != str(held):
                return self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
            self._put(bucket, name, body)
            self._answer(200, self._described(bucket, name))

    do_PUT = do_POST

    def _put(self, bucket, name, content):
        self.server.generation += 1
        self.server.objects[bucket, name] = (self.server.generation, content)

    def do_DELETE(self):
        _, _, bucket, name, _ = self._ask()
        with self.server.lock:
            found = self.server.objects.pop((bucket, name), None)
        self._answer(204 if found else 404)

    def _batch(self, body):
        answers = []
        for i, line in enumerate(re.findall(rb"DELETE (\S+) HTTP", body), 1):
            bucket, name = re.search(r"/b/([^/]+)/o/([^?\s]+)", line.decode()).groups()
            with self.server.lock:
                self.server.objects.pop((bucket, urllib.parse.unquote(name)), None)
            answers.append(
                f"--x\r\nContent-Type: application/http\r\nContent-ID: <response-{i}>\r\n\r\n"
                "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
            )
        self._answer(200, ("\r\n".join(answers) + "\r\n--x--").encode(), "multipart/mixed; boundary=x")
