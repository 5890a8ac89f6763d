"""Augmentations: what a sample becomes is a function of (seed, epoch, row), and what a plain loop over pixels says."""

import math
import warnings

import pytest
import torch
from small_fit import Noisy, linear, same_bits, spec, state_of
from torch import nn

import fitkit
from fitkit.builder.tables import TABLES
from fitkit.engine import whole_step
from fitkit.engine.augment import Augment, mix, signed, uniform
from fitkit.engine.devices import check_compile
from fitkit.engine.seeds import AUGMENT, derive, derive_state
from fitkit.errors import SpecError
from fitkit.parts.augmentations import augmentations
from fitkit.session import run

ALL = ["random_flip", {"random_crop": 2}, {"cutout": 3}, {"random_brightness": 0.2}, {"random_contrast": 0.2}]
ALL += [{"gaussian_noise": 0.1}]
PIXELS = torch.randint(1, 256, (40, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


def numbers(rows, count, seed=0, epoch=1, which=0):
    key = torch.tensor([signed(derive_state(seed, AUGMENT, epoch, which))])
    return uniform(mix(key, torch.as_tensor(rows)), count)


def built(augment, data=(PIXELS, LABELS), transform="scale", module=None, **more):
    module = module or nn.Sequential(nn.Flatten(), linear(105, 4))
    source = {"arrays": {"transform": transform, "augment": augment}}
    return fitkit.build(spec(data=source, **more), model=module, data=data)


# The numbers


@pytest.mark.parametrize("which", [0, 1, 15])
def test_the_numbers_of_a_sample_are_those_of_the_hash_that_seeds_everything(which):
    rows = [0, 1, 7, 12345, 2**40]
    for seed, epoch in ((0, 1), (2**63 - 1, 1000)):
        expected = [[(derive(seed, AUGMENT, epoch, which, r, j) >> 39) * 2.0**-24 for j in range(5)] for r in rows]
        assert numbers(rows, 5, seed, epoch, which).tolist() == expected


def test_numbers_are_uniform():
    drawn = numbers(range(1 << 16), 8)
    assert drawn.min() >= 0 and drawn.max() < 1
    for column in drawn.unbind(1):
        counts = torch.histc(column, 256, 0, 1)
        chi_squared = ((counts - 256) ** 2 / 256).sum()
        assert 165 < chi_squared < 365  # 255 ± 23 by chance, here within 4.8 deviations
    low = (drawn * 2**24).long() & 255  # the low bits are as good as the high ones
    assert 165 < ((torch.bincount(low[:, 0], minlength=256) - 256) ** 2 / 256).sum() < 365


def test_numbers_of_samples_epochs_seeds_and_augmentations_are_independent():
    rows = torch.arange(1 << 15)
    streams = [*numbers(rows, 3).unbind(1), numbers(rows + 1, 1)[:, 0], numbers(rows, 1, seed=1)[:, 0]]
    streams += [numbers(rows, 1, epoch=2)[:, 0], numbers(rows, 1, which=1)[:, 0], numbers(rows * 1024, 1)[:, 0]]
    correlations = torch.corrcoef(torch.stack(streams).double()) - torch.eye(len(streams))
    assert correlations.abs().max() < 5 / math.sqrt(len(rows))
    one, other = numbers(rows, 1)[:, 0], numbers(rows, 1, epoch=2)[:, 0]
    pairs = torch.bincount((one * 16).long() * 16 + (other * 16).long(), minlength=256)
    assert 165 < ((pairs - 128) ** 2 / 128).sum() < 365  # of pairs, not only on average


def test_one_bit_of_a_row_changes_half_of_the_bits():
    key, rows = torch.tensor([signed(derive_state(0, AUGMENT, 1, 0))]), torch.arange(4096)
    for bit in (0, 1, 11, 30, 62):
        changed = mix(key, rows) ^ mix(key, rows ^ (1 << bit))
        flipped = sum(((changed >> place) & 1).double().mean() for place in range(64))
        assert 31.5 < flipped < 32.5


# Each augmentation against a loop over samples


def flip(x, u, *, direction="horizontal", p=0.5):
    if direction != "vertical" and u[0] < p:
        x = [[row[::-1] for row in channel] for channel in x]
    if direction != "horizontal" and u[1] < p:
        x = [channel[::-1] for channel in x]
    return x


def crop(x, u, *, padding, fill="zeros"):
    height, width = len(x[0]), len(x[0][0])
    down, right = (int(number * (2 * padding + 1)) - padding for number in u)

    def pixel(channel, i, j):
        if fill == "zeros" and not (0 <= i < height and 0 <= j < width):
            return 0
        for size, edge in ((height, "i"), (width, "j")):
            at = i if edge == "i" else j
            at = (abs(at) if at < size else 2 * size - 2 - at) if fill == "reflect" else min(max(at, 0), size - 1)
            i, j = (at, j) if edge == "i" else (i, at)
        return channel[i][j]

    return [[[pixel(c, i + down, j + right) for j in range(width)] for i in range(height)] for c in x]


def cutout(x, u, *, size):
    centre = int(u[0] * len(x[0])), int(u[1] * len(x[0][0]))
    begin = [c - size // 2 for c in centre]
    inside = [range(b, b + size) for b in begin]
    return [
        [[0 if i in inside[0] and j in inside[1] else v for j, v in enumerate(r)] for i, r in enumerate(c)] for c in x
    ]


def brightness(x, u, *, strength):
    return (torch.tensor(x) * (1 + strength * (2 * u[0] - 1))).tolist()


def contrast(x, u, *, strength):
    x = torch.tensor(x).double()
    return (x.mean() + (x - x.mean()) * (1 + strength * (2 * u[0] - 1))).tolist()


def noise(x, u, *, std):
    x = torch.tensor(x).double()
    middle = torch.tensor(u, dtype=torch.float64).reshape(x.shape) + 2.0**-25
    return (x + 2.0 * std * torch.special.ndtri(middle)).tolist()  # units of 2


CASES = {
    "random_flip": (flip, 2, [{}, {"direction": "vertical", "p": 0.3}, {"direction": "both"}, {"p": 1.0}]),
    "random_crop": (crop, 2, [{"padding": 4, "fill": fill} for fill in ("zeros", "reflect", "edge")]),
    "cutout": (cutout, 2, [{"size": size} for size in (1, 2, 3, 9)]),
    "random_brightness": (brightness, 1, [{"strength": 0.3}]),
    "random_contrast": (contrast, 1, [{"strength": 1.0}]),
    "gaussian_noise": (noise, 105, [{"std": 0.5}]),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("name", sorted(augmentations))
def test_each_is_what_a_loop_over_samples_gives(name, dtype):
    reference, count, cases = CASES[name]
    x, drawn = PIXELS.to(dtype), numbers(range(40), count)
    facts = augmentations[name].facts
    units = {"units": torch.tensor(2.0)} if facts.get("units") else {}
    for arguments in cases:
        made = augmentations[name].factory(x, lambda n: numbers(range(40), n), **units, **arguments)
        expected = [reference(one.tolist(), u.tolist(), **arguments) for one, u in zip(x, drawn, strict=True)]
        if facts.get("values"):
            torch.testing.assert_close(made.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=2e-4)
            assert made.dtype.is_floating_point and made.dtype == (dtype if dtype.is_floating_point else made.dtype)
        else:
            assert made.dtype is dtype and made.tolist() == expected
    assert torch.equal(x, PIXELS.to(dtype))  # the data stay as they are


def augmented(name, x, *, units=None, **arguments):
    factory = augmentations[name].factory
    more = {} if units is None else {"units": units}
    return factory(x, lambda n: numbers(range(len(x)), n), **more, **arguments)


def test_flips_shifts_and_holes_are_spread_evenly():
    x = torch.arange(1, 50, dtype=torch.float32).reshape(1, 1, 7, 7).repeat(14000, 1, 1, 1)
    flipped = augmented("random_flip", x, direction="both", p=0.3)[:, 0, 0, 0]
    shares = [float((flipped == corner).float().mean()) for corner in (1, 7, 43, 49)]
    assert shares == pytest.approx([0.49, 0.21, 0.21, 0.09], abs=0.015)
    centre = augmented("random_crop", x, padding=2)[:, 0, 3, 3].long()
    counts = torch.bincount(centre)[torch.bincount(centre) > 0]
    assert len(counts) == 25 and counts.min() > 450 and counts.max() < 680  # 560 each by chance
    holes = (augmented("cutout", x, size=1) == 0).float().mean((0, 1))
    assert holes.sum() == pytest.approx(1) and holes.min() > 0.015 and holes.max() < 0.026  # 1 / 49


def test_factors_and_noise_have_their_moments():
    x = torch.randn(20000, 1, 2, 2, generator=torch.Generator().manual_seed(1)) + 3
    factor = (augmented("random_brightness", x, strength=0.4) / x)[:, 0, 0, 0]
    assert 0.6 <= factor.min() < 0.601 and 1.399 < factor.max() <= 1.4 and factor.mean() == pytest.approx(1, abs=0.01)
    contrasted = augmented("random_contrast", x, strength=0.4)
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), x.mean((1, 2, 3)))
    noise = (augmented("gaussian_noise", x, units=torch.tensor(1.0), std=0.5) - x).double() / 0.5
    assert noise.mean().abs() < 0.015 and noise.std() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.1) and noise.isfinite().all()
    ends = augmentations["gaussian_noise"].factory(
        torch.zeros(2, 1), lambda n: torch.tensor([[0.0], [1 - 2.0**-24]]), torch.tensor(1.0), std=1.0
    )
    assert ends.flatten().tolist() == pytest.approx([-5.29, 5.29], abs=0.2)


# In a run


def seen(trainer, epoch, seed=0, start=0):
    """Return the batches of an epoch, and the samples by row."""
    batches = [x for x, _ in trainer.train.shuffled(seed, epoch, start)]
    order = trainer.train.order(seed, epoch)[start * trainer.train.batch_size :]
    return dict(zip(order.tolist(), torch.cat(batches), strict=True))


def test_a_sample_depends_on_seed_epoch_and_row_alone():
    first = seen(built(ALL), 1)
    for other in (
        built(ALL, batch_size=32),
        built(ALL, batch_size=8, accumulate=4),
        built(ALL, splits={"random": {"val": 0.5}}),
    ):
        now = seen(other, 1)
        assert now and all(torch.equal(now[row], first[row]) for row in now)
    whole, rest = seen(built(ALL), 2), seen(built(ALL), 2, start=3)
    assert len(rest) < len(whole) and all(torch.equal(rest[row], whole[row]) for row in rest)
    for other in (seen(built(ALL), 2), seen(built(ALL), 1, seed=1)):
        assert not any(torch.equal(first[row], other[row]) for row in first.keys() & other.keys())


def test_every_list_of_augmentations_gives_the_second_its_own_numbers():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    data, module = (x, torch.arange(200) % 2), nn.Sequential(nn.Flatten(), linear(64, 4))
    once, twice = (built([{"random_crop": 2}] * n, data=data, transform="none", module=module) for n in (1, 2))
    once, twice = (torch.stack(list(seen(trainer, 1).values()))[:, 0, 4, 4] for trainer in (once, twice))
    assert len(once.unique()) <= 25 < len(twice.unique())  # else both would shift by the same


def test_only_training_sees_augmented_samples():
    trainer = built(ALL)
    module = nn.Sequential(nn.Flatten(), linear(105, 4))
    looks = []
    module.register_forward_pre_hook(lambda module, args: looks.append((module.training, args[0].clone())))
    trainer = built(ALL, module=module, epochs=2)
    plain = {
        name: torch.cat([x for x, _ in part.in_order()]) for name, part in (("t", trainer.train), ("v", trainer.val))
    }
    assert torch.equal(plain["t"], PIXELS[trainer.train.rows]) and torch.equal(plain["v"], PIXELS[trainer.val.rows])
    looks.clear()
    trainer.fit()
    scaled = trainer.objective.transform(PIXELS).double()
    known = {tuple(one.flatten().tolist()) for one in scaled}
    for training, x in looks:
        assert training != all(tuple(one.flatten().tolist()) in known for one in x)


def test_the_same_run_has_the_same_bits_and_a_resumed_one_too(tmp_path):
    class Killed(BaseException):
        pass

    def kill(trainer):
        if trainer.step == 13:  # within the second epoch of eight steps
            raise Killed

    def go(folder, resume=False, then=lambda trainer: None):
        source = {"arrays": {"transform": "scale", "augment": ALL}}
        declared = fitkit.load_spec(spec(data=source, epochs=3))
        callbacks = [fitkit.LambdaCallback(on_step_end=then)]
        module = nn.Sequential(nn.Flatten(), linear(105, 4))
        data = (PIXELS, LABELS)
        more = {"model": module, "data": data, "resume": resume, "callbacks": callbacks, "every_steps": 3}
        return state_of(run(declared, out=folder, **more)[1])

    whole = go(tmp_path / "whole")
    assert same_bits(whole, go(tmp_path / "again"))
    with pytest.raises(Killed):
        go(tmp_path / "cut", then=kill)
    assert same_bits(whole, go(tmp_path / "cut", resume=True))


def test_accumulated_and_halved_batches_give_the_same_step():
    once = built(ALL, batch_size=32, epochs=2)
    parts = built(ALL, batch_size=8, accumulate=4, epochs=2)
    halved = built(ALL, batch_size=32, epochs=2, out_of_memory="halve")
    halved.micro_batch = 5
    for trainer in (once, parts, halved):
        trainer.fit()
    for other in (parts, halved):
        for name, tensor in once.model.state_dict().items():
            torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-9)


def test_noise_has_the_units_of_what_the_model_gets():
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([1000.0, 0.01]) + 5
    trainer = built(
        [{"gaussian_noise": 0.1}], data={"train": (x, LABELS.repeat(100))}, transform="standardize", module=linear(2, 4)
    )
    samples = seen(trainer, 1)
    moved = trainer.objective.transform(torch.stack([samples[row] for row in range(4000)]))
    spread = (moved - trainer.objective.transform(x)).std(0)
    assert spread.tolist() == pytest.approx([0.1, 0.1], rel=0.05)


def test_a_registered_augmentation_is_one_definition():
    @fitkit.register.augmentation
    def invert(x, draw, *, p: float = 0.5):
        """Turn an image into its negative."""
        return torch.where(draw(1)[:, :, None, None] < p, 255 - x, x)

    @fitkit.register.augmentation
    def shrink(x, draw):
        """Lose half of an image."""
        return x[..., ::2]

    try:
        trainer = built([{"invert": {"p": 1.0}}])
        made = seen(trainer, 1)
        assert trainer.recipe is None and all(torch.equal(made[row], 255 - PIXELS[row]) for row in made)
        with pytest.raises(SpecError, match=r"augment\[0\].shrink: shrink must return samples of the same shape"):
            built(["shrink"])
    finally:
        del TABLES["augmentations"]["invert"], TABLES["augmentations"]["shrink"]


# What does not fit


@pytest.mark.parametrize(
    ("augment", "data", "says"),
    [
        (
            ["random_flip"],
            (torch.zeros(40, 9), LABELS),
            r"random_flip takes images, \(C, H, W\), but one sample has shape \(9,",
        ),
        (["random_flip"], (torch.zeros(40, 9, 9), LABELS), r"give it one channel, \(1, 9, 9\)"),
        (["random_flip"], (torch.zeros(40, 9, 9, 3), LABELS), r"looks like \(H, W, C\): move the channels first"),
        ([{"random_crop": 5}], (PIXELS, LABELS), "random_crop by 5 pixels can leave nothing of 7 x 5"),
        ([{"cutout": 10}], (PIXELS, LABELS), "cutout of 10 pixels erases all of 7 x 5"),
        ([{"gaussian_noise": 0.1}], (PIXELS, LABELS), "gives real numbers, but x holds whole ones .uint8"),
        (["random_flip"] * 17, (PIXELS, LABELS), "has 17 augmentations, and at most 16 are taken"),
        (["random_flip"], Noisy(), "augmentations need the data in memory. Do them in the Dataset"),
        (["random_flip"], {"train": Noisy()}, "augmentations need the data in memory"),
        (
            "random_flip",
            (PIXELS, LABELS),
            r'expects a list of augmentations, not "random_flip". Write \["random_flip"\]',
        ),
        (
            {"random_flip": {"p": 0.5}},
            (PIXELS, LABELS),
            r"expects a list of augmentations, not a mapping. Write \[\{random_flip: …\}\]",
        ),
        (
            ["RandomHorizontalFlip"],
            (PIXELS, LABELS),
            'no augmentation "RandomHorizontalFlip". Did you mean "random_flip"',
        ),
        (["random_crop"], (PIXELS, LABELS), "random_crop needs padding"),
        ([{"cutout": 0}], (PIXELS, LABELS), "expects a whole number, at least 1, not 0"),
        ([{"random_flip": {"p": 2}}], (PIXELS, LABELS), "at least 0 and at most 1, not 2"),
    ],
)
def test_what_does_not_fit_is_said_where_it_stands(augment, data, says):
    with pytest.raises(SpecError, match=f"data.arrays.augment.*{says}"):
        built(augment, data=data, transform="none")


def test_token_ids_are_not_augmented(tmp_path):
    (tmp_path / "a.txt").write_text("abcab" * 50)
    declared = {"data": {"text": {"path": str(tmp_path / "a.txt"), "augment": [{"gaussian_noise": 1}]}}, "model": "gpt"}
    with pytest.raises(SpecError, match="the samples are token ids"):
        fitkit.build(declared)


# In a graph


def test_a_stored_graph_is_of_its_own_augmentations():
    recipes = [
        fitkit.build({"data": {"digits": {"layout": "image", "augment": augment}}, "model": "mlp"}).recipe
        for augment in (None, [], ["random_flip"], [{"random_flip": {"p": 0.4}}], [{"random_crop": 1}], [{"cutout": 1}])
    ]
    assert recipes[0] == recipes[1] and len({str(recipe) for recipe in recipes}) == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Dynamo|.*does not support|.*online softmax")
def test_graphs_see_what_eager_steps_see_and_one_serves_every_epoch_and_seed(tmp_path, monkeypatch):
    try:
        check_compile(True)
    except SpecError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("FITKIT_CACHE", str(tmp_path))
    compilations = []
    compiled = whole_step.compile_graph
    monkeypatch.setattr(whole_step, "compile_graph", lambda *a, **k: (compilations.append(1), compiled(*a, **k))[1])

    def fit(compile, seed=0):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a step that is no graph
            trainer = fitkit.build(
                {
                    "data": {"digits": {"layout": "image", "augment": [ALL[0], ALL[1], ALL[5]]}},
                    "splits": {"random": {"val": 0.2, "test": 0.5}},
                    "model": {"mlp": [16]},
                    "seed": seed,
                    "optimizer": {"SGD": 0.1},
                    "fit": {"epochs": 4, "batch_size": 600, "device": "cpu", "compile": compile},
                }
            )
            if compile:
                trainer._train_step.steps = 1
            trainer.fit()
        return trainer

    eager, graphs = fit(False), fit(True)
    assert len(compilations) == 1 and graphs.compiled == "whole steps"
    assert graphs.history["loss"] == pytest.approx(eager.history["loss"], rel=1e-5)
    other = fit(True, seed=3)  # from the cache
    assert len(compilations) == 1 and other.history["loss"] == pytest.approx(
        fit(False, seed=3).history["loss"], rel=1e-5
    )


def test_augment_of_no_sample_is_nothing():
    augment = Augment([lambda x, draw: x + draw(1)], torch.zeros(1, dtype=torch.int64))
    assert augment(torch.zeros(0, 1), torch.arange(0)).shape == (0, 1)
