"""Networks of the user's own code, by model.energy.kind and model.upsampler.kind as MODULE:CLASS; ggcn.testing checks
them."""

import os
import sys
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from ggcn.config.schema import EnergyConfig, UpsamplerConfig
from ggcn.errors import UserError
from ggcn.models.upsampler import interpolate, linear_base
from ggcn.precision import widen
from ggcn.run import own_code


def own_energy(size: int, channels: int, config: EnergyConfig) -> nn.Module:
    """The user's network of one grid, CLASS(size, channels, config): x [n, channels, size, size] -> f(x) [n].

    Raises UserError when there is no such class, or it cannot be built.
    """
    return _build("model.energy.kind", config.kind, size, channels, config)


class OwnUpsampler(nn.Module):
    """An up-sampler whose network is the user's, CLASS(source, target, channels, config): it is added to what
    base=fitted and, between grids, bilinear interpolation give."""

    def __init__(self, source: int | None, target: int, channels: int, config: UpsamplerConfig) -> None:
        """source: size of the grid before; None: the network starts from z. Raises UserError when there is no such
        class, or it cannot be built."""
        super().__init__()
        inputs = config.z_dim if source is None else channels * source**2
        self.source, self.target = source, target
        self.base = linear_base(inputs, channels, target, config.base)
        self.network = _build("model.upsampler.kind", config.kind, source, target, channels, config)

    def linear(self, inputs: Tensor) -> Tensor:
        """All but the network: [n, channels, target, target], float32."""
        maps = [] if self.source is None else [interpolate(inputs, self.target)]
        maps += [self.base(inputs)] if self.base else []
        assert maps
        return sum(maps[1:], maps[0])

    def forward(self, inputs: Tensor) -> Tensor:
        """z [n, z_dim], or images [n, channels, source, source] -> [n, channels, target, target], float32."""
        output = widen(self.network(inputs))
        alone = self.source is None and self.base is None
        return output if alone else self.linear(inputs) + output


def own_class(key: str, kind: str) -> type[nn.Module]:
    """The class that MODULE:CLASS names. Raises UserError when it cannot be imported, or is no torch.nn.Module."""
    module_name, _, class_name = kind.partition(":")
    module = _import(key, kind, module_name)
    found = getattr(module, class_name, None)
    if found is None:
        raise UserError(f"{key}={kind}: {getattr(module, '__file__', module_name)} has no class {class_name}")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"{key}={kind}: {class_name} is no subclass of torch.nn.Module")
    return found


def _import(key: str, kind: str, name: str) -> Any:
    """A module from Python's path or, after that, the current folder."""
    here = [] if os.getcwd() in sys.path else [os.getcwd()]
    sys.path.extend(here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(own_code.missing(key, kind, error.name)) from None
        raise UserError(f"{key}={kind}: {name} needs the module {error.name}; install it") from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(
            f"{key}={kind}: {name} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    finally:
        for folder in here:
            sys.path.remove(folder)


def _build(key: str, kind: str, *arguments: Any) -> nn.Module:
    cls = own_class(key, kind)
    try:
        return cls(*arguments)
    except TypeError as error:
        signature = "size, channels, config" if len(arguments) == 3 else "source, target, channels, config"
        raise UserError(
            f"{key}={kind} is built by {cls.__name__}({signature}), which failed: {error}"
        ) from error
