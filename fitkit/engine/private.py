"""The private corners of torch that fitkit uses: each is probed, and has a public way to fall back on."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import IOBase
from typing import Any

import torch
from torch.optim import optimizer as _module

from fitkit.engine.seeds import kept_random_state


def tell_deaths_when_asked(iterator: Any) -> None:
    """Let torch tell that a worker of a loader died where the next batch is asked for, some seconds later.

    By itself it raises at once, in a signal handler: in the middle of a step, or where Python ignores errors. Where
    this is not found, that stays.
    """
    forget = getattr(torch._C, "_remove_worker_pids", None)
    if forget is not None and getattr(iterator, "_worker_pids_set", False):
        forget(id(iterator))
        iterator._worker_pids_set = False


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """Return the optimizer's step without torch's profiling wrapper around it, which costs a third of a small step.

    The wrapper also runs hooks: where any are registered, or where it is not found, this is `optimizer.step` itself.
    """
    wrapped = getattr(type(optimizer).step, "__wrapped__", None)
    hooks = _step_hooks(optimizer)
    if wrapped is None or _is_patched(optimizer) or any(hook is None or len(hook) for hook in hooks):
        return optimizer.step
    return functools.partial(wrapped, optimizer)


def unwarned(optimizer: Any) -> None:
    """Let torch not warn of a capturable optimizer's steps outside of a recording: some are."""
    optimizer._warned_capturable_if_run_uncaptured = True


def hooked(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether functions of a user's own are called in a step: by the optimizer, or by a gradient that arrives."""
    for part in [optimizer, *getattr(optimizer, "bound_parts", list)()]:
        if _is_patched(part) or any(_step_hooks(part)):
            return True
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters)


def hooked_modules(model: torch.nn.Module) -> bool:
    """Tell whether someone put functions of their own on modules: hooks, or another forward."""
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    if _hooks_of_all():
        return True
    return any("forward" in vars(m) or any(vars(m)[hook] for hook in hooks) for m in model.modules())


def _hooks_of_all() -> bool:
    """Tell whether torch calls functions for every module there is."""
    theirs = torch.nn.modules.module
    forward = getattr(theirs, "_global_forward_hooks", None), getattr(theirs, "_global_forward_pre_hooks", None)
    backward = getattr(theirs, "_global_backward_hooks", None), getattr(theirs, "_global_backward_pre_hooks", None)
    return any((*forward, *backward))


def free_generator(device: torch.device) -> None:
    """Give a GPU's generator a state of its own again, with the same numbers, after a recording that failed.

    Up to torch 2.12 the old one thinks for ever that it is being recorded, and refuses to draw.
    """
    generator = torch.cuda.default_generators[device.index or 0]
    generator.graphsafe_set_state(generator.clone_state())


def _is_patched(optimizer: torch.optim.Optimizer) -> bool:
    return "step" in vars(optimizer)  # someone put a function of their own on this very object


def _step_hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    hooks = [getattr(optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")]
    return hooks + [getattr(_module, f"_global_optimizer_{when}_hooks", None) for when in ("pre", "post")]


def load_compiler() -> None:
    """Import torch's compiler, where that suits: torch does it by itself for the first optimizer, compiled or not."""
    with contextlib.suppress(ImportError):
        import torch._dynamo  # noqa: F401


def has_bf16() -> bool:
    """Tell whether this CPU multiplies in bf16 itself, by AVX-512 or AMX; no where torch does not say."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class NoGraph(Exception):
    """A function cannot be one graph; the message says why, and where in the user's code."""


@dataclass(frozen=True)
class Graph:
    """A compiled function for arguments of one kind: `call` runs it, `holds` tells whether it is made for arguments."""

    call: Callable[..., Any]
    holds: Callable[..., bool]
    save: Callable[[str], Any]


def compile_graph(function: Callable[..., Any], arguments: tuple[Any, ...], *, guarded: bool) -> Graph:
    """Compile a function as one graph for arguments like these, without calling it.

    A guarded graph watches all of Python that it was traced from, in `holds` alone: that costs more than many a small
    graph, and `call` trusts it. One that is not guarded holds for whatever the caller says, and can be saved.

    Raises NoGraph when torch cannot.
    """
    options: Any = {"guard_filter_fn": _keepable if guarded else lambda guards: [False] * len(guards)}
    try:
        with _settings():
            compiled: Any = torch.compile(function, fullgraph=True, dynamic=False, options=options)
            made = compiled.aot_compile((arguments, {}))
    except Exception as error:  # whatever a compiler trips over is a reason to go on without it
        raise NoGraph(_cause(error)) from error
    return Graph(made.fn, made.guard_check, made.save_compiled_function)


def _keepable(guards: Any) -> list[bool]:
    """Tell which guards torch can keep of a graph that is compiled ahead; by itself it drops those of globals too."""
    from torch._dynamo.guards import CheckFunctionManager

    never = getattr(CheckFunctionManager, "UNSUPPORTED_SERIALIZATION_GUARD_TYPES", ())
    return [guard.guard_type not in never for guard in guards]


def compiled_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that torch compiles in its first call, with gradients through it, where no break is an error.

    Shapes are fixed: a full batch and the last one; a dynamic graph would depend on the run's history.
    """
    from torch._inductor.compile_fx import compile_fx

    from fitkit.engine.passes import PlainSums

    options: Any = {"joint_custom_pre_pass": PlainSums(), "post_grad_custom_pre_pass": PlainSums()}

    def backend(module: Any, inputs: Any) -> Any:
        with _tensors_stay_tensors():
            return compile_fx(module, inputs, config_patches=options)

    return torch.compile(function, dynamic=False, backend=backend)


def compiler_fault(error: BaseException) -> str:
    """Return what torch's compiler could not do, in a line; nothing for an error that is not the compiler's."""
    theirs = ("torch._dynamo", "torch._inductor")
    return _cause(error) if any(kind.__module__.startswith(theirs) for kind in type(error).__mro__) else ""


def load_graph(file: IOBase) -> Graph:
    """Return a graph that was saved, which runs code from the file. Raises whatever torch does for a damaged one."""
    with _settings():
        made: Any = torch.compiler.load_compiled_function(file)
    return Graph(made.fn, made.guard_check, made.save_compiled_function)


@contextlib.contextmanager
def _tensors_stay_tensors() -> Iterator[None]:
    """Keep torch's compiler from taking each 0-d float64 tensor for a Python number.

    Torch 2.13 does so in every model and loss that has one: what is written into it in place is lost, and steps that
    hold one cannot be compiled ahead. With fixed shapes there are no numbers for which it would be of use.
    """
    import torch._functorch._aot_autograd.graph_compile as theirs

    module: Any = theirs
    kept = getattr(module, "_apply_tensorify_python_scalars", None)
    if kept is None:
        yield
        return
    module._apply_tensorify_python_scalars = lambda module: None
    try:
        yield
    finally:
        module._apply_tensorify_python_scalars = kept


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Trace gradients too, and let the compiler write the calls of its loops in C++."""
    import torch._dynamo.config
    import torch._inductor.config

    # Which imports the compiler.
    from fitkit.engine.passes import BiasApart, InTurn, OnceComputed, PlainSums

    inductor = {
        "cpp_wrapper": True,
        "memory_planning": True,  # one allocation a call: some thirty a step took a tenth of a small one's time
        "joint_custom_pre_pass": PlainSums(),
        "post_grad_custom_pre_pass": PlainSums(),  # what was decomposed since
        "post_grad_custom_post_pass": InTurn(BiasApart(), OnceComputed()),
    }
    with (
        torch._dynamo.config.patch(trace_autograd_ops=True, record_runtime_overhead=False),
        torch._inductor.config.patch(inductor),
        _tensors_stay_tensors(),
        warnings.catch_warnings(),
        kept_random_state(),
    ):
        # Where torch can make no key for its cache it draws one from `random`, which a fit has seeded: another graph
        # would be found under it.
        random.seed()
        # Gradients are traced in anomaly mode, which has this to say of a signal that ends it.
        warnings.filterwarnings("ignore", "Error detected in ")
        yield


def _cause(error: BaseException) -> str:
    """Return an error of torch's compiler in one line: what, and the last line of code that is not torch's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    places = [p for p in re.findall(r'File "([^"]+)", line (\d+)', str(error)) if "/torch/" not in p[0]]
    where = f" ({places[-1][0]}:{places[-1][1]})" if places else ""
    return lines[0][:200] + where
