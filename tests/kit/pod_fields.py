"""The fields of v1 Pod as Kubernetes 1.37 has them, and the classes that they are read into.

What is not honoured at all is not followed any further: its own fields are nobody's business here.
"""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from holdfast.agent.pod import containers, scalars, security, sources, spec, volumes

FIELDS = """
Pod: apiVersion kind metadata spec status
ObjectMeta: annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName
    generation labels managedFields name namespace ownerReferences resourceVersion selfLink uid
PodSpec: activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks
    ephemeralContainers evictionResponders hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride
    imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName
    readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates
    schedulingGroup securityContext serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain
    terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes
PodDNSConfig: nameservers options searches
PodDNSConfigOption: name value
LocalObjectReference: name
HostAlias: hostnames ip
PodSecurityContext: appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxChangePolicy
    seLinuxOptions seccompProfile supplementalGroups supplementalGroupsPolicy sysctls windowsOptions
Sysctl: name value
Container: args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy
    resources restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce terminationMessagePath
    terminationMessagePolicy tty volumeDevices volumeMounts workingDir
ContainerRestartRule: action exitCodes
ContainerRestartRuleOnExitCodes: operator values
ContainerPort: containerPort hostIP hostPort name protocol
ResourceRequirements: claims limits requests
VolumeMount: bindMountOptions mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr
SecurityContext: allowPrivilegeEscalation appArmorProfile capabilities privileged procMount readOnlyRootFilesystem
    runAsGroup runAsNonRoot runAsUser seLinuxOptions seccompProfile windowsOptions
Capabilities: add drop
SELinuxOptions: level role type user
SeccompProfile: localhostProfile type
AppArmorProfile: localhostProfile type
EnvVar: name value valueFrom
EnvVarSource: configMapKeyRef fieldRef fileKeyRef resourceFieldRef secretKeyRef
ConfigMapKeySelector: key name optional
SecretKeySelector: key name optional
ObjectFieldSelector: apiVersion fieldPath
ResourceFieldSelector: containerName divisor resource
EnvFromSource: configMapRef prefix secretRef
ConfigMapEnvSource: name optional
SecretEnvSource: name optional
Lifecycle: postStart preStop stopSignal
LifecycleHandler: exec httpGet sleep tcpSocket
Probe: exec failureThreshold grpc httpGet initialDelaySeconds periodSeconds successThreshold tcpSocket
    terminationGracePeriodSeconds timeoutSeconds
ExecAction: command
HTTPGetAction: host httpHeaders path port protocol scheme
HTTPHeader: name value
TCPSocketAction: host port
GRPCAction: mode port service
SleepAction: seconds
Volume: awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI emptyDir ephemeral fc
    flexVolume flocker gcePersistentDisk gitRepo glusterfs hostPath image iscsi name nfs persistentVolumeClaim
    photonPersistentDisk portworxVolume projected quobyte rbd scaleIO secret storageos vsphereVolume
EmptyDirVolumeSource: medium mode sizeLimit
HostPathVolumeSource: path type
ConfigMapVolumeSource: defaultMode defaultUser items name optional
SecretVolumeSource: defaultMode defaultUser items optional secretName
KeyToPath: key mode path user
DownwardAPIVolumeSource: defaultMode defaultUser items
DownwardAPIVolumeFile: fieldRef mode path resourceFieldRef user
ProjectedVolumeSource: defaultMode defaultUser sources
VolumeProjection: clusterTrustBundle configMap downwardAPI podCertificate secret serviceAccountToken
ConfigMapProjection: items name optional
SecretProjection: items name optional
DownwardAPIProjection: items
ImageVolumeSource: pullPolicy reference
"""
API = {
    name: tuple(fields.split())
    for name, fields in (entry.split(": ") for entry in FIELDS.replace("\n    ", " ").strip().splitlines())
}
KINDS: dict[str, type] = {
    "Pod": spec.Pod,
    "ObjectMeta": spec.Metadata,
    "PodSpec": spec.PodSpec,
    "PodDNSConfig": spec.DnsConfig,
    "PodDNSConfigOption": spec.DnsOption,
    "LocalObjectReference": spec.LocalRef,
    "HostAlias": spec.HostAlias,
    "PodSecurityContext": security.PodSecurityContext,
    "Sysctl": security.Sysctl,
    "Container": containers.Container,
    "ContainerRestartRule": containers.RestartRule,
    "ContainerRestartRuleOnExitCodes": containers.ExitCodes,
    "ContainerPort": containers.ContainerPort,
    "ResourceRequirements": containers.Resources,
    "VolumeMount": containers.VolumeMount,
    "SecurityContext": security.SecurityContext,
    "Capabilities": security.Capabilities,
    "SELinuxOptions": security.SelinuxOptions,
    "SeccompProfile": security.SeccompProfile,
    "AppArmorProfile": security.AppArmorProfile,
    "EnvVar": sources.EnvVar,
    "EnvVarSource": sources.EnvVarSource,
    "ConfigMapKeySelector": sources.KeyRef,
    "SecretKeySelector": sources.KeyRef,
    "ObjectFieldSelector": sources.FieldRef,
    "ResourceFieldSelector": sources.ResourceFieldRef,
    "EnvFromSource": sources.EnvFrom,
    "ConfigMapEnvSource": sources.NameRef,
    "SecretEnvSource": sources.NameRef,
    "Lifecycle": containers.Lifecycle,
    "LifecycleHandler": containers.Handler,
    "Probe": containers.Probe,
    "ExecAction": containers.ExecAction,
    "HTTPGetAction": containers.HttpGet,
    "HTTPHeader": containers.HttpHeader,
    "TCPSocketAction": containers.TcpSocket,
    "GRPCAction": containers.Grpc,
    "SleepAction": containers.Sleep,
    "Volume": volumes.Volume,
    "EmptyDirVolumeSource": volumes.EmptyDir,
    "HostPathVolumeSource": volumes.HostPath,
    "ConfigMapVolumeSource": volumes.ConfigMapVolume,
    "SecretVolumeSource": volumes.SecretVolume,
    "KeyToPath": volumes.KeyToPath,
    "DownwardAPIVolumeSource": volumes.DownwardVolume,
    "DownwardAPIVolumeFile": volumes.DownwardFile,
    "ProjectedVolumeSource": volumes.ProjectedVolume,
    "VolumeProjection": volumes.Projection,
    "ConfigMapProjection": volumes.ConfigMapProjection,
    "SecretProjection": volumes.ConfigMapProjection,
    "DownwardAPIProjection": volumes.DownwardProjection,
    "ImageVolumeSource": volumes.ImageVolume,
}


def reached(kind: Any = spec.Pod) -> Iterator[type]:
    """Every class that a Pod is made of, itself first; some more than once."""
    for inner in typing.get_args(kind):
        yield from reached(inner)
    if dataclasses.is_dataclass(kind) and not issubclass(kind, scalars.Quantity):  # type: ignore[arg-type]
        yield kind  # type: ignore[misc]
        for one in typing.get_type_hints(kind).values():
            if typing.get_origin(one) is not typing.ClassVar and one is not typing.ClassVar:
                yield from reached(one)
