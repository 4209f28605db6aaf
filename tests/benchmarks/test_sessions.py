"""What sessions cost is measured on gateways that really exchange them."""

from __future__ import annotations

from sessions import measure, render


def test_every_figure_is_measured_and_shown() -> None:
    figures = measure(2_000)
    assert 100 < figures["exchange_bytes_per_session"] < 400
    assert 2_000 * 100 < figures["start_bytes"] < 2_000 * 400
    assert figures["start_messages"] >= 1 and figures["exchange_messages"] >= 1
    machine = {"cpu": "a CPU", "python": "CPython 3", "load_before": 0.1}
    page = render({"made": "today", "machine": machine, "sessions": 2_000, "instances": 7, "figures": figures})
    assert f"| sent to each other gateway as they begin | {figures['exchange_bytes_per_session']} bytes | 0.2 MiB |" in page
    assert f"has all of them in {figures['start_seconds']:g} s" in page
