"""The steps of an uninstallation, in their order."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from netloom.api.cluster_facts import OPERATOR_LEASE, agent_lease
from netloom.api.coordination import LEASES
from netloom.api.core import NAMESPACES, PODS, Pod
from netloom.api.errors import UserError
from netloom.api.words import some
from netloom.runtime.client import Api
from netloom.runtime.errors import AlreadyExists, ApiError, NotFound
from netloom.uninstall import installation, nodes
from netloom.uninstall.cleaner import BIN, CONF, Cleaner, by_hand, like_agents
from netloom.uninstall.deleting import delete, empty, until
from netloom.uninstall.installation import NETWORK_KINDS, OPERATOR, Thing
from netloom.webhook.names import CILIUM_NAMESPACE, NAME, NAMESPACE

OWN_NAMESPACE = "netloom-uninstall"
"""Of the pods that clean, where Netloom's own takes none any more."""
PODS_END_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UninstallOptions:
    """namespace: where Netloom is. pods_in: where pods that clean are made; "": found. guard_only: of a cluster whose
    network is another's. by_helm: what has no life of its own is left to Helm. no_nodes: machines are left as they are.
    image, bin_dir, conf_dir: of the pods that clean; "": as agents have it. seconds: for machines to be cleaned."""

    namespace: str = NAMESPACE
    pods_in: str = ""
    guard_only: bool = False
    by_helm: bool = False
    no_nodes: bool = False
    image: str = ""
    bin_dir: str = ""
    conf_dir: str = ""
    seconds: float = 120.0
    cilium_namespace: str = CILIUM_NAMESPACE


Say = Callable[[str], None]


async def uninstall(api: Api, options: UninstallOptions, say: Say) -> None:
    """Takes Netloom out of the cluster. Raises UserError; what was done stays done, and the next run goes on."""
    cleaner = None if options.guard_only or options.no_nodes else await _cleaner(api, options)
    if not options.guard_only:
        say(f"In use: {in_use((await api.list(PODS)).objects)}")
    await _end_guard(api, options, say)
    if not options.guard_only:
        silent = await _clean(api, options, cleaner, say)
        await _empty(api, options, say)
        if silent and cleaner is not None:
            say(
                f"Not clean, as their kubelets are silent: {', '.join(silent)}. When one is back, run `netloom "
                f"uninstall` again, or there `{by_hand(cleaner)}`; a machine that is made anew needs neither."
            )
    await delete(api, installation.kept())
    if not options.by_helm:
        _tell(say, await delete(api, installation.rest(options.namespace, options.cilium_namespace)))
    if not options.guard_only:
        # The last: it tells the next run how agents were, should this one be killed.
        _tell(say, await delete(api, [installation.agents(options.namespace)]))
    say("Done. CustomResourceDefinitions stay until they are deleted: kubectl delete -f crds/ of the chart.")


async def _cleaner(api: Api, options: UninstallOptions) -> Cleaner:
    """Before anything is done: what is missing is asked for now. Raises UserError."""
    daemon_set = await nodes.find_agents(api, options.namespace)
    if daemon_set is not None:
        return like_agents(daemon_set, options.image)
    if not options.image:
        raise UserError(
            f"which image cleans the machines is not known: there is no DaemonSet {options.namespace}/netloom-agent. "
            "Give --image REPOSITORY/netloom:TAG, --namespace if Netloom is in another one, or --no-nodes if the "
            "machines are clean or gone."
        )
    return Cleaner(options.image, options.bin_dir or BIN, options.conf_dir or CONF)


def in_use(pods: list[Pod]) -> str:
    """Who has the network, and what becomes of them."""
    users = [each for each in pods if each.spec.node_name and each.is_on_network]
    if not users:
        return "no pod has addresses of the pod network."
    names = some([each.name for each in users])
    count = "1 pod has" if len(users) == 1 else f"{len(users)} pods have"
    return (
        f"{count} addresses of the pod network ({names}), and LOSE THE NETWORK NOW. They run "
        "on without one; make them anew when another CNI is there. Until then their deletion waits for it, too, as "
        "container runtimes do not take a pod down without a CNI."
    )


async def _end_guard(api: Api, options: UninstallOptions, say: Say) -> None:
    """First what refuses, so that no write waits for a guard that is ending; then guards, then what they wrote."""
    _tell(say, await delete(api, installation.refusing()))
    _tell(say, await delete(api, installation.deciding(options.namespace)))
    if why := await nodes.pods_gone(api, options.namespace, (OPERATOR, NAME), PODS_END_SECONDS):
        say(f"It is gone on without these: {why}.")
    _tell(say, await delete(api, installation.recorded(options.namespace)))


async def _clean(api: Api, options: UninstallOptions, cleaner: Cleaner | None, say: Say) -> list[str]:
    """The machines; returns the names of those that do not answer."""
    await nodes.park(api, options.namespace)
    silent: list[str] = []
    if cleaner is not None:
        async with _place(api, options) as place:
            work = nodes.NodesCleaning(api, cleaner, options.namespace, place, say)
            silent = (await work.run(options.seconds)).silent
    return silent


@asynccontextmanager
async def _place(api: Api, options: UninstallOptions) -> AsyncIterator[str]:
    """Where pods can be made: nobody makes one in a namespace that is being deleted."""
    if options.pods_in:
        yield options.pods_in
        return
    try:
        there = not (await api.get(NAMESPACES, options.namespace)).metadata.deletion_timestamp
    except NotFound:
        there = False
    if there:
        yield options.namespace
        return
    labels = {"app.kubernetes.io/part-of": "netloom", "pod-security.kubernetes.io/enforce": "privileged"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OWN_NAMESPACE, "labels": labels}}

    async def made() -> str:
        try:
            await api.request("POST", NAMESPACES.path(), body=msgspec.json.encode(body))
        except AlreadyExists:
            own = await api.get(NAMESPACES, OWN_NAMESPACE)
            return "it is still being deleted" if own.metadata.deletion_timestamp else ""
        return ""

    await until(f"namespace {OWN_NAMESPACE} cannot be made", made)
    yield OWN_NAMESPACE
    await delete(api, [Thing("/api/v1", "namespaces", OWN_NAMESPACE)])


async def _empty(api: Api, options: UninstallOptions, say: Say) -> None:
    """What the operator and agents wrote, and what users did for them."""
    for kind in NETWORK_KINDS:
        if names := await empty(api, kind):
            say(f"deleted {kind.plural}: {some(names)}")
    await _delete_leases(api, options.namespace)
    if names := await nodes.untaint(api):
        say(f"taken off: the taint node.netloom.dev/not-ready of {', '.join(names)}")


async def _delete_leases(api: Api, namespace: str) -> None:
    try:
        names = [each.metadata.name for each in (await api.list(LEASES, namespace=namespace)).objects]
    except ApiError as error:
        raise UserError(f"Leases in {namespace} cannot be listed: {error}. Run it again.") from error
    ours = [name for name in names if name == OPERATOR_LEASE or name.startswith(agent_lease(""))]
    await delete(api, [Thing("/apis/coordination.k8s.io/v1", "leases", name, namespace) for name in ours])


def _tell(say: Say, things: list[Thing]) -> None:
    if things:
        say(f"deleted {', '.join(map(str, things))}")
