"""What an agent would change on its node, and what is removed of that: by `netloom plan` and `netloom cleanup`, and of
features that are off when an agent starts."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from netloom.api.errors import in_words
from netloom.kernel.capability import require_net_admin
from netloom.kernel.errors import DataplaneError, KernelUnsupported, NotPermitted
from netloom.kernel.keeper.report import PlannedChange
from netloom.roles import leftovers
from netloom.roles.agent_sources import AgentOptions, sources
from netloom.roles.feature_keepers import opened
from netloom.roles.sources import Sources
from netloom.runtime.errors import ConfigError
from netloom_reconcilers.features import chosen
from netloom_reconcilers.features.node import NodeContext, NodeFeature
from netloom_reconcilers.node.endpoints.options import SOCKET as CNI_SOCKET
from netloom_reconcilers.node.endpoints.options import CniOptions
from netloom_reconcilers.node.known.own_node import RECORD

log = structlog.get_logger(__name__)


class NodePlan(NamedTuple):
    """What would be changed, and sentences: about what could not be read, what would be left out, and what cleanup
    leaves."""

    changes: list[PlannedChange]
    unread: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


async def plan(options: AgentOptions, features: Sequence[type[NodeFeature]]) -> NodePlan:
    """What an agent with these options would change in the kernel. Writes nothing. Raises UserError."""
    wanted = chosen(features, options.features)
    check_run_dir(options.run_dir)
    async with sources(options) as (found, api):
        if api is not None:
            await api.check()
        cni = CniOptions(options.run_dir / CNI_SOCKET)
        context = NodeContext(options.node_name, options.run_dir, found, api, cni=cni)
        made = [make(context) for make in wanted]
        dropping = [make(context) for make in _dropping(options, features)]
        await found.fill()
        await context.own.look(context.nodes.get(options.node_name), write=False)
        return await _of_each(
            [*made, *dropping],
            lambda feature: feature.plan_cleanup() if feature in dropping else feature.plan(),
            beside=dropping,
        )


async def cleanup(
    run_dir: Path,
    features: Sequence[type[NodeFeature]],
    *,
    dry_run: bool = False,
    state_dir: Path | None = None,
    socket: Path | None = None,
    cni: CniOptions | None = None,
    forget: bool = False,
) -> NodePlan:
    """Remove all that agents made on this machine; what was removed. Raises UserError, naming what would not go.

    dry_run: what would be removed; as with `plan`, nothing is written, and no capability is needed.
    forget: nobody comes back to put back the switches that are left. Their records go as well, and the directories.
    """
    check_run_dir(run_dir)
    cni = cni or CniOptions(run_dir / CNI_SOCKET)
    context = NodeContext("", run_dir, Sources(None), state_dir=state_dir, socket=socket, cni=cni)
    made = [make(context) for make in features]
    if dry_run:
        kept: list[str] = []

        async def planned(feature: NodeFeature) -> list[PlannedChange]:
            changes = await feature.plan_cleanup()
            kept.extend(await feature.left())
            return changes

        return (await _of_each(made, planned))._replace(left=tuple(kept))
    require_net_admin()
    removed: list[PlannedChange] = []
    failed: list[str] = []
    left: list[str] = []
    async with opened(made):
        for feature in made:
            gone, failures = await feature.cleanup()
            removed += gone
            failed += map(str, failures)
        for feature in made:
            left += await feature.left()
    if failed:
        why = f"not everything could be removed: {'; '.join(failed)}. Run it again once that is out of the way."
        raise DataplaneError(why)
    (run_dir / RECORD).unlink(missing_ok=True)
    if forget:
        leftovers.forget(run_dir, state_dir, cni.deletions)
    return NodePlan(removed, left=tuple(left))


async def _of_each(
    features: Sequence[NodeFeature],
    planned: Callable[[NodeFeature], Awaitable[list[PlannedChange]]],
    beside: Sequence[NodeFeature] = (),
) -> NodePlan:
    """What can be read of one is worth having without the others. Raises UserError where that is nothing at all of
    those that were asked for. beside: those that were not."""
    changes: list[PlannedChange] = []
    unread: list[str] = []
    asked = [feature for feature in features if feature not in beside]
    for feature in features:
        try:
            async with opened([feature]):
                changes += await planned(feature)
        except (NotPermitted, KernelUnsupported) as error:
            unread.append(f"{feature.name} is left out: {error}")
            asked = [each for each in asked if each is not feature]
            if not asked:
                raise
    left_out = [f"{each.text}: {each.why}" for each in changes if each.left_out]
    return NodePlan([each for each in changes if not each.left_out], tuple(unread), tuple(left_out))


def _dropping(options: AgentOptions, features: Sequence[type[NodeFeature]]) -> list[type[NodeFeature]]:
    """Those that are off, and whose leftovers drop packets."""
    on = chosen(features, options.features)
    return [each for each in features if each.drops and each not in on]


async def remove_leftovers(options: AgentOptions, features: Sequence[type[NodeFeature]]) -> tuple[str, ...]:
    """What features that are off left in the kernel, where it drops packets. What would not go, as sentences."""
    context = NodeContext("", options.run_dir, Sources(None))
    failed: list[str] = []
    for make in _dropping(options, features):
        feature = make(context)
        try:
            async with opened([feature]):
                gone, failures = await feature.cleanup()
                why = [*map(str, failures)]
        except Exception as error:  # noqa: BLE001 - whatever it is, the other features do their work; told below
            gone, why = [], [in_words(error)]
        if gone and not why:
            log.info("what a feature left is removed", feature=make.name, what=[each.text for each in gone])
        failed += [
            f"{each}. This is left of the feature {make.name}, which is off, and drops packets of new nodes. Start the "
            f"agent again once it can be removed, or with {make.name} among its --features."
            for each in why
        ]
    for each in failed:
        log.warning("what a feature left is not removed", why=each)
    return tuple(failed)


def check_run_dir(run_dir: Path) -> None:
    """Raises ConfigError where it is no directory."""
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"--run-dir {run_dir} is no directory")
