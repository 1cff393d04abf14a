"""`netloom status`: the cluster's objects and this machine's agent, put together so that trouble stands out.

The cluster's part comes from the API server; peers and drift are known only to the agent of a node, which answers on
its own address. A node without an agent (a laptop, a CI job) shows the cluster's part alone.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from netloom.api.meta import Condition, Resource, T
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, NetloomNetwork, NetloomNode
from netloom.runtime.client import Api
from netloom.runtime.errors import ApiError, ConfigError, NotFound

_AGENT_TIMEOUT = aiohttp.ClientTimeout(total=2)


class NodeLine(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One node. `allocated` and `dataplane` are a condition's status: "True", "False", "Unknown", or "" if absent."""

    name: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = msgspec.field(name="podCIDRs", default=())
    allocated: str = ""
    dataplane: str = ""


class StatusReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What `netloom status -o json` prints. `problems` are sentences; none means: all is well."""

    network: dict[str, str] | None = None
    nodes: tuple[NodeLine, ...] = ()
    agent: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()


def report(network: NetloomNetwork | None, nodes: Iterable[NetloomNode], agent: dict[str, Any] | None) -> StatusReport:
    """Put the parts together and name what is wrong."""
    nodes = sorted(nodes, key=lambda node: node.metadata.name)
    problems: list[str] = []
    facts: dict[str, str] | None = None
    if network is None:
        problems.append(f"NetloomNetwork {NETWORK_NAME}: does not exist; apply one")
    else:
        facts = {
            "mode": network.spec.ipam.mode,
            "modeInForce": network.status.ipam.mode,
            "routing": network.spec.routing.mode,
            "tunnelProtocol": network.spec.routing.tunnel_protocol,
        }
        problems += _troubles("NetloomNetwork", NETWORK_NAME, network.status.conditions)
    for node in nodes:
        problems += _troubles("NetloomNode", node.metadata.name, node.status.conditions)
    if agent is not None:
        problems += [f"agent {agent.get('node', '')}: {error}" for error in agent.get("errors", ())]
    return StatusReport(
        network=facts, nodes=tuple(_line(node) for node in nodes), agent=agent, problems=tuple(problems)
    )


def _troubles(kind: str, name: str, conditions: Iterable[Condition]) -> list[str]:
    return [f"{kind} {name}: {c.type}={c.status} {c.reason}: {c.message}" for c in conditions if c.status != "True"]


def _line(node: NetloomNode) -> NodeLine:
    conditions = {condition.type: condition.status for condition in node.status.conditions}
    # In the good case the operator writes no status: the CIDRs themselves say that it allocated.
    allocated = conditions.get("Allocated", "True" if node.spec.ipam.pod_cidrs else "False")
    return NodeLine(
        name=node.metadata.name,
        addresses=tuple(address.ip for address in node.spec.addresses if address.type == "InternalIP"),
        pod_cidrs=node.spec.ipam.pod_cidrs,
        allocated=allocated,
        dataplane=conditions.get("DataplaneReady", ""),
    )


async def collect(kubeconfig: str | None, context: str | None, agent_address: str) -> StatusReport:
    """Ask the API server and this machine's agent, at the same time. Raises ConfigError if the cluster is not there."""
    async with await Api.connect(kubeconfig, context) as api:
        await api.check()
        async with asyncio.TaskGroup() as group:
            networks = group.create_task(_list(api, NETWORKS))
            nodes = group.create_task(_list(api, NETLOOM_NODES))
            agent = group.create_task(_agent(agent_address))
    network = next((each for each in networks.result() if each.metadata.name == NETWORK_NAME), None)
    return report(network, nodes.result(), agent.result())


async def _list(api: Api, resource: Resource[T]) -> list[T]:
    try:
        return (await api.list(resource)).objects
    except NotFound as error:
        # The same words for every kind: all of them are asked for at once, and the answer is one sentence.
        why = "the cluster does not know Netloom's objects: install the CRDs with `kubectl apply -f crds/`"
        raise ConfigError(why) from error
    except ApiError as error:
        raise ConfigError(str(error)) from error


async def _agent(address: str) -> dict[str, Any] | None:
    try:
        async with (
            aiohttp.ClientSession(timeout=_AGENT_TIMEOUT) as session,
            session.get(f"http://{address}/status") as answer,
        ):
            answer.raise_for_status()
            facts: dict[str, Any] = msgspec.json.decode(await answer.read())
            return facts
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
        return None


def print_text(status: StatusReport) -> None:
    """The report for a person."""
    console = Console(highlight=False)
    if status.network is not None:
        facts = status.network
        force = facts["modeInForce"] or "free: no node holds addresses"
        console.print(
            f"network   IPAM {facts['mode']} (in force: {force}), {facts['routing']} {facts['tunnelProtocol']}"
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NODE", "ADDRESS", "POD CIDRS", "ALLOCATED", "DATAPLANE"):
        table.add_column(column)
    for node in status.nodes:
        row = (node.name, ",".join(node.addresses), ",".join(node.pod_cidrs), node.allocated, node.dataplane or "-")
        table.add_row(*row)
    console.print(table)
    if status.agent is not None:
        facts = status.agent
        peers = f"{facts['peers']} peers, " if "peers" in facts else ""  # else the mesh is switched off
        console.print(
            f"agent     {facts.get('node')}: {peers}"
            f"{'in sync' if facts.get('inSync') else 'NOT in sync'}, {facts.get('driftRepaired')} drifts repaired, "
            f"{facts.get('netlinkWrites')} netlink messages written since its start"
        )
        if "mtu" in facts:
            console.print(f"          pods' MTU {facts['mtu']}: {facts.get('mtuSource')}", soft_wrap=True)
    for problem in status.problems:
        console.print(f"[red]problem[/red]   {problem}", soft_wrap=True)
    if not status.problems:
        console.print("no problems")
