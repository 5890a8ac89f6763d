"""How long does a step take on one GPU?

launch-bound: MLP 64-256-256-256-10, 65,536 synthetic rows, batch 256, Adam, fp32. convnet: ResNet-20, 32 x 32 x 3,
batch 128, SGD with Nesterov momentum, bf16. GPT-2: 124 million weights, 12 layers, width 768, 1,024 random tokens of
50,304, batch 8, AdamW, bf16. TF32 on, loss and accuracy of every epoch, no evaluation; the first epoch is left out, in
which compilers work. Textbook: `DataLoader`, `.item()` of every batch. CUDA graph by hand: data and sums on the
device, one whole step captured, replayed for each batch. Compiled by hand: gather by index, channels_last for images,
model and loss compiled, fused optimizer. fitkit, compiled: model and loss are, and whole steps are
captured. MFU: six floating-point operations a weight and sample or token, for GPT-2
attention's too, of the 989 TFLOP/s that an H100 or H200 has in dense bf16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.measure import Benchmark, Target, Value

if TYPE_CHECKING:
    import torch

    from benchmarks.measure import Numbers
    from benchmarks.training import Training

SMALL, CONVNET, GPT2 = "launch-bound", "convnet", "GPT-2"
PEAK = 989e12
TOKENS, LENGTH = 50_304, 1024


def no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "Left out: torch finds no CUDA device here."


BENCHMARK = Benchmark(
    cases={SMALL: (SMALL, 65_536, 12), CONVNET: (CONVNET, 12_800, 6), GPT2: (GPT2, 160, 4)},  # samples, epochs
    quick={SMALL: (SMALL, 2560, 2), CONVNET: (CONVNET, 256, 2), GPT2: (GPT2, 16, 2)},
    values=[
        Value("us", "µs a step", ".0f"),
        Value("samples_per_s", "samples a second", ".0f"),
        Value("mfu", "MFU", ".3f"),
        Value("process_s", "whole process, s"),
        Value("loss", "last loss", ".3f"),
    ],
    ratio="times the speed of",
    targets=[
        Target("G1", "fitkit, compiled", "CUDA graph by hand", 1 / 1.05, case=SMALL),
        Target("G1", "fitkit, compiled", "Lightning, best settings", 5, case=SMALL),
        Target("G2", "fitkit, compiled", "compiled by hand", 0.97, case=CONVNET),
        Target("G2", "fitkit, compiled", "compiled by hand", 0.97, case=GPT2),
    ],
    skip=no_gpu,
)
Case = tuple[str, int, int]


def training(case: Case) -> Training:
    import torch
    from torch import nn

    from benchmarks.training import Training
    from fitkit.data import Inputs
    from fitkit.parts.models import gpt, resnet20

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    kind, count, epochs = case
    if kind == SMALL:
        y = torch.randint(10, (count,))
        x = torch.randn(10, 64)[y] + torch.randn(count, 64)
        widths = [64, 256, 256, 256]
        hidden = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(256, 10))
        spec = {"model": {"mlp": {"hidden": widths[1:]}}}
        return Training(x, y, model, spec, 256, epochs, "Adam", {"lr": 1e-3}, device="cuda")
    if kind == CONVNET:
        y = torch.randint(10, (count,))
        x = torch.randn(10, 3, 32, 32)[y] / 2 + torch.randn(count, 3, 32, 32)
        model, arguments = resnet20(Inputs((3, 32, 32)), 10), {"lr": 0.02, "momentum": 0.9, "nesterov": True}
        return Training(x, y, model, {"model": "resnet20"}, 128, epochs, "SGD", arguments, device="cuda")
    ids = torch.randint(TOKENS, (count, LENGTH + 1))
    model = gpt(Inputs((LENGTH,), TOKENS), TOKENS, width=768, depth=12, heads=12, dropout=0.0)
    arguments = {"lr": 3e-4, "weight_decay": 0.1}
    return Training(ids[:, :-1], ids[:, 1:], model, {}, 8, epochs, "AdamW", arguments, device="cuda")


def precision(case: Case) -> torch.dtype | None:
    import torch

    return None if case[0] == SMALL else torch.bfloat16


def with_mfu(case: Case, t: Training, numbers: Numbers) -> Numbers:
    """Add the share of the device's peak that the weights' own arithmetic takes, where that is defined."""
    if case[0] != GPT2:
        return numbers
    weights = sum(p.numel() for p in t.model.parameters()) - LENGTH * 768  # positions multiply nothing
    a_token = 6 * weights + 12 * 12 * 768 * LENGTH  # PaLM (arXiv:2204.02311), appendix B
    return {**numbers, "mfu": numbers["samples_per_s"] * LENGTH * a_token / PEAK}


@BENCHMARK.program("textbook loop")
def textbook(case: Case) -> Numbers:
    from benchmarks import training as loops

    t = training(case)
    return with_mfu(case, t, loops.textbook(t, precision=precision(case)))


@BENCHMARK.program("compiled by hand")
def compiled(case: Case) -> Numbers:
    from benchmarks import training as loops

    t = training(case)
    images = case[0] == CONVNET
    return with_mfu(case, t, loops.lean(t, channels_last=images, precision=precision(case), compiled=True))


@BENCHMARK.program("CUDA graph by hand", cases=[SMALL])
def captured(case: Case) -> Numbers:
    import torch

    t = training(case)
    t.model.to("cuda")
    x, y, rows = t.x.cuda(), t.y.cuda(), torch.zeros(t.batch_size, dtype=torch.int64, device="cuda")
    optimizer = t.make_optimizer(fused=True, capturable=True)
    sums = torch.zeros(2, device="cuda")
    kept = {name: value.clone() for name, value in t.model.state_dict().items()}

    def step() -> None:
        optimizer.zero_grad()
        output = t.model(x[rows])
        loss = t.loss(output, y[rows])
        loss.backward()
        optimizer.step()
        sums.add_(torch.stack((loss.detach() * len(rows), t.right(output, y[rows]))))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):  # as torch's notes on CUDA graphs ask for
            step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    t.model.load_state_dict(kept)
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    for _ in range(t.epochs):
        sums.zero_()
        for own in torch.randperm(len(x), device="cuda").split(t.batch_size):  # no ragged batch: 65,536 is a multiple
            rows.copy_(own)
            graph.replay()
        sums.tolist()
        t.end_epoch()
    return t.numbers()


def ours(row: str, **options: Any) -> None:
    def run(case: Case) -> Numbers:
        from benchmarks import training as loops

        t = training(case)
        return with_mfu(case, t, loops.fitkit(t, precision="fp32" if case[0] == SMALL else "bf16", **options))

    BENCHMARK.program(row)(run)


ours("fitkit, eager", compile=False)
ours("fitkit, compiled", compile=True)


@BENCHMARK.program("Lightning, best settings", "pytorch_lightning", cases=[SMALL])
def lightning(case: Case) -> Numbers:
    from benchmarks import peers

    return peers.lightning(training(case), True)
