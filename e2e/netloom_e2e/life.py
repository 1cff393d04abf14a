"""What is started and stopped, and leaves nothing behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Started(ABC):
    """Use as a context manager, or call `start` and `stop`; both leave nothing, also where the start fails."""

    @abstractmethod
    def start(self) -> None:
        """Returns when it is ready."""

    @abstractmethod
    def stop(self) -> None:
        """Ends everything and removes what it made. May be called twice."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
