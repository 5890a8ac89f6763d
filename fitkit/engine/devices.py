"""Where and with which numbers a run computes: device, precision, determinism."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

import torch

from fitkit.engine.memory import keep_what_is_freed
from fitkit.engine.seeds import kept_random_state
from fitkit.errors import Fault, SpecError
from fitkit.spec.options import FitOptions


def choose_device(asked: str) -> torch.device:
    """Return the device that `fit.device` asks for; auto takes cuda, then mps, then cpu."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if asked == "auto":
        return torch.device("cuda:0" if cuda else "mps" if mps else "cpu")
    device = torch.device(asked)
    if device.type == "cuda" and not cuda:
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise SpecError(Fault(f"{asked} is not here: {why}. Write cpu, or auto.", "fit.device"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SpecError(Fault(f"{asked} is not here: the devices are cuda:0 to cuda:{count - 1}.", "fit.device"))
    if device.type == "mps" and not mps:
        raise SpecError(Fault("mps is not here: this machine or this torch has no Metal device.", "fit.device"))
    return torch.device("cuda:0") if asked == "cuda" else device


def check_compile(asked: object) -> None:
    """Raise SpecError where torch.compile is asked for and cannot work."""
    if asked is True and (why := can_compile()):
        raise SpecError(Fault(f"{why}. Write auto, which stays eager then.", "fit.compile"))


def can_compile() -> str:
    """Return why torch.compile cannot work here, or nothing."""
    # Its C++ commands do not quote the path of torch itself.
    if any(c.isspace() for c in torch.__file__):
        return f"torch.compile does not work from a folder whose path holds a space ({torch.__path__[0]})"
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler := os.environ.get("CXX", usual)) is None:
        return f"torch.compile needs a C++ compiler, and {compiler!r} is no program here: install one, or set CXX"
    return ""


def choose_precision(asked: str, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.dtype | None:
    """Return the dtype of autocast, or None for the parameters' own; auto is bf16 on a GPU that has it.

    Autocast changes float32 alone: a module in another dtype computes in that. Whether auto is bf16 on a CPU is known
    once there is a model.
    """
    if asked == "fp16" and device.type == "cpu":
        message = "fp16 does not train on a CPU. Write bf16, which keeps fp32's range, or fp32."
        raise SpecError(Fault(message, "fit.precision"))
    if dtype is not torch.float32 and asked in ("bf16", "fp16"):
        own = str(dtype).removeprefix("torch.")
        raise SpecError(Fault(f"the module is {own}, which {asked} would not change. Write auto.", "fit.precision"))
    if dtype is not torch.float32:
        return None
    if asked == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]


@contextlib.contextmanager
def run_settings(options: FitOptions, device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Hold the global settings of a fit while it runs, then put back what was there, the random state included.

    On one thread, numbers below 1.2e-38 are taken for zero, as JAX and TensorFlow do on a CPU: the memory of an
    optimizer for a weight without gradients decays into them, and a processor computes with them a hundred times as
    slowly. With more threads it would depend on the thread.
    """
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, many, flushed = torch.backends.cudnn.benchmark, torch.get_num_threads(), _flushes_denormals()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), kept_random_state():
        try:
            keep_what_is_freed(device)
            if threads is not None:
                torch.set_num_threads(threads)
                torch.set_flush_denormal(flushed or threads == 1)
            if options.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses to be deterministic
                torch.use_deterministic_algorithms(True)
                torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.use_deterministic_algorithms(was[0], warn_only=was[1])
            torch.backends.cudnn.benchmark = benchmark
            torch.set_num_threads(many)
            torch.set_flush_denormal(flushed)


def _flushes_denormals() -> bool:
    # Torch has no other way to ask.
    return torch.tensor(5e-324, dtype=torch.float64, device="cpu").mul(1.0).item() == 0.0
