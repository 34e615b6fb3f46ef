"""First code of every child process: ties it to its parent, lowers its priority, then runs its module.

The module is imported only now, so that a daemon killed while torch is being imported leaves nobody behind.
"""

import io
import os
import runpy
import sys

from fullrank_node.child_side import open_pipes


def main() -> None:
    """Runs `python -m fullrank_node.child_main MODULE CALLS_FD ANSWERS_FD PARENT_PID NICE`."""
    module, calls_fd, answers_fd, parent_pid, nice = sys.argv[1:]
    os.nice(int(nice))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # Into a pipe, lines would wait, and be lost where it is killed.
    open_pipes(calls_fd=int(calls_fd), answers_fd=int(answers_fd), parent_pid=int(parent_pid))
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
