"""Training: sample shards in, portable checkpoints out.

pretrain (STAGE 4) → launch (Ray Train, torchrun, or here; supervise) → worker (one process per device) → loop → engine
    before the first step: agreement, checkpoint, initial_weights, micro_batch      which step reads what: phases, feed
    in every step: objective, step_report, stop, spikes, watchdog                   what one sees: metrics
"""
