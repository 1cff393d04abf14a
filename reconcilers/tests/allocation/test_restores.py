"""An API server that was given back an older world, under an operator that remembers a newer one."""

from tests.allocation.world import Operator, World


def ledger(world: World) -> dict[str, str]:
    """The node of each block that is entered."""
    lines = [
        line.split()
        for each in world.server.all("netloomledgers").values()
        for line in each["spec"]["entries"].splitlines()[1:]
    ]
    return {cidr: node for cidr, node, *_ in lines}


def as_entered(world: World) -> None:
    """Every node holds what the ledgers have for it, and nothing else is entered."""
    assert ledger(world) == {str(cidr): name for name, cidrs in world.cidrs().items() for cidr in cidrs}
    assert world.cidrs().keys() == world.server.all("nodes").keys()
    assert all(world.cidrs().values())


def relist(world: World, *operators: Operator) -> None:
    """As the watches do that find the history gone back, or were interrupted."""
    for operator in operators:
        operator.relist()
        operator.run()


def test_nodes_that_register_again_are_given_cidrs_of_the_restored_world(world: World) -> None:
    operator = world.start()
    for name in ("stays", "left"):
        world.join(name)
    world.calm(10)
    restore = world.server.backup()
    world.leave("left")
    world.calm(200)
    for name in ("again", "too"):
        world.join(name)
    world.calm(10)
    before = world.texts()
    restore()
    for name in ("too", "again"):
        world.join(name)
    relist(world, operator)
    world.calm(30)
    as_entered(world)
    assert world.texts()["stays"] == before["stays"]
    world.leave("left")
    world.calm(200)
    as_entered(world)


def test_a_block_that_only_the_restored_ledger_knows_comes_back(world: World) -> None:
    """Nobody holds it, so no conflict would ever show it: the node was deleted in the world that was lost, too."""
    operator = world.start()
    for name in ("a", "b"):
        world.join(name)
    world.calm(10)
    world.leave("a")
    world.handle(world.until(operator, "delete netloomnodes"))
    restore = world.server.backup()
    world.calm(200)
    assert list(ledger(world).values()) == ["b"]
    restore()
    relist(world, operator)
    world.calm(200)
    assert list(ledger(world).values()) == ["b"]


def test_a_ledger_that_meets_the_remembered_version_by_chance_is_not_written_over(world: World) -> None:
    """The compare-and-swap would let it pass, and what another operator has under way would be given out again."""
    first = world.start()
    world.join("a")
    world.calm(200)
    restore = world.server.backup()
    world.join("b")
    world.calm(200)
    world.leave("b")
    world.calm(200)
    known = world.server.all("netloomledgers")["v4-10.0.0.0-16"]["metadata"]["resourceVersion"]
    first.frozen = True
    restore()
    second = world.start()
    world.join("late")
    write = world.until(second, "replace netloomledgers")
    world.server.revision = int(known) - 1
    world.handle(write)
    assert world.server.all("netloomledgers")["v4-10.0.0.0-16"]["metadata"]["resourceVersion"] == known
    late = world.delay(world.until(second, "create netloomnodes"))
    world.kill(second)
    world.leave("late")
    for name in "cde":
        world.join(name)
    first.frozen = False
    relist(world, first)
    world.work(first, 10.0)
    world.handle(late)
    world.calm(200)
    as_entered(world)
