"""Newcomers in virtual time: by snapshot or by replay, with losses, kills and lies, they reach the swarm's head."""

import pytest
from simulation.node import SimulatedNode, key_of
from simulation.world import World, make_genesis

from fullrank_protocol import round_io
from fullrank_protocol.blob import BlobRef
from fullrank_protocol.errors import Rule
from fullrank_protocol.snapshot import make_snapshot

SNAPSHOT_BYTES = 1_500
"""As much as fifteen deltas of the simulation."""

TRUE, FALSE = b"t" * 32, b"f" * 32


class Newcomer(SimulatedNode):
    """Knows how to take a snapshot, and may die in the middle of it.

    Attributes:
        num_sought: Snapshots that it went for.
        dies: How often it is killed while it fetches one.
    """

    num_sought = 0
    dies = 0

    def _carry_out(self, action: round_io.Action) -> None:
        if isinstance(action, round_io.FetchSnapshot):
            self.num_sought += 1
            self.later(2_000, lambda: self._take(action))
        else:
            super()._carry_out(action)

    def _take(self, action: round_io.FetchSnapshot) -> None:
        if self.dies:
            self.dies -= 1
            self.kill()
            self.start()
        elif action.snapshot.blob.id == TRUE:
            self.feed(round_io.SnapshotApplied(checkpoint=action.snapshot.checkpoint))
        else:
            refused = round_io.SnapshotRefused(snapshot_id=action.snapshot.id, rule=Rule.DIGEST, detail="is another")
            self.feed(refused)


def past(seed: int) -> World:
    """A swarm of four that has lived for a while."""
    world = World(make_genesis(founders=4), seed=seed)
    for number in range(4):
        world.add(number)
    world.run(14)
    return world


def publish(world: World, number: int, blob: bytes) -> int:
    """A member's snapshot of what is final in its view; the slot."""
    node = world.nodes[number]
    final = node.state.tree.final
    ref = BlobRef(id=blob, num_bytes=SNAPSHOT_BYTES)
    node.receive(
        make_snapshot(key_of(number), swarm=world.genesis.swarm, checkpoint=final.checkpoint, slot=final.slot, blob=ref)
    )
    world.run(1)
    return final.slot


def forget_deltas(world: World, *, upto_slot: int) -> None:
    """Everybody removes the deltas that a snapshot makes unnecessary."""
    tree = world.nodes[0].state.tree
    for node in tree.chain(tree.head().id):
        if node.checkpoint is not None and node.state.slot <= upto_slot:
            for accepted in node.checkpoint.accepted:
                for each in world.nodes:
                    each.disk.blobs.discard(accepted.contribution.blob.id)


def newcomer(world: World) -> Newcomer:
    node = world.add(9, certifies=False, trains=False, kind=Newcomer)
    assert isinstance(node, Newcomer)
    return node


def has_arrived(world: World, node: SimulatedNode) -> bool:
    others = world.nodes[0].state.tree
    return node.state.tree.head().slot >= others.final.slot and node.state.tree.final.checkpoint in others.nodes


@pytest.fixture(params=range(6))
def world(request: pytest.FixtureRequest) -> World:
    return past(request.param)


def test_a_newcomer_arrives_where_old_deltas_are_gone_for_ever(world: World) -> None:
    slot = publish(world, 1, TRUE)
    forget_deltas(world, upto_slot=slot)
    world.network.loss = 0.1
    node = newcomer(world)
    world.run(5)
    assert node.num_sought == 1
    assert has_arrived(world, node)
    assert node.state.arrival.believed is not None


def test_a_newcomer_that_is_killed_on_the_way_arrives_all_the_same(world: World) -> None:
    slot = publish(world, 1, TRUE)
    forget_deltas(world, upto_slot=slot)
    node = newcomer(world)
    node.dies = 2
    world.run(6)
    assert node.num_sought == 3
    node.kill()
    node.start()
    assert has_arrived(world, node)


def test_a_lie_costs_a_newcomer_nothing_but_time(world: World) -> None:
    publish(world, 2, FALSE)
    node = newcomer(world)
    world.run(5)
    assert node.num_sought == 1
    assert has_arrived(world, node)
    assert node.state.arrival.believed is None
    assert key_of(2).public_key in node.state.arrival.distrusted


def test_after_a_lie_an_honest_snapshot_is_taken(world: World) -> None:
    slot = publish(world, 1, TRUE)
    world.run(2)
    publish(world, 2, FALSE)
    forget_deltas(world, upto_slot=slot)
    node = newcomer(world)
    world.run(6)
    assert node.num_sought == 2
    assert has_arrived(world, node)
