"""The acceptance on a GPU: every CUDA path run, compared with what is known, timed: ``python -m benchmarks.gpu``."""
