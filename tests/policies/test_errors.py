"""The table of statuses: every error has one, and no other thing has."""

from __future__ import annotations

from policies import errors
from policies.errors import STATUS, SwiftClawError


def test_every_error_has_a_status_and_a_type_of_its_own_to_be_told_by() -> None:
    defined = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, SwiftClawError)}
    assert defined == set(STATUS) | {errors.ModelRefused, errors.AgentRefused}, "whose status is another's"
    assert all(400 <= status < 600 for status in STATUS.values())
    types = [one.type for one in defined]
    assert all(types)


def test_an_error_that_is_not_in_the_table_has_the_status_of_its_nearest_base() -> None:
    class QueueFull(errors.Overloaded):
        pass

    error = QueueFull("full", agent="a", retry_after_s=2)
    assert (error.status, error.message, error.agent, error.retry_after_s) == (503, "full", "a", 2)


def test_a_refusal_of_the_model_server_keeps_its_status() -> None:
    assert [errors.ModelRefused("no", refused_with=status).status for status in (400, 429)] == [400, 429]


def test_a_refusal_of_the_agent_keeps_its_status_and_from_500_on_is_a_failure() -> None:
    refused = [errors.AgentRefused("no", refused_with=status) for status in (307, 404, 499, 500, 503)]
    assert [error.status for error in refused] == [307, 404, 499, 500, 503]
    assert [error.type for error in refused] == ["agent_refused"] * 3 + ["agent_error"] * 2


def test_a_method_that_is_not_allowed_comes_with_those_that_are() -> None:
    assert errors.MethodNotAllowed("no", allowed="GET, POST").allowed == "GET, POST"
