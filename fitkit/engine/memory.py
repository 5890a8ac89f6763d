"""Memory: what a run keeps of it between steps, and what happens where it runs out."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fitkit.engine.batches import Batch
from fitkit.errors import Fault, SpecError, TrainingError, show
from fitkit.spec.options import FitOptions

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Where torch has no type for it: the CPU, MPS, cuBLAS, and CUDA outside of torch's own allocator.
SAID = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
LARGEST_BLOCK = (32 << 20) - (64 << 10)  # bytes: the largest, with its head and its alignment, by which glibc learns
ASKED = re.compile(r"tried to allocate ([\d.,]+ ?\w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that an allocator had no memory left, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SAID)


def keep_what_is_freed(device: torch.device) -> None:
    """Let the C library keep what a step frees for the next one: by itself glibc gives it back to the system each time.

    Getting it again, page by page, took a twentieth of the time of a small transformer. glibc takes a block of 128 KiB
    or more from the system by itself, until one is freed: then it keeps blocks of that size, up to 32 MiB, and twice as
    much at the end of its heap (mallopt(3), M_MMAP_THRESHOLD). No page of the block that teaches it is ever touched.
    """
    if device.type == "cpu":
        torch.empty(LARGEST_BLOCK, dtype=torch.uint8)


def forget_peak(device: torch.device) -> None:
    """Begin to measure the peak of a device's memory anew; that of the process cannot be begun anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float | None:
    """Return the most memory that was held at once, in MB of 10^6 bytes; None where nothing tells.

    On a GPU that of torch's tensors there since `forget_peak`, else the resident memory of the whole process since it
    began, Python, torch and data included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if resource is None or device.type != "cpu":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def asked(error: BaseException) -> str:
    """Return what the allocator was asked for as " (it asked for …)"; nothing where the error does not say."""
    found = ASKED.search(str(error))
    return f" (it asked for {found[1]})" if found else ""


def single_row(error: BaseException) -> TrainingError:
    """Return what to say when memory does not suffice for one row."""
    said = f"memory does not suffice for a forward pass of a single row{asked(error)}."
    return TrainingError(f"{said} Take a smaller model, fit.precision: bf16, or a device with more memory.")


def refuse_batchnorm(model: nn.Module, options: FitOptions) -> None:
    """Raise SpecError where `out_of_memory: halve` would change the result: a norm over the rows of a forward pass."""
    if options.out_of_memory == "halve" and (norm := _batchnorm(model)) is not None:
        message = (
            f"{norm} takes its mean and variance from the rows of a forward pass, so smaller micro-batches would give "
            "another result. Write stop, or take LayerNorm or GroupNorm."
        )
        raise SpecError(Fault(message, "fit.out_of_memory"))


def _batchnorm(model: nn.Module) -> str | None:
    for module in model.modules():
        if module.training or not model.training:  # what stays frozen in eval mode looks at no other row
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(module, "track_running_stats", False):
                return type(module).__name__
    return None


class MicroBatches:
    """How many rows a forward pass takes at most: whole batches, until memory runs out and `halve` was asked for."""

    def __init__(self, model: nn.Module, options: FitOptions) -> None:
        self.model, self.options = model, options
        self.rows: int | None = None
        self.watch()

    def watch(self) -> None:
        """Note the buffers as they are: where training changes them, smaller pieces would change them more often."""
        self._before = {name: (buffer, buffer._version) for name, buffer in self.model.named_buffers()}

    def cut(self, window: Sequence[Batch]) -> Sequence[Batch]:
        """Return the batches in pieces of at most `rows`."""
        if self.rows is None:
            return window
        return list(pieces(window, self.rows))

    def halve(self, window: Sequence[Batch], error: Exception, where: str) -> None:
        """Take pieces half as large from now on, and say so; raise what cannot be helped.

        Raises the error itself when it is not about memory, and TrainingError with what to change when pieces may not
        become smaller.
        """
        if not is_out_of_memory(error):
            raise error
        rows = max(len(x) for x, _ in self.cut(window))
        if self.options.out_of_memory == "stop" or rows == 1:
            raise TrainingError(f"{where}: {self._advice(rows, error)}") from error
        self.refuse_changed_buffers()
        self.rows = -(-rows // 2)
        warnings.warn(
            f"{where}: memory does not suffice for {rows:,} rows a forward pass{asked(error)}. Going on with "
            f"micro-batches of {self.rows:,}, accumulated so that the optimizer step stays the same",
            stacklevel=2,
        )

    def refuse_changed_buffers(self) -> None:
        """Raise TrainingError when training changes a buffer: then a step of smaller pieces is not the same step."""
        for name, buffer in self.model.named_buffers():
            before, version = self._before.get(name, (None, 0))
            if buffer is not before or buffer._version != version:
                raise TrainingError(
                    f"memory ran out, and the micro-batch cannot be halved: the model's buffer {show(name)} changes in "
                    f"training, so the step would not stay the same. {self._smaller(self.options.batch_size)}"
                )

    def _advice(self, rows: int, error: Exception) -> str:
        if rows == 1:
            return str(single_row(error))
        said = f"memory does not suffice for a forward pass of {rows:,} rows{asked(error)}."
        halve = " Or write fit.out_of_memory: halve, which does this by itself." * (_batchnorm(self.model) is None)
        return f"{said} {self._smaller(rows)}{halve}"

    def _smaller(self, rows: int) -> str:
        """Say which batch_size and accumulate keep the step at as many rows, or about as many where nothing divides."""
        parts = next((n for n in (2, 3, 5, 7) if rows % n == 0), 2)
        key = "fit.batch_size" if rows <= self.options.batch_size else "your DataLoader's batch_size"
        same = "the same" if rows % parts == 0 else "about the same"
        norm = _batchnorm(self.model)
        but = f" (but {norm} will see fewer rows at once)" if norm else ""
        return (
            f"Make {key} {-(-rows // parts)} and fit.accumulate {self.options.accumulate * parts}: the optimizer step "
            f"stays {same}{but}."
        )


def pieces(window: Sequence[Batch], rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches in pieces of at most `rows`."""
    for x, y in window:
        yield from zip(torch.split(x, rows), torch.split(y, rows), strict=True)
