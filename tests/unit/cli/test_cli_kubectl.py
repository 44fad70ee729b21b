"""A pod as kubectl itself describes it, and as we do: word for word, but for what only one of the two knows."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kit.apiserver import FIXED, kubectls
from kit.pods import APPLICATION

from holdfast.agent.pod.encode import encode
from holdfast.agent.pod.manifest import parse
from holdfast.cli.pod_described import described
from holdfast.proto import agent_pb2 as pb

START = "2026-01-01T00:00:00Z"
OURS = ("UID:", "Source:")
KUBECTLS = ("Node-Selectors:", "Tolerations:", "Events:")  # it asks an API for events that is not here
PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def application() -> dict[str, Any]:
    """With the defaults that an API server would have set, since kubectl knows none."""
    found: dict[str, Any] = encode(parse(APPLICATION.encode(), "web.yaml").pods[0])
    (httpd,) = found["spec"]["containers"]
    httpd["ports"][0]["protocol"] = "TCP"
    httpd["env"][0]["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
    httpd["resources"] = {"limits": {"memory": "64Mi"}, "requests": {"cpu": "50m", "memory": "16Mi"}}
    for key in ("readinessProbe", "livenessProbe"):
        httpd[key] = {**PROBE, **httpd[key]}
    httpd["readinessProbe"]["httpGet"] |= {"path": "/", "scheme": "HTTP"}
    found["spec"] |= {"nodeName": "here"}
    found["spec"]["volumes"][0]["emptyDir"] = {"sizeLimit": "8Mi"}
    found["metadata"] |= {"namespace": "default", "annotations": {"b": "c", "a": "x"}}
    ended = {"exitCode": 3, "reason": "Error", "message": "no luck", "startedAt": START, "finishedAt": START}
    more = {"image": "i", "imageID": "sha256:1", "containerID": "id", "started": True}
    running = {**more, "ready": True, "restartCount": 2, "state": {"running": {"startedAt": START}}}
    waiting = {**more, "ready": False, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    found["status"] = {
        "phase": "Running", "startTime": START, "qosClass": "Burstable", "hostIP": "10.0.0.1", "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "message": "words",
        "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": "False"}],
        "initContainerStatuses": [
            {**running, "name": "fill", "state": {"terminated": {**ended, "exitCode": 0}}},
            {**running, "name": "refresh", "lastState": {"terminated": ended}},
        ],
        "containerStatuses": [{**waiting, "name": "httpd", "lastState": {"terminated": ended}}],
    }  # fmt: skip
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        known = {**FIXED, "/api/v1/namespaces/default/pods/web": application()}
        found = known.get(path, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})
        data = json.dumps(found).encode()
        self.send_response(200 if path in known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{one.server_port}"
        finally:
            one.shutdown()
            thread.join()


def words(text: str, without: tuple[str, ...]) -> list[str]:
    """Each line with its indentation, and what is between its words is one space: columns are as wide as both need."""
    return [
        f"{' ' * (len(line) - len(line.lstrip()))}{' '.join(line.split())}"
        for line in text.splitlines()
        if line.strip() and not line.startswith(without)
    ]


@pytest.mark.parametrize("program", kubectls(), ids=lambda program: program.name)
def test_described_as_kubectl_does(server: str, program: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "TZ": "UTC"}
    environment.pop("KUBECONFIG", None)
    command = [program, "--server", server, "--request-timeout", "20s", "describe", "pod", "web", "-n", "default"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    pod = application()
    ours = described(pb.AgentPod(namespace="default", name="web", uid="u", source="s"), pod)
    assert words("\n".join(ours), (*OURS, "Events:")) == words(done.stdout, KUBECTLS)
