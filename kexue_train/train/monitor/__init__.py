"""What one sees of a training: sums over steps, rates and norms, written, shown, and checked for what is wrong.

loop → meter (with flops), norms → lines → loggers (the writers) → events (terminal, orchestrator), symptoms
(warnings); profiling
"""
