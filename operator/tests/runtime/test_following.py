"""What happens to requests and watches under way when the way to the API server is another."""

import asyncio
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from netloom.api.core import NODES
from netloom.runtime import credentials
from netloom.runtime.client import Api
from netloom.runtime.errors import Unauthorized
from netloom.runtime.store import Store
from netloom.runtime.watch import ListWatch, WatchTiming
from tests.runtime import scripted
from tests.runtime.conftest import write_kubeconfig
from tests.runtime.scripted import Call, ScriptedApi, serving, until


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.02)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_another_address(tmp_path: Path, run: Callable[[Any], None]) -> None:
    """A request under way is finished by the old one, the watch goes on at the new one, and then the old is closed."""

    async def story() -> None:
        async with serving() as old, serving() as new:
            answer = asyncio.Event()

            async def later(call: Call) -> web.StreamResponse:
                await answer.wait()
                return await call.ordinary()

            for server in (old, new):
                server.put("/api/v1/nodes", {"metadata": {"name": "a"}})
            old.on("get", later)
            path = write_kubeconfig(tmp_path / "k", {"server": old.url}, {"token": "t"})
            async with await Api.connect(path) as api:
                store = Store(NODES)
                watch = ListWatch(api, store, timing=WatchTiming(base=0.01, cap=0.02))
                tasks = [asyncio.create_task(each) for each in (api.follow(), watch.run(), api.get(NODES, "a"))]
                await until(lambda: old.count("watch") and old.count("get"))
                write_kubeconfig(tmp_path / "k", {"server": new.url}, {"token": "t"})
                await until(lambda: new.count("watch"))
                new.put("/api/v1/nodes", {"metadata": {"name": "b"}})
                await until(lambda: "b" in store)
                # What answers elsewhere may be of another history.
                assert (watch.fault, old.count("list"), new.count("list")) == ("", 1, 1)
                assert not tasks[-1].done()
                answer.set()
                assert (await tasks[-1]).metadata.name == "a"
                await until(lambda: all(transport.is_closing() for transport in old.transports), "the old is closed")
                for task in tasks[:-1]:
                    task.cancel()
                await asyncio.wait(tasks[:-1])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(story())
        gc.collect()


async def test_an_address_that_comes_and_goes_leaves_nothing_open(tmp_path: Path) -> None:
    async with serving() as one, serving() as two:
        path = write_kubeconfig(tmp_path / "k", {"server": one.url}, {"token": "t"})
        async with await Api.connect(path) as api:
            following = asyncio.create_task(api.follow())
            for _ in range(5):
                for server in (two, one):
                    write_kubeconfig(tmp_path / "k", {"server": server.url}, {"token": "t"})
                    await until(lambda server=server: api.host == server.url)  # type: ignore[misc]
                    await api.check()
            await until(lambda: sum(not t.is_closing() for t in one.transports | two.transports) == 1)
            following.cancel()
            await asyncio.wait([following])


async def test_connections_are_made_anew_on_demand(server: ScriptedApi, api: Api) -> None:
    """The watch goes on where it was, by another connection; and so does all else."""
    store = Store(NODES)
    watch = asyncio.create_task(ListWatch(api, store, timing=WatchTiming(base=0.01, cap=0.02)).run())
    await until(lambda: server.count("watch") == 1)
    before = set(server.transports)
    api.reconnect()
    await until(lambda: server.count("watch") == 2)
    await until(lambda: all(transport.is_closing() for transport in before), "the old are closed")
    server.put("/api/v1/nodes", {"metadata": {"name": "b"}})
    await until(lambda: "b" in store)
    assert server.count("list") == 1
    await api.check()
    watch.cancel()
    await asyncio.wait([watch])


async def test_a_token_that_is_refused_is_looked_for_at_once(
    server: ScriptedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only after the next look."""
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 3600.0)
    good = "one"

    async def judge(call: Call) -> web.StreamResponse:
        known = call.request.headers.get("Authorization") == f"Bearer {good}"
        return await (call.ordinary() if known else scripted.refuse(401, "Unauthorized")(call))

    server.faulty = judge
    token = tmp_path / "token"
    token.write_text("one")
    async with await Api.connect(
        write_kubeconfig(tmp_path / "k", {"server": server.url}, {"tokenFile": str(token)})
    ) as api:
        await api.list(NODES)
        good = "two"
        with pytest.raises(Unauthorized):
            await api.list(NODES)
        token.write_text("")  # being written
        with pytest.raises(Unauthorized, match=r"what is on disk now cannot be used: .* is empty"):
            await api.list(NODES)
        token.write_text("two\n")
        await api.list(NODES)
        assert server.count("list") == 5


async def test_the_context_of_the_start_is_kept(
    server: ScriptedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who switches kubectl to another cluster does not take running roles along."""
    monkeypatch.setattr(credentials, "LOOK_SECONDS", 0.0)
    path = Path(write_kubeconfig(tmp_path / "k", {"server": server.url}, {"token": "t"}))
    async with await Api.connect(str(path)) as api:
        text = path.read_text()
        path.write_text(
            text.replace("current-context: test", "current-context: other")
            .replace("contexts:\n", "contexts:\n- {name: other, context: {cluster: other, user: tester}}\n")
            .replace("clusters:\n", "clusters:\n- {name: other, cluster: {server: 'http://127.0.0.1:1'}}\n")
        )
        await api.check()
        assert api.host == server.url
        path.write_text(text.replace("test", "renamed").replace("renameder", "tester"))
        await api.check()
        assert api._auth.fault == ""
