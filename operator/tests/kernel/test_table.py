"""The difference table against the plainest possible definition of a difference."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netloom.kernel.keeper.table import Table

keys, values = st.integers(0, 5), st.integers(0, 2)


class TableMachine(RuleBasedStateMachine):
    """After any sequence of wishes, events, dumps and writes, `pending` is exactly where the two sides differ, but for
    what is retained, which nothing touches."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Table[int, int] = Table()
        self.desired: dict[int, int] = {}
        self.kernel: dict[int, int] = {}
        self.retained: set[int] = set()

    @rule(asked=st.sets(keys))
    def spare(self, asked: set[int]) -> None:
        self.retained = {key for key in asked if key in self.kernel and key not in self.desired}
        self.table.retain(set(self.retained))

    @rule(key=keys, value=values)
    def want(self, key: int, value: int) -> None:
        self.table.want(key, value)
        self.desired[key] = value

    @rule(key=keys)
    def unwant(self, key: int) -> None:
        self.table.unwant(key)
        self.desired.pop(key, None)

    @rule(key=keys, value=values)
    def saw(self, key: int, value: int) -> None:
        self.table.saw(key, value)
        self.kernel[key] = value

    @rule(key=keys)
    def gone(self, key: int) -> None:
        self.table.gone(key)
        self.kernel.pop(key, None)

    @rule(kernel=st.dictionaries(keys, values))
    def load(self, kernel: dict[int, int]) -> None:
        self.table.load(dict(kernel))
        self.kernel = dict(kernel)

    @rule()
    def write(self) -> None:
        """What is pending, done to the kernel, makes it as desired."""
        updates, deletions = self.table.updates(), self.table.deletions()
        for key, value, before in updates:
            assert self.kernel.get(key) == before
            self.kernel[key] = value
        for key, _, before in deletions:
            assert self.kernel.pop(key) == before
        assert {key: value for key, value in self.kernel.items() if key not in self.retained} == self.desired
        self.table.assume(updates)
        self.table.assume(deletions)
        assert not self.table.pending

    @invariant()
    def differs_exactly_there(self) -> None:
        assert self.table.desired == self.desired
        assert self.table.kernel == self.kernel
        self.retained = {key for key in self.retained if key in self.kernel and key not in self.desired}
        assert self.table.retained == self.retained
        different = {key for key in self.desired | self.kernel if self.desired.get(key) != self.kernel.get(key)}
        assert self.table.pending == different - self.retained


TestTable = TableMachine.TestCase
