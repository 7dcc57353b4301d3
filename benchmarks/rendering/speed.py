"""Sections on speed: the ladder, the peers, kernels against the roofline, a step's profile."""

import math
from statistics import median

import matplotlib.pyplot as plt

from outpace.bench.kernels import linear_maps
from outpace.config.presets import GPT2Shape
from outpace.core.units import gib
from rendering import (
    GREY,
    OURS,
    THEIRS,
    Result,
    machine_of,
    origin,
    save,
    section,
    spread,
    table,
)


def ladder(r: Result) -> str:
    """The rungs as a waterfall, the two main numbers, and the worth of each rung at the top."""
    rows = [row for row in r["rungs"] if "tokens_per_second" in row]
    # Without the lowest rung (it failed, or time ran out) there are no ratios.
    first = r["rungs"][0].get("tokens_per_second")
    name = f"{r['name']}.svg"
    if first:
        _waterfall(rows, first, name)
    numbers = []
    for key, words in (
        ("equal_tokens", "at equal tokens per step"),
        ("best_micro_batch", "each side at its best micro-batch"),
    ):
        if n := r["numbers"][key]:
            numbers.append(
                f"**{n['ratio']:.2f} times the lowest rung {words}** "
                f"({n['tokens_per_step'][0]:,} tokens, micro-batches of "
                f"{n['micro_batch_size'][0]} and {n['micro_batch_size'][1]})"
            )
    gone = [row for row in r["rungs"] if "tokens_per_second" not in row]
    missing = r["skipped"] | {row["name"]: _why(row) for row in gone}
    left_out = "; ".join(f"`{k}`: {v}" for k, v in missing.items())
    without = [row for row in r["leave_one_out"] if "tokens_per_second" in row]
    top = _top(r)
    worth = [
        (
            f"`{row['name'].removeprefix('without ')}`",
            f"{row['tokens_per_second']:,.0f}",
            f"{top / row['tokens_per_second']:.2f} times",
        )
        for row in without
    ]
    return section(
        f"The ladder on {_a_device(r)}",
        f"{'; '.join(numbers) or 'Neither number was measured'}.",
        f"{_model(r)}. Each rung adds a few flags to the rungs above it and runs in its own "
        f"process; {_windows(rows)}. Drift is the loss after {r['drift_steps']} steps on the "
        "same batches, minus that of the first rung.",
        table(
            ("rung", "what", "tokens/s", "times", "step, ms (p20, p80)", "memory", "drift"),
            [
                (
                    f"`{row['name']}`",
                    row["sentence"],
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['tokens_per_second'] / first:.2f}" if first else "",
                    spread(row["step_ms"]),
                    gib(row["peak_memory_bytes"]),
                    "" if row.get("drift") is None else f"{row['drift']:+.1e}",
                )
                for row in rows
            ],
        ),
        f"![the ladder](img/{name})" if first else "",
        f"Left out here: {left_out}." if missing else "",
        "The top of the ladder without one rung:" if worth else "",
        table(("all but", "tokens/s", "speed-up by that rung"), worth) if worth else "",
        origin(r, f", {r['threads']} threads"),
    )


def _why(row: Result) -> str:
    """The reason why a rung was not timed."""
    return str(row.get("skipped") or row.get("failed") or "no time was left")


def _windows(rows: list[Result]) -> str:
    """Number and length of the rungs' windows, in words: as measured, since they shrink if time is
    short."""
    seconds = [median(row["windows_ms"]) * row["steps_in_a_window"] / 1e3 for row in rows]
    numbers = sorted({len(row["windows_ms"]) for row in rows})
    if not rows:
        return "none was measured"
    many = " or ".join(map(str, numbers))
    return f"{many} windows of {min(seconds):.1f} to {max(seconds):.1f} s each"


def _top(r: Result) -> float:
    """Tokens per second with all carried rungs, which are those left out once each; NaN if that was
    not measured."""
    carried = set().union(*(row["rungs"] for row in r["leave_one_out"]))
    top = [row for row in r["rungs"] if set(row["rungs"]) == carried]
    return float(top[0].get("tokens_per_second", "nan")) if top else float("nan")


def _waterfall(rows: list[Result], first: float, name: str) -> None:
    figure, axis = plt.subplots(figsize=(7, 0.42 * len(rows) + 1))
    best = 0.0
    for i, row in enumerate(rows):
        times = row["tokens_per_second"] / first
        start = min(best, times) if i else 0.0
        color = OURS if times >= best else THEIRS
        axis.barh(i, best, color="#e9e5dc", height=0.62)
        axis.barh(i, abs(times - best), left=start, color=color, height=0.62)
        axis.text(max(times, best) + 0.02, i, f"{times:.2f}", va="center", fontsize=8)
        best = max(best, times)
    axis.set_yticks(range(len(rows)), [row["name"].replace("_", " ") for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="times the tokens per second of the lowest rung")
    save(figure, name)


def race(r: Result) -> str:
    """outpace and its peers in turns."""
    head = ("", "setting", "tokens/s", "step, ms (p20, p80)", "MFU", "memory", "our speed-up")
    blocks = []
    for run in r["runs"]:
        if run["threads"]:
            blocks.append(f"On {run['threads']} thread{'s' if run['threads'] > 1 else ''}:")
        rows = [
            (
                name,
                row["setting"],
                f"{row['tokens_per_second']:,.0f}",
                spread(row["step_ms"]),
                f"{row['mfu']:.1%}" if row["mfu"] else "",
                gib(row["peak_memory_bytes"]),
                _times(row["ours_over_theirs"]) if "ours_over_theirs" in row else "",
            )
            for name, row in run["rows"].items()
        ]
        blocks.append(table(head, rows))
        blocks += [f"{name} failed: {why}" for name, why in run["failed"].items()]
        blocks += [f"{name} was left out: no time was left." for name in run["no_time"]]
    blocks += [f"{name} was left out: {why}." for name, why in r["skipped"].items()]
    known = [f"{n} {c[:10]}" for n, c in r["commits"].items() if c]
    loop = ""
    if version := r["versions"].get("transformers"):
        known.append(f"transformers {version}")
        loop = "; transformers, which has no script for it, in a plain loop of ours"
    return section(
        f"outpace against its peers in turns, {r['parameters'] / 1e6:.0f}M parameters, on "
        f"{_a_device(r)}",
        f"{_model(r)}, {r['tokens_per_step']:,} tokens per step, the same tokens for all. Each "
        f"trains with its own, unchanged code{loop}. They take turns, one at a time; the speed-up "
        "is the median over rounds of the ratio of neighbouring windows.",
        *blocks,
        origin(r, f"; {', '.join(known)}"),
    )


def _times(ratio: Result) -> str:
    """A ratio, with its spread over the rounds if there were several."""
    return spread(ratio, ".2f") if ratio["n"] > 1 else f"{ratio['median']:.2f}"


def kernels(r: Result) -> str:
    """Products and copies as a roofline; attention, loss and AdamW as a table."""
    device = machine_of(r)
    name = f"roofline-{device}.svg"
    plot = _roofline(r, name)
    rows = []
    for part in ("gemm", "copy", "attention", "cross_entropy", "adamw"):
        for row in r.get(part, ()):
            if "ms" not in row:
                continue
            rate = ""
            if "flops_per_s" in row:
                rate = f"{row['flops_per_s'] / 1e12:,.3g} TFLOP/s"
            elif "bytes_per_s" in row:
                rate = f"{row['bytes_per_s'] / 1e9:,.3g} GB/s"
            rows.append((part.replace("_", "-"), row["name"], spread(row["ms"], ",.2f"), rate))
    return section(
        f"Sustained speed of kernels on {_a_device(r)}",
        f"GPT-2's own shapes at {r['tokens']:,} tokens, precision {r['precision']}, each in a "
        f"loop of {r['seconds']:g} s.",
        f"![roofline](img/{name})" if plot else "",
        table(("", "kernel", "ms (p20, p80)", "rate"), rows),
        origin(r, f", {r['threads']} threads"),
    )


def _roofline(r: Result, name: str) -> bool:
    """Plot FLOP/s over FLOPs per byte: the roof from the fastest product and the copy, and the
    products on or below it. False if parts are missing, because the run was cut short."""
    products = [row for row in r.get("gemm", ()) if "flops_per_s" in row]
    copies = [row["bytes_per_s"] for row in r.get("copy", ()) if "bytes_per_s" in row]
    if not (products and copies):
        return False
    M, e = r["tokens"], 4 if r["precision"] == "no" else 2
    maps = linear_maps(GPT2Shape(**r["shape"]))
    peak, bandwidth = max(row["flops_per_s"] for row in products), copies[0]
    figure, axis = plt.subplots(figsize=(7, 3.8))
    xs = [2**k / 4 for k in range(16)]
    roof = [min(peak, x * bandwidth) / 1e12 for x in xs]
    axis.loglog(xs, roof, color=GREY, label="copy and fastest product")
    marks = {"forward": "o", "dgrad": "s", "wgrad": "^"}
    for row in products:
        inside, outside = maps[row["map"]]
        intensity = 2 * M * inside * outside / (e * (M * inside + M * outside + inside * outside))
        head = row["map"] == "head"
        axis.plot(
            intensity,
            row["flops_per_s"] / 1e12,
            marks[row["pass"]],
            color=THEIRS if head else OURS,
            markersize=5,
            label=row["pass"] if row["map"] == "qkv" else None,
        )
    lowest = min(row["flops_per_s"] for row in products) / 1e12
    axis.set_ylim(10 ** math.floor(math.log10(lowest / 4)), peak / 1e12 * 2)
    axis.set(xlabel="FLOPs per byte of operands", ylabel="TFLOP/s")
    axis.legend(frameon=False)
    save(figure, name)
    return True


def profile(r: Result) -> str:
    """Where the time of a step goes."""
    device, s = machine_of(r), r["settings"]
    name = f"profile-{device}.svg"
    parts = [p for p in r["parts"] if p["share"] >= 0.0005]
    figure, axis = plt.subplots(figsize=(7, 0.34 * len(parts) + 1))
    for i, p in enumerate(parts):
        floor = min(p["floor_ms"] or 0.0, p["ms"])
        axis.barh(i, floor, color=OURS, label="its floor" if not i else None)
        above = "above it" if not i else None
        axis.barh(i, p["ms"] - floor, left=floor, color=THEIRS, label=above)
    axis.set_yticks(range(len(parts)), [p["name"] for p in parts])
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds of one step")
    axis.legend(frameon=False)
    save(figure, name)
    return section(
        f"Where a step's time goes on {_a_device(r)}",
        f"GPT-2 of {s['n_layer']} layers, {s['n_embd']} channels, context {s['context']}; "
        f"{s['tokens_per_step']:,} tokens per step, precision {s['mixed_precision']}, "
        f"{'compiled' if s['compile'] else 'eager'}: {r['tokens_per_second']:,.0f} tokens/s. "
        f"Floors at {r['roof']['flops_per_s'] / 1e12:,.2f} TFLOP/s and "
        f"{r['roof']['bytes_per_s'] / 1e9:,.1f} GB/s, measured in the same run.",
        table(
            ("part", "ms", "share", "floor, ms", "times its floor", "the floor counts"),
            [
                (
                    p["name"],
                    f"{p['ms']:,.1f}",
                    f"{p['share']:.1%}",
                    f"{p['floor_ms']:,.1f}" if p["floor_ms"] else "",
                    f"{p['ms'] / p['floor_ms']:.1f}" if p["floor_ms"] else "",
                    p["bound"],
                )
                for p in parts
            ],
        ),
        f"![profile](img/{name})",
        origin(r),
    )


def _a_device(r: Result) -> str:
    if machine_of(r) == "cuda":
        return f"one {r['machine']['device_name']}"
    return "a CPU with AMX" if r["name"].endswith("-amx") else "a CPU"


def _model(r: Result) -> str:
    s = r["shape"]
    return (
        f"GPT-2 of {r['parameters'] / 1e6:.1f}M parameters ({s['n_layer']} layers, "
        f"{s['n_embd']} channels, context {s['context']})"
    )
