"""The agent of this machine, asked for what only it knows: peers, drift, errors."""

from dataclasses import dataclass
from typing import Any

import msgspec

from netloom.api.cluster_facts import ObjectProblem
from netloom.api.errors import UserError
from netloom.api.words import some_sentences
from netloom.cli import agent_http

ADDRESS = "127.0.0.1:9964"
"""Where it answers if it was not told otherwise."""
_SECONDS = 2.0
"""For its answer."""
_ELSEWHERE = ": see its /status"
"""Where all errors and warnings are told."""


class Probed(msgspec.Struct, frozen=True):
    """Whether packets of pods pass, as the last probes saw: to how many peers, and sentences about the others. lacking:
    why forwarding cannot be looked at."""

    passing: int = 0
    failing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    lacking: str = ""


class Facts(msgspec.Struct, frozen=True, rename="camel"):
    """What is shown of an agent's /status, and by what an agent is known. peers: None without a mesh,
    probe: without that feature."""

    node: str
    in_sync: bool
    drift_repaired: int
    netlink_writes: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    peers: int | None = None
    mtu: int | None = None
    mtu_source: str = ""
    probe: Probed | None = None


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """What an address answered. `said`: all of it, where an agent answered; `silence`: why that is None."""

    facts: Facts | None = None
    said: dict[str, Any] | None = None
    silence: str = ""
    nobody: bool = False
    """Nothing listens there."""

    @property
    def warnings(self) -> list[str]:
        """What the agent says is wrong with other nodes: each says so itself, and is a problem there."""
        said = self.facts.warnings if self.facts is not None else ()
        return [f"agent of this machine: {each}" for each in some_sentences(said, _ELSEWHERE)]

    @property
    def problems(self) -> list[ObjectProblem]:
        """What the agent says is wrong."""
        if self.facts is None:
            return []
        name, errors = self.facts.node, self.facts.errors
        lost = self.facts.probe.failing if self.facts.probe is not None else ()
        found = []
        if lost:
            what = f"agent of this machine ({name}): {' '.join(some_sentences(lost, _ELSEWHERE))}"
            found.append(ObjectProblem("LocalAgent", name, "PodTrafficLost", what))
        if self.facts.in_sync and not errors:
            return found
        what = " ".join(some_sentences(errors, _ELSEWHERE)) or "not everything that is desired is in the kernel yet."
        return [*found, ObjectProblem("LocalAgent", name, "NotInSync", f"agent of this machine ({name}): {what}")]


async def ask(address: str) -> LocalAgent:
    """What the agent at HOST:PORT says of itself."""
    try:
        answer = await agent_http.ask(address, "/status", _SECONDS)
        return LocalAgent(answer.decode(Facts), msgspec.json.decode(answer.body))
    except UserError as error:
        return LocalAgent(silence=str(error), nobody=isinstance(error, agent_http.Nobody))
