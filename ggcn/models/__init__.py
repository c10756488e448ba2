"""The networks of a run, built from its config."""

from ggcn.models.build import Energies, Upsamplers, build

__all__ = ["Energies", "Upsamplers", "build"]
