"""The linear maps below the up-samplers: closed forms, and what a run makes of them."""

import pytest
import torch
from torch import Tensor

from ggcn.config.compose import compose
from ggcn.models import build, fitted
from ggcn.models.pyramid import pyramid
from ggcn.models.upsampler import interpolate

WORDS = ["model.grids=[4,8]", "model.upsampler.base=fitted", "model.upsampler.z_dim=60"]


def samples(count: int = 400) -> Tensor:
    """Smooth pictures [count, 3, 8, 8]: their fine grid follows from the coarse one."""
    dice = torch.Generator().manual_seed(1)
    few = torch.randn(count, 3, 4, 4, generator=dice, dtype=torch.float64) / 3
    return torch.nn.functional.interpolate(few, size=8, mode="bicubic")


def stored(images: Tensor) -> Tensor:
    """As shards hold them."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def test_z_along_principal_components_has_the_pictures_mean_and_covariance() -> None:
    x = samples().flatten(1)
    weight, bias = fitted.principal_axes(x, 200)
    torch.testing.assert_close(weight @ weight.T, torch.cov(x.T, correction=0))
    torch.testing.assert_close(bias, x.mean(0))
    assert weight.shape == (192, 200)  # more columns than directions: the rest is 0


def test_fewer_components_are_the_largest() -> None:
    x = samples().flatten(1)
    weight, _ = fitted.principal_axes(x, 3)
    largest = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-3:].flip(0)
    torch.testing.assert_close(weight.square().sum(0), largest)


def test_a_regression_finds_the_map_that_made_the_data() -> None:
    dice = torch.Generator().manual_seed(2)
    x = torch.randn(20_000, 6, generator=dice, dtype=torch.float64)
    truth = torch.randn(4, 6, generator=dice, dtype=torch.float64)
    weight, bias = fitted.ridge_regression(x, x @ truth.T + 5)
    shrink = 1 + fitted.RIDGE * (x - x.mean(0)).square().sum(0).mean() / len(x)
    torch.testing.assert_close(weight * shrink, truth, rtol=0.05, atol=0.02)
    torch.testing.assert_close(bias, torch.full((4,), 5.0, dtype=torch.float64), rtol=0.01, atol=0.01)


def test_fitted_up_samplers_start_from_the_pictures_law_and_foresee_the_finer_grid() -> None:
    _, upsamplers = build(compose(WORDS))
    shown = stored(samples()).float() / 127.5 - 1
    coarse, fine = pyramid(shown, [4, 8])
    before = upsamplers.start(1, coarse)
    fitted.fit(upsamplers, stored(samples()), [4, 8], mirrored=False)
    drawn = upsamplers.start(0, torch.randn(4000, 60, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(drawn.mean(0), coarse.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(0), coarse.std(0), rtol=0.1, atol=0)
    error, bilinear = (upsamplers.start(1, coarse) - fine).square().mean(), (before - fine).square().mean()
    assert error < 0.1 * bilinear


def test_the_same_pictures_give_the_same_bits_on_any_number_of_threads() -> None:
    maps = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        _, upsamplers = build(compose(WORDS))
        fitted.fit(upsamplers, stored(samples()), [4, 8], mirrored=False)
        maps.append(dict(upsamplers.named_buffers()))
        assert torch.get_num_threads() == threads
    assert all(torch.equal(maps[0][name], maps[1][name]) for name in maps[0])
    assert set(maps[0]) == {f"grids.{grid}.base.{name}" for grid in (0, 1) for name in ("weight", "bias")}


def test_what_is_fitted_is_not_learned() -> None:
    _, upsamplers = build(compose(WORDS))
    assert not any("base" in name for name, _ in upsamplers.named_parameters())


def test_mirror_images_count_where_the_run_has_them() -> None:
    means = []
    for mirrored in (True, False):
        _, upsamplers = build(compose(WORDS))
        fitted.fit(upsamplers, stored(samples()), [4, 8], mirrored)
        mean = upsamplers.start(0, torch.zeros(1, 60))
        means.append((mean - mean.flip(3)).abs().max().item())
    assert means[0] < 1e-6 < 1e-3 < means[1]


def test_of_wide_pictures_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted, "MAX_FULL_PCA_DIM", 100)
    monkeypatch.setattr(fitted, "PCA_IMAGES", 50)
    dice = torch.Generator().manual_seed(5)
    x = torch.randn(400, 192, generator=dice, dtype=torch.float64)
    x[:, 7] *= 20
    weight, _ = fitted.principal_axes(x, 60)
    assert weight[7, 0].abs() == pytest.approx(20, rel=0.3)
    assert (weight[:, 50:] == 0).all()  # 50 pictures have no more directions


def reference(upsamplers, shown: Tensor, sizes: list[int], mirrored: bool) -> None:
    """The same maps from all pictures at once, as the formulas say it."""

    def level(size: int) -> Tensor:
        pooled = pyramid(shown.double() / 127.5 - 1, [size])[0]
        return torch.cat([pooled, pooled.flip(3)]) if mirrored else pooled

    with fitted._one_thread():
        first, *others = [net.base for net in upsamplers.grids]
        first.set(*fitted.principal_axes(level(sizes[0]).flatten(1), first.weight.shape[1]))
        for coarse, fine, base in zip(sizes, sizes[1:], others, strict=False):
            if base is not None:
                rest = level(fine) - interpolate(level(coarse), fine)
                base.set(*fitted.ridge_regression(level(coarse).flatten(1), rest.flatten(1)))


@pytest.mark.parametrize("mirrored", [True, False])
def test_pictures_a_few_at_a_time_give_the_bits_of_all_at_once(mirrored: bool, monkeypatch) -> None:
    monkeypatch.setattr(fitted, "POOLING_CHUNK", 5000)  # 26 pictures
    overrides = [*WORDS, "model.grids=[4,8,16]"]
    dice = torch.Generator().manual_seed(7)
    shown = torch.randint(0, 256, (700, 3, 32, 32), dtype=torch.uint8, generator=dice)
    maps = []
    for work in (
        lambda net: fitted.fit(net, iter(shown.split(300)), [4, 8, 16], mirrored),
        lambda net: reference(net, shown, [4, 8, 16], mirrored),
    ):
        _, upsamplers = build(compose(overrides))
        work(upsamplers)
        maps.append(dict(upsamplers.named_buffers()))
    assert len(maps[0]) == 6
    assert all(torch.equal(maps[0][name], maps[1][name]) for name in maps[0])


def test_grids_without_a_map_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fine the pictures are, what is held of them are the grids that have maps."""
    sizes = []
    real = fitted._levels

    def spied(parts, needed):
        sizes.extend(needed)
        return real(parts, needed)

    monkeypatch.setattr(fitted, "_levels", spied)
    _, upsamplers = build(compose([*WORDS, "model.grids=[4,8,256]"]))
    assert upsamplers.grids[2].base is None
    few = torch.randint(0, 256, (12, 3, 256, 256), dtype=torch.uint8)
    fitted.fit(upsamplers, few, [4, 8, 256], mirrored=True)
    assert sizes == [4, 8]
