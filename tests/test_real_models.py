"""Models that other people trained: each audited, or refused where that is right, and every σ held
against numpy's float64 SVD of the weight that another library reads from the same file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import numpy_helper

import snaudit
from snaudit.bound import Grade

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

CHECKPOINTS = {
    "facenet_pytorch/data/pnet.pt": 5,
    "facenet_pytorch/data/rnet.pt": 6,
    "facenet_pytorch/data/onet.pt": 8,
    "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin": 12,
    "learned_models/inpaint/ACS-WFC-F606W-2-32.pth": 8,
    "learned_models/inpaint/ACS-WFC-F606W-3-32.pth": 13,
    "learned_models/mask/ACS-WFC-F606W-2-4.pth": 8,
    "learned_models/mask/example_model.pth": 8,
    "pesto/weights/mir-1k.ckpt": 7,
    "pesto/weights/mir-1k_g7.ckpt": 10,
    "silero_vad/data/silero_vad_16k.safetensors": 8,
    "silero_vad/data/silero_vad.jit": 16,
}
GRAPHS = {
    "silero_vad/data/silero_vad.onnx": 16,
    "silero_vad/data/silero_vad_16k_op15.onnx": 8,
    "silero_vad/data/silero_vad_16k_sequence.onnx": 8,
    "silero_vad/data/silero_vad_half.onnx": 8,
    "silero_vad/data/silero_vad_op18_ifless.onnx": 16,
    "silero_vad/data/silero_vad_openvino_16k.onnx": 8,
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx": 64,
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx": 47,
    "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": 54,
    "speechmos/dnsmos_models/bak_ovr.onnx": 10,
    "speechmos/dnsmos_models/model_v8.onnx": 8,
    "speechmos/dnsmos_models/sig.onnx": 10,
    "speechmos/dnsmos_models/sig_bak_ovr.onnx": 12,
    "speechmos/pdnsmos_models/sig_bak_ovr.onnx": 12,
    "speechmos/aecmos_models/Run_1663829550_Stage_0.onnx": 15,
    "speechmos/aecmos_models/Run_1663915512_Stage_0.onnx": 15,
    "speechmos/aecmos_models/Run_1668423760_Stage_0.onnx": 15,
    "speechmos/plcmos_models/plcmos_v2.onnx": 24,
    "imwatermark/rivagan_decoder.onnx": 4,
    "imwatermark/rivagan_encoder.onnx": 4,
}
LIGHT_GRAPHS = {
    "light_bvlc_alexnet.onnx": 8,
    "light_densenet121.onnx": 121,
    "light_inception_v1.onnx": 58,
    "light_inception_v2.onnx": 70,
    "light_resnet50.onnx": 54,
    "light_shufflenet.onnx": 50,
    "light_squeezenet.onnx": 26,
    "light_vgg19.onnx": 19,
    "light_zfnet512.onnx": 8,
}
BOUNDED = {"bak_ovr.onnx", "model_v8.onnx", "sig.onnx", "rivagan_decoder.onnx", *LIGHT_GRAPHS}
BIG = 1200
"""Above so many rows and columns numpy's SVD takes minutes: there the witness is held to the bound."""


def state_of(path: Path) -> Mapping[str, np.ndarray]:
    """All arrays of a checkpoint, read by the library that the format belongs to."""
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".jit":
        state = torch.jit.load(path).state_dict()
    elif path.name == "mir-1k_g7.ckpt":  # beside the tensors it pickles a foreign configuration
        return {}
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
    return {name: value.numpy() for name, value in state.items()}


def constants_of(path: Path) -> dict[str, np.ndarray]:
    """All initializers and Constant nodes of a graph and of its bodies, read by onnx."""
    found: dict[str, np.ndarray] = {}

    def walk(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            found[tensor.name] = numpy_helper.to_array(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
                for body in (attribute.g, *attribute.graphs):
                    walk(body)

    walk(onnx.load(path).graph)
    return found


def hold_to_numpy(report: snaudit.Report, truth: Mapping[str, np.ndarray]) -> int:
    """Check every σ whose weight the other library has under the same name; how many those were."""
    held = 0
    for layer in report.layers:
        assert layer.sigma.grade is Grade.PROVED and layer.norm.grade is Grade.PROVED, layer.name
        assert layer.sigma.upper <= layer.sigma.lower * (1 + 1e-7) or layer.sigma.upper == 0, layer
        assert layer.power is not None and layer.power.estimate <= layer.sigma.upper * (1 + 1e-9)
        array = truth.get(layer.name)
        if array is None or array.shape != layer.shape or min(layer.matrix) > BIG:
            continue
        matrix = array.astype(np.float64).reshape(len(array), -1)
        if layer.op.startswith("ConvTranspose"):
            matrix = np.swapaxes(array.astype(np.float64), 0, 1).reshape(array.shape[1], -1)
        sigma = np.linalg.svd(matrix, compute_uv=False)[0]
        assert layer.sigma.lower * (1 - 1e-9) <= sigma <= layer.sigma.upper * (1 + 1e-9), layer.name
        assert abs(layer.frobenius - np.linalg.norm(matrix)) <= 1e-9 * layer.frobenius
        held += 1
    return held


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "count"), CHECKPOINTS.items())
def test_checkpoints(models: Path, name: str, count: int) -> None:
    report = snaudit.audit(models / name)
    assert len(report.layers) == count
    assert report.network.bound.grade is Grade.ASSUMED and report.network.assumptions
    assert report.model.tensors >= count + sum(item.reason.startswith("a vector") for item in report.left_out)
    held = hold_to_numpy(report, state_of(models / name))
    assert held == (0 if name.endswith("g7.ckpt") else count)


@pytest.mark.parametrize(("name", "count"), GRAPHS.items())
def test_graphs(models: Path, name: str, count: int) -> None:
    report = snaudit.audit(models / name)
    assert len(report.layers) == count
    bounded = Path(name).name in BOUNDED
    assert report.network.bound.bounded == bounded
    assert bool(report.gaps) != bounded, "a bound, or gaps that say why there is none"
    for gap in report.gaps:
        assert gap.where and gap.reason and gap.remedy
    held = hold_to_numpy(report, constants_of(models / name))
    parts = sum("[" in layer.name for layer in report.layers)  # a direction of a recurrent weight
    assert held + parts >= count * 0.9


@pytest.mark.parametrize(("name", "count"), LIGHT_GRAPHS.items())
def test_light_graphs(name: str, count: int) -> None:
    report = snaudit.audit(LIGHT / name)
    assert len(report.layers) == count
    assert report.network.bound.bounded and not report.gaps
    for layer in report.layers:  # every weight is one number over and over: rank one
        assert layer.sigma.lower * (1 - 1e-9) <= layer.frobenius <= layer.sigma.upper * (1 + 1e-9)


def test_a_pickled_object_is_refused(models: Path) -> None:
    folder = models / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    with pytest.raises(snaudit.SnauditError, match="argparse.Namespace"):
        snaudit.audit(folder / "training_args.bin")


@pytest.mark.parametrize(
    ("name", "count"), [("bilstm.int8.onnx", 17), ("rawi.int8.onnx", 10), ("rawi_v3.int8.onnx", 11)]
)
def test_integer_models_are_audited(models: Path, name: str, count: int) -> None:
    """Each integer matrix with its scale; the bound ends at the LSTMs alone, whose length is open."""
    report = snaudit.audit(models / "text2tashkeel/models" / name)
    assert len(report.layers) == count and not any(item.missed for item in report.left_out)
    assert "DynamicQuantizeLSTM" in {gap.op for gap in report.gaps} <= {"DynamicQuantizeLSTM", "MatMul"}
    table = next(layer for layer in report.layers if layer.op == "Embedding")
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(report.model.path).graph.initializer}
    codes, zero = (held[f"embedding.weight_{part}"].astype(float) for part in ("quantized", "zero_point"))
    real = (codes - zero) * float(held["embedding.weight_scale"])
    assert table.sigma.upper == pytest.approx(np.linalg.norm(real, 2), rel=1e-9)


def test_facts_checked_by_hand(models: Path) -> None:
    albert = {
        layer.name: layer
        for layer in snaudit.audit(
            models / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin"
        ).layers
    }
    tied = albert["albert.embeddings.word_embeddings.weight"]
    assert tied.uses == 2 and "predictions.decoder.weight" in tied.used_by
    pesto = {layer.name: layer for layer in snaudit.audit(models / "pesto/weights/mir-1k.ckpt").layers}
    assert pesto["encoder.fc.weight"].shape == (1, 1, 1175) and pesto["encoder.fc.weight"].op == "Conv1d"
    decoder = snaudit.audit(models / "imwatermark/rivagan_decoder.onnx")
    assert {layer.op for layer in decoder.layers} == {"Conv3d"}
    detector = snaudit.audit(models / "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")
    assert sum(layer.op == "ConvTranspose2d" for layer in detector.layers) == 2
    assert not any(tensor.is_initializer() for tensor in _values(detector))


def _values(report: snaudit.Report):
    graph = snaudit.load(report.model.path).graph
    return [value for node in graph.graph for value in node.inputs if value is not None]
