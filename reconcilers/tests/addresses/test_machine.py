"""Whether a machine is the node of its name: by what the kubelet's Node says of its boot."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from netloom.runtime.errors import ApiError, Forbidden, NotFound, Unavailable
from netloom_reconcilers.node.addresses import machine

HERE = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Server:
    """Answers with a Node, or with an error."""

    def __init__(self, answer: dict[str, Any] | ApiError) -> None:
        self.answer = answer

    async def get(self, resource: Any, name: str) -> Any:
        assert (resource.plural, name) == ("nodes", "n1")
        if isinstance(self.answer, ApiError):
            raise self.answer
        return msgspec.convert(self.answer, resource.type)


@pytest.mark.parametrize(
    "answer",
    [
        {"status": {"nodeInfo": {"bootID": HERE, "machineID": "x"}}},
        {"status": {}},
        NotFound(404, "NotFound", "no such node"),
        Forbidden(403, "Forbidden", "may not get nodes"),
    ],
)
async def test_where_nothing_speaks_against_it_it_is(answer: Any) -> None:
    api: Any = Server(answer)
    assert await machine.why_not(api, "n1") == ""


async def test_another_boot_is_another_machine_or_one_whose_kubelet_has_yet_to_speak() -> None:
    api: Any = Server({"status": {"nodeInfo": {"bootID": "another"}}})
    said = await machine.why_not(api, "n1")
    assert said.startswith(
        f"Node n1 is another machine by what its kubelet says (its boot is another, and this machine's {HERE})"
    )
    api.answer = Unavailable(0, "Timeout", "no answer")
    with pytest.raises(Unavailable):
        await machine.why_not(api, "n1")
