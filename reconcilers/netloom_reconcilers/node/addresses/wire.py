"""What is said over the node's socket: JSON over HTTP/1.1, for the CNI plugin, `netloom ip` and curl.

Addresses are texts. A refusal is a `ErrorAnswer`, whatever its status: a reason for programs, a sentence for people.
"""

import msgspec

SOCKET = "agent.sock"
"""Its name in the run directory."""
WAIT_SECONDS = 30.0
"""How long a request waits for addresses if it does not say so itself. A CRI gives a CNI plugin minutes."""


class WireMessage(msgspec.Struct, frozen=True, rename="camel"):
    """Of either side."""


class Attachment(WireMessage, frozen=True):
    """A container's interface, as the CNI knows it (`cni.dev/valid-attachments`)."""

    container: str
    interface: str = "eth0"


class Ask(WireMessage, frozen=True):
    """POST /v1/addresses. pool: instead of the one that follows from the pod. families: 4, 6; none: all of the pool.
    wait_seconds: how long to wait where there are no addresses."""

    name: str
    container: str = ""
    interface: str = "eth0"
    pool: str | None = None
    families: tuple[int, ...] = ()
    wait_seconds: float = WAIT_SECONDS


class Given(WireMessage, frozen=True):
    """One address: with the CIDR of the node that it is of, "" where there is none."""

    address: str
    cidr: str = ""


class Assignment(WireMessage, frozen=True):
    """What an owner has. Answer to POST, and an item of the list."""

    name: str
    container: str
    interface: str
    pool: str
    addresses: tuple[Given, ...]


class Released(WireMessage, frozen=True):
    """Answer to DELETE /v1/addresses and POST /v1/gc."""

    released: tuple[str, ...]


class Valid(WireMessage, frozen=True):
    """POST /v1/gc: all attachments that there are; what others of the CNI have is taken back."""

    valid: tuple[Attachment, ...]


class PoolCount(WireMessage, frozen=True):
    """Addresses of one pool and family. waiting: who gets none for now."""

    pool: str
    family: int
    used: int
    free: int
    resting: int
    waiting: int


class AddressListing(WireMessage, frozen=True):
    """Answer to GET /v1/addresses. orphans: addresses that are used and that the node does not hold any more."""

    node: str
    assignments: tuple[Assignment, ...]
    pools: tuple[PoolCount, ...]
    orphans: tuple[str, ...] = ()


class FamilyChoice(WireMessage, frozen=True):
    """Of one family: the pool, the rule that led there (a word for programs), and the same for people."""

    family: str
    pool: str
    rule: str
    why: str


class Why(WireMessage, frozen=True, kw_only=True):
    """Answer to GET /v1/why. waits: why it has no address, as a sentence; "" if it has, or is to have none."""

    name: str
    node: str
    mode: str
    choices: tuple[FamilyChoice, ...] = ()
    addresses: tuple[str, ...] = ()
    waits: str = ""
    note: str = ""


class ErrorAnswer(WireMessage, frozen=True):
    """Any answer that is no success."""

    reason: str
    message: str
