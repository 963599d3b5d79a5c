"""Servers as the picker sees them."""

from __future__ import annotations

MS = 1_000_000

S = 1_000 * MS
