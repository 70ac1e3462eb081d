"""The ``kexue`` command and what it shows in a terminal."""

from __future__ import annotations


def main() -> None:
    """Run the command ``kexue``; its modules are loaded by the first call."""
    from kexue_train.cli.app import main  # noqa: PLC0415

    main()
