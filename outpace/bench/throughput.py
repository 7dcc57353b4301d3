"""outpace's speed against its peers' own code: the same model, tokens and batch on one machine, in
turns (`turns.py`). It times short windows; `compare.py` trains to the end.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from outpace.bench.peers import PEERS, Contestant, Job, digests
from outpace.bench.result import check_writable, spread, write_result
from outpace.bench.turns import Pace, Timed, fresh, log_end, resident, scratch
from outpace.core.crash import first_line
from outpace.core.errors import OutpaceError
from outpace.core.log import say, warn
from outpace.core.units import gib
from outpace.model.cost import parameters
from outpace.runtime.hardware import detect
from outpace.train.environment import commit_of


@dataclass(frozen=True)
class Race:
    """The contestants, and how long to time them."""

    job: Job
    checkouts: dict[str, Path | None]
    """Peer -> its checkout; None for an installed package."""
    pace: Pace
    threads: tuple[int, ...]
    """Thread counts, one after the other; on a GPU one entry, which is ignored."""
    minutes: float
    """Limit for the whole comparison."""


def compare_speed(race: Race, output: Path | None) -> Path:
    """Race, print, and write the result. Then raises OutpaceError PEER-FAILED if one failed."""
    check_writable(f"compare-{race.job.device}", output)
    with scratch("outpace-compare-") as work:
        return _compare(race, work, output)


def _compare(race: Race, work: Path, output: Path | None) -> Path:
    job, runs, begin = race.job, list[dict[str, Any]](), time.monotonic()
    contestants, skipped = _stage(race, work)

    def keep(runs: list[dict[str, Any]]) -> Path:
        body = {
            "shape": asdict(job.shape),
            "parameters": parameters(job.shape),
            "micro_batch_size": job.micro_batch_size,
            "gradient_accumulation_steps": job.gradient_accumulation_steps,
            "tokens_per_step": job.tokens_per_step,
            "pace": asdict(race.pace),
            "dataset": {"name": job.dataset.name, "fingerprint": job.dataset.fingerprint},
            "commits": {n: commit_of(c) for n, c in race.checkouts.items() if c is not None},
            # A copy without .git has no commit.
            "files_sha256": {n: digests(n, c) for n, c in race.checkouts.items() if c is not None},
            "skipped": skipped,
            "runs": runs,
        }
        return write_result(f"compare-{job.device}", job.device, body, output)

    for i, threads in enumerate(race.threads):
        deadline = begin + 60 * race.minutes * (i + 1) / len(race.threads)
        logs = work / f"logs-{i}"
        logs.mkdir()
        # Written after each race, so that an interrupted call keeps its results.
        if job.device == "cpu":
            timed = resident(contestants, logs, race.pace, threads, deadline)
            runs.append(_summary(job, timed, threads))
        else:
            timed = fresh(
                contestants, logs, race.pace, deadline, lambda t: keep([_summary(job, t, None)])
            )
            runs.append(_summary(job, timed, None))
        path = keep(runs)
        _tell(runs[-1])
    failed = [f"{name}: {why}" for run in runs for name, why in run["failed"].items()]
    if failed:
        raise OutpaceError(
            "PEER-FAILED",
            "; ".join(failed),
            kept=f"the results of the others, in {path}",
            do=f"read the logs in {work}",
        )
    return path


def _stage(race: Race, work: Path) -> tuple[list[Contestant], dict[str, str]]:
    """outpace and every peer that can run here; and why the others cannot."""
    contestants, skipped = [], {}
    for name, checkout in {"outpace": None, **race.checkouts}.items():
        peer = PEERS.load(name)
        if reason := peer.why_not(race.job):
            skipped[name] = reason
            warn(f"{peer.LABEL} is left out: {reason}")
            continue
        try:
            contestants += peer.contestants(checkout, race.job, work / name)
        except (OutpaceError, OSError) as error:  # the others race without it
            skipped[name] = first_line(error)
            warn(f"{peer.LABEL} is left out: {skipped[name]}")
    return contestants, skipped


def _summary(job: Job, timed: list[Timed], threads: int | None) -> dict[str, Any]:
    """The rates of all that were timed, and ours against each; the failures, with the end of each
    log."""
    peak = detect(job.device).peak_flops
    rows: dict[str, dict[str, Any]] = {}
    for t in (t for t in timed if t.windows):
        c = t.contestant
        step_ms = spread([ms for window in t.windows for ms in window])
        rate = 1e3 * c.tokens_per_step / step_ms["median"]
        rows[c.name] = {
            "setting": c.setting,
            "command": ["python" if w == sys.executable else w for w in c.command],
            "tokens_per_step": c.tokens_per_step,
            "step_ms": step_ms,
            "tokens_per_second": rate,
            "flops_per_token": c.flops_per_token,
            "mfu": rate * c.flops_per_token / peak if peak else None,
            "peak_memory_bytes": t.peak_bytes,
            "gpu": t.gpu,
            "windows_ms": t.windows,
        }
    for name, row in rows.items():
        if name != "outpace" and "outpace" in rows:
            row["ours_over_theirs"] = _ratio(rows["outpace"], row)
    failed = {t.contestant.name: t.failure for t in timed if t.failure}
    return {
        "threads": threads,
        "rows": rows,
        "failed": failed,
        "logs": {t.contestant.name: log_end(t.log) for t in timed if t.failure or not t.windows},
        "no_time": [t.contestant.name for t in timed if not t.windows and not t.failure],
    }


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Our tokens per second over theirs, round by round, so that a slow minute affects both."""
    scale = ours["tokens_per_step"] / theirs["tokens_per_step"]
    pairs = zip(ours["windows_ms"], theirs["windows_ms"], strict=False)
    return spread([scale * median(b) / median(a) for a, b in pairs])


def _tell(run: dict[str, Any]) -> None:
    if threads := run["threads"]:
        say(f"{threads} thread{'s' if threads > 1 else ''}:")
    for name, row in run["rows"].items():
        _tell_row(name, row)
    for name, why in run["failed"].items():
        warn(f"{name} failed: {why}")
    for name in run["no_time"]:
        warn(f"{name} is left out: no time left (--minutes)")


def _tell_row(name: str, row: dict[str, Any]) -> None:
    ms = row["step_ms"]
    mfu = f"MFU {row['mfu']:.1%}" if row["mfu"] else "MFU n/a"
    ratio = row.get("ours_over_theirs")
    say(
        f"  {name:<14}{row['tokens_per_second']:>12,.0f} tokens/s  step {ms['median']:,.0f} ms "
        f"({ms['p20']:,.0f} to {ms['p80']:,.0f}, n={ms['n']})  {mfu}  "
        f"{gib(row['peak_memory_bytes'])}"
        + (f"  outpace is {ratio['median']:.2f} times as fast" if ratio else "")
        + f"  [{row['setting']}]"
    )
