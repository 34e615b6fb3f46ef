"""How the demo waits: with a bound, side by side, and never leaving behind what was begun."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fullrank_node.child import ChildDiedError, ChildFailedError, ChildProcess
from fullrank_node.errors import ExitCode, NodeError

T = TypeVar("T")


@contextlib.asynccontextmanager
async def bounded(seconds: float, what: str) -> AsyncIterator[None]:
    """A block that must end in time.

    Raises:
        NodeError: It has not.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise NodeError(
            f"{what} has taken more than {seconds:.0f} s",
            hint="This machine seems short of processors or memory; try again with --nodes 2.",
            exit_code=ExitCode.RETRY,
        ) from error


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Run coroutines side by side; the first failure ends the others and is raised as it is."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
    finally:
        await cancelled(*tasks)


async def to_the_end(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in a thread; also when cancelled, return only when the thread has let go of its files."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def cancelled(*tasks: "asyncio.Task[Any]") -> None:
    """End tasks that still run, and wait until they have taken their things down."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def call(child: ChildProcess, method: str, params: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Call a child process of the demo; a cancelled call kills it.

    Raises:
        NodeError: It failed, died or did not answer in time.
    """
    try:
        return await child.call(method, params, timeout_s=timeout_s, kill_on_cancel=True)
    except (ChildDiedError, ChildFailedError, TimeoutError) as error:
        raise NodeError(f"the demo's own {method} failed: {error or 'no answer in time'}") from error
