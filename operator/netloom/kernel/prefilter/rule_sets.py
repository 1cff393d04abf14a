"""Which number each set of rules has in the kernel. Pure.

Rules of a set are changed where they are as long as the same devices have them. Where devices part, or come together,
they get sets that nobody has, which are filled before a device is given to them: so none ever has the rules of another,
nor is without its own.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from netloom.kernel.prefilter.maps import SETS


def numbered(groups: Sequence[Set[str]], running: Mapping[str, int]) -> tuple[int, ...]:
    """The number of each group's set. groups: names of devices, each in one. running: by device, the set that it has
    now. Raises ValueError if there are not enough."""
    wanted = set().union(*groups)
    having: dict[int, set[str]] = defaultdict(set)
    for name, number in running.items():
        having[number].add(name)
    kept: dict[int, int] = {}
    for at, group in enumerate(groups):
        found = {running[name] for name in group if name in running}
        if len(found) == 1 and having[min(found)] & wanted <= group:
            kept[at] = min(found)
    free = (number for number in range(SETS) if not having.get(number) and number not in kept.values())
    try:
        return tuple(kept[at] if at in kept else next(free) for at in range(len(groups)))
    except (StopIteration, RuntimeError) as error:
        raise ValueError(
            f"{len(groups)} groups of devices are to have rules of their own, of which there can be {SETS // 2}: give "
            "prefilters the same spec.devices"
        ) from error
