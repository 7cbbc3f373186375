"""What waits for the thread that owns a run: commands, and questions that are answered with a future."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sdlab.live.messages import Command

T = TypeVar("T")


class Inbox:
    """Commands, and calls that the owner makes between two steps, in the order in which they came. Any thread may put
    them in; the owner takes them out while the inbox is open."""

    def __init__(self) -> None:
        self.closed = False
        self._queue: queue.SimpleQueue[Command | Callable[[], None]] = queue.SimpleQueue()

    def put(self, asked: Command | Callable[[], None]) -> None:
        """Add a command or a call; never blocks."""
        self._queue.put(asked)

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Have the owner answer between two steps; if the inbox is closed, answer now."""
        answer: Future[T] = Future()
        self.put(lambda: _resolve(answer, question))
        if self.closed:
            self._answer_rest()
        return answer

    def next(self, wait: bool = False) -> Command | Callable[[], None] | None:
        """Return the next command or call; None if there is none, unless told to `wait` for one."""
        try:
            return self._queue.get() if wait else self._queue.get_nowait()
        except queue.Empty:
            return None

    def empty(self) -> bool:
        """Return whether nothing waits."""
        return self._queue.empty()

    def open(self) -> None:
        """Let questions wait for the owner."""
        self.closed = False

    def close(self) -> None:
        """Answer the questions that wait. Later ones are answered at once, by the thread that asks."""
        self.closed = True
        self._answer_rest()

    def _answer_rest(self) -> None:
        while (asked := self.next()) is not None:
            if callable(asked):
                asked()


def _resolve(answer: Future[T], question: Callable[[], T]) -> None:
    try:
        answer.set_result(question())
    except Exception as e:
        answer.set_exception(e)
