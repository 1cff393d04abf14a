"""`netloom ip why` away from the pod's node: by the API server's objects."""

from netloom.api.core import NAMESPACES, PODS
from netloom.api.errors import UserError
from netloom.api.ipam_modes import mode_of
from netloom.api.pool_choice import choose
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, POOLS
from netloom.cli.options import Cluster
from netloom.cli.reading import reading
from netloom.runtime.errors import NotFound
from netloom_reconcilers.node.addresses.wire import Why
from netloom_reconcilers.node.pools.why import PodFacts, why


async def ask_api_server(cluster: Cluster, name: str) -> Why:
    """Raises UserError."""
    namespace, _, plain = name.rpartition("/")
    if not namespace:
        raise UserError(f"{name}: write NAMESPACE/POD")
    async with reading(cluster, "ip") as api:
        try:
            pod = await api.get(PODS, plain, namespace)
            network = await api.get(NETWORKS, NETWORK_NAME)
            pools = {each.metadata.name: each for each in (await api.list(POOLS)).objects}
            choice = None
            if mode_of(network).from_pools:
                choice = choose(pod, await api.get(NAMESPACES, namespace), pools, network.spec.ipam.multi_pool)
            try:
                node = await api.get(NETLOOM_NODES, pod.spec.node_name) if pod.spec.node_name else None
            except NotFound:
                node = None
        except NotFound as error:
            raise UserError(f"{error.message}") from error
    given = [each.ip for each in pod.status.pod_ips]
    return why(PodFacts(pod, network, node, choice, pools, given))
