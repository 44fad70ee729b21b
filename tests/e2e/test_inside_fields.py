"""What a container sees of the fields that are no concern of their own: names, logs, host name, DNS, ports,
environment, command, directory, image; of the parts for Windows, and of a configuration without a Linux part."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from image import build_busybox_image
from kit import images, inside
from kit.node import IMAGE, Node, node

from holdfast.oci.capabilities import DEFAULT_CAPABILITIES
from holdfast.proto import runtime_v1_pb2 as pb

ENTRY = "test/entry:latest"
# Of the kind that other runtimes, or the OCI runtimes themselves, let change what they do.
MEANT_FOR_OTHERS = {
    "run.oci.keep_original_groups": "1",
    "run.oci.hooks.stdin": "x",
    "io.kubernetes.cri.untrusted-workload": "true",
    "io.kubernetes.cri-o.Devices": "/dev/fuse",
    "org.systemd.property.TasksMax": "7",
    "é": "a\nb",
}


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node() as one:
        entry = {"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"], "WorkingDir": "/made/by/image"}
        entry |= {"Env": ["PATH=/bin", "OF=image", "BOTH=image"], "Labels": {"run.oci.keep_original_groups": "1"}}
        link = images.tar([images.entry("way", b"", type=tarfile.SYMTYPE, linkname="/proc/self/fd/8")])
        layer = images.pack(link, "gzip")
        one.import_image(build_busybox_image(one.base, ENTRY, extra_layer=layer, **entry))
        yield one


@pytest.fixture(params=["crun", "runc"])
def handler(request: pytest.FixtureRequest, life: Node) -> Iterator[str]:
    """The OCI runtime; whatever a test has left with it is removed, so that the next one starts anew."""
    yield request.param
    for one in life.pods():
        life.remove_pod(one.id)
    assert not life.leftovers()


@pytest.fixture
def pod(life: Node, handler: str) -> str:
    return life.run_pod(handler=handler)


def seen(life: Node, pod_id: str, script: str, **config: Any) -> str:
    """What one container writes that has nothing else to do."""
    return inside.by_init(life, pod_id, **config)(script)


def pod_status(life: Node, pod_id: str) -> pb.PodSandboxStatus:
    return life.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)).status


# -- names


def test_metadata_names_a_pod_and_its_attempts(life: Node, handler: str) -> None:
    config = life.pod_config("twin", network=pb.POD)
    first = life.run_pod(config, handler)
    config.metadata.attempt = 1
    second = life.run_pod(config, handler)
    assert first != second
    for attempt, pod_id in enumerate((first, second)):
        named = pod_status(life, pod_id).metadata
        assert (named.name, named.namespace, named.uid, named.attempt) == ("twin", "test", "uid-twin", attempt)
        assert seen(life, pod_id, "hostname", network=pb.POD) == "twin\n"


def test_metadata_names_a_container_and_its_attempts(life: Node, pod: str) -> None:
    for attempt in (0, 1):
        config = life.container_config(f"echo {attempt}", "twin", attempt=attempt)
        config.log_path = f"twin/{attempt}.log"
        container_id = life.create(pod, config)
        life.start_container(container_id)
        assert life.exited(container_id).metadata == config.metadata
        assert inside.output(life, container_id) == f"{attempt}\n"
        assert life.info(container_id)["runtimeSpec"]["annotations"]["io.kubernetes.cri.container-name"] == "twin"


def test_labels_and_annotations_come_back_as_they_were_and_reach_nobody(life: Node, handler: str) -> None:
    labels, annotations = {"app": "web", "": ""}, MEANT_FOR_OTHERS
    pod_id = life.run_pod(life.pod_config(labels=labels, annotations=annotations), handler)
    shown = [pod_status(life, pod_id), *life.pods()]
    container_id = life.run(pod_id, "sleep 1000", labels=labels, annotations=annotations)
    shown += [life.status(container_id), *life.containers()]
    assert len(shown) == 4
    for one in shown:
        assert (dict(one.labels), dict(one.annotations)) == (labels, annotations)
    look, plain = inside.by_exec(life, container_id), inside.by_exec(life, life.run(pod_id, "sleep 1000", "plain"))
    assert inside.environment(look).keys() == inside.environment(plain).keys()
    assert inside.mounts(look).keys() == inside.mounts(plain).keys()
    assert inside.ids(look) == inside.ids(plain) == inside.Ids(0, 0, (0,))
    given = life.info(container_id)["runtimeSpec"]["annotations"]
    assert not given.keys() & MEANT_FOR_OTHERS.keys()
    assert all(name.startswith("io.kubernetes.cri.") for name in given)


# -- logs


def test_the_log_is_where_directory_and_path_say(life: Node, handler: str) -> None:
    config = life.pod_config()
    config.log_directory = str(life.base / "deep" / f"logs of {handler}")
    pod_id = life.run_pod(config, handler)
    for path in ("plain.log", "in/a/directory/0.log"):
        made = life.container_config("echo out; echo err >&2", path.replace("/", "-"))
        made.log_path = path
        container_id = life.create(pod_id, made)
        life.start_container(container_id)
        assert life.exited(container_id).log_path == f"{config.log_directory}/{path}"
        assert (inside.output(life, container_id), inside.output(life, container_id, "stderr")) == ("out\n", "err\n")


@pytest.mark.parametrize("missing", ["log_directory", "log_path"])
def test_without_a_log_nobody_waits_for_one(life: Node, handler: str, missing: str) -> None:
    config = life.pod_config()
    if missing == "log_directory":
        config.log_directory = ""
    pod_id = life.run_pod(config, handler)
    made = life.container_config("head -c 4000000 /dev/zero; exit 3")
    if missing == "log_path":
        made.log_path = ""
    container_id = life.create(pod_id, made)
    life.start_container(container_id)
    status = life.exited(container_id)
    assert (status.exit_code, status.log_path) == (3, "")


@pytest.mark.parametrize("place", ["file/logs", "file", "loop", "x" * 300])
def test_a_log_directory_that_cannot_be_made_is_refused(life: Node, handler: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    config = life.pod_config()
    config.log_directory = str(tmp_path / place)
    with pytest.raises(grpc.RpcError) as failure:
        life.run_pod(config, handler)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details().startswith(f"config.log_directory: cannot make {config.log_directory}: ")


def test_a_log_path_whose_directory_cannot_be_made_is_told_at_the_start(life: Node, handler: str) -> None:
    of_pod = life.pod_config()
    pod = life.run_pod(of_pod, handler)
    Path(of_pod.log_directory, "in-the-way").touch()
    config = life.container_config("exit 0")
    config.log_path = "in-the-way/0.log"
    container_id = life.create(pod, config)
    with pytest.raises(grpc.RpcError) as failure:
        life.start_container(container_id)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = life.exited(container_id)
    assert (status.exit_code, status.reason, status.message) == (128, "StartError", failure.value.details())
    assert status.message.startswith("config.log_path: cannot make ")


# -- host name, DNS, ports


@pytest.mark.parametrize(
    ("hostname", "name", "expected"),
    [
        ("given", "a-pod", "given"),
        ("web-0.nginx.default.svc.cluster.local", "a-pod", "web-0.nginx.default.svc.cluster.local"),
        ("h" * 64, "a-pod", "h" * 64),
        ("", "a-pod", "a-pod"),
        ("", "p" * 100, "p" * 63),
    ],
)
def test_hostname(life: Node, handler: str, hostname: str, name: str, expected: str) -> None:
    pod_id = life.run_pod(life.pod_config(name, hostname=hostname, network=pb.POD), handler)
    script = "hostname; cat /proc/sys/kernel/hostname /etc/hostname; echo $HOSTNAME; tail -n 1 /etc/hosts"
    lines = seen(life, pod_id, script, network=pb.POD).splitlines()
    assert lines == [expected] * 4 + [f"127.0.0.1\t{expected}"]
    assert os.uname().nodename != expected


def test_hostname_of_a_pod_on_the_hosts_network_is_the_hosts(life: Node, handler: str) -> None:
    pod_id = life.run_pod(life.pod_config(hostname="ignored"), handler)
    lines = seen(life, pod_id, "hostname; cat /etc/hostname; echo $HOSTNAME").splitlines()
    assert lines == [os.uname().nodename] * 3
    look = inside.by_init(life, pod_id)
    assert inside.namespaces(look)["uts"] == inside.namespaces(inside.on_host)["uts"]


@pytest.mark.parametrize("network", [pb.POD, pb.NODE])
def test_dns_config(life: Node, handler: str, network: int) -> None:
    config = life.pod_config(network=network)
    searches = [f"{letter * 40}.example" for letter in "abcdefgh"]  # more than old resolvers took: nothing is cut
    dns = pb.DNSConfig(servers=["192.0.2.1", "2001:db8::1"], searches=searches, options=["ndots:5", "edns0"])
    config.dns_config.CopyFrom(dns)
    pod_id = life.run_pod(config, handler)
    text = f"search {' '.join(searches)}\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5 edns0\n"
    assert seen(life, pod_id, "cat /etc/resolv.conf", network=network) == text


def test_without_a_dns_config_the_hosts_is_used(life: Node, pod: str) -> None:
    assert seen(life, pod, "cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()


def test_port_mappings_without_a_network_plugin_map_nothing(life: Node, handler: str) -> None:
    """They are a network plugin's to carry out. Without one a pod has loopback only, and its status no address."""
    mapping = pb.PortMapping(protocol=pb.TCP, container_port=8080, host_port=8080)
    with pytest.raises(grpc.RpcError) as refused:
        life.run_pod(life.pod_config(network=pb.POD, port_mappings=[mapping]), handler)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "config.port_mappings[0].host_port" in str(refused.value.details())
    mapping.host_port = 0
    pod_id = life.run_pod(life.pod_config(network=pb.POD, port_mappings=[mapping]), handler)
    script = "ls /sys/class/net; nc -l -p 8080 -e true; sleep 1000"
    container_id = life.run(pod_id, script, network=pb.POD)
    look = inside.by_exec(life, container_id)
    look("until grep -q ':1F90 ' /proc/net/tcp*; do sleep 0.01; done")
    assert pod_status(life, pod_id).network.ip == ""
    look("nc 127.0.0.1 8080 </dev/null")
    life.stop_container(container_id)
    assert inside.output(life, container_id) == "lo\n"


# -- what is executed


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], "entry cmd"),
        ([], ["a", "b"], "entry a b"),
        (["/bin/echo"], [], ""),
        (["/bin/echo", "c"], ["a"], "c a"),
        (["echo", "found by PATH"], [], "found by PATH"),
        ([], ["", " ", "$HOME", "'"], "entry    $HOME '"),  # no shell has a say
    ],
)
def test_command_and_args(life: Node, pod: str, command: list[str], args: list[str], expected: str) -> None:
    config = life.container_config(command, image=ENTRY, args=args)
    container_id = life.create(pod, config)
    life.start_container(container_id)
    assert life.exited(container_id).exit_code == 0
    assert inside.output(life, container_id) == f"{expected}\n"


def test_envs(life: Node, pod: str) -> None:
    envs = [
        ("BOTH", "first"),
        ("BOTH", "config"),
        ("EMPTY", ""),
        ("a.b-c", "x=y"),
        ("LINES", "1\n2"),
        ("HOSTNAME", "h"),
    ]
    config = {"image": ENTRY, "envs": [pb.KeyValue(key=key, value=value) for key, value in envs]}
    expected = {"PATH": "/bin", "OF": "image", "HOME": "/root"} | dict(envs)
    assert inside.environment(inside.by_init(life, pod, **config)) == expected
    running = life.run(pod, "sleep 1000", **config)
    assert inside.environment(inside.by_exec(life, running)) == expected
    assert inside.environment(inside.by_init(life, pod, tty=True, **config))["TERM"] == "xterm"


@pytest.mark.parametrize(
    ("asked", "image", "expected"),
    [
        ("", IMAGE, "/"),
        ("", ENTRY, "/made/by/image"),
        ("/not/there/yet", ENTRY, "/not/there/yet"),
        ("/tmp/../etc/.", IMAGE, "/etc"),
    ],
)
def test_working_dir(life: Node, pod: str, asked: str, image: str, expected: str) -> None:
    config = {"image": image, "working_dir": asked}
    assert seen(life, pod, "readlink /proc/self/cwd; touch here", **config) == f"{expected}\n"
    running = life.run(pod, "sleep 1000", **config)
    assert inside.by_exec(life, running)("pwd") == f"{expected}\n"


@pytest.mark.parametrize("asked", ["/proc/self/fd/8", "/tmp/../proc/1/cwd", "/proc", "/way"])
def test_a_working_dir_that_leads_into_proc_is_refused(life: Node, pod: str, asked: str) -> None:
    """There are ways out of the root, to what the OCI runtime has open (CVE-2024-21626)."""
    with pytest.raises(grpc.RpcError) as failure:
        life.create(pod, life.container_config("pwd", image=ENTRY, working_dir=asked))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.value.details().startswith(f"config.working_dir: {asked!r} leads to ")


# -- the image


def test_image_by_name_and_by_id(life: Node, pod: str) -> None:
    by_name = life.images("ImageStatus", pb.ImageStatusRequest(image=pb.ImageSpec(image=ENTRY))).image
    for name in (ENTRY, f"docker.io/{ENTRY}", by_name.id):
        config = {"image": name, "working_dir": "/"}
        assert inside.environment(inside.by_init(life, pod, **config))["OF"] == "image"


def test_other_words_about_the_image_change_nothing_inside(life: Node, pod: str) -> None:
    """The image is the one that `image` names; the pod's handler runs it, and the user's name for it is shown."""
    config = life.container_config("sleep 1000")
    config.image.annotations["platform"] = "other/other"
    config.image.user_specified_image = "example.com/web:stable"
    config.image.runtime_handler = "no-such-handler"
    config.image.image_ref = "sha256:" + "0" * 64
    container_id = life.create(pod, config)
    life.start_container(container_id)
    status = life.status(container_id)
    assert status.image.image == status.image.user_specified_image == "example.com/web:stable"
    assert status.image_id == life.status(life.run(pod, "sleep 1000", "plain")).image_id
    assert inside.by_exec(life, container_id)("echo works") == "works\n"
    assert [one.image for one in life.containers() if one.id == container_id] == [config.image]


# -- what is not for this platform, and what is not there at all


def test_the_parts_for_windows_are_ignored(life: Node, handler: str) -> None:
    config = life.pod_config()
    context = pb.WindowsSandboxSecurityContext(run_as_username="ContainerUser", credential_spec="{", host_process=True)
    context.namespace_options.network = pb.NODE
    config.windows.security_context.CopyFrom(context)
    pod_id = life.run_pod(config, handler)
    resources = pb.WindowsContainerResources(
        cpu_shares=1, cpu_count=1, cpu_maximum=1, memory_limit_in_bytes=1, rootfs_size_in_bytes=1
    )
    resources.affinity_cpus.add(cpu_mask=1, cpu_group=1)
    user = pb.WindowsContainerSecurityContext(run_as_username="nobody", credential_spec="{", host_process=True)
    windows = pb.WindowsContainerConfig(resources=resources, security_context=user)
    look = inside.by_exec(life, life.run(pod_id, "sleep 1000", windows=windows))
    plain = inside.by_exec(life, life.run(pod_id, "sleep 1000", "plain"))
    assert inside.ids(look) == inside.Ids(0, 0, (0,))
    assert inside.cgroup_file(look, "memory", "memory.limit_in_bytes", "memory.max") == inside.cgroup_file(
        plain, "memory", "memory.limit_in_bytes", "memory.max"
    )
    for reading in (inside.capabilities, inside.limits, inside.environment):
        assert reading(look) == reading(plain)


def test_without_a_linux_part_a_pod_has_the_defaults_of_the_interface(life: Node, handler: str) -> None:
    """POD is what no word about a namespace says: also for process ids, unlike what a kubelet asks for by itself."""
    pod_id = life.run_pod(pb.PodSandboxConfig(metadata=life.pod_config().metadata), handler)
    image, command = pb.ImageSpec(image=IMAGE), ["/bin/sleep", "1000"]
    looks = []
    for name in ("one", "two"):
        config = pb.ContainerConfig(metadata=pb.ContainerMetadata(name=name), image=image, command=command)
        container_id = life.create(pod_id, config)
        life.start_container(container_id)
        looks.append(inside.by_exec(life, container_id))
    one, two = (inside.namespaces(look) for look in looks)
    host = inside.namespaces(inside.on_host)
    for kind in ("net", "ipc", "uts", "pid"):
        assert one[kind] == two[kind] != host[kind]
    assert one["mnt"] != two["mnt"]
    assert looks[0]("ls /sys/class/net") == "lo\n"
    assert looks[0]("ps -o args").count("/bin/sleep 1000") == 2
    assert inside.ids(looks[0]) == inside.Ids(0, 0, (0,))
    found = inside.capabilities(looks[0])
    assert found["Eff"] == found["Prm"] == found["Bnd"] == set(DEFAULT_CAPABILITIES)
    assert found["Inh"] == found["Amb"] == set()
    status = inside.status(looks[0])
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "0")
    assert inside.mounts(looks[0])["/"].options >= {"rw"}
