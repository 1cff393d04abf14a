"""Requests and live states in few words."""

from typing import Any

import msgspec

from netloom.api.admission import AdmissionRequest, GroupVersionResource, Operation, UserInfo
from netloom.api.cilium import CILIUM_NODES, CILIUM_POOLS, CONFIG_NAME
from netloom.api.core import CONFIG_MAPS, NODES
from netloom.api.meta import Resource
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS
from netloom.guard.cluster_state import RECORD_NAME, ClusterState, Users
from netloom.guard.decide import decide
from netloom.guard.verdict import Ruling

OPERATOR = "system:serviceaccount:netloom-system:netloom-operator"
AGENT = "system:serviceaccount:netloom-system:netloom-agent"
NODE_NAME = "authentication.kubernetes.io/node-name"

Json = dict[str, Any]


def fresh() -> ClusterState:
    return ClusterState(Users(frozenset({OPERATOR}), frozenset({AGENT})))


def request(
    resource: Resource[Any],
    old: Any = None,
    new: Any = None,
    *,
    user: str = "admin",
    node: str = "",
    operation: Operation | None = None,
    name: str = "",
    dry_run: bool = False,
    sub_resource: str = "",
) -> AdmissionRequest:
    """CREATE, UPDATE or DELETE, by which of the objects are there."""
    metadata = (new or old)["metadata"] if not name else {"name": name}
    extra = {NODE_NAME: (node,)} if node else {}
    return AdmissionRequest(
        uid="705ab4f5-6393-11e8-b7cc-42010a800002",
        operation=operation or ("CREATE" if old is None else "DELETE" if new is None else "UPDATE"),
        resource=GroupVersionResource(group=resource.group, version=resource.version, resource=resource.plural),
        sub_resource=sub_resource,
        name=metadata["name"],
        namespace=metadata.get("namespace", ""),
        user_info=UserInfo(username=user, extra=extra),
        object=msgspec.Raw(msgspec.json.encode(new)),
        old_object=msgspec.Raw(msgspec.json.encode(old)),
        dry_run=dry_run,
    )


def verdict(live: ClusterState, resource: Resource[Any], old: Any = None, new: Any = None, **more: Any) -> Ruling:
    return decide(request(resource, old, new, **more), live)


def refused(live: ClusterState, resource: Resource[Any], old: Any = None, new: Any = None, **more: Any) -> list[str]:
    """The refusals as texts; a dry run has to get the same."""
    found = verdict(live, resource, old, new, **more)
    assert verdict(live, resource, old, new, dry_run=True, **more) == found
    assert not found.unseen
    return [str(problem) for problem in found.refusals]


def warned(live: ClusterState, resource: Resource[Any], old: Any = None, new: Any = None, **more: Any) -> list[str]:
    found = verdict(live, resource, old, new, **more)
    assert found.allowed, found
    assert all(problem.severity == "warning" for problem in found.warnings)
    return [str(problem) for problem in found.warnings]


def network(
    mode: str = "cluster-pool",
    *cidrs: str,
    in_force: str = "",
    name: str = "default",
    pool: Json | None = None,
    meta: Json | None = None,
    **spec: Any,
) -> Json:
    pool = {"ipv4PodCIDRList": list(cidrs or ["10.244.0.0/16"]), **(pool or {})}
    status = {"ipam": {"mode": in_force, "epoch": 3}} if in_force else {}
    return {
        "metadata": {"name": name, **(meta or {})},
        "spec": {"ipam": {"mode": mode, "clusterPool": pool}, **spec},
        "status": status,
    }


def ip_pool(name: str, *cidrs: str, mask: int = 27) -> Json:
    return {"metadata": {"name": name}, "spec": {"ipv4": {"cidrs": list(cidrs), "maskSize": mask}}}


def ipam(mode: str = "", *cidrs: str, pools: dict[str, list[str]] | None = None, pool: Json | None = None) -> Json:
    allocated = [{"pool": name, "cidrs": cidrs} for name, cidrs in (pools or {}).items()]
    return {"mode": mode, "podCIDRs": list(cidrs), "pools": {"allocated": allocated}, "pool": pool or {}}


def config(name: str = CONFIG_NAME, namespace: str = "kube-system", **data: str) -> Json:
    """A ConfigMap; underscores in keys stand for hyphens."""
    keys = {key.replace("_", "-"): value for key, value in data.items()}
    return {"metadata": {"name": name, "namespace": namespace}, "data": keys}


def node_config(
    ipam: str | None = None,
    selector: Json | None = None,
    name: str = "some",
    namespace: str = "kube-system",
    **data: str,
) -> Json:
    """A CiliumNodeConfig that overrides the mode, unless that is None, and what `data` holds."""
    defaults = ({} if ipam is None else {"ipam": ipam}) | data
    spec = {"defaults": defaults} | ({} if selector is None else {"nodeSelector": selector})
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def with_node(live: ClusterState, name: str, held: Json, used: Json | None = None) -> None:
    """used: status.ipam."""
    parts = {"metadata": {"name": name}, "spec": {"ipam": held}, "status": {"ipam": used or {}}}
    obj = msgspec.convert(parts, NETLOOM_NODES.type)
    live.netloom_node(name, None, obj)


def with_nodes(live: ClusterState, count: int, mode: str = "cluster-pool") -> ClusterState:
    """worker-001 holds 10.244.1.0/24, and so on."""
    for number in range(1, count + 1):
        with_node(live, f"worker-{number:03}", ipam(mode, f"10.{244 + number // 256}.{number % 256}.0/24"))
    return live


def with_addresses(live: ClusterState, name: str, *addresses: str) -> None:
    status = {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]}
    live.node(name, None, msgspec.convert({"metadata": {"name": name}, "status": status}, NODES.type))


def with_network(live: ClusterState, obj: Json) -> None:
    live.network(obj["metadata"]["name"], None, msgspec.convert(obj, NETWORKS.type))


def with_pool(live: ClusterState, obj: Json) -> None:
    live.pool(obj["metadata"]["name"], None, msgspec.convert(obj, POOLS.type))


def with_cilium_node(live: ClusterState, name: str, held: Json) -> None:
    obj = msgspec.convert({"metadata": {"name": name}, "spec": {"ipam": held}}, CILIUM_NODES.type)
    live.cilium_node(name, None, obj)


def with_cilium_nodes(live: ClusterState, count: int) -> ClusterState:
    for number in range(1, count + 1):
        with_cilium_node(live, f"worker-{number:03}", {"podCIDRs": [f"10.0.{number}.0/24"]})
    return live


def with_cilium_pool(live: ClusterState, obj: Json) -> None:
    live.cilium_pool(obj["metadata"]["name"], None, msgspec.convert(obj, CILIUM_POOLS.type))


def with_record(live: ClusterState, by: str = "netloom-guard-cilium", **data: str) -> ClusterState:
    """by: the field manager whose apply it was."""
    obj = config(RECORD_NAME, "netloom-system", **data)
    fields = {"f:data": {f"f:{key}": {} for key in data}}
    obj["metadata"]["managedFields"] = [{"manager": by, "operation": "Apply", "fieldsV1": fields}]
    live.record(f"netloom-system/{RECORD_NAME}", None, msgspec.convert(obj, CONFIG_MAPS.type))
    return live


def with_config(live: ClusterState, **data: str) -> ClusterState:
    live.cilium_config(f"kube-system/{CONFIG_NAME}", None, msgspec.convert(config(**data), CONFIG_MAPS.type))
    return live
