"""What is said of a change that would take the network from pods: one home for words that several places say.

The rules of the CRDs, the webhook and the ValidatingAdmissionPolicies say the same of the same change, whichever of
them a user meets first. A template's holes are filled with values in Python, and with CEL expressions in a policy; the
rules in `crds/` spell them out, and tests hold them against these.

Holes: `in_use` "3 nodes hold addresses (a, b, c)", `mode` the one in force, `wanted` the one asked for.
"""

from collections.abc import Iterable, Sequence

SHOWN = 3
"""Names that are told; the others are counted."""

NODES_HOLD = "nodes hold addresses"
"""Stands for `in_use` where it is not known which nodes."""


def some(names: Sequence[object], most: int = SHOWN, between: str = ", ") -> str:
    """The first of these, and how many more there are: "a, b, c and 2 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(map(str, names[:most])) + more


def some_sentences(said: Sequence[str], where: str = "") -> list[str]:
    """The first of these, and a sentence with how many more there are; where: and where they are told."""
    return [*said[:SHOWN], *([f"And {len(said) - SHOWN} more{where}."] if len(said) > SHOWN else ())]


def in_use(count: int, names: Iterable[str], what: str = "addresses") -> str:
    """Who holds addresses, or something else. names: at least SHOWN of them, or all."""
    shown = list(names)[:SHOWN]
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{count} node{'' if count == 1 else 's'} hold{'s' if count == 1 else ''} {what} ({', '.join(shown)}{more})"
