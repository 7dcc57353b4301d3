"""Sections on training against nanoGPT, on optimisers and on the memory of attention."""

import matplotlib.pyplot as plt

from outpace.bench.optimizers import best_of, in_words
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


def compare(r: Result) -> str:
    """Both trained to the end, side by side."""
    s, rows = r["settings"], r["results"]
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for name, label, color in (("nanogpt", "nanoGPT", THEIRS), ("outpace", "outpace", OURS)):
        steps, losses = zip(*rows[name]["training_loss"], strict=True)
        minutes = [i * rows[name]["step_ms"]["median"] / 60e3 for i in steps]
        axis.plot(minutes, losses, label=label, color=color, linewidth=1.2)
    axis.axhline(
        r["dataset"]["unigram_entropy"], color="grey", linestyle=":", label="unigram entropy"
    )
    axis.set(xlabel="minutes of training", ylabel="training loss, nats per token")
    axis.legend(frameon=False)
    save(figure, "compare-nanogpt-cpu.svg")
    head = ("", "tokens/s", "step, ms (p20, p80)", "minutes for the run", "validation loss",
            "bits per byte")  # fmt: skip
    cells = []
    for name, label in (("outpace", "outpace"), ("nanogpt", "nanoGPT")):
        row = rows[name]
        cells.append(
            (
                label,
                f"{row['tokens_per_second']:,.0f}",
                spread(row["step_ms"]),
                f"{row['training_minutes']:.1f}",
                f"{row['validation']['loss']:.4f}",
                f"{row['validation']['bits_per_byte']:.4f}",
            )
        )
    return section(
        "outpace against nanoGPT's own train.py, on a CPU",
        f"**{r['ratio_tokens_per_second']:.2f} times the tokens per second; validation losses "
        f"differ by {r['validation_loss_difference']:+.4f} nats.**",
        f"The same {r['parameters'] / 1e6:.1f}M-parameter GPT-2 ({s['n_layer']} layers, "
        f"{s['n_embd']} channels, context {s['context']}), {r['tokens'] / 1e6:.2f}M tokens of "
        f"the same English novels, {s['max_steps']:,} steps of "
        f"{s['micro_batch_size'] * s['context']:,} tokens, AdamW {s['lr']:g}, cosine. nanoGPT "
        f"(commit {(r['nanogpt_commit'] or '')[:10]}) at its best CPU flags: compiled, fp32, "
        "because its autocast is for GPUs only. outpace: compiled, bf16. Side by side, each on "
        f"half of the cores, the halves swapped every {s['swap_s']:.0f} s. Both final models "
        "are scored by outpace's evaluation in fp32 on the same "
        f"{rows['outpace']['validation']['tokens_scored']:,} validation tokens. The two draw "
        "their windows in different orders (nanoGPT at random with replacement), so losses "
        "agree only within the noise of the order.",
        table(head, cells),
        "![training loss over time](img/compare-nanogpt-cpu.svg)",
        origin(r, f", {r['threads']} thread(s) each"),
    )


def optimizers(r: Result) -> str:
    """The loss that each optimiser reaches, at each learning rate."""
    plan, plot = r["settings"], f"optimizers-{machine_of(r)}.svg"
    first = r["rows"][0]["optimizer"]
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for name, color in zip(r["best"], (THEIRS, OURS, GREY), strict=False):
        best = best_of(r["rows"], name)
        assert best is not None
        tokens, losses = zip(*best["curve"], strict=True)
        label = f"{name} at {best['lr']:g}"
        axis.plot([t / 1e6 for t in tokens], losses, marker=".", color=color, label=label)
        if name == first:
            axis.axhline(losses[-1], color=color, linestyle=":", linewidth=1)
    axis.set(xlabel="million tokens of training", ylabel="validation loss, nats per token")
    axis.legend(frameon=False)
    save(figure, plot)
    rows = [
        (
            f"`{row['optimizer']}`",
            f"{row['lr']:g}",
            f"{row['loss']:.4f}" if "loss" in row else f"ended with {row['exit_code']}",
            f"{row['tokens_per_second']['median']:,.0f}" if "loss" in row else "",
            "best" if r["best"].get(row["optimizer"]) == row["lr"] else "",
        )
        for row in sorted(r["rows"], key=lambda row: (row["optimizer"] != first, row["lr"]))
    ]
    said = "; ".join(f"{name} {in_words(less, first)}" for name, less in r["sooner"].items())
    return section(
        f"Optimisers compared{', on a CPU' if machine_of(r) == 'cpu' else ''}",
        f"**{said}.**",
        f"GPT-2 of {plan['parameters'] / 1e6:.1f}M parameters ({plan['n_layer']} layers, "
        f"{plan['n_embd']} channels, context {plan['context']}), {plan['max_steps']:,} steps "
        f"of {plan['tokens_per_step']:,} tokens, {plan['schedule']}; each run from the same "
        "weights over the same batches. Where the losses cross, the learning rate is still "
        "high: a run scheduled to end there would reach a lower loss.",
        table(("optimiser", "learning rate", "validation loss", "tokens/s", ""), rows),
        f"![validation loss over tokens](img/{plot})",
        origin(r),
    )


def attention_memory(r: Result) -> str:
    """Peak memory of attention by sequence length."""
    plot = f"attention-memory-{machine_of(r)}.svg"
    figure, axis = plt.subplots(figsize=(7, 3.6))
    colors = dict(zip(r["results"], (OURS, THEIRS), strict=False))
    for name, points in r["results"].items():
        xs = [p["tokens"] for p in points]
        ys = [p["bytes"] / 2**20 for p in points]
        label = f"{name}, exponent {r['exponents'][name]:.2f}"
        axis.loglog(xs, ys, marker="o", color=colors.get(name), label=label)
    axis.set(xlabel="sequence length T, tokens", ylabel="peak memory, MiB")
    axis.set_xticks(xs, [f"{x:,}" for x in xs])
    axis.minorticks_off()
    axis.legend(frameon=False)
    save(figure, plot)
    names = list(r["results"])
    rows = [
        (
            f"{point['tokens']:,}",
            *(f"{r['results'][n][i]['bytes'] / 2**20:,.1f} MiB" for n in names),
        )
        for i, point in enumerate(r["results"][names[0]])
    ]
    kernels = ", ".join(f"{n}: {points[0]['kernel']}" for n, points in r["results"].items())
    return section(
        "Memory of attention by sequence length",
        f"Peak memory added by forward and backward, {r['heads']} heads of {r['head_dim']}, "
        f"batch {r['batch']}, {r['dtype']}, a fresh process per point. Kernels: {kernels}. The "
        "exponent is the slope of log memory over log T: 1 is linear, 2 is quadratic.",
        table(("T", *names), rows),
        f"![memory over length](img/{plot})",
        origin(r),
    )
