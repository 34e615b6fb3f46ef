"""What the owner of a node sees and may ask, without a daemon: the same view that it gives to the control service.

`Owner` stands for the node of one of the people in a `chains.Story`, on a round machine that a test feeds by hand,
at the time that the machine's clock shows. `view_of` is the view of a node of `loop_swarm`.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from chains import Story, key
from machines import Machine, Thing
from swarms import key_of

from fullrank_node.api import control_pb2 as wire
from fullrank_node.network.interface import PeerInfo
from fullrank_node.network.limits import Traffic
from fullrank_node.node_view import DaemonView
from fullrank_node.runner import Runner
from fullrank_protocol import round_io as io
from fullrank_protocol.envelope import Envelope


class Owner(DaemonView):
    """The view of one node; `tale` is what the others do, `connected` whom it reaches."""

    def __init__(
        self, tale: Story, name: str = "ada", *, connected: Sequence[str] = (), certifies: bool = True
    ) -> None:
        self.machine = Machine(tale, name)
        self.sent: list[Envelope] = []
        self.peers_now = [PeerInfo(key=key(other)) for other in connected]
        runner = SimpleNamespace(
            key=key_of(name),
            genesis=tale.swarm.genesis,
            state=self.machine.state,
            clock=SimpleNamespace(now_ms=lambda: self.machine.now_ms),
            network=SimpleNamespace(peers=lambda: self.peers_now),
            exchange=SimpleNamespace(head_slots={}, archives={}),
            store=SimpleNamespace(contributions=lambda *_, **__: [], rounds=lambda _: [], get_meta=lambda _: None),
            warnings={},
            is_training=False,
            submit=self._submit,
            adopt_choice=lambda checkpoint: self.feed(io.ChoiceAdopted(checkpoint=checkpoint)),
        )
        self.runner: Any = runner
        super().__init__(cast(Any, _node(runner)))

    def _submit(self, envelope: Envelope) -> None:
        self.sent.append(envelope)
        self.feed(io.ObjectReceived(envelope=envelope))

    def feed(self, event: io.Event) -> list[io.Action]:
        """Hand the machine an event, and tell what comes of it as a runner does."""
        return self._told(self.machine.feed(event))

    def receive(self, *things: Thing) -> list[io.Action]:
        """Objects that neighbours send."""
        return self._told(self.machine.receive(*things))

    def at(self, slot: int, after_ms: int = 0) -> list[io.Action]:
        """Set the clock."""
        return self._told(self.machine.at(slot, after_ms))

    def _told(self, actions: list[io.Action]) -> list[io.Action]:
        for action in actions:
            if isinstance(action, io.Alarm | io.Settled):
                Runner.tell_of_conflict(self.runner, action)
        return actions

    async def status_now(self) -> wire.StatusReply:
        """What `status` would show."""
        return await self.status(wire.StatusRequest())


def view_of(runner: Runner) -> DaemonView:
    """What the owner of a real runner sees."""
    return DaemonView(cast(Any, _node(runner)))


def _node(runner: Any) -> SimpleNamespace:
    """The parts of a node that its status looks at."""
    network = SimpleNamespace(
        peers=runner.network.peers,
        connection_errors=dict,
        addresses=list,
        traffic=Traffic,
        process_id=0,
    )
    trainer = SimpleNamespace(
        now=SimpleNamespace(
            **dict.fromkeys(("busy_ms", "step", "of", "deadline_ms", "num_tokens", "tokens_per_second"), 0),
            **dict.fromkeys(("started_at_ms", "loss_first", "loss_last")),
        ),
        device_name="cpu",
        device_memory_bytes=0,
        threads=1,
        pid=0,
        data_summary={},
    )
    limits = SimpleNamespace(disk_gb=None)
    config = SimpleNamespace(
        node=SimpleNamespace(name=""),
        network=SimpleNamespace(no_listen=False),
        data=SimpleNamespace(path=None),
        train=SimpleNamespace(enabled=True),
        limits=limits,
        archive=False,
    )
    return SimpleNamespace(
        runner=runner,
        genesis=runner.genesis,
        clock=runner.clock,
        key=runner.key,
        network=network,
        config=config,
        trainer=trainer,
        worker=SimpleNamespace(pid=0),
        store=SimpleNamespace(blobs=SimpleNamespace(total_bytes=lambda: 0)),
        home=SimpleNamespace(path=Path("/")),
        stop=SimpleNamespace(is_set=lambda: False),
        started_at_ms=runner.clock.now_ms(),
        trouble=None,
        finishing=False,
        pause_reason=None,
        phase="running",
    )
