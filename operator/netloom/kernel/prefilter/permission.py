"""What a process lacks that the kernel does not let have a prefilter, and where it gets it from."""

from collections.abc import Iterable
from pathlib import Path

_NEEDED = {"BPF": 39, "NET_ADMIN": 12, "PERFMON": 38}
"""Bits of capabilities (linux/capability.h)."""
_SYS_ADMIN = 21
"""Has been all but NET_ADMIN of it in one."""
_STATUS = Path("/proc/self/status")


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
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    everything = held >> _SYS_ADMIN & 1
    return [name for name, bit in _NEEDED.items() if not (held >> bit & 1 or (everything and name != "NET_ADMIN"))]


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
