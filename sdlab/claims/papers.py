"""The papers whose claims are registered."""

from __future__ import annotations

from sdlab.claims import dreammapping, esd, jsd, sbp
from sdlab.claims.claim import Paper

PAPERS = {module.PAPER.key: module.PAPER for module in (esd, dreammapping, sbp, jsd)}


def papers(key: str | None = None) -> list[Paper]:
    """Return the paper `key`, or all for None."""
    return list(PAPERS.values()) if key is None else [PAPERS[key]]
