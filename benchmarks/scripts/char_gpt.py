"""specs/char_gpt.yaml as a tutorial would write it: python char_gpt.py FOLDER [EPOCHS]"""

import copy
import csv
import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from fitkit.data import Inputs  # noqa: E402
from fitkit.parts.models import gpt  # noqa: E402  the network is the same; the script is about everything else

FOLDER, EPOCHS = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6
BATCH, ACCUMULATE, LENGTH, LR, ADAMW_LR, DECAY = 16, 2, 64, 0.02, 3e-3, 0.1
WARMUP, END = 0.1, 0.1


class Windows(Dataset):
    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return (len(self.ids) - 1) // LENGTH

    def __getitem__(self, i):
        window = self.ids[i * LENGTH : (i + 1) * LENGTH + 1]
        return window[:-1], window[1:]


def evaluate(model, loader):
    model.eval()
    loss_sum, right, count = 0.0, 0, 0
    with torch.no_grad():
        for x, y in loader:
            output = model(x)
            loss_sum += cross_entropy(output.flatten(0, 1), y.flatten()).item() * y.numel()
            right += (output.argmax(2) == y).sum().item()
            count += y.numel()
    return loss_sum / count, right / count


torch.manual_seed(0)
text = (ROOT / "specs/data/python_topics.txt").read_text(encoding="utf-8")
characters = sorted(set(text))
number = {character: i for i, character in enumerate(characters)}
ids = torch.tensor([number[character] for character in text])
border = len(ids) * 9 // 10
train_loader = DataLoader(Windows(ids[:border]), batch_size=BATCH, shuffle=True)
val_loader = DataLoader(Windows(ids[border:]), batch_size=BATCH)

model = gpt(Inputs((LENGTH,), len(characters)), len(characters), width=96, depth=3, heads=4, dropout=0.0)
named = dict(model.named_parameters())
hidden = [p for name, p in named.items() if "blocks" in name and p.ndim == 2]
others = [p for name, p in named.items() if p.ndim == 2 and "blocks" not in name]
vectors = [p for p in named.values() if p.ndim < 2]
adamw = [{"params": others, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
optimizers = [torch.optim.Muon(hidden, lr=LR, weight_decay=DECAY), torch.optim.AdamW(adamw, lr=ADAMW_LR)]
total = EPOCHS * math.ceil(len(train_loader) / ACCUMULATE)
warmup = max(1, int(WARMUP * total))


def factor(step):
    if step < warmup:
        return (step + 1) / warmup
    return END + (1 - END) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
history, best, best_loss = [], None, math.inf
for epoch in range(1, EPOCHS + 1):
    model.train()
    loss_sum, right, count = 0.0, 0, 0
    for i, (inputs, target) in enumerate(train_loader, 1):
        output = model(inputs)
        loss = cross_entropy(output.flatten(0, 1), target.flatten())
        (loss / ACCUMULATE).backward()
        loss_sum += loss.item() * target.numel()
        right += (output.argmax(2) == target).sum().item()
        count += target.numel()
        if i % ACCUMULATE == 0 or i == len(train_loader):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    val_loss, val_accuracy = evaluate(model, val_loader)
    history.append([epoch, loss_sum / count, right / count, val_loss, val_accuracy])
    print("epoch {}  loss {:.4f}  accuracy {:.4f}  val_loss {:.4f}  val_accuracy {:.4f}".format(*history[-1]))
    if val_loss < best_loss:
        best, best_loss = copy.deepcopy(model.state_dict()), val_loss

torch.save(best, FOLDER / "model.pt")
with (FOLDER / "history.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["epoch", "loss", "accuracy", "val_loss", "val_accuracy"], *history])
print(f"best val_loss {best_loss:.4f}")
