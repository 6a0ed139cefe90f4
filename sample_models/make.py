"""Make every sample model but pnet.pt, which is the real one: `python sample_models/make.py`."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import snaudit

HERE = Path(__file__).parent


def main() -> None:
    """Write the sample models beside this file, the broken ones under broken/."""
    (HERE / "broken").mkdir(exist_ok=True)
    save(pnet(), "pnet.onnx")
    save(box_blur(), "box_blur.onnx")
    known_sigmas(HERE / "known.safetensors")
    broken(HERE / "broken")


def save(model: onnx.ModelProto, name: str) -> None:
    onnx.checker.check_model(model)
    (HERE / name).write_bytes(model.SerializeToString())


def pnet() -> onnx.ModelProto:
    """The graph of MTCNN's proposal network around the real weights of pnet.pt."""
    weights = {name: tensor.load() for name, tensor in snaudit.load(HERE / "pnet.pt").tensors.items()}
    nodes, value = [], "image"
    for layer in ("1", "2", "3"):
        nodes.append(conv(f"conv{layer}", value))
        slope = f"prelu{layer}.weight"
        weights[slope] = weights[slope].reshape(-1, 1, 1)
        nodes.append(node("PRelu", f"prelu{layer}", [f"conv{layer}", slope]))
        value = f"prelu{layer}"
        if layer == "1":
            nodes.append(
                node("MaxPool", "pool1", [value], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
            )
            value = "pool1"
    nodes += [conv("conv4_1", value), node("Softmax", "face", ["conv4_1"], axis=1)]
    nodes += [conv("conv4_2", value), node("Identity", "box", ["conv4_2"])]
    outputs = [info("box", [1, 4, None, None]), info("face", [1, 2, None, None])]
    return model_of("pnet", nodes, [info("image", [1, 3, None, None])], outputs, weights)


def box_blur() -> onnx.ModelProto:
    """One convolution whose reshaped kernel has σ = 3 and whose Lipschitz constant is 9."""
    kernel = np.ones((1, 1, 3, 3), np.float32)
    nodes = [node("Conv", "y", ["x", "blur.weight"], pads=[1, 1, 1, 1])]
    shape = [1, 1, None, None]
    return model_of("box_blur", nodes, [info("x", shape)], [info("y", shape)], {"blur.weight": kernel})


def known_sigmas(path: Path) -> None:
    """Two matrices with singular values 3, 2, 1 and 0.5, 0.25: 12-digit numbers to check against."""
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    arrays = {
        "first.weight": np.diag([1.0, 3.0, 2.0])[[1, 0, 2]],
        "second.weight": (rotation @ np.diag([0.5, 0.25]) @ rotation.T),
    }
    header, data = {}, b""
    for name, array in arrays.items():
        stop = len(data) + array.nbytes
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [len(data), stop]}
        data += array.astype("<f8").tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def broken(folder: Path) -> None:
    """Files that every command must refuse with one line and exit code 2."""
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "truncated.pt").write_bytes((HERE / "pnet.pt").read_bytes()[:9000])
    (folder / "pointer.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    )
    (folder / "runs_code.pt").write_bytes(pickle.dumps(_Canary(), protocol=2))


class _Canary:
    """Unpickled by a careless loader, it prints; snaudit refuses the file and names the call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a model file just ran code",)


def conv(name: str, value: str) -> onnx.NodeProto:
    return node("Conv", name, [value, f"{name}.weight", f"{name}.bias"])


def node(op: str, name: str, inputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [name], name=name, **attributes)


def info(name: str, shape: list[int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def model_of(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.ascontiguousarray(w), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model.producer_name = "snaudit sample"
    return model


if __name__ == "__main__":
    main()
