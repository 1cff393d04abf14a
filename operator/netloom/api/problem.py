"""What is wrong with an object, as a value: for a condition, an Event, an admission answer or a line on a terminal."""

from typing import Literal

import msgspec

Severity = Literal["error", "warning"]
"""An `error` is refused, or what it names is left out; a `warning` is reported, and the object used as it is."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with one field of one object.

    object: kind and name, `NetloomNetwork default`.
    field: path inside the object, `spec.ipam.clusterPool.ipv4PodCIDRList[1]`.
    value: what stands there, as text; "" where nothing does, or a whole block.
    reason: CamelCase, for a condition's or Event's reason and as a metric's label.
    message: a sentence that says what is wrong and why. Where the API server's own rules (`crds/`) say the same, the
        words are the same.
    way_out: a sentence that says what to do.
    """

    object: str
    field: str
    value: str
    reason: str
    message: str
    way_out: str
    severity: Severity = "error"

    @property
    def text(self) -> str:
        """What is wrong and what to do, as the API server would say it."""
        return f"{self.message} {self.way_out}"

    def __str__(self) -> str:
        value = f" {self.value!r}" if self.value else ""
        return f"{self.object}: {self.field}{value}: {self.text}"
