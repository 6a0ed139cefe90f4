"""Checkpoints: which of the tensors in a nest of dicts and lists are the model's weights.

A checkpoint holds, beside the weights, optimizer state, an averaged (EMA) copy, training state.
Nothing is dropped in silence: every tensor is either taken or stands in `left_out` with a reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snaudit.errors import EmptyModel, RefusedModel, UnreadableModel, UsageError
from snaudit.formats.pickles import Opaque, Pairs
from snaudit.formats.rebuilds import (
    INSIDE_PICKLE,
    NUMPY_ARRAY,
    Number,
    Quantized,
    Storage,
    Unread,
)
from snaudit.formats.views import View
from snaudit.model import LeftOut
from snaudit.names import printable

_MAX_DEPTH, _MAX_STEPS, _KEYS_SHOWN = 64, 5_000_000, 12
REMEDY = "save a state dict instead: torch.save(model.state_dict(), PATH)"

MODEL_KEYS = frozenset(["state_dict", "model", "model_state_dict", "model_state", "model_dict", "module", "net", "network", "weights", "params", "parameters", "state_dicts", "models", "generator", "discriminator", "net_g", "net_d", "netg", "netd", "g", "d", "encoder", "decoder", "backbone", "student"])
"""Keys under which checkpoints keep weights: loose tensors beside one of them are left out."""

_OPTIMIZER = re.compile(r"(^|[_.])(optim\w*|opt|opts|adam\w*|sgd|momentum)([_.]|$)", re.IGNORECASE)
_AVERAGED = re.compile(r"(^|[_.])(ema|swa|shadow|averaged?|avg)([_.]|$)", re.IGNORECASE)
_TRAINING = re.compile(
    r"^(<state>|callbacks|loops|\w*schedulers?|scaler|grad_scaler|amp|hparams|hyper_?parameters|args|cfg"
    r"|config|metrics|meta|history|\w*rng\w*|random\w*|loss\w*|best\w*|epoch|step|global_step|iteration)$",
    re.IGNORECASE)
_SLOTS = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
                    "acc_delta", "grad_avg", "exp_avg_diff"))
_STEPS = frozenset(("step", "sum", "prev", "step_size", "ax", "eta", "mu", "mu_product"))
OPTIMIZER, AVERAGED = "optimizer state", "an averaged (EMA) copy of the weights"
TRAINING, BESIDE = "training state", "beside the model's weights"


@dataclass(frozen=True, slots=True)
class Foreign:
    """An object that only foreign code can make, with the number of tensors that went into it."""

    callee: str
    tensors: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where in the nest a tensor is, or what stands in a tensor's place."""

    path: tuple[str, ...]
    value: View | Number | Unread | Foreign


@dataclass(slots=True)
class Choice:
    """The tensors taken, by name, with what was left out and what the user should know."""

    tensors: dict[str, View | Number] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Nest:
    """The leaves of a value that a pickle made; `scripted` opens TorchScript's objects as well."""

    def __init__(self, path: Path, root: Any, scripted: bool = False) -> None:
        self.path, self.scripted = path, scripted
        self._left = _MAX_STEPS
        self._barren: set[int] = set()
        self._different: set[int] = set()
        self.leaves: list[Leaf] = []
        self._walk(root, (), [])

    def _walk(self, value: Any, path: tuple[str, ...], above: list[int]) -> None:
        leaf = _leaf(value)
        if leaf is not None:
            self._add(path, leaf, value)
            return
        if type(value) is Quantized:  # its parts stand beside each other, no deeper than it stands itself
            for name, part in value.parts:
                self._add((*path[:-1], f"{path[-1]}.{name}" if path else name), part, part)
            return
        children = self._children(value)
        if children is None:
            if type(value) is Opaque and (count := self._tensors_inside(value)):
                self._add(path, Foreign(value.callee, count), value)
            return
        if id(value) in self._barren or id(value) in above:  # a cycle: its leaves are named already
            return
        if len(above) > _MAX_DEPTH:
            raise UnreadableModel(self.path, f"its values are nested more than {_MAX_DEPTH} deep")
        above.append(id(value))
        before = len(self.leaves)
        for key, child in children:
            self._step()
            self._walk(child, (*path, key), above)
        above.pop()
        if len(self.leaves) == before:
            self._barren.add(id(value))

    def _add(self, path: tuple[str, ...], leaf: View | Number | Unread | Foreign, value: Any) -> None:
        self._different.add(id(value))
        self.leaves.append(Leaf(path, leaf))
        if len(self.leaves) > 10_000 + 20 * len(self._different):
            raise UnreadableModel(self.path, "its values refer to each other in too many ways")

    def _children(self, value: Any) -> Iterable[tuple[str, Any]] | None:
        if type(value) is Opaque and self.scripted and value.callee.startswith("__torch__."):
            value = value.state if type(value.state) in (Pairs, tuple, list) else []
        if type(value) is Pairs:
            seen = {key for key, _ in value.entries if type(key) is str}
            if len(seen) != sum(type(key) is str for key, _ in value.entries):
                twice = Counter(key for key, _ in value.entries if type(key) is str).most_common(1)[0][0]
                raise UnreadableModel(self.path, f"two entries are called {twice!r}")
            beside = [("<state>", value.state)] if value.state is not None else []
            return [(_key(key), child) for key, child in value.entries] + beside
        return [(str(i), child) for i, child in enumerate(value)] if type(value) in (list, tuple) else None

    def _tensors_inside(self, value: Any) -> int:
        """How many tensors anywhere within what was not built, each object counted once."""
        seen, stack, count = {id(value)}, [value], 0
        while stack:
            self._step()
            value = stack.pop()
            if _leaf(value) is not None:
                count += 1
                continue
            parts: Sequence[Any] = ()
            if type(value) is Opaque:
                parts = value.parts
            elif type(value) is Pairs:
                parts = [part for entry in value.entries for part in entry] + [value.state]
            elif type(value) in (list, tuple):
                parts = value
            for part in parts:
                if id(part) not in seen and type(part) in (Opaque, Pairs, list, tuple, View, Unread):
                    seen.add(id(part))
                    stack.append(part)
        return count

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnreadableModel(self.path, "its values refer to each other in too many ways")


def _leaf(value: Any) -> View | Unread | None:
    if type(value) in (View, Unread):
        return value
    if type(value) is Storage:
        return Unread("it is a bare storage, no tensor", is_tensor=False)
    return Unread(INSIDE_PICKLE) if type(value) is Opaque and value.callee == NUMPY_ARRAY else None


def _key(key: Any) -> str:
    if type(key) is str:
        return key
    return str(key) if type(key) in (int, float, bool) or key is None else f"<{type(key).__name__}>"


def choose(path: Path, leaves: Sequence[Leaf], key: str | None, foreign: Sequence[str]) -> Choice:
    """The weights among the leaves: under `key`, or where checkpoints have them.

    Raises UsageError for a key that is not there, RefusedModel where the weights depend on foreign
    objects (or there are only such), EmptyModel where there is no tensor at all.
    """
    if not leaves:
        if foreign:
            named = printable(foreign[0], 120)
            raise RefusedModel(path, f"it holds no tensors, but an object of {named}; {REMEDY}")
        raise EmptyModel(path, "it holds no tensors")
    choice = Choice()
    if key is not None:
        prefix, taken = _at_key(leaves, key)
        inside = set(taken)
        _leave_out(choice, [leaf for leaf in leaves if leaf not in inside], f"not under --key {key}")
    else:
        prefix, taken = _descend(leaves, choice)
    for leaf in taken:
        if type(leaf.value) is Foreign:
            where = repr(".".join(leaf.path)) if leaf.path else "the whole file"
            named = printable(leaf.value.callee, 120)
            raise RefusedModel(path, f"{where} can only be built by {named}; {REMEDY}")
    if not taken and (built := next((x.value.callee for x in leaves if type(x.value) is Foreign), None)):
        raise RefusedModel(path, f"its weights can only be built by {printable(built, 120)}; {REMEDY}")
    if key is None:
        taken = _without_averaged_copy(choice, taken, len(prefix))
    for leaf in taken:
        _take(choice, ".".join(leaf.path[len(prefix):]) or "tensor", leaf.value)
    return choice


def _take(choice: Choice, name: str, value: Any) -> None:
    unique, count = name, 2
    while unique in choice.tensors:  # {"a.b": …, "a": {"b": …}} names two tensors alike
        unique, count = f"{name}#{count}", count + 1
    if type(value) in (View, Number):
        choice.tensors[unique] = value
    else:
        choice.left_out.append(LeftOut(unique, value.reason, value.missed))


def _at_key(leaves: Sequence[Leaf], key: str) -> tuple[tuple[str, ...], list[Leaf]]:
    """The entry whose dotted path is `key` ("." is the whole file) and the leaves under it."""
    found: dict[str, tuple[str, ...]] = {".": ()}
    for leaf in leaves:
        for length in range(1, len(leaf.path)):
            found.setdefault(".".join(leaf.path[:length]), leaf.path[:length])
    if key not in found:
        shown = [name for name in found if name != "."]
        if not shown:
            raise UsageError(f"no tensors under the key {key!r}: this file has no entries to choose from")
        more = f" (and {len(shown) - _KEYS_SHOWN} more)" if len(shown) > _KEYS_SHOWN else ""
        raise UsageError(f"no tensors under the key {key!r}; possible keys: "
                         f"{', '.join(repr(name)[1:-1] for name in shown[:_KEYS_SHOWN])}{more}")
    prefix = found[key]
    return prefix, [leaf for leaf in leaves if leaf.path[: len(prefix)] == prefix]


def _descend(leaves: Sequence[Leaf], choice: Choice) -> tuple[tuple[str, ...], list[Leaf]]:
    """The path of the nest that holds the weights, and its leaves; what is beside it is left out."""
    prefix: tuple[str, ...] = ()
    here = list(leaves)
    while True:
        depth = len(prefix)
        groups: dict[str, list[Leaf]] = {}
        for leaf in here:
            groups.setdefault(leaf.path[depth] if len(leaf.path) > depth else "", []).append(leaf)
        weights = _weights(choice, groups, depth)
        nested = [k for k in weights if any(len(leaf.path) > depth + 1 for leaf in groups[k])]
        loose = [k for k in weights if k not in nested]
        known = any(k.lower() in MODEL_KEYS for k in nested)
        real = [k for k in loose if type(groups[k][0].value) is not Foreign]
        if not nested or (real and not known):
            break
        for k in loose:
            _leave_out(choice, groups[k], BESIDE)
        if len(nested) > 1:
            weights = nested
            choice.notes.append(f"took the entries {_listed(nested)} together; --key chooses one")
            break
        prefix, here = (*prefix, nested[0]), groups[nested[0]]
    if prefix:
        choice.notes.insert(0, f"took the entry {'.'.join(prefix)!r}; --key chooses another")
    return prefix, [leaf for k in weights for leaf in groups[k]]


def _weights(choice: Choice, groups: dict[str, list[Leaf]], depth: int) -> list[str]:
    """The groups that are no optimizer state, averaged copy or training state; those are left out.

    Only entries that hold more than one tensor are judged by their names. An averaged copy, or what
    looks like training state, is the weights where there are no others.
    """
    kinds = {k: _kind(k, group, depth) for k, group in groups.items()}
    plain = [k for k, kind in kinds.items() if not kind]
    chosen = plain
    if not any(_is_matrix_like(leaf) for k in plain for leaf in groups[k]):
        others = (AVERAGED, TRAINING)
        chosen = next((found for kind in others if (found := [k for k in kinds if kinds[k] == kind])), plain)
    for k, group in groups.items():
        if k not in chosen:
            _leave_out(choice, group, kinds[k] or BESIDE)
    return chosen


def _kind(key: str, group: list[Leaf], depth: int) -> str:
    """What an entry is besides weights, by its name and by its tensors' names; "" for weights."""
    if not any(len(leaf.path) > depth + 1 for leaf in group):
        return ""
    last = {leaf.path[-1] for leaf in group}
    if _OPTIMIZER.search(key) or (last <= _SLOTS | _STEPS and last & _SLOTS):
        return OPTIMIZER
    return AVERAGED if _AVERAGED.search(key) else TRAINING if _TRAINING.match(key) else ""


def _is_matrix_like(leaf: Leaf) -> bool:
    return type(leaf.value) is Foreign or (type(leaf.value) is View and len(leaf.value.shape) > 1)


def _without_averaged_copy(choice: Choice, taken: list[Leaf], depth: int) -> list[Leaf]:
    """The leaves without those `model_ema.…` that have the shapes of others: LDM's way of a copy."""
    def is_copy(leaf: Leaf) -> bool:
        return ".".join(leaf.path[depth:]).startswith(("model_ema.", "ema_model.", "ema."))

    copies = [leaf for leaf in taken if is_copy(leaf) and type(leaf.value) is View]
    chosen = set(copies)
    rest = [leaf for leaf in taken if leaf not in chosen]
    shapes = Counter(leaf.value.shape for leaf in rest if type(leaf.value) is View)
    large = Counter(leaf.value.shape for leaf in copies if _is_matrix_like(leaf))  # type: ignore[union-attr]
    if not copies or not large or large - shapes:
        return taken
    _leave_out(choice, copies, AVERAGED)
    return rest


def _leave_out(choice: Choice, leaves: Sequence[Leaf], reason: str) -> None:
    """One LeftOut for each entry of the file, with its count."""
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves:
        groups.setdefault(leaf.path[0] if leaf.path else "", []).append(leaf)
    for name, group in groups.items():
        count = sum(x.value.tensors if type(x.value) is Foreign else 1 for x in group)
        numbers = sum(leaf.value.size for leaf in group if type(leaf.value) is View)
        single = len(group) == 1
        callee = next((leaf.value.callee for leaf in group if type(leaf.value) is Foreign), None)
        what = f"{reason}: {count} tensor{'s' * (count != 1)}, {numbers} numbers"
        what += f", inside an object of {printable(callee, 120)}" if callee else ""
        choice.left_out.append(LeftOut(".".join(group[0].path) if single else name, what, tensors=count))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_KEYS_SHOWN])
    return shown + (f" (and {len(names) - _KEYS_SHOWN} more)" if len(names) > _KEYS_SHOWN else "")
