"""Sections on everything around training: preparation, loader, evaluation, generation, memory of a
step, and predictions for GPUs."""

from statistics import median

from outpace.config.load import load
from outpace.core.units import gib
from outpace.tools.expect import expect_elsewhere
from rendering import Result, origin, section, spread, table


def prepare(r: Result) -> str:
    """Preparation against nanoGPT's script."""
    rows, same = [], True
    for race in r["races"].values():
        same &= race["export"]["byte_identical_to_nanogpt"]
        for name, runs in race["runs"].items():
            by_round = ", ".join(f"{times:.1f}" for times in race["times_nanogpt_by_round"][name])
            rows.append(
                (
                    f"{race['text_bytes'] / 1e6:,.0f} MB",
                    name,
                    f"{median(x['seconds'] for x in runs):,.1f}",
                    f"{median(x['megabytes_a_second'] for x in runs):,.1f}",
                    f"{max(x['peak_bytes'] for x in runs) / 1e6:,.0f} MB",
                    f"{max(x['peak_disk_bytes'] for x in runs) / 1e6:,.0f} MB",
                    f"{race['times_nanogpt'][name]:.1f} times"
                    + (f" ({by_round})" if name != "nanogpt" else ""),
                    f"{race['times_nanogpt_at_first'][name]:.1f} times",
                )
            )
    head = (
        *("text", "", "seconds", "MB/s", "peak memory", "temporary disk"),
        *("faster than nanoGPT (each round)", "in the first of two runs"),
    )
    identical = (
        "Both files of `outpace data export --to nanogpt` are byte-identical to nanoGPT's."
        if same
        else "**The files are NOT byte-identical.**"
    )
    return section(
        "Preparing text, against nanoGPT's prepare.py",
        "The same documents, in turns on two cores, from Parquet files to tokens on disk, "
        f"each twice in a row; the second run counts. {identical}",
        table(head, rows),
        origin(r),
    )


def loader(r: Result) -> str:
    """Speed of the loader."""
    s = r["settings"]
    rows = [
        (
            name,
            spread(row["core_ms"], ".3f"),
            f"{row['million_tokens_per_core_second']:,.0f}",
            f"{row['times_nanogpt']['median']:.1f}" if "times_nanogpt" in row else "",
        )
        for name, row in r["rows"].items()
    ]
    head = (
        "",
        "CPU time per batch, ms (p20, p80)",
        "million tokens per core second",
        "times nanoGPT",
    )
    return section(
        "Loading batches",
        f"{s['micro_batch_size']} rows of {s['context']:,} tokens from {s['tokens'] / 1e6:,.0f}"
        "M tokens in the page cache, by CPU time, in turns with nanoGPT's `get_batch`.",
        table(head, rows),
        origin(r, f", {r['threads']} thread"),
    )


def evaluate(r: Result) -> str:
    """HellaSwag against build-nanogpt and lm-eval."""
    rows = []
    for name, row in r["results"].items():
        against = r["against"].get(name)
        rows.append(
            (
                name,
                row["protocol"],
                f"{row['seconds']:,.1f}",
                f"{row['cpu_seconds']:,.1f}",
                f"{row['questions_per_second']:,.2f}",
                f"{against['times_faster']:.2f}" if against else "",
                f"{against['questions_that_differ']}" if against else "",
            )
        )
    head = ("", "protocol", "seconds", "CPU seconds", "questions/s", "speed-up", "answers differ")
    read = "; ".join(
        f"{protocol} {found['forward_tokens']:,} (four rows per question would be "
        f"{found['forward_tokens_of_four_rows_each']:,})"
        for protocol, found in r["whole_split"].items()
    )
    return section(
        "HellaSwag, against build-nanogpt's script and lm-eval",
        f"{r['questions']} questions in {r['turns']} turns, {r['model']}, "
        f"{r['parameters'] / 1e6:.0f}M parameters, fp32, {r['threads']} threads. "
        f"Tokens read for the whole split of 10,042: {read}.",
        table(head, rows),
        origin(r),
    )


def generation(r: Result) -> str:
    """Greedy generation against transformers."""
    rows = []
    for batch, found in r["batches"].items():
        for name, ms in found["ms_per_step"].items():
            rows.append(
                (
                    batch,
                    name,
                    spread(ms),
                    f"{found['tokens_per_s'][name]:,.1f}",
                    f"{found['times_transformers'][name]:.2f}",
                    f"{found['tokens_equal_transformers'][name]:.0%}",
                )
            )
    head = ("batch", "", "ms per step (p20, p80)", "tokens/s", "times transformers", "equal tokens")
    return section(
        "Generating text, against transformers' generate",
        f"{r['model']}, prompts of {r['settings']['prompt_tokens']} tokens and "
        f"{r['settings']['new_tokens']} new ones, greedy, in turns. A step of batch 1 reads "
        f"{r['weights_read_a_step_bytes'] / 1e6:,.0f} MB of weights, which takes "
        f"{r['bound_of_fp32_ms']:,.0f} ms here at the speed of a sum over memory. fp32 unless "
        "stated otherwise; bfloat16 and int8 are opt-in approximations, and the ratios are "
        "against transformers in fp32.",
        table(head, rows),
        origin(r, f", {r['threads']} threads"),
    )


def step_memory(r: Result) -> str:
    """Peak memory of a step by the formula, counted, and measured on a GPU."""
    measured = any(row["measured_bytes"] for row in r["steps"])
    head = ["setting", "formula", "counted", "formula/counted", "peak in"]
    head += ["measured"] if measured else []
    rows = []
    for row in r["steps"]:
        formula, counted, got = (row[f"{k}_bytes"] for k in ("formula", "counted", "measured"))
        cells = [
            row["name"],
            gib(formula),
            gib(counted) if counted else "",
            f"{formula / counted:.4f}" if counted else "",
            row["peak_at"],
        ]
        rows.append([*cells, gib(got) if got else ""] if measured else cells)
    return section(
        f"Peak memory of a training step{'' if measured else ', without a GPU'}",
        f"GPT-2 124M, micro-batches of {r['micro_batch_size']} x {r['model']['context']:,} "
        "tokens, as on CUDA: by the planner's formula, and counted by PyTorch's MemTracker "
        "over the real `train_step` under fake tensors.",
        table(head, rows),
        origin(r),
    )


MACHINES = ("h100", "h100x8", "h200", "a100-80", "a100-40", "rtx4090", "l4", "t4")


def predictions() -> str:
    """Predictions of `outpace plan` for GPUs, if none was measured."""
    rows = []
    for name in MACHINES:
        config, set_by = load(["--recipe", "gpt2_124M"])
        found = expect_elsewhere(config, set_by, name, 0.0).record()
        plan, p = found["plan"], found["predicted"]
        hours = plan["max_tokens"] / p["tokens_per_second"] / 3600
        rows.append(
            (
                name,
                f"{p['tokens_per_second']:,.0f}",
                f"{p['mfu']:.0%}",
                f"{plan['micro_batch_size']} x {plan['gradient_accumulation_steps']}",
                f"{plan['predicted_memory_bytes'] / 2**30:.0f} GiB",
                f"{hours:,.1f}",
            )
        )
    head = ("machine", "tokens/s", "MFU", "micro-batch x steps", "memory", "hours for 10B tokens")
    return section(
        "Predictions for GPUs, not measurements",
        "None of our code has been timed on a GPU yet. These are the predictions of `outpace "
        "plan --machine` for the main recipe: a serial roofline whose rates are shares of the "
        "data sheet's, fitted to published PyTorch training speeds of the architecture "
        "(Hopper, A100, RTX 4090) or, for the L4 and T4, assumed.",
        table(head, rows),
        "`outpace plan --machine h100 --recipe gpt2_124M`; `make gpu-check` measures.",
    )
