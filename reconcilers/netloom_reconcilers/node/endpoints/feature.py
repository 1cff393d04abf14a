"""Pods' interfaces as a feature of the agent: what container runtimes ask for through the plugin on the host, and all
that follows from it.

The order of a start: the allocator takes in who has which address; the kernel shows which interfaces there are; those
that an address explains are kept from then on, and when it is known who runs, the others go. Deletions that were
written down meanwhile are made up for. Nothing is added before, and the plugin is told so.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import structlog
from prometheus_client.core import Metric

from netloom.api.core import PODS, Pod
from netloom.api.events import ObjectReference
from netloom.cidr import Address
from netloom.ipam.node_allocator import Owner
from netloom.kernel.endpoints.endpoint import Endpoint, Endpoints
from netloom.kernel.endpoints.keeper import EndpointsKeeper, EndpointsReport
from netloom.kernel.keeper.report import Failure, PlannedChange
from netloom.runtime.controller import Controller
from netloom.runtime.manager import Run
from netloom_reconcilers.conditions import Readiness
from netloom_reconcilers.features.node import NodeContext, NodeFeature, remove_files
from netloom_reconcilers.node.addresses.server import ServedSocket
from netloom_reconcilers.node.addresses.service import NoAddress
from netloom_reconcilers.node.endpoints import deletions as written_down
from netloom_reconcilers.node.endpoints.attachments import Attachments, endpoint_of
from netloom_reconcilers.node.endpoints.commands import Commands
from netloom_reconcilers.node.endpoints.deletions import Deletions
from netloom_reconcilers.node.endpoints.foreign_pods import ForeignPods
from netloom_reconcilers.node.endpoints.install import Installer, binary_of, conflist_of, installed
from netloom_reconcilers.node.endpoints.metrics import metrics_of
from netloom_reconcilers.node.endpoints.mtu import PodMtu
from netloom_reconcilers.node.endpoints.networks import FILE, Networks
from netloom_reconcilers.node.endpoints.options import CniOptions, Places, on_host
from netloom_reconcilers.node.endpoints.server import CniServer
from netloom_reconcilers.node.endpoints.taint import Taint
from netloom_reconcilers.node.endpoints.vanished import Vanished

log = structlog.get_logger(__name__)

_KEY = "endpoints"
_BEGINNING = "the agent has just begun: which pods run is still being read."


class EndpointsFeature(NodeFeature):
    """See the module. Without an option that says where it is asked, it does nothing."""

    name = "endpoints"
    condition = "PodsWired"
    knows_by_nodes = False
    keeper: EndpointsKeeper | None = None

    def __init__(self, context: NodeContext) -> None:
        super().__init__(context)
        self.controller = Controller(self.name, self.reconcile)
        self._options: CniOptions | None = context.cni
        self._kept = self._known = False
        """Whether what the allocator explains is kept; whether it is known who runs."""
        self._was: tuple[bool, ...] = ()
        self._came = False
        """Whether pods may have come to the node as it is. It is not asked again for each pod: that takes a look at all
        that is wrong with the node."""
        self._wrong: tuple[object, ...] = ((), ())
        self._node_uid = ""
        self._state_dir = context.state_dir or context.run_dir
        self._mtu = PodMtu(context.node_name, lambda: context.mesh)
        if context.cni is None:
            return
        self.keeper = EndpointsKeeper(on_report=self._reported, lifeline_at=self._lifeline_at)
        if context.addresses is None:
            return
        self._serve_by(context.cni, self.keeper, Networks(self._state_dir))

    def _lifeline_at(self, address: Address) -> str:
        """No pod is given such an address, whoever gives addresses here: the node could not reach it any more."""
        return self.context.mesh.lifeline_at(address) if self.context.mesh is not None else ""

    def _serve_by(self, options: CniOptions, keeper: EndpointsKeeper, networks: Networks) -> None:
        context, service = self.context, self.context.addresses
        assert service is not None
        self._service = service
        service.check_idle = self._check_idle
        self.attachments = Attachments(service, keeper, networks, self._mtu.known)
        self._commands = Commands(service, self.attachments, keeper.differences, self._obstacle, self._lack)
        self.deletions = Deletions(options.deletions, self._commands.make_up_for, context.changed)
        self._commands.deletions = self.deletions
        self.socket = ServedSocket(CniServer(self._commands.handle), options.socket, context.changed)
        self.installer: Installer | None = None
        if options.install is not None:
            meeting = {"--run-dir, --cni-socket": options.socket, "--cni-deletions": options.deletions}
            self.installer = Installer(
                options.install, lambda: self.is_ready, self._repaired, context.changed, meeting=meeting
            )
        self.vanished: Vanished | None = None
        if context.api is not None:
            self.vanished = Vanished(
                context.api, context.node_name, self.attachments, self._missing, told=self._cut_off
            )
        self.taint: Taint | None = None
        self.foreign_pods: ForeignPods | None = None
        if context.api is not None and options.install is not None:
            folder = options.install.conf_dir
            self.foreign_pods = ForeignPods(context.api, context.node_name, self._wired, folder, context.changed)
            self.taint = Taint(context.api, context.node_name, self._may_come, context.changed)

    def _reported(self, report: EndpointsReport) -> None:
        """Each pod that comes or goes is a report, and mostly nothing that others have to hear of."""
        wrong = report.failures, report.contended
        if wrong != self._wrong:
            self._wrong = wrong
            self.context.changed()

    @property
    def _serves(self) -> bool:
        return self._options is not None and self.context.addresses is not None

    def components(self) -> Mapping[str, Run]:
        """The reconciler, the kernel's side, the socket, and what is done to the host."""
        if not self._serves or self.keeper is None or self._options is None:
            return {}
        found: dict[str, Run] = {
            self.name: self._begin,
            "pods' interfaces": self.keeper.run,
            "cni socket": self.socket.run,
            "cni deletions": self.deletions.run,
        }
        if self.installer is not None:
            found["cni files"] = self.installer.run
        if self.vanished is not None:
            found["vanished pods"] = self.vanished.run
        if self.taint is not None:
            found["taint"] = self.taint.run
        if self.foreign_pods is not None:
            found["pods of others"] = self.foreign_pods.run
        return found

    async def _begin(self) -> None:
        self.controller.enqueue(_KEY)
        await self.controller.run()

    def _missing(self) -> list[Endpoint]:
        """Whose devices are gone and cannot be made again. One that is there, and of which one step is refused, is
        mostly a running pod's."""
        assert self.keeper is not None
        keeper, endpoints, adding = self.keeper, self.attachments.endpoints, self.attachments.adding
        failing = [each.key for each in keeper.report.failures if each.kind == "link" and not keeper.has(each.key)]
        found = [*filter(None, map(endpoints.get, failing)), *self.attachments.lost.values()]
        return [each for each in found if (each.container, each.interface) not in adding]

    def _wired(self) -> set[Address] | None:
        """Addresses of all interfaces that were made, be their devices there or not; None while they are not known."""
        if not self._known:
            return None
        every = (*self.attachments.endpoints, *self.attachments.lost.values())
        return {address for endpoint in every for address in endpoint.addresses}

    # ------------------------------------------------------------------------------------------------ what is kept

    @property
    def applied(self) -> bool:
        """Whether what was there before is kept."""
        return not self._serves or self._kept or not self._service.begun

    def changed(self) -> None:
        """More may be known, or the node be ready by now, or another one."""
        if not self._serves:
            return
        node = self.context.nodes.get(self.context.node_name)
        uid = node.metadata.uid if node is not None else ""
        if uid != self._node_uid:
            self._came = False
        if uid != self._node_uid or self._state() != self._was:
            self._node_uid = uid
            self.controller.enqueue(_KEY)

    def _state(self) -> tuple[bool, ...]:
        """By what there is something to do."""
        may_come = self.taint is not None and (self._came or self._may_come())
        return self._service.begun, not self._service.obstacle, self.is_ready, may_come

    async def reconcile(self, key: str = _KEY) -> float | None:
        """Keep what is explained, as soon as it is. Raises OSError, AnswerLost, NotPermitted; it is tried again."""
        keeper, service = self.keeper, self._service
        assert keeper is not None
        self._was = self._state()
        self._came = self._was[-1]
        is_known = not service.obstacle
        if service.begun and not self._known and (is_known or not self._kept):
            found = await keeper.read_endpoints()
            if is_known:
                self.attachments.adopt(found)
            self.attachments.restore(found)
            await keeper.apply(self.attachments.endpoints)
            self._kept = True
            if is_known:
                await keeper.prune()
                self.attachments.forget_others()
                self._known = True
                log.info("the interfaces of pods are known", pods=len(self.attachments.endpoints))
                self.deletions.look_soon()
        if self.installer is not None:
            self.installer.look_soon()
        if self.taint is not None:
            self.taint.look_soon()
        self.context.changed()  # which comes back as `changed`, and does nothing more where nothing is different
        return None

    # ------------------------------------------------------------------------------------------------- what it can

    def _obstacle(self) -> str:
        """Why nothing can be done for pods yet."""
        if not self._known:
            return self._service.obstacle or _BEGINNING
        mesh = self.context.mesh
        if mesh is not None and not mesh.applied:
            return "the agent has just begun: the mesh is not made yet, nor is the MTU of pods known."
        return ""

    def _check_idle(self, owner: Owner) -> None:
        """Raises NoAddress: whoever got next what a wired interface has would share it."""
        if owner.container and not self._known:
            raise NoAddress("NotReady", f"{_BEGINNING} Nothing that may be in use is freed meanwhile.")
        if self.attachments.is_wired((owner.container, owner.interface)):
            raise NoAddress(
                "Wired",
                f"{owner.interface} of {owner.name} (container {owner.container}) has it and is wired. Delete the pod: "
                "its runtime takes the interface away, and the address is free then.",
                passing=False,
            )

    def _lack(self) -> str:
        """Why pods would wait in vain. One that comes all the same waits: addresses mostly come within a second."""
        if not self._service.allocator.stock.is_empty:
            return self._mtu.unknown()
        about = f"NetloomNode {self.context.node_name} holds no addresses for pods yet"
        return f"{about}; its condition Allocated says why, or the operator's log."

    @property
    def is_ready(self) -> bool:
        """Whether pods can be added."""
        if self.socket.fault or self._obstacle() or self._lack():
            return False
        try:
            self._service.check_giving()
        except NoAddress:
            return False
        return True

    def _may_come(self) -> bool:
        """Whether the node can route, so that pods may come: to us, as on a host with another configuration kubelets
        call their nodes ready before."""
        installer = self.installer
        if not self.is_ready or (installer is not None and (installer.overruled or not installer.installed)):
            return False
        said = self.context.readiness()
        return said is not None and said.ready is True

    def _repaired(self, path: Path, what: str) -> None:
        """Somebody had changed a file of ours on the host."""
        if self.context.events is not None:
            name = self.context.node_name
            node = ObjectReference(api_version="v1", kind="Node", name=name, uid=name)  # as the kubelet does
            text = f"{on_host(path)} was {what}; the agent has put it back. Change it by the agent's options."
            self.context.events.event(node, "Warning", "CNIFileRepaired", text)

    def _cut_off(self, pod: Pod, endpoint: Endpoint) -> None:
        """No runtime asks whether a pod still has its network, so its kubelet does not know."""
        if self.context.events is not None:
            text = (
                f"{endpoint.interface} has no device on node {self.context.node_name} any more, and it cannot be made "
                "anew from there: the pod reaches nobody. Delete it, and whoever keeps it makes another."
            )
            self.context.events.event(ObjectReference.of(PODS, pod), "Warning", "NetworkLost", text)

    # ----------------------------------------------------------------------------------------------- what it says

    def errors(self) -> list[str]:
        """Why pods are not wired, or not as they should be."""
        if self._options is None:
            return []
        if not self._serves:
            return ["pods are not wired: feature addresses of this agent is off, which gives them addresses."]
        assert self.keeper is not None
        report = self.keeper.report
        found = [*filter(None, [self.socket.fault])]
        found += [f"interfaces of pods: {failure}" for failure in report.failures]
        found += [
            f"interface of a pod: {item}: somebody else keeps changing it; its repair is delayed"
            for item in report.contended
        ]
        found += self.deletions.errors()
        found += self.installer.errors() if self.installer is not None else []
        return [*found, *(f"interfaces of pods: {error}" for error in self.controller.failing.values())]

    def warnings(self) -> list[str]:
        """What may be meant so; and the taint that cannot be taken off: as an error it would make the node unready, and
        so be what keeps the taint."""
        if not self._serves:
            return []
        found = self.installer.warnings() if self.installer is not None else []
        mtu, taint = self._mtu.warning(self.attachments.endpoints), self.taint.error if self.taint is not None else ""
        return [*found, *filter(None, (mtu, taint))]

    def readiness(self) -> Readiness | None:
        """Whether pods that are scheduled here get an interface."""
        if not self._serves:
            return None
        if self.socket.fault:
            return Readiness(False, "NotListening", self.socket.fault)
        try:
            self._service.check_giving()
        except NoAddress as refusal:
            return Readiness(False, refusal.reason, str(refusal))
        if obstacle := self._obstacle():
            return Readiness(False, "NotReady", obstacle)
        if lack := self._lack():
            return Readiness(False, "MtuUnknown" if lack == self._mtu.unknown() else "NoAddresses", lack)
        if self.installer is not None and not self.installer.installed:
            why = " ".join(self.installer.errors()) or "the plugin is being installed on the host."
            return Readiness(False, "NotInstalled", why)
        if self.installer is not None and self.installer.overruled:
            return Readiness(False, "AnotherCNI", self.installer.overruled)
        if self.foreign_pods is not None and self.foreign_pods.sentence:
            return Readiness(False, "AnotherCNI", self.foreign_pods.sentence)
        return Readiness(True, "Wired", "Pods that come get an address and an interface.")

    def facts(self) -> dict[str, object]:
        """For /status."""
        if not self._serves or self._options is None:
            return {}
        found: dict[str, object] = {
            "pods": len(self.attachments.endpoints),
            "mtu": self._mtu.now(),
            "socket": str(self._options.socket),
            "obstacle": self._obstacle() or self._lack(),
            "deletions": {"madeUpFor": self.deletions.done, "refused": self.deletions.refused},
        }
        if self.installer is not None:
            places = self.installer.places
            found["installed"] = self.installer.installed
            found["files"] = [str(binary_of(places)), str(conflist_of(places))]
            found["repairs"] = dict(self.installer.repairs)
        if self.vanished is not None:
            found["vanished"] = self.vanished.given_back
        if self.taint is not None:
            found["taintRemoved"] = self.taint.removed
        return {"endpoints": found}

    def metrics(self) -> Iterable[Metric]:
        """What there is, and what had to be done about it."""
        if not self._serves or self.keeper is None:
            return
        yield from metrics_of(len(self.attachments.endpoints), self.keeper.report, self.deletions, self.installer)

    # -------------------------------------------------------------------------------------------- taking it away

    async def plan(self) -> list[PlannedChange]:
        """What is not as it should be of the interfaces that there are."""
        if self.keeper is None:
            return []
        found = Endpoints()
        for each in await self.keeper.read_endpoints():
            found.put(endpoint_of(each, each.addresses))
        return await self.keeper.plan(found)

    async def plan_cleanup(self) -> list[PlannedChange]:
        """The files on the host, the configuration first, and what is in the kernel."""
        files = [PlannedChange(f"rm {path}", "of the CNI plugin") for path in self._files()]
        return [*files, *await super().plan_cleanup()]

    async def cleanup(self) -> tuple[list[PlannedChange], Sequence[Failure]]:
        """As planned."""
        if self.keeper is None:
            return [], ()
        planned, failed = await self.plan_cleanup(), remove_files(self._files())
        return planned, (*failed, *(await self.keeper.cleanup()).failures)

    def _files(self) -> list[Path]:
        options = self._options
        if options is None:
            return []
        places = options.install or Places()
        mine = [options.socket, self._state_dir / FILE, *written_down.files(options.deletions)]
        return [*installed((conflist_of(places), binary_of(places))), *(each for each in mine if each.exists())]
