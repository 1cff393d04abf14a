"""How pods' devices go: many at once.

The kernel takes 20 ms to let a device go, as it waits until no processor looks at it any more, and as long for a group
of them. One by one, the 110 pods of a drained node would take it 2 s.
"""

import os
from collections.abc import Sequence

from netloom.kernel.endpoints import link_messages
from netloom.kernel.keeper.table_writer import ALREADY_GONE
from netloom.kernel.netlink.sockets import BATCH, CommandSocket, KernelRefusal
from netloom.kernel.netlink.wire import numbered


def delete_ends(commands: CommandSocket, names: Sequence[str]) -> dict[str, KernelRefusal]:
    """Delete these host ends, and with each the pod's; what the kernel refused, by name. Raises AnswerLost."""
    refused: dict[str, KernelRefusal] = {}
    for at in range(0, len(names), BATCH):
        refused |= _delete(commands, names[at : at + BATCH])
    return refused


def _delete(commands: CommandSocket, names: Sequence[str]) -> dict[str, KernelRefusal]:
    if len(names) > 1:
        # A number of its own each time, so that nobody else's devices are in that group.
        group = int.from_bytes(os.urandom(4), "big") | 1 << 31
        outside = commands.execute(numbered([link_messages.join_group(name, group) for name in names]))
        together = commands.execute([link_messages.delete_group(group)])
        left = names if together else [names[i] for i in outside if outside[i].errno not in ALREADY_GONE]
    else:
        left = names
    refusals = commands.execute(numbered([link_messages.delete_named(name) for name in left]))
    return {left[i]: refusal for i, refusal in refusals.items() if refusal.errno not in ALREADY_GONE}
