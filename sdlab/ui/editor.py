"""The page's editor of a user's own loss (`sdlab.own_loss`); only the server of its own user has one.

What is typed becomes code, so the browser must know a key that the program prints with its address: other users of the
machine reach the same port.
"""

from __future__ import annotations

import hmac
import math
import secrets
from typing import Any

from sdlab.lens import Comparison
from sdlab.live.manager import Manager
from sdlab.live.messages import Compare, Rewrite
from sdlab.own_loss import EXERCISE, REFERENCE, Flawed, OwnLoss
from sdlab.settings import OWN, Settings
from sdlab.ui.form import NO_RULES, card_of
from sdlab.ui.lane import Lane

FRAGMENT = "editor"  # of the printed address, before the key


class Editor:
    """The editor of `own` on the pages of `manager`."""

    def __init__(self, own: OwnLoss, manager: Manager) -> None:
        self._own = own
        self._manager = manager
        self._key = secrets.token_urlsafe(16)

    @property
    def fragment(self) -> str:
        """What to append to the page's address so that its editor may write."""
        return f"#{FRAGMENT}={self._key}"

    def look(self) -> str | None:
        """Let all runs follow the file if it has changed; return None if it has not, else what is wrong with it, ""
        for nothing."""
        if not self._own.look():
            return None
        self._follow()
        return self._own.error

    def write(self, lane: Lane, text: str, key: str) -> None:
        """Write what was typed to the file, let all runs follow it, and compare it with SDS at the state of `lane`.
        Flawed if there is an error in it: the version before it stays in use. ValueError for a wrong key, or for a file
        that cannot be written."""
        if not hmac.compare_digest(key.encode(), self._key.encode()):
            raise ValueError(
                f"this tab may not write {self._own.name}: open the whole address that the program has printed, or "
                "edit the file itself"
            )
        self._own.write(text)
        if self._own.error:
            raise Flawed(self._own.error)
        self._follow()
        self.compare(lane)

    def compare(self, lane: Lane) -> None:
        """Compare the own loss with SDS at the state of `lane`."""
        lane.seat.session.send(Compare((REFERENCE, OWN)))

    def renewed(self, settings: Settings) -> Settings:
        """Return settings with the newest version of the loss, for a new run."""
        return settings.with_loss(self._own.loss)

    def _follow(self) -> None:
        if not self._own.error:
            self._manager.send(Rewrite(self._own.loss))

    def told(self, lane: Lane) -> dict[str, Any]:
        """Return what the editor shows."""
        own = self._own
        return {
            "name": own.name,
            "text": own.text,
            "version": own.version,
            "error": own.error,
            "exercise": EXERCISE,
            "beside": beside(lane.seat.session.comparison.get()),
        }

    def key(self, lane: Lane) -> tuple[Any, ...]:
        """Return what changes whenever `told` does."""
        return lane.seat.id, self._own.version, lane.seat.session.comparison.version


def card(lane: Lane) -> dict[str, Any]:
    """Return the section of the form about the own loss as `lane` follows it, with the values of its knobs."""
    loss = lane.settings.losses[OWN]
    owner = f"losses.{OWN}"
    values = {path: k.value for path, k in lane.settings.knobs().items() if path.startswith(f"{owner}.")}
    html = card_of(loss, owner, lane.settings, NO_RULES)
    return {"owner": owner, "title": loss.title, "look_for": loss.look_for, "html": html, "values": values}


def beside(c: Comparison | None) -> dict[str, Any] | None:
    """Return how the own loss compares with the reference: the cosine of the two gradients, the ratio of their root
    mean squares (None where one is zero or has failed) and a note; None before they were compared."""
    if c is None or not {REFERENCE, OWN} <= set(c.losses):
        return None
    own, ref = c.losses.index(OWN), c.losses.index(REFERENCE)
    if max(own, ref) >= c.done:
        return None
    cosine, ratio = float(c.cosines[own, ref]), float(c.rms[own]) / max(float(c.rms[ref]), 1e-30)
    fine = math.isfinite(cosine) and math.isfinite(ratio)
    return {
        "cosine": round(cosine, 4) if fine else None,
        "ratio": float(f"{ratio:.4g}") if fine else None,
        "t": list(c.t[:4]),
        "note": c.notes[own],
    }
