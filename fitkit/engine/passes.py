"""What is changed in a graph before torch's compiler writes loops for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.lowering import register_lowering

CONSTANTS = torch.ops.aten.full.default, torch.ops.aten.scalar_tensor.default
_torch: Any = torch.library
_library = _torch.Library("fitkit", "DEF")
_library.define("scalar(Tensor x) -> Tensor")
_library.impl("scalar", lambda x: x.clone(), "CompositeExplicitAutograd")


@register_lowering(torch.ops.fitkit.scalar.default, type_promotion_kind=None)
def _scalar(x: Any) -> Any:
    x.realize()
    return x


class PlainSums(CustomGraphPass):
    """Writes a + alpha * b for add(a, b, alpha=alpha), also for sub.

    Torch 2.13's pattern for a product of matrices to which something is added does not look at alpha: a gradient to
    which 5e-4 of the weight is added, as L2 weight decay does, got all of the weight.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        for target in (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor):
            for node in graph.find_nodes(op="call_function", target=target):
                alpha = node.kwargs.get("alpha", 1)
                if alpha != 1:
                    left, right = node.args
                    node.args = left, _times(graph, node, right, alpha)
                    node.kwargs = {}

    def uuid(self) -> str:
        """Return what torch's own caches tell this pass by."""
        return "fitkit.sums.1"


def _times(graph: torch.fx.Graph, node: torch.fx.Node, value: Any, alpha: float) -> Any:
    """Return what computes value * alpha in the dtype of a node, before that node."""
    if not isinstance(value, torch.fx.Node):
        return value * alpha
    dtype = node.meta["val"].dtype
    with graph.inserting_before(node):
        if value.meta["val"].dtype != dtype:
            value = _node(graph, torch.ops.prims.convert_element_type.default, (value, dtype), node)
        return _node(graph, torch.ops.aten.mul.Tensor, (value, alpha), node)


def _node(graph: torch.fx.Graph, function: Any, arguments: tuple[Any, ...], like: torch.fx.Node) -> torch.fx.Node:
    made = graph.call_function(function, arguments)
    values = (a.meta["val"] if isinstance(a, torch.fx.Node) else a for a in arguments)
    made.meta = {**like.meta, "val": function(*values)}
    return made


class BiasApart(CustomGraphPass):
    """Writes a @ b + bias for addmm(bias, a, b) on a CPU, where the bias is a vector.

    The sum becomes a part of the loop that follows, such as that of an activation. Within addmm it costs a pass of its
    own, which copies the bias into each row of the result, and its reading again.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        aten = torch.ops.aten
        for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
            bias, left, right = node.args
            value = node.meta["val"]
            wide = value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)
            if node.kwargs or not wide or bias.meta["val"].dim() != 1:
                continue
            with graph.inserting_before(node):
                product = _node(graph, aten.mm.default, (left, right), node)
                total = _node(graph, aten.add.Tensor, (product, bias), node)
            node.replace_all_uses_with(total)
            graph.erase_node(node)

    def uuid(self) -> str:
        """Return what torch's own caches tell this pass by."""
        return "fitkit.bias.1"


class InTurn(CustomGraphPass):
    """One pass after another, where torch has a place for one."""

    def __init__(self, *passes: CustomGraphPass) -> None:
        self.passes = passes

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        for change in self.passes:
            change(graph)

    def uuid(self) -> str:
        """Return what torch's own caches tell these passes by."""
        return " ".join(str(change.uuid()) for change in self.passes)


class OnceComputed(CustomGraphPass):
    """Marks each 0-d float, no constant, that enters a computation of more dimensions: it gets a place in memory.

    Torch's compiler would put it, as text, into every loop that uses it. Adam's bias correction is a power and a root
    of the step's number: written into the loop over a weight, it is computed anew for each of its elements, which takes
    longer than all else in a small step.
    """

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        for node in list(graph.nodes):
            if node.op != "call_function" or not _is_scalar(node) or node.target in CONSTANTS:
                continue
            users = [user for user in node.users if not _is_scalar(user) and isinstance(user.meta.get("val"), Tensor)]
            if users:
                with graph.inserting_after(node):
                    kept = graph.call_function(torch.ops.fitkit.scalar.default, (node,))
                kept.meta = dict(node.meta)
                for user in users:
                    user.replace_input_with(node, kept)

    def uuid(self) -> str:
        """Return what torch's own caches tell this pass by."""
        return "fitkit.scalars.2"


def _is_scalar(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()
