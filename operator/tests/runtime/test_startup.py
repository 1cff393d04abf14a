"""What a role that starts waits for, and what ends it."""

import asyncio
from pathlib import Path

import pytest

from netloom.runtime import startup
from netloom.runtime.backoff import Backoff
from netloom.runtime.client import Api
from netloom.runtime.errors import ConfigError
from netloom.runtime.manager import Manager
from netloom.runtime.startup import StartupCheck
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import ScriptedApi, refuse, refuse_in_text, until


class Patience:
    """A clock that goes on as one sleeps; what the role said before each sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.delays: list[float] = []
        self.check: StartupCheck | None = None

    def of(self, api: Api) -> StartupCheck:
        self.check = StartupCheck(api, Backoff(1.0, 60.0, lambda: 0.0), clock=lambda: self.now, sleep=self.sleep)
        return self.check

    async def sleep(self, seconds: float) -> None:
        assert self.check
        self.said.append(self.check.fault)
        self.delays.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


FAULTS = {
    "refuses to talk: GET /version: busy (503 ServiceUnavailable)": refuse(503, "ServiceUnavailable", "busy"),
    "refuses to talk: GET /version: later (429 TooManyRequests)": refuse(429, "TooManyRequests", "later"),
    "refuses to talk: GET /version: no (403 Forbidden)": refuse(403, "Forbidden", "no"),
    "refuses to talk: GET /version: not found (404": refuse_in_text(404, "not found"),
    "refuses to talk: GET /version: bad gateway (502 BadGateway)": refuse_in_text(502, "bad gateway"),
    "answers, but not as a Kubernetes API server does": refuse_in_text(200, "welcome"),
    "does not accept the credentials (401): GET /version: who": refuse(401, "Unauthorized", "who"),
}


async def test_whatever_an_api_server_answers_at_first_is_waited_for(server: ScriptedApi, api: Api) -> None:
    server.on("version", *FAULTS.values())
    patience = Patience()
    waiting = patience.of(api)
    assert waiting.fault == "the API server was not asked yet"
    await waiting.run()
    assert waiting.fault == ""
    for sentence, said in zip(FAULTS, patience.said, strict=True):
        assert sentence in said
        assert server.url in said
    assert patience.delays == [0.5, 1, 2, 4, 8, 16, 30]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://nowhere.invalid:6443", "cannot be reached: "),
        ("http://127.0.0.1:1", "cannot be reached: Connection refused"),
        ("http://224.0.0.1:1", "cannot be reached: Network is unreachable"),
    ],
)
async def test_an_api_server_that_is_not_there_is_waited_for(tmp_path: Path, url: str, sentence: str) -> None:
    async with await Api.connect(write_kubeconfig(tmp_path / "k", {"server": url}, {"token": "t"})) as api:
        waiting = StartupCheck(api, Backoff(0.01, 0.02))
        task = asyncio.create_task(waiting.run())
        await until(lambda: sentence in waiting.fault)
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


async def test_credentials_that_are_refused_for_good_end_the_role(server: ScriptedApi, api: Api) -> None:
    server.faulty = refuse(401, "Unauthorized", "who")
    patience = Patience()
    with pytest.raises(ConfigError, match=r"does not accept the credentials \(401\)"):
        await patience.of(api).run()
    assert startup.PATIENCE_SECONDS <= patience.now < 2 * startup.PATIENCE_SECONDS


async def test_another_answer_between_is_a_new_beginning(server: ScriptedApi, api: Api) -> None:
    """It refuses everybody while it starts, goes away once more, and then knows us."""
    refused = refuse(401, "Unauthorized", "who")
    server.on("version", *[refused] * 7, refuse(503, "ServiceUnavailable"), *[refused] * 4, None)
    patience = Patience()
    await patience.of(api).run()
    assert patience.now > startup.PATIENCE_SECONDS


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    answer = tmp_path / "answer"
    script = tmp_path / "plugin"
    script.write_text(f"#!/bin/sh\ncat {answer} || exit 1\n")
    script.chmod(0o755)
    return answer


async def test_a_plugin_that_has_nothing_yet_is_asked_again(
    server: ScriptedApi, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot the service that it asks may be later than we are; a command does not wait for it."""
    monkeypatch.setattr("netloom.runtime.kubeconfig.REFUSED_SECONDS", 0.0)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(tmp_path / "plugin")}}
    path = write_kubeconfig(tmp_path / "k", {"server": server.url}, user)
    with pytest.raises(ConfigError, match="No such file or directory"):
        await Api.connect(path)
    async with await Api.connect(path, patient=True) as api:
        manager = Manager(restart_delay=0.01, restart_cap=0.02)
        startup.follow_api_server(api, manager)
        task = asyncio.create_task(manager.run())
        await until(lambda: "No such file or directory" in manager.health.not_ready().get("API server", ""))
        assert not server.calls
        plugin.write_text(
            '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "t"}}'
        )
        await until(lambda: not manager.health.not_ready())
        assert server.calls[-1].headers["Authorization"] == "Bearer t"
        manager.stop()
        await task
