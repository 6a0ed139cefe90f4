"""The graph of a TorchScript file, from its code: ops on tensors collected while `script_run` follows `forward`.

Shapes are known as it goes: each op is translated to ONNX when it is met, and ONNX's inference says what it
makes. The graph holds for the input sizes that were given, and for the state that is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from snaudit.errors import UsageError
from snaudit.formats.aten_calls import Claim, Ref
from snaudit.formats.exported_graph import NUMBERS, PURE, VIEWS, Translated, program_graph
from snaudit.formats.exported_program import NotTaken, Program, functional
from snaudit.formats.pickles import Opaque, Pairs
from snaudit.formats.script_code import Library
from snaudit.formats.script_run import Runner, Thing
from snaudit.formats.script_trace import REAL, Tracer
from snaudit.formats.script_values import UNSET
from snaudit.formats.views import View
from snaudit.model import Model


ELSE = "--allow-code runs the code for it; torch.onnx.export of the module gives one, or its state dict with --architecture"
_MOST_OUTPUTS = 1000


@dataclass(frozen=True, slots=True)
class Script:
    """What a TorchScript file holds beside its tensors: its objects, constants and code."""

    root: Any
    constants: Any
    library: Library


class _Objects:
    """Values of the file's pickles as those that code computes with; each object once."""

    def __init__(self, tracer: Tracer, library: Library) -> None:
        self.tracer, self.library = tracer, library
        self.names: dict[Any, str] = {}
        for name, tensor in tracer.tensors.items():
            self.names.setdefault(tensor.place, name)
        self.known: dict[int, Any] = {}

    def value(self, value: Any, path: str = "") -> Any:
        if type(value) is View:
            name = self.names.get(value)
            return UNSET if name is None or value.dtype not in NUMBERS else self.tracer.hold(name)
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self.known:
            return self.known[id(value)]
        made: Any = UNSET
        if type(value) in (list, tuple):
            made = self.known[id(value)] = []
            made += [self.value(one, f"{path}.{at}") for at, one in enumerate(value)]
            made = tuple(made) if type(value) is tuple else made
        elif type(value) is Opaque and value.callee.startswith("torch.jit._pickle.") and value.parts:
            made = self.value(value.parts[0], path)
        elif type(value) is Opaque and value.callee.startswith("__torch__.") and type(value.state) is Pairs:
            if "__setstate__" in self.library.methods.get(value.callee, {}):
                raise NotTaken(f"{path or 'its module'} is set up by code of its own (__setstate__)")
            made = self.known[id(value)] = Thing(value.callee, {}, path)
            for name, child in value.state.entries:
                if type(name) is not str or name in made.attributes:
                    raise NotTaken("an object whose attributes have no names, or one name twice")
                made.attributes[name] = self.value(child, f"{path}.{name}".lstrip("."))
        self.known[id(value)] = made
        return made


def script_graph(model: Model, script: Script, sizes: tuple[tuple[str | None, tuple[int, ...]], ...]) -> Translated:
    """The graph of the file's `forward` on inputs of these sizes, or None with the reason as a note.

    Raises UsageError for sizes that are not those of its arguments.
    """
    integers: set[str] = set()
    try:
        program, written, asked = _program(Tracer(model.tensors), script, sizes, integers)
        found = program_graph(model.path, _alive(functional(program, PURE, VIEWS)), model.tensors, ())
    except NotTaken as error:
        return Translated(None, (f"its graph is not read: {error}; {ELSE}",))
    except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError) as error:
        reason = f"its code does what is not followed ({type(error).__name__}: {str(error)[:80]})"
        return Translated(None, (f"its graph is not read: {reason}; {ELSE}",))
    notes = ["its graph is that of its forward, read from its code without running it, at the input sizes given"]
    if integers:
        notes.append(f"taken as integers: {', '.join(sorted(integers))}")
    if asked:
        notes.append("it asks whether gradients are on: followed as if they were")
    if written:
        notes.append(f"it keeps state ({', '.join(list(written)[:4])}): the graph is of one call on the state stored")
    return replace(found, notes=(*notes, *found.notes))


def _program(
    tracer: Tracer, script: Script, sizes: tuple[tuple[str | None, tuple[int, ...]], ...], integers: set[str]
) -> tuple[Program, list[str], bool]:
    """The program on real inputs, and what it wrote; those taken for indices become integers, and are noted."""
    try:
        found = _followed(tracer, script, sizes, integers)
    except NotTaken:
        if not tracer.indices & set(tracer.inputs) - integers:
            raise
    wanted = tracer.indices & set(tracer.inputs) - integers
    if not wanted:
        return found
    integers |= wanted
    return _program(Tracer(tracer.tensors), script, sizes, integers)


def _followed(
    tracer: Tracer, script: Script, sizes: tuple[tuple[str | None, tuple[int, ...]], ...], integers: set[str]
) -> tuple[Program, list[str], bool]:
    objects = _Objects(tracer, script.library)
    root = objects.value(script.root)
    if not isinstance(root, Thing):
        raise NotTaken("it holds no module")
    if root.kind in script.library.hooked:
        raise NotTaken("its module has hooks, which run around forward")
    constants = objects.value(list(script.constants) if type(script.constants) in (list, tuple) else [])
    runner = Runner(script.library, {f"c{at}": one for at, one in enumerate(constants)}, tracer)
    given = _arguments(tracer, script.library.method(root.kind, "forward"), sizes, integers)
    result = runner.method(root, "forward", [], given)
    outputs: list[str] = []
    made = {name for call in tracer.calls for name in call.outputs}
    for one in _flat(result):
        if len(outputs) == _MOST_OUTPUTS:
            raise NotTaken(f"its forward returns more than {_MOST_OUTPUTS} tensors")
        fresh = one.name in made and one.name not in outputs
        outputs.append(one.name if fresh else tracer("alias", [one], {}, 0, "output").name)
    if not outputs:
        raise NotTaken("its forward returns no tensor")
    symbols = {name: (None,) * len(tracer.claims[name].shape) for name in tracer.inputs}
    program = Program(tuple(tracer.inputs), tracer.held, tuple(outputs), tuple(tracer.calls), tracer.claims, symbols)
    return program, list(runner.written), tracer.asked


def _arguments(
    tracer: Tracer, forward: Any, sizes: tuple[tuple[str | None, tuple[int, ...]], ...], integers: set[str]
) -> dict[str, Any]:
    """The values of forward's arguments: tensors of the sizes given, numbers as they are given."""
    import ast

    names = {one.arg: ast.unparse(one.annotation) if one.annotation else "Tensor" for one in forward.args.args[1:]}
    required = list(names)[: len(names) - len(forward.args.defaults)]
    kinds = Counter(tensor.dtype for tensor in tracer.tensors.values() if tensor.dtype in REAL)
    dtype = kinds.most_common(1)[0][0] if kinds else "float32"
    given: dict[str, Any] = {}
    for name, shape in sizes:
        free = [one for one in names if one not in given]
        name = name if name is not None else free[0] if free else None
        if name not in names or name in given:
            raise UsageError(f"--input-size: forward takes {', '.join(names) or 'nothing'}, each once")
        if names[name] in ("int", "float", "bool") and len(shape) == 1:
            given[name] = {"int": int, "float": float, "bool": bool}[names[name]](shape[0])
        elif names[name] in ("Tensor", "Optional[Tensor]"):
            tracer.claims[name] = Claim("int64" if name in integers else dtype, shape)
            tracer.inputs.append(name)
            given[name] = Ref(name)
        else:
            raise NotTaken(f"argument {name} is a {names[name][:80]}")
    missing = [name for name in required if name not in given]
    if missing:
        raise UsageError(f"--input-size: forward takes {', '.join(names)}; give {missing[0]} a size too (or its value, for a number)")
    return given


def _flat(result: Any) -> Iterator[Ref]:
    """The tensors in nested lists, in order."""
    left, looked = [result], 0
    while left:
        one, looked = left.pop(), looked + 1
        if looked > 10 * _MOST_OUTPUTS:
            raise NotTaken("its forward returns too much")
        if isinstance(one, Ref):
            yield one
        elif type(one) in (list, tuple):
            left += reversed(one)
        elif one is not None and type(one) not in (int, float, bool, str):
            raise NotTaken("its forward returns what is no tensor")


def _alive(program: Program) -> Program:
    """The program without calls whose outputs nobody needs, and without tensors that nobody reads."""
    needed, kept = set(program.outputs), []
    for call in reversed(program.calls):
        if needed & set(call.outputs):
            needed |= set(call.reads)
            kept.append(call)
    held = {name: own for name, own in program.held.items() if name in needed}
    made = {name for call in kept for name in call.outputs}
    claims = {name: one for name, one in program.claims.items() if name in made or name in held or name in program.inputs}
    return replace(program, calls=tuple(reversed(kept)), held=held, claims=claims)
