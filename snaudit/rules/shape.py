"""Ops that move, select, drop or copy entries. Their norm is √count (l2), count (l1), 1 (linf).

Each output entry is one input entry (or a constant), and `count` is how often an input entry
appears at most. Without repetition it is 1, whatever the order: shapes and axes do not matter.
"""

from __future__ import annotations

import math

import numpy as np

from snaudit import joint
from snaudit.broadcasting import Dim, dims, spread
from snaudit.gains import copies
from snaudit.rules.interface import CONSTANT, Row, Step, Unbounded, Value, through

_MOST_INDICES = 1 << 22  # beyond it, counting index tuples takes too much memory


def selection(step: Step) -> tuple[Value, ...]:
    """The input's own for every output: entries are moved or dropped, none is repeated.

    The outputs of a Split are disjoint pieces of it, and are marked as such.
    """
    value, count = step.data(), len(step.node.outputs)
    if step.node.op_type != "Split" or count == 1:
        return (Value(value.lip, value.sources, part=value.part),) * count
    return tuple(Value(value.lip, value.sources, part=(step.node, index)) for index in range(count))


def shape_of(step: Step) -> tuple[Value, ...]:
    """A constant: an input's shape does not depend on its entries."""
    return (CONSTANT,)


def dropout(step: Step) -> tuple[Value, ...]:
    """The input's own in inference; in training mode the output is random.

    Training is input 2 from opset 12 on; before opset 7 it is is_test = 0.
    """
    if step.opset < 7:
        trains = not step.attribute("is_test", 0)
    elif step.opset < 12 or not step.has(2):
        trains = False
    else:
        mode = step.constant(2)
        trains = mode is None or bool(mode.any())
    if trains:
        raise Unbounded("Dropout in training mode is random", "export the model in eval mode", "random")
    value = step.data()
    return (Value(value.lip, value.sources, part=value.part), CONSTANT)[: len(step.node.outputs)]


def _copied(step: Step, count: int) -> tuple[Value, ...]:
    return (through(step.data(), copies(count, step.norm)),)


def _counted(step: Step, count: int | None, what: str) -> tuple[Value, ...]:
    if step.norm == "linf":
        return _copied(step, 1)
    if count is None:
        raise Unbounded(
            f"how often {step.node.op_type} copies an entry is not known: {what} is not",
            f"make {what} a constant",
            "unknown-shape",
        )
    return _copied(step, count)


def gather(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1), 1 (linf) times the data's, m how often the most frequent index occurs."""
    axis = int(step.attribute("axis", 0))
    shape = step.shape(0)
    size = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
    indices = step.constant(1)
    if indices is None:
        known = dims(step.node.inputs[1])
        count = None if known is None or not all(isinstance(d, int) for d in known) else math.prod(known)
        return _counted(step, count, "the index")
    return _counted(step, _most_frequent(indices.ravel(), size), "the index")


def _most_frequent(indices: np.ndarray, size: int | None) -> int:
    """How often one entry is taken; negative indices count from the end, whose place may be unknown."""
    if size is not None:
        indices = np.where(indices < 0, indices + size, indices)
    below, above = indices[indices < 0], indices[indices >= 0]
    return sum(int(np.unique(part, return_counts=True)[1].max(initial=0)) for part in (below, above))


def gather_elements(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1), 1 (linf) times the data's, m how often one entry is taken, counted."""
    indices, shape = step.constant(1), step.shape(0)
    axis = int(step.attribute("axis", 0))
    if indices is None or indices.size > _MOST_INDICES or shape is None or shape[axis] is None:
        return _counted(step, None, "the index or the axis' size")
    axis %= len(shape)
    places = list(np.indices(indices.shape))
    places[axis] = np.where(indices < 0, indices + shape[axis], indices)
    return _counted(step, _most_rows(np.stack([p.ravel() for p in places], axis=1)), "the index")


def gather_nd(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1), 1 (linf) times the data's, m how often one index tuple occurs, counted."""
    indices, shape = step.constant(1), step.shape(0)
    batch = int(step.attribute("batch_dims", 0))
    if indices is None or indices.size > _MOST_INDICES or shape is None or indices.ndim == 0:
        return _counted(step, None, "the index")
    depth = indices.shape[-1]
    sizes = shape[batch : batch + depth]
    if None in sizes and (indices < 0).any():
        return _counted(step, None, "an indexed axis' size")
    tuples = np.where(indices < 0, indices + np.array([d or 0 for d in sizes], np.int64), indices)
    groups = tuples.reshape(-1, math.prod(indices.shape[batch:-1]), depth)
    return _counted(step, max((_most_rows(group) for group in groups), default=0), "the index")


def _most_rows(rows: np.ndarray) -> int:
    if rows.shape[1] == 0:
        return len(rows)
    return int(np.unique(rows, axis=0, return_counts=True)[1].max(initial=0))


def scatter(step: Step) -> tuple[Value, ...]:
    """Data and updates stacked (√(L²+L'²), L + L', max): each output entry is one entry of either.

    Only for constant indices and reduction = none: every entry then appears at most once.
    """
    if step.attribute("reduction", "none") != "none" or 1 in step.varying:
        raise Unbounded(
            "scattering with a reduction, or to varying places, is not bounded yet",
            "use Concat, Where or Add",
            "no-rule",
        )
    return (joint.stack((step.inputs[0], step.inputs[2]), step.norm),)


def pad(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1), 1 (linf) times the input's, m the copies of one entry, multiplied over the axes.

    constant: 1. reflect, edge, wrap on an axis of known size: counted, and attained. Otherwise
    1 + begin + end, since each padding entry copies one; for reflect 1 and one for each padded side,
    since runtimes refuse to reflect more than the axis holds. Negative pads crop.
    """
    mode = step.attribute("mode", "constant")
    if mode == "constant":
        return _copied(step, 1)
    pads = step.attribute("pads", step.attribute("paddings")) if step.opset < 11 else step.constant(1)
    if pads is None:
        return _counted(step, None, "the pads")
    pads = np.asarray(pads, np.int64)
    crops, pads = bool((pads < 0).any()), np.maximum(pads, 0)
    half = len(pads) // 2
    shape = step.shape(0)
    axes = range(half)
    if step.has(3):
        given = step.constant(3)
        if given is None or shape is None:
            return _counted(step, None, "the axes")
        axes = [int(a) % len(shape) for a in given.ravel()]
    sizes = [None if shape is None or crops else shape[a] for a in axes]
    counts = [_pad_copies(mode, int(pads[i]), int(pads[half + i]), n) for i, n in enumerate(sizes)]
    return _counted(step, math.prod(counts), "the padding")


def _pad_copies(mode: str, begin: int, end: int, size: int | None) -> int:
    most = 1 + begin + end
    if mode == "reflect":
        most = 1 + (begin > 0) + (end > 0)
    if size and begin + end < 10_000 and mode in ("reflect", "edge", "wrap"):
        padded = np.pad(np.arange(min(size, 3 * (1 + begin + end))), (begin, end), mode=mode)
        return int(np.bincount(padded).max())
    return most


def expand(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1), 1 (linf) times the input's, m the product of the sizes of the copied axes."""
    target = step.constant(1)
    sizes: tuple[Dim, ...] | None = dims(step.node.outputs[0])
    if target is not None:
        sizes = tuple(int(d) for d in target.ravel())
    own = dims(step.node.inputs[0])
    if step.norm == "linf":
        return _copied(step, 1)
    if sizes is None or own is None:
        return _counted(step, None, "the shape")
    found = spread(own, [sizes])
    if found.count is None or found.meets:
        return _counted(step, None, "the shape")
    return _copied(step, found.count)


def tile(step: Step) -> tuple[Value, ...]:
    """√m (l2), m (l1), 1 (linf) times the input's, m the product of the repeats."""
    repeats = step.constant(1) if step.opset >= 6 else None
    return _counted(
        step, None if repeats is None else math.prod(int(r) for r in repeats.ravel()), "the number of repeats"
    )


def _no_rule(step: Step) -> tuple[Value, ...]:
    """None yet: sequences and optionals are not followed."""
    raise Unbounded(f"{step.node.op_type} is not bounded yet", "use tensors and plain ops instead", "no-rule")


_COPIES = "√m, m copies of an entry (l1: m, linf: 1)"

ROWS: tuple[Row, ...] = (
    *(
        Row(op, selection, "1", "a selection without repetition")
        for op in (
            "Identity",
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "DepthToSpace",
            "SpaceToDepth",
            "Trilu",
            "ReverseSequence",
            "CenterCropPad",
            "Compress",
        )
    ),
    *(Row(op, shape_of, "0", "a shape is constant") for op in ("Shape", "Size", "EyeLike")),
    Row("Dropout", dropout, "1", "identity", "inference mode"),
    Row("Gather", gather, _COPIES, "counting", "constant index"),
    Row("GatherElements", gather_elements, _COPIES, "counting", "constant index"),
    Row("GatherND", gather_nd, _COPIES, "counting", "constant index"),
    Row("ScatterND", scatter, "stacked", "each output entry is one entry", "constant index, no reduction"),
    Row(
        "ScatterElements",
        scatter,
        "stacked",
        "each output entry is one entry",
        "constant index, no reduction",
    ),
    Row("Scatter", scatter, "stacked", "each output entry is one entry", "constant index"),
    Row("Pad", pad, _COPIES, "counting", "constant pads"),
    Row("Expand", expand, _COPIES, "counting", "known shape"),
    Row("Tile", tile, _COPIES, "counting", "constant repeats"),
    *(
        Row(op, _no_rule, "∞", "none yet")
        for op in (
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceInsert",
            "SequenceErase",
            "SequenceAt",
            "SequenceLength",
            "SequenceMap",
            "ConcatFromSequence",
            "SplitToSequence",
            "Optional",
            "OptionalGetElement",
            "OptionalHasElement",
            "TensorScatter",
        )
    ),
)
