"""How a call of a container runtime fails: CNI error objects (CNI specification 1.1.0, section 5, "Error")."""

from collections.abc import Mapping

import msgspec

SUPPORTED = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the CNI specification that are spoken."""
NEWEST = SUPPORTED[-1]

INCOMPATIBLE = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
BAD_ENVIRONMENT = 4
IO_FAILURE = 5
UNDECODABLE = 6
BAD_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50
NO_ADDRESS = 100
"""From here on they are the plugin's own. The pod cannot have an address as it and the cluster are."""
TAKEN = 101
"""The container has an interface of that name already."""
NOT_WIRED = 102
"""The kernel refused a part of the interface, and nothing of it is left."""
DIFFERENT = 103
"""CHECK: something of the interface is not as ADD made it."""

MESSAGES: Mapping[int, str] = {
    INCOMPATIBLE: "incompatible CNI version",
    UNSUPPORTED_FIELD: "unsupported field in network configuration",
    UNKNOWN_CONTAINER: "unknown container",
    BAD_ENVIRONMENT: "invalid environment variable",
    IO_FAILURE: "I/O failure",
    UNDECODABLE: "failed to decode content",
    BAD_CONFIG: "invalid network configuration",
    TRY_AGAIN: "try again later",
    NOT_AVAILABLE: "plugin not available",
    NO_ADDRESS: "the pod cannot have an address",
    TAKEN: "interface exists already",
    NOT_WIRED: "the kernel refused the interface",
    DIFFERENT: "interface is not as it was made",
}

_NAMED = (UNSUPPORTED_FIELD, BAD_ENVIRONMENT)
"""Of these the message itself has to name the field and its value, or the variable."""


class CniError(Exception):
    """A call that fails: a code of the specification or one of ours, and a sentence for people."""

    def __init__(self, code: int, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details

    def encode(self, version: str) -> bytes:
        """The error object, in words of this version of the specification, or of ours where that is none."""
        version = version if version in SUPPORTED else NEWEST
        msg = f"netloom: {MESSAGES[self.code]}"  # runtimes show both, one behind the other
        if self.code in _NAMED:
            msg = f"{msg}: {self.details}"
        return msgspec.json.encode({"cniVersion": version, "code": self.code, "msg": msg, "details": self.details})
