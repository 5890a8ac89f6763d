"""Scalars of a step are computed once: torch's compiler would put them, as text, into every loop that uses them.

Adam's bias correction is a power and a root of the step's number. Written into the loop over a weight, it is computed
anew for each of its elements, which takes longer than all else in a small step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.lowering import register_lowering

_torch: Any = torch.library
_library = _torch.Library("fitkit", "DEF")
_library.define("scalar(Tensor x) -> Tensor")
_library.impl("scalar", lambda x: x.clone(), "CompositeExplicitAutograd")


@register_lowering(torch.ops.fitkit.scalar.default, type_promotion_kind=None)
def _scalar(x: Any) -> Any:
    x.realize()
    return x


class OnceComputed(CustomGraphPass):
    """Marks each 0-d float that enters a computation of more than 0 dimensions, so that it has a place in memory."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change the graph in place."""
        for node in list(graph.nodes):
            if node.op != "call_function" or not _is_scalar(node):
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
        return "fitkit.scalars.1"


def _is_scalar(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()
