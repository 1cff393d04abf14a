"""The objects of Cilium that the guard looks at, cut down to what it reads (group cilium.io, Cilium 1.13 to 1.20).

Source: pkg/k8s/apis/cilium.io/client/crds of cilium/cilium, and for what runs it install/kubernetes/cilium/templates
(cilium-agent/daemonset.yaml, cilium-operator/deployment.yaml). Nothing here is ever written.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from netloom.api.meta import ObjectMeta, Resource, Struct

GROUP = "cilium.io"

CONFIG_NAME = "cilium-config"
"""Name of the ConfigMap that Cilium's agents and operator read when they start."""

DEFAULT_MODE = "cluster-pool"
"""IPAM mode of a cilium-config without the key `ipam`."""


def _in_lower_case(data: Mapping[str, str]) -> bool:
    """Whether all keys are written as Cilium reads them. Nearly always they are, and that is seen without a loop over a
    hundred and more of them."""
    keys = "".join(data)
    return keys == keys.lower()


def spellings(data: Mapping[str, str], key: str) -> list[str]:
    """The keys that Cilium takes for this one, the one in lower case first: the library that it reads its configuration
    with (viper) reads all keys in lower case. Where several have different values, any of them may win."""
    if _in_lower_case(data):
        return [key] if key in data else []
    return sorted((each for each in data if each.lower() == key), reverse=True)


def settings(data: Mapping[str, str]) -> Mapping[str, str]:
    """A configuration by the keys that Cilium reads; of several spellings the value of the first. Where all keys are
    written so, `data` itself."""
    return data if _in_lower_case(data) else {key.lower(): data[key] for key in sorted(data)}


class CiliumPoolAllocation(Struct, frozen=True):
    """spec.ipam.pools.allocated[]: what a node holds of one CiliumPodIPPool (mode multi-pool)."""

    pool: str = ""
    cidrs: tuple[str, ...] = ()


class CiliumNodePools(Struct, frozen=True):
    """spec.ipam.pools"""

    allocated: tuple[CiliumPoolAllocation, ...] = ()


class CiliumNodeIPAM(Struct, frozen=True):
    """spec.ipam: CIDRs (modes kubernetes and cluster-pool), pools (multi-pool), or single addresses (crd, clouds)."""

    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    pools: CiliumNodePools = CiliumNodePools()
    pool: dict[str, Any] = msgspec.field(default_factory=dict)
    ipv6_pool: dict[str, Any] = msgspec.field(name="ipv6-pool", default_factory=dict)

    @property
    def held(self) -> frozenset[str]:
        """All that the node holds: CIDRs and addresses."""
        pools = (cidr for each in self.pools.allocated for cidr in each.cidrs)
        return frozenset((*self.pod_cidrs, *pools, *self.pool, *self.ipv6_pool))


class CiliumNodeSpec(Struct, frozen=True):
    """spec of a CiliumNode."""

    ipam: CiliumNodeIPAM = CiliumNodeIPAM()


class CiliumNode(Struct, frozen=True):
    """cilium.io/v2 CiliumNode: one per node, made by its agent."""

    metadata: ObjectMeta = ObjectMeta()
    spec: CiliumNodeSpec = CiliumNodeSpec()


class CiliumPoolFamily(Struct, frozen=True):
    """spec.ipv4 or spec.ipv6 of a CiliumPodIPPool."""

    cidrs: tuple[str, ...] = ()
    mask_size: int = 0


class CiliumPodIPPoolSpec(Struct, frozen=True):
    """spec of a CiliumPodIPPool."""

    ipv4: CiliumPoolFamily | None = None
    ipv6: CiliumPoolFamily | None = None


class CiliumPodIPPool(Struct, frozen=True):
    """cilium.io/v2alpha1 CiliumPodIPPool."""

    metadata: ObjectMeta = ObjectMeta()
    spec: CiliumPodIPPoolSpec = CiliumPodIPPoolSpec()


class CiliumNodeConfigSpec(Struct, frozen=True):
    """spec of a CiliumNodeConfig: keys of cilium-config, and the label selector of the Nodes they are for (None: of no
    Node; empty: of all)."""

    defaults: dict[str, str] = msgspec.field(default_factory=dict)
    node_selector: dict[str, Any] | None = None


class CiliumNodeConfig(Struct, frozen=True):
    """CiliumNodeConfig, the same in both versions: cilium.io/v2 since Cilium 1.16, v2alpha1 from 1.13 to 1.19.

    Only those in Cilium's own namespace are read, by agents when they start.
    """

    metadata: ObjectMeta = ObjectMeta()
    spec: CiliumNodeConfigSpec = CiliumNodeConfigSpec()


class EnvVar(Struct, frozen=True):
    """env[] of a container; value_from: where its value is, instead of `value`."""

    name: str = ""
    value: str = ""
    value_from: dict[str, Any] | None = None


class VolumeMount(Struct, frozen=True):
    """volumeMounts[] of a container."""

    name: str = ""
    mount_path: str = ""


class Container(Struct, frozen=True):
    """A container, as far as it says how Cilium is configured."""

    name: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[VolumeMount, ...] = ()


class ConfigMapVolume(Struct, frozen=True):
    """configMap of a volume."""

    name: str = ""
    items: tuple[dict[str, Any], ...] = ()


class Volume(Struct, frozen=True):
    """volumes[] of a pod."""

    name: str = ""
    config_map: ConfigMapVolume | None = None


class ContainersSpec(Struct, frozen=True):
    """spec of a pod."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()


class PodTemplate(Struct, frozen=True):
    """spec.template of a workload."""

    spec: ContainersSpec = ContainersSpec()


class WorkloadSpec(Struct, frozen=True):
    """spec of a workload."""

    template: PodTemplate = PodTemplate()


class DaemonSet(Struct, frozen=True):
    """apps/v1 DaemonSet: Cilium's agents."""

    metadata: ObjectMeta = ObjectMeta()
    spec: WorkloadSpec = WorkloadSpec()


class Deployment(Struct, frozen=True):
    """apps/v1 Deployment: Cilium's operator."""

    metadata: ObjectMeta = ObjectMeta()
    spec: WorkloadSpec = WorkloadSpec()


Workload = DaemonSet | Deployment

AGENTS_NAME, OPERATOR_NAME = "cilium", "cilium-operator"
"""Names of the DaemonSet and the Deployment."""

DAEMON_SETS = Resource("apps", "v1", "daemonsets", DaemonSet)
DEPLOYMENTS = Resource("apps", "v1", "deployments", Deployment)
CILIUM_NODES = Resource(GROUP, "v2", "ciliumnodes", CiliumNode)
CILIUM_POOLS = Resource(GROUP, "v2alpha1", "ciliumpodippools", CiliumPodIPPool)
CILIUM_NODE_CONFIGS = Resource(GROUP, "v2", "ciliumnodeconfigs", CiliumNodeConfig)
CILIUM_NODE_CONFIG_VERSIONS = ("v2", "v2alpha1")
"""All that a cluster may serve."""
