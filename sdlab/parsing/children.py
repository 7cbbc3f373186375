"""The child processes in which files are parsed, and the thread that holds them to their limits."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from sdlab.parsing import wire

TICK = 0.05  # seconds between two measurements
IDLE = 20.0  # seconds after which an unused child ends
AT_ONCE = 4  # files that are parsed at once
BUSY = 5.0  # a file may take its CPU time this many times over, on a machine that is busy with other things
STARTING = 60.0  # seconds in which a child must have read the file and imported its modules
ROOT = str(Path(__file__).parents[2])
START = f"import sys; sys.path.insert(0, {ROOT!r}); from sdlab.parsing.child import main; main()"
SINGLE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # idle threads cost address space


class Limits(NamedTuple):
    """What parsing one file may take."""

    seconds: float  # of CPU time
    memory: int  # bytes, beyond those of the file itself
    pixels: int | None = None  # of all pictures in an archive together; None for any number

    @property
    def too_slow(self) -> str:
        return f"takes more than {self.seconds:g} s to read, which is the limit: make it smaller or simpler"

    @property
    def too_large(self) -> str:
        return f"needs more than {self.memory / 1e6:,.0f} MB of memory to read, which is the limit: make it smaller"


class Request(NamedTuple):
    """A function "module:name" of this package, to be called with a file's bytes and further arguments."""

    target: str
    args: tuple[Any, ...]
    needs: tuple[str, ...]  # modules to be imported before time counts
    raw: bytes


class Child:
    """A process that parses one file after the other."""

    def __init__(self) -> None:
        """Start the process. Raises OSError if the system has none left."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # parsers log their own tracebacks
            env={**os.environ, **dict.fromkeys(SINGLE, "1")},
            start_new_session=True,  # Ctrl-C in a terminal is for the parent (without effect on Windows)
        )
        self._measured = psutil.Process(self._process.pid)
        self._limits = Limits(0.0, 0)
        self._asked = 0.0  # wall clock
        self._began: tuple[float, float, int] | None = None  # wall clock, CPU seconds and memory when parsing began
        self.idle_since = 0.0
        self.refusal = ""  # why it was ended

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def expect(self, limits: Limits) -> None:
        """Measure from now on for the next file."""
        self._limits, self._began, self._asked = limits, None, time.monotonic()

    def ask(self, request: Request, kinds: Collection[type]) -> wire.Reply:
        """Return the reply to a request. Raises EOFError, OSError, Garbled or psutil.Error if there is none."""
        questions: Any = self._process.stdin
        answers: Any = self._process.stdout
        limits = self._limits
        head = {"target": request.target, "args": request.args, "needs": request.needs, "bytes": len(request.raw)}
        wire.send(questions, {**head, "seconds": limits.seconds, "memory": limits.memory}, request.raw)
        if wire.receive(answers) != wire.READY:
            raise wire.Garbled
        self._began = (time.monotonic(), self._cpu(), self._measured.memory_info().rss)
        line = wire.receive(answers)
        result = wire.Decoder(answers, kinds, limits.memory).decode(line.get("result"))
        return wire.Reply(
            result,
            str(line.get("message", "")),
            limits.too_large if line.get("out_of_memory") else str(line.get("failure", "")),
            tuple(map(str, line.get("warnings", ()))),
            line.get("fit") is True,
        )

    def hold_to_limits(self) -> None:
        """End the process, and note why, if it has exceeded a limit."""
        if self.refusal:
            return
        with contextlib.suppress(psutil.Error):  # it has ended by itself
            if excess := self._excess():
                self.refuse(excess)

    def refuse(self, why: str) -> None:
        """End the process; `why` becomes its reply."""
        self.refusal = why
        self._process.kill()

    def _excess(self) -> str:
        limits, began = self._limits, self._began
        if began is None:
            return limits.too_slow if time.monotonic() - self._asked > STARTING else ""
        wall, cpu, memory = began
        if self._cpu() - cpu > limits.seconds or time.monotonic() - wall > BUSY * limits.seconds:
            return limits.too_slow
        return limits.too_large if self._measured.memory_info().rss - memory > limits.memory else ""

    def _cpu(self) -> float:
        used = self._measured.cpu_times()
        return used.user + used.system

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not sent is of no use any more
                    pipe.close()


class Children:
    """The child processes of this process. Thread-safe; files are parsed in the order in which they arrive."""

    def __init__(self) -> None:
        self._forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):  # a copy of this process must not talk to the same children
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._changed = threading.Condition()  # guards all below
        self._waiting: list[object] = []
        self._busy: list[Child] = []
        self._idle: list[Child] = []
        self._places = AT_ONCE
        self._keeper: threading.Thread | None = None
        self._spare = 0
        self._ready = Request("builtins:len", (), (), b"")  # for a spare child, to import what most files need
        self._is_preparing = False

    def stand_by(self, count: int, needs: tuple[str, ...]) -> None:
        """Keep `count` idle children that have imported `needs`, so that files need not wait for that."""
        with self._changed:
            self._spare, self._ready = count, self._ready._replace(needs=needs)
            self._watch()

    def ask(self, request: Request, kinds: Collection[type], limits: Limits) -> wire.Reply:
        """Return a child's reply to a request, or one that says why there is none."""
        self._arrive()
        child, fit = None, False
        try:
            child = self._take(limits)
            reply = child.ask(request, kinds)
            fit = reply.fit and not child.refusal
            return reply
        except (EOFError, OSError, wire.Garbled, psutil.Error):
            if child is None:
                return wire.Reply(failure="cannot be read now: this computer cannot start another process")
            return wire.Reply(failure=child.refusal or "is damaged: its parser crashed; re-export it")
        finally:
            self._leave(child, fit)

    def _arrive(self) -> None:
        """Wait for a place."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: self._places > 0 and self._waiting[0] is ticket)
                self._places -= 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _take(self, limits: Limits) -> Child:
        """Return an idle child, or a new one, for a file with these limits."""
        with self._changed:
            found = self._idle.pop() if self._idle else None
        if found is not None and not found.is_alive():
            found.end()
            found = None
        child = found or Child()
        child.expect(limits)  # before the keeper sees it among the busy ones
        with self._changed:
            self._busy.append(child)
            self._watch()
        return child

    def _leave(self, child: Child | None, fit: bool) -> None:
        """Give the place back, and the child if there is one."""
        if child is not None:
            self._put_back(child, fit)
        with self._changed:
            self._places += 1
            self._changed.notify_all()

    def _put_back(self, child: Child, fit: bool) -> None:
        """Keep a child if it is fit for another file; otherwise end it."""
        if not fit:
            child.end()
        with self._changed:
            self._busy.remove(child)
            if fit:
                child.idle_since = time.monotonic()
                self._idle.append(child)

    def _watch(self) -> None:
        """Wake the keeper, starting it if there is none. Under the lock."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="sdlab-parsing", daemon=True)
            self._keeper.start()
        self._changed.notify_all()

    def _keep(self) -> None:
        """Hold busy children to their limits, end idle ones and start spare ones, as long as there are any."""
        while True:
            with self._changed:
                for child in self._busy:
                    child.hold_to_limits()
                old = self._superfluous()
                self._idle = [c for c in self._idle if c not in old]
                if len(self._idle) < min(self._spare, AT_ONCE - len(self._busy)) and not self._is_preparing:
                    self._is_preparing = True
                    threading.Thread(target=self._prepare, name="sdlab-parsing-spare", daemon=True).start()
                if not self._busy and not self._idle and not self._spare:
                    self._keeper = None
            for child in old:
                child.end()
            with self._changed:
                if self._keeper is not threading.current_thread():
                    return
                if not self._busy:
                    self._changed.wait(1.0)
            time.sleep(TICK)

    def _superfluous(self) -> list[Child]:
        """Return the idle children that have died, or have been idle for long and are not spare."""
        now, dead = time.monotonic(), [c for c in self._idle if not c.is_alive()]
        living = [c for c in self._idle if c not in dead]
        return dead + [c for c in living[: max(len(living) - self._spare, 0)] if now - c.idle_since > IDLE]

    def _prepare(self) -> None:
        """Start a spare child."""
        with contextlib.suppress(EOFError, OSError, wire.Garbled, psutil.Error):  # the next file will say so
            child = Child()
            child.expect(Limits(STARTING, 10**9))
            with self._changed:
                self._busy.append(child)
            fit = False
            try:
                fit = child.ask(self._ready, ()).fit
            finally:
                self._put_back(child, fit)
        with self._changed:
            self._is_preparing = False

    def close(self) -> None:
        """End all children; files being parsed are refused, and none stand by any more."""
        with self._changed:
            self._spare = 0
            ended, self._idle = self._idle, []
            for child in self._busy:
                child.refuse("cannot be read: the program is about to end")
            keeper = self._keeper
            self._changed.notify_all()
        for child in ended:
            child.end()
        if keeper is not None:  # it ends by itself, and a thread must not outlive the interpreter
            keeper.join(2.0)


CHILDREN = Children()
