"""What a keeper of endpoints would change, as `ip` would say it."""

from netloom.kernel.endpoints.adjusting import steps
from netloom.kernel.endpoints.part import EndpointsPart
from netloom.kernel.keeper.report import PlannedChange
from netloom.kernel.keeper.retries import item_text


def planned_changes(part: EndpointsPart) -> list[PlannedChange]:
    """All that it would do, of what it has read."""
    changes = []
    for device in sorted(part.odd):
        endpoint, end = part.desired.get(device), part.ends.get(device)
        if endpoint is None:
            changes.append(PlannedChange(f"ip link delete {device}", "no pod has it"))
        elif end is None or not part.is_fit(endpoint, end):
            peer = f"peer name {endpoint.interface} netns {endpoint.netns or '(not known)'}"
            changes.append(PlannedChange(f"ip link add {device} type veth {peer}", str(endpoint)))
        else:
            changes += [PlannedChange(step.text, str(endpoint)) for step in steps(endpoint, end)]
    for kind, table in part.rows.tables.items():
        for key in sorted(table.pending, key=str):
            verb = "replace" if key in table.desired else "delete"
            changes.append(PlannedChange(f"ip {kind} {verb} {item_text((kind, key))}", part.whose((kind, key))))
    return changes
