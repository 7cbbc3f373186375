"""Our program as a Space on ZeroGPU, for tests: `python zerogpu_space.py PORT`. The lane in bursts has a small prior,
and its steps are taken on the CPU. `spaces` is the real package or a stand-in, whichever Python finds."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import app as program

STEPS = 12  # by which the lane in bursts is told from others


def small(args: Any) -> Any:
    """Return the platform as the program finds it, for bursts of a small run."""
    import torch

    if torch.version.cuda is None:  # the real package cannot be imported where torch has no CUDA at all
        torch.version.cuda = "13.0"
        torch._C._cuda_init = lambda: None  # type: ignore[attr-defined]
        torch.cuda._is_in_bad_fork = bool  # type: ignore[attr-defined]
    zero = found(args)
    from sdlab.live.bursts import Bursts
    from sdlab.ui import visitors

    visitors.GPU_PRESET = "mixture"  # type: ignore[misc]
    visitors.GPU_CHANGES = (("steps", STEPS), ("scene.n_init", 60), ("scene.max_gaussians", 90))  # type: ignore
    zero.bursts = Bursts(zero.call, lambda settings: settings.steps == STEPS)
    if hasattr(zero._spaces, "aoti_compile"):  # the real package: there is no GPU that it could use
        from spaces.zero import torch as theirs

        theirs.init = lambda uuid: None
        theirs.move = lambda callback=None: None
    return zero


os.environ.setdefault("SDLAB_ZEROGPU_DEVICE", "cpu")
found, program.zero_gpu = program.zero_gpu, small
sys.exit(program.main(["--host", "127.0.0.1", "--port", sys.argv[1], "--preset", "mixture", "--no-browser"]))
