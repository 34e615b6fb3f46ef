"""Swarms that live for some slots in virtual time."""

import pytest
from simulation.faults import KINDS, Fault
from simulation.world import World, make_genesis

from fullrank_protocol.membership import make_leave


def swarm(size: int, *, seed: int = 1) -> World:
    world = World(make_genesis(founders=size), seed=seed, size=size)
    for number in range(size):
        world.add(number)
    return world


def heads(world: World) -> set[bytes]:
    return {node.state.tree.head().id for node in world.nodes if node.is_up}


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_slot_gets_a_round_and_the_round_before_it_is_final(size: int) -> None:
    world = swarm(size)
    world.run(10)
    for node in world.nodes:
        tree = node.state.tree
        assert tree.head().round >= 8
        assert tree.head().slot - tree.final.slot <= 2
        assert len(tree.chain(tree.head().id)[-1].checkpoint.accepted) == size
        assert not node.alarms
    assert len({tuple(node.finals[:6]) for node in world.nodes}) == 1


def test_a_missing_proposer_is_replaced_by_the_next_in_order() -> None:
    world = swarm(4)
    world.run(4)
    world.nodes[2].kill()
    world.run(8)
    up = [node for node in world.nodes if node.is_up]
    assert all(node.state.tree.head().round >= 9 for node in up)
    assert all(node.state.tree.final.slot >= 8 for node in up)


def test_a_killed_node_goes_on_from_its_disk_without_an_offence() -> None:
    world = swarm(4)
    world.run(4)
    for _ in range(4):
        world.nodes[1].kill()
        world.run(1)
        world.nodes[1].start()
        world.run(1)
    world.run(3)
    assert len(heads(world)) == 1
    assert not any(node.state.evidence for node in world.nodes)
    assert world.nodes[1].state.tree.final.slot >= 12


def test_both_sides_of_a_partition_go_on_and_agree_after_healing() -> None:
    world = swarm(4, seed=3)
    world.run(4)
    world.partition(world.nodes[:2], world.nodes[2:])
    world.run(6)
    assert len(heads(world)) == 2
    final_before = max(node.state.tree.final.slot for node in world.nodes)
    world.heal()
    world.run(10)
    assert len(heads(world)) == 1
    assert min(node.state.tree.final.slot for node in world.nodes) > final_before + 6
    assert not any(node.alarms or node.state.evidence for node in world.nodes)


def test_a_node_whose_clock_was_an_hour_ahead_follows_again_once_it_is_set_back() -> None:
    world = swarm(4)
    world.run(4)
    world.nodes[1].skew_ms = 3_600_000
    world.network.blocked = {(other, 1) for other in (0, 2, 3)}
    world.run(2)
    world.heal()
    world.run(0.01)
    world.nodes[1].skew_ms = 0
    world.run(4.5)
    assert len(heads(world)) == 1
    assert world.nodes[1].state.tree.final.slot >= 6


def test_what_an_isolated_member_asked_for_long_ago_is_carried_after_healing() -> None:
    world = swarm(4)
    world.run(1)
    begin_ms = world.now_ms - world.genesis.created_at_ms
    member_joins = Fault("join", begin_ms, begin_ms, 9)
    KINDS["join"][0](world, member_joins)
    world.run(3)
    member = world.nodes[4]
    world.partition(world.nodes[:4], [member])
    member.receive(make_leave(member.key, swarm=world.genesis.swarm, issued_at_ms=member.now_ms()))
    world.run(9)
    world.heal()
    assert all(node.state.tree.head().members.is_member(member.key.public_key) for node in world.nodes)
    world.run(6)
    assert not any(node.state.tree.head().members.is_member(member.key.public_key) for node in world.nodes)


def test_the_same_seed_gives_the_same_history() -> None:
    def history(seed: int) -> list[bytes]:
        world = swarm(3, seed=seed)
        world.run(6)
        return world.nodes[0].finals

    assert history(5) == history(5)
