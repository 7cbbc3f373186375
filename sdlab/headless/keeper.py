"""Keeps a run in its folder while it goes on: its diary and its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sdlab.files import remove, scratch_for, why, write_whole
from sdlab.headless.folder import CHECKPOINT, DIARY, RECORD, SETTINGS, digests, ours
from sdlab.options import paths_in

if TYPE_CHECKING:
    from sdlab.headless.job import Job
    from sdlab.live.messages import Event
    from sdlab.live.session import Session


class Keeper:
    """A session listener that keeps a run in its folder: diary, and a checkpoint every `seconds`.

    An earlier run in the folder is untouched until the new one has taken a step. `warn` receives one line if something
    cannot be written; the next attempt follows when the next checkpoint is due.
    """

    def __init__(self, session: Session, job: Job, warn: Callable[[str], None], seconds: float) -> None:
        from sdlab.live.diary import Recorder
        from sdlab.settings import to_toml

        self._session, self._out, self._warn, self._seconds = session, job.out, warn, seconds
        self._recorder: Recorder | None = None
        self._early: list[Event] = []  # until there is a recorder
        self._saved: int | None = None  # step of the last checkpoint
        self._tried_at = time.monotonic()
        if job.resumed:
            self._record = json.dumps(job.record)
            self._saved = session.state.step
            self._recorder = Recorder(job.out / DIARY, keep_until=session.state.step)
            return
        self._settings = to_toml(session.pinned())
        read = digests(paths_in(job.settings))
        self._record = json.dumps({"preset": job.preset, "plan": job.plan, "settings": self._settings, "inputs": read})
        if not ours(job.out):
            self.begin()

    @property
    def begun(self) -> bool:
        """Whether the folder holds this run, rather than an earlier one."""
        return self._recorder is not None

    def __call__(self, event: Event) -> None:
        if self._recorder is None:
            self._early.append(event)
        else:
            self._recorder(event)

    def stepped(self, number: int) -> None:
        """Begin after the first step, and save what is due."""
        if self._recorder is None:
            self.begin()
        if time.monotonic() - self._tried_at > self._seconds:
            problem = self.save()
            if problem:
                self._warn(f"{problem}; the run continues")

    def save(self) -> str:
        """Write diary and checkpoint; return why they could not be written, or "". A checkpoint ahead of the diary
        would lose changes in a replay: neither or both are written."""
        assert self._recorder is not None
        number = self._session.state.step
        self._recorder.flush(to_disk=True)
        problem = self._recorder.problem
        if not problem:
            try:
                self._session.save(self._out / CHECKPOINT, {RECORD: self._record})
            except OSError as e:
                problem = why(e)
        self._tried_at = time.monotonic()
        if not problem:
            self._saved = number
            return ""
        last = "there is none yet" if self._saved is None else f"the last one is of step {self._saved}"
        return f"the checkpoint of step {number} could not be saved ({problem}); {last}"

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def begin(self) -> None:
        """Make the folder that of this run. An earlier one is removed when settings and first checkpoint of this one
        are on disk. Raises OSError if they cannot be written, which leaves the earlier one as it was."""
        from sdlab.live.diary import Recorder
        from sdlab.settings import codes_of

        out, earlier = self._out, ours(self._out)
        new = scratch_for(out / "new")
        try:
            new.mkdir()
            write_whole(new / SETTINGS, self._settings)
            write_whole(new / RECORD, self._record)
            for name, code in codes_of(self._session.settings).items():
                write_whole(new / name, code)
            if earlier:
                self._session.save(new / CHECKPOINT, {RECORD: self._record})
                self._saved = self._session.state.step
            for path in earlier:
                remove(path)
            for path in new.iterdir():
                path.rename(out / path.name)
        except OSError as e:
            kept = "; the run that it contains is untouched" if earlier and ours(out) == earlier else ""
            raise OSError(f"--out {out} cannot be written ({why(e)}){kept}") from e
        finally:
            remove(new)
        self._recorder = Recorder(out / DIARY)
        for event in self._early:
            self._recorder(event)
