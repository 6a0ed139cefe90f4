"""One node of every op, with its settings and shapes, and where its bound is attained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from graphs import make_model
from onnx import TensorProto, helper

from snaudit.bound import NORMS, Norm

ALL = frozenset(NORMS)


@dataclass(frozen=True)
class Case:
    """One node `op(x, *constants) → y…` with its settings.

    tight: the norms in which the bound is attained within 1%. points: where a nonlinear op is steepest.
    """

    op: str
    shape: tuple[int, ...] = (2, 3)
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    domain: str = ""
    linear: bool = True
    tight: frozenset[Norm] = ALL
    points: Callable[[int], np.ndarray] | None = None
    outputs: int = 1
    data: int = 0
    single: bool = False
    box: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        text = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        sizes = "x".join(map(str, self.shape))
        return f"{self.domain and 'ms.'}{self.op}-{self.opset}[{sizes}]({text})"[:110]

    def model(self) -> onnx.ModelProto:
        inputs, weights = [], {}
        for index, constant in enumerate(self.constants):
            name = "" if constant is None else f"c{index}"
            inputs.append(name)
            if name:
                weights[name] = np.asarray(constant)
        inputs.insert(self.data, "x")
        names = ["y", *(f"_{i}" for i in range(1, self.outputs))]
        node = helper.make_node(self.op, inputs, names, name="node", domain=self.domain, **self.attributes)
        kind = "float32" if self.single else "float64"
        return make_model([node], {"x": self.shape}, weights, opset=self.opset, dtype=kind)


def case(op: str, shape: tuple[int, ...] = (2, 3), *constants: Any, **settings: Any) -> Case:
    """A case; settings that are no field of it are attributes of the node."""
    own = {key: settings.pop(key) for key in list(settings) if key in Case.__dataclass_fields__}
    if "tight" in own:
        own["tight"] = frozenset(own["tight"])
    return Case(op, shape, constants, settings, **own)


def curve(op: str, *constants: Any, **settings: Any) -> Case:
    """A function of one entry, seen on a fine grid."""
    return case(op, (4001,), *constants, linear=False, **settings)


NONE: frozenset[Norm] = frozenset()
RNG = np.random.default_rng(0)
IMAGE = (1, 2, 5, 6)


def spike(n: int) -> np.ndarray:
    """Distinct entries with the largest in the middle: it is the maximum of all windows over it."""
    x = np.linspace(-1.0, 0.0, n)
    for start in range(0, n, 30):
        x[start + min(30, n - start) // 2 - 1] = 3.0 + start / 100
    return x


def level(n: int) -> np.ndarray:
    return np.full(n, 1.0)


def peaks(n: int) -> np.ndarray:
    """Two equal entries far above the others, in each row of three or more."""
    x = np.full((n // 3, 3), -30.0)
    x[:, :2] = 0.0
    return x.ravel()


WAVE = np.array([0.5, -2.0, 1.5])
CURVES = (
    *(
        curve(op)
        for op in (
            "Relu",
            "Abs",
            "Neg",
            "Tanh",
            "Sigmoid",
            "Softplus",
            "Erf",
            "Sin",
            "Cos",
            "Atan",
            "Softsign",
            "HardSigmoid",
            "HardSwish",
            "LeakyRelu",
            "Elu",
            "Selu",
            "Celu",
        )
    ),
    curve("Asinh", single=True),
    curve("LeakyRelu", alpha=-3.0),
    curve("LeakyRelu", alpha=0.3),
    curve("Elu", alpha=2.5),
    curve("Elu", alpha=0.3),
    curve("Selu", alpha=0.5, gamma=2.0),
    curve("Celu", alpha=0.1),
    curve("HardSigmoid", alpha=0.7, beta=0.1),
    curve("PRelu", [-2.5]),
    curve("PRelu", [0.1]),
    curve("ThresholdedRelu", alpha=0.0),
    curve("Shrink", bias=0.5, lambd=0.5, single=True),
    curve("Clip", np.array(-1.0), np.array(2.0)),
    curve("Clip", opset=6, min=-1.0),
    curve("Mish", opset=18),
    curve("Gelu", opset=20),
    curve("Gelu", opset=20, approximate="tanh"),
    curve("Gelu", domain="com.microsoft"),
    curve("QuickGelu", domain="com.microsoft"),
    curve("FastGelu", domain="com.microsoft"),
    curve("QuickGelu", domain="com.microsoft", alpha=4.0),
    curve("Swish", opset=24),
    curve("Swish", opset=24, alpha=0.5),
    curve("Pow", np.array([1.0])),
    curve("Cast", to=TensorProto.FLOAT),
    curve("Cast", to=TensorProto.DOUBLE),
    curve("CastLike", np.array([1.0])),
)

RANDOM_IMAGE = RNG.standard_normal((2, 1, 1))
LINEAR = (
    *(case(op) for op in ("Identity", "Transpose", "Flatten", "Dropout")),
    case("Reshape", (2, 3), np.array([3, 2])),
    case("Squeeze", (1, 3), np.array([0])),
    case("Unsqueeze", (3,), np.array([0])),
    case("Slice", (3, 8), np.array([7]), np.array([0]), np.array([1]), np.array([-2])),
    case("Slice", (3, 8), opset=9, starts=[1], ends=[3]),
    case("Split", (4, 3), axis=0, outputs=2),
    case("Trilu", (3, 3)),
    case("DepthToSpace", (1, 8, 2, 2), blocksize=2),
    case("SpaceToDepth", (1, 2, 4, 4), blocksize=2),
    case("ReverseSequence", (4, 3), np.array([2, 4, 1])),
    case("CenterCropPad", (3, 6), np.array([5, 4]), opset=18),
    case("Compress", (4, 3), np.array([True, False, True, False]), axis=0),
    case("Dropout", (2, 3), np.array(0.5, np.float32), np.array(False)),
    case("Dropout", opset=11, ratio=0.4),
    case("Gather", (4, 3), np.array([0, 2, 2, -2, 1]), axis=0),
    case("Gather", (2, 5), np.array([[0, 1], [1, 1]]), axis=1),
    case("Gather", (4, 3), np.array(1), axis=1),
    case("GatherElements", (3, 4), np.array([[0, 0, -4, 0], [1, 2, 3, 3]]), axis=1),
    case("GatherND", (3, 4), np.array([[0, 1], [0, -3], [2, 2], [0, 1]])),
    case("GatherND", (2, 4), np.array([[1], [1]]), batch_dims=1),
    case("GatherND", (2, 4), np.array([[1], [1], [0]])),
    case("ScatterND", (4, 3), np.array([[1], [3]]), np.ones((2, 3))),
    case("ScatterND", (2, 3), np.zeros((4, 3)), np.array([[1], [3]]), data=2),
    case("ScatterElements", (4, 3), np.array([[1, 0, 2]]), np.ones((1, 3)), axis=0),
    case("Pad", (3, 4), np.array([1, 0, 2, 1])),
    case("Pad", (3, 4), np.array([0, 2, 0, 1]), mode="reflect"),
    case("Pad", (3, 4), np.array([1, 2, 1, 0]), mode="edge"),
    case("Pad", (1, 4), np.array([0, 1, 0, 1]), mode="edge"),
    case("Pad", (3, 4), np.array([0, 2, 0, 2]), mode="wrap", opset=19),
    case("Pad", (3, 4), np.array([0, -1, 0, 2]), mode="edge", tight=()),
    case("Pad", (3, 4), np.array([2, 2]), None, np.array([1]), mode="reflect", opset=18),
    case("Pad", (3, 4), opset=2, pads=[0, 1, 0, 1], mode="reflect"),
    case("Expand", (3, 1), np.array([2, 1, 4])),
    case("Expand", (3, 2), np.array([1, 2])),
    case("Tile", (2, 3), np.array([2, 3])),
    case("ReduceSum", (2, 3, 4), np.array([-1])),
    case("ReduceSum", (2, 3), opset=11, axes=[0], keepdims=0),
    case("ReduceSum", (2, 3)),
    case("ReduceSum", (2, 3), noop_with_empty_axes=1),
    case("ReduceMean", (2, 3, 4), axes=[0, 2]),
    case("ReduceMean", (2, 3)),
    case("ReduceMean", (2, 3), np.array([1]), opset=18),
    case("CumSum", (2, 5), np.array(1)),
    case("CumSum", (5, 2), np.array(0), exclusive=1, tight=()),
    case("CumSum", (5, 2), np.array(-2), reverse=1),
    case("GlobalAveragePool", IMAGE),
    case("GlobalAveragePool", (1, 2, 5)),
    case("AveragePool", IMAGE, kernel_shape=[2, 3]),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 0, 1], opset=19),
    case(
        "AveragePool",
        IMAGE,
        kernel_shape=[3, 3],
        strides=[2, 2],
        ceil_mode=1,
        count_include_pad=1,
        pads=[1, 1, 1, 1],
        opset=19,
    ),
    case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("AveragePool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], auto_pad="SAME_LOWER"),
    case("AveragePool", IMAGE, kernel_shape=[2, 2], dilations=[2, 3], opset=19),
    case("AveragePool", (1, 1, 9), kernel_shape=[4]),
    case("AveragePool", (1, 1, 3, 4, 3), kernel_shape=[2, 2, 2]),
    case("BatchNormalization", (2, 3, 2), WAVE, np.ones(3), np.ones(3), np.array([0.1, 2.0, 0.0])),
    case(
        "BatchNormalization",
        (2, 3, 2),
        WAVE,
        np.ones(3),
        np.ones(3),
        np.array([0.1, 2.0, 0.5]),
        opset=9,
        epsilon=0.1,
    ),
    case("Mul", (2, 3), WAVE),
    case("Mul", (2, 1), WAVE),
    case("Mul", (3,), RNG.standard_normal((4, 3))),
    case("Mul", (1, 3, 1), RNG.standard_normal((2, 1, 4))),
    case("Mul", (2, 3), np.array(-3.0), data=1),
    case("Div", (2, 3), WAVE),
    case("Div", (2, 1), WAVE),
    case("Add", (2, 3), WAVE),
    case("Add", (2, 1), WAVE),
    case("Add", (3,), np.ones((4, 1, 3))),
    case("Sub", (2, 3), WAVE, data=1),
    case("Sum", (2, 3), WAVE, np.ones((2, 3))),
    case("Mean", (2, 3), WAVE, np.ones(1)),
    case("Concat", (2, 3), np.ones((2, 2)), axis=1),
    case("Where", (2, 3), np.array([True, False, True]), WAVE, data=1),
    case("Where", (3,), np.array([[True], [True]]), WAVE, data=1),
)

RESIZED = (
    *(
        case(
            "Resize",
            (1, 1, 6, 5),
            np.array([]),
            np.array([1, 1, scale, scale], np.float32),
            mode=mode,
            opset=13,
            coordinate_transformation_mode=at,
            single=True,
        )
        for mode in ("nearest", "linear", "cubic")
        for scale in (2.0, 3.0, 0.5)
        for at in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    *(
        case(
            "Resize",
            (1, 1, 7),
            np.array([]),
            np.array([1, 1, 1.7], np.float32),
            mode="nearest",
            nearest_mode=how,
            coordinate_transformation_mode="asymmetric",
            single=True,
            tight=(),
        )
        for how in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    case(
        "Resize",
        (1, 1, 4, 5),
        np.array([]),
        np.array([], np.float32),
        np.array([1, 1, 6, 9]),
        mode="linear",
        single=True,
    ),
    case(
        "Resize",
        (1, 1, 4, 5),
        np.array([]),
        np.array([], np.float32),
        np.array([1, 1, 9, 6]),
        mode="cubic",
        exclude_outside=1,
        single=True,
    ),
    case(
        "Resize",
        (1, 1, 4, 5),
        np.array([]),
        np.array([1, 2], np.float32),
        axes=[2, 3],
        mode="linear",
        opset=18,
        single=True,
        coordinate_transformation_mode="half_pixel_symmetric",
    ),
    case("Resize", (1, 1, 4, 4), np.array([1, 1, 2, 2], np.float32), opset=10, single=True),
    case("Upsample", (1, 1, 4, 4), np.array([1, 1, 2, 3], np.float32), opset=9, single=True),
    case("Upsample", (1, 1, 4, 4), opset=7, scales=[1.0, 1.0, 2.0, 2.0], mode="linear", single=True),
)

FOUR = np.array([0.5, -2.0, 1.5, 1.0])
OTHERS = (
    *(case("Softmax", (2, 3), axis=-1, opset=o, linear=False, points=peaks) for o in (11, 13)),
    case(
        "Softmax", (1, 2, 3), opset=11, axis=1, linear=False, points=lambda n: np.array([0, 0, *[-30.0] * 4])
    ),
    case(
        "LogSoftmax",
        (2, 4),
        axis=-1,
        linear=False,
        points=lambda n: np.tile([9.0, 0, 0, 0], 2) * 2,
        tight=("l2", "l1"),
    ),
    case(
        "LogSoftmax",
        (2, 4),
        axis=-1,
        linear=False,
        points=lambda n: np.tile([9.0, 0, 0, 0], 2) * 2,
        tight=("linf",),
        opset=11,
    ),
    case("LayerNormalization", (2, 4), FOUR, linear=False, points=level, epsilon=0.01, tight=("l2",)),
    case(
        "LayerNormalization",
        (2, 2, 3),
        np.ones((2, 3)),
        np.ones((2, 3)),
        axis=1,
        linear=False,
        points=level,
        epsilon=0.1,
        tight=("l2",),
    ),
    case(
        "SimplifiedLayerNormalization",
        (2, 4),
        FOUR,
        linear=False,
        points=lambda n: np.zeros(n),
        epsilon=0.01,
        tight=("l2",),
    ),
    case(
        "RMSNormalization",
        (2, 4),
        FOUR,
        linear=False,
        points=lambda n: np.zeros(n),
        epsilon=0.01,
        opset=23,
        tight=("l2",),
    ),
    case(
        "InstanceNormalization",
        (2, 2, 4),
        [1.0, -2.0],
        [0.0, 0.0],
        linear=False,
        points=level,
        epsilon=0.01,
        tight=("l2",),
        single=True,
    ),
    case(
        "GroupNormalization",
        (1, 4, 3),
        FOUR,
        np.ones(4),
        num_groups=2,
        linear=False,
        points=level,
        epsilon=0.01,
        opset=21,
        tight=(),
    ),
    case("LRN", (1, 5, 2, 1), size=3, alpha=2.0, linear=False, single=True, tight=()),
    case("LRN", (1, 5, 2, 1), size=5, alpha=1e-4, bias=2.0, beta=0.5, linear=False, single=True, tight=()),
    *(
        case("MaxPool", IMAGE, linear=False, points=spike, single=False, **settings)
        for settings in (
            {"kernel_shape": [3, 3], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "dilations": [2, 2], "tight": ("linf",)},
            {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1, "outputs": 2},
        )
    ),
    case("GlobalMaxPool", IMAGE, linear=False, points=spike),
    *(
        case(
            "LpPool",
            (1, 1, 4, 4),
            kernel_shape=[2, 2],
            p=p,
            linear=False,
            points=level,
            opset=18,
            single=True,
            tight=tight,
        )
        for p, tight in ((1, ("l1", "linf")), (2, ("linf",)), (3, ("linf",)))
    ),
    case(
        "LpPool",
        (1, 1, 4, 4),
        kernel_shape=[2, 2],
        strides=[2, 2],
        p=1,
        linear=False,
        points=level,
        opset=18,
        single=True,
    ),
    *(
        case("GlobalLpPool", (1, 2, 3), p=p, linear=False, points=level, single=True, tight=tight)
        for p, tight in ((1, ALL), (2, ("l2", "linf")), (3, ("linf",)))
    ),
    case("ReduceMax", (2, 3), axes=[1], linear=False),
    case("ReduceMin", (2, 3), np.array([0]), opset=18, linear=False),
    case("ReduceLogSumExp", (2, 3), axes=[1], linear=False, points=lambda n: spike(n) * 9),
    case("ReduceL1", (2, 3), axes=[1], linear=False, points=level),
    case("ReduceL2", (2, 3), axes=[1], linear=False, points=level, tight=("l2", "linf")),
    case(
        "ReduceL2",
        (2, 3),
        axes=[1],
        linear=False,
        points=lambda n: np.array([1.0, 0, 0, 1, 0, 0]),
        tight=("l1",),
    ),
    case("TopK", (2, 4), np.array([3]), linear=False, outputs=2),
    case("TopK", (2, 4), opset=1, k=2, linear=False, outputs=2, single=True),
    case("Max", (2, 3), np.full((2, 3), -9.0), linear=False),
    case("Min", (2, 1), np.full((2, 3), 9.0), linear=False),
    case("Max", (3,), np.full((2, 1), -9.0), WAVE, linear=False, tight=()),
    case("PRelu", (2, 1), np.full(3, -1.5), linear=False, points=lambda n: -level(n)),
    case("PRelu", (1, 3, 4), np.array([[-1.5], [0.2], [2.0]]), linear=False, points=lambda n: -level(n)),
    case("Scatter", (4, 3), np.array([[1, 0, 2]]), np.ones((1, 3)), opset=9),
)

RANGED = (
    *(
        curve(op, box=box)
        for op, box in (
            ("Exp", (-2.0, 1.5)),
            ("Log", (0.1, 3.0)),
            ("Sqrt", (0.3, 4.0)),
            ("Reciprocal", (0.2, 3.0)),
            ("Reciprocal", (-3.0, -0.5)),
            ("Sigmoid", (1.0, 3.0)),
            ("Tanh", (-4.0, -0.5)),
            ("Erf", (0.5, 0.9)),
            ("Softplus", (-3.0, -1.0)),
            ("Softsign", (1.0, 3.0)),
            ("Atan", (1.0, 3.0)),
            ("Sin", (1.0, 2.5)),
            ("Cos", (-0.4, 0.3)),
            ("Elu", (-3.0, -1.0)),
            ("Selu", (-3.0, -1.0)),
            ("Celu", (-3.0, -1.0)),
            ("LeakyRelu", (-3.0, -1.0)),
            ("Relu", (-3.0, 1.0)),
            ("HardSwish", (-2.0, 1.0)),
            ("HardSwish", (3.5, 5.0)),
            ("HardSigmoid", (-1.0, 1.0)),
        )
    ),
    *(
        curve(op, box=box, single=True)
        for op, box in (
            ("Asinh", (1.0, 3.0)),
            ("Sinh", (-2.0, 1.0)),
            ("Cosh", (-2.0, 1.0)),
            ("Asin", (-0.5, 0.9)),
            ("Acos", (-0.5, 0.9)),
            ("Acosh", (1.2, 3.0)),
            ("Atanh", (-0.5, 0.9)),
            ("Tan", (-1.0, 0.5)),
        )
    ),
    curve("Gelu", opset=20, box=(-1.0, 0.5)),
    curve("Gelu", opset=20, box=(-4.0, -1.0)),
    curve("Gelu", opset=20, approximate="tanh", box=(-1.0, 0.5)),
    curve("Gelu", domain="com.microsoft", box=(2.5, 4.0)),
    curve("QuickGelu", domain="com.microsoft", alpha=4.0, box=(-2.0, 0.1)),
    curve("FastGelu", domain="com.microsoft", box=(-2.0, 0.1)),
    curve("Swish", opset=24, alpha=0.5, box=(-2.0, 0.1)),
    curve("Mish", opset=18, box=(-1.0, 0.3)),
    curve("PRelu", [0.3], box=(-2.0, -1.0)),
    curve("Pow", np.array([2.0]), box=(-3.0, 1.0)),
    curve("Pow", np.array([3.0]), box=(-3.0, 1.0)),
    curve("Pow", np.array([0.5]), box=(0.2, 1.0)),
    curve("Pow", np.array([-1.5]), box=(0.2, 1.0)),
    curve("Pow", np.array([1.5]), data=1, box=(-2.0, 2.0)),
)
