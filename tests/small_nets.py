"""Three small models in which every parameter has a gradient, data for them, and how far two of them are apart."""

import torch
from torch import nn

X = torch.randn(52, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long() + (X[:, 0, 0, 0] > 0).long()
TOKENS = (X[:, 0, 0] > 0).long() + (X[:, 0, 1] > 0).long()  # (52, 6), a vocabulary of 3
KINDS = ["mlp", "cnn", "transformer"]


class Transformer(nn.Module):
    """Token ids (B, 6) -> (B, 3)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(self.embedding(x)).mean(1))


def network(kind):
    torch.manual_seed(1)
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))
    if kind == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )
    return Transformer()


def inputs(kind):
    return TOKENS if kind == "transformer" else X


def furthest(one, other):
    """Return the largest distance of two modules' tensors, relative to their size."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b).norm() / (b.double().norm() + 1e-6)) for a, b in pairs)


def declared(name, lr=0.01):
    return {name: {"lr": lr, **({"momentum": 0.9} if name == "SGD" else {})}}
