"""By which names a pod finds others, and itself: DNS and /etc/hosts, as a kubelet would have them. Pure."""

from collections.abc import Iterable
from typing import Final

from holdfast.agent.pod.spec import Pod, PodSpec
from holdfast.proto import runtime_v1_pb2 as pb

HOST_NAME_LENGTH: Final = 63  # of Linux it is 64; a kubelet's


def host_name(pod: Pod) -> str:
    """As it is asked for, or the pod's name, as much of it as a host name may have."""
    return pod.spec.hostname_override or pod.spec.hostname or pod.metadata.name[:HOST_NAME_LENGTH].rstrip("-.")


def dns(spec: PodSpec, own: pb.DNSConfig) -> pb.DNSConfig:
    """What the pod resolves names by: the machine's or nothing, and what it adds. No cluster comes first."""
    found = pb.DNSConfig() if spec.dns_policy == "None" else pb.DNSConfig.FromString(own.SerializeToString())
    more = spec.dns_config
    options = {one.partition(":")[0]: one for one in found.options}
    options |= {one.name: f"{one.name}:{one.value}" if one.value else one.name for one in more.options}
    return pb.DNSConfig(
        servers=dict.fromkeys((*found.servers, *more.nameservers)),
        searches=dict.fromkeys((*found.searches, *more.searches)),
        options=options.values(),
    )


def parse_resolv(text: str) -> pb.DNSConfig:
    """resolv.conf(5). Of several lines "search" the last one counts; options add up."""
    found = pb.DNSConfig()
    for line in text.splitlines():
        key, *values = line.split("#")[0].split(";")[0].split() or [""]
        if key == "nameserver" and values:
            found.servers.append(values[0])
        elif key in ("search", "domain"):
            del found.searches[:]
            found.searches.extend(values)
        elif key == "options":
            found.options.extend(values)
    return found


def hosts(pod: Pod, addresses: Iterable[str], own: str) -> str:
    """/etc/hosts for the pod's containers: a name for its addresses, or what the host itself has, and its aliases."""
    if pod.spec.host_network:
        lines = ["# The host's, for a pod in its network.", own.rstrip("\n")]
    else:
        lines = ["# For a pod, by its agent.", "127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        lines += ["fe00::\tip6-localnet", "fe00::\tip6-mcastprefix", "fe00::1\tip6-allnodes", "fe00::2\tip6-allrouters"]
        lines += [f"{one}\t{host_name(pod)}" for one in addresses]
    if pod.spec.host_aliases:
        lines += ["", "# Aliases of the pod."]
        lines += ["\t".join((one.ip, *one.hostnames)) for one in pod.spec.host_aliases]
    return "\n".join(lines) + "\n"
