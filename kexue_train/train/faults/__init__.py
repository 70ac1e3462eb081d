"""What keeps a training whole when something breaks.

At the start: lock (one training per folder), agreement (all ranks run the same). In each step: step_report (what ranks
tell each other) → stop (a wish to end), spikes (a loss that is none). Beside it: watchdog (a rank that hangs),
flight_recorder (the last collectives), supervise (workers that have to be started again).
"""
