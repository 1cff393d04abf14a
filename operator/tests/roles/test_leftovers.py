"""A feature that is off leaves nothing that drops packets of nodes that come."""

from pathlib import Path

import pytest

from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.roles.agent import FEATURES, Agent
from netloom.roles.agent_sources import AgentOptions
from netloom.roles.node_plan import plan, remove_leftovers
from netloom.roles.sources import Sources
from netloom_reconcilers.node.senders import SendersFeature
from tests.kernel.netns import Namespace
from tests.kernel.tunnelled import Keepers, keepers, ours, senders

__all__ = ["keepers"]

MANIFESTS = """
apiVersion: netloom.dev/v1alpha1
kind: NetloomNetwork
metadata: {name: default}
spec: {ipam: {mode: cluster-pool, clusterPool: {ipv4PodCIDRList: [10.0.0.0/8]}}}
---
apiVersion: netloom.dev/v1alpha1
kind: NetloomNode
metadata: {name: node-1}
spec:
  addresses: [{type: InternalIP, ip: 192.168.7.1}]
  ipam: {mode: cluster-pool, podCIDRs: [10.1.0.0/24]}
"""


def options(tmp_path: Path, features: str) -> AgentOptions:
    manifests = tmp_path / "manifests"
    manifests.mkdir(exist_ok=True)
    (manifests / "all.yaml").write_text(MANIFESTS)
    return AgentOptions(node_name="node-1", run_dir=tmp_path, manifests=manifests, features=features)


async def test_what_drops_packets_goes_when_its_feature_is_off(
    node: Namespace, keepers: Keepers, tmp_path: Path
) -> None:
    keeper = await keepers.open()
    await keeper.apply(senders(2))
    whole = ours(node)
    assert await remove_leftovers(options(tmp_path, "*"), FEATURES) == ()
    assert ours(node) == whole, "the feature itself keeps it, without a gap"

    off = options(tmp_path, "-senders,-tunnels,-probe,-surroundings,-forwarding")
    gone = "nft delete table inet netloom-tunnels"
    assert gone in [change.text for change in (await plan(off, FEATURES)).changes]
    assert ours(node) == whole
    assert await remove_leftovers(off, FEATURES) == ()
    assert ours(node) == ""
    assert gone not in [change.text for change in (await plan(off, FEATURES)).changes]
    assert await remove_leftovers(off, FEATURES) == (), "there is nothing"


@pytest.mark.parametrize("how", ["refused", "raised"])
async def test_what_does_not_go_is_said_and_stops_nobody(
    node: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def cleanup(_feature: SendersFeature) -> tuple[list[PlannedChange], list[Failure]]:
        if how == "raised":
            raise OSError("table inet netloom-tunnels: the kernel does not answer")
        return [], [Failure("table", "inet netloom-tunnels", "the kernel does not answer")]

    monkeypatch.setattr(SendersFeature, "cleanup", cleanup)
    off = options(tmp_path, "masquerade")
    agent = Agent(off, Sources(None, off.manifests), None)
    agent.leftovers = await remove_leftovers(off, FEATURES)
    (said,) = agent.leftovers
    assert said == (
        "table inet netloom-tunnels: the kernel does not answer. This is left of the feature senders, which is off, "
        "and drops packets of new nodes. Start the agent again once it can be removed, or with senders among its "
        "--features."
    )
    assert said in agent.facts()["errors"]  # type: ignore[operator]
