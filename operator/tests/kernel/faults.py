"""An asking socket that can be told to fail, in front of the real one."""

from collections.abc import Callable, Sequence

from netloom.kernel.netlink.sockets import AnswerLost, CommandSocket, KernelRefusal, RefusedError, Visit, VisitAnswer
from netloom.kernel.netlink.wire import NAMES

FOR_EVER = 1 << 30


class FaultyCommands(CommandSocket):
    """Refuses requests of a type, loses answers, or interrupts dumps, as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0
        self.asked = 0
        self.before_batch: Callable[[], None] = lambda: None
        self._refuse: dict[str, tuple[int, int]] = {}
        self._lose = 0
        self._lose_after_doing = False
        self._interrupt = 0
        self._fail_dumps: tuple[int, int] = (0, 0)
        self._fail_questions: tuple[int, int] = (0, 0)

    def refuse(self, kind: str, code: int, times: int = FOR_EVER) -> None:
        """The next requests of this type get this errno, and are not done."""
        self._refuse[kind] = (code, times)

    def lose_answers(self, times: int, *, after_doing: bool) -> None:
        """The answers to the next batches are lost, with the batches done or not."""
        self._lose, self._lose_after_doing = times, after_doing

    def interrupt_dumps(self, times: int) -> None:
        """The next dumps say that the state changed meanwhile."""
        self._interrupt = times

    def fail_dumps(self, code: int, times: int) -> None:
        """The next dumps end in this errno."""
        self._fail_dumps = (code, times)

    def fail_questions(self, code: int, times: int) -> None:
        """The next questions (which way packets go) end in this errno."""
        self._fail_questions = (code, times)

    def heal(self) -> None:
        """No more faults."""
        self._fail_questions = (0, 0)
        self._refuse.clear()
        self._lose = self._interrupt = 0
        self._fail_dumps = (0, 0)

    def execute(self, messages: Sequence[bytes]) -> dict[int, KernelRefusal]:
        self.before_batch()
        if self._lose:
            self._lose -= 1
            if self._lose_after_doing:
                super().execute(messages)
            raise AnswerLost(f"{len(messages)} requests: injected")
        refusals = {i: r for i, m in enumerate(messages) if (r := self._refusal(m)) is not None}
        self.refused += len(refusals)
        # One by one: a batch is acknowledged by its last request, which may be the one that is refused here.
        if not refusals:
            return super().execute(messages)
        for i, message in enumerate(messages):
            if i not in refusals:
                alone = message[:8] + bytes(4) + message[12:]
                if answer := super().execute([alone]):
                    refusals[i] = answer[0]
        return refusals

    def _refusal(self, message: bytes) -> KernelRefusal | None:
        kind = NAMES[int.from_bytes(message[4:6], "little")]
        code, times = self._refuse.get(kind, (0, 0))
        if not times:
            return None
        self._refuse[kind] = (code, times - 1)
        return KernelRefusal(code, "injected")

    def ask(self, questions: Sequence[bytes], visit: VisitAnswer) -> None:
        self.asked += len(questions)
        code, times = self._fail_questions
        if times:
            self._fail_questions = (code, times - 1)
            raise OSError(code, "injected")
        super().ask(questions, visit)

    def dump(self, request: bytes, visit: Visit) -> bool:
        code, times = self._fail_dumps
        if times:
            self._fail_dumps = (code, times - 1)
            raise RefusedError(KernelRefusal(code, "injected"))
        whole = super().dump(request, visit)
        if self._interrupt:
            self._interrupt -= 1
            return False
        return whole
