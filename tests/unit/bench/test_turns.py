"""Contestants in turns, as processes that print nanoGPT's lines: none disturbs the others."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from outpace.bench import turns
from outpace.bench.peers import Contestant, nanogpt

SCRIPT = """
import sys, time
name, step_s, last = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
begin = time.perf_counter()
for i in range(last):
    time.sleep(step_s)
    end = time.perf_counter()
    print(f"iter {i}: loss 1.0, time {1e3 * (end - begin):.2f}ms, mfu 0.00%", flush=True)
    begin = end
print("it was too much for", name, file=sys.stderr)
sys.exit(3)
"""
PACE = turns.Pace(window_s=0.4, rounds=3, warmup_steps=2, start_s=60.0)


def runner(name: str, step_s: float, tmp_path: Path, last: int = 10**6) -> Contestant:
    return Contestant(
        name=name,
        setting="a test",
        command=[sys.executable, "-u", "-c", SCRIPT, name, str(step_s), str(last)],
        step_ms=lambda text: [ms for _, _, ms in nanogpt.log_lines(text)],
        tokens_per_step=100,
        flops_per_token=1.0,
        scratch=tmp_path / name,
    )


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children()}


def test_one_runs_at_a_time_and_no_step_holds_the_time_of_a_stop(tmp_path):
    before = children()
    pair = [runner("a", 0.02, tmp_path), runner("b", 0.02, tmp_path)]
    timed = turns.resident(pair, tmp_path, PACE, 1, time.monotonic() + 60)
    assert children() == before
    for t in timed:
        assert t.failure is None and t.peak_bytes > 2**20
        assert len(t.windows) == 3 and all(len(w) >= turns.LEAST_STEPS for w in t.windows)
        # While the other ran for a whole window this one stood still, and it knows of it.
        everything = t.contestant.step_ms(t.log.read_text())
        assert sum(ms > 390 for ms in everything) >= 2
        assert all(ms < 390 for w in t.windows for ms in w)


def test_one_that_fails_is_told_with_its_last_line_and_the_other_goes_on(tmp_path):
    pair = [runner("a", 0.01, tmp_path), runner("weak", 0.01, tmp_path, last=1)]
    good, bad = turns.resident(pair, tmp_path, PACE, 1, time.monotonic() + 60)
    assert bad.failure == "it ended with 3: it was too much for weak"
    assert bad.windows == [] and len(good.windows) == 3


def test_windows_shrink_to_keep_the_deadline(tmp_path):
    pace = turns.Pace(window_s=3600.0, rounds=2, warmup_steps=1, start_s=60.0)
    (t,) = turns.resident([runner("a", 0.01, tmp_path)], tmp_path, pace, 1, time.monotonic())
    assert len(t.windows) == 2


def test_fresh_processes_find_no_scratch_and_none_begins_after_the_deadline(tmp_path):
    (tmp_path / "a").mkdir()
    before = children()
    (t,) = turns.fresh([runner("a", 0.01, tmp_path)], tmp_path, PACE, time.monotonic() + 60, len)
    assert len(t.windows) == 3 and not (tmp_path / "a").exists()
    assert children() == before
    (late,) = turns.fresh([runner("b", 0.01, tmp_path)], tmp_path, PACE, time.monotonic() - 1, len)
    assert late.windows == [] and late.failure is None


def test_one_that_compiles_for_long_does_not_take_the_time_of_those_behind_it(tmp_path):
    """It is left, and has not failed."""
    before, begin = children(), time.monotonic()
    who = [runner(name, s, tmp_path) for name, s in (("slow", 600), ("a", 0.02), ("b", 0.02))]
    pace = turns.Pace(window_s=0.2, rounds=1, warmup_steps=1, start_s=240.0)
    timed = turns.fresh(who, tmp_path, pace, begin + 12, len)
    assert [bool(t.windows) for t in timed] == [False, True, True]
    assert all(t.failure is None for t in timed)
    assert time.monotonic() - begin < 16 and children() == before


def test_a_contestant_too_slow_to_get_warm_has_failed(tmp_path):
    pace = turns.Pace(window_s=0.1, rounds=1, warmup_steps=2, start_s=0.5)
    (t,) = turns.fresh([runner("a", 60.0, tmp_path)], tmp_path, pace, time.monotonic() + 60, len)
    assert t.failure == "it was too slow: it printed nothing"


def test_one_that_is_too_slow_is_stopped_while_the_others_are_timed(tmp_path):
    slow, fast = runner("slow", 600, tmp_path), runner("fast", 0.01, tmp_path)
    before, states = children(), []

    def looking(text: str) -> list[float]:
        for pid in children() - before:
            process = psutil.Process(pid)
            if "slow" in process.cmdline():
                states.append(process.status())
        return fast.step_ms(text)

    pace = turns.Pace(window_s=0.2, rounds=2, warmup_steps=1, start_s=3.0)
    who = [slow, replace(fast, step_ms=looking)]
    failed, other = turns.resident(who, tmp_path, pace, 1, time.monotonic() + 60)
    assert failed.failure and "too slow" in failed.failure and not failed.windows
    assert other.failure is None and len(other.windows) == 2
    assert states[-1] == psutil.STATUS_STOPPED


def test_the_error_of_a_process_is_told_not_a_library_s_last_words(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "Traceback\n  File\ntorch.OutOfMemoryError: 2 GiB\n[W ProcessGroup] not destroyed\n"
    )
    assert turns.last_line(log) == "torch.OutOfMemoryError: 2 GiB"
    log.write_text("step 1\nstep 2\n\n")
    assert turns.last_line(log) == "step 2"


def test_a_temporary_folder_is_gone_after_an_interrupt_and_kept_for_its_logs(tmp_path):
    seen = []
    for error, kept in ((None, False), (KeyboardInterrupt(), False), (OSError(), True)):
        try:
            with turns.scratch("outpace-test-") as folder:
                seen.append(folder)
                (folder / "log").write_text("")
                if error is not None:
                    raise error
        except (KeyboardInterrupt, OSError):
            pass
        assert seen[-1].exists() == kept
    (seen[-1] / "log").unlink()
    seen[-1].rmdir()
