"""Requests that come too fast are held up, and refused if they would have to wait too long."""

from __future__ import annotations

import asyncio

from fastapi import Response

from sdlab.live.clients import NO_LIMIT
from sdlab.ui.visitors import MESSAGES, PATIENCE
from sdlab.web import refusal


async def held_up(seconds: float) -> Response | None:
    """Wait for `seconds`, or return the refusal of a request for which that would be too long."""
    if seconds > PATIENCE:
        return refusal(f"too many messages: this server takes {MESSAGES[0]:.0f} a second; {NO_LIMIT}", 429)
    await asyncio.sleep(seconds)
    return None
