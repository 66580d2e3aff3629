"""An API server of Kubernetes that knows JobSets and nothing else, and a kubectl for machines that have none.

The server answers what kubectl 1.32 asks (discovery, OpenAPI of fields, lists in pages, creation, deletion) and refuses
what a real one refuses: names, fields and types that JobSet v1alpha2 does not have, a second object of one name (409),
one that is not there (404). `fail` breaks it as servers break. Time passes at lists: a JobSet ends at the `patience`-th
list after it was made.
"""

import contextlib
import http.client
import json
import re
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import yaml

GROUP, VERSION = "jobset.x-k8s.io", "v1alpha2"
HOME = f"/apis/{GROUP}/{VERSION}"
REASONS = {
    404: "NotFound",
    500: "InternalError",
    409: "AlreadyExists",
    422: "Invalid",
    429: "TooManyRequests",
    403: "Forbidden",
}
WORDS = {
    "403": 'jobsets.jobset.x-k8s.io is forbidden: User "u" cannot create resource "jobsets" in API group',
    "404": "the server could not find the requested resource",
    "429": "the server has received too many requests and has asked us to try again later",
    "500": "Internal error occurred: failed calling webhook: no endpoints available for service",
    "503": "the server is currently unable to handle the request",
}
PAGE = 2  # JobSets in one page of a list, however many are asked for: kubectl must follow


class Refused(Exception):
    """An answer with another code than 200."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Cluster:
    """What the server keeps. `log`: (verb, name) of what was carried out."""

    def __init__(self) -> None:
        self.objects: dict[str, dict] = {}
        self.log: list[tuple[str, str]] = []
        self.lists = 0
        self.patience = 1
        self.lingers = 0  # lists for which what was deleted is still there
        self.fails: Callable[[str], bool] = lambda command: False  # whether the JobSet of a command fails
        # (verb, number of the request) -> "" or: an HTTP code, "drop" (no answer), "late" (carried out, no answer)
        self.fail: Callable[[str, int], str] = lambda verb, n: ""
        self.requests = 0
        self.snapshots: dict[str, list[dict]] = {}
        self.lock = threading.Lock()

    def command(self, name: str) -> str:
        return command_of(self.objects[name])

    def named(self, part: str) -> list[str]:
        return [name for name in self.objects if part in self.command(name)]

    # What requests do; the lock is held.

    def create(self, tree: dict) -> dict:
        name = tree.get("metadata", {}).get("name", "")
        validate(tree)
        if name in self.objects:
            raise Refused(409, f'{GROUP} "{name}" already exists'.replace(GROUP, f"jobsets.{GROUP}"))
        self.objects[name] = tree | {"made": self.lists}
        self.log.append(("create", name))
        return tree

    def delete(self, name: str) -> dict:
        if name not in self.objects:
            raise Refused(404, f'jobsets.{GROUP} "{name}" not found')
        self.log.append(("delete", name))
        if self.lingers:
            self.objects[name]["metadata"]["deletionTimestamp"] = "2026-11-30T00:00:00Z"
            self.objects[name]["until"] = self.lists + self.lingers
        else:
            del self.objects[name]
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def get(self, name: str) -> dict:
        if name not in self.objects:
            raise Refused(404, f'jobsets.{GROUP} "{name}" not found')
        return self.shown(name)

    def list(self, query: dict[str, list[str]]) -> dict:
        if token := query.get("continue", [""])[0]:
            items = self.snapshots.pop(token)  # as they were at the first page
        else:
            self.lists += 1
            for name in [name for name, it in self.objects.items() if it.get("until", self.lists) < self.lists]:
                del self.objects[name]
            wanted = dict(each.split("=") for each in query.get("labelSelector", [""])[0].split(",") if each)
            mine = [name for name, it in self.objects.items() if wanted.items() <= it["metadata"]["labels"].items()]
            items = [self.shown(name) for name in mine]
        more = ""
        if len(items) > PAGE:
            more = f"t{self.requests}"
            self.snapshots[more] = items[PAGE:]
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "JobSetList",
            "metadata": {"resourceVersion": "1", "continue": more},
            "items": items[:PAGE],
        }

    def shown(self, name: str) -> dict:
        it = dict(self.objects[name])
        age = self.lists - it.pop("made")
        it.pop("until", None)
        kind = "Failed" if self.fails(command_of(it)) else "Completed"
        conditions = [{"type": "Suspended", "status": "False"}]
        conditions += [{"type": kind, "status": "True"}] if age >= self.patience else []
        return it | {"status": {"conditions": conditions}}


def command_of(tree: dict) -> str:
    (job,) = tree["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container["command"][-1]


def validate(tree: dict) -> None:
    """Raises Refused(422) for what the API server, or JobSet's own webhook, does not take."""
    from kubeflow_trainer_api import models

    name = tree.get("metadata", {}).get("name", "")
    if (tree["apiVersion"], tree["kind"]) != (f"{GROUP}/{VERSION}", "JobSet"):
        raise Refused(422, "the object provided is unrecognized")
    bare = json.loads(json.dumps(tree))
    # The models take no quantity, which is a string.
    bare["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0].pop("resources")
    try:
        model = models.JobsetV1alpha2JobSet.model_validate(bare)
    except ValueError as error:
        raise Refused(422, f'JobSet.{GROUP} "{name}" is invalid: {error}'[:400]) from None
    (job,) = tree["spec"]["replicatedJobs"]
    pod = f"{name}-{job['name']}-{job['replicas'] - 1}-{job['template']['spec']['parallelism'] - 1}"
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(pod) > 63 - 6:  # pods get five letters more
        raise Refused(422, f'JobSet.{GROUP} "{name}" is invalid: metadata.name')
    for path in unknown(bare, model.model_dump(by_alias=True, mode="json")):
        raise Refused(422, f'strict decoding error: unknown field "{path}"')


def unknown(mine: object, theirs: object, where: str = "") -> Iterator[str]:
    """The fields that are lost on the way through the API's models."""
    if isinstance(mine, dict):
        for key, value in mine.items():
            if not isinstance(theirs, dict) or key not in theirs:
                yield f"{where}.{key}".lstrip(".")
            else:
                yield from unknown(value, theirs[key], f"{where}.{key}")
    elif isinstance(mine, list) and isinstance(theirs, list):
        for i, (a, b) in enumerate(zip(mine, theirs)):
            yield from unknown(a, b, f"{where}[{i}]")


# Discovery: what kubectl asks before anything else.
VERBS = ["create", "delete", "get", "list"]
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": GROUP,
                "versions": [{"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}],
                "preferredVersion": {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION},
            }
        ],
    },
    HOME: {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{GROUP}/{VERSION}",
        "resources": [
            {"name": "jobsets", "singularName": "jobset", "namespaced": True, "kind": "JobSet", "verbs": VERBS}
        ],
    },
    # The server checks fields itself, and says so here: else kubectl wants the schema of everything.
    "/openapi/v3": {"paths": {HOME[1:]: {"serverRelativeURL": f"/openapi/v3{HOME}"}}},
    f"/openapi/v3{HOME}": {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.32.0"},
        "paths": {
            f"{HOME}/namespaces/{{namespace}}/jobsets": {
                "post": {
                    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                    "x-kubernetes-action": "post",
                    "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": "JobSet"},
                },
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                    "x-kubernetes-action": "patch",
                    "x-kubernetes-group-version-kind": {"group": GROUP, "version": VERSION, "kind": "JobSet"},
                },
            }
        },
    },
}


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.answer()

        do_POST = do_DELETE = do_GET

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            place = urlsplit(self.path)
            if place.path in DISCOVERY:
                self.send(200, DISCOVERY[place.path])
                return
            match = re.fullmatch(f"{HOME}/namespaces/default/jobsets(?:/([^/]+))?", place.path)
            if not match:
                self.send(404, status(404, "the server could not find the requested resource"))
                return
            name, query = match[1], parse_qs(place.query)
            verb = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete"}[self.command]
            with cluster.lock:
                cluster.requests += 1
                broken = cluster.fail(verb, cluster.requests)
                try:
                    if broken.isdecimal():
                        raise Refused(int(broken), WORDS[broken])
                    if broken != "drop":
                        done = {
                            "list": lambda: cluster.list(query),
                            "get": lambda: cluster.get(name),
                            "delete": lambda: cluster.delete(name),
                            "create": lambda: cluster.create(yaml.safe_load(body)),
                        }[verb]()
                except Refused as refused:
                    self.send(refused.code, status(refused.code, str(refused)))
                    return
            if broken:  # the connection ends without an answer
                self.close_connection = True
                self.connection.close()
                return
            self.send(201 if verb == "create" else 200, done)

        def send(self, code: int, tree: dict) -> None:
            text = json.dumps(tree).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


def status(code: int, message: str) -> dict:
    reason = REASONS.get(code, "ServiceUnavailable")
    tree = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return tree | {"message": message, "reason": reason, "code": code}


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Connections that were closed on purpose."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Cluster]:
    """A server, and its kubeconfig in `folder`."""
    cluster = Cluster()
    server = Server(("127.0.0.1", 0), _handler(cluster))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()


class Kubectl:
    """The stand-in: what subprocess.run returns for the three commands of the engine, in their exact form, over HTTP.

    It follows the pages of a list, and says what fails in kubectl's words. Other programs are run.
    """

    def __init__(self, folder: Path, otherwise: Callable[..., subprocess.CompletedProcess[str]]):
        tree = json.loads((folder / "kubeconfig").read_text())
        self.home = tree["clusters"][0]["cluster"]["server"] + f"{HOME}/namespaces/default/jobsets"
        self.otherwise = otherwise

    def run(self, command: list[str], *, input: str = "", **options: object) -> subprocess.CompletedProcess[str]:
        if command[0] != "kubectl":
            return self.otherwise(command, input=input, **options)
        try:
            assert command[-2:] == ["--namespace=default", "--request-timeout=60s"], command
            return subprocess.CompletedProcess(command, 0, self.answer(command[1:-2], input), "")
        except Refused as refused:
            return subprocess.CompletedProcess(command, 1, "", str(refused))

    def answer(self, words: list[str], text: str) -> str:
        match words:
            case ["get", "jobsets", selector, "--output=json"] if selector.startswith("--selector="):
                items, more = [], ""
                while True:
                    query = {"limit": 500, "labelSelector": selector.partition("=")[2], "continue": more}
                    page = self.ask("GET", f"{self.home}?{urlencode(query)}")
                    items += page["items"]
                    more = page["metadata"]["continue"]
                    if not more:
                        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
            case ["create", "-f", "-"]:
                made = self.ask("POST", f"{self.home}?fieldValidation=Strict", text.encode())
                return f"jobset.{GROUP}/{made['metadata']['name']} created\n"
            case ["delete", "jobset", name, "--ignore-not-found", "--wait=false"]:
                try:
                    self.ask("DELETE", f"{self.home}/{name}")
                except Refused as refused:
                    if "(NotFound)" not in str(refused):
                        raise
                return ""
        raise AssertionError(f"kubectl {words}")

    def ask(self, method: str, url: str, body: bytes | None = None) -> dict:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data=body, method=method), timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            tree = json.load(error)
            raise Refused(tree["code"], f"Error from server ({tree['reason']}): {tree['message']}") from None
        except (http.client.HTTPException, OSError):
            raise Refused(0, "Unable to connect to the server: EOF") from None
