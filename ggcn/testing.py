"""Conformance tests for networks of your own: call them in your test suite, before a run finds out.

from ggcn.testing import check_energy
from my_module import MyEnergy

def test_my_energy():
    check_energy(MyEnergy)
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from ggcn.config.schema import EnergyConfig, UpsamplerConfig
from ggcn.models.build import CHANNELS, frozen
from ggcn.models.own import own_class
from ggcn.precision import autocast

COUNT = 5
"""images in a test batch"""
TOLERANCE = 1e-4
"""relative to the largest value; what the order of float32 sums and other kernels may change"""


def check_energy(
    energy: str | type[nn.Module], size: int = 16, config: EnergyConfig | None = None, smooth: bool = True
) -> None:
    """Raises AssertionError, in one sentence, unless `energy` (a class, or MODULE:CLASS) can be model.energy.kind:

    - energy(size, channels, config) gives a module; its initial weights come from PyTorch's global random state alone;
    - x [n, channels, size, size] -> f(x) [n], finite and float32, under bf16 autocast too (f = -E; high is likely);
    - an image's f depends neither on the other images of the batch nor on earlier calls, in training mode too;
    - f has a gradient with respect to x and to every parameter, and, if `smooth`, what the JKO term and
      transport need: |grad_x f|^2 has a finite gradient with respect to the parameters that is not always 0;
    - its chains run with frozen weights, and with weights cast to bf16; it can be copied, saved and restored.

    size: of the grid, a power of two. config: the settings that the class gets; by default those of a small network.
    """
    cls = _class("model.energy.kind", energy)
    settings = config or EnergyConfig(width=8, readout="every")
    net = _built(lambda: cls(size, CHANNELS, settings))
    x = _numbers(COUNT, CHANNELS, size, size)
    _check_output(net, x, (COUNT,))
    _check_independence(net, x)
    _check_first_derivatives(net, x)
    if smooth:
        _check_second_derivatives(net, x)
    _check_chain_weights(net, x)
    _check_state(net, lambda: cls(size, CHANNELS, settings), x)


def check_upsampler(
    upsampler: str | type[nn.Module],
    source: int | None = 8,
    target: int = 16,
    config: UpsamplerConfig | None = None,
) -> None:
    """Raises AssertionError, in one sentence, unless `upsampler` (a class, or MODULE:CLASS) can be
    model.upsampler.kind:

    - upsampler(source, target, channels, config) gives a module; its initial weights come from PyTorch's global random
      state alone;
    - images [n, channels, source, source], or z [n, config.z_dim] where source is None, -> what is added to the
      linear part, [n, channels, target, target], finite, under bf16 autocast too;
    - an image depends neither on the others of the batch nor on earlier calls, in training mode too;
    - every parameter has a gradient; it can be copied, saved and restored.

    Call it twice, with source=None and with a size, for a class that serves all grids.
    """
    cls = _class("model.upsampler.kind", upsampler)
    settings = config or UpsamplerConfig(width=16, min_width=8, z_dim=8)
    net = _built(lambda: cls(source, target, CHANNELS, settings))
    inputs = _numbers(COUNT, settings.z_dim) if source is None else _numbers(COUNT, CHANNELS, source, source)
    _check_output(net, inputs, (COUNT, CHANNELS, target, target), exact_type=False)
    _check_independence(net, inputs)
    _check_first_derivatives(net, inputs, of_inputs=False)
    _check_state(net, lambda: cls(source, target, CHANNELS, settings), inputs)


def _class(key: str, network: str | type[nn.Module]) -> type[nn.Module]:
    return own_class(key, network) if isinstance(network, str) else network


def _numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """The module, of which a second one from the same random state must be equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = build()
        torch.manual_seed(1)
        second = build()
    assert isinstance(first, nn.Module), f"{type(first).__name__} is no torch.nn.Module"
    assert any(True for _ in first.parameters()), f"{_name(first)} has no parameters, so it cannot learn"
    states = first.state_dict(), second.state_dict()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), (
            f"{name} differs between two networks that were built from the same random state; draw initial weights "
            "from torch alone, so that all ranks begin with the same ones"
        )
    _make_generic(first)
    return first


def _make_generic(net: nn.Module) -> None:
    """Moves every weight a little, as learning does: layers may begin at 0, where gradients vanish."""
    dice = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=dice))


def _check_output(net: nn.Module, x: Tensor, shape: tuple[int, ...], exact_type: bool = True) -> None:
    for precision in ("fp32", "bf16"):
        with autocast(x, precision), torch.no_grad():
            y = net(x)
        where = f"{_name(net)}(x) under {precision}"
        assert y.shape == shape, f"{where} has the shape {list(y.shape)}; it must be {list(shape)}"
        assert bool(y.isfinite().all()), f"{where} is not finite"
        wide = y.dtype == torch.float32 or not exact_type
        assert wide, f"{where} is {y.dtype}; sum in float32, as in x.float().sum((1, 2, 3))"


def _check_independence(net: nn.Module, x: Tensor) -> None:
    net.train()
    with torch.no_grad():
        together, again = net(x), net(x)
        alone = torch.cat([net(x[index : index + 1]) for index in range(len(x))])
    assert torch.equal(together, again), (
        f"{_name(net)} gives other values when it is called again; leave out dropout, noise and running statistics"
    )
    assert _close(alone, together), (
        f"{_name(net)} gives an image another value when others are in the batch; leave out batch normalisation"
    )


def _check_first_derivatives(net: nn.Module, x: Tensor, of_inputs: bool = True) -> None:
    x = x.clone().requires_grad_(of_inputs)
    weights = dict(net.named_parameters())
    y = net(x)
    loss = (y * torch.linspace(0.5, 1.5, y.numel()).view_as(y)).sum()
    gradients = torch.autograd.grad(loss, [*weights.values()], retain_graph=True, allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        assert gradient is not None, f"{name} is not used; a parameter without a gradient stops the optimizer"
        assert bool(gradient.isfinite().all()), f"the gradient of {name} is not finite"
    if of_inputs:
        (gradient,) = torch.autograd.grad(loss, [x], allow_unused=True)
        assert gradient is not None, (
            f"{_name(net)}(x) has no gradient with respect to x, so no chain can move"
        )
        moving = bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0
        assert moving, "the gradient with respect to x is 0 everywhere or not finite"


def _check_second_derivatives(net: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    weights = dict(net.named_parameters())
    (slope,) = torch.autograd.grad(net(x).sum(), [x], create_graph=True)
    assert slope.requires_grad, (
        f"the gradient of {_name(net)} does not depend on its weights: the JKO term is constant"
    )
    second = torch.autograd.grad(slope.square().sum(), [*weights.values()], allow_unused=True)
    for name, gradient in zip(weights, second, strict=True):
        finite = gradient is None or bool(gradient.isfinite().all())
        assert finite, f"the second derivative with respect to x and {name} is not finite"
    assert any(gradient is not None and bool(gradient.any()) for gradient in second), (
        "all second derivatives are 0; take activations that can be differentiated twice, such as SiLU"
    )


def _check_chain_weights(net: nn.Module, x: Tensor) -> None:
    """Chains run on a shallow copy whose convolutions have weights of the chain's precision."""
    from ggcn.models.build import _with_cast_weights

    with torch.no_grad():
        expected = net(x)
        assert _close(_with_cast_weights(net, "fp32")(x), expected), (
            f"{_name(net)} does not work as a copy with other weights; call its layers, and keep no weights elsewhere"
        )
    with frozen(net):
        moving = x.clone().requires_grad_()
        with autocast(x, "bf16"):
            y = _with_cast_weights(net, "bf16")(moving)
        (slope,) = torch.autograd.grad(y.sum(), [moving])
    assert bool(slope.isfinite().all()), "a chain's gradient in bf16 is not finite"


def _check_state(net: nn.Module, build: Callable[[], nn.Module], x: Tensor) -> None:
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(deepcopy(net)(x), expected), f"a copy of {_name(net)} gives other values"
        with torch.random.fork_rng(devices=[]):
            restored = build()
        restored.load_state_dict(net.state_dict())
        assert torch.equal(restored(x), expected), (
            f"{_name(net)} gives other values after it was saved and restored; what decides them must be a parameter "
            "or a buffer"
        )


def _close(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() <= TOLERANCE * two.abs().max().clamp(min=1e-6))


def _name(net: nn.Module) -> str:
    return type(net).__name__
