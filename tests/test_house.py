"""The laws of the house: who may import whom, what the tables hold, what the names are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snaudit

PACKAGE = Path(snaudit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A file may import from its own level's lower neighbours and from anything below; top to bottom.
LEVELS = (
    ("__main__",),
    ("cli", "commands"),
    ("api", "training"),
    ("pipeline", "constraints", "balancing"),
    ("witness", "seeking", "architecture", "exporting", "scripting"),
    ("evaluating",),
    ("fixing", "tracing", "climbing"),
    ("differentiable",),
    ("capping",),
    ("rewriting",),
    ("budget",),
    ("network",),
    ("origins",),
    ("between_cuts",),
    ("policy", "report", "measuring", "outputs", "writing", "extraction", "lipschitz", "stated", "feeds"),
    ("stretches", "chains", "parameters", "quantized_parameters", "nodes", "places", "quantized_nodes", "ranges_walk",
     "shapes_walk", "walk", "loops", "conclusions", "cuts", "wave_cuts"),
    ("confined",),
    ("deviations",),
    ("layers", "pairs", "patterns", "magnitudes", "attention", "gates", "heads", "tokens", "rotations"),
    ("forms", "contractions", "dequantized", "formats", "sigma", "rules", "sections", "linearized", "waves", "watched"),
    ("levers",),
    ("findings", "folding", "joint", "images", "lowered"),
    ("differentiable.interface", "sigma.interface", "rules.interface", "sections.interface", "formats.interface", "formats.source"),
    ("folded_arithmetic", "folded_shapes", "symbol", "factorizing", "projections", "arrays", "gains", "broadcasting",
     "packing", "matching", "ascent", "precision", "running", "kernels", "enclosed", "slopes", "local_slopes", "ranges", "curves"),
    ("folded", "model", "linear", "rounding", "names", "numerals", "sizes", "factories"),
    ("bound", "box"),
    ("children", "errors", "interrupts", "threads", "version", "domains", "attributes", "opsets"),
)
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "ml_dtypes"}
NEVER = (("report", "model"), ("rules", "sigma"), ("sigma", "model"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """The names of the package's modules that a file imports anywhere in it, typing included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("snaudit"):
            base = node.module.removeprefix("snaudit").lstrip(".")
            for alias in node.names:
                deeper = f"{base}.{alias.name}".lstrip(".")
                file = PACKAGE / f"{deeper.replace('.', '/')}.py"
                folder = PACKAGE / deeper.replace(".", "/") / "__init__.py"
                found.add(deeper if file.exists() or folder.exists() else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("snaudit.") for a in node.names if a.name.startswith("snaudit.")}
    return found - {""}


def level_of(module: str) -> int:
    for name in (module, module.split(".")[0]):
        for level, members in enumerate(LEVELS):
            if name in members:
                return level
    raise AssertionError(f"{module} has no place in the house: give it a level in test_house.py")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    module = name_of(path)
    if not module:
        return  # the package's own door, which imports lazily
    folder = module.split(".")[0]
    for other in imports_of(path):
        if other.split(".")[0] == folder and (PACKAGE / folder).is_dir():
            continue  # within one folder: the next test
        assert level_of(module) <= level_of(other), f"{module} imports {other}, which lies above it"
        for above, below in NEVER:
            assert not (folder == above and other == below), f"{above} must not import {below}"
        assert folder in ("cli", "commands", "__main__") or other.split(".")[0] not in ("cli", "commands")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_fits_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


def test_public_names_are_sorted_and_exist() -> None:
    assert snaudit.__all__ == sorted(snaudit.__all__)
    for name in snaudit.__all__:
        assert getattr(snaudit, name) is not None


def test_formats_and_methods_are_listed_once() -> None:
    from snaudit.formats import FORMATS
    from snaudit.sigma import METHODS

    for table in (FORMATS, METHODS):
        names = [row.name for row in table]
        assert len(set(names)) == len(names)


def test_no_unpickler_and_no_foreign_loader() -> None:
    """Nothing in the package calls a loader that could run code from a model file, but for --allow-code's child."""
    forbidden = {"torch.load", "torch.jit.load", "torch.export.load", "pickle.load", "pickle.loads",
                 "onnx.load", "numpy.load", "np.load", "eval", "exec"}  # fmt: skip
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                allowed = path.name == "scripting.py" and called == "torch.jit.load"
                assert called not in forbidden or allowed, f"{path}:{node.lineno}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                assert not names & {"pickle", "pickletools", "shelve", "dill", "marshal"}, path


def test_the_door_and_the_help_import_nothing_heavy() -> None:
    code = (
        "import sys, snaudit, snaudit.cli\n"
        "try:\n    snaudit.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr
    assert "inspect" in done.stdout


def test_a_bare_checkpoint_is_audited_without_graphs() -> None:
    path = PACKAGE.parent / "sample_models" / "known.safetensors"
    code = (
        f"import sys, snaudit.cli\nsnaudit.cli.main(['inspect', {str(path)!r}])\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'sympy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr


def test_the_page_of_ops_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = PACKAGE.parent / "docs"
    monkeypatch.syspath_prepend(str(docs))
    import make_ops

    assert (docs / "ops.md").read_text(encoding="utf-8") == make_ops.page(), "run python docs/make_ops.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_fits_one_screen(path: Path) -> None:
    """Its statements, that is: a signature with one option to a line and a docstring take their own room."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[min(1, len(node.body) - 1)] if ast.get_docstring(node) else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= 40, f"{name_of(path)}.{node.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/interface.py")), ids=name_of)
def test_an_interface_knows_no_member(path: Path) -> None:
    """What every member builds on names none of them; `formats.source` is what formats read through."""
    own = {name for name in imports_of(path) if name.split(".")[0] == path.parent.name}
    assert own <= {"formats.source"}, own


def test_the_map_of_the_house_names_every_file_and_folder() -> None:
    text = (PACKAGE.parent / "docs" / "house.md").read_text()
    named = set(re.findall(r"`([a-z_0-9]+)[/.a-z_]*`", text))
    here = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert here - {"__init__", "__main__"} <= named, here - named
