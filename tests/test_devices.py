"""What a matrix costs and where it is computed: stored dtypes, blocks of rows, threads, torch's devices."""

from __future__ import annotations

import json
import threading
import tracemalloc
from pathlib import Path

import makers
import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch

import snaudit
from snaudit import arrays, sigma, threads
from snaudit.bound import Grade
from snaudit.cli import main
from snaudit.errors import UsageError
from snaudit.findings import Settings
from snaudit.linear import BlockDiagonal, Convolution, Dense, LowRank
from snaudit.measuring import Meter
from snaudit.sigma import certificate, gram
from snaudit.sigma.interface import Options

RNG = np.random.default_rng(0)
DTYPES = [np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
SMALL = makers.small_matrices()
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_a_stored_dtype_measures_as_its_float64_copy(dtype: type) -> None:
    for shape in ((90, 70), (70, 90), (3, 30, 20)):
        entries = RNG.standard_normal(shape).astype(dtype)
        kind = BlockDiagonal if len(shape) == 3 else Dense
        for stored in (entries, entries.swapaxes(-1, -2)):
            assert sigma.survey(kind(stored)) == sigma.survey(kind(stored.astype(np.float64)))
    odd = np.zeros((90, 70), dtype)
    odd[3, 4] = np.nan
    assert sigma.measure(Dense(odd)).method == "not finite"


def test_every_map_is_the_adjoint_of_its_adjoint() -> None:
    """⟨Ax, y⟩ = ⟨x, Aᵀy⟩, and A is its dense matrix; stored dtypes are converted in several blocks."""
    conv = Convolution(RNG.standard_normal((4, 3, 3)), (2,), (1,))
    maps = [
        Dense(RNG.standard_normal((5000, 600)).astype(np.float32)),
        Dense(RNG.standard_normal((7, 9)).astype(ml_dtypes.bfloat16).T),
        LowRank(RNG.standard_normal((8, 2)), RNG.standard_normal((2, 5))),
        BlockDiagonal(RNG.standard_normal((3, 4, 5)).astype(np.float16)),
        conv.at((11,), (1,)),
    ]
    for map in maps:
        x, y = RNG.standard_normal(map.shape[1]), RNG.standard_normal(map.shape[0])
        assert map.matvec(x) @ y == pytest.approx(x @ map.rmatvec(y), rel=1e-10, abs=1e-10)
        assert map.matvec(x) == pytest.approx(map.dense() @ x, rel=1e-9, abs=1e-9)


def test_a_tall_table_needs_no_second_copy() -> None:
    table = RNG.standard_normal((300_000, 64), dtype=np.float32)  # 77 MB, 154 MB in float64
    tracemalloc.start()
    bound = sigma.measure(Dense(table))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bound.grade is Grade.PROVED and bound.upper <= bound.lower * (1 + 1e-8)
    assert peak < 48e6


def test_many_blocks_of_rows_enclose_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of sums: the depth that is accounted for is what is added up."""
    monkeypatch.setattr(gram, "BLOCK", 4)
    with mpmath.workdps(50):
        for seed in range(10):
            matrix = np.random.default_rng(seed).standard_normal((40, 2)) * 10.0 ** (seed - 5)
            truth = makers.exact_sigma(matrix)
            bound = sigma.measure(Dense(matrix))
            assert bound.lower <= truth <= bound.upper <= bound.lower * (1 + 1e-12)
    made = gram.gram_of(RNG.standard_normal((1, 4000, 3)), arrays.Cpu())
    assert 1334 <= made.depth <= 1500 and made.square >= made.diagonal.sum()


def test_zero_rows_and_columns_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    plain = arrays.Cpu.deficit
    monkeypatch.setattr(arrays.Cpu, "deficit", lambda self, s, t: orders.append(s.shape[-1]) or plain(self, s, t))
    pruned = np.zeros((900, 300), np.float32)
    rows, columns = RNG.permutation(900)[:120], RNG.permutation(300)[:80]
    pruned[np.ix_(rows, columns)] = RNG.standard_normal((120, 80))
    for matrix in (pruned, pruned.T):
        bound = sigma.measure(Dense(matrix))
        truth = float(np.linalg.norm(pruned.astype(np.float64), 2))
        assert truth * (1 - 1e-8) <= bound.lower <= truth * (1 + 1e-13)
        assert truth * (1 - 1e-13) <= bound.upper <= truth * (1 + 1e-8)
    assert orders == [80, 80]


@pytest.fixture
def on_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The code for CUDA on the device of torch that the parameter names."""
    device = arrays.Cuda(request.param)
    monkeypatch.setattr(certificate, "arrays_on", lambda _: device)
    return request.param


@pytest.mark.parametrize("on_torch", ["cpu", CUDA], indirect=True)
def test_torch_encloses_as_numpy_does(on_torch: str) -> None:
    with mpmath.workdps(50):
        for name, matrix in SMALL.items():
            truth = makers.exact_sigma(matrix)
            bound = sigma.measure(Dense(matrix))
            assert bound.grade is Grade.PROVED, name
            assert bound.lower <= truth <= bound.upper, name
            assert truth > 1.7e308 or bound.upper - bound.lower <= 1e-8 * bound.upper + 1e-322, name
    for stack in (RNG.standard_normal((5, 30, 20)), RNG.standard_normal((2, 200, 260)).astype(np.float32)):
        bound, other = certificate.survey(BlockDiagonal(stack), Options()).bound, float(np.linalg.norm(stack, 2, (1, 2)).max())
        assert bound.lower <= other * (1 + 1e-6) and other * (1 - 1e-6) <= bound.upper <= bound.lower * (1 + 1e-8)
    hidden = makers.hidden_from(0, 200, 0.85)
    assert 1.0 - 1e-13 <= sigma.measure(Dense(hidden)).upper <= 1.0 + 1e-7


@pytest.mark.parametrize("on_torch", ["cpu", CUDA], indirect=True)
def test_a_wrong_factor_is_seen_by_its_residual(on_torch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Cholesky that loses digits (a GPU's states no error) widens the bound, and never falsifies it."""
    matrix = RNG.standard_normal((90, 80))
    truth = float(np.linalg.norm(matrix, 2))
    exact = torch.linalg.cholesky_ex

    def sloppy(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factor, info = exact(a + 1e-4 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device))
        return factor, info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", sloppy)
    bound = sigma.measure(Dense(matrix))
    assert truth * (1 + 1e-7) < bound.upper < truth * (1 + 1e-3)


def test_what_does_not_fit_on_the_device_is_measured_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(arrays.Cuda):
        def gram(self, blocks: object) -> object:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(certificate, "arrays_on", lambda _: Full("cpu"))
    found = sigma.survey(Dense(RNG.standard_normal((9, 8))))
    assert found.bound.grade is Grade.PROVED
    assert found.notes == ("does not fit into the memory of the GPU: measured on the CPU",)


def test_emulated_doubles_carry_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    with pytest.raises(UsageError, match="emulated doubles"):
        arrays.Cuda("cpu")


def test_results_come_in_order_and_errors_in_their_place() -> None:
    gate, most, now, lock = threading.Event(), 0, 0, threading.Lock()

    def job(index: int, size: int, alone: bool = False) -> threads.Job:
        def work() -> int:
            nonlocal now
            if index == 0:
                assert gate.wait(20)
            if index == 1:
                gate.set()
            if index == 7:
                raise ZeroDivisionError("seven")
            with lock:
                now -= size
            return index

        def load():
            nonlocal most, now
            with lock:
                now += size
                most = max(most, now)
            return work

        return threads.Job(size, alone, load)

    jobs = [job(i, 1 + 5 * (i == 4), alone=i == 3) for i in range(9)]
    results = threads.in_order(jobs, 3, 6)
    assert [next(results) for _ in range(7)] == list(range(7)), "job 0 waits for job 1: they run side by side"
    with pytest.raises(ZeroDivisionError, match="seven"):
        list(results)
    assert most <= 6
    gate.set()
    assert list(threads.in_order(jobs[:3], 1, 1)) == [0, 1, 2]


def test_blas_keeps_to_one_thread_but_alone() -> None:
    from threadpoolctl import threadpool_info

    def seen() -> int:
        return max(row["num_threads"] for row in threadpool_info() if row["user_api"] == "blas")

    jobs = [threads.Job(1, alone, lambda: seen) for alone in (False, True, False)]
    assert list(threads.in_order(jobs, 2, 9)) == [1, 2, 1]


def test_the_number_of_threads_is_told_or_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert threads.available() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.available() >= 1


def test_threads_change_nothing_and_equal_weights_are_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that agree in the sample that is looked at first are told apart all the same."""
    weight = RNG.standard_normal((80, 70)).astype(np.float32)
    other = weight.copy()
    other[1, 1] += 1.0
    arrays_ = {f"l{i}.weight": (weight, other, weight[:40], weight)[i % 4] for i in range(12)}
    np.savez(tmp_path / "m.npz", **arrays_)
    calls, plain = [], sigma.survey
    monkeypatch.setattr(sigma, "survey", lambda *args: calls.append(1) or plain(*args))
    reports = [snaudit.audit(tmp_path / "m.npz", threads=count) for count in (1, 3)]
    assert len(calls) == 6
    one, three = ([layer for layer in report.layers] for report in reports)
    assert one == three
    uppers = {layer.name: layer.sigma.upper for layer in one}
    assert uppers["l0.weight"] == uppers["l3.weight"] != uppers["l1.weight"]
    for layer in one:
        truth = np.linalg.norm(arrays_[layer.name].astype(np.float64), 2)
        assert layer.sigma.lower <= truth * (1 + 1e-13) and truth * (1 - 1e-13) <= layer.sigma.upper


def test_the_command_line_reaches_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An explicit --rtol is kept, whatever the budget; without one the settings say what is aimed at."""
    np.savez(tmp_path / "m.npz", **{"fc.weight": RNG.standard_normal((9, 8)), "conv.weight": RNG.standard_normal((8, 6, 3, 3))})
    seen = {}
    for name, more in (("plain", []), ("asked", ["--rtol", "1e-5", "--threads", "2"]), ("fast", ["--method", "lanczos"])):
        assert main(["inspect", str(tmp_path / "m.npz"), "--format", "json", *more]) == 0
        seen[name] = json.loads(capsys.readouterr().out)
    assert seen["plain"]["settings"]["rtol"] is None and seen["asked"]["settings"]["rtol"] == 1e-5
    fc, conv = seen["fast"]["layers"]
    assert fc["sigma"]["grade"] == "estimated" and fc["sigma"]["method"].startswith("lanczos, 9 steps")
    assert fc["why"]["sigma"] == "lanczos was asked for"
    assert conv["why"]["norm"] == "lanczos does not apply to Convolution in l2"
    assert 0 < seen["plain"]["layers"][0]["power"]["probability_below_0.9_sigma"] < 1
    assert main(["inspect", str(tmp_path / "m.npz"), "--rtol", "2"]) == 2
    assert main(["inspect", str(tmp_path / "m.npz"), "--threads", "0"]) == 2
    asked = Meter(Settings(rtol=1e-5)).options
    assert (asked.rtol, asked.budget) == (1e-5, None) and Meter(Settings()).options.budget is not None
