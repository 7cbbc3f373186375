"""A series of runs: each is written to a journal as it finishes, and one that is found there is not repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from sdlab.experiments.journal import Journal
from sdlab.experiments.objects import Runner, save_strips
from sdlab.progress import print_above, run_bar

Entry = TypeVar("Entry")
Row = dict[str, Any]
Made = tuple[Row, np.ndarray]  # the results of a run, with "seed" among them, and a strip of its images


class Series(Generic[Entry]):
    """The runs of `entries`, with a journal in the folder `out`, in which `key` names them."""

    def __init__(self, runner: Runner, entries: Sequence[Entry], out: Path, key: Callable[[Entry], str]) -> None:
        self.journal = Journal(out)
        self._runner = runner
        self._entries = entries
        self._key = key

    def make(self, work: Callable[[Entry], Made | None], line: Callable[[Entry, Row], str]) -> None:
        """Make the missing runs with `work`, which returns None for a run that was stopped, and print `line` for
        each."""
        todo = self.journal.unfinished(self._entries, self._key)

        def made(entry: Entry) -> tuple[Entry, Made] | None:
            found = work(entry)
            return None if found is None else (entry, found)

        with run_bar(len(todo)) as bar:
            for entry, (row, strip) in self._runner.each(todo, made):
                self.journal.add(self._key(entry), row, strip)
                bar.update()
                print_above(line(entry, row))

    def finished(self) -> list[tuple[Entry, Row]]:
        """Return the entries that have a result, in order."""
        return [(entry, row) for entry in self._entries if (row := self.journal.get(self._key(entry))) is not None]

    def save_first_seed(
        self, finished: Sequence[tuple[Entry, Row]], title: Callable[[Entry, Row], str], file: Path
    ) -> None:
        """Write the strips of the `finished` runs with the first seed below each other, each with its `title`."""
        shown = [
            (title(entry, row), strip)
            for entry, row in finished
            if row["seed"] == self._runner.settings.seed and (strip := self.journal.strip(self._key(entry))) is not None
        ]
        if shown:
            captions, strips = zip(*shown, strict=True)
            save_strips(strips, captions, file)
