"""Wall clocks that a test sets while a program runs, by libfaketime; clocks that nobody can set go on as they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

JUMPS = ("-2h", "+2h", "+400d")
"""As libfaketime reads them."""
_RIGHT = "+0"


@dataclass(frozen=True, slots=True)
class WallClock:
    """Of one program that is started with `env`; right at first."""

    file: Path

    @classmethod
    def made(cls, file: Path) -> WallClock:
        """One that is set by this file."""
        file.write_text(_RIGHT)
        return cls(file)

    @property
    def env(self) -> Mapping[str, str]:
        """What a program needs in its environment."""
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            # Versions know it by the one or the other name.
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @contextmanager
    def jumped(self, by: str) -> Iterator[None]:
        """While the context lasts, it is wrong by so much."""
        self._set(by)
        try:
            yield
        finally:
            self._set(_RIGHT)

    def _set(self, by: str) -> None:
        # Never half a file: who reads it would take it for the epoch.
        new = self.file.with_suffix(".new")
        new.write_text(by)
        new.rename(self.file)
