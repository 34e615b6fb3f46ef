"""A child answers, reports, fails and dies in ways its parent can tell apart, and never outlives it."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from fullrank_node.child import ChildDiedError, ChildFailedError, ChildProcess
from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.errors import IgnoreError, RejectError, Rule

CHILD = """
import os, signal, subprocess, sys, time
print("printed while importing")
from fullrank_node.child import serve
from fullrank_node.errors import ExitCode, NodeError
from fullrank_protocol.errors import IgnoreError, RejectError, Rule

def echo(params, progress):
    return params

def about(params, progress):
    return {"pid": os.getpid(), "session": os.getsid(0), "nice": os.nice(0), "torch": "torch" in sys.modules,
            "threads": os.environ.get("OMP_NUM_THREADS"), "argv": sys.argv}

def count(params, progress):
    for step in range(params["of"]):
        print("step", step)
        progress(step=step + 1, of=params["of"])
    return {"steps": params["of"]}

def die(params, progress):
    print("no memory left")
    os.kill(os.getpid(), signal.SIGKILL)

def wait(params, progress):
    progress(pid=os.getpid())
    time.sleep(600)

def work_slowly(params, progress):
    progress(started=True)
    while not os.path.exists(params["until"]):
        time.sleep(0.01)
    return {"done": True}

def with_helper(params, progress):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    progress(pid=helper.pid)
    time.sleep(600)

def reject(params, progress):
    raise RejectError(Rule.RANK, "found rank 65, required 64 at most")

def ignore(params, progress):
    raise IgnoreError("known already")

def refuse(params, progress):
    raise NodeError("no space", hint="free some", exit_code=ExitCode.DISK)

def crash(params, progress):
    return {"value": 1 // 0}

if __name__ == "__main__":
    serve({name: value for name, value in globals().items() if callable(value)})
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "child_for_tests.py").write_text(CHILD)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


@pytest.fixture
async def child(environment: dict[str, str]) -> AsyncIterator[ChildProcess]:
    async with ChildProcess("child_for_tests", environment=environment, nice=3) as child:
        yield child


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pid: int) -> None:
    """Returns once the process is dead; the test's own timeout is the limit."""
    while is_alive(pid):  # noqa: ASYNC110 - the end of a process that is not ours raises no event
        await asyncio.sleep(0.005)


async def test_a_call_is_answered(child: ChildProcess) -> None:
    assert child.pid is None
    assert await child.call("echo", {"text": "ü", "number": 1.5}) == {"text": "ü", "number": 1.5}
    assert child.pid is not None


async def test_the_child_has_its_own_session_priority_and_environment(child: ChildProcess) -> None:
    about = await child.call("about", {})
    assert about["pid"] == about["session"] == child.pid
    assert about["nice"] == os.nice(0) + 3
    assert about["threads"] == "1"
    assert len(about["argv"]) == 1
    assert not about["torch"]


async def test_an_answer_may_be_large(child: ChildProcess) -> None:
    text = "x" * (3 << 20)
    assert await child.call("echo", {"text": text}) == {"text": text}


async def test_progress_arrives_in_order_before_the_answer(child: ChildProcess) -> None:
    steps: list[int] = []
    answer = await child.call("count", {"of": 5}, on_progress=lambda fields: steps.append(fields["step"]))
    assert steps == [1, 2, 3, 4, 5]
    assert answer == {"steps": 5}


async def test_concurrent_calls_get_their_own_answers(child: ChildProcess) -> None:
    answers = await asyncio.gather(*(child.call("echo", {"number": number}) for number in range(20)))
    assert [answer["number"] for answer in answers] == list(range(20))


async def test_errors_keep_their_kind(child: ChildProcess) -> None:
    with pytest.raises(RejectError, match="found rank 65") as rejected:
        await child.call("reject", {})
    assert rejected.value.rule == Rule.RANK
    with pytest.raises(IgnoreError, match="known already"):
        await child.call("ignore", {})
    with pytest.raises(NodeError, match="no space") as refused:
        await child.call("refuse", {})
    assert (refused.value.hint, refused.value.exit_code) == ("free some", ExitCode.DISK)
    with pytest.raises(ChildFailedError, match="ZeroDivisionError"):
        await child.call("crash", {})
    with pytest.raises(ChildFailedError, match="KeyError"):
        await child.call("no such method", {})
    assert await child.call("echo", {}) == {}


async def test_what_the_child_prints_is_logged(environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with ChildProcess("child_for_tests", environment=environment) as child:
        await child.call("count", {"of": 2})
    assert [record.message for record in caplog.records] == ["printed while importing", "step 0", "step 1"]


async def test_a_death_fails_the_call_with_its_last_words_and_the_next_call_starts_anew(child: ChildProcess) -> None:
    with pytest.raises(ChildDiedError, match="killed by signal 9; its last words: no memory left") as caught:
        await child.call("die", {})
    assert caught.value.returncode == -signal.SIGKILL
    assert await child.call("echo", {"again": True}) == {"again": True}


async def test_killing_from_outside_fails_the_call_in_flight(child: ChildProcess) -> None:
    started = asyncio.Event()
    call = asyncio.create_task(child.call("wait", {}, on_progress=lambda _: started.set()))
    await started.wait()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGTERM)
    with pytest.raises(ChildDiedError, match="signal 15"):
        await call
    assert child.pid is None


async def test_a_module_that_cannot_be_imported_says_so() -> None:
    async with ChildProcess("fullrank_node.no_such_module") as child:
        with pytest.raises(ChildDiedError, match="No module named"):
            await child.call("echo", {})


async def test_a_call_that_takes_too_long_costs_the_child_its_life(child: ChildProcess) -> None:
    await child.start()
    pid = child.pid
    assert pid is not None
    with pytest.raises(TimeoutError):
        await child.call("wait", {}, timeout_s=0.05)
    await gone(pid)
    assert await child.call("echo", {}) == {}


async def test_cancelling_kills_only_when_asked_to(child: ChildProcess, tmp_path: Path) -> None:
    started = asyncio.Event()
    params = {"until": str(tmp_path / "now")}
    slow = asyncio.create_task(child.call("work_slowly", params, on_progress=lambda _: started.set()))
    await started.wait()
    pid = child.pid
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    (tmp_path / "now").touch()
    assert await child.call("echo", {"next": 1}) == {"next": 1}
    assert child.pid == pid

    started.clear()
    slow = asyncio.create_task(child.call("wait", {}, on_progress=lambda _: started.set(), kill_on_cancel=True))
    await started.wait()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert pid is not None
    await gone(pid)


async def test_killing_takes_the_childs_own_children_along(child: ChildProcess) -> None:
    pids: asyncio.Queue[int] = asyncio.Queue()
    call = asyncio.create_task(child.call("with_helper", {}, on_progress=lambda fields: pids.put_nowait(fields["pid"])))
    helper = await pids.get()
    await child.kill()
    with pytest.raises(ChildDiedError):
        await call
    await gone(helper)


async def test_an_oversize_call_never_leaves_and_an_oversize_answer_kills_the_child(
    environment: dict[str, str],
) -> None:
    async with ChildProcess("child_for_tests", environment=environment, max_frame_bytes=64) as child:
        with pytest.raises(ValueError, match="at most 64"):
            await child.call("echo", {"text": "x" * 64})
        with pytest.raises(ChildDiedError):
            await child.call("about", {})


async def test_closing_ends_the_child_even_in_mid_work(environment: dict[str, str]) -> None:
    child = ChildProcess("child_for_tests", environment=environment)
    pids: asyncio.Queue[int] = asyncio.Queue()
    call = asyncio.create_task(child.call("wait", {}, on_progress=lambda fields: pids.put_nowait(fields["pid"])))
    pid = await pids.get()
    await child.close()
    assert not psutil.pid_exists(pid)
    with pytest.raises(ChildDiedError):
        await call


PARENT = """
import asyncio, os, signal, sys
from fullrank_node.child import ChildProcess

async def main():
    child = ChildProcess("child_for_tests")
    def report(fields):
        print(fields["pid"], flush=True)
    await child.call("wait", {}, on_progress=report)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_child_dies_with_its_parent_however_that_dies(
    environment: dict[str, str], number: signal.Signals
) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    parent.send_signal(number)
    await parent.wait()
    await gone(pid)


def test_a_child_module_run_by_hand_says_what_it_is(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "child_for_tests"], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "child process of the daemon" in done.stderr


def test_frames_are_a_little_endian_length_and_json() -> None:
    from fullrank_node.child_side import LENGTH

    data = json.dumps({"id": 1}).encode()
    assert (LENGTH.pack(len(data)) + data).hex() == "09000000" + b'{"id": 1}'.hex()
