"""The table of layers: every row is checkable, builds, trains, and says in plain words when it does not fit."""

import typing

import pytest
import torch
from torch import nn

from fitkit.data import Inputs
from fitkit.errors import SpecError
from fitkit.parts.layers import Layers, build_layers, layers
from fitkit.spec.component import Component
from fitkit.spec.reader import Node
from fitkit.spec.types import Range
from fitkit.spec.values import convert, describe, options

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

SAMPLE = {"": (8, 6), "BC": (8,), "BD": (8,), "BCL": (8, 12), "BTD": (5, 8), "BCHW": (8, 6, 6), "BCDHW": (8, 4, 4, 4)}

# What a row needs beyond its defaults, and the shape it gives where that is not the shape it takes.
CASES: dict[str, tuple[dict[str, object], tuple[int, ...] | None]] = {
    "Linear": ({"out_features": "outputs"}, (3,)),
    "Embedding": ({"embedding_dim": 4}, (8, 6, 4)),
    "Flatten": ({}, (48,)),
    "Unflatten": ({"unflattened_size": (2, -1)}, (2, 4, 6)),
    "Conv1d": ({"out_channels": "outputs", "kernel_size": 3}, (3, 10)),
    "Conv2d": ({"out_channels": 4, "kernel_size": (3, 1), "padding": (1, 0), "groups": 4}, (4, 6, 6)),
    "Conv3d": ({"out_channels": 4, "kernel_size": 3, "padding": "same"}, (4, 4, 4, 4)),
    "ConvTranspose1d": ({"out_channels": 4, "kernel_size": 2, "stride": 2}, (4, 24)),
    "ConvTranspose2d": ({"out_channels": "outputs", "kernel_size": 2, "stride": 2}, (3, 12, 12)),
    "ConvTranspose3d": ({"out_channels": 4, "kernel_size": 2, "stride": 2}, (4, 8, 8, 8)),
    "Unfold": ({"kernel_size": 2}, (32, 25)),
    "Fold": ({"output_size": (4, 5), "kernel_size": 2}, (2, 4, 5)),
    "PixelShuffle": ({"upscale_factor": 2}, (2, 12, 12)),
    "PixelUnshuffle": ({"downscale_factor": 2}, (32, 3, 3)),
    "ChannelShuffle": ({"groups": 2}, None),
    "Upsample": ({"scale_factor": 2}, (8, 24)),
    "GroupNorm": ({"num_groups": 4}, None),
    "LocalResponseNorm": ({"size": 2}, None),
    "RNN": ({"hidden_size": 4, "num_layers": 2, "dropout": 0.5, "nonlinearity": "relu"}, (5, 4)),
    "GRU": ({"hidden_size": 4, "bidirectional": True}, (5, 8)),
    "LSTM": ({"hidden_size": 4, "proj_size": 2}, (5, 2)),
    "TransformerEncoderLayer": ({"nhead": 2, "activation": "gelu"}, None),
    "Last": ({}, (8,)),
    "Mean": ({}, (8,)),
    "GLU": ({}, (8, 3)),
    "Threshold": ({"threshold": 0.1, "value": 20.0}, None),
}
for _n, _sides in (("1d", (12,)), ("2d", (6, 6)), ("3d", (4, 4, 4))):
    _half = (8, *(side // 2 for side in _sides))
    CASES |= {f"{kind}{_n}": ({"kernel_size": 2}, _half) for kind in ("MaxPool", "AvgPool")}
    CASES |= {f"LPPool{_n}": ({"norm_type": 2.0, "kernel_size": 2}, _half)}
    CASES |= {f"Adaptive{kind}Pool{_n}": ({"output_size": 2}, (8, *(2 for _ in _sides))) for kind in ("Max", "Avg")}
    _padded = (8, *(side + 2 for side in _sides))
    CASES |= {f"{kind}Pad{_n}": ({"padding": 1}, _padded) for kind in ("Circular", "Reflection", "Replication", "Zero")}
    CASES |= {f"ConstantPad{_n}": ({"padding": 1, "value": 0.5}, _padded)}

ARGUMENTS = [(name, argument) for name, entry in layers.items() for argument in entry.arguments.values()]


def component(name, path="model[0]", /, **args):
    return Component(layers[name], args, f"{path}.{name}")


def inputs_of(name):
    if name == "Fold":
        return Inputs((8, 12))
    facts = layers[name].facts
    shape = SAMPLE[facts["takes"][0] if facts["takes"] else ""]
    return Inputs(shape, 10 if facts.get("tokens") == "only" else None)


def batch_of(inputs):
    if inputs.vocabulary is not None:
        return torch.randint(inputs.vocabulary, (4, *inputs.shape))
    return 0.1 + torch.rand(4, *inputs.shape)  # positive: the gradient of an L2 norm at 0 is not a number


def one(name, inputs=None, outputs=3, **args):
    return build_layers([component(name, **args)], inputs or inputs_of(name), outputs)


def built(name):
    torch.manual_seed(0)
    return one(name, **CASES.get(name, ({}, None))[0])


def refusal(*listed, shape=(64,), vocabulary=None, outputs=10):
    with pytest.raises(SpecError) as caught:
        build_layers([component(name, **args) for name, args in listed], Inputs(shape, vocabulary), outputs)
    return str(caught.value)


def atoms(annotation):
    """The plain types at the bottom of an annotation."""
    for option in options(annotation):
        origin = typing.get_origin(option)
        if origin is typing.Annotated:
            inner, *marks = typing.get_args(option)
            assert all(isinstance(mark, Range) for mark in marks)
            yield from atoms(inner)
        elif origin in (tuple, list):
            for member in typing.get_args(option):
                yield from () if member is Ellipsis else atoms(member)
        elif origin is typing.Literal:
            yield from map(type, typing.get_args(option))
        else:
            yield option


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS, ids=[f"{name}.{a.name}" for name, a in ARGUMENTS])
def test_every_argument_has_an_annotation_that_can_be_checked(name, argument):
    assert set(atoms(argument.annotation)) <= {int, float, bool, str, type(None)}
    assert str not in options(argument.annotation)  # a choice of words is a Literal
    assert "a value" not in describe(argument.annotation)
    if not argument.required:
        assert convert(argument.annotation, Node(argument.default)) == argument.default


def test_no_row_offers_what_a_spec_must_not_say():
    offered = {argument.name for _, argument in ARGUMENTS}
    assert not offered & {"device", "dtype", "inplace", "return_indices", "sparse", "args", "kwargs"}
    assert not [name for name in offered if name.startswith("_")]


def test_every_case_is_in_the_table():
    assert set(CASES) <= set(layers)


def test_left_out_are_layers_that_cannot_stand_in_a_list():
    for name in ("Sequential", "Bilinear", "LSTMCell", "LazyLinear", "MaxUnpool2d", "MultiheadAttention", "MSELoss"):
        assert name not in layers


@pytest.mark.parametrize("name", sorted(layers))
def test_every_layer_builds_as_torch_gives_it_and_its_output_has_the_right_shape(name):
    model, inputs = built(name), inputs_of(name)
    assert type(model) is Layers and type(model[0]) is layers[name].factory
    assert all(module.training for module in model.modules())
    expected = CASES.get(name, ({}, None))[1] or inputs.shape
    assert model(batch_of(inputs)).shape == (4, *expected)


@pytest.mark.parametrize("name", sorted(layers))
def test_every_layer_trains_with_finite_gradients(name):
    model, x = built(name), batch_of(inputs_of(name))
    if x.is_floating_point():
        x.requires_grad_()
    model(x).square().sum().backward()
    leaves = [*model.parameters(), *([x] if x.is_floating_point() else [])]
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("name", sorted(layers))
def test_every_layer_round_trips_its_state(name):
    first = built(name)
    torch.manual_seed(1)
    second = one(name, **CASES.get(name, ({}, None))[0])
    assert all(key.startswith("0.") for key in first.state_dict())
    second.load_state_dict(first.state_dict(), strict=True)
    x = batch_of(inputs_of(name))
    torch.testing.assert_close(first.eval()(x), second.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(layers))
def test_no_layer_mixes_the_samples_of_a_batch(name):
    model, x = built(name).eval(), batch_of(inputs_of(name))
    torch.testing.assert_close(model(x)[1:3], model(x[1:3]))


def test_sizes_are_those_of_what_reaches_a_layer():
    model = build_layers(
        [
            component("Conv2d", out_channels=6, kernel_size=3),
            component("BatchNorm2d"),
            component("GroupNorm", num_groups=3),
            component("MaxPool2d", kernel_size=2),
            component("Flatten"),
            component("Linear", out_features=20),
            component("LayerNorm"),
            component("Linear", out_features="outputs"),
        ],
        Inputs((1, 8, 8)),
        10,
    )
    assert [tuple(p.shape) for p in model.parameters() if p.ndim > 1] == [(6, 1, 3, 3), (20, 54), (10, 20)]
    assert (model[1].num_features, model[2].num_channels, model[6].normalized_shape) == (6, 6, (20,))


def test_token_layers_take_the_vocabulary_and_recurrent_layers_the_width():
    listed = [
        component("Embedding", embedding_dim=5),
        component("LSTM", hidden_size=4, bidirectional=True),
        component("TransformerEncoderLayer", nhead=2),
        component("Mean"),
        component("Linear", out_features="outputs"),
    ]
    model = build_layers(listed, Inputs((7,), 30), 2)
    assert model[0].num_embeddings == 30
    assert (model[1].input_size, model[1].batch_first) == (5, True)
    assert model[2].self_attn.embed_dim == 8
    assert model(torch.randint(30, (3, 7))).shape == (3, 2)


def test_the_weights_are_those_that_torch_draws_in_the_same_order():
    torch.manual_seed(3)
    listed = [component("Linear", out_features=5), component("RReLU"), component("Linear", out_features="outputs")]
    ours = build_layers(listed, Inputs((4,)), 2)
    torch.manual_seed(3)
    theirs = nn.Sequential(nn.Linear(4, 5), nn.RReLU(), nn.Linear(5, 2))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=0, atol=0)


def test_building_leaves_running_statistics_as_they_begin():
    model = one("BatchNorm1d", Inputs((8,)))
    torch.testing.assert_close(model[0].running_mean, torch.zeros(8))
    assert model[0].num_batches_tracked == 0


def test_last_and_mean_are_over_time():
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(one("Last")(x), x[:, 4])
    torch.testing.assert_close(one("Mean")(x), x.sum(1) / 5)


def test_softmax_is_over_the_last_dimension_and_says_what_it_gives():
    torch.testing.assert_close(one("Softmax")(torch.randn(2, 8, 6)).sum(-1), torch.ones(2, 8))
    assert layers["Softmax"].facts["output"] == layers["Sigmoid"].facts["output"] == "probabilities"
    assert layers["LogSoftmax"].facts["output"] == "log_probabilities"


@pytest.mark.parametrize(
    ("name", "primary"),
    [
        ("Linear", "out_features"),
        ("Dropout", "p"),
        ("MaxPool2d", "kernel_size"),
        ("AdaptiveAvgPool2d", "output_size"),
        ("Embedding", "embedding_dim"),
        ("LSTM", "hidden_size"),
        ("GroupNorm", "num_groups"),
        ("Unflatten", "unflattened_size"),
        ("TransformerEncoderLayer", "nhead"),
        ("Conv2d", None),
        ("Threshold", None),
    ],
)
def test_a_value_standing_alone_means_the_obvious_argument(name, primary):
    assert layers[name].primary == primary


def test_sizes_have_ranges_and_words_are_choices():
    for name, argument, value in (
        ("Linear", "out_features", 0),
        ("Linear", "out_features", "output"),
        ("Dropout", "p", 1.5),
        ("BatchNorm1d", "eps", 0.0),
        ("BatchNorm1d", "momentum", 2),
        ("Conv2d", "padding_mode", "mirror"),
        ("LSTM", "batch_first", False),
        ("GELU", "approximate", "sigmoid"),
    ):
        with pytest.raises(Exception, match="expects"):
            convert(layers[name].arguments[argument].annotation, Node(value))
    with pytest.raises(Exception, match="list of 3"):
        convert(layers["Conv2d"].arguments["kernel_size"].annotation, Node([Node(3), Node(3), Node(3)]))


CONV = ("Conv2d", {"out_channels": 4, "kernel_size": 5})


@pytest.mark.parametrize(
    ("listed", "given", "message"),
    [
        (
            [CONV],
            {"shape": (64,)},
            "Conv2d takes (B, C, H, W), but what reaches it is (B, 64). "
            "Put {Unflatten: [C, H, W]} before it, with C × H × W = 64.",
        ),
        (
            [CONV],
            {"shape": (28, 28)},
            "Conv2d takes (B, C, H, W), but what reaches it is (B, 28, 28). "
            "Put {Unflatten: [1, 28]} before it, which makes it (B, 1, 28, 28).",
        ),
        ([("Conv1d", CONV[1])], {"shape": (1, 8, 8)}, "what reaches it is (B, 1, 8, 8). Take Conv2d."),
        (
            [("Linear", {"out_features": 4})],
            {"shape": (1, 8, 8)},
            "Linear takes (B, D) or (B, T, D), but what reaches it is (B, 1, 8, 8). Put Flatten before it.",
        ),
        (
            [("LSTM", {"hidden_size": 4})],
            {"shape": (64,)},
            "LSTM takes (B, T, D), but what reaches it is (B, 64). Put {Unflatten: [T, D]} before it, with T × D = 64.",
        ),
        ([("GRU", {"hidden_size": 4})], {"shape": (1, 8, 8)}, "Put {Flatten: {start_dim: 2}} before it."),
        (
            [("Flatten", {}), ("MaxPool1d", {"kernel_size": 2})],
            {"shape": (2, 8)},
            "Put {Unflatten: [1, 16]} before it, which makes it (B, 1, 16).",
        ),
        (
            [CONV],
            {"shape": (1, 3, 8)},
            "Conv2d does not fit what reaches it, (B, 1, 3, 8): its kernel covers 5 × 5, and the padded input is only "
            "3 × 8. Take a smaller kernel, or pool less.",
        ),
        (
            [("MaxPool2d", {"kernel_size": 2}), ("AvgPool2d", {"kernel_size": (5, 1), "padding": (1, 0)})],
            {"shape": (1, 4, 4)},
            "AvgPool2d does not fit what reaches it, (B, 1, 2, 2): its kernel covers 5 × 1",
        ),
        (
            [("Linear", {"out_features": 4, "in_features": 10})],
            {"shape": (64,)},
            "model[0].Linear.in_features: is 10, but what reaches Linear is (B, 64). Leave it out.",
        ),
        (
            [("LayerNorm", {"normalized_shape": (8, 4)})],
            {"shape": (8, 8)},
            "normalized_shape: is (8, 4), but what reaches LayerNorm is (B, 8, 8). Leave it out.",
        ),
        (
            [("Embedding", {"embedding_dim": 4})],
            {"shape": (64,)},
            "Embedding takes token ids, but what reaches it is measurements, (B, 64).",
        ),
        (
            [("Linear", {"out_features": 4})],
            {"shape": (16,), "vocabulary": 100},
            "Linear takes measurements, but what reaches it is token ids. Put {Embedding: 64} before it.",
        ),
        (
            [("Embedding", {"embedding_dim": 4, "num_embeddings": 99})],
            {"shape": (16,), "vocabulary": 100},
            "num_embeddings: is 99, but the data holds 100 different token ids. Leave it out.",
        ),
        (
            [("Flatten", {"start_dim": 0})],
            {"shape": (4, 4)},
            "start_dim: dimension 0 of (B, 4, 4) is the samples: Flatten would mix them. Count from 1.",
        ),
        ([("Softmax", {"dim": -2})], {"shape": (4,)}, "dimension -2 of (B, 4) is the samples"),
        ([("ZeroPad2d", {"padding": -2})], {"shape": (1, 4, 4)}, "ZeroPad2d leaves nothing of (B, 1, 4, 4)"),
        ([("TransformerEncoderLayer", {"nhead": 3})], {"shape": (5, 8)}, "must be divisible by num_heads."),
        (
            [("GroupNorm", {"num_groups": 3})],
            {"shape": (8, 4)},
            "num_channels (8) must be divisible by num_groups",
        ),
        ([("LSTM", {"hidden_size": 4, "dropout": 0.5})], {"shape": (5, 8)}, "expects num_layers greater than 1"),
        ([("Unflatten", {"unflattened_size": (3, 3)})], {"shape": (8,)}, "does not fit what reaches it, (B, 8): "),
        ([("Linear", {"out_features": 10**14})], {"shape": (8,)}, "Linear refuses these arguments: "),
        ([("ReLU", {})], {"shape": ()}, "each sample is a single number. Give the data the shape (samples, 1)."),
        ([], {}, "model: has no layers."),
    ],
)
def test_a_layer_that_does_not_fit_says_why_and_what_to_write(listed, given, message):
    said = refusal(*listed, **given)
    assert message in said
    assert "\n" not in said


def test_an_error_names_the_layer_in_the_list():
    assert refusal(("ReLU", {}), CONV).startswith("model[0].Conv2d: ")


def test_the_container_compiles_to_one_graph():
    listed = [component("Embedding", embedding_dim=4), component("TransformerEncoderLayer", nhead=2), component("Last")]
    model = build_layers(listed, Inputs((5,), 9), 1).eval()
    x = torch.randint(9, (2, 5))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
