"""specs/digits_resnet.yaml as a tutorial would write it: python digits_resnet.py FOLDER [EPOCHS]"""

import copy
import csv
import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))
from fitkit.data import Inputs  # noqa: E402
from fitkit.engine.seeds import SPLIT, derive  # noqa: E402
from fitkit.parts.models import resnet20  # noqa: E402  the network is the same; the script is about everything else
from fitkit.parts.sources import digits  # noqa: E402
from fitkit.parts.splits import stratified  # noqa: E402  the same rows, so that the numbers can be compared

FOLDER, EPOCHS = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15
BATCH, LR = 64, 0.05


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
data = digits(layout="image")
x, y = data.x.float() / 16, data.y.long()
rows = stratified(data, derive(0, SPLIT), val=0.15, test=0.15)
train_loader = DataLoader(TensorDataset(x[rows["train"]], y[rows["train"]]), batch_size=BATCH, shuffle=True)
val_loader = DataLoader(TensorDataset(x[rows["val"]], y[rows["val"]]), batch_size=BATCH)

model = resnet20(Inputs((1, 8, 8)), 10)
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=False)
matrices = [p for p in model.parameters() if p.ndim >= 2]
vectors = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": matrices, "weight_decay": 1e-3}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, EPOCHS * len(train_loader), cycle_momentum=False)
loss_function = nn.CrossEntropyLoss()
history, best, best_loss = [], None, math.inf
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
        average.update_parameters(model)
        loss_sum += loss.item() * len(inputs)
        right += (output.argmax(1) == target).sum().item()
        count += len(inputs)
    for mine, its in zip(average.module.buffers(), model.buffers(), strict=True):
        mine.copy_(its)  # the statistics of BatchNorm are not averaged
    val_loss, val_accuracy = evaluate(average.module, val_loader, loss_function)
    history.append([epoch, loss_sum / count, right / count, val_loss, val_accuracy])
    print("epoch {}  loss {:.4f}  accuracy {:.4f}  val_loss {:.4f}  val_accuracy {:.4f}".format(*history[-1]))
    if val_loss < best_loss:
        best, best_loss = copy.deepcopy(average.module.state_dict()), val_loss

torch.save(best, FOLDER / "model.pt")
with (FOLDER / "history.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["epoch", "loss", "accuracy", "val_loss", "val_accuracy"], *history])
print(f"best val_loss {best_loss:.4f}")
