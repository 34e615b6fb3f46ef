"""The worker process: decodes, weighs and applies deltas outside the daemon's loop. It imports numpy and no torch.

Run by `child.ChildProcess("fullrank_node.worker")`; what it answers is written in `recompute`.
"""

import os

from fullrank_node.child_side import serve

ONE_BLAS_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Modules are spread over threads by `MasterStore.apply`; threads inside each product would fight over the cores."""


def main() -> None:
    """Answers the daemon until it is gone."""
    os.environ.update(ONE_BLAS_THREAD)
    from fullrank_node.recompute import Recompute  # numpy reads the environment when it is imported

    serve(Recompute().handlers())


if __name__ == "__main__":
    main()
