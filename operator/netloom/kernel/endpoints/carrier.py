"""When both ends of a new pair can send.

The end that is opened first has no carrier then. When it comes, the kernel gives the device its queue later, in a work
item that has to wait for its network lock: milliseconds, on a busy machine seconds; what is sent before is dropped. (Of
pods' first packets on such a machine a third were.) As of Linux 6.8 the question itself has it done.
"""

from netloom.kernel.endpoints import link_messages
from netloom.kernel.endpoints.endpoint import Endpoint, WiringFailed
from netloom.kernel.endpoints.inside import asked
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError

CARRIER_SECONDS = 5.0
"""For which it is waited for."""


def silent(commands: CommandSocket, within: CommandSocket, endpoint: Endpoint) -> str:
    """The end that cannot send yet, the pod's first; "" if both can. Raises RefusedError, OSError."""
    for end, name in ((within, endpoint.interface), (commands, endpoint.device)):
        can_send: list[bool] = []
        end.get(
            link_messages.get_link(name),
            lambda _kind, *message: can_send.append(link_messages.read_operational(*message)),  # noqa: B023
        )
        if not any(can_send):
            return name
    return ""


def still_silent(commands: CommandSocket, inside: int, endpoint: Endpoint) -> str:
    """The same, by the descriptor of a socket in the pod's network namespace. Raises WiringFailed."""
    with asked(endpoint, inside) as within:
        try:
            return silent(commands, within, endpoint)
        except RefusedError as error:
            why = f"{endpoint}: its device is gone again right after it was made: {error}"
            raise WiringFailed("refused", why) from error
