"""Images of the agent's pods from a registry: by which policy, by whose credentials, as volumes, and what is said."""

import base64
import json
from pathlib import Path

from image import build_busybox_image
from kit import images
from kit.agent import Agent
from kit.registry import LOGIN, push, registry

from holdfast.proto import runtime_v1_pb2 as pb


def program(base: Path, host: str, tag: str, says: str) -> str:
    """Push busybox that says a word and stays; its reference."""
    script = f"echo {says}; trap exit TERM; while sleep 0.1; do :; done"
    archive = build_busybox_image(base, f"{host}/{tag}", Cmd=["/bin/sh", "-c", script])
    push(host, *tag.rsplit(":", 1), archive)
    return f"{host}/{tag}"


def pod(name: str, image: str, policy: str = "", more: str = "", mounts: str = "") -> str:
    policy = f", imagePullPolicy: {policy}" if policy else ""
    return f"""{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, uid: {name}}}, spec: {{hostNetwork: true, {more}
terminationGracePeriodSeconds: 1, containers: [{{name: {name}, image: '{image}'{policy}{mounts}}}]}}}}"""


def waiting(there: Agent, name: str) -> dict[str, str]:
    """Why the container of a pod does not run: reason and message."""
    return dict(there.container(name, name)["state"].get("waiting", {}))


def said(there: Agent, name: str) -> bytes:
    return there.node.container_log(there.running(name)) if there.running(name) else b""


def delete(there: Agent, *names: str) -> None:
    for name in names:
        (there.manifests / f"{name}.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")


def secret(entries: dict[str, tuple[str, str]]) -> str:
    auths = {key: {"auth": base64.b64encode(":".join(login).encode()).decode()} for key, login in entries.items()}
    data = base64.b64encode(json.dumps({"auths": auths}).encode()).decode()
    kind = "type: kubernetes.io/dockerconfigjson"
    return f"{{apiVersion: v1, kind: Secret, metadata: {{name: pull}}, {kind}, data: {{.dockerconfigjson: {data}}}}}"


def test_a_registry_that_wants_to_know_who_asks(there: Agent) -> None:
    with registry(secured=True) as host:
        image = program(there.base, host, "team/app:1", "hello")
        there.write("mine.yaml", pod("mine", image, more="imagePullSecrets: [{name: pull}],"))
        there.until(lambda: waiting(there, "mine").get("reason") == "ErrImagePull", "it to be said")
        message = waiting(there, "mine")["message"]
        assert "of imagePullSecrets there is no pull" in message
        assert image in message
        there.until(lambda: waiting(there, "mine").get("reason") == "ImagePullBackOff", "it to be waited with")
        there.write("pull.yaml", secret({f"{host}/team/app": ("holdfast", "wrong"), host: LOGIN}))
        there.until(lambda: b"hello" in said(there, "mine"), "the second of what fits to be tried")
        there.write("other.yaml", pod("other", image, "Always"))
        there.until(lambda: waiting(there, "other").get("reason") == "ErrImagePull", "nobody else to have it so")
        (there.manifests / "pull.yaml").unlink()
        delete(there, "mine", "other")


def test_by_which_policy(there: Agent) -> None:
    with registry() as host:
        image = program(there.base, host, "app:1", "old")
        there.write("first.yaml", pod("first", image))
        there.until(lambda: b"old" in said(there, "first"), "what is not there to be pulled")
        program(there.base, host, "app:1", "new")
        there.write("kept.yaml", pod("kept", image, "IfNotPresent"))
        there.until(lambda: b"old" in said(there, "kept"), "what is there to be taken")
        there.write("fresh.yaml", pod("fresh", image, "Always"))
        there.until(lambda: b"new" in said(there, "fresh"), "what there is now")
        absent = program(there.base, host, "absent:1", "brought")
        there.write("never.yaml", pod("never", absent, "Never"))
        there.until(lambda: waiting(there, "never").get("reason") == "ErrImageNeverPull", "it to be said")
        there.node.images("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=absent)))
        there.until(lambda: b"brought" in said(there, "never"), "what somebody has brought")
    there.write("nobody.yaml", pod("nobody", image, "Always"))
    there.until(lambda: waiting(there, "nobody").get("reason") == "ErrImagePull", "a registry that is gone")
    there.write("cached.yaml", pod("cached", image))
    there.until(lambda: b"new" in said(there, "cached"), "what is there needs no registry")
    delete(there, "first", "kept", "fresh", "never", "nobody", "cached")


def test_images_as_volumes(there: Agent) -> None:
    """Of one that is pulled anew for each start the new content is seen by the next start only."""
    made = images.image([(images.tar([images.entry("models"), images.entry("models/a", b"first\n")]), "gzip")])
    newer = images.image([(images.tar([images.entry("models"), images.entry("models/a", b"second\n")]), "gzip")])
    with registry() as host:
        archive = there.base / "data.tar"
        archive.write_bytes(images.oci_archive([(made, "")]))
        push(host, "data", "1", archive)
        image = program(there.base, host, "app:1", "hello")
        found = (
            f"{{name: {name}, image: {{reference: '{host}/data:1', pullPolicy: {policy}}}}}"
            for name, policy in (("kept", "IfNotPresent"), ("fresh", "Always"))
        )
        volumes = f"volumes: [{', '.join(found)}],"
        mounts = ", volumeMounts: [{name: kept, mountPath: /kept, subPath: models}, {name: fresh, mountPath: /fresh}]"
        there.write("reader.yaml", pod("reader", image, more=volumes, mounts=mounts))
        first = there.until(lambda: there.running("reader"), "it to run")
        read = ["/bin/cat", "/kept/a", "/fresh/models/a"]
        assert there.node.exec(first, read).stdout == b"first\nfirst\n"
        assert there.node.exec(first, ["/bin/sh", "-c", "echo x > /fresh/x"]).exit_code
        archive.write_bytes(images.oci_archive([(newer, "")]))
        push(host, "data", "1", archive)
        there.node.exec(first, ["/bin/sh", "-c", "kill 1"])
        again = there.until(lambda: there.running("reader") not in ("", first) and there.running("reader"), "a restart")
        assert there.node.exec(again, read).stdout == b"second\nsecond\n", "the tag is what it was pulled as last"
        lacking = mounts.replace("subPath: models", "subPath: none")
        there.write("lacking.yaml", pod("lacking", image, more=volumes, mounts=lacking))
        there.until(lambda: "none" in waiting(there, "lacking").get("message", ""), "a part that there is not")
        assert waiting(there, "lacking")["reason"] == "CreateContainerError"
    delete(there, "reader", "lacking")
