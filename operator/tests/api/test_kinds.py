"""What a kind is called in messages, requests and metrics."""

import pytest

from netloom.api.core import NODES
from netloom.api.meta import Object, Resource
from netloom.api.pod_state import POD_STATES
from netloom.cli import rollout
from netloom.cli.signs import DATED_LEASES
from netloom.runtime.errors import Unavailable
from netloom.runtime.wire import decode
from netloom.uninstall.installation import NETWORK_KINDS
from netloom.uninstall.machines import MACHINES
from netloom_reconcilers.node.addresses.machine import BOOTED
from netloom_reconcilers.node.endpoints.taint import TAINTED
from netloom_reconcilers.node.prefilter import config_maps


@pytest.mark.parametrize(
    ("resource", "kind"),
    [
        (NODES, "Node"),
        (MACHINES, "Node"),
        (BOOTED, "Node"),
        (TAINTED, "Node"),
        (DATED_LEASES, "Lease"),
        (POD_STATES, "Pod"),
        (rollout.DAEMON_SETS, "DaemonSet"),
        (config_maps.CONFIG_MAPS, "ConfigMap"),
        (NETWORK_KINDS[0], "NetloomNetwork"),
    ],
)
def test_it_is_kubernetes_name_whatever_is_read_of_it(resource: Resource[Object], kind: str) -> None:
    with pytest.raises(Unavailable, match=f"^{kind} not readable: "):
        decode(resource, b"[]")
