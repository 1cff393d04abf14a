"""`netloom plan` and what it shares with `netloom cleanup`: changes of the kernel, printed as `ip` would say them."""

from collections.abc import Sequence

import msgspec

from netloom.kernel.report import PlannedChange


def print_json(changes: Sequence[PlannedChange]) -> None:
    """One JSON array of {text, why}."""
    print(msgspec.json.encode(changes).decode())


def print_text(changes: Sequence[PlannedChange]) -> None:
    """One change a line, the reason behind it."""
    for change in changes:
        print(f"{change.text}   # {change.why}" if change.why else change.text)
    if not changes:
        print("nothing to change")
