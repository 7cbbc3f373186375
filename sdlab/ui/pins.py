"""PINs of a teacher's page."""

from __future__ import annotations

import secrets

DIGITS = 6  # of a random PIN


def random_pin() -> str:
    """Return a PIN of `DIGITS` digits."""
    return f"{secrets.randbelow(10**DIGITS):0{DIGITS}d}"


def checked_pin(pin: str) -> str:
    """Return `pin`; ValueError, which does not repeat it, unless it has 6 to 12 digits."""
    if not (pin.isascii() and pin.isdigit() and DIGITS <= len(pin) <= 2 * DIGITS):
        raise ValueError(f"--pin: {DIGITS} to {2 * DIGITS} digits are needed")
    return pin
