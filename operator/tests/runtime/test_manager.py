"""The manager, health and the log: how a role lives, says how it is, and ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable

import aiohttp
import pytest
import structlog

from netloom.api.errors import UserError
from netloom.runtime import health, log, metrics
from netloom.runtime.errors import ConfigError
from netloom.runtime.health import HealthChecks
from netloom.runtime.manager import EXIT_OVERSTAYED, ComponentCrashed, Manager
from tests.runtime.scripted import until
from tests.runtime.virtual import in_virtual_time


async def for_ever() -> None:
    await asyncio.Event().wait()


class Part:
    """A component that notes what happens to it."""

    def __init__(self, *crashes: Exception, farewell: Callable[[], object] | None = None) -> None:
        self.crashes = list(crashes)
        self.begun = 0
        self.ended = 0

    async def run(self) -> None:
        self.begun += 1
        try:
            if self.crashes:
                raise self.crashes.pop(0)
            await for_ever()
        finally:
            self.ended += 1


async def test_a_stop_cancels_all_and_waits_for_them():
    manager, parts = Manager(), [Part(), Part()]
    for number, part in enumerate(parts):
        manager.add(f"part-{number}", part.run)
    task = asyncio.create_task(manager.run())
    await until(lambda: all(part.begun for part in parts))
    manager.stop()
    await asyncio.wait_for(task, 5)
    assert [part.ended for part in parts] == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_is_a_stop(number: int):
    manager, part = Manager(), Part()
    manager.add("part", part.run)
    task = asyncio.create_task(manager.run())
    await until(lambda: part.begun)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(task, 5)
    assert part.ended == 1


async def test_a_restartable_component_is_started_again_and_the_others_go_on():
    manager = Manager(restart_delay=0.001)
    before = metrics.REGISTRY.get_sample_value("netloom_component_restarts_total", {"component": "shaky"}) or 0.0
    shaky, steady = Part(ValueError("one"), KeyError("two"), ValueError("three")), Part()
    manager.add("shaky", shaky.run, restart=True)
    manager.add("steady", steady.run)
    task = asyncio.create_task(manager.run())
    await until(lambda: shaky.begun == 4)
    assert (steady.begun, steady.ended) == (1, 0)
    await until(lambda: not manager.health.not_ready())
    assert metrics.REGISTRY.get_sample_value("netloom_component_restarts_total", {"component": "shaky"}) == before + 3
    manager.stop()
    await task


@in_virtual_time
async def test_a_component_that_crashes_again_and_again_is_not_ready_in_between():
    broken = True

    async def shaky() -> None:
        await asyncio.sleep(5)
        if broken:
            async with asyncio.TaskGroup() as group:
                group.create_task(Part(AttributeError("no attribute 'when'")).run())
        await for_ever()

    told: list[tuple[str, ...]] = []
    manager = Manager(on_crash=lambda: told.append(manager.crashes))
    manager.add("shaky", shaky, restart=True)
    task = asyncio.create_task(manager.run())
    ready = []
    for _ in range(300):
        await asyncio.sleep(1)
        ready.append(not manager.health.not_ready())
    assert any(ready[:20]), "one crash is no catastrophe"
    assert not any(ready[30:])
    assert manager.health.not_ready() == {"component shaky": "crashed: no attribute 'when'"}
    sentence = "shaky crashed: no attribute 'when'. It is started again; the log has the details."
    assert set(told) == {(), (sentence,)}
    broken = False
    await asyncio.sleep(121)
    assert manager.health.not_ready() == {}
    assert (manager.crashes, told[-1]) == ((), ())
    manager.stop()
    await task


async def test_a_crashed_component_shows_until_it_has_run_for_a_while():
    manager, part = Manager(restart_delay=3600.0), Part(ValueError("no disk"))
    manager.add("part", part.run, restart=True)
    task = asyncio.create_task(manager.run())
    await until(manager.health.not_ready)
    assert manager.health.not_ready() == {"component part": "crashed: no disk"}
    manager.stop()
    await asyncio.wait_for(task, 5)


async def test_a_fatal_crash_ends_the_role():
    manager, other = Manager(), Part()
    manager.add("fatal", Part(ValueError("no disk")).run)
    manager.add("other", other.run)
    with pytest.raises(ComponentCrashed, match="fatal crashed: no disk") as caught:
        await asyncio.wait_for(manager.run(), 5)
    assert isinstance(caught.value.__cause__, ValueError)
    assert other.begun == other.ended


async def test_a_mistake_of_the_user_stays_the_sentence_that_it_is():
    manager = Manager()
    manager.add("part", Part(ConfigError("the directory is not there")).run)
    with pytest.raises(UserError, match=r"^the directory is not there$"):
        await asyncio.wait_for(manager.run(), 5)


async def test_what_no_retry_mends_ends_even_a_component_that_is_restarted():
    manager = Manager()
    both = ExceptionGroup("workers", [UserError("no VXLAN"), UserError("no VXLAN")])
    manager.add("part", Part(both).run, restart=True)
    with pytest.raises(UserError, match=r"^no VXLAN$"):
        await asyncio.wait_for(manager.run(), 5)


async def test_a_component_that_cancels_itself_has_crashed():
    manager, part = Manager(restart_delay=0.001), Part(asyncio.CancelledError())  # type: ignore[arg-type]
    manager.add("part", part.run, restart=True)
    task = asyncio.create_task(manager.run())
    await until(lambda: part.begun == 2)
    manager.stop()
    await task


async def test_the_role_ends_when_all_components_have():
    manager = Manager()

    async def brief() -> None:
        return

    manager.add("brief", brief)
    await asyncio.wait_for(manager.run(), 5)


async def test_who_does_not_end_in_time_is_not_waited_for():
    exits: list[int] = []
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    manager = Manager(grace=0.05, exit=exits.append)
    manager.add("stubborn", stubborn)
    task = asyncio.create_task(manager.run())
    await asyncio.sleep(0)
    manager.stop()
    await until(lambda: exits)
    assert exits == [EXIT_OVERSTAYED]
    release.set()
    await task


async def test_a_second_stop_ends_at_once():
    exits: list[int] = []
    manager = Manager(exit=exits.append)
    manager.stop()
    manager.stop()
    assert exits == [EXIT_OVERSTAYED]


async def test_what_is_drained_works_on_and_is_not_ready():
    manager, part = Manager(drain=0.05), Part()
    manager.add("part", part.run)
    task = asyncio.create_task(manager.run())
    await until(lambda: part.begun)
    assert manager.health.not_ready() == {}
    manager.stop()
    assert manager.health.not_ready() == {"stop": "the process is about to end"}
    await asyncio.sleep(0)
    assert not part.ended
    await asyncio.wait_for(task, 5)
    assert part.ended == 1


async def test_a_drain_ends_with_the_last_component_or_a_crash():
    for crash in (None, ValueError("broken")):
        finish = asyncio.Event()

        async def run(finish: asyncio.Event = finish, crash: Exception | None = crash) -> None:
            await finish.wait()
            if crash:
                raise crash

        manager = Manager(drain=3600.0)
        manager.add("part", run)
        task = asyncio.create_task(manager.run())
        await asyncio.sleep(0)
        manager.stop()
        finish.set()
        if crash:
            with pytest.raises(ComponentCrashed, match="broken"):
                await asyncio.wait_for(task, 5)
        else:
            await asyncio.wait_for(task, 5)


async def test_a_second_stop_does_not_wait_for_the_drain():
    statuses: list[int] = []
    manager = Manager(drain=3600.0, exit=statuses.append)
    manager.add("part", for_ever)
    task = asyncio.create_task(manager.run())
    await asyncio.sleep(0)
    manager.stop()
    manager.stop()
    assert statuses == [EXIT_OVERSTAYED]
    task.cancel()
    await asyncio.wait([task])


async def test_a_cancelled_manager_takes_its_components_along():
    manager, part = Manager(), Part()
    manager.add("part", part.run)
    task = asyncio.create_task(manager.run())
    await until(lambda: part.begun)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert part.ended == 1


# Health


async def test_probes_answer_with_the_reasons():
    checks = HealthChecks()
    wrong = {"ready": "not listed yet"}
    checks.ready("loop", lambda: "")
    checks.ready("watch nodes", lambda: wrong["ready"])
    async with health.serve(checks) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def probe(path: str) -> tuple[int, str]:
            async with session.get(path) as response:
                return response.status, await response.text()

        assert await probe("/healthz") == (200, "ok\n")
        assert await probe("/readyz") == (503, "[+] loop\n[-] watch nodes: not listed yet\nfailed\n")
        wrong["ready"] = ""
        assert await probe("/readyz") == (200, "[+] loop\n[+] watch nodes\nok\n")


async def test_a_check_that_crashes_is_a_failing_check():
    checks = HealthChecks()
    checks.ready("broken", lambda: str(1 / 0))
    assert checks.not_ready() == {"broken": "the check crashed: division by zero"}


async def test_metrics_are_served_in_the_text_format():
    async with (
        health.serve(HealthChecks()) as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics") as response,
    ):
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        text = await response.text()
    assert "process_resident_memory_bytes" in text
    assert "# HELP netloom_reconciles_total Runs of a reconciler." in text
    assert "python_info" not in text  # the process-wide default registry is not ours


async def test_an_address_that_is_taken_is_one_sentence():
    async with health.serve(HealthChecks()) as port:
        with pytest.raises(ConfigError, match=f"cannot serve HTTP on 127.0.0.1:{port}: "):
            async with health.serve(HealthChecks(), port=port):
                pass


# The log

SAY = """
import logging, sys, structlog
from netloom.runtime import log
log.configure(*sys.argv[1:])
logger = structlog.get_logger("netloom.test")
logger.debug("too quiet")
logger.info("route repaired", route="10.0.0.0/24", peer={"name": "b"})
logging.getLogger("aiohttp.client").warning("from a %s", "library")
try:
    secret = "token-1234"
    raise ValueError("broken")
except ValueError:
    logger.exception("it failed")
"""


async def say(*arguments: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SAY, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert not out  # stdout belongs to the command
    return err.decode().splitlines()


@pytest.mark.parametrize("form", ["json", "auto"])
async def test_the_log_is_json_for_machines(form: str):
    repaired, library, failed = [json.loads(line) for line in await say(form)]
    assert repaired == {
        "event": "route repaired", "route": "10.0.0.0/24", "peer": {"name": "b"},
        "logger": "netloom.test", "level": "info", "timestamp": repaired["timestamp"],
    }  # fmt: skip
    assert repaired["timestamp"].endswith("Z")
    assert (library["event"], library["logger"], library["level"]) == ("from a library", "aiohttp.client", "warning")
    assert "ValueError: broken" in failed["exception"]


async def test_the_log_is_readable_for_people():
    lines = await say("console", "debug")
    assert "too quiet" in lines[0]
    assert "route repaired" in lines[1]
    assert "route=10.0.0.0/24" in lines[1]
    assert any("ValueError: broken" in line for line in lines)
    shown = [line for line in lines if "token-1234" in line]
    assert shown == []  # no dump of local variables


async def test_the_level_is_obeyed():
    assert len(await say("json", "error")) == 1


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="unknown log level 'loud'"):
        log.configure("json", "loud")
    assert structlog.get_config() is not None
