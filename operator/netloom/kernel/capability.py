"""Whether this process may change the network configuration."""

from pathlib import Path

from netloom.kernel.errors import NotPermitted

_CAP_NET_ADMIN = 12


def require_net_admin() -> None:
    """Raises NotPermitted without CAP_NET_ADMIN: better one sentence than 30,000 refused requests."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _CAP_NET_ADMIN & 1:
            raise NotPermitted(
                "changing routes and devices takes the capability NET_ADMIN, which this process does not have: "
                "run it as root, or add NET_ADMIN to the container's securityContext.capabilities"
            )
