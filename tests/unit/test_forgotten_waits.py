"""What a search in the DHT leaves behind when its time is over is no error in the log; anything else is."""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fullrank_node.network.dht import forgive_forgotten_waits


async def wait_for_ever(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize("handled", [True, False])
def test_a_forgotten_wait_for_an_event_is_no_error(caplog: pytest.LogCaptureFixture, handled: bool) -> None:
    assert errors_of_forgetting(asyncio.Event.wait, caplog, handled=handled) == (0 if handled else 1)


def test_any_other_forgotten_task_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert errors_of_forgetting(wait_for_ever, caplog, handled=True) == 1


def errors_of_forgetting(
    coroutine_of: Callable[[asyncio.Event], Coroutine[Any, Any, object]],
    caplog: pytest.LogCaptureFixture,
    *,
    handled: bool,
) -> int:
    async def forget() -> None:
        if handled:
            forgive_forgotten_waits(asyncio.get_running_loop())
        task = asyncio.create_task(coroutine_of(asyncio.Event()))
        await asyncio.sleep(0)  # It begins to wait; then only the event knows the task, and only the task the event.
        del task
        gc.collect()

    asyncio.run(forget())
    assert all("destroyed but it is pending" in record.message for record in caplog.records)
    return sum(record.levelno == logging.ERROR for record in caplog.records)
