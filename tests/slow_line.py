"""A line on which every frame takes its time.

    python tests/slow_line.py NAMESPACE DEVICE NAMESPACE DEVICE MILLISECONDS

Makes a network device at each end and carries every frame from one to the other so much later. For kernels without
netem; what the line can carry is limited elsewhere, by a token bucket. Writes a line once both devices are there, and
runs until it is ended; the devices vanish with it. Needs root.
"""

import asyncio
import ctypes
import fcntl
import os
import struct
import sys
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000

MAX_FRAME_BYTES = 1 << 16

MAX_WAITING = 4096
"""Frames under way in one direction; more are lost, as on any line."""


def open_device(namespace: str, name: str) -> int:
    """A new device inside a network namespace; reading gives the frames sent into it."""
    enter(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def enter(namespace: str) -> None:
    """Move this process into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open("rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")


def carry(source: int, target: int, delay_s: float) -> None:
    """Have every frame that comes out of one device go into the other after its time."""
    loop = asyncio.get_running_loop()
    waiting = 0

    def put(frame: bytes) -> None:
        nonlocal waiting
        waiting -= 1
        try:
            os.write(target, frame)
        except OSError:  # The device is down, or its queue is full: the frame is lost.
            return

    def take() -> None:
        nonlocal waiting
        try:
            frame = os.read(source, MAX_FRAME_BYTES)
        except OSError:
            return
        if waiting < MAX_WAITING:
            waiting += 1
            loop.call_later(delay_s, put, frame)

    loop.add_reader(source, take)


async def main(near: tuple[str, str], far: tuple[str, str], delay_ms: float) -> None:
    """Carry frames both ways, for ever."""
    one, other = open_device(*near), open_device(*far)
    carry(one, other, delay_ms / 1000)
    carry(other, one, delay_ms / 1000)
    sys.stdout.write("both devices are there\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main((sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4]), float(sys.argv[5])))
