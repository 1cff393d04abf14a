"""UDP flows between pods, every packet numbered and counted: what a change in the network cost, to the packet.

    with Flows({"n1": a, "n2": b, "n3": c}) as flows:   # 1,000 packets/s from every pod to every other
        ...                                             # switch the routing mode
        report = flows.stop()
    assert report.lossless, str(report)                      # n1->n3 lost 17 packets between 3.214 s and 3.231 s (...)

What the tool itself or the machine dropped is told apart from what the network lost: `Report.trouble` names receive
buffers that ran over and the kernel's backlog queue, and a report with trouble is not lossless.
"""

import errno
import itertools
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from netloom_e2e import flow_end
from netloom_e2e.machines import Pod

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive packets that did not arrive. Times are seconds since the flows' start, of sending."""

    first: int
    last: int
    after: float
    """When the last packet before the gap was sent."""

    before: float
    """When the first packet after the gap was sent."""

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        packets = "1 packet" if self.count == 1 else f"{self.count} packets"
        numbers = f"number {self.first}" if self.count == 1 else f"numbers {self.first}-{self.last}"
        return f"{packets} between {self.after:.3f} s and {self.before:.3f} s ({numbers})"


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction between two pods, in one family."""

    source: str
    target: str
    version: int
    sent: int
    received: int
    duplicates: int
    reordered: int
    gaps: tuple[Gap, ...]
    refused: Mapping[str, int]
    """Errors of the sending pod's own kernel (such as EMSGSIZE), by name; those packets are in the gaps, too."""

    @property
    def lost(self) -> int:
        return self.sent - self.received

    def __str__(self) -> str:
        """What went wrong, one line; "" if nothing did."""
        name = f"{self.source}->{self.target}{' IPv6' if self.version == 6 else ''}"
        parts = []
        if self.gaps:
            shown = ", ".join(str(gap) for gap in self.gaps[:_SHOWN])
            more = f", and in {len(self.gaps) - _SHOWN} more gaps" if len(self.gaps) > _SHOWN else ""
            total = f" {self.lost} packets:" if len(self.gaps) > 1 else ""
            parts.append(f"{name} lost{total} {shown}{more}")
        parts += [f"{name} could not send {count} packets: {error}" for error, count in self.refused.items()]
        if self.duplicates:
            parts.append(f"{name} got {self.duplicates} packets twice")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Report:
    """What all flows counted."""

    flows: tuple[Flow, ...]
    trouble: tuple[str, ...]
    """What makes the counts untrustworthy."""

    seconds: float
    lateness: float
    """The longest that a packet was sent behind its time, in seconds."""

    cpu: float
    """Seconds of processor time of all ends, the network path of what they sent included."""

    @property
    def sent(self) -> int:
        return sum(flow.sent for flow in self.flows)

    @property
    def lost(self) -> int:
        return sum(flow.lost for flow in self.flows)

    @property
    def reordered(self) -> int:
        return sum(flow.reordered for flow in self.flows)

    @property
    def lossless(self) -> bool:
        """Every packet came, once, and the tool vouches for it."""
        return self.sent > 0 and not self.trouble and not any(str(flow) for flow in self.flows)

    def of(self, source: str, target: str, version: int = 4) -> Flow:
        """One flow."""
        (found,) = (f for f in self.flows if (f.source, f.target, f.version) == (source, target, version))
        return found

    def __str__(self) -> str:
        lines = [line for flow in self.flows if (line := str(flow))]
        head = f"{self.lost} of {self.sent} packets of {len(self.flows)} flows lost in {self.seconds:.1f} s"
        tail = f"{self.reordered} reordered; at most {self.lateness * 1000:.0f} ms late; {self.cpu:.2f} s of CPU"
        return "\n".join([head, *lines, *self.trouble, tail])


@dataclass
class _End:
    """A process in a pod and the pipe to it."""

    name: str
    version: int
    process: subprocess.Popen[str]
    deadline: float
    sent: int = 0

    def tell(self, **words: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next line. Raises RuntimeError with what it said instead, if it is no answer."""
        out: IO[str] | None = self.process.stdout
        assert out
        if not select.select([out], [], [], self.deadline)[0]:
            raise TimeoutError(f"the flow's end in {self.name} has not answered for {self.deadline:g} s")
        line = out.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"the flow's end in {self.name} failed: {line}{out.read()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Flows:
    """From every pod to every other, as long as the block lasts or until `stop`.

    rate: packets per second of each flow, at most 1,000.
    size: bytes of an IP packet, headers included.
    df: forbid fragments; a packet larger than a path is then lost, as a pod's TCP would lose it.
    versions: IP versions; with both there are twice as many flows.
    buffer: bytes of the receive buffers. For the test of what happens when one runs over.
    deadline: seconds that a pod's process may take to start, and to count.
    """

    def __init__(
        self,
        pods: Mapping[str, Pod],
        *,
        rate: int = 1000,
        size: int = 100,
        df: bool = True,
        versions: tuple[int, ...] = (4,),
        buffer: int = 0,
        deadline: float = 15.0,
    ) -> None:
        self._pods = dict(pods)
        self._plan = {"run": random.getrandbits(32), "rate": rate, "size": size, "df": df, "buffer": buffer}
        self._versions = versions
        self._deadline = deadline
        self._ends: list[_End] = []
        self.started_ns = 0
        """CLOCK_MONOTONIC of the first packet: `Gap` times count from here."""

    @property
    def now(self) -> float:
        """Seconds since the start, on the clock of the gaps."""
        return (time.monotonic_ns() - self.started_ns) / 1e9

    @property
    def pids(self) -> dict[str, int]:
        """Of the processes, by pod; of the first version where there are two."""
        return {end.name: end.process.pid for end in reversed(self._ends)}

    def __enter__(self) -> "Flows":
        try:
            for version, name in itertools.product(self._versions, self._pods):
                self._ends.append(self._open(name, version))
            for end in self._ends:
                end.hear()
            self._backlog = _backlog_drops()
            self.started_ns = time.monotonic_ns() + 20_000_000
            for end in self._ends:
                end.tell(start=self.started_ns)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self, name: str, version: int) -> _End:
        pod = self._pods[name]
        command = [sys.executable, "-SE", flow_end.__file__]
        end = _End(name, version, pod.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE), self._deadline)
        names = list(self._pods)
        peers = [[names.index(peer), other.of(version)] for peer, other in self._pods.items() if peer != name]
        end.tell(me=names.index(name), version=version, address=pod.of(version), peers=peers, **self._plan)
        return end

    def stop(self) -> Report:
        """End the sending, wait for what is under way, and count. Every flow has sent what was due by now."""
        seconds = self.now
        for end in self._ends:
            end.tell(stop=int(seconds * int(self._plan["rate"])) + 1)
        for end in self._ends:
            end.sent = end.hear()["sent"]
        for end in self._ends:
            end.tell(finish={index: other.sent for index, other in self._peers(end)})
        answers = {(end.name, end.version): end.hear() for end in self._ends}
        dropped = _backlog_drops() - self._backlog
        flows = tuple(self._flows(answers))
        self._close()
        trouble = [
            f"{name} dropped {answer['dropped']} packets: its receive buffer ran over"
            for (name, _), answer in answers.items()
            if answer["dropped"]
        ]
        trouble += [f"this machine's kernel dropped {dropped} packets: net.core.netdev_max_backlog"] if dropped else []
        return Report(
            flows=flows,
            trouble=tuple(trouble),
            seconds=seconds,
            lateness=max(answer["latest"] for answer in answers.values()) / 1e9,
            cpu=sum(answer["cpu"] for answer in answers.values()),
        )

    def _peers(self, end: _End) -> list[tuple[int, _End]]:
        names = list(self._pods)
        return [
            (names.index(other.name), other)
            for other in self._ends
            if other.version == end.version and other.name != end.name
        ]

    def _flows(self, answers: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Flow]:
        found = []
        for target in self._ends:
            for index, source in self._peers(target):
                counted = answers[target.name, target.version]["flows"][str(index)]
                me = str(list(self._pods).index(target.name))
                refused: dict[str, int] = {}
                for _, number in answers[source.name, source.version]["refused"][me]:
                    name = errno.errorcode.get(number, str(number))
                    refused[name] = refused.get(name, 0) + 1
                flow = Flow(
                    source=source.name,
                    target=target.name,
                    version=target.version,
                    sent=source.sent,
                    received=counted["received"],
                    duplicates=counted["duplicates"],
                    reordered=counted["reordered"],
                    gaps=tuple(self._gap(*gap) for gap in counted["gaps"]),
                    refused=refused,
                )
                found.append(flow)
        return sorted(found, key=lambda flow: (flow.version, flow.source, flow.target))

    def _gap(self, first: int, last: int, after: int, before: int) -> Gap:
        """At the ends of a flow, where a neighbour is missing, by the schedule."""
        period = 1 / int(self._plan["rate"])
        return Gap(
            first,
            last,
            (after - self.started_ns) / 1e9 if after else max(0.0, (first - 1) * period),
            (before - self.started_ns) / 1e9 if before else (last + 1) * period,
        )

    def _close(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            end.process.kill()
            end.process.wait()
            for pipe in (end.process.stdin, end.process.stdout):
                assert pipe
                pipe.close()


def _backlog_drops() -> int:
    """Packets that all CPUs together dropped because their input queue was full (second column)."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())
