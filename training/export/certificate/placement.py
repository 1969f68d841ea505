"""Where the nodes of a variant run, and which of them fell back from the provider that was asked for.

A session that asks for CUDA can run on it by name and still leave its convolutions on the CPU: each node is assigned alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from registry.certificate import Check

# ONNX Runtime keeps arithmetic on shapes on the CPU on purpose, for every provider: the results are sizes that the host needs.
# Source: GetCpuPreferredNodes in onnxruntime/core/framework/fallback_cpu_capability.cc.
SHAPE_OPERATORS = frozenset(
    {
        *("Shape", "Size", "Constant", "ConstantOfShape", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape", "Expand"),
        *("Cast", "Range", "Add", "Sub", "Mul", "Div", "Mod", "Equal", "Less", "Greater", "Not", "And", "Or", "Where", "Min", "Max"),
        *("ReduceProd", "Identity", "Neg"),
    }
)
_MAX_NAMED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedNode:
    """One node of a loaded variant.

    Attributes:
        name: Its name in the graph; may be empty.
        operator: What it computes, for example `Conv`.
        provider: What executes it.
        floats: Whether it is known to make floating-point numbers: data, not shapes.
    """

    name: str
    operator: str
    provider: str
    floats: bool = False

    def __str__(self) -> str:
        return f"{self.name or '?'} ({self.operator}) on {self.provider}"


@runtime_checkable
class SaysWhereNodesRun(Protocol):
    """A runner whose runtime tells where each node runs."""

    def placement(self) -> tuple[PlacedNode, ...] | None:
        """Every node; None if this version of the runtime does not tell."""


def fallen_back(nodes: Sequence[PlacedNode], wanted_provider: str) -> tuple[PlacedNode, ...]:
    """Nodes that another provider executes, without those that only compute shapes."""
    elsewhere = (node for node in nodes if node.provider != wanted_provider)
    return tuple(node for node in elsewhere if node.floats or node.operator not in SHAPE_OPERATORS)


def placement_check(nodes: Sequence[PlacedNode], wanted_provider: str) -> Check:
    """No node of the data path may run elsewhere than it was asked to."""
    others = fallen_back(nodes, wanted_provider)
    named = ", ".join(str(node) for node in others[:_MAX_NAMED])
    detail = f"of {len(nodes)} nodes, wanted {wanted_provider}" + (f"; {named}" if others else "")
    return Check(name="provider/num_fallen_back", passed=not others, value=len(others), limit=0, detail=detail)


def placement_facts(nodes: Sequence[PlacedNode], wanted_provider: str) -> dict[str, Any]:
    """Provider -> operator -> number of nodes, and which nodes are not on the wanted provider (shape arithmetic included)."""
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(node.provider, Counter())[node.operator] += 1
    elsewhere = [str(node) for node in nodes if node.provider != wanted_provider]
    return {
        "placement": {provider: dict(sorted(operators.items())) for provider, operators in sorted(counts.items())},
        "nodes_elsewhere": elsewhere[:_MAX_NAMED],
        "num_nodes_elsewhere": len(elsewhere),
    }
