"""The five commands of the CNI that change or look at something (specification 1.1.0, section 2): from a call of the
plugin to its answer. VERSION is answered by the plugin alone.

| reason of a failure | code |
|---|---|
| it may go well soon: no address is free, nothing is known yet, the kernel's answer was lost | 11 |
| the pod cannot have an address as it and the cluster are | 100 |
| the interface is there already | 101 |
| the kernel refused | 102 |
| CHECK found a difference | 103 |

ADD leaves nothing when it fails. DEL succeeds whenever what is to be deleted is gone, was never there, or has been
written down to be deleted later; so no pod's end is held up.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from msgspec.structs import replace
from prometheus_client import Histogram

from netloom.cidr import addresses_in, format_address, is_loopback
from netloom.kernel.endpoints.endpoint import Endpoint, Reason, WiringFailed, device_of
from netloom.runtime.metrics import REGISTRY
from netloom_reconcilers.node.addresses.service import AddressService, NoAddress
from netloom_reconcilers.node.endpoints import config, results
from netloom_reconcilers.node.endpoints.attachments import Attachments, Taken, Wish
from netloom_reconcilers.node.endpoints.config import CniAttachment, NetConf, PodOf
from netloom_reconcilers.node.endpoints.connection import Reply, Sandbox, refusal
from netloom_reconcilers.node.endpoints.deletions import Deletions, NotYet
from netloom_reconcilers.node.endpoints.errors import (
    BAD_CONFIG,
    BAD_ENVIRONMENT,
    DIFFERENT,
    IO_FAILURE,
    NO_ADDRESS,
    NOT_AVAILABLE,
    NOT_WIRED,
    TAKEN,
    TRY_AGAIN,
    UNKNOWN_CONTAINER,
    CniError,
)
from netloom_reconcilers.node.endpoints.framing import Call
from netloom_reconcilers.node.endpoints.results import Result

log = structlog.get_logger(__name__)

TOOK = Histogram(
    "netloom_cni_seconds",
    "From a call of a container runtime to its answer, by command and CNI error code (0: none; cancelled: it left).",
    ["command", "code"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10, 30),
    registry=REGISTRY,
)

CANCELLED = "cancelled"
"""As the code of a call whose caller went away."""

_CODES: dict[Reason, int] = {
    "invalid": BAD_CONFIG,
    "namespace-gone": UNKNOWN_CONTAINER,
    "interface-taken": TAKEN,
    "already-there": TAKEN,
    "address-taken": TRY_AGAIN,
    "lost": TRY_AGAIN,
    "not-permitted": NOT_WIRED,
    "refused": NOT_WIRED,
}

Differences = Callable[[Endpoint, int], Awaitable[list[str]]]


class Commands:
    """See the module.

    obstacle: why nothing can be done at all, as a sentence; "" if it can. lack: why no ADD is served, though all else
    is, the same way. differences: of an endpoint, as the kernel's side says.
    """

    def __init__(
        self,
        service: AddressService,
        attachments: Attachments,
        differences: Differences,
        obstacle: Callable[[], str] = lambda: "",
        lack: Callable[[], str] = lambda: "",
    ) -> None:
        self.deletions: Deletions | None = None
        """Where what cannot be deleted is written down; None: nowhere."""
        self._service = service
        self._attachments = attachments
        self._differences = differences
        self._obstacle = obstacle
        self._lack = lack
        self._by_name = {
            "ADD": self._add,
            "DEL": self._delete,
            "CHECK": self._check,
            "STATUS": self._status,
            "GC": self._collect,
        }

    async def handle(self, call: Call, sandbox: Sandbox | None) -> Reply:
        """The answer to a call. Raises nothing but what is a fault of ours."""
        began, code = time.monotonic(), "0"
        try:
            return await self._by_name[call.command](call, config.read(call), sandbox)
        except (CniError, NoAddress, WiringFailed, Taken) as error:
            told = _error(error)
            code = str(told.code)
            said = {"container": call.containerid, "args": call.args, "code": told.code, "why": told.details}
            note = log.debug if call.command == "STATUS" else log.info  # that is asked every few seconds
            note("a call of a container runtime is refused", command=call.command, **said)
            return refusal(told, config.version_of(call.stdin))
        except asyncio.CancelledError:
            code = CANCELLED
            raise
        except Exception:
            code = str(TRY_AGAIN)  # as who hands the calls over tells it
            raise
        finally:
            name = call.command if call.command in self._by_name else "other"
            TOOK.labels(name, code).observe(time.monotonic() - began)

    def _check_begun(self) -> None:
        if obstacle := self._obstacle():
            raise CniError(TRY_AGAIN, obstacle)

    # ---------------------------------------------------------------------------------------------------------- ADD

    async def _add(self, call: Call, said: NetConf, sandbox: Sandbox | None) -> Reply:
        pod, before = config.pod_of(call.args), said.prev_result
        _check_chain(before, call)
        if sandbox is None:
            raise CniError(BAD_ENVIRONMENT, f"CNI_NETNS is {call.netns}, which the plugin could not open.")
        self._check_begun()
        if self.deletions is not None:
            await self.deletions.replay()
        mac = bytes.fromhex(said.mac.replace(":", ""))
        wish = Wish(call.attachment, pod, call.netns, mac, said.name)
        endpoint, wired = await self._attachments.add(wish, sandbox)
        result = results.made(endpoint, wired, said.resolver, before)
        return Reply(0, results.encode(result, said.cni_version), lambda: self._attachments.take_back(wish, endpoint))

    # ---------------------------------------------------------------------------------------------------------- DEL

    async def _delete(self, call: Call, said: NetConf, _sandbox: Sandbox | None) -> Reply:
        try:
            await self._removed(call, said)
        except (NotYet, NoAddress, WiringFailed) as error:
            await self._write_down(call, str(error))
        return Reply()

    async def _removed(self, call: Call, said: NetConf) -> None:
        if obstacle := self._obstacle():
            raise NotYet(obstacle)
        await self._attachments.remove(call.attachment, _pod(call), _known(call, said))

    async def _write_down(self, call: Call, why: str) -> None:
        """So that a pod's end never waits for the agent. Raises CniError where that is impossible, too."""
        if self.deletions is None:
            raise CniError(TRY_AGAIN, why)
        try:
            await self.deletions.write(call)
        except OSError as error:
            raise CniError(
                IO_FAILURE,
                f"{why} Nor can it be written down for later: {self.deletions.directory}: {error.strerror or error}.",
            ) from error
        log.info("a deletion is written down for later", container=call.containerid, interface=call.ifname, why=why)

    async def make_up_for(self, call: Call) -> None:
        """A deletion that was written down. Raises NotYet where it has to wait, CniError where it is none."""
        said = config.read(call)
        try:
            await self._removed(call, said)
        except (NoAddress, WiringFailed) as error:
            raise NotYet(str(error)) from error

    # -------------------------------------------------------------------------------------------------------- CHECK

    async def _check(self, call: Call, said: NetConf, sandbox: Sandbox | None) -> Reply:
        before = said.prev_result
        if before is None:
            raise CniError(BAD_CONFIG, "prevResult is missing: CHECK compares with what ADD said.")
        if sandbox is None:
            raise CniError(UNKNOWN_CONTAINER, f"CNI_NETNS is {call.netns}, which the plugin could not open.")
        self._check_begun()
        container, interface = call.attachment
        endpoint = self._attachments.endpoints.get(device_of(container, interface))
        if endpoint is None:
            raise CniError(UNKNOWN_CONTAINER, f"container {container} has no {interface} of Netloom's.")
        found = _unlike(endpoint, call, before)
        found += await self._differences(_as_said(endpoint, call, before), sandbox.inside)
        if found:
            raise CniError(DIFFERENT, f"{endpoint}: {' '.join(found)}")
        return Reply()

    # ------------------------------------------------------------------------------------------------------- STATUS

    async def _status(self, _call: Call, _said: NetConf, _sandbox: Sandbox | None) -> Reply:
        """Whether ADD is served, and no more: runtimes make a node NotReady by it, and its pods with it."""
        try:
            self._check_begun()
            self._service.check_giving()
        except (CniError, NoAddress) as error:
            raise CniError(NOT_AVAILABLE, str(error)) from error
        if lack := self._lack():
            raise CniError(NOT_AVAILABLE, lack)
        return Reply()

    # ----------------------------------------------------------------------------------------------------------- GC

    async def _collect(self, _call: Call, said: NetConf, _sandbox: Sandbox | None) -> Reply:
        if said.valid is None:
            raise CniError(
                BAD_CONFIG, "cni.dev/valid-attachments is missing, and without it all would seem to be left over."
            )
        if any(not each.container for each in said.valid):
            raise CniError(BAD_CONFIG, "cni.dev/valid-attachments: an entry has no containerID.")
        self._check_begun()
        removed, left = await self._attachments.collect(said.name, _valid(said.valid))
        if removed:
            log.info("attachments that the runtime does not know are removed", network=said.name, number=removed)
        for (container, interface), why in left.items():
            config_of = msgspec.json.encode({"cniVersion": said.cni_version, "name": said.name})
            await self._write_down(
                Call(command="DEL", containerid=container, ifname=interface, stdin=config_of), f"{interface}: {why}"
            )
        return Reply()


def _error(error: CniError | NoAddress | WiringFailed | Taken) -> CniError:
    if isinstance(error, CniError):
        return error
    if isinstance(error, NoAddress):
        return CniError(TRY_AGAIN if error.passing else NO_ADDRESS, str(error))
    if isinstance(error, WiringFailed):
        return CniError(_CODES[error.reason], error.sentence)
    return CniError(TAKEN, str(error))


def _check_chain(before: Result | None, call: Call) -> None:
    """Plugins ahead of this one may have made other interfaces (as loopback does). Raises CniError where one has made
    this one, or has given addresses: then two networks would be in one interface, and the container's routes in two."""
    if before is None:
        return
    same = [each.name for each in before.interfaces or () if each.name == call.ifname and each.sandbox == call.netns]
    addresses = [each for each in before.addresses() if not any(map(is_loopback, addresses_in([each])))]
    if same or addresses:
        what = f"interface {same[0]}" if same else f"addresses ({', '.join(addresses)})"
        raise CniError(
            BAD_CONFIG,
            f"prevResult has {what} already: a plugin ahead of this one makes the container's network. Put this one "
            "first, or take it out.",
        )


def _pod(call: Call) -> PodOf:
    """Of a deletion, which goes on without."""
    try:
        return config.pod_of(call.args)
    except CniError:
        return PodOf()


def _known(call: Call, said: NetConf) -> tuple[str, ...]:
    """The addresses that the runtime says this interface had. Of a deletion: what cannot be read is not believed."""
    try:
        before = said.prev_result
    except CniError:
        return ()
    if before is None:
        return ()
    interfaces = before.interfaces or ()
    mine = {number for number, each in enumerate(interfaces) if each.name == call.ifname}
    return tuple(each.plain for each in before.ips or () if each.interface is None or each.interface in mine)


def _unlike(endpoint: Endpoint, call: Call, before: Result) -> list[str]:
    """What the result of ADD says otherwise."""
    found: list[str] = []
    addresses, known = list(map(format_address, endpoint.addresses)), before.addresses()
    lost = [each for each in addresses if each not in known]
    if lost:
        found.append(f"it has {', '.join(lost)}, which prevResult does not have.")
    if not any(each.name == call.ifname and each.sandbox for each in before.interfaces or ()):
        found.append(f"prevResult has no interface {call.ifname} of a container.")
    return found


def _as_said(endpoint: Endpoint, call: Call, before: Result) -> Endpoint:
    """With the MAC address that the whole chain ended with: a plugin behind this one (tuning) may have changed it."""
    for each in before.interfaces or ():
        if each.name == call.ifname and each.sandbox and config.is_mac(each.mac):
            return replace(endpoint, mac=bytes.fromhex(each.mac.replace(":", "")))
    return endpoint


def _valid(attachments: tuple[CniAttachment, ...]) -> Callable[[tuple[str, str]], bool]:
    """Whether a runtime knows of an attachment. An entry that names no interface means all of its container."""
    exact = {(each.container, each.ifname) for each in attachments}
    whole = {each.container for each in attachments if not each.ifname}
    return lambda key: key in exact or key[0] in whole
