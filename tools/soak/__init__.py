"""Endurance: real runs, hurt in every way that a schedule drawn from a seed says, must end as if nothing had happened.

``python -m tools.soak`` (``make soak``) from the checkout. Every trial has a number; ``--only 17`` replays it.
"""
