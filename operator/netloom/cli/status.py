"""`netloom status`: the cluster's objects, signs of life and this machine's agent, put together for a verdict.

The cluster's part comes from the API server; peers and drift are known only to the agent of a node, which answers on
its own address. What may not be read is said, and what is known of the rest is told all the same.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from netloom.api import prefilter_verdict
from netloom.api.cluster_facts import (
    AGENT_LABEL,
    OPERATOR_LEASE,
    ClusterFacts,
    ObjectProblem,
    Sign,
    Unseen,
    agent_lease,
)
from netloom.api.core import NODES
from netloom.api.errors import UserError, in_words, sentences
from netloom.api.meta import Condition, Object, Resource
from netloom.api.node_verdict import NodeState
from netloom.api.participation import takes_part
from netloom.api.prefilter import NetloomPrefilter
from netloom.api.v1alpha1 import NETLOOM_NODES, NETWORK_NAME, NETWORKS, PREFILTERS, NetloomNetwork
from netloom.api.verdict import OperatorState, ProblemGroup, Totals, Verdict, judge
from netloom.cli import local_agent, rollout
from netloom.cli.local_agent import LocalAgent
from netloom.cli.process import say
from netloom.cli.signs import DATED_LEASES, sign_of
from netloom.runtime.client import Api
from netloom.runtime.clock import timestamp
from netloom.runtime.errors import ApiError, ConfigError, Forbidden, NotFound, unreadable
from netloom.runtime.wire import Listing

T = TypeVar("T", bound=Object)
Found = TypeVar("Found")

EXIT_HEALTHY, EXIT_PROBLEMS, EXIT_NOT_ASKED = 0, 1, 3
"""Exit statuses; the last says that there is no verdict. 2 is a command line that is wrong."""

LOOK_SECONDS = 2.0
"""Between two looks while it is waited; where a look takes long, four times as long as it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusOptions:
    """What `netloom status` was asked. agent_address: "" for the usual one, where it is no fault if nobody answers."""

    kubeconfig: str | None = None
    context: str | None = None
    lease_namespace: str = "kube-system"
    agent_address: str = ""

    def check(self) -> None:
        """Raises ValueError where the address is none."""
        host, colon, port = self.agent_address.rpartition(":")
        if self.agent_address and not (host and colon and port.isdecimal() and int(port) <= 65535):
            raise ValueError(f"--agent-address {self.agent_address!r} is not HOST:PORT, such as {local_agent.ADDRESS}")


class Network(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The NetloomNetwork. mode_in_force: "" while no node holds addresses."""

    mode: str
    mode_in_force: str
    routing: str
    tunnel_protocol: str
    conditions: tuple[Condition, ...]


class StatusReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What `netloom status -o json` prints. `time` by the API server's clock; `notes` are no problems."""

    time: str
    healthy: bool
    totals: Totals
    operator: OperatorState
    network: Network | None = None
    agent: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[ProblemGroup, ...] = ()
    nodes: tuple[NodeState, ...] = ()

    @property
    def facts(self) -> local_agent.Facts | None:
        """Of this machine's agent, where one answers."""
        return None if self.agent is None else msgspec.convert(self.agent, local_agent.Facts)


async def collect(api: Api, asked: StatusOptions) -> StatusReport:
    """Ask the API server and this machine's agent, at the same time. Raises ConfigError if the cluster is not there."""
    await api.check()
    agents_only = {"namespace": asked.lease_namespace, "label_selector": f"{AGENT_LABEL}=true"}
    async with asyncio.TaskGroup() as group:
        networks = group.create_task(_list(api, NETWORKS))
        nodes = group.create_task(_list(api, NODES))
        objects = group.create_task(_list(api, NETLOOM_NODES))
        leases = group.create_task(_list(api, DATED_LEASES, **agents_only))
        leader = group.create_task(_leader(api, asked.lease_namespace))
        rolled = group.create_task(rollout.problems(api, asked.lease_namespace))
        outdated = group.create_task(_outdated(api))
        prefilters = group.create_task(_prefilters(api))
        agent = group.create_task(local_agent.ask(asked.agent_address or local_agent.ADDRESS))
    answers = (networks.result(), nodes.result(), objects.result(), leases.result(), leader.result())
    refusals = [answer.why for answer in answers if isinstance(answer, Unseen)]
    if len(refusals) == len(answers):
        raise ConfigError(f"nothing of what Netloom is about may be looked at: {refusals[0]}")
    network = _network(networks.result())
    present = None if isinstance(network, Unseen) else network
    verdict = judge(
        ClusterFacts(
            nodes=_objects(nodes.result()),
            netloom_nodes=_objects(objects.result()),
            network=network,
            agents=_agents(api, leases.result()),
            operator=leader.result(),
            left_out=lambda node: not takes_part(node, present),
            namespace=asked.lease_namespace,
            unreadable=_unreadable(
                NetloomNetwork=networks.result(),
                Node=nodes.result(),
                NetloomNode=objects.result(),
                NetloomPrefilter=prefilters.result(),
            ),
            more=[
                *_told_by(agent.result(), asked),
                *rolled.result(),
                *outdated.result(),
                *_of_prefilters(prefilters.result()),
            ],
        )
    )
    notes = [*prefilter_verdict.notes(_known(prefilters.result()), _known(objects.result()))]
    return _report(api, verdict, present, agent.result(), asked, notes)


def _report(
    api: Api,
    verdict: Verdict,
    network: NetloomNetwork | None,
    agent: LocalAgent,
    asked: StatusOptions,
    notes: list[str],
) -> StatusReport:
    told = [agent.silence] if agent.silence and not (asked.agent_address or agent.nobody) else agent.warnings
    return StatusReport(
        time=timestamp(api.clock.now()),
        network=None if network is None else _facts(network),
        agent=agent.said,
        notes=(*told, *notes),
        **msgspec.structs.asdict(verdict),
    )


def _facts(network: NetloomNetwork) -> Network:
    return Network(
        mode=network.spec.ipam.mode,
        mode_in_force=network.status.ipam.mode,
        routing=network.spec.routing.mode,
        tunnel_protocol=network.spec.routing.tunnel_protocol,
        conditions=network.status.conditions,
    )


def _told_by(agent: LocalAgent, asked: StatusOptions) -> list[ObjectProblem]:
    if agent.silence and asked.agent_address:
        return [ObjectProblem("LocalAgent", asked.agent_address, "NoAgentThere", agent.silence)]
    return agent.problems


async def _outdated(api: Api) -> list[ObjectProblem]:
    """Definitions that know less than we do; where that cannot be looked at, nothing is said of it."""
    from netloom.roles import definitions

    try:
        found = await definitions.outdated(api)
    except ApiError:
        return []
    kind = "CustomResourceDefinition"
    return [ObjectProblem(kind, name, "Outdated", sentence) for name, sentence in found.items()]


# What the API server says, or that it may not be asked


async def _allowed(asking: Awaitable[Found]) -> Found | Unseen:
    try:
        return await asking
    except Forbidden as error:
        return Unseen(error.message)
    except NotFound:
        raise
    except ApiError as error:
        raise ConfigError(str(error)) from error


async def _list(api: Api, resource: Resource[T], **selection: str) -> Listing[T] | Unseen:
    try:
        return await _allowed(api.list(resource, **selection))  # type: ignore[arg-type]
    except NotFound as error:
        raise ConfigError(unreadable(error)) from error


async def _prefilters(api: Api) -> Listing[NetloomPrefilter] | Unseen:
    """None where the cluster does not know the kind: it is the youngest, and nothing else needs it."""
    try:
        return await _allowed(api.list(PREFILTERS))
    except NotFound:
        return Listing([], "")


def _of_prefilters(found: Listing[NetloomPrefilter] | Unseen) -> list[ObjectProblem]:
    if isinstance(found, Unseen):
        what = "NetloomPrefilters"
        return [ObjectProblem(what, what, "NotLookedAt", f"{what}: could not be looked at: {found.why}")]
    return list(prefilter_verdict.problems(found.objects))


def _known(listing: Listing[T] | Unseen) -> list[T]:
    return [] if isinstance(listing, Unseen) else listing.objects


async def _leader(api: Api, namespace: str) -> Sign | Unseen | None:
    try:
        lease = await _allowed(api.get(DATED_LEASES, OPERATOR_LEASE, namespace))
    except NotFound:
        return None
    return lease if isinstance(lease, Unseen) else sign_of(lease, api.clock.now())


def _agents(api: Api, leases: Listing[Any] | Unseen) -> dict[str, Sign] | Unseen:
    now = api.clock.now()
    if isinstance(leases, Unseen):
        return leases
    return {lease.metadata.name.removeprefix(agent_lease("")): sign_of(lease, now) for lease in leases.objects}


def _network(networks: Listing[NetloomNetwork] | Unseen) -> NetloomNetwork | Unseen | None:
    if isinstance(networks, Unseen):
        return networks
    return next((each for each in networks.objects if each.metadata.name == NETWORK_NAME), None)


def _objects(listing: Listing[T] | Unseen) -> list[T] | Unseen:
    return listing if isinstance(listing, Unseen) else listing.objects


def _unreadable(**listings: Listing[Any] | Unseen) -> dict[tuple[str, str], str]:
    return {
        (kind, name): why
        for kind, listing in listings.items()
        if not isinstance(listing, Unseen)
        for name, why in listing.unreadable.items()
    }


# Waiting


def duration(text: str) -> float:
    """Seconds of `90s`, `5m`, `1h30m`. Raises ValueError."""
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h))+", text) and text != "0":
        raise ValueError(f"--wait {text!r} is no duration, such as 90s, 5m or 1h30m")
    parts: list[tuple[str, str]] = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def run(asked: StatusOptions, wait: float | None, show: Callable[[StatusReport], None]) -> int:
    """Shows the status, after waiting up to `wait` seconds for a healthy one; the exit status."""
    from netloom.runtime import log, loop

    log.configure("auto", "error")
    try:
        report = loop.run(_seen(asked, wait))
    except (UserError, OSError, BaseExceptionGroup) as error:
        said = sentences(error) or _of_the_system(error)
        if not said:
            raise
        for sentence in said:
            say(sentence)
        return EXIT_NOT_ASKED
    show(report)
    return EXIT_HEALTHY if report.healthy else EXIT_PROBLEMS


def _of_the_system(error: BaseException) -> list[str]:
    """What the system refused this process (too many open files, say); nothing where something else failed, too."""
    alien = not isinstance(error, OSError | BaseExceptionGroup)
    if isinstance(error, BaseExceptionGroup):
        alien = error.split((UserError, OSError))[1] is not None
    return [] if alien else [f"the cluster could not be asked: {in_words(error)}"]


async def _seen(asked: StatusOptions, wait: float | None) -> StatusReport:
    async with await Api.connect(asked.kubeconfig, asked.context, user_agent="netloom-status") as api:
        return await (collect(api, asked) if wait is None else wait_until_healthy(lambda: collect(api, asked), wait))


async def wait_until_healthy(look: Callable[[], Awaitable[StatusReport]], seconds: float) -> StatusReport:
    """The first healthy report, or the last one when the time is over; raises what that look raised.

    What is waited for is said on standard error whenever it changes.
    """
    deadline, told = time.monotonic() + seconds, ""
    while True:
        began = time.monotonic()
        failure: BaseException | None = None
        try:
            report = await look()
            if report.healthy:
                return report
            news = _news(report)
        except (UserError, BaseExceptionGroup) as error:
            if not sentences(error):
                raise
            failure, news = error, "; ".join(sentences(error))
        now = time.monotonic()
        if now >= deadline:
            if failure:
                raise failure
            return report
        if news != told:
            told = news
            say(f"waiting: {news}")
        await asyncio.sleep(min(deadline - now, max(LOOK_SECONDS, 4 * (now - began))))


def _news(report: StatusReport) -> str:
    more = f" (problem 1 of {len(report.problems)})" if len(report.problems) > 1 else ""
    return f"{report.totals.summary}; {report.problems[0]}{more}"
