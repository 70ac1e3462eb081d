"""What one sees of a training: sums over steps, rates and norms, written, shown, and looked at for what is wrong.

loop → meter → speed (with flops), norms → metrics, loggers → watch (the console), symptoms (warnings); profiling
"""
