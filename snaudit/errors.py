"""Everything that snaudit raises on purpose.

    SnauditError                 anything below; `exit_code` is what the command line returns
    ├── UsageError               a wrong option or argument: exit 2
    ├── ModelError               a model file, always with its path: exit 2
    │   ├── UnreadableModel      damaged, truncated, contradictory, or not a model at all
    │   ├── RefusedModel         would need to run code, or climbs out of its folder
    │   ├── UnsupportedModel     sound, but of a kind that snaudit cannot read (yet)
    │   └── EmptyModel           read in full, and nothing in it could be audited
    ├── WriteError               the result could not be written; the target is as it was: exit 2
    ├── ConstraintError          the weights cannot be brought under the cap: exit 2
    └── SoundnessError           two proofs contradict each other: our bug, exit 4

A message is one line: the fact, the place (tensor, node, record), the next step. The path is not
part of the message of a ModelError: `str(error)` puts it in front.
"""

from __future__ import annotations

import os


class SnauditError(Exception):
    """Base of all; `exit_code` is the process's exit status when it reaches the command line."""

    exit_code = 2


class UsageError(SnauditError):
    """A wrong option, argument or configuration."""


class ModelError(SnauditError):
    """A model file cannot be audited. `path` is the file; `str()` is "PATH: reason"."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


class UnreadableModel(ModelError):
    """The file is damaged, truncated, contradicts itself, or is no model."""


class RefusedModel(ModelError):
    """Reading on would run code from the file or touch what lies outside the model's folder."""


class UnsupportedModel(ModelError):
    """A sound file of a kind that snaudit does not read."""


class EmptyModel(ModelError):
    """The file was read in full and holds nothing that can be audited."""


class WriteError(SnauditError):
    """The result could not be written; what stood at the target still stands there."""


class ConstraintError(SnauditError):
    """No rewriting of the weights within the asked form meets the cap."""


class SoundnessError(SnauditError):
    """Two proved enclosures of one number do not meet: a bug in snaudit."""

    exit_code = 4
