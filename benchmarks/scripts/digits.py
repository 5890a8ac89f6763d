"""specs/digits.yaml as a tutorial would write it: python digits.py FOLDER [EPOCHS]"""

import copy
import csv
import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))
from fitkit.engine.seeds import SPLIT, derive  # noqa: E402
from fitkit.parts.sources import digits  # noqa: E402
from fitkit.parts.splits import stratified  # noqa: E402  the same rows, so that the numbers can be compared

FOLDER, EPOCHS = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 30
BATCH, LR, PATIENCE, WARMUP = 64, 3e-3, 5, 0.05


def evaluate(model, loader, loss_function):
    model.eval()
    loss_sum, right, count = 0.0, 0, 0
    with torch.no_grad():
        for x, y in loader:
            output = model(x)
            loss_sum += loss_function(output, y).item() * len(x)
            right += (output.argmax(1) == y).sum().item()
            count += len(x)
    return loss_sum / count, right / count


torch.manual_seed(0)
data = digits()
x, y = data.x.float() / 16, data.y.long()
rows = stratified(data, derive(0, SPLIT), val=0.15, test=0.15)
train_loader = DataLoader(TensorDataset(x[rows["train"]], y[rows["train"]]), batch_size=BATCH, shuffle=True)
val_loader = DataLoader(TensorDataset(x[rows["val"]], y[rows["val"]]), batch_size=BATCH)

model = nn.Sequential(
    nn.Linear(64, 256),
    nn.BatchNorm1d(256),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(256, 256),
    nn.BatchNorm1d(256),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(256, 10),
)
matrices = [p for p in model.parameters() if p.ndim >= 2]
vectors = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=LR)
total = EPOCHS * len(train_loader)
warmup = max(1, int(WARMUP * total))
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer,
    lambda step: (
        (step + 1) / warmup
        if step < warmup
        else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    ),
)
loss_function = nn.CrossEntropyLoss()
history, best, best_loss, waited = [], None, math.inf, 0
for epoch in range(1, EPOCHS + 1):
    model.train()
    loss_sum, right, count = 0.0, 0, 0
    for inputs, target in train_loader:
        optimizer.zero_grad()
        output = model(inputs)
        loss = loss_function(output, target)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum += loss.item() * len(inputs)
        right += (output.argmax(1) == target).sum().item()
        count += len(inputs)
    val_loss, val_accuracy = evaluate(model, val_loader, loss_function)
    history.append([epoch, loss_sum / count, right / count, val_loss, val_accuracy])
    print("epoch {}  loss {:.4f}  accuracy {:.4f}  val_loss {:.4f}  val_accuracy {:.4f}".format(*history[-1]))
    if val_loss < best_loss:
        best, best_loss, waited = copy.deepcopy(model.state_dict()), val_loss, 0
    else:
        waited += 1
        if waited >= PATIENCE:
            break

torch.save(best, FOLDER / "model.pt")
with (FOLDER / "history.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["epoch", "loss", "accuracy", "val_loss", "val_accuracy"], *history])
print(f"best val_loss {best_loss:.4f}")
