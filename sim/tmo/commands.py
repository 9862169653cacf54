"""`run_sim.py tmo`: the experiments on the authors' log, with learners, and on whole bills and larger dialogues."""

from __future__ import annotations

from sim.tmo.learning_commands import learning
from sim.tmo.m4a1_commands import tmo
from sim.tmo.wider_commands import wider

tmo.add_typer(learning)
tmo.add_typer(wider)
__all__ = ["tmo"]
