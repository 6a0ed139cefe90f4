"""What a rewrite changes, kept out of memory, and the copy that is written, read back and proved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from snaudit import formats
from snaudit.errors import WriteError
from snaudit.feeds import Given
from snaudit.findings import Settings
from snaudit.forms import Form, Stored
from snaudit.layers import Layer
from snaudit.model import Model
from snaudit.outputs import OutputChange, compare_outputs
from snaudit.writing import write_model


@dataclass(frozen=True, slots=True)
class Scaled:
    """A step that multiplies a form's weight by a factor."""

    form: Form
    factor: float

    def __call__(self, stored: Stored) -> dict[str, np.ndarray]:
        return self.form.scaled(self.factor, stored)


class Rewritten(Mapping[str, np.ndarray]):
    """The changed tensors as they will stand on disk. They are made when asked for, so that memory
    follows the largest of them and not their number: a scaling is done again, and new numbers that
    cost more wait in a file without a name in `folder`, until the `with` block ends. Raises WriteError where that is full."""

    def __init__(self, folder: Path | None = None) -> None:
        self._steps: dict[str, list[Callable[[Stored], dict[str, np.ndarray]]]] = {}
        self._folder = folder
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Rewritten:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def scale(self, form: Form, factor: float, names: Iterable[str]) -> None:
        """Scale a form by a factor, which changes the tensors named."""
        for name in names:
            self._steps.setdefault(name, []).append(Scaled(form, factor))

    def replace(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Put these arrays in the place of the tensors of their names."""
        for name, array in arrays.items():
            self._steps[name] = [*self._steps.get(name, ()), self._kept(name, array)]

    def depth(self, layer: Layer) -> int:
        """How many steps the layer's tensors have seen."""
        return sum(len(self._steps.get(tensor.name, ())) for tensor in layer.form.tensors)

    def _kept(self, name: str, array: np.ndarray) -> Callable[[Stored], dict[str, np.ndarray]]:
        dtype, shape, size = array.dtype, array.shape, array.nbytes
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".snaudit-")
            file = self._file
            start = file.seek(0, 2)
            file.write(array.tobytes())
            file.flush()
        except OSError as error:
            raise WriteError(f"{self._folder or 'temporary file'}: {error.strerror}") from error

        def load(stored: Stored) -> dict[str, np.ndarray]:
            file.seek(start)
            return {name: np.frombuffer(file.read(size), dtype).reshape(shape)}

        return load

    def __getitem__(self, name: str) -> np.ndarray:
        made: dict[str, np.ndarray] = {}
        for step in self._steps[name]:
            made.update(step(made))
        return made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __contains__(self, name: object) -> bool:
        return name in self._steps


def _any(outputs: tuple[OutputChange, ...]) -> None:
    """Outputs may move as they will."""


def write(
    model: Model, target: Path, stored: Rewritten, settings: Settings, prove: Callable[[Model], None],
    given: Given | None = None, accept: Callable[[tuple[OutputChange, ...]], None] = _any,
) -> tuple[tuple[OutputChange, ...], tuple[str, ...]]:  # fmt: skip
    """Write the copy; before it gets its name, read it back, `prove` its caps, compare all the rest.

    (the change of each output of a graph, on random input and on what is given, notes). Raises what
    `prove` and `accept` raise, WriteError, ModelError.
    """
    files = formats.by_name(model.format).patch(model, stored, target)
    outputs: tuple[OutputChange, ...] = ()
    notes: tuple[str, ...] = ()

    def verify(part: Path) -> None:
        nonlocal outputs, notes
        written = formats.read(part, settings.key, settings.input_size or ())
        _same_but_for(stored, model, written)
        prove(written)
        for file in (*model.files, *written.files):
            file.check()
        if model.runnable is not None:
            outputs, notes = compare_outputs(model.path, part, settings.seed, given)
            accept(outputs)

    (_, *beside), replaced = write_model(files, target, model.path, verify)
    if beside:
        notes += (f"files that belong to it: {', '.join(path.name for path in beside)}",)
    return outputs, notes + replaced


def _same_but_for(stored: Mapping[str, np.ndarray], before: Model, after: Model) -> None:
    """Raise WriteError unless the file read back holds `stored`, and all else bit for bit."""
    if list(before.tensors) != list(after.tensors):
        raise WriteError(f"{after.path}: the tensors read back are not those that were written")
    touched = {before.tensors[name].place for name in stored}
    for name, tensor in before.tensors.items():
        if name not in stored and tensor.place in touched:
            continue  # an alias of a changed tensor, compared under that name
        array = stored[name] if name in stored else tensor.load()
        back = after.tensors[name].load()
        if array.shape != back.shape or array.dtype != back.dtype or array.tobytes() != back.tobytes():
            raise WriteError(f"{after.path}: {name} read back is not what was written")
