"""What `netloom check` prints, and its exit status."""

import pytest
from aiohttp import web

from netloom.api.errors import UserError
from netloom.cli.check import EXIT_NOT_ASKED, EXIT_PASSES, EXIT_PROBLEMS, Checks, ask, lines, run
from netloom.cli.options import Cluster
from netloom_reconcilers.node.probing.findings import Finding

OWN = Finding(peer="n1", family=4, way="own", passes=True)
GOOD = Finding(peer="n2", family=4, way="vxlan:8472", passes=True, size=1450, largest=1450, seconds=0.00042)
LOST = Finding(
    peer="n3",
    family=6,
    way="geneve:6081",
    passes=False,
    reason="LostOneWay",
    where="way there",
    text="packets are lost.",
)
UNKNOWN = Finding(peer="n4", family=4, way="native", passes=None, reason="NoAgentThere", text="nobody is there.")


def shown(*checks: Finding) -> list[str]:
    return "\n".join(lines(Checks(node="n1", checks=checks))).replace("\x1b[31m", "").replace("\x1b[0m", "").split("\n")


def test_all_is_well() -> None:
    assert shown(OWN, GOOD) == [
        "as n1 sees it:",
        "PEER   FAMILY   WAY          RESULT",
        "n1     IPv4     own          forwards",
        "n2     IPv4     vxlan:8472   passes: 1450 bytes, 0.4 ms there and back",
        "no problems",
    ]


def test_what_is_lost_and_what_is_not_known() -> None:
    assert shown(LOST, UNKNOWN)[2:] == [
        "n3     IPv6     geneve:6081   LOST way there: LostOneWay",
        "n4     IPv4     native        not known: NoAgentThere",
        "",
        "problem   packets are lost.",
        "note      nobody is there.",
    ]


async def answering(answer: dict[str, object]) -> tuple[web.AppRunner, str]:
    async def say(_request: web.Request) -> web.Response:
        return web.json_response(answer)

    app = web.Application()
    app.add_routes([web.get("/check", say)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return runner, f"{host}:{port}"


@pytest.mark.parametrize(("passes", "status"), [(True, EXIT_PASSES), (False, EXIT_PROBLEMS), (None, EXIT_PROBLEMS)])
async def test_the_exit_status(passes: bool | None, status: int) -> None:
    check = {"peer": "n2", "family": 4, "way": "native", "passes": passes}
    runner, address = await answering({"node": "n1", "checks": [check]})
    try:
        assert (await run(Cluster(), "", address))[1] == status
    finally:
        await runner.cleanup()


async def test_where_no_agent_answers_nobody_could_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def good(*_: object) -> list[str]:
        return ["NetloomNode n2: PodTrafficPasses=True"]

    monkeypatch.setattr("netloom.cli.check.from_elsewhere", good)
    monkeypatch.setattr("netloom.cli.local_agent.ADDRESS", "127.0.0.1:1")
    assert await run(Cluster(), "n2", "") == (None, EXIT_NOT_ASKED, ["NetloomNode n2: PodTrafficPasses=True"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"node": "n1", "unknown": ["n9"]}, "there is no node n9"),
        ({"node": "n1"}, "looked at nothing: its feature `probe` is off"),
        ({"other": 1}, "no agent of Netloom that can check"),
    ],
)
async def test_what_is_no_answer(answer: dict[str, object], said: str) -> None:
    runner, address = await answering(answer)
    try:
        with pytest.raises(UserError, match=said):
            await ask(address, [])
    finally:
        await runner.cleanup()
