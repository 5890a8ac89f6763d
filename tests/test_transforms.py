"""Transforms: fitted on the rows they are given, exact in float64, and small enough to be saved with a run."""

import pytest
import torch

from fitkit.data import Data
from fitkit.parts.transforms import Affine, default_transform, scale, standardize, transforms

SHAPES = {"column": (50, 3), "channel": (50, 3, 4, 5), "rows": (50, 4, 3), "number": (50,), "volume": (50, 3, 2, 2, 2)}
AXES = {"column": 0, "channel": (0, 2, 3), "rows": (0, 1), "number": 0, "volume": (0, 2, 3, 4)}


def sample(kind, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(SHAPES[kind], generator=generator, dtype=torch.float64) * 100 - 20).to(dtype)


@pytest.mark.parametrize("name", sorted(transforms))
@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64])
def test_every_transform_returns_float32_of_the_same_shape(name, kind, dtype):
    x = sample(kind).abs().to(dtype)
    fitted = transforms[name].factory(x)
    assert fitted(x).shape == x.shape and fitted(x).dtype is torch.float32 and fitted(x).isfinite().all()
    assert transforms[name].summary.endswith(".")


def test_a_transform_compiles_without_a_graph_break():
    torch.compiler.reset()
    x = sample("channel", torch.uint8)
    fitted = standardize(x)
    assert torch.compile(fitted, backend="eager", fullgraph=True)(x).equal(fitted(x))


@pytest.mark.parametrize("name", sorted(transforms))
def test_every_transform_is_rebuilt_from_its_saved_tensors(name):
    x = sample("channel")
    fitted = transforms[name].factory(x)
    assert list(fitted.state_dict()) == ["shift", "scale"] and not list(fitted.parameters())
    assert Affine(**fitted.state_dict())(x).equal(fitted(x))


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("chunk", [1 << 24, 7])
def test_standardize_agrees_with_the_formula_for_each_feature(kind, chunk, monkeypatch):
    monkeypatch.setattr("fitkit.parts.transforms.CHUNK", chunk)
    x = sample(kind)
    wide = x.double()
    mean, std = wide.mean(AXES[kind], keepdim=True), wide.std(AXES[kind], correction=0, keepdim=True)
    assert torch.allclose(standardize(x)(x).double(), (wide - mean) / std, atol=1e-6)
    assert standardize(x).shift.shape == mean[0].shape


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_scale_brings_each_feature_to_exactly_0_and_nearly_1(kind):
    x = sample(kind)
    y = scale(x)(x)
    assert (y.amin(AXES[kind]) == 0).all() and ((y.amax(AXES[kind]) - 1).abs() < 1e-6).all()


def test_a_constant_feature_is_shifted_to_zero_whatever_its_value():
    for value in (0.0, 0.1, 1 / 3, 1e-30, 1e30, -7.0):
        x = torch.full((1000, 2), value)
        assert (standardize(x).scale == 1).all() and standardize(x)(x).abs().max() == 0
        assert scale(x)(x).abs().max() == 0


def test_a_large_offset_cancels_before_it_is_rounded():
    x = 1.7e9 + torch.arange(100, dtype=torch.float64).unsqueeze(1)
    expected = (x - x.mean()) / x.std(correction=0)
    difference = standardize(x)(x).double() - expected
    assert (difference - difference.mean()).abs().max() < 1e-5  # the mean itself is held as float32
    x = 1e6 + torch.rand(1000, 1)
    assert standardize(x)(x).std(correction=0).item() == pytest.approx(1, rel=1e-5)


def test_bytes_are_divided_by_their_largest_value():
    x = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 4, 4)
    assert torch.allclose(scale(x)(x), x / 255, rtol=1.2e-7, atol=0) and scale(x)(x).max() == 1
    digits = torch.tensor([[0, 16], [5, 8]], dtype=torch.uint8)
    assert scale(digits)(digits).equal(digits / 16)
    assert scale(digits, range=(0, 255))(digits).allclose(digits / 255)
    assert scale(torch.zeros_like(digits))(digits).equal(digits.float())


def test_a_range_says_which_values_become_0_and_1():
    x = torch.tensor([[-1.0, 0.0], [1.0, 3.0]])
    assert scale(x, range=(-1, 1))(x).tolist() == [[0, 0.5], [1, 2]]
    with pytest.raises(ValueError, match="does not rise"):
        scale(x, range=(1, 1))


def test_statistics_come_from_the_rows_given_alone():
    x = sample("column")
    outlier = torch.cat([x, torch.full((1, 3), 1e9)])
    assert standardize(outlier[:-1]).state_dict()["shift"].equal(standardize(x).state_dict()["shift"])
    assert standardize(outlier[:-1])(outlier)[:-1].equal(standardize(x)(x))


def test_a_feature_beyond_float32_is_refused():
    for values in ([1e39, 2e39], [0.0, 1e-40], [0.0, 1e300]):
        with pytest.raises(ValueError, match="beyond float32"):
            standardize(torch.tensor(values, dtype=torch.float64).unsqueeze(1))


@pytest.mark.parametrize(
    ("x", "vocabulary", "name"),
    [
        (torch.zeros(4, 3), None, "standardize"),
        (torch.zeros(4, 3, dtype=torch.float64), None, "standardize"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None, "scale"),
        (torch.zeros(4, 64, dtype=torch.uint8), None, "scale"),
        (torch.zeros(4, 3, 8, 8), None, None),
        (torch.zeros(4, 3, dtype=torch.int64), None, None),
        (torch.zeros(9, dtype=torch.uint8), 5, None),
    ],
)
def test_the_default_transform_fits_tables_and_pixels_only(x, vocabulary, name):
    assert default_transform(Data(x=x, y=None, target="classes", vocabulary=vocabulary)) == name
    assert name is None or name in transforms
