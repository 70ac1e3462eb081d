"""The ``kexue`` command and what it shows in a terminal."""
