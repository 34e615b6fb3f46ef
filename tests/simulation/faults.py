"""What goes wrong in a simulated swarm, as data: a plan is a list of faults, drawn from one seed.

Times are milliseconds since the genesis. Every fault has a begin and an end; at the end of the plan's
chaos everything is healed, and what is left must recover.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from simulation import strangers
from simulation.node import SimulatedNode, key_of
from simulation.world import WINDOW_MS, Network, World

from fullrank_protocol.membership import (
    ALL_ROLES,
    ROLE_CONTRIBUTE,
    grant_id,
    make_admission,
    make_grant,
    make_leave,
    make_retirement,
    make_revocation,
)

STALL_SLOTS = 6
"""Short enough that partitions end in stalls, where those who left or were excluded count no more."""

MANY = 20
"""Plans of as many founders are shorter."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that begins and ends.

    Attributes:
        kind: A key of `KINDS`.
        node: Number of the node that it befalls, or whose key a stranger has; -1 for the network.
        number: How much of it: milliseconds of skew or delay, writes until death, loss in percent.
        nodes: Group numbers of a partition, blocked (from, to) pairs flattened, or those who vanish.
    """

    kind: str
    begin_ms: int
    end_ms: int
    node: int = -1
    number: int = 0
    nodes: tuple[int, ...] = ()

    def __str__(self) -> str:
        begin, end = self.begin_ms / WINDOW_MS, self.end_ms / WINDOW_MS
        parts = [f"slot {begin:.2f} to {end:.2f}: {self.kind}"]
        if self.node >= 0:
            parts.append(f"node {self.node}")
        if self.number:
            parts.append(str(self.number))
        if self.nodes:
            parts.append(str(list(self.nodes)))
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about one run but the machine itself.

    Attributes:
        size: Founders, all of them certifiers.
        hostile: Which of them are hostile.
        chaos_slots: Slots with faults; everything heals at their end.
        calm_slots: The most slots after it.
        rounds: The run ends when there are as many, and the swarm has recovered, or after the calm slots.
    """

    seed: int
    size: int
    faults: tuple[Fault, ...]
    hostile: tuple[int, ...] = ()
    chaos_slots: int = 12
    calm_slots: int = 14
    rounds: int = 10


def has_hostile(seed: int) -> bool:
    """Whether tests and reports draw hostile certifiers for this seed: for all but every eighth.

    Swarms of up to three founders bear none, so that about half of all seeds of a report have some.
    """
    return seed % 8 != 0


def draw_plan(seed: int, size: int, *, hostile: bool = False) -> Plan:
    """A plan from a seed: nothing else decides about it, so that whoever knows these three can replay it."""
    chaos_slots = 12 if size < MANY else 8
    rng = random.Random(f"plan {seed} {size}")
    bad = (size - 1) // 3
    enemies = tuple(sorted(rng.sample(range(1, size), rng.randint(1, bad)))) if hostile and bad else ()
    faults: list[Fault] = []
    end = chaos_slots * WINDOW_MS

    def span(longest_slots: float) -> tuple[int, int]:
        begin = rng.randint(0, end - WINDOW_MS)
        return begin, min(begin + rng.randint(500, int(longest_slots * WINDOW_MS)), end)

    for _ in range(rng.randint(2, 6 + size)):
        node = rng.randrange(size)
        kind = rng.choice(
            ["kill", "kill", "torn", "pause", "sleep", "skew", "full", "loss", "slow", "partition", "oneway"]
        )
        begin, until = span({"partition": 6, "kill": 6, "sleep": 12}.get(kind, 3))
        if kind in ("kill", "torn"):
            faults.append(Fault(kind, begin, until, node, number=rng.choice([0, 0, rng.randint(1, 30)])))
        elif kind in ("pause", "sleep", "full"):
            faults.append(Fault(kind, begin, until, node))
        elif kind == "skew":
            faults.append(Fault(kind, begin, until, node, number=rng.randint(-8_000, 8_000)))
        elif kind == "loss":
            faults.append(Fault(kind, begin, until, number=rng.randint(5, 60)))
        elif kind == "slow":
            faults.append(Fault(kind, begin, until, number=rng.randint(500, 15_000)))
        elif kind == "partition" and size > 1:
            groups = tuple(rng.randint(1, rng.choice([2, 2, 3])) for _ in range(size))
            faults.append(Fault(kind, begin, until, nodes=groups))
        elif kind == "oneway" and size > 1:
            pairs = [rng.sample(range(size), 2) for _ in range(rng.randint(1, size))]
            faults.append(Fault(kind, begin, until, nodes=tuple(n for pair in pairs for n in pair)))
    if bad > len(enemies) and rng.random() < 0.15:
        begin, until = span(3)
        node = rng.choice([n for n in range(1, size) if n not in enemies])
        faults.append(Fault("skew", begin, until, node, number=rng.choice([-3_600_000, 3_600_000, 600_000])))
    loses_an_hour = any(fault.kind == "skew" and abs(fault.number) > 10_000 for fault in faults)
    if rng.random() < 0.5:  # Who voted an hour ahead abstains for it: with another one gone, a third is out.
        may_shrink = size > 3 and not loses_an_hour
        faults.extend(_draw_churn(rng, size=size, end=end, enemies=enemies, may_shrink=may_shrink))
    faults.extend(_draw_strangers(random.Random(f"strangers {seed} {size}"), size=size, end=end))
    faults.sort(key=lambda fault: (fault.begin_ms, fault.kind, fault.node))
    return Plan(seed=seed, size=size, faults=tuple(faults), hostile=enemies, chaos_slots=chaos_slots)


def _draw_churn(rng: random.Random, *, size: int, end: int, enemies: tuple[int, ...], may_shrink: bool) -> list[Fault]:
    found, num_leaving = [], 0
    for joiner in range(rng.randint(1, 3)):
        begin = rng.randint(0, end - 2 * WINDOW_MS)
        kind = rng.choice(["join", "join", "join certifier", "join certifier", "join late"])
        found.append(Fault(kind, begin, end, size + joiner))
        after = rng.randint(begin + WINDOW_MS, end)
        if rng.random() < 0.3:
            found.append(Fault(rng.choice(["leave", "revoke", "step down"]), after, end, size + joiner))
            num_leaving += 1
    most = max_removed(size, num_hostile=len(enemies)) - num_leaving
    if may_shrink and most > 0 and rng.random() < 0.7:
        begin = rng.randint(0, end - WINDOW_MS)
        honest = [number for number in range(1, size) if number not in enemies]
        kind = rng.choice(["leave", "step down", "revoke", "retire", "retire", "retire"])
        if kind == "retire":
            begin = rng.randint(0, WINDOW_MS)
            gone = tuple(sorted(rng.sample(honest, rng.randint((most + 1) // 2, most))))
            found.append(Fault(kind, begin, rng.randint(begin + (STALL_SLOTS + 1) * WINDOW_MS, end), nodes=gone))
        else:
            found.append(Fault(kind, begin, end, rng.choice(honest)))
    return found


def _draw_strangers(rng: random.Random, *, size: int, end: int) -> list[Fault]:
    """For half of all plans, two kinds of strangers, with numbers beyond those of founders and of those who join.

    None for large swarms, whose runs are short and dear: what an invite allows does not depend on their size.
    """
    if size >= MANY:
        return []
    found = []
    for number, kind in enumerate(rng.sample(strangers.KINDS, 2 if rng.random() < 0.5 else 0), size + 3):
        begin = rng.randint(0, end - 5 * WINDOW_MS)
        found.append(Fault(kind, begin, begin + rng.randint(WINDOW_MS, 5 * WINDOW_MS), number))
    return found


def max_removed(size: int, *, num_hostile: int) -> int:
    """How many honest certifiers may go together while two chains, one without and one with them, cannot both be final.

    Of n certifiers r are retired, though they live. More than two thirds of n - r voted on one chain, and more than
    two thirds of n on the other, at most r of them retired: of the n - r, more than (n - 2r) / 3 voted on both. The
    hostile ones are not more than that.
    """
    return max((size - 3 * num_hostile) // 2, 0)


def arrange(world: World, plan: Plan) -> None:
    """Put a plan's faults on the world's clock, and the healing at the end."""
    for fault in plan.faults:
        begin, end = KINDS[fault.kind]
        world.at(fault.begin_ms, lambda fault=fault, begin=begin: _tell(world, fault, begin))  # type: ignore[misc]
        if end is not None:
            world.at(fault.end_ms, lambda fault=fault, end=end: end(world, fault))  # type: ignore[misc]
    world.at(plan.chaos_slots * WINDOW_MS, lambda: heal(world))


def heal(world: World) -> None:
    """Everything works again."""
    world.note("everything heals")
    world.heal()
    for node in world.nodes:
        node.skew_ms = 0
        node.paused_until_ms = 0
        node.disk_full = False
        node.kill_after_writes = None
        if not node.is_up:
            node.start()


def _tell(world: World, fault: Fault, begin: Callable[[World, Fault], None]) -> None:
    world.note(str(fault))
    begin(world, fault)


def _node(world: World, fault: Fault) -> SimulatedNode | None:
    return next((node for node in world.nodes if node.number == fault.node), None)


def _kill(world: World, fault: Fault) -> None:
    node = _node(world, fault)
    if node is None or not node.is_up:
        return
    node.torn = fault.kind == "torn"
    if fault.number:
        node.kill_after_writes = fault.number
    else:
        node.kill()


def _restart(world: World, fault: Fault) -> None:
    node = _node(world, fault)
    if node is None:
        return
    node.kill_after_writes = None
    node.disk_full = False
    if not node.is_up:
        node.start()


def _pause(world: World, fault: Fault) -> None:
    if (node := _node(world, fault)) is not None:
        node.paused_until_ms = world.genesis.created_at_ms + fault.end_ms


def _fill_disk(world: World, fault: Fault) -> None:
    if (node := _node(world, fault)) is not None:
        node.disk_full = True


def _skew(world: World, fault: Fault) -> None:
    if (node := _node(world, fault)) is not None:
        node.skew_ms = fault.number


def _unskew(world: World, fault: Fault) -> None:
    if (node := _node(world, fault)) is not None:
        node.skew_ms = 0


def _lose(world: World, fault: Fault) -> None:
    world.network.loss = fault.number / 100
    world.network.duplicates = fault.number / 200


def _find(world: World, _fault: Fault) -> None:
    world.network.loss = world.network.duplicates = 0.0


def _slow(world: World, fault: Fault) -> None:
    world.network.max_delay_ms = fault.number
    world.transfer_ms = fault.number // 2


def _fast(world: World, _fault: Fault) -> None:
    world.network.max_delay_ms = Network().max_delay_ms
    world.transfer_ms = 0


def _partition(world: World, fault: Fault) -> None:
    groups = dict(enumerate(fault.nodes))
    world.split({node.number: groups.get(node.number, 1 + node.number % max(fault.nodes)) for node in world.nodes})


def _unite(world: World, _fault: Fault) -> None:
    world.unite()


def _block(world: World, fault: Fault) -> None:
    world.network.blocked = set(zip(fault.nodes[::2], fault.nodes[1::2], strict=True))


def _unblock(world: World, _fault: Fault) -> None:
    world.network.blocked = set()


def _join(world: World, fault: Fault) -> None:
    """The root invites, and a new node comes with the secret."""
    root = world.nodes[0]
    invite = key_of(10_000 + fault.node)
    roles = ALL_ROLES if fault.kind == "join certifier" else ROLE_CONTRIBUTE
    until = fault.begin_ms + (WINDOW_MS if fault.kind == "join late" else 1_000 * WINDOW_MS)
    grant = make_grant(
        root.key,
        swarm=world.genesis.swarm,
        invite_key=invite.public_key,
        roles=roles,
        count=1,
        not_after_ms=world.genesis.created_at_ms + until,
    )
    if root.is_up:
        root.receive(grant)
    if any(node.number == fault.node for node in world.nodes):
        return
    node = world.add(fault.node, certifies=roles == ALL_ROLES)
    if world.network.groups:
        world.network.groups[fault.node] = world.random.choice(list(world.network.groups.values()))
    node.receive(
        make_admission(
            node.key,
            swarm=world.genesis.swarm,
            invite_seed=invite.seed,
            grant_id=grant_id(grant),
            roles=roles,
            name=f"node {fault.node}",
        )
    )


def _leave(world: World, fault: Fault) -> None:
    node = _node(world, fault)
    if node is not None and node.is_up:
        node.certifies = node.state.wants_certify = False
        only = fault.kind == "step down"
        node.receive(
            make_leave(node.key, swarm=world.genesis.swarm, issued_at_ms=node.now_ms(), certifier_role_only=only)
        )


def _vanish(world: World, fault: Fault) -> None:
    for node in world.nodes:
        if node.number in fault.nodes:
            node.kill()


def _retire(world: World, fault: Fault) -> None:
    """The root gives up those who have vanished; they come back when everything heals."""
    root = world.nodes[0]
    for node in world.nodes:
        if node.number in fault.nodes and root.is_up:
            root.receive(
                make_retirement(
                    root.key, swarm=world.genesis.swarm, certifier=node.key.public_key, issued_at_ms=root.now_ms()
                )
            )


def _revoke(world: World, fault: Fault) -> None:
    node, root = _node(world, fault), world.nodes[0]
    if node is not None and root.is_up:
        root.receive(
            make_revocation(
                root.key, swarm=world.genesis.swarm, subject=node.key.public_key, issued_at_ms=root.now_ms()
            )
        )


KINDS: dict[str, tuple[Callable[[World, Fault], None], Callable[[World, Fault], None] | None]] = {
    "kill": (_kill, _restart),
    "torn": (_kill, _restart),
    "pause": (_pause, None),
    "sleep": (_pause, None),
    "full": (_fill_disk, _restart),
    "skew": (_skew, _unskew),
    "loss": (_lose, _find),
    "slow": (_slow, _fast),
    "partition": (_partition, _unite),
    "oneway": (_block, _unblock),
    "join": (_join, None),
    "join certifier": (_join, None),
    "join late": (_join, None),
    "leave": (_leave, None),
    "step down": (_leave, None),
    "revoke": (_revoke, None),
    "retire": (_vanish, _retire),
    **dict.fromkeys(strangers.KINDS, (strangers.invite, strangers.come)),
}
