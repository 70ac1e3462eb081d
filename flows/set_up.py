"""Create what deployments need on a Prefect server: ``python -m flows.set_up``. A second call changes nothing.

It creates three work pools, the limit of one training at a time, and automations. They send a notification when a flow
fails, when a loss is NaN or infinite, and when an evaluation is finished, and they mark flow runs as crashed whose
process is gone. Notifications go to the block that ``--notify`` names, or to the address in the environment variable
KEXUE_WEBHOOK_URL, as the JSON that Slack and similar services accept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from datetime import timedelta
from typing import Any
from uuid import UUID

import typer
from prefect.automations import ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from flows.command import run_function
from flows.server import require_server
from flows.tasks import TRAINING_TAG
from kexue_train.foundation.errors import ConfigError, ResourceError

POOLS = ("process", "docker", "kubernetes")
FLOWS = ("pretrain-pipeline", "shuffle-corpus", "build-samples", "pretrain", "evaluate-model", "refresh-corpus")
_BLOCK = "kexue"
_FORMER_NAMES = {"kexue: a loss is NaN or infinite": "kexue: a loss is no number"}
"""Names that automations had in an earlier release, so that a server does not keep both."""
_RUN = "{{ flow_run.name }} ({{ flow_run.id }})"


def main(arguments: list[str] | None = None) -> int:
    """Run ``set_up`` from a shell; return the exit code."""
    return run_function(set_up, arguments, example="--notify slack-webhook/team")


def set_up(notify: str | None = None) -> None:
    """Create what deployments need on the Prefect server that the settings name, and list what exists now.

    Args:
        notify: A notification block, such as slack-webhook/team; by default the address in KEXUE_WEBHOOK_URL.
    """
    if not get_current_settings().api.url:
        raise ResourceError(
            "PREFECT_API_URL is not set, so there is no server to set up; start one with 'prefect server start' and "
            "set its address: prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    require_server()
    for line in asyncio.run(set_up_server(notify, os.environ.get("KEXUE_WEBHOOK_URL"))):
        typer.echo(line)


async def set_up_server(notify: str | None, webhook: str | None) -> list[str]:
    """Create pools, limit and automations; return what exists now, one line each."""
    block = await _find_block(notify, webhook)
    async with get_client() as client:
        for pool in POOLS:
            await _make_pool(client, pool)
        await _make_limit(client)
        automations = [_crash_without_heartbeat(), *(notifications(block) if block else [])]
        for automation in automations:
            await _replace(client, automation)
    lines = [
        f"work pools: {', '.join(POOLS)}",
        "limit: one training at a time",
        *(f"automation: {a.name}" for a in automations),
    ]
    if not block:
        lines.append("no notifications: pass --notify TYPE/NAME, or set KEXUE_WEBHOOK_URL in the environment")
    return lines


def notifications(block: UUID) -> list[AutomationCore]:
    """Return the automations that send notifications through ``block``."""
    failed = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"}
    return [
        _notification(
            block,
            "kexue: a flow run failed",
            EventTrigger(
                expect=failed,
                match_related={"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)},
                posture=Posture.Reactive,
                threshold=1,
                within=timedelta(0),
            ),
            f"{_RUN}: {{{{ flow_run.state.name }}}}",
            "{{ flow_run.state.message }}\nRun it again with the same parameters to resume.",
        ),
        _notification(
            block,
            "kexue: a loss is NaN or infinite",
            _on("kexue.loss.nonfinite"),
            "{{ event.resource.name }}: the loss of step {{ event.payload.step }} is NaN or infinite",
            "{{ event.payload.detail }}\n{{ event.payload.run_dir }}",
        ),
        _notification(
            block,
            "kexue: an evaluation is finished",
            _on("kexue.evaluation.finished"),
            "{{ event.resource.name }} is evaluated",
            "{{ event.payload.summary }}\n{{ event.payload.model }}",
        ),
    ]


def _on(event: str) -> EventTrigger:
    return EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1, within=timedelta(0))


def _notification(block: UUID, name: str, trigger: EventTrigger, subject: str, body: str) -> AutomationCore:
    return AutomationCore(
        name=name,
        description="made by flows.set_up",
        trigger=trigger,
        actions=[SendNotification(block_document_id=block, subject=subject, body=body)],
    )


def _crash_without_heartbeat() -> AutomationCore:
    """Mark a flow run as crashed if it sends no heartbeat; else it would stay "Running" after its process is killed."""
    return AutomationCore(
        name="kexue: a flow run without heartbeat is crashed",
        description="made by flows.set_up; needs PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 in the environment of the worker",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", "prefect.flow-run.Completed", "prefect.flow-run.Failed",
                    "prefect.flow-run.Cancelled", "prefect.flow-run.Crashed"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=100),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat for 100 s: its process is gone. "
                                    "Run it again with the same parameters to resume.")],
    )  # fmt: skip


async def _make_pool(client: PrefectClient, kind: str) -> None:
    try:
        await client.read_work_pool(kind)
    except ObjectNotFound:
        template = await get_default_base_job_template_for_infrastructure_type(kind)
        await client.create_work_pool(WorkPoolCreate(name=kind, type=kind, base_job_template=template or {}))


async def _make_limit(client: PrefectClient) -> None:
    with contextlib.suppress(ObjectAlreadyExists):
        await client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=f"tag:{TRAINING_TAG}", limit=1))


async def _replace(client: PrefectClient, automation: AutomationCore) -> None:
    for name in (automation.name, _FORMER_NAMES.get(automation.name, automation.name)):
        for found in await client.read_automations_by_name(name):
            await client.delete_automation(found.id)
    await client.create_automation(automation)


async def _find_block(notify: str | None, webhook: str | None) -> UUID | None:
    if notify:
        try:
            block: Any = await Block.aload(notify)
        except ValueError as error:
            raise ConfigError(f"--notify {notify}: {error}; create it on Prefect's page under Blocks") from None
        return UUID(str(block._block_document_id))
    if webhook:
        text = "{{subject}}\n{{body}}"
        made = CustomWebhookNotificationBlock(name=_BLOCK, url=webhook, json_data={"text": text})
        return UUID(str(await made.asave(_BLOCK, overwrite=True)))
    return None


if __name__ == "__main__":
    sys.exit(main())
