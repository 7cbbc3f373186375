"""Turns that the visitors of a server take at a thing that serves one of them at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

LOOK = 0.1  # seconds after which one that waits looks whether it still wants its turn


class Turns:
    """One turn at a time, in the order in which it was asked for. Who has it may let the others go first in between."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()  # the first has the turn

    def take(self, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Wait for the turn; return False, without it, as soon as it is not `wanted` any more."""
        mine = object()
        with self._changed:
            self._line.append(mine)
            while not self._changed.wait_for(lambda: self._line[0] is mine, LOOK):
                if not wanted():
                    self._line.remove(mine)
                    return False
        return True

    def pass_on(self) -> None:
        """End the turn."""
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()

    def let_others(self) -> None:
        """If others wait, let all of them have a turn first."""
        with self._changed:
            alone = len(self._line) == 1
        if not alone:
            self.pass_on()
            self.take()
