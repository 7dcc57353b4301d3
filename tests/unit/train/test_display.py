"""The live line keeps the step number and the time left on a narrow terminal."""

import io

import pytest
from rich.console import Console

from outpace.train import display

RECORD = {
    "step": 12_345, "loss": 3.2841, "lr": 5.9e-4, "grad_norm": 1.23, "tokens_per_second": 499_123.4,
    "mfu": 0.583, "memory_gib": 41.2,
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_step_loss_speed_and_time_left_are_whole_at_any_width(width, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(display, "err", console)
    monkeypatch.setattr(display, "LIVE", True)
    with display.Display(0, 19_073, True) as shown:
        shown.show(RECORD, eta_s=4_020.0)
    last = screen.getvalue().replace("\x1b[2K", "\n")
    assert "step 12345/19073" in last and "loss 3.2841" in last and "ETA 1h07m" in last
    assert "499,123 tok/s" in last
    assert ("grad norm" in last) == (width >= 100) and "…" not in last


def test_a_long_step_tells_how_far_it_is_and_a_short_one_does_not(monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with display.Display(0, 2, True) as shown:
        for done in range(8):
            shown.micro_step(1, 8, done)
            now += 6.0 if done else 30.0
        for done in range(8):
            shown.micro_step(2, 8, done)
            now += 1.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/2  micro-step 1/8, 30s so far"
    assert lines[1] == "step 1/2  micro-step 3/8, 42s so far  ETA 1m18s", "5 + 8 of 6 seconds"
    assert len(lines) == 4, "every ten seconds, and none of the short step"
