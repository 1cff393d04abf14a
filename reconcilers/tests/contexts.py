"""What a feature of the agent is made with, on caches that the test fills."""

from types import SimpleNamespace
from typing import Any

from netloom_reconcilers.node.known.own_node import OwnNode


def context(node_name: str, networks: Any, peers: Any, own: OwnNode | None = None) -> Any:
    """Of an agent that has no API server."""
    own = own or OwnNode(node_name)
    return SimpleNamespace(
        node_name=node_name,
        networks=networks,
        peers=peers,
        own=own,
        api=None,
        changed=lambda: None,
        run_dir=None,
        retain_unknown=False,
    )
