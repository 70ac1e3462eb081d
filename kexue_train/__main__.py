"""``python -m kexue_train`` is the ``kexue`` command."""

from kexue_train.cli.app import main

if __name__ == "__main__":
    main()
