"""One decision: from a request and what is live to a verdict. Never raises, whatever the objects hold."""

from netloom.api.admission import AdmissionRequest
from netloom.api.cilium import CILIUM_NODE_CONFIGS, CILIUM_NODES, CILIUM_POOLS, CONFIG_NAME
from netloom.api.core import CONFIG_MAPS
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORKS, POOLS
from netloom.guard.cilium import decide_cilium_config
from netloom.guard.cilium_node import decide_cilium_node
from netloom.guard.cilium_node_config import decide_cilium_node_config
from netloom.guard.cluster_state import ClusterState
from netloom.guard.decode import UnreadableObject, change_of
from netloom.guard.network import decide_network
from netloom.guard.node import decide_node
from netloom.guard.pool import decide_cilium_pool, decide_pool
from netloom.guard.verdict import ALLOWED, Ruling


def decide(request: AdmissionRequest, live: ClusterState) -> Ruling:
    """The verdict; what is not guarded is allowed. A dry run is answered like the real one."""
    if request.operation == "CONNECT":
        return ALLOWED
    resource = request.resource
    try:
        match resource.group, resource.resource:
            case NETWORKS.group, NETWORKS.plural:
                return decide_network(change_of(request, NETWORKS), live)
            case POOLS.group, POOLS.plural:
                return decide_pool(change_of(request, POOLS), live)
            case NETLOOM_NODES.group, NETLOOM_NODES.plural:
                return decide_node(change_of(request, NETLOOM_NODES), live)
            case CILIUM_POOLS.group, CILIUM_POOLS.plural:
                return decide_cilium_pool(change_of(request, CILIUM_POOLS), live)
            case CILIUM_NODES.group, CILIUM_NODES.plural:
                return decide_cilium_node(change_of(request, CILIUM_NODES), live)
            case CILIUM_NODE_CONFIGS.group, CILIUM_NODE_CONFIGS.plural if request.namespace == live.cilium_namespace:
                return decide_cilium_node_config(change_of(request, CILIUM_NODE_CONFIGS), live)
            case CONFIG_MAPS.group, CONFIG_MAPS.plural if request.namespace == live.cilium_namespace:
                change = change_of(request, CONFIG_MAPS)
                if change.key == CONFIG_NAME:
                    return decide_cilium_config(change, live)
    except UnreadableObject as unreadable:
        return Ruling(refusals=(unreadable.problem,))
    return ALLOWED
