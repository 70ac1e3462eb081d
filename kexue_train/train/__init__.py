"""Training: sample shards in, portable checkpoints out.

pretrain (STAGE 4) → launch (ray_launch, torchrun_launch, or here) → worker (one process per device) → loop → engine
phases, data: what a step reads        heads, objective: what it minimises        zero_*: tensors in partitions
checkpoint/: weights and states, saved and found again        monitor/: what one sees
weighting/: how much each task counts
faults/: what the loop does when something breaks        restarts, agreement: what is done around it
"""
