"""Measurements that Ctrl-C can end early; what is finished is kept."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdlab.arguments import claim
from sdlab.headless import interruptible

if TYPE_CHECKING:
    from sdlab.experiments.objects import Runner


def measured(args: argparse.Namespace, runner: Runner, measure: Callable[[], Any]) -> int:
    """Prepare and measure. Return the exit code: 130 if Ctrl-C ended the measurement early; results so far are kept."""
    claim(args.out)
    runner.prepare()
    with interruptible(runner.stop.set) as interrupted:
        measure()
    return 130 if interrupted() else 0


def stoppable(measure: Callable[[Callable[[], bool]], Any]) -> int:
    """Measure, passing a function that tells whether to stop. Return the exit code: 130 after Ctrl-C or SIGTERM, which
    keep what is finished."""
    stop = threading.Event()
    with interruptible(stop.set) as interrupted:
        measure(stop.is_set)
    return 130 if interrupted() else 0
