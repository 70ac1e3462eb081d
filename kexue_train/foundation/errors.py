"""The errors a user can act on.

KexueError
├── ConfigError       a value in a YAML file or on the command line
├── CorpusError       an input file or a record in it
│   └── DamagedInputError    cut off or corrupt; what lies before the damage can be used
├── ArtifactError     a folder that a stage wrote, or should have written
│   └── StaleArtifactError   whole, but made from other inputs or settings
├── ResourceError     disk, memory, port, permission, missing package
│   └── MemoryLimitError     a part of an input takes more memory than was given
├── MachineLostError  a machine of the cluster is gone, with what lay on it
├── InterruptedOutputError  stopped while the result went to standard output
├── TrainingError     a worker failed or the run diverged
└── EvaluationError   a model or data set that cannot be scored

A message is one paragraph: what (with the value), where (file, line or byte, key), what is allowed, how to fix it.
"""

from typing import Self

from kexue_train.foundation.credentials import redact


class KexueError(Exception):
    """Base of every error that is shown without a traceback; ``exit_code`` 2 means the user can fix it.

    Messages end up in terminals, logs, ``failure.json`` and servers, so they are made without credentials.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))

    @property
    def is_refusal(self) -> bool:
        """Whether there is something for the user to correct; then what was asked for has not begun."""
        return self.exit_code == KexueError.exit_code


class ConfigError(KexueError):
    """A configuration value or a command-line option is wrong."""


class CorpusError(KexueError):
    """An input file or a record in it cannot be used."""


class DamagedInputError(CorpusError):
    """An input is cut off or corrupt from some point on; what lies before it was read."""


class ArtifactError(KexueError):
    """A stage's folder is missing, damaged or not what it should be."""


class StaleArtifactError(ArtifactError):
    """A stage's folder is whole but was made from other inputs or settings; ``reason`` names the first difference."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Survive the way back from a worker process with both arguments."""
        return type(self), (str(self), self.reason)


class ResourceError(KexueError):
    """The machine lacks something: disk, memory, a free port, a permission, a package."""


class MemoryLimitError(ResourceError):
    """A part of an input cannot be read in the memory that was given; reading it takes ``need_bytes``."""

    def __init__(self, message: str, need_bytes: int) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes

    def __reduce__(self) -> tuple[type[Self], tuple[str, int]]:
        """Survive the way back from a worker process with both arguments."""
        return type(self), (str(self), self.need_bytes)


class MachineLostError(KexueError):
    """Machines of the cluster are gone, and with them what finished tasks left there; ``machines`` are their names."""

    def __init__(self, message: str, machines: frozenset[str]) -> None:
        super().__init__(message)
        self.machines = machines

    def __reduce__(self) -> tuple[type[Self], tuple[str, frozenset[str]]]:
        """Survive the way back from a worker process with both arguments."""
        return type(self), (str(self), self.machines)


class InterruptedOutputError(KexueError):
    """A command was interrupted while its result went to standard output, so that there is nothing to resume."""

    exit_code = 130


class TrainingError(KexueError):
    """Training stopped for a reason that is not in the configuration."""

    exit_code = 1


class EvaluationError(KexueError):
    """A model or an evaluation set cannot be scored."""
