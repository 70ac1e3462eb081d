"""Training: sample shards in, portable checkpoints out.

pretrain (STAGE 4) → launch (Ray Train or torchrun) → worker (one process per device) → loop → engine
                                                                     objective, checkpoint, metrics
"""
