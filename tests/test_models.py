"""The table of models: every model builds, trains, compiles, and refuses input of the wrong shape in plain words."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fitkit.data import Inputs
from fitkit.parts.models import ResidualBlock, Subsample, TransformerBlock, models
from fitkit.spec.component import Component
from fitkit.spec.reader import Node
from fitkit.spec.values import convert

# For each model: inputs that it takes, and arguments that make it small.
CASES = {
    "mlp": [
        (Inputs((1, 4, 4)), {"hidden": (8,), "norm": "BatchNorm1d", "dropout": 0.1}),
        (Inputs((5,)), {"hidden": ()}),
    ],
    "cnn": [(Inputs((2, 9, 7)), {"channels": (4, 8), "dropout": 0.1}), (Inputs((8, 8)), {}), (Inputs((1, 1, 5)), {})],
    "resnet18": [(Inputs((3, 16, 16)), {}), (Inputs((8, 8)), {})],
    "resnet20": [(Inputs((3, 16, 12)), {}), (Inputs((8, 8)), {})],
    "lstm": [(Inputs((6,), 11), {"width": 8, "depth": 2, "dropout": 0.1}), (Inputs((6, 3)), {"bidirectional": True})],
    "transformer": [(Inputs((6,), 11), {"width": 8, "depth": 2, "heads": 2}), (Inputs((6, 3)), {"width": 8})],
    "gpt": [(Inputs((6,), 11), {"width": 8, "depth": 2, "heads": 2}), (Inputs((6,), 11), {"tie_weights": False})],
}
WALK = [(name, *case) for name in sorted(models) for case in CASES[name]]
walk = pytest.mark.parametrize(
    ("name", "inputs", "args"), WALK, ids=[f"{n}-{i.shape}-{i.vocabulary}" for n, i, _ in WALK]
)


def built(name, inputs, outputs=3, seed=0, **args):
    torch.manual_seed(seed)
    return Component(models[name], args, f"model.{name}").build(inputs, outputs)


def outputs_of(name):
    return 11 if name == "gpt" else 3


def batch_of(inputs, size=4):
    torch.manual_seed(7)
    if inputs.vocabulary is not None:
        return torch.randint(inputs.vocabulary, (size, *inputs.shape))
    return torch.randn(size, *inputs.shape)


def refusal(name, inputs, outputs=3, **args):
    with pytest.raises(ValueError) as caught:
        models[name].factory(inputs, outputs, **args)
    return str(caught.value)


def count(model):
    return sum(p.numel() for p in model.parameters())


@walk
def test_every_model_gives_one_row_of_outputs_a_sample(name, inputs, args):
    model = built(name, inputs, outputs_of(name), **args)
    assert all(module.training for module in model.modules())
    expected = (4, 6, 11) if name == "gpt" else (4, 3)
    assert model(batch_of(inputs)).shape == expected


@walk
def test_every_model_trains_all_its_weights_with_finite_gradients(name, inputs, args):
    model = built(name, inputs, outputs_of(name), **args)
    model(batch_of(inputs)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.ndim == 1 or parameter.grad.any(), key


@walk
def test_every_model_is_its_seed_and_round_trips_its_state(name, inputs, args):
    first, again = (built(name, inputs, outputs_of(name), **args) for _ in range(2))
    other = built(name, inputs, outputs_of(name), seed=1, **args)
    x = batch_of(inputs)
    torch.testing.assert_close(first.eval()(x), again.eval()(x), rtol=0, atol=0)
    assert not torch.equal(first(x), other.eval()(x))
    other.load_state_dict(first.state_dict(), strict=True)
    torch.testing.assert_close(first(x), other(x), rtol=0, atol=0)


@walk
def test_no_two_names_of_a_state_share_memory(name, inputs, args):
    state = built(name, inputs, outputs_of(name), **args).state_dict()
    assert len({tensor.data_ptr() for tensor in state.values() if tensor.numel() > 1}) == sum(
        tensor.numel() > 1 for tensor in state.values()
    )


@walk
def test_no_model_mixes_the_samples_of_a_batch(name, inputs, args):
    model, x = built(name, inputs, outputs_of(name), **args).eval().double(), batch_of(inputs)
    x = x.double() if x.is_floating_point() else x
    torch.testing.assert_close(model(x)[1:3], model(x[1:3]))


@pytest.mark.parametrize("name", sorted(set(models) - {"lstm", "resnet18"}))  # torch compiles no LSTM as one graph
def test_every_model_compiles_to_one_graph(name):
    inputs, args = CASES[name][0]
    model, x = built(name, inputs, outputs_of(name), **args).eval(), batch_of(inputs)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("name", sorted(models))
def test_every_argument_of_a_model_has_a_default_that_its_annotation_allows(name):
    assert models[name].summary.endswith(".")
    for argument in models[name].arguments.values():
        value = argument.default
        node = Node([Node(item) for item in value] if isinstance(value, tuple) else value)
        assert convert(argument.annotation, node) == value


def test_mlp_is_the_layers_that_it_names():
    model = built("mlp", Inputs((2, 3)), 4, hidden=(8, 5), activation="GELU", norm="LayerNorm", dropout=0.5)
    kinds = [nn.Flatten, *[nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout] * 2, nn.Linear]
    assert [type(layer) for layer in model] == kinds
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [(8, 6), (5, 8), (4, 5)]
    linear = built("mlp", Inputs((6,)), 4, hidden=())
    assert [type(layer) for layer in linear] == [nn.Flatten, nn.Linear]


def test_cnn_pools_while_the_image_has_two_pixels_a_side():
    pools = [isinstance(layer, nn.MaxPool2d) for layer in built("cnn", Inputs((1, 4, 9)), channels=(2, 2, 2, 2))]
    assert sum(pools) == 2


def test_resnet18_is_the_one_of_the_paper():
    with torch.device("meta"):
        model = models["resnet18"].factory(Inputs((3, 224, 224)), 1000)
    assert count(model) == 11_689_512  # as torchvision's
    keys = {"conv1.weight", "bn1.running_var", "layer1.1.conv2.weight", "layer4.0.downsample.1.bias", "fc.bias"}
    assert keys <= set(model.state_dict())
    trunk = [layer for key, layer in model.named_children() if key not in ("avgpool", "flatten", "fc")]
    assert nn.Sequential(*trunk)(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 512, 7, 7)


def test_resnet18_does_not_shrink_a_small_image_before_its_blocks():
    with torch.device("meta"):
        model = models["resnet18"].factory(Inputs((3, 32, 32)), 10)
    assert model.conv1(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 64, 32, 32)
    assert isinstance(model.maxpool, nn.Identity)


def test_resnet20_has_the_weights_of_the_paper():
    model = built("resnet20", Inputs((3, 32, 32)), 10)
    assert count(model) == 269_722  # 0.27 million in table 6; no projection has weights
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 20


def test_a_shortcut_without_weights_takes_every_second_pixel_and_adds_zeros():
    x = torch.randn(2, 3, 5, 6)
    y = Subsample(2, 4)(x)
    torch.testing.assert_close(y[:, :3], x[:, :, ::2, ::2])
    assert y.shape == (2, 7, 3, 3) and not y[:, 3:].any()


def test_a_residual_block_is_the_formula_of_the_paper():
    block = ResidualBlock(3, 5, 2, project=True).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    scale = 1 / math.sqrt(1 + 1e-5)  # a fresh batch norm in evaluation
    y = F.relu(scale * F.conv2d(x, block.conv1.weight, stride=2, padding=1))
    y = scale * F.conv2d(y, block.conv2.weight, padding=1)
    shortcut = scale * F.conv2d(x, block.downsample[0].weight, stride=2)
    torch.testing.assert_close(block(x), F.relu(y + shortcut))


def test_lstm_reads_the_last_state_of_each_direction():
    model = built("lstm", Inputs((6, 3)), 2, width=4, depth=2, bidirectional=True).eval()
    x = batch_of(Inputs((6, 3)))
    out, _ = model.lstm(x)
    torch.testing.assert_close(model(x), model.head(torch.cat((out[:, -1, :4], out[:, 0, 4:]), dim=1)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_transformer_block_is_torchs_pre_norm_encoder_layer(causal):
    torch.manual_seed(0)
    ours = TransformerBlock(12, 3, 0.0, causal=causal).double()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 48, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {
        "norm1": "norm1", "norm2": "norm2", "linear1": "expand", "linear2": "contract",
        "self_attn.in_proj_": "qkv.", "self_attn.out_proj": "project",
    }  # fmt: skip
    state = {key: next(key.replace(a, b) for a, b in names.items() if a in key) for key in theirs.state_dict()}
    theirs.load_state_dict({key: ours.state_dict()[name] for key, name in state.items()})
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64) if causal else None
    torch.testing.assert_close(ours(x), theirs(x, src_mask=mask))


@pytest.mark.parametrize("moved", [1, 3, 5])
def test_gpt_logits_depend_on_no_later_token(moved):
    model = built("gpt", Inputs((6,), 11), 11, width=8, depth=2, heads=2).eval().double()
    x = batch_of(Inputs((6,), 11))
    y = x.clone()
    y[:, moved] = (y[:, moved] + 1) % 11
    before, after = model(x), model(y)
    assert torch.equal(before[:, :moved], after[:, :moved])
    assert (before[:, moved:] != after[:, moved:]).any(dim=2).all()


def test_gpt_takes_less_than_its_context_for_the_same_logits():
    model = built("gpt", Inputs((6,), 11), 11, width=8, depth=2, heads=2).eval().double()
    x = batch_of(Inputs((6,), 11))
    torch.testing.assert_close(model(x)[:, :4], model(x[:, :4]))


def test_gpt_has_the_weights_of_gpt2():
    with torch.device("meta"):
        model = models["gpt"].factory(Inputs((1024,), 50257), 50257, width=768, depth=12, heads=12)
        untied = models["gpt"].factory(Inputs((1024,), 50257), 50257, width=768, depth=12, heads=12, tie_weights=False)
    assert count(model) == 124_439_808
    assert count(untied) - count(model) == 50257 * 768


def test_gpt_draws_its_weights_as_gpt2_does():
    model = built("gpt", Inputs((64,), 500), 500, width=128, depth=8, heads=4)
    for key, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.02 / math.sqrt(16) if key.endswith(("project.weight", "contract.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), key
        else:
            assert (parameter == (1.0 if "norm" in key and key.endswith("weight") else 0.0)).all(), key
    logits = model(batch_of(Inputs((64,), 500)))
    loss = F.cross_entropy(logits.flatten(0, 1), torch.randint(500, (4 * 64,)))
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)  # all tokens about equally likely at the start


def test_dropout_acts_in_training_only():
    model = built("gpt", Inputs((6,), 11), 11, width=8, heads=2, dropout=0.5)
    x = batch_of(Inputs((6,), 11))
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "inputs", "args", "message"),
    [
        ("mlp", Inputs((8,), 11), {}, "mlp takes measurements, but the data holds token ids; take lstm or transformer"),
        ("mlp", Inputs(()), {}, "each is a single number; give the data (samples, 1)"),
        ("cnn", Inputs((64,)), {}, "cnn takes images, (C, H, W) or (H, W), but one sample has shape (64,); take mlp"),
        ("cnn", Inputs((8, 8), 11), {}, "cnn takes measurements, but the data holds token ids"),
        ("cnn", Inputs((8, 8)), {"channels": ()}, "cnn needs at least one block; channels is empty"),
        ("resnet18", Inputs((32, 32, 3)), {}, "(32, 32, 3) looks like (H, W, C); move the channels first"),
        ("resnet20", Inputs((2, 3, 4, 5)), {}, "one sample has shape (2, 3, 4, 5)"),
        ("lstm", Inputs((64,)), {}, "lstm takes sequences, here (T, D) measurements, but one sample has shape (64,)"),
        ("lstm", Inputs((4, 4), 11), {}, "lstm takes sequences, here (T,) token ids, but one sample has shape (4, 4)"),
        ("transformer", Inputs((1, 8, 8)), {}, "one sample has shape (1, 8, 8)"),
        ("transformer", Inputs((8,), 11), {"heads": 3}, "shares its width among the heads, but 3 does not divide 128"),
        ("gpt", Inputs((8, 2)), {}, "gpt takes token ids, but the data holds measurements; take transformer or lstm"),
        ("gpt", Inputs((8,), 11), {}, "gpt predicts the next of 11 tokens, but the target has 3 outputs"),
    ],
)
def test_a_model_that_does_not_fit_says_why_and_what_to_take(name, inputs, args, message):
    assert message in refusal(name, inputs, **args)


def test_gpt_refuses_heads_that_do_not_divide_its_width():
    assert "but 5 does not divide 128" in refusal("gpt", Inputs((8,), 11), 11, heads=5)
