"""Commands, their exit status and their effect."""

from __future__ import annotations

from tests.campaign.checker_cases.registry import AT, breaks, keeps
from tests.campaign.made_up import (
    END,
    FAULTS_OVER,
    add_command,
    add_execution,
    add_fault,
    add_instance,
    add_request,
    kill_instance,
)
from tests.campaign.record import Record

SCALE = ("scale", "chaos", "--region", "us-east-1", "--instances")
REJECTED = "the Controller rejected the request: nothing was changed"


@breaks("exit")
def a_command_that_crashed(record: Record) -> None:
    add_command(record, "rotate_key", AT, "rotate-key", status=1, output="Traceback (most recent call last):\nKeyError: 'x'")


@breaks("exit")
def a_command_that_did_not_end(record: Record) -> None:
    add_command(record, "retune", AT, "up", status=124, output="took more than 75 s")


@keeps("exit")
def a_command_that_was_refused(record: Record) -> None:
    add_command(record, "rotate_key", AT, "rotate-key", status=1, output=REJECTED)


@keeps("exit")
def a_command_that_ended_with_the_faults(record: Record) -> None:
    add_command(record, "retune", FAULTS_OVER - 2, "up", status=-15, output="")


@breaks("effect")
def a_scale_without_effect(record: Record) -> None:
    add_command(record, "scale", AT, *SCALE, "3")


@breaks("effect")
def a_rollback_without_effect(record: Record) -> None:
    _canary(record, AT - 10, END)
    add_command(record, "rollout", AT, "rollback", "chaos", what="rollback", detail={"canary": "v2"})


@breaks("effect")
def a_promotion_without_effect(record: Record) -> None:
    _canary(record, AT - 10, END)
    add_command(record, "rollout", AT, "promote", "chaos", "--canary", "100", what="promote all", detail={"canary": "v2"})


@keeps("effect")
def a_rollback_with_effect(record: Record) -> None:
    _canary(record, AT - 10, AT + 2)
    add_command(record, "rollout", AT, "rollback", "chaos", what="rollback", detail={"canary": "v2"})


def _canary(record: Record, start: float, end: float) -> None:
    for sample in record.samples:
        if sample.whole and start <= sample.at <= end:
            sample.rollout = {"stable": "v1", "canary": "v2", "percent": 20.0}


@keeps("effect")
def a_scale_with_effect(record: Record) -> None:
    add_command(record, "scale", AT, *SCALE, "3")
    add_instance(record, 107, AT + 8)


@breaks("no-effect")
def a_refused_scale_that_is_in_force(record: Record) -> None:
    add_command(record, "scale", AT, *SCALE, "3", status=1, output=REJECTED)
    add_instance(record, 107, AT + 8)


@breaks("no-effect")
def a_refused_deploy_whose_code_runs(record: Record) -> None:
    words = ("deploy", "chaos", "--canary", "20")
    add_command(record, "rollout", AT, *words, status=1, output=REJECTED, what="deploy canary", code="code2")
    request = add_request(record, "plain", AT + 9, code="code2")
    record.executions.pop()
    add_execution(record, request, 101, code="code2")


@keeps("no-effect")
def a_refused_scale_without_effect(record: Record) -> None:
    add_command(record, "scale", AT, *SCALE, "3", status=1, output=REJECTED)


@breaks("drill")
def a_drill_that_failed(record: Record) -> None:
    detail = {"verdict": "FAILED: 1 of 300 requests lost"}
    add_fault(record, "failover", AT, 20.0, instance="instance-1", what="drain", detail=detail)


@keeps("drill")
def a_drill_that_failed_under_another_fault(record: Record) -> None:
    a_drill_that_failed(record)
    kill_instance(record, 102, AT + 3)
