"""Deletes objects until the API server has them no more, and says what holds them where they stay.

A refusal is tried again for a while: API servers learn some time later that the guard's webhooks and policies are gone,
each for itself. So is an API server that does not answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from netloom.api.errors import UserError
from netloom.api.meta import ObjectMeta, Resource
from netloom.api.words import SHOWN
from netloom.runtime.client import PATCH_TYPES, Api
from netloom.runtime.errors import ApiError, Conflict, NotFound
from netloom.runtime.wire import MetaOnly
from netloom.uninstall.installation import Thing

SECONDS = 60.0
"""For one object, or all of a kind, to go."""
PAUSE_SECONDS = 0.5
"""At most, between two questions; the first follow at once, as most of what is deleted is gone in a moment."""
OURS = "netloom.dev/"
"""How finalizers of ours begin."""
_IN_BACKGROUND = msgspec.json.encode({"propagationPolicy": "Background"})


async def until(what: str, done: Callable[[], Awaitable[str]], seconds: float = SECONDS) -> None:
    """Asks until `done` answers "", which is else why not yet. Raises UserError with that when the time is up.

    A request that fails is one reason more to ask again.
    """
    deadline = time.monotonic() + seconds
    pause = PAUSE_SECONDS / 64
    while True:
        try:
            why = await done()
        except ApiError as error:
            why = str(error)
        if not why:
            return
        if time.monotonic() > deadline:
            raise UserError(f"{what}: {why}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS)


async def delete(api: Api, things: Iterable[Thing], seconds: float = SECONDS) -> list[Thing]:
    """In this order, each until it is gone; returns those that were there. Raises UserError."""
    found = []
    for thing in things:
        was_there = False

        async def gone(thing: Thing = thing) -> str:
            nonlocal was_there
            try:
                await api.request("DELETE", thing.path, body=_IN_BACKGROUND)
            except NotFound:
                return ""
            was_there = True
            return "it is being deleted, and something holds it; its metadata.finalizers say what"

        await until(f"{thing} cannot be deleted", gone, seconds)
        found += [thing] if was_there else []
    return found


async def empty(api: Api, kind: Resource[MetaOnly], seconds: float = SECONDS) -> list[str]:
    """Deletes all objects of a cluster-scoped kind, and takes our finalizers off; returns their names. A kind that the
    cluster does not know has none. Raises UserError."""
    names: dict[str, None] = {}

    async def gone() -> str:
        try:
            listed = (await api.list(kind)).objects
        except NotFound:
            return ""
        if not listed:
            return ""
        names.update(dict.fromkeys(each.metadata.name for each in listed))
        for each in listed:
            await _let_go(api, kind, each.metadata)
        await api.request("DELETE", kind.path(), body=_IN_BACKGROUND)
        return _held(listed)

    await until(f"{kind.plural} cannot be deleted", gone, seconds)
    return list(names)


async def _let_go(api: Api, kind: Resource[MetaOnly], meta: ObjectMeta) -> None:
    """Of what is being deleted: nobody else takes them off any more."""
    others = [each for each in meta.finalizers if not each.startswith(OURS)]
    if not meta.deletion_timestamp or len(others) == len(meta.finalizers):
        return
    patch = {"metadata": {"finalizers": others, "resourceVersion": meta.resource_version}}
    try:
        await api.request(
            "PATCH", kind.path(meta.name), body=msgspec.json.encode(patch), content_type=PATCH_TYPES["merge"]
        )
    except (Conflict, NotFound):
        return


def _held(listed: list[MetaOnly]) -> str:
    shown = ", ".join(each.metadata.name for each in listed[:SHOWN])
    foreign = sorted({each for meta in listed for each in meta.metadata.finalizers if not each.startswith(OURS)})
    if foreign:
        return f"{shown}: held by the finalizers {', '.join(foreign)}, which whoever put them there has to take off"
    return (
        f"{shown}: still there, or there again. If somebody makes them anew, it is an operator that runs elsewhere: "
        "stop it, and run this again"
    )
