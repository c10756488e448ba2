"""Engines drive an objective's parameters: gradients averaged over ranks, clipping, optimizer, state."""

from ggcn.engine.base import Engine
from ggcn.engine.build import build

__all__ = ["Engine", "build"]
