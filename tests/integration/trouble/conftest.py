"""The swarm that the tests of this folder share; who was killed or stopped in one is started again for the next."""

from collections.abc import Iterator

import pytest
from troubled_swarm import Swarm, four_certifiers, nothing_final_is_lost


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with four_certifiers(tmp_path_factory.mktemp("swarm")) as swarm:
        yield swarm


@pytest.fixture
def swarm(shared: Swarm) -> Iterator[Swarm]:
    """The swarm with all four at work, whatever an earlier test broke off."""
    shared.make_whole(*shared.nodes)
    with nothing_final_is_lost(shared):
        yield shared


@pytest.fixture
def bereft(shared: Swarm) -> Iterator[Swarm]:
    """The swarm without its founder."""
    shared.make_whole(shared.bob, shared.cyd, shared.dan)
    shared.ada.end()
    with nothing_final_is_lost(shared):
        yield shared
