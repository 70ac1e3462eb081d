"""Training: sample shards in, portable checkpoints out.

pretrain (STAGE 4) → launch (ray_launch, torchrun_launch, or here) → worker (one process per device) → loop → engine
phases, feed: what a step reads        heads, objective: what it minimises        zero_*: tensors in partitions
checkpoint/: weights and states, saved and found again        monitor/: what one sees        faults/: what breaks
"""
