"""Sections on everything around training: preparation, loader, evaluation, generation, memory of a
step, and predictions for GPUs."""

from statistics import median

from outpace.config.load import load
from outpace.train.expect import expect_elsewhere
from rendering import Result, command, table, where


def prepare(r: Result) -> str:
    """Preparation against nanoGPT's script."""
    rows, same = [], True
    for race in r["races"].values():
        same &= race["export"]["byte_identical_to_nanogpt"]
        for name, runs in race["runs"].items():
            ours = name != "nanogpt"
            rows.append(
                (
                    f"{race['text_bytes'] / 1e6:,.0f} MB",
                    name,
                    f"{median(x['seconds'] for x in runs):,.1f}",
                    f"{median(x['megabytes_a_second'] for x in runs):,.1f}",
                    f"{max(x['peak_bytes'] for x in runs) / 1e6:,.0f} MB",
                    f"{max(x['peak_disk_bytes'] for x in runs) / 1e6:,.0f} MB",
                    f"{race['times_nanogpt'][name]:.1f} times"
                    + (f" ({_list(race['times_nanogpt_by_round'][name])})" if ours else ""),
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
    return "\n".join(
        [
            "## Preparing text, against nanoGPT's prepare.py\n",
            "The same documents, in turns on two cores, from Parquet files to tokens on disk, "
            f"each twice in a row; the second run counts. {identical}\n",
            table(head, rows),
            f"\n{where(r)}. {command(r, _prepare_command(r))}\n",
        ]
    )


def _prepare_command(r: Result) -> str:
    races, words = list(r["races"].values()), "outpace bench prepare --nanogpt DIR --input TEXTS"
    rounds = len(next(iter(races[0]["runs"].values())))
    repeats, size = races[-1]["repeats"], races[0]["megabytes_before_repeating"]
    return f"{words} --megabytes {size:g} --repeats {repeats} --rounds {rounds}"


def _list(ratios: list[float]) -> str:
    return ", ".join(f"{ratio:.1f}" for ratio in ratios)


def loader(r: Result) -> str:
    """Speed of the loader."""
    s = r["settings"]
    rows = [
        (
            name,
            f"{row['core_ms']['median']:.3f} ({row['core_ms']['p20']:.3f}, "
            f"{row['core_ms']['p80']:.3f})",
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
    return "\n".join(
        [
            "## Loading batches\n",
            f"{s['micro_batch_size']} rows of {s['context']:,} tokens from {s['tokens'] / 1e6:,.0f}"
            "M tokens in the page cache, by CPU time, in turns with nanoGPT's `get_batch`.\n",
            table(head, rows),
            f"\n{where(r)}, {r['threads']} thread. "
            f"{command(r, 'outpace bench loader --nanogpt DIR')}\n",
        ]
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
    asked = f"outpace bench evaluate --build_nanogpt DIR --questions {r['questions']}"
    asked += f" --turns {r['turns']} --threads {r['threads']}"
    read = "; ".join(
        f"{protocol} {found['forward_tokens']:,} (four rows per question would be "
        f"{found['forward_tokens_of_four_rows_each']:,})"
        for protocol, found in r["whole_split"].items()
    )
    return "\n".join(
        [
            "## HellaSwag, against build-nanogpt's script and lm-eval\n",
            f"{r['questions']} questions in {r['turns']} turns, {r['model']}, "
            f"{r['parameters'] / 1e6:.0f}M parameters, fp32, {r['threads']} threads. "
            f"Tokens read for the whole split of 10,042: {read}.\n",
            table(head, rows),
            f"\n{where(r)}. {command(r, asked)}\n",
        ]
    )


def generation(r: Result) -> str:
    """Greedy generation against transformers."""
    rows = []
    for batch, found in r["batches"].items():
        for name, ms in found["ms_per_step"].items():
            equal = found["tokens_equal_transformers"][name]
            rows.append(
                (
                    batch,
                    name,
                    f"{ms['median']:,.0f} ({ms['p20']:,.0f}, {ms['p80']:,.0f})",
                    f"{found['tokens_per_s'][name]:,.1f}",
                    f"{found['times_transformers'][name]:.2f}",
                    f"{equal:.0%}",
                )
            )
    head = ("batch", "", "ms per step (p20, p80)", "tokens/s", "times transformers", "equal tokens")
    return "\n".join(
        [
            "## Generating text, against transformers' generate\n",
            f"{r['model']}, prompts of {r['settings']['prompt_tokens']} tokens and "
            f"{r['settings']['new_tokens']} new ones, greedy, in turns. A step of batch 1 reads "
            f"{r['weights_read_a_step_bytes'] / 1e6:,.0f} MB of weights, which takes "
            f"{r['bound_of_fp32_ms']:,.0f} ms here at the speed of a sum over memory. fp32 unless "
            "stated otherwise; bfloat16 and int8 are opt-in approximations, and the ratios are "
            "against transformers in fp32.\n",
            table(head, rows),
            f"\n{where(r)}, {r['threads']} threads. {command(r, 'outpace bench generate')}\n",
        ]
    )


def step_memory(r: Result) -> str:
    """Peak memory of a step by the formula, counted, and measured on a GPU."""
    measured = any(row["measured_bytes"] for row in r["steps"])
    head = ["setting", "formula", "counted", "formula/counted", "peak in"]
    head += ["measured"] if measured else []
    rows = []
    for row in r["steps"]:
        counted = row["counted_bytes"]
        cells = [
            row["name"],
            f"{row['formula_bytes'] / 2**30:.2f} GiB",
            f"{counted / 2**30:.2f} GiB" if counted else "",
            f"{row['formula_bytes'] / counted:.4f}" if counted else "",
            row["peak_at"],
        ]
        got = row["measured_bytes"]
        rows.append([*cells, f"{got / 2**30:.2f} GiB" if got else ""] if measured else cells)
    return "\n".join(
        [
            f"## Peak memory of a training step{'' if measured else ', without a GPU'}\n",
            f"GPT-2 124M, micro-batches of {r['micro_batch_size']} x {r['model']['context']:,} "
            "tokens, as on CUDA: by the planner's formula, and counted by PyTorch's MemTracker "
            "over the real `train_step` under fake tensors.\n",
            table(head, rows),
            f"\n{where(r)}. {command(r, 'outpace bench memory --parts step')}\n",
        ]
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
    return "\n".join(
        [
            "## Predictions for GPUs, not measurements\n",
            "None of our code has been timed on a GPU yet. These are the predictions of `outpace "
            "plan --machine` for the main recipe: a serial roofline whose rates are shares of the "
            "data sheet's, fitted to published PyTorch training speeds of the architecture "
            "(Hopper, A100, RTX 4090) or, for the L4 and T4, assumed.\n",
            table(head, rows),
            "\n`outpace plan --machine h100 --recipe gpt2_124M`; `make gpu-check` measures.\n",
        ]
    )
