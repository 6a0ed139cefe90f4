"""snaudit: spectral norms and sound Lipschitz bounds of model files, and rewriting under a cap.

    report = snaudit.audit("model.onnx")
    outcome = snaudit.constrain("model.pt", max_sigma=1.0)
    verdict = snaudit.check("model.onnx", max_lipschitz=10.0).verdict

Names are imported on first use, so that `import snaudit` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from snaudit.version import VERSION as __version__

_HOMES = {
    "Balance": "balancing",
    "Bound": "bound",
    "Change": "capping",
    "Constraint": "training",
    "Finding": "findings",
    "Gap": "findings",
    "Grade": "bound",
    "LayerResult": "findings",
    "Limits": "policy",
    "Model": "model",
    "NetworkResult": "findings",
    "Outcome": "constraints",
    "Report": "findings",
    "Settings": "findings",
    "SnauditError": "errors",
    "Tensor": "model",
    "Verdict": "findings",
    "audit": "api",
    "balance": "api",
    "check": "api",
    "constrain": "api",
    "constrain_": "training",
    "load": "api",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"snaudit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'snaudit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
