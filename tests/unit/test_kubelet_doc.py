"""docs/KUBELET.md against Holdfast's settings, and against the names that a kubelet and crictl know."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast import config

PAGE = (Path(__file__).parents[2] / "docs" / "KUBELET.md").read_text()

# The fields of KubeletConfiguration, as k8s.io/kubelet/config/v1beta1 has them after Kubernetes 1.35.
KUBELET_FIELDS = """
address allowedUnsafeSysctls authentication authorization cgroupDriver cgroupRoot cgroupsPerQOS clusterDNS
clusterDomain configMapAndSecretChangeDetectionStrategy containerLogMaxFiles containerLogMaxSize
containerLogMaxWorkers containerLogMonitorInterval containerRuntimeEndpoint contentType cpuCFSQuota cpuCFSQuotaPeriod
cpuManagerPolicy cpuManagerPolicyOptions cpuManagerReconcilePeriod crashLoopBackOff draManagerReconcilePeriod
enableContentionProfiling enableControllerAttachDetach enableDebugFlagsHandler enableDebuggingHandlers
enableProfilingHandler enableServer enableSystemLogHandler enableSystemLogQuery enforceNodeAllocatable eventBurst
eventRecordQPS evictionHard evictionMaxPodGracePeriod evictionMinimumReclaim evictionPressureTransitionPeriod
evictionSoft evictionSoftGracePeriod failCgroupV1 failSwapOn featureGates fileCheckFrequency hairpinMode
healthzBindAddress healthzPort httpCheckFrequency imageGCHighThresholdPercent imageGCLowThresholdPercent
imageMaximumGCAge imageMinimumGCAge imagePullCredentialsVerificationPolicy imageServiceEndpoint iptablesDropBit
iptablesMasqueradeBit kernelMemcgNotification kubeAPIBurst kubeAPIQPS kubeReserved kubeReservedCgroup kubeletCgroups
localStorageCapacityIsolation logging makeIPTablesUtilChains maxOpenFiles maxParallelImagePulls maxPods
memoryManagerPolicy memoryReservationPolicy memorySwap memoryThrottlingFactor mergeDefaultEvictionSettings
nodeLeaseDurationSeconds nodeStatusMaxImages nodeStatusReportFrequency nodeStatusUpdateFrequency oomScoreAdj podCIDR
podLogsDir podPidsLimit podsPerCore port preloadedImagesVerificationAllowlist protectKernelDefaults providerID
qosReserved readOnlyPort registerNode registerWithTaints registryBurst registryPullQPS reservedMemory
reservedSystemCPUs resolvConf rotateCertificates runOnce runtimeRequestTimeout seccompDefault serializeImagePulls
serverTLSBootstrap showHiddenMetricsForVersion shutdownGracePeriod shutdownGracePeriodByPodPriority
shutdownGracePeriodCriticalPods singleProcessOOMKill staticPodPath staticPodURL staticPodURLHeader
streamingConnectionIdleTimeout syncFrequency systemCgroups systemReserved systemReservedCgroup tlsCertFile
tlsCipherSuites tlsCurvePreferences tlsMinVersion tlsPrivateKeyFile topologyManagerPolicy topologyManagerPolicyOptions
topologyManagerScope tracing userNamespaces volumePluginDir volumeStatsAggPeriod
"""
KUBELET = frozenset(KUBELET_FIELDS.split())
CRICTL = ["runtime-endpoint", "image-endpoint", "timeout", "debug", "pull-image-on-create", "disable-pull-on-run"]
OWN = {"apiVersion", "kind"}
SECONDS = {"s": 1, "m": 60, "h": 3600}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def explained(heading: str) -> list[str]:
    """What the first table below a heading has rows for."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.fixture
def kubelet() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(blocks("yaml")[0])
    return found


@pytest.fixture
def ours(tmp_path: Path) -> config.Config:
    (tmp_path / "config.toml").write_text(blocks("toml")[0])
    return config.load(tmp_path / "config.toml")


def duration(text: str) -> int:
    match = re.fullmatch(r"([0-9]+)([smh])", text)
    assert match is not None, text
    return int(match[1]) * SECONDS[match[2]]


def test_every_field_is_one_of_a_kubelets_and_explained(kubelet: dict[str, Any]) -> None:
    assert (kubelet["apiVersion"], kubelet["kind"]) == ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration")
    assert kubelet.keys() - OWN <= KUBELET
    assert explained("The kubelet") == [name for name in kubelet if name not in OWN]


def test_others_that_are_named_are_a_kubelets_as_well() -> None:
    section = PAGE.partition("Others that meet the runtime")[2].partition("\n## ")[0]
    named = [
        word for head in re.findall(r"^- (`[^:]*):", section, re.MULTILINE) for word in re.findall(r"`(\w+)", head)
    ]
    assert len(named) >= 8
    assert set(named) - {"EventedPLEG"} <= KUBELET


def test_it_goes_with_holdfasts_own(kubelet: dict[str, Any], ours: config.Config) -> None:
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{ours.socket}"
    assert kubelet["cgroupDriver"] == ours.cgroup_driver
    assert duration(kubelet["runtimeRequestTimeout"]) > ours.runtime_timeout
    assert duration(kubelet["streamingConnectionIdleTimeout"]) == ours.streaming_idle_timeout
    assert explained("Holdfast") == list(tomllib.loads(blocks("toml")[0]))


def test_crictls(ours: config.Config) -> None:
    found = yaml.safe_load(blocks("yaml")[1])
    assert list(found) == CRICTL == explained("crictl")
    assert {found["runtime-endpoint"], found["image-endpoint"]} == {f"unix://{ours.socket}"}


def test_the_tests_that_it_names_are_there() -> None:
    named = set(re.findall(r"`(tests/\S+\.py)`", PAGE))
    assert named
    assert all((Path(__file__).parents[2] / name).exists() for name in named)
