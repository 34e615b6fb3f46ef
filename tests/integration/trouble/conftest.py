"""The swarm that the tests of this folder share; who was killed or stopped in one is started again for the next."""

from troubled_swarm import bereft, shared, swarm  # noqa: F401 - fixtures.
