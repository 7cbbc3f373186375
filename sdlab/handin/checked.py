"""JSON of strangers, read key by key: each value is checked, and an error names the file, the key and what is wrong."""

from __future__ import annotations

import json
import math
from typing import Any

from sdlab.knobs import shown
from sdlab.live.tape import Print

MOST_TEXT = 2000  # characters of a text


class Checked:
    """A JSON object; `where` begins each message. Methods raise ValueError for a key that is missing or wrong."""

    def __init__(self, where: str, given: Any) -> None:
        if not isinstance(given, dict):
            raise ValueError(f"{where}: must be an object, and is {shown(given)}")
        self.where = where
        self._given = given

    def has(self, key: str) -> bool:
        return self._given.get(key) is not None

    def text(self, key: str, most: int = MOST_TEXT) -> str:
        value = self._given.get(key)
        if not isinstance(value, str) or len(value) > most:
            raise self._wrong(key, value, f"a text of at most {most:,} characters")
        return value

    def whole(self, key: str, most: int = 10**9) -> int:
        return whole(self._given.get(key), f"{self.where}: {key}", most)

    def number(self, key: str) -> float:
        return number(self._given.get(key), f"{self.where}: {key}")

    def numbers(self, key: str, most: int = 100) -> dict[str, float]:
        """Return a table of numbers by name."""
        found = self.table(key)._given
        if len(found) > most:
            raise self._wrong(key, found, f"a table of at most {most} numbers")
        return {name: number(value, f"{self.where}: {key}.{name[:60]}") for name, value in found.items()}

    def table(self, key: str) -> Checked:
        return Checked(f"{self.where}: {key}", self._given.get(key))

    def as_it_is(self) -> dict[str, Any]:
        return self._given

    def print(self, key: str) -> Print:
        """Return the print of a scene, [tick, step, digest, sizes]."""
        return print_in(self._given.get(key), f"{self.where}: {key}")

    def plain(self, key: str) -> Any:
        """Return a value as it is."""
        return self._given.get(key)

    def rows(self, key: str, most: int) -> list[Any]:
        value = self._given.get(key)
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(key, value, f"a list of at most {most:,}")
        return value

    def tables(self, key: str, most: int) -> list[Checked]:
        return [Checked(f"{self.where}: {key} {n}", row) for n, row in enumerate(self.rows(key, most), 1)]

    def _wrong(self, key: str, value: Any, allowed: str) -> ValueError:
        return ValueError(f"{self.where}: {key} = {shown(value)}: must be {allowed}")


def document(text: str, where: str) -> Checked:
    """Return the JSON object in a text. ValueError if it is none."""
    try:
        return Checked(where, json.loads(text))
    except RecursionError as e:
        raise ValueError(f"{where} is nested too deeply") from e
    except ValueError as e:
        raise ValueError(f"{where} is not JSON: {e}") from e


def whole(value: Any, where: str, most: int = 10**9) -> int:
    """Return a whole number from 0 to `most`; ValueError, which begins with `where`, for anything else."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{where} = {shown(value)}: must be a whole number from 0 to {most:,}")
    return value


def number(value: Any, where: str) -> float:
    """Return a finite number; ValueError, which begins with `where`, for anything else."""
    if type(value) not in (int, float) or abs(value) > 1e300 or not math.isfinite(value):
        raise ValueError(f"{where} = {shown(value)}: must be a finite number")
    return float(value)


def print_in(row: Any, where: str) -> Print:
    """Return the print of a scene; ValueError, which begins with `where`, for anything else."""
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[2], str) or len(row[2]) > 64:
        raise ValueError(f"{where}: a print must be [tick, step, digest, sizes]")
    sizes = Checked(where, {"sizes": row[3]}).numbers("sizes")
    return Print(whole(row[0], f"{where}: a tick"), whole(row[1], f"{where}: a step"), row[2], sizes)
