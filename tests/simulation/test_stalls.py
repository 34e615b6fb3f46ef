"""Certifiers gone for good, retirements by the root, and a root that retires the living (protocol section 8)."""

from simulation.world import World, make_genesis

from fullrank_protocol.membership import make_retirement
from fullrank_protocol.provisional import provisional_finality
from fullrank_protocol.round_io import ChoiceAdopted
from fullrank_protocol.vote import make_choice

STALL = 12
RECOVERY_SLOTS = 7


def swarm(size: int, *, seed: int = 1) -> World:
    world = World(make_genesis(founders=size, stall_slots=STALL), seed=seed, size=size)
    for number in range(size):
        world.add(number)
    return world


def retire(world: World, *numbers: int) -> None:
    """The root, node 0, retires these."""
    root = world.nodes[0]
    for number in numbers:
        root.receive(
            make_retirement(
                root.key,
                swarm=world.genesis.swarm,
                certifier=world.nodes[number].key.public_key,
                issued_at_ms=root.now_ms(),
            )
        )


def test_two_of_five_gone_for_good_are_retired_together_and_finality_comes_back() -> None:
    world = swarm(5)
    world.run(4)
    world.nodes[3].kill()
    world.nodes[4].kill()
    world.run(STALL + 2)
    up = world.nodes[:3]
    stuck = up[0].state.tree.final.slot
    assert stuck <= 4
    for node in up:
        found = provisional_finality(node.state.tree, slot=world.slot)
        assert found is not None
        assert found.at is not None
        assert found.at.slot >= world.slot - 4
        assert found.missing == {gone.key.public_key for gone in world.nodes[3:]}
    provisional = found.at
    retire(world, 3, 4)
    world.run(RECOVERY_SLOTS)
    for node in up:
        tree = node.state.tree
        assert tree.final.slot > world.slot - 4
        assert tree.is_final(tree.state(provisional.checkpoint)), "what those present stood behind has become final"
        assert len(tree.head().members.certifiers) == 3


def test_a_retirement_before_the_stall_waits_and_changes_nothing() -> None:
    world = swarm(5)
    world.run(4)
    world.nodes[3].kill()
    world.nodes[4].kill()
    retire(world, 3, 4)
    world.run(STALL - 4)
    assert all(node.state.tree.final.slot <= 4 for node in world.nodes[:3])
    world.run(4 + RECOVERY_SLOTS)
    assert all(node.state.tree.final.slot > world.slot - 4 for node in world.nodes[:3])


def test_the_retired_who_come_back_follow_and_may_certify_again() -> None:
    world = swarm(5)
    world.run(4)
    world.nodes[3].kill()
    world.nodes[4].kill()
    world.run(STALL + 2)
    retire(world, 3, 4)
    world.run(RECOVERY_SLOTS)
    world.nodes[3].start()
    world.nodes[4].start()
    world.run(3 * RECOVERY_SLOTS)
    assert len({node.state.tree.head().id for node in world.nodes}) == 1
    assert all(len(node.state.tree.head().members.certifiers) == 5 for node in world.nodes)
    assert all(node.state.tree.final.slot > world.slot - 4 for node in world.nodes)
    assert not any(node.alarms or node.state.evidence for node in world.nodes)


def test_where_the_retired_were_alive_but_no_quorum_there_is_still_one_truth() -> None:
    """Two and three of five are cut off from each other; the root is among the two and retires the three."""
    world = swarm(5)
    world.run(4)
    world.partition(world.nodes[:2], world.nodes[2:])
    world.run(STALL + 2)
    retire(world, 2, 3, 4)
    world.run(RECOVERY_SLOTS)
    assert all(node.state.tree.final.slot > world.slot - 4 for node in world.nodes[:2])
    assert all(node.state.tree.final.slot <= 4 for node in world.nodes[2:])
    world.heal()
    world.run(2 * RECOVERY_SLOTS)
    assert not any(node.alarms for node in world.nodes)
    assert len({node.state.tree.head().id for node in world.nodes}) == 1


def test_a_root_that_retires_a_living_quorum_is_told_and_its_choice_ends_the_conflict() -> None:
    world = swarm(4)
    world.checker.expects_conflicts = True
    world.run(4)
    root, *others = world.nodes
    world.partition([root], others)
    world.run(STALL + 2)
    retire(world, 1, 2, 3)
    world.run(RECOVERY_SLOTS)
    ours, theirs = root.state.tree.final, others[0].state.tree.final
    assert min(ours.slot, theirs.slot) > world.slot - 4
    world.heal()
    world.run(3)
    assert all(len(node.alarms) == 1 for node in world.nodes)
    finals = {node.number: node.state.tree.final for node in world.nodes}
    world.run(3)
    assert {node.number: node.state.tree.final for node in world.nodes} == finals, "nobody finalises meanwhile"
    chosen = others[0].state.tree.final
    root.receive(
        make_choice(
            root.key,
            swarm=world.genesis.swarm,
            checkpoint=chosen.checkpoint,
            slot=chosen.slot,
            issued_at_ms=root.now_ms(),
        )
    )
    world.run(RECOVERY_SLOTS)
    assert all(node.state.tree.final.slot > chosen.slot for node in others)
    assert root.state.tree.final == finals[0], "it keeps its own until its owner says otherwise"
    root.feed(ChoiceAdopted(checkpoint=chosen.checkpoint))
    world.run(RECOVERY_SLOTS)
    assert len({node.state.tree.head().id for node in world.nodes}) == 1
    assert all(node.state.tree.final.slot > world.slot - 4 for node in world.nodes)
    root.kill()
    root.start()
    world.run(2)
    assert root.state.tree.conflict is None
    assert root.state.tree.final.slot > world.slot - 4
