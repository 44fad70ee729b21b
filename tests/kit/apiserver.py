"""As much of a Kubernetes API server, and of the kubelet behind it, as clients need for the pods of one node.

Pods and containers are found in the CRI by their names. For an exec, attach or port-forward the CRI is asked for a URL;
then this is what a kubelet is: the client's request, sent to that URL, and bytes both ways until either side ends.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import grpc

from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import Node

DEBIANS = Path(__file__).parents[2] / ".tools/usr/bin/kubectl"
STATES = {pb.CONTAINER_RUNNING: "running", pb.CONTAINER_EXITED: "terminated"}
RESOURCES = [
    {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
    for name, kind, verbs in (
        ("pods", "Pod", ["get", "list"]),
        ("pods/attach", "PodAttachOptions", ["create", "get"]),
        ("pods/exec", "PodExecOptions", ["create", "get"]),
        ("pods/log", "Pod", ["get"]),
        ("pods/portforward", "PodPortForwardOptions", ["create", "get"]),
    )
]
FIXED: dict[str, Any] = {
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": RESOURCES},
}


class Api(NamedTuple):
    """`spoken` has what was asked for with which upgrade: ("Exec", "spdy/3.1") or ("Exec", "websocket")."""

    url: str
    spoken: set[tuple[str, str]]


class NotThere(Exception):
    """What is asked for is not known: 404."""


def kubectls() -> list[Path]:
    """Debian's, which speaks SPDY, and the newest beside that of the PATH: since 1.31 they speak WebSockets."""
    if (other := shutil.which("kubectl")) is None:
        return [DEBIANS]
    beside = sorted(Path(other).resolve().parent.glob("kubectl.1.*"))
    return [DEBIANS, (beside or [Path(other)])[-1]]


class _Handler(BaseHTTPRequestHandler):
    rbufsize = 0  # what follows a request's head is not ours to read
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        parts = url.path.strip("/").split("/")
        try:
            if url.path in FIXED:
                self._answer(200, FIXED[url.path])
            elif parts[:3] == ["api", "v1", "namespaces"] and parts[4:5] == ["pods"] and len(parts) in (6, 7):
                self._pod(parts[3], parts[5], "".join(parts[6:]), query)
            else:
                raise NotThere(f"there is no {url.path}")
        except NotThere as exc:
            self._fail(404, "NotFound", str(exc))
        except grpc.RpcError as exc:
            self._fail(500, "InternalError", str(exc.details()))

    do_POST = do_GET

    def _pod(self, namespace: str, name: str, verb: str, query: dict[str, list[str]]) -> None:
        pod, containers = self.server.find(namespace, name)
        if not verb:
            self._answer(200, self.server.describe(pod, containers))
            return
        if verb == "portforward":
            ports = [int(port) for text in query.get("ports", []) for port in text.split(",")]
            self._proxy("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod.id, port=ports))
            return
        wanted = query.get("container", [next(iter(containers))])[0]
        if wanted not in containers:
            raise NotThere(f"container {wanted} is not valid for pod {name}")
        streams = {key: query.get(key) in (["true"], ["1"]) for key in ("stdin", "stdout", "stderr", "tty")}
        streams["stderr"] &= not streams["tty"]
        if verb == "exec":
            request = pb.ExecRequest(container_id=containers[wanted].id, cmd=query.get("command", []), **streams)
            self._proxy("Exec", request)
        elif verb == "attach":
            self._proxy("Attach", pb.AttachRequest(container_id=containers[wanted].id, **streams))
        elif verb == "log":
            self._log(containers[wanted].id, query)
        else:
            raise NotThere(f"there is no {verb} of a pod")

    def _proxy(self, method: str, request: Any) -> None:
        """Once it has spoken of an upgrade a connection is of no use for anything else."""
        self.close_connection = True
        self.server.spoken.add((method, self.headers.get("Upgrade", "").lower()))
        url = urlsplit(self.server.node.call(method, request).url)
        assert url.hostname and url.port
        with socket.create_connection((url.hostname, url.port)) as upstream:
            head = [f"{self.command} {url.path}{'?' if url.query else ''}{url.query} HTTP/1.1"]
            head += [f"{name}: {value}" for name, value in self.headers.items()]  # the client's own Host, too
            upstream.sendall("".join(f"{line}\r\n" for line in [*head, ""]).encode("latin-1"))
            with self.server.known(upstream):
                back = threading.Thread(target=_copy, args=(upstream, self.connection))
                back.start()
                _copy(self.connection, upstream)
                back.join()

    def _log(self, container_id: str, query: dict[str, list[str]]) -> None:
        """What a kubelet reads of the file, the command line reads as well."""
        flags = [
            f"--{name}={query[key][0]}" for key, name in (("tailLines", "tail"), ("sinceTime", "since")) if key in query
        ]
        flags += [f"--since={query['sinceSeconds'][0]}s"] if "sinceSeconds" in query else []
        flags += [f"--{name}" for name in ("follow", "timestamps") if query.get(name) == ["true"]]
        command = self.server.node.command("logs", *flags, container_id)
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        subprocess.run(command, stdout=self.connection, stderr=subprocess.STDOUT, check=False)

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self._answer(code, {**status, "message": message, "reason": reason, "code": code})

    def _answer(self, code: int, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Bytes; the end of one direction is that of both, as in a kubelet."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (sink, source):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, node: Node) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.node = node
        self.spoken: set[tuple[str, str]] = set()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    @contextlib.contextmanager
    def known(self, connection: socket.socket) -> Iterator[None]:
        self._open.add(connection)
        try:
            yield
        finally:
            self._open.discard(connection)

    def hang_up(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def find(self, namespace: str, name: str) -> tuple[pb.PodSandbox, dict[str, pb.Container]]:
        """The newest pod of that name, with its newest containers by name."""
        pods = [one for one in self.node.pods() if (one.metadata.namespace, one.metadata.name) == (namespace, name)]
        if not pods:
            raise NotThere(f'pods "{name}" not found')
        pod = max(pods, key=lambda one: one.created_at)
        of_pod = [one for one in self.node.containers() if one.pod_sandbox_id == pod.id]
        return pod, {one.metadata.name: one for one in sorted(of_pod, key=lambda one: one.created_at)}

    def describe(self, pod: pb.PodSandbox, containers: dict[str, pb.Container]) -> dict[str, Any]:
        specs, statuses = [], []
        for name, one in containers.items():
            terminal = bool(self.node.info(one.id)["runtimeSpec"]["process"].get("terminal"))
            specs.append({"name": name, "image": one.image.image, "stdin": True, "tty": terminal})
            state = {STATES.get(one.state, "waiting"): {}}
            statuses.append({"name": name, "ready": True, "state": state, "containerID": f"holdfast://{one.id}"})
        metadata = {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid}
        return {
            "kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"containers": specs, "nodeName": "here"},
            "status": {"phase": "Running", "containerStatuses": statuses},
        }  # fmt: skip


@contextlib.contextmanager
def apiserver(node: Node) -> Iterator[Api]:
    """In a thread, on a port of loopback."""
    server = _Server(node)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Api(f"http://127.0.0.1:{server.server_address[1]}", server.spoken)
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()
