"""When a new pair carries packets: two things come later than the kernel's answer, on a busy machine by seconds.

- The end that is opened first has no carrier then. When it comes, the kernel gives the device its queue in a work item
  that has to wait for its network lock; what is sent before is dropped. (Of pods' first packets on such a machine a
  third were.) As of Linux 6.8 the question itself has it done.
- An IPv6 address is there at once without duplicate detection, but another work item makes its local route; what comes
  for it before is dropped. (On such a machine that was the first ping to 2 to 15 of 100 pods.)
"""

import errno

from netloom.cidr import format_address
from netloom.kernel.endpoints import link_messages, row_messages
from netloom.kernel.endpoints.endpoint import Endpoint, WiringFailed
from netloom.kernel.endpoints.inside import asked
from netloom.kernel.netlink.sockets import CommandSocket, RefusedError, read_one

READY_SECONDS = 5.0
"""For which it is waited for."""


def lacking(commands: CommandSocket, within: CommandSocket, endpoint: Endpoint) -> str:
    """What packets have to wait for yet, the pod's end first; "" if nothing. Raises RefusedError, OSError."""
    for end, name in ((within, endpoint.interface), (commands, endpoint.device)):
        if not read_one(end, link_messages.get_link(name), link_messages.read_operational):
            return f"{name} is up, and cannot send: it has no carrier"
    for address, _ifindex, own in row_messages.fib_lookups(within, endpoint.addresses):
        if not own:
            return f"{format_address(address)} is on {endpoint.interface}, and has no local route in the pod"
    return ""


def still_lacking(commands: CommandSocket, inside: int, endpoint: Endpoint) -> str:
    """The same, by the descriptor of a socket in the pod's network namespace. Raises WiringFailed."""
    with asked(endpoint, inside) as within:
        try:
            return lacking(commands, within, endpoint)
        except RefusedError as error:
            if error.errno != errno.ENODEV:
                raise WiringFailed("refused", f"{endpoint}: its device cannot be asked for: {error}") from error
            return "its device is gone: somebody removed it right after it was made"  # the keeper makes it anew
