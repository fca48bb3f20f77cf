"""The comparison page: one self-contained HTML file made from records alone (no torch, no tracker, no network)."""

from __future__ import annotations

from .page import html_of, render
from .serve import serve

__all__ = ["html_of", "render", "serve"]
