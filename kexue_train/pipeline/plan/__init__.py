"""What a run will take, before anything runs: tasks, disk, memory, GPU memory, time.

rates.py (what was measured) -> training.py (the longest stage) -> plan_run.py (all stages) -> table.py (to be read)
"""

from kexue_train.pipeline.plan.plan_run import Machine, RunPlan, plan_run
from kexue_train.pipeline.plan.stage_plan import StagePlan

__all__ = ["Machine", "RunPlan", "StagePlan", "plan_run"]
