"""What the tests with real processes share: a failed one shows what the nodes were doing."""

from collections.abc import Iterator

import live_swarm
import pytest
from troubled_swarm import shared, swarm  # noqa: F401 - fixtures.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the states and the logs of all living swarms to the report of a failure."""
    report = yield
    if report.failed:
        report.sections += [("live swarm", swarm.story()) for swarm in live_swarm.running]
    return report
