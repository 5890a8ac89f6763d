"""Is `compile: auto` right?

Five models at four lengths. Measured, each in a fresh process without stored graphs: microseconds a step in the steady
state, eager and compiled, and the seconds that the first epoch takes longer when it compiles. From these come the times
of a whole fit, length by length; `auto` is compared with the better of eager and compiled. The compiled tier is the one
that `compile: true` takes at that length. Torch's own compiler cache is kept between runs but for the graphs: a
compiler that was never used takes some 10 s more, once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import processor, replace

PAGE, TARGET = Path(__file__).parent / "README.md", 0.05
LONG = 400_000  # steps from which on graphs hold more steps
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
BATCH, ROWS = 32, 1440


def models() -> dict[str, tuple[Any, Any, Any, Any]]:
    """Return module, x, y and optimizer by name; built in the process that trains."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    flat, image, tokens = torch.randn(ROWS, 64), torch.randn(ROWS, 1, 8, 8), torch.randint(0, 30, (ROWS, 16))
    y = torch.randint(0, 10, (ROWS,))

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(30, 32)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
            self.head = nn.Linear(32, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(self.embedding(x)).mean(1))

    adam, sgd = {"AdamW": {"lr": 1e-3}}, {"SGD": {"lr": 0.01, "momentum": 0.9}}
    deep = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.1)]
    deep += [nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)]
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)]
    return {
        "linear": (nn.Linear(64, 10), flat, y, sgd),
        "MLP 64-128-10": (nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), flat, y, adam),
        "MLP, BatchNorm, Dropout": (nn.Sequential(*deep), flat, y, adam),
        "CNN": (nn.Sequential(*convolutions), image, y, sgd),
        "transformer": (Tokens(), tokens, y, adam),
    }


def measure(name: str, length: int, compile: Any, seconds: float) -> None:
    """Print microseconds a step, seconds of compilation and what `auto` chose, as JSON."""
    import fitkit

    module, x, y, optimizer = models()[name]
    steps = -(-ROWS // BATCH)
    spec = {"splits": {"random": {"val": 0.0}}, "optimizer": optimizer}
    fit = {"epochs": -(-length // steps), "batch_size": BATCH, "device": "cpu"}
    times: list[float] = []

    def tick(trainer: Any) -> None:
        times.append(time.perf_counter())
        if len(times) > 4 and times[-1] - times[2] > seconds:
            trainer.stop("measured")

    watch = fitkit.LambdaCallback(on_epoch_begin=tick)
    auto = {}
    for asked in LENGTHS:
        declared = {**spec, "fit": {**fit, "epochs": -(-asked // steps)}}
        auto[asked] = fitkit.build(declared, model=module, data=(x, y)).tier.compiles
    trainer = fitkit.build({**spec, "fit": {**fit, "compile": compile}}, model=module, data=(x, y), callbacks=[watch])
    trainer.fit()
    epochs = [b - a for a, b in zip(times[1:], times[2:], strict=False)]
    steady = statistics.median(epochs)
    first = times[1] - times[0] - steady
    print(json.dumps({"us": steady / steps * 1e6, "first_s": max(first, 0.0), "auto": auto}))


def ask(name: str, length: int, compile: bool, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.policy", "--one", name, str(length), json.dumps(compile)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"FITKIT_CACHE": folder, "TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
        done = subprocess.run(
            [*command, "--seconds", str(seconds)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of steady state that are measured")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return measure(arguments.one[0], int(arguments.one[1]), json.loads(arguments.one[2]), arguments.seconds)
    lines = ["| model | steps | eager, s | compiled, s | auto | slower than the better |"]
    lines.append("| --- | --: | --: | --: | --- | --: |")
    worst = 0.0
    for name in models():
        eager = ask(name, LENGTHS[0], False, arguments.seconds)
        tiers = {length: None for length in LENGTHS}
        for length in LENGTHS:  # the tier of a long run is another one
            same = length < LONG and tiers[LENGTHS[0]]
            tiers[length] = same or ask(name, length, True, arguments.seconds)
        for length in LENGTHS:
            compiled, choice = tiers[length], eager["auto"][str(length)]
            whole = eager["us"] * length / 1e6, compiled["first_s"] + compiled["us"] * length / 1e6
            taken = whole[1] if choice else whole[0]
            regret = taken / min(whole) - 1
            worst = max(worst, regret)
            chosen = choice or "eager"
            lines.append(f"| {name} | {length:,} | {whole[0]:.2f} | {whole[1]:.2f} | {chosen} | {regret:.0%} |")
            print(lines[-1], flush=True)
    text = section("\n".join(lines), worst)
    print(f"\n{text}")
    PAGE.write_text(replace(PAGE.read_text("utf-8"), "policy", text), "utf-8")


def section(table: str, worst: float) -> str:
    """Return what the page says: question, conditions, table, target."""
    import torch

    assert __doc__
    question, _, text = __doc__.strip().partition("\n")
    reached = "reached" if worst <= TARGET else "not reached"
    conditions = f"{processor()}, {os.cpu_count()} cores, default threads; torch {torch.__version__}; one run."
    target = f"- at most {worst:.0%} slower than the better; target at most {TARGET:.0%}: **{reached}**"
    return "\n\n".join([f"## {question} `python -m benchmarks.policy`", text.strip(), conditions, table, target])


if __name__ == "__main__":
    main()
