"""What a run without a page is to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sdlab.options import Plan
    from sdlab.settings import Settings


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is to do, and where."""

    settings: Settings
    device: torch.device
    out: Path
    size: int  # pixels of a turntable view
    preset: str  # recorded with the results
    plan: Plan
    until: int | None = None  # the step at which it ends; None for where settings and plan end
    resumed: bool = False
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # content of run.json, of a resumed run
