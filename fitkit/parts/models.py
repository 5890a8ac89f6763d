"""Whole models by name: functions `(inputs, outputs, *, arguments) -> nn.Module` that build plain torch modules.

Every model maps a batch to (B, outputs) logits or values; `gpt` to (B, T, outputs), one prediction a token. Initial
weights come from torch's global generator: seed it before. Input that a model cannot take is a `ValueError` in plain
words; the caller adds where the spec asked for the model.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fitkit.data import Inputs
from fitkit.spec.table import Table
from fitkit.spec.types import Depth, Fraction, PositiveInt

SMALL_IMAGE = 64  # pixels: up to this shorter side, resnet18 does not shrink the image before its first block

models = Table("model")


@models.register(primary="hidden")
def mlp(
    inputs: Inputs,
    outputs: int,
    *,
    hidden: tuple[PositiveInt, ...] = (256, 256),
    activation: Literal["ReLU", "GELU", "SiLU", "Tanh", "LeakyReLU", "ELU"] = "ReLU",
    norm: Literal["BatchNorm1d", "LayerNorm"] | None = None,
    dropout: Fraction = 0.0,
) -> nn.Module:
    """Fully connected layers over the flattened input; `hidden` lists their widths, an empty list is linear."""
    _refuse_tokens("mlp", inputs)
    if not inputs.shape:
        raise ValueError("mlp takes samples that have a shape, but each is a single number; give the data (samples, 1)")
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(inputs.shape)
    for size in hidden:
        layers.append(nn.Linear(width, size))
        if norm is not None:
            layers.append({"BatchNorm1d": nn.BatchNorm1d, "LayerNorm": nn.LayerNorm}[norm](size))
        layers.append(getattr(nn, activation)())
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


@models.register(primary="channels")
def cnn(
    inputs: Inputs,
    outputs: int,
    *,
    channels: tuple[PositiveInt, ...] = (32, 64, 128),
    dropout: Fraction = 0.0,
) -> nn.Module:
    """Blocks of 3x3 convolution, batch norm, ReLU and 2x2 max pooling, then the mean over the image and one Linear.

    `channels` lists the widths of the blocks. A block pools only while both sides have at least 2 pixels.
    """
    reshape, (width, *sides) = _image("cnn", inputs)
    if not channels:
        raise ValueError("cnn needs at least one block; channels is empty")
    layers: list[nn.Module] = [reshape]
    for size in channels:
        layers += [nn.Conv2d(width, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
        if min(sides) >= 2:
            layers.append(nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
        width = size
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)


class Subsample(nn.Module):
    """Every `stride`-th pixel, and zeros for new channels: (B, C, H, W) -> (B, C + new, H / stride, W / stride)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + new, H / stride, W / stride), sides rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (He et al. 2016, figure 2): (B, C, H, W) -> (B, width, H', W').

    Where the shape changes, the shortcut is a 1x1 convolution if `project` (option B of the paper, section 4.1), else
    every second pixel with zeros for the channels that are new (option A).
    """

    def __init__(self, channels: int, width: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module
        if stride == 1 and channels == width:
            self.downsample = nn.Identity()
        elif project:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        else:
            self.downsample = Subsample(stride, width - channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H', W')."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


@models.register
def resnet18(inputs: Inputs, outputs: int) -> nn.Module:
    """ResNet-18 for images (He et al. 2016, table 1), from scratch; its weights have torchvision's names.

    An image whose shorter side has at most 64 pixels meets a 3x3 convolution instead of the 7x7 one and the pooling.
    """
    reshape, (channels, *sides) = _image("resnet18", inputs)
    kernel, stride = (3, 1) if min(sides) <= SMALL_IMAGE else (7, 2)
    conv = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
    pool = nn.Identity() if stride == 1 else nn.MaxPool2d(3, 2, padding=1)
    return _resnet(reshape, conv, pool, [64, 128, 256, 512], outputs, blocks=2, project=True)


@models.register
def resnet20(inputs: Inputs, outputs: int) -> nn.Module:
    """ResNet-20 for small images such as CIFAR's (He et al. 2016, section 4.2): 0.27 million weights."""
    reshape, (channels, *_) = _image("resnet20", inputs)
    conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    return _resnet(reshape, conv, nn.Identity(), [16, 32, 64], outputs, blocks=3, project=False)


def _resnet(
    reshape: nn.Module,
    conv: nn.Module,
    pool: nn.Module,
    widths: list[int],
    outputs: int,
    *,
    blocks: int,
    project: bool,
) -> nn.Module:
    """Chain the stem, one stage of blocks for each width (from the second on halving the image), mean and Linear."""
    parts = OrderedDict(reshape=reshape, conv1=conv, bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU(), maxpool=pool)
    channels = widths[0]
    for i, width in enumerate(widths):
        stage = [ResidualBlock(channels, width, 2 if i else 1, project=project)]
        stage += [ResidualBlock(width, width, 1, project=project) for _ in range(blocks - 1)]
        parts[f"layer{i + 1}"] = nn.Sequential(*stage)
        channels = width
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, outputs)}
    model = nn.Sequential(parts)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class LSTMClassifier(nn.Module):
    """An LSTM over a sequence and a Linear on each direction's last state: (B, T) ids or (B, T, D) -> (B, outputs)."""

    def __init__(
        self,
        embed: nn.Module,
        features: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = embed
        between = dropout if depth > 1 else 0.0  # torch warns of a dropout that has no layer to act between
        self.lstm = nn.LSTM(features, width, depth, batch_first=True, dropout=between, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * (1 + bidirectional), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) ids or (B, T, D) -> (B, outputs)."""
        _, (state, _) = self.lstm(self.embed(x))  # (depth * directions, B, width)
        last = torch.cat((state[-2], state[-1]), dim=1) if self.lstm.bidirectional else state[-1]
        logits: Tensor = self.head(self.dropout(last))
        return logits


@models.register(sequences=True)
def lstm(
    inputs: Inputs,
    outputs: int,
    *,
    width: PositiveInt = 128,
    depth: Depth = 1,
    bidirectional: bool = False,
    dropout: Fraction = 0.0,
) -> nn.Module:
    """LSTM over token ids (T,) or measurements (T, D), then a Linear on the state after the last step.

    `depth` layers of `width`; `dropout` acts between the layers and before the Linear. Both directions' last states
    are joined if `bidirectional`.
    """
    _, features = _sequence("lstm", inputs)
    embed = nn.Identity() if inputs.vocabulary is None else nn.Embedding(inputs.vocabulary, width)
    features = features or width
    return LSTMClassifier(
        embed, features, outputs, width=width, depth=depth, bidirectional=bidirectional, dropout=dropout
    )


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each after a layer norm and around a shortcut: (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.attention_dropout = heads, causal, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.gelu = nn.GELU(approximate="tanh")  # as GPT-2 has it
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.dropout(self.project(self._attend(self.norm1(x))))
        x = x + self.dropout(self.contract(self.gelu(self.expand(self.norm2(x)))))
        return x

    def _attend(self, x: Tensor) -> Tensor:  # (B, T, width) -> (B, T, width)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return y.transpose(1, 2).flatten(2)  # (B, heads, T, width / heads) -> (B, T, width)


class TransformerClassifier(nn.Module):
    """Transformer blocks, the mean over time and a Linear: (B, T) ids or (B, T, D) -> (B, outputs)."""

    def __init__(
        self, embed: nn.Module, length: int, outputs: int, *, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = embed
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, dropout, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        _init_gpt2(self, depth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) ids or (B, T, D) -> (B, outputs)."""
        x = self.dropout(self.embed(x) + self.positions.weight)  # (B, T, width)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return logits


@models.register(sequences=True)
def transformer(
    inputs: Inputs,
    outputs: int,
    *,
    width: PositiveInt = 128,
    depth: Depth = 4,
    heads: PositiveInt = 4,
    dropout: Fraction = 0.1,
) -> nn.Module:
    """Transformer encoder over token ids (T,) or measurements (T, D): learned positions, pre-norm, mean over time."""
    length, features = _sequence("transformer", inputs)
    _check_heads("transformer", width, heads)
    embed = nn.Linear(features, width) if inputs.vocabulary is None else nn.Embedding(inputs.vocabulary, width)
    return TransformerClassifier(embed, length, outputs, width=width, depth=depth, heads=heads, dropout=dropout)


class GPT(nn.Module):
    """A decoder-only language model after GPT-2: (B, t) token ids, t at most the context -> (B, t, vocabulary) logits.

    The logits at a position depend on the tokens up to it. With tied weights the output layer is the token embedding.
    """

    def __init__(
        self, vocabulary: int, context: int, *, width: int, depth: int, heads: int, dropout: float, tie_weights: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, dropout, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        # One tensor under one name: a tied second module would be saved twice, or refused by safetensors.
        self.head = None if tie_weights else nn.Linear(width, vocabulary, bias=False)
        _init_gpt2(self, depth)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, t) -> (B, t, vocabulary)."""
        x = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])  # (B, t, width)
        x = self.norm(self.blocks(x))
        return F.linear(x, self.tokens.weight if self.head is None else self.head.weight)


@models.register(sequences=True)
def gpt(
    inputs: Inputs,
    outputs: int,
    *,
    width: PositiveInt = 128,
    depth: Depth = 4,
    heads: PositiveInt = 4,
    dropout: Fraction = 0.1,
    tie_weights: bool = True,
) -> nn.Module:
    """Decoder-only language model after GPT-2 (Radford et al. 2019) that predicts the next token at every position."""
    if inputs.vocabulary is None:
        raise ValueError("gpt takes token ids, but the data holds measurements; take transformer or lstm")
    if outputs != inputs.vocabulary:
        fault = f"gpt predicts the next of {inputs.vocabulary} tokens, but the target has {outputs} outputs"
        raise ValueError(f"{fault}; take transformer or lstm for such a target")
    context, _ = _sequence("gpt", inputs)
    _check_heads("gpt", width, heads)
    return GPT(outputs, context, width=width, depth=depth, heads=heads, dropout=dropout, tie_weights=tie_weights)


def _init_gpt2(model: nn.Module, depth: int) -> None:
    """Draw weights as GPT-2 does: N(0, 0.02), zero biases; what adds to the residual stream is scaled by its depth."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            adds = name.endswith((".project", ".contract"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if adds else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _refuse_tokens(name: str, inputs: Inputs) -> None:
    if inputs.vocabulary is not None:
        raise ValueError(f"{name} takes measurements, but the data holds token ids; take lstm or transformer")


def _image(name: str, inputs: Inputs) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the layer that gives images (H, W) their one channel, and the (C, H, W) that it makes."""
    _refuse_tokens(name, inputs)
    shape = inputs.shape
    if len(shape) == 2:
        return nn.Unflatten(1, (1, shape[0])), (1, shape[0], shape[1])
    if len(shape) != 3:
        fault = f"{name} takes images, (C, H, W) or (H, W), but one sample has shape {shape}"
        raise ValueError(f"{fault}; take mlp, or a list of layers that begins with {{Unflatten: [C, H, W]}}")
    if shape[0] == shape[1] > shape[2] and shape[2] in (1, 3, 4):
        raise ValueError(f"{name} takes images as (C, H, W), but {shape} looks like (H, W, C); move the channels first")
    return nn.Identity(), (shape[0], shape[1], shape[2])


def _sequence(name: str, inputs: Inputs) -> tuple[int, int]:
    """Return the number of time steps, and of features at each; 0 features for token ids."""
    if inputs.vocabulary is not None and len(inputs.shape) == 1:
        return inputs.shape[0], 0
    if inputs.vocabulary is None and len(inputs.shape) == 2:
        return inputs.shape[0], inputs.shape[1]
    kind = "(T, D) measurements" if inputs.vocabulary is None else "(T,) token ids"
    raise ValueError(f"{name} takes sequences, here {kind}, but one sample has shape {inputs.shape}")


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{name} shares its width among the heads, but {heads} does not divide {width}")
