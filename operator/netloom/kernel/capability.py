"""Which capabilities this process has: whether it may change the network configuration."""

from pathlib import Path

from netloom.kernel.errors import NotPermitted

NET_ADMIN = 12
"""A bit of `held`: linux/capability.h."""


def held() -> int:
    """The effective set of this thread, a bit for each."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii")
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


def require_net_admin() -> None:
    """Raises NotPermitted without CAP_NET_ADMIN: better one sentence than 30,000 refused requests."""
    if not held() >> NET_ADMIN & 1:
        raise NotPermitted(
            "changing routes and devices takes the capability NET_ADMIN, which this process does not have: "
            "run it as root, or add NET_ADMIN to the container's securityContext.capabilities"
        )
