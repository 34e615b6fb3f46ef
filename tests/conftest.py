"""What holds for every test: its folder is its ring and its mark, and nothing is skipped.

Rings, from fast to slow: unit, property, vectors, simulation, integration, faults. `pytest -m "not integration"`
works because the mark follows from the folder.

One exception: tests marked `privileged` change mounts and networks of their own, and need root and some tools. On a
machine without, they are skipped and say what they miss; where CI is true, that is a failure too.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import namespaces
import pytest

TESTS = Path(__file__).parent

# No deadline: a busy machine is not a wrong answer. No random seed: a failure today fails tomorrow.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with the name of its ring."""
    for item in items:
        if item.path.is_relative_to(TESTS):
            item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot do, before anything is set up for it."""
    if item.get_closest_marker("privileged") and (lacking := namespaces.missing()):
        pytest.skip(f"this needs {lacking}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A skipped test is a failed one: whoever reads "passed" may believe it."""
    report = yield
    may_be_skipped = item.get_closest_marker("privileged") and os.environ.get("CI") != "true"
    if report.skipped and not may_be_skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and tests are not skipped here: {report.longrepr}"
    return report
