"""From the metrics that the workers write to the progress that a person sees."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kexue_train.foundation.progress import Progress
from kexue_train.metrics.file import MetricTail

_POLL_SECONDS = 0.5
_SHOWN = ("loss", "mlm_accuracy", "nsp_accuracy", "lr", "tokens_per_second", "mfu", "memory_bytes", "eta_seconds")


@contextmanager
def watched(metrics: Path, first_step: int, steps: int, progress: Progress) -> Iterator[None]:
    """While the workers write ``metrics``, report their steps, validations and what else should be known."""
    watcher, tail, done = Watcher(first_step, steps, progress), MetricTail(metrics), threading.Event()

    def report() -> None:
        while not done.wait(_POLL_SECONDS):
            watcher.tell(tail.read())
        watcher.tell(tail.read())
        tail.close()

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Watcher:
    """Tells lines of metrics; what comes twice because workers had to start again is said once.

    Args:
        first_step: Steps done before; what they brought is not news.
        steps: Steps in all.
        progress: Where it is told.
    """

    def __init__(self, first_step: int, steps: int, progress: Progress) -> None:
        self._first_step, self._steps, self._progress = first_step, steps, progress
        self._said: set[str] = set()
        self._has_trained = False

    def tell(self, records: list[dict[str, Any]]) -> None:
        """Say what is worth it, and the state after the last line."""
        for record in records:
            if self._is_news(record) and (text := describe(record)) and text not in self._said:
                self._said.add(text)
                self._progress.note(text)
        if last := next((record for record in reversed(records) if record["kind"] == "train"), None):
            facts = {name: last[name] for name in _SHOWN if name in last}
            self._progress.update(last["step"], self._steps, "steps", **facts)

    def _is_news(self, record: dict[str, Any]) -> bool:
        if record["step"] > self._first_step:
            self._has_trained |= record["kind"] == "train"
            return True
        # The first resume is that of whoever has started the workers; a warning may come before the first step.
        return record["step"] == self._first_step and (
            record["kind"] == "warning" or (record["kind"] == "resume" and self._has_trained)
        )


def describe(record: dict[str, Any]) -> str | None:
    """A line of metrics in words, if it is one that a person should read."""
    step = f"step {record['step']:,}: "
    match record["kind"]:
        case "validation" if "mlm_loss" in record:
            pairs = f", NSP accuracy {record['nsp_accuracy']:.1%}" if "nsp_accuracy" in record else ""
            return f"{step}validation: MLM loss {record['mlm_loss']:.3f}, accuracy {record['mlm_accuracy']:.1%}{pairs}"
        case "warning":
            return f"{step}{record['message']}"
        case "profile":
            return f"{step}profile in {record['path']}"
        case "phase":
            rows = f"{record['global_batch_size']} rows of {record['seq_len']} tokens a step"
            return f"{step}phase {record['phase']}, {rows}"
        case "resume":
            return f"{step}the workers were started again from its checkpoint"
        case "rollback":
            where = f"back to step {record['step']:,}; the rows read since are left out"
            return f"step {record['spike_step']:,}: the loss is {record['loss']}: {where}"
        case "checkpoint_failed" | "mirror_failed" as kind:
            return f"{step}{kind.replace('_', ' ')}: {record['reason']}"
        case _:
            return None
