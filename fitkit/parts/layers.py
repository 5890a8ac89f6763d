"""The layers that a spec may put in a list, torch's own as they are, and the builder that makes a network of them.

A layer of torch is one row; what a row says beyond torch's own signature is which shapes the layer takes, which sizes
the run infers, and which argument a value standing alone means. Facts of a row, for whoever reads the table:

    takes    the shapes that the layer takes, a letter a dimension: ["BC", "BCL"]; empty: any
    window   true if the layer slides a kernel over its input
    tokens   "only": takes token ids; "too": takes ids or measurements; left out: takes measurements
    output   "probabilities" or "log_probabilities", where the layer's values are those

Letters: B samples, C channels, L length, D depth or features, H height, W width, T time.

Left out on purpose: layers with several inputs, cells, lazy layers, losses and containers. FractionalMaxPool draws
random numbers in evaluation too, so validation would not be repeatable. `inplace` is no argument: a first layer would
write into the data. `batch_first` is always true: read as (T, B, D), a batch would mix its samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import GenericAlias
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fitkit.data import Inputs
from fitkit.errors import Fault, SpecError, show
from fitkit.spec.component import Component, reason
from fitkit.spec.table import Table
from fitkit.spec.types import Depth, NonNegativeInt, Positive, PositiveInt, Probability

OUTPUTS = "outputs"  # in a spec: as many as the target needs
OMIT = {"device", "dtype", "inplace", "return_indices", "min_value", "max_value"}  # the last two: deprecated by torch
Size = PositiveInt | Literal["outputs"]
REFINE: dict[str, Any] = {
    **dict.fromkeys(("out_features", "out_channels"), Size),
    **dict.fromkeys(("in_features", "in_channels", "num_features", "num_channels", "num_embeddings"), PositiveInt),
    **dict.fromkeys(("embedding_dim", "num_parameters", "num_groups", "groups"), PositiveInt),
    **dict.fromkeys(("upscale_factor", "downscale_factor"), PositiveInt),
    **dict.fromkeys(("eps", "norm_type", "beta"), Positive),
    "normalized_shape": PositiveInt | tuple[PositiveInt, ...],
    "p": Probability,
    "momentum": Probability | None,
    "max_norm": Positive | None,
    "divisor_override": PositiveInt | None,
    "approximate": Literal["none", "tanh"],
    "padding_mode": Literal["zeros", "reflect", "replicate", "circular"],
    "mode": Literal["nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"],
}
INFERRED = {  # the dimension of what reaches a layer that each size is, when the spec leaves it out
    **dict.fromkeys(("in_channels", "num_features", "num_channels"), 1),
    **dict.fromkeys(("in_features", "input_size", "d_model", "normalized_shape"), -1),
}
layers = Table("layer", omit=OMIT, refine=REFINE)


def _row(factory: Any, takes: str = "", refine: dict[str, Any] | None = None, **row: Any) -> None:
    """Enter one layer whose arguments are refined in its own way: the same word means other sizes in other layers."""
    alone = Table("layer", omit=OMIT, refine=REFINE | (refine or {}))
    alone.add(factory, **row, takes=takes.split())
    layers.update(alone)


def _each(item: Any, n: int) -> Any:
    """One number for all n dimensions, or a list of n."""
    return item if n == 1 else item | GenericAlias(tuple, (item,) * n)


def _conv(n: int) -> dict[str, Any]:
    size, gap = _each(PositiveInt, n), _each(NonNegativeInt, n)
    return {"kernel_size": size, "stride": size, "dilation": size, "padding": gap | Literal["same", "valid"]}


def _transposed(n: int) -> dict[str, Any]:
    gap = _each(NonNegativeInt, n)
    return {**_conv(n), "padding": gap, "output_padding": gap, "padding_mode": Literal["zeros"]}


def _pool(n: int) -> dict[str, Any]:
    return {**_conv(n), "padding": _each(NonNegativeInt, n), "stride": _each(PositiveInt, n) | None}


def _adaptive(n: int) -> dict[str, Any]:
    return {"output_size": PositiveInt if n == 1 else PositiveInt | GenericAlias(tuple, (PositiveInt | None,) * n)}


# Signatures that stand in for torch's own: hidden behind *args, or with a default that mixes samples or warns.


def _rnn(
    input_size: PositiveInt,
    hidden_size: PositiveInt,
    num_layers: Depth = 1,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    bias: bool = True,
    batch_first: Literal[True] = True,
    dropout: Probability = 0.0,
    bidirectional: bool = False,
    proj_size: NonNegativeInt = 0,
) -> None: ...


def _encoder_layer(
    d_model: PositiveInt,
    nhead: PositiveInt,
    dim_feedforward: PositiveInt = 2048,
    dropout: Probability = 0.1,
    activation: Literal["relu", "gelu"] = "relu",
    layer_norm_eps: Positive = 1e-5,
    batch_first: Literal[True] = True,
    norm_first: bool = False,
    bias: bool = True,
) -> None: ...


def _softmax(*, dim: int = -1) -> None: ...


def _unflatten(*, dim: int = 1, unflattened_size: tuple[int, ...]) -> None: ...


_row(nn.Linear, "BD BTD", optional=["in_features"])
_row(nn.Embedding, optional=["num_embeddings"], omit=["_weight", "_freeze", "sparse"], tokens="only")
_row(nn.Identity, tokens="too")
_row(nn.Flatten, tokens="too")
_row(nn.Unflatten, signature=_unflatten, tokens="too")

_row(nn.Conv1d, "BCL", _conv(1), optional=["in_channels"], window=True)
_row(nn.Conv2d, "BCHW", _conv(2), optional=["in_channels"], window=True)
_row(nn.Conv3d, "BCDHW", _conv(3), optional=["in_channels"], window=True)
_row(nn.ConvTranspose1d, "BCL", _transposed(1), optional=["in_channels"])
_row(nn.ConvTranspose2d, "BCHW", _transposed(2), optional=["in_channels"])
_row(nn.ConvTranspose3d, "BCDHW", _transposed(3), optional=["in_channels"])
_row(nn.Unfold, "BCHW", _transposed(2), window=True)
_row(nn.Fold, "BCL", {**_transposed(2), "output_size": _each(PositiveInt, 2)})

_row(nn.MaxPool1d, "BCL", _pool(1), window=True)
_row(nn.MaxPool2d, "BCHW", _pool(2), window=True)
_row(nn.MaxPool3d, "BCDHW", _pool(3), window=True)
_row(nn.AvgPool1d, "BCL", _pool(1), window=True)
_row(nn.AvgPool2d, "BCHW", _pool(2), window=True)
_row(nn.AvgPool3d, "BCDHW", _pool(3), window=True)
_row(nn.LPPool1d, "BCL", _pool(1), window=True)
_row(nn.LPPool2d, "BCHW", _pool(2), window=True)
_row(nn.LPPool3d, "BCDHW", _pool(3), window=True)
_row(nn.AdaptiveMaxPool1d, "BCL", _adaptive(1))
_row(nn.AdaptiveMaxPool2d, "BCHW", _adaptive(2))
_row(nn.AdaptiveMaxPool3d, "BCDHW", _adaptive(3))
_row(nn.AdaptiveAvgPool1d, "BCL", _adaptive(1))
_row(nn.AdaptiveAvgPool2d, "BCHW", _adaptive(2))
_row(nn.AdaptiveAvgPool3d, "BCDHW", _adaptive(3))

_pad: Any
for _pad in (nn.CircularPad1d, nn.ReflectionPad1d, nn.ReplicationPad1d, nn.ZeroPad1d, nn.ConstantPad1d):
    _row(_pad, "BCL")
for _pad in (nn.CircularPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.ConstantPad2d):
    _row(_pad, "BCHW")
for _pad in (nn.CircularPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.ZeroPad3d, nn.ConstantPad3d):
    _row(_pad, "BCDHW")

_row(nn.PixelShuffle, "BCHW")
_row(nn.PixelUnshuffle, "BCHW")
_row(nn.ChannelShuffle, "BCL BCHW BCDHW")
_row(
    nn.Upsample,
    "BCL BCHW BCDHW",
    {"size": PositiveInt | tuple[PositiveInt, ...] | None, "scale_factor": Positive | tuple[Positive, ...] | None},
)

_row(nn.BatchNorm1d, "BC BCL", optional=["num_features"], primary="num_features")
_row(nn.BatchNorm2d, "BCHW", optional=["num_features"], primary="num_features")
_row(nn.BatchNorm3d, "BCDHW", optional=["num_features"], primary="num_features")
_row(nn.InstanceNorm1d, "BCL", optional=["num_features"], primary="num_features")
_row(nn.InstanceNorm2d, "BCHW", optional=["num_features"], primary="num_features")
_row(nn.InstanceNorm3d, "BCDHW", optional=["num_features"], primary="num_features")
_row(nn.GroupNorm, optional=["num_channels"])
_row(nn.LayerNorm, optional=["normalized_shape"], primary="normalized_shape")
_row(nn.RMSNorm, refine={"eps": Positive | None}, optional=["normalized_shape"], primary="normalized_shape")
_row(nn.LocalResponseNorm, "BCL BCHW BCDHW", {"size": PositiveInt})

_row(nn.RNN, "BTD", signature=_rnn, optional=["input_size"], omit=["proj_size"])
_row(nn.GRU, "BTD", signature=_rnn, optional=["input_size"], omit=["proj_size", "nonlinearity"])
_row(nn.LSTM, "BTD", signature=_rnn, optional=["input_size"], omit=["nonlinearity"])
_row(nn.TransformerEncoderLayer, "BTD", signature=_encoder_layer, optional=["d_model"])

_row(nn.Dropout, primary="p")
_row(nn.Dropout1d, "BCL", primary="p")
_row(nn.Dropout2d, "BCHW", primary="p")
_row(nn.Dropout3d, "BCDHW", primary="p")
_row(nn.AlphaDropout, primary="p")
_row(nn.FeatureAlphaDropout, primary="p")

_activation: Any
for _activation in (nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Tanh, nn.Tanhshrink):
    _row(_activation)
for _activation in (nn.Softsign, nn.Softplus, nn.RReLU, nn.Hardtanh, nn.Threshold):
    _row(_activation)
_row(nn.GELU, primary="approximate")
_row(nn.LeakyReLU, primary="negative_slope")
_row(nn.ELU, primary="alpha")
_row(nn.CELU, primary="alpha")
_row(nn.PReLU, primary="num_parameters")
_row(nn.GLU, primary="dim")
_row(nn.Hardshrink, primary="lambd")
_row(nn.Softshrink, primary="lambd")
_row(nn.Sigmoid, output="probabilities")
_row(nn.LogSigmoid, output="log_probabilities")
_row(nn.Softmax, signature=_softmax, primary="dim", output="probabilities")
_row(nn.Softmin, signature=_softmax, primary="dim", output="probabilities")
_row(nn.Softmax2d, "BCHW", output="probabilities")
_row(nn.LogSoftmax, signature=_softmax, primary="dim", output="log_probabilities")


@layers.register(takes=["BTD"])
class Last(nn.Module):
    """The last time step of a sequence: (B, T, D) -> (B, D).

    Of a bidirectional layer's output it holds, for the backward direction, what a single step has seen; take `Mean`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return x[:, -1]


@layers.register(takes=["BTD"])
class Mean(nn.Module):
    """The mean over the time steps of a sequence: (B, T, D) -> (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        return x.mean(dim=1)


class Layers(nn.Sequential):
    """Layers in order; where one returns a tuple, as recurrent layers do, its first item goes on."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> what the last layer makes of it."""
        for layer in self:
            made: Any = layer(x)
            x = made[0] if isinstance(made, tuple) else made
        return x


# What torch raises for arguments or inputs that do not fit.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, OverflowError)


def build_layers(components: Sequence[Component], inputs: Inputs, outputs: int) -> Layers:
    """Build a list of layers, in training mode; sizes that the spec leaves out are those of what reaches the layer.

    Two samples of zeros go through each layer as it is built, so a layer that does not fit is a `SpecError` that
    names it and the shape that reached it. Initial weights come from torch's global generator: seed it before.
    """
    if not components:
        raise SpecError(Fault("has no layers.", "model"))
    if inputs.shape == () and inputs.vocabulary is None:
        raise components[0].error("each sample is a single number. Give the data the shape (samples, 1).")
    x = torch.zeros(2, *inputs.shape, dtype=None if inputs.vocabulary is None else torch.int64)
    model = Layers()
    for component in components:
        _check_fit(component, x)
        layer = _build(component, x, inputs, outputs)
        x = _pass(component, layer, x)
        model.append(layer)
    return model.train()


def _check_fit(component: Component, x: Tensor) -> None:
    """Refuse kinds and numbers of dimensions that torch would take for something else, an unbatched sample mostly."""
    facts = component.entry.facts
    if x.is_floating_point() and facts.get("tokens") == "only":
        raise component.error(f"{component.name} takes token ids, but what reaches it is measurements, {_shown(x)}.")
    if not x.is_floating_point() and "tokens" not in facts:
        advice = "Put {Embedding: 64} before it."
        raise component.error(f"{component.name} takes measurements, but what reaches it is token ids. {advice}")
    takes = facts.get("takes", ())
    if takes and x.ndim not in map(len, takes):
        shapes = " or ".join(f"({', '.join(letters)})" for letters in takes)
        problem = f"{component.name} takes {shapes}, but what reaches it is {_shown(x)}."
        raise component.error(f"{problem} {_advice(component, takes, x)}")
    for name in ("dim", "start_dim", "end_dim"):
        if component.get(name) in (0, -x.ndim):
            what = f"dimension {component.get(name)} of {_shown(x)} is the samples"
            raise component.error(f"{what}: {component.name} would mix them. Count from 1.", name)


def _advice(component: Component, takes: Sequence[str], x: Tensor) -> str:
    """Say which layer to put before one that takes another number of dimensions, or which to take instead."""
    wanted = min(takes, key=lambda letters: abs(len(letters) - x.ndim))
    missing = len(wanted) - x.ndim
    if "Norm" in component.name and x.ndim in map(len, layers["BatchNorm1d"].facts["takes"]):
        return f"Take {component.name[:-2]}1d."
    sibling = f"{component.name[:-2]}{x.ndim - 2}d"
    if missing < 0 and sibling in layers:
        return f"Take {sibling}."
    if missing < 0:
        flat = "Flatten" if len(takes[0]) == 2 else f"{{Flatten: {{start_dim: {len(wanted) - 1}}}}}"
        return f"Put {flat} before it."
    if missing == 1 and wanted[1] == "C":
        return f"Put {{Unflatten: [1, {x.shape[1]}]}} before it, which makes it (B, 1, {_sizes(x)})."
    parts = wanted[1 : missing + 2]
    return f"Put {{Unflatten: [{', '.join(parts)}]}} before it, with {' × '.join(parts)} = {x.shape[1]}."


def _build(component: Component, x: Tensor, inputs: Inputs, outputs: int) -> nn.Module:
    arguments = component.entry.defaults() | dict(component.args)
    for name, value in arguments.items():
        if value == OUTPUTS:
            arguments[name] = outputs
        elif name == "num_embeddings":
            arguments[name] = _vocabulary(component, value, inputs)
        elif name in INFERRED:
            arguments[name] = _size(component, name, value, x)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # such as dropout between the layers of a single one
            layer: nn.Module = component.entry.factory(**arguments)
    except SpecError:
        raise
    except (*REFUSALS, UserWarning) as error:
        raise component.error(f"{component.name} refuses these arguments: {reason(error)}.") from error
    return layer


def _size(component: Component, name: str, given: Any, x: Tensor) -> Any:
    """Return the size of what reaches a layer; one that the spec gives must agree with it."""
    size = x.shape[INFERRED[name]]
    if given is None:
        return size
    if isinstance(given, Sequence):  # normalized_shape: the sizes of the last dimensions
        agrees = tuple(given) == tuple(x.shape[1:])[-len(given) :]
    else:
        agrees = given == size
    if not agrees:
        fault = f"is {show(given)}, but what reaches {component.name} is {_shown(x)}. Leave it out."
        raise component.error(fault, name)
    return given


def _vocabulary(component: Component, given: int | None, inputs: Inputs) -> int:
    known = inputs.vocabulary or 0  # never None here: an Embedding that no ids reach is refused before
    if given is not None and given < known:
        fault = f"is {given}, but the data holds {known} different token ids. Leave it out."
        raise component.error(fault, "num_embeddings")
    return given or known


def _pass(component: Component, layer: nn.Module, x: Tensor) -> Tensor:
    """Return what the layer makes of x; in eval mode, so that neither running statistics nor dropout are touched."""
    try:
        with torch.no_grad():
            out: Tensor = Layers(layer).eval()(x)
    except REFUSALS as error:
        why = _too_wide(component, layer, x) or f"{reason(error)}."
        raise component.error(f"{component.name} does not fit what reaches it, {_shown(x)}: {why}") from error
    if out.numel() == 0:
        raise component.error(f"{component.name} leaves nothing of {_shown(x)}: it becomes {_shown(out)}.")
    return out


def _too_wide(component: Component, layer: nn.Module, x: Tensor) -> str | None:
    """Say that the kernel is larger than the padded input, if that is why torch refused."""
    if not component.entry.facts.get("window"):
        return None

    def each(name: str) -> tuple[int, ...]:
        value = getattr(layer, name, 1 if name == "dilation" else 0)
        value = 0 if isinstance(value, str) else value
        return value if isinstance(value, tuple) else (value,) * (x.ndim - 2)

    reach = tuple(d * (k - 1) + 1 for k, d in zip(each("kernel_size"), each("dilation"), strict=True))
    room = tuple(size + 2 * p for size, p in zip(x.shape[2:], each("padding"), strict=True))
    if all(r <= s for r, s in zip(reach, room, strict=True)):
        return None
    reaches, leaves = " × ".join(map(str, reach)), " × ".join(map(str, room))
    return f"its kernel covers {reaches}, and the padded input is only {leaves}. Take a smaller kernel, or pool less."


def _shown(x: Tensor) -> str:
    return f"(B, {_sizes(x)})" if x.ndim > 1 else "(B,)"


def _sizes(x: Tensor) -> str:
    return ", ".join(map(str, x.shape[1:]))
