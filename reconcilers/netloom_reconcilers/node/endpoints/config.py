"""What a container runtime says beside the CNI_* variables: the network configuration on standard input, and CNI_ARGS.

Fields that nobody here reads are left alone, as the specification wants it. What asks for something that is not done
(an address of one's own choice, another IPAM plugin) is refused rather than ignored.
"""

import re
from typing import Any, NamedTuple

import msgspec

from netloom_reconcilers.node.endpoints.errors import (
    BAD_CONFIG,
    BAD_ENVIRONMENT,
    INCOMPATIBLE,
    SUPPORTED,
    UNDECODABLE,
    UNSUPPORTED_FIELD,
    CniError,
)
from netloom_reconcilers.node.endpoints.framing import Call
from netloom_reconcilers.node.endpoints.results import Dns, Result

SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
"""Version of the specification that brought a command; those without are as old as what is spoken here."""
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")

_VALID = "cni.dev/valid-attachments"
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_MOST_CONTAINER = 128
"""Characters of a container's id: it is part of a file's name."""
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_INTERFACE_BYTES = 15  # IFNAMSIZ less its end
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_POD_PART = re.compile(r"[a-z0-9](?:[a-z0-9.\-]{0,251}[a-z0-9])?")


class CniAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """Of cni.dev/valid-attachments. ifname: "" in entries of runtimes that did not say; all of the container's then."""

    container: str = msgspec.field(name="containerID")
    ifname: str = ""


class RuntimeDns(msgspec.Struct, frozen=True):
    """Capability `dns` (CONVENTIONS.md)."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class RuntimeConfig(msgspec.Struct, frozen=True):
    """Of the capabilities, those that mean something to who makes the interface; portMappings and bandwidth are for
    the plugins behind it."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    dns: RuntimeDns | None = None


class NetConf(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration, as far as it is read."""

    cni_version: str = msgspec.field(name="cniVersion", default="")
    name: str = ""
    dns: Dns = Dns()
    ipam: dict[str, Any] = msgspec.field(default_factory=dict)
    args: dict[str, Any] | None = None
    runtime: RuntimeConfig | None = msgspec.field(name="runtimeConfig", default=None)
    previous: msgspec.Raw = msgspec.field(name="prevResult", default=msgspec.Raw(b"null"))
    valid: tuple[CniAttachment, ...] | None = msgspec.field(name=_VALID, default=None)

    @property
    def prev_result(self) -> Result | None:
        """What was there before; None where nothing is said. Raises CniError: who deletes goes without it then."""
        try:
            return msgspec.json.decode(self.previous, type=Result | None)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CniError(BAD_CONFIG, f"prevResult cannot be read: {error}.") from error

    @property
    def mac(self) -> str:
        """That the runtime asks for, "" for none."""
        return self.runtime.mac if self.runtime is not None else ""

    @property
    def resolver(self) -> Dns:
        """For the result: what the runtime says of DNS comes before what the configuration does."""
        said = self.runtime.dns if self.runtime is not None else None
        if said is None:
            return self.dns
        return Dns(nameservers=said.servers, search=said.searches, options=said.options)


class _Version(msgspec.Struct):
    version: str | None = msgspec.field(name="cniVersion", default=None)


class PodOf(NamedTuple):
    """Of CNI_ARGS: whose sandbox it is. name: namespace/name; "" where no Kubernetes asks."""

    name: str = ""
    uid: str = ""


def version_of(stdin: bytes) -> str:
    """The version that an answer is to have; "" where that cannot be read."""
    try:
        return msgspec.json.decode(stdin, type=_Version).version or ""
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def read(call: Call) -> NetConf:
    """The configuration of a call. Raises CniError."""
    if call.command not in COMMANDS:
        raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND is {call.command!r}; there are {', '.join(COMMANDS)}.")
    if not call.stdin.strip():
        raise CniError(UNDECODABLE, "standard input is empty: there is no network configuration.")
    try:
        version = msgspec.json.decode(call.stdin, type=_Version).version or ""
        _check_version(call.command, version)
        found = msgspec.json.decode(_without_nulls(call.stdin), type=NetConf)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CniError(UNDECODABLE, f"the network configuration cannot be read: {error}.") from error
    _check(found, call)
    return found


def _without_nulls(stdin: bytes) -> bytes:
    """As Go writes what is not there, or a list without entries: who lists no valid attachment has said so. (prevResult
    may be anything as long as nobody asks for it.)"""
    if b"null" not in stdin:
        return stdin
    said = msgspec.json.decode(stdin)
    if isinstance(said, dict) and said.get(_VALID, ()) is None:
        said[_VALID] = []
    return msgspec.json.encode(_pruned(said))


def _pruned(said: Any) -> Any:
    if isinstance(said, dict):
        return {key: _pruned(value) for key, value in said.items() if value is not None}
    return said


def _check_version(command: str, version: str) -> None:
    if version not in SUPPORTED:
        said = f"cniVersion is {version!r}" if version else "cniVersion is missing, which means 0.1.0"
        raise CniError(INCOMPATIBLE, f"{said}; this plugin speaks {', '.join(SUPPORTED)}.")
    since = SINCE.get(command, SUPPORTED[0])
    if SUPPORTED.index(version) < SUPPORTED.index(since):
        raise CniError(INCOMPATIBLE, f"{command} is of CNI {since}, and cniVersion is {version}.")


def _check(found: NetConf, call: Call) -> None:
    if not _NETWORK.fullmatch(found.name):
        raise CniError(BAD_CONFIG, f"name is {found.name!r}, which is no name of a network.")
    if call.command in ("STATUS", "GC"):
        return
    check_attachment(call)
    if call.command != "ADD":
        return
    if found.ipam:
        kind = found.ipam.get("type", "")
        raise CniError(
            UNSUPPORTED_FIELD, f'ipam is {{"type": "{kind}"}}: the agent gives the addresses itself. Take it out.'
        )
    wished = found.runtime.ips if found.runtime is not None else ()
    wished = wished or _wished(found.args)
    if wished:
        raise CniError(
            UNSUPPORTED_FIELD,
            f"ips is {', '.join(wished)}: nobody can choose an address. In IPAM mode crd, spec.ipam.pool of the "
            "NetloomNode keeps one for a pod.",
        )
    if found.mac and (not is_mac(found.mac) or int(found.mac[:2], 16) & 1):
        raise CniError(BAD_CONFIG, f"runtimeConfig.mac is {found.mac!r}, which is no MAC address of one interface.")


def is_mac(text: str) -> bool:
    """Whether it is a MAC address as `ip` prints it."""
    return _MAC.fullmatch(text) is not None


def _wished(args: dict[str, Any] | None) -> tuple[str, ...]:
    """`args.cni.ips` of the conventions."""
    cni = args.get("cni") if args else None
    ips = cni.get("ips") if isinstance(cni, dict) else None
    return tuple(map(str, ips)) if isinstance(ips, list) else ()


def check_attachment(call: Call) -> None:
    """That the variables say what it is about. Raises CniError."""
    container, interface = call.attachment
    if not container or len(container) > _MOST_CONTAINER or not _CONTAINER.fullmatch(container):
        raise CniError(BAD_ENVIRONMENT, f"CNI_CONTAINERID is {container[:80]!r}, which is no container's id.")
    odd = any(each.isspace() or each in "/:" for each in interface)
    if not interface or odd or interface in (".", "..") or len(interface.encode()) > _INTERFACE_BYTES:
        raise CniError(
            BAD_ENVIRONMENT,
            f"CNI_IFNAME is {interface[:80]!r}: an interface's name has 1 to {_INTERFACE_BYTES} bytes, without spaces, "
            "/ and :.",
        )
    if call.command == "DEL":
        return
    if interface == "lo" or "%" in interface:
        raise CniError(BAD_ENVIRONMENT, f"CNI_IFNAME is {interface!r}, which no interface to a network can have.")
    if not call.netns:
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS is not set.")


def pod_of(args: str) -> PodOf:
    """Whose sandbox it is, by CNI_ARGS (`K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=...`). Raises
    CniError."""
    said: dict[str, str] = {}
    for pair in filter(None, args.split(";")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise CniError(BAD_ENVIRONMENT, f"CNI_ARGS has {pair[:80]!r}, which is not KEY=VALUE.")
        said[key] = value
    namespace, name = said.get("K8S_POD_NAMESPACE", ""), said.get("K8S_POD_NAME", "")
    if not namespace and not name:
        return PodOf(uid=said.get("K8S_POD_UID", ""))
    for key, value in (("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)):
        if not _POD_PART.fullmatch(value):
            raise CniError(BAD_ENVIRONMENT, f"CNI_ARGS: {key} is {value[:80]!r}, which is no name in Kubernetes.")
    return PodOf(f"{namespace}/{name}", said.get("K8S_POD_UID", ""))
