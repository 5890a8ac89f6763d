"""How much memory a run needs, before any of it is taken: the model is built, and one batch goes through it, on torch's
meta device, where tensors have shapes and no numbers.

Parameters, gradients and the optimizer's state are exact. Activations are what autograd keeps of one batch between
forward and backward, plus two tensors as large as the largest that an operation makes; what kernels allocate for
themselves (workspaces of convolutions, say) is not counted.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fitkit import files
from fitkit.builder.data import Prepared
from fitkit.builder.objective import Contract, ignored
from fitkit.engine.align import make_align
from fitkit.engine.recompute import Block, recomputed
from fitkit.errors import Fault, SpecError
from fitkit.parts.optimizers import parameter_groups
from fitkit.spec.component import Component
from fitkit.spec.spec import Spec

META = torch.device("meta")
TINY = (2, 3, 5, 7, 11, 13, 17)  # sides of a parameter on which an optimizer is tried: no two are alike
CAST = {"cuda": 0.5, "cpu": 0.6}  # of fp32's bytes that autograd saves under autocast; measured on torch 2.13
FLASH = 1  # torch.nn.attention.SDPBackend.FLASH_ATTENTION
OWN = ("fitkit", "torch")  # packages whose factories may be called twice
MOST_PARAMETERS = 5000  # tensors, not numbers: torch makes some three thousand modules a second


class _TooMany(Exception):
    """A model has more tensors of parameters than are built."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes that a run holds at its peak, by part; None is what is not known."""

    parameters: int  # how many, not bytes
    trainable: int
    weights: int  # parameters and buffers
    gradients: int
    optimizer: int | None
    copies: int  # of the best epoch's weights, and EMA's averages
    activations: int | None  # of one batch
    saved: int | None  # the part of the activations that autograd keeps
    largest: int  # of the tensors that operations make
    batch: int  # the batch itself

    @property
    def fixed(self) -> int:
        """The bytes that do not depend on the batch size, as far as they are known."""
        return self.weights + self.gradients + (self.optimizer or 0) + self.copies

    @property
    def needed(self) -> int:
        """All bytes together, as far as they are known."""
        return self.fixed + (self.activations or 0) + self.batch

    def parts(self) -> dict[str, int | None]:
        """Return the bytes of each part under the name that messages give it."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "copies": self.copies,
            "activations": self.activations,
            "batch": self.batch,
        }

    @property
    def least(self) -> int:
        """Bytes without which there is no step: gradients grow while what autograd saved is let go."""
        return self.steady + max(self.gradients, self.saved or 0, self.largest)

    @property
    def steady(self) -> int:
        """The bytes that are held at any time, as far as they are known."""
        return self.fixed - self.gradients


@dataclass(frozen=True)
class Sketch:
    """A model on the meta device, or None where it cannot be built there; the bytes hold also for a part of it."""

    model: nn.Module | None
    weights: int
    outputs: int  # of all operations while it was built: a list of layers sees two samples


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how much memory operations make; has attention choose the kernel that the real device would."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.largest, self.total = device, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._fused_sdp_choice.default:
            dropout = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            fused = self.device.type == "cuda" or (self.device.type == "cpu" and not dropout)
            return FLASH if fused else func(*args, **kwargs)
        made = func(*args, **kwargs)
        if not any(item.alias_info for item in func._schema.returns):  # neither a view nor in place
            size = sum(map(_bytes, made if isinstance(made, tuple | list) else [made]))
            self.largest = max(self.largest, size)
            first = args[0][0] if args and isinstance(args[0], list | tuple) and args[0] else args and args[0]
            self.total += size if isinstance(first, Tensor) else 0  # what comes from nothing is a weight
        return made


class _Recurrent(TorchFunctionMode):
    """Stands in for the loops of recurrent layers, which take longer on the meta device than for real."""

    def __init__(self, device: torch.device, tracker: _Tracker) -> None:
        super().__init__()
        self.device, self.tracker, self.saved = device, tracker, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu") and len(args) == 9:
            return self.recurrent(name, *args)
        return func(*args, **(kwargs or {}))

    def recurrent(self, name: str, x: Tensor, state: Any, weights: Any, *options: Any) -> Any:
        """Return outputs of the right shape: (B, T, D) -> (B, T, width), and the last states; count what is saved.

        A layer saves its input and, in units of its output, the gates (measured on torch 2.13): 7 for LSTM and GRU, 1
        for RNN. oneDNN's LSTM, which float32 takes on a CPU, keeps a workspace of 8.6 H + 6.7 max(D, H) a time step.
        """
        _, layers, _, _, both, _ = options
        states = state if name == "lstm" else (state,)
        batch, steps, width = x.shape[0], x.shape[1], states[0].shape[-1]
        hidden, ways = states[-1].shape[-1], 1 + both
        onednn = name == "lstm" and self.device.type == "cpu" and x.dtype is torch.float32 and width == hidden
        numbers = 0.0
        for layer in range(layers):
            features = width * ways if layer else x.shape[-1]
            gates = 8.6 * hidden + 6.7 * max(features, hidden) if onednn else hidden * (1 if "rnn" in name else 7)
            numbers += features + ways * gates
        saved = int(numbers * batch * steps * x.element_size())
        self.saved += saved
        self.tracker.total += saved
        out = x.new_empty(batch, steps, width * ways).requires_grad_(torch.is_grad_enabled())
        return out, *(s.new_empty(s.shape).requires_grad_(torch.is_grad_enabled()) for s in states)


@contextmanager
def _on_meta(tracker: _Tracker) -> Iterator[_Recurrent]:
    recurrent = _Recurrent(tracker.device, tracker)
    with META, recurrent, tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever is worth a warning is said when the real model is built
        yield recurrent


def sketch(model: Any, make: Callable[[], nn.Module], device: torch.device) -> Sketch | None:
    """Return what `make` builds of a spec's `model:`, on the meta device.

    None for a model with parts that a user registered: their code may do more than build, so it runs once only. Raises
    SpecError for a model of so many tensors that it would take seconds to build.
    """
    components: Sequence[Component] = model if isinstance(model, tuple) else (model,)
    if any(component.entry.factory.__module__.partition(".")[0] not in OWN for component in components):
        return None
    seen: dict[int, Tensor] = {}

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is not None:
            seen[id(parameter)] = parameter
        if len(seen) > MOST_PARAMETERS:
            raise _TooMany

    handle = register_module_parameter_registration_hook(count)
    built: nn.Module | None = None
    tracker = _Tracker(device)
    try:
        with _on_meta(tracker) if isinstance(model, tuple) else META:  # only a list of layers sees samples
            built = make()
    except _TooMany:
        message = f"has more than {MOST_PARAMETERS:,} tensors of parameters: building it takes too long. Take less."
        raise SpecError(Fault(message, "model")) from None
    except SpecError:  # told when it is built for real, in torch's own words
        pass
    finally:
        handle.remove()
    tensors = seen.values() if built is None else [*built.parameters(), *built.buffers()]
    return Sketch(built, sum(map(_bytes, tensors)), tracker.total)


def without_numbers(module: nn.Module) -> nn.Module | None:
    """Return a copy of a module on the meta device, made without copying a number; None if it cannot be copied."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device=META), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=META)
    try:
        return copy.deepcopy(module, memo)
    except Exception:  # whatever the user's own class raises: its activations are not known then
        return None


def is_small(drawn: Sketch, spec: Spec, x: Tensor, there: int) -> bool:
    """Tell, without running a batch, whether a model needs less than half of what is there, by a loose bound.

    A list of layers has shown its outputs for two samples. The layers of fitkit's named models make, of every number
    of the sample, at most four times as many as the longest side of each parameter; attention makes, four times, the
    square of the time steps for each head.
    """
    fixed = 8 * drawn.weights
    if isinstance(spec.model, tuple):
        return fixed + 4 * drawn.outputs * len(x) // 2 < there // 2
    assert drawn.model is not None and spec.model is not None
    positions, heads, depth = x[0].numel(), spec.model.get("heads") or 0, spec.model.get("depth") or 0
    sides = sum(max(p.shape, default=1) for p in drawn.model.parameters()) + depth * heads * positions
    return fixed + 16 * len(x) * positions * sides < there // 2


def measure(
    model: nn.Module,
    spec: Spec,
    prepared: Prepared,
    contract: Contract,
    optimizer: Component,
    device: torch.device,
    precision: torch.dtype | None,
    ours: bool,
) -> Size:
    """Return the size of a run with a model on the meta device."""
    parameters, buffers = list(model.parameters()), list(model.buffers())
    weights = sum(map(_bytes, [*parameters, *buffers]))
    trained = [p for p in parameters if p.requires_grad]
    averages = sum(map(_bytes, parameters)) if any(c.name == "EMA" for c in spec.callbacks) else 0
    saved, largest = _batch(model, spec, prepared, contract, device, ours)
    if precision is not None and saved is not None:  # fewer bytes, and a copy of the weights in that precision
        share = CAST.get(device.type, 0.6)
        saved = int(share * saved) + 2 * sum(p.numel() for p in parameters if p.ndim > 1)
        largest = int(share * largest)
    return Size(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in trained),
        weights=weights,
        gradients=sum(map(_bytes, trained)),
        optimizer=_optimizer_state(optimizer, model),
        copies=(weights if "val" in prepared.parts else 0) + averages,
        activations=None if saved is None else saved + 2 * largest,
        saved=saved,
        largest=largest,
        batch=sum(map(_bytes, prepared.first)),
    )


def _batch(
    model: nn.Module, spec: Spec, prepared: Prepared, contract: Contract, device: torch.device, ours: bool
) -> tuple[int | None, int]:
    """Return the bytes that autograd saves of one batch, and of the largest tensor that an operation makes.

    None where an operation has no meta kernel, or a shape that depends on the data.
    """
    x, y = (tensor.to(META) for tensor in prepared.first)
    transform = None if prepared.transform is None else without_numbers(prepared.transform)
    loss, kept, tracker = contract.loss, _Kept([*model.parameters(), *model.buffers(), x]), _Tracker(device)
    numbers = {name: value for name, value in loss.own().items() if name not in ("class_weight", "pos_weight")}
    try:
        with _on_meta(tracker) as recurrent, saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            with recomputed(model, spec.fit, kept.block):
                output: Any = model(x if transform is None else transform(x))
            try:
                align = make_align(contract.kind, output, y, squeeze=ours, ignore_index=ignored(loss))
                aligned, target, _ = align(output, y)
                loss.entry.factory(aligned, target, **numbers)
            except Exception:  # told when the run is built; until then a loss keeps about what it is given
                kept.more += _bytes(output)
    except Exception:  # a user's own forward may raise anything here, and still work for real
        return None, 0
    return kept.bytes + recurrent.saved, tracker.largest


class _Kept:
    """What autograd saves, each piece of memory once, without the tensors that are there anyway."""

    def __init__(self, there: Sequence[Tensor]) -> None:
        self.there = {tensor.untyped_storage()._cdata for tensor in there}
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no number is given twice
        self.more = self.inside = 0

    def block(self, function: Callable[..., Any], block: Block, *args: Any, **kwargs: Any) -> Any:
        """Run a block that is computed again: its input is kept, and what it saves is there for one block at a time."""
        inner = _Kept([])
        inner.there = self.there
        with saved_tensors_hooks(inner.pack, lambda tensor: tensor):
            result = function(*args, **kwargs)
        self.inside = max(self.inside, inner.bytes)
        for tensor in args:
            if isinstance(tensor, Tensor):
                self.pack(tensor)
        return result

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.there:
            self.storages[storage._cdata] = storage
        return tensor

    @property
    def bytes(self) -> int:
        """The bytes of all of them."""
        return self.more + self.inside + sum(storage.nbytes() for storage in self.storages.values())


def _optimizer_state(component: Component, model: nn.Module) -> int | None:
    """Return the bytes of an optimizer's state, by one step on a tiny parameter for each number of dimensions.

    A side of the state that is as long as the tiny parameter's is as long as the real one's.
    """
    try:
        total = 0
        for group in parameter_groups(component, model, **component.shared()):
            shapes = [(parameter.shape, parameter.dtype) for _, parameter in group["params"]]
            states = {key: _state_of(component, group, *key) for key in {(len(s), dtype) for s, dtype in shapes}}
            for shape, dtype in shapes:
                for state in states[len(shape), dtype]:
                    total += state.element_size() * _scaled(tuple(state.shape), tuple(shape))
        return total
    except Exception:  # an optimizer of the user's, or a mistake that is told when it is built
        return None


def _state_of(component: Component, group: dict[str, Any], ndim: int, dtype: torch.dtype) -> list[Tensor]:
    tiny = nn.Parameter(torch.zeros(TINY[:ndim], dtype=dtype))
    tiny.grad = torch.zeros_like(tiny)
    optimizer: torch.optim.Optimizer = component.build([{**group, "params": [("tiny", tiny)]}])
    optimizer.step()
    return [value for value in optimizer.state[tiny].values() if isinstance(value, Tensor)]


def _scaled(state: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if len(state) != len(shape):
        return math.prod(state)
    return math.prod(real if side == tiny else side for side, tiny, real in zip(state, TINY, shape, strict=False))


def room(device: torch.device) -> int | None:
    """Return how many bytes a run may still take on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return files.available_memory()


def refusal(found: Size, there: int, batch: int) -> SpecError:
    """Return the error for a run of which `found.least` is more than what is there."""
    has, steady = in_words(there), found.steady
    if most := largest_batch(found.least, steady, batch, there):
        message = (
            f"a batch of {batch:,} takes {in_words(found.least - steady)} of activations beside {in_words(steady)} for "
            f"{found.parameters:,} parameters, and {has} are available. Write {most}, or take a smaller model."
        )
        return SpecError(Fault(message, "fit.batch_size"))
    parts = ", ".join(f"{name} {in_words(size)}" for name, size in found.parts().items() if size)
    message = f"{found.parameters:,} parameters take {in_words(found.needed)} to train ({parts}), and {has} "
    return SpecError(Fault(f"{message}are available. Take a smaller model.", "model"))


def largest_batch(needed: int, fixed: int, batch: int, there: int) -> int:
    """Return the batch size with which what is needed fits, as far as it grows by the sample; 0 if none does."""
    return max(0, (there - fixed) * batch // max(1, needed - fixed))


def in_words(count: int) -> str:
    """Return bytes as they are read: 1.2 GB."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:,.3g} {name}" if count < 1000 * unit else f"{count / unit:,.0f} {name}"
    return f"{count} bytes"


def _bytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
