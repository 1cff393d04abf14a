"""What a process lacks that the kernel does not let have a prefilter, and where it gets it from."""

from collections.abc import Iterable

from netloom.kernel.capability import NET_ADMIN, held

_NEEDED = {"BPF": 39, "NET_ADMIN": NET_ADMIN, "PERFMON": 38}
"""Bits of capabilities (linux/capability.h)."""
_SYS_ADMIN = 21
"""Has been all but NET_ADMIN of it in one."""


def not_permitted(what: str) -> str:
    """A sentence for EPERM; what: that was not permitted."""
    lacking = _lacking()
    if not lacking:
        return (
            f"{what}, though the agent has the capabilities {_listed(_NEEDED)}: look at its seccomp profile, the "
            "machine's security module and the kernel's lockdown"
        )
    kind = "capabilities" if lacking[1:] else "capability"
    return (
        f"{what}: the agent lacks the {kind} {_listed(lacking)}. With the chart, set agent.prefilter=true; else add "
        "them to its container's securityContext.capabilities, or to what its service may have"
    )


def _lacking() -> list[str]:
    has = held()
    everything = has >> _SYS_ADMIN & 1
    return [name for name, bit in _NEEDED.items() if not (has >> bit & 1 or (everything and name != "NET_ADMIN"))]


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
