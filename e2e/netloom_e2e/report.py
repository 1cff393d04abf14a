"""What the demo tells while it runs: the table of its steps."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

from netloom_e2e.machines import Pod


@dataclass
class Report:
    """The table of steps, printed as they end."""

    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    failed: int = 0
    began: float = field(default_factory=time.monotonic)

    def head(self, text: str) -> None:
        """A new part of the story."""
        self.console.print(f"\n[bold]{escape(text)}[/bold]")

    def say(self, text: str) -> None:
        """What is being done, or what somebody looking on would type."""
        self.console.print(f"         [dim]{escape(text)}[/dim]")

    def saw(self, step: str, saw: str, ok: bool) -> None:
        """One row: when, verdict, step, what was seen."""
        at = f"{time.monotonic() - self.began:5.1f} s"
        mark = "[green]ok  [/green]" if ok else "[bold red]FAIL[/bold red]"
        self.failed += not ok
        self.console.print(f"{at}  {mark} {escape(step):<58} {escape(saw)}")

    def ping_all(self, pods: dict[str, Pod], step: str, *, payload: int) -> None:
        """Every pod pings every other three times."""
        sent, received = ping_all(pods.values(), count=3, payload=payload)
        self.saw(step, f"{received} of {sent} answered", sent == received > 0)

    def verdict(self) -> None:
        """The last line."""
        ok = "[green]all steps as expected[/green]"
        verdict = f"[red]{self.failed} steps differ[/red]" if self.failed else ok
        self.console.print(f"\n{verdict}, {time.monotonic() - self.began:.0f} s")


def ping_all(pods: Collection[Pod], *, count: int = 1, payload: int = 56, wait: float = 1.0) -> tuple[int, int]:
    """Every pod pings every other; how many were sent and answered."""
    pings = [
        a.ping(b.address, count=count, interval=0.01, payload=payload, wait=wait) for a in pods for b in pods if a != b
    ]
    return sum(p.sent for p in pings), sum(p.received for p in pings)
