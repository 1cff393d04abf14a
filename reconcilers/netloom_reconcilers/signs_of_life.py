"""What agents and operator agree on about signs of life: a Lease per node, renewed as kubelets renew theirs.

Leases are what Kubernetes has for this: small, watched by nobody but who asks for them, and no write of a NetloomNode,
each of which is sent to every agent. How often they are renewed follows from the size of the cluster, so that the API
server need not feel it: up to 500 nodes every 10 s, beyond that 50 a second in the whole cluster.
"""

GRACE_SECONDS = 40.0
"""Silence after which an agent counts as not heard of, in a cluster of up to 500 nodes; as for kubelets."""
RENEWALS = 4
"""In that time: one that is lost, or late, makes nobody silent."""
RENEWALS_PER_SECOND = 50.0
"""By all agents of a large cluster. The kubelets of 5,000 nodes make 500."""
NOT_HEARD_OF = "AgentNotHeardOf"
"""Reason of `DataplaneReady=Unknown`, which the operator writes, and by which an agent knows that it does."""


def grace(nodes: int, least: float = GRACE_SECONDS) -> float:
    """Seconds of silence that are allowed to each agent of a cluster of so many nodes."""
    return max(least, nodes * RENEWALS / RENEWALS_PER_SECOND)
