"""A run's records as pieces of HTML. All text from records passes `markup.escape`."""

import tomllib
from collections.abc import Sequence

from outpace.core import units
from outpace.core.files import JsonObject
from outpace.core.runstate import INTERRUPTED, STATES
from outpace.report import verdict
from outpace.report.load import Run, items, number
from outpace.report.markup import (
    NONE,
    clock,
    decimals,
    escape,
    facts,
    percent,
    section,
    shown,
    table,
    whole,
)
from outpace.report.style import PALETTE
from outpace.report.summary import Score, Summary, summarise

MOST_SAMPLES = 120
MOST_EVENTS = 400
LONGEST_SAMPLE = 4000
"""Most characters of one sample on the page."""


def title(run: Run, summary: Summary) -> str:
    """The run's name, its state, one sentence, and warnings."""
    state = summary.state if summary.state in (*STATES, INTERRUPTED) else ""
    badge = f'<span class="state {state}">{escape(summary.state)}</span>'
    reason = run.status.get("reason")
    callouts = ""
    if reason and state in ("stopped", "failed", INTERRUPTED):
        kept = run.status.get("last_verified_checkpoint")
        kept = f" Last verified checkpoint: {escape(kept)}." if kept else ""
        again = " It can be resumed." if run.status.get("resumable") is True else ""
        bad = " bad" if state == "failed" else ""
        callouts = f'<p class="callout{bad}"><b>{state}</b> {escape(reason)}.{kept}{again}</p>'
    notes = [*run.warnings, *run.problems]
    if notes:
        rows = "".join(f"<li>{escape(note)}</li>" for note in notes)
        callouts += f'<div class="callout"><b>Worth knowing</b><ul>{rows}</ul></div>'
    return (
        f'<header><p class="eyebrow">outpace run report</p>'
        f"<h1>{escape(run.name)}{badge}</h1>{_sentence(run, summary)}{callouts}</header>"
    )


def tiles(summary: Summary) -> str:
    """The headline numbers."""
    s = summary
    done = "Validation loss" if s.state == "finished" else "Validation loss so far"
    small = [
        _tile("Tokens", units.count(s.tokens) if s.tokens else NONE, _of_steps(s)),
        _tile("Training time", units.duration(s.seconds) if s.seconds else NONE, _pace(s)),
        _tile(
            "Throughput, median",
            f"{whole(s.tokens_per_second)} <small>tokens/s</small>"
            if s.tokens_per_second
            else NONE,
            f"peak memory {s.memory_gib:.3g} GiB" if s.memory_gib else "",
        ),
        _tile(
            "Model FLOP/s utilisation",
            percent(s.mfu),
            "median" if s.mfu else ("" if s.peak_known else "the device's peak is unknown"),
        ),
    ]
    big = [
        _tile(done, decimals(s.val_loss, 3), _against_unigram(s), big=True),
        *(_hellaswag_tile(score) for score in s.hellaswag.values() or [None]),
    ]
    return f'<div class="tiles">{"".join(big + small)}</div>'


def comparison(runs: Sequence[Run]) -> str:
    """One table with a column per run: its results, then the settings that differ."""
    summaries = [summarise(run) for run in runs]
    head = ["", *map(_named, range(len(runs)), runs)]
    rows = [
        ["state", *(escape(s.state) for s in summaries)],
        ["validation loss", *_loss_cells(runs, summaries)],
        *_score_rows([s.hellaswag for s in summaries]),
        ["steps", *(whole(s.steps) for s in summaries)],
        ["tokens", *(units.count(s.tokens) if s.tokens else NONE for s in summaries)],
        ["training time", *(units.duration(s.seconds) if s.seconds else NONE for s in summaries)],
        ["tokens per second", *(whole(s.tokens_per_second) for s in summaries)],
        ["MFU", *(percent(s.mfu) if s.peak_known else "peak unknown" for s in summaries)],
        ["peak memory, GiB", *(decimals(s.memory_gib, 1) for s in summaries)],
    ]  # fmt: skip
    settings = differing([_settings(run) for run in runs])
    split = "settings that differ" if settings else "same settings"
    rows.append([f'<span class="split">{split}</span>', *[""] * len(runs)])
    rows += [
        [escape(key), *(escape(shown(key, v)) for v in values)] for key, values in settings.items()
    ]
    return table(head, rows, "runs")


def legend(runs: Sequence[Run]) -> str:
    """The colour of each run, for all charts."""
    names = "".join(f"<span>{_named(i, run)}</span>" for i, run in enumerate(runs))
    return f'<p class="legend">{names}</p>'


def differing(records: Sequence[JsonObject]) -> dict[str, list[object]]:
    """Keys whose values are displayed differently in some records, with each record's value."""
    keys = dict.fromkeys(key for record in records for key in record)
    rows = {key: [record.get(key) for record in records] for key in keys}
    return {key: row for key, row in rows.items() if len({shown(key, v) for v in row}) > 1}


def details(run: Run) -> str:
    """Everything below the charts."""
    columns = [
        ("Machine", facts(run.machine)),
        ("Versions", facts(run.versions)),
        ("Dataset", facts(run.dataset, leave_out=["document_lengths"])),
    ]
    background = "".join(f"<div><h3>{name}</h3>{body}</div>" for name, body in columns if body)
    return "".join(
        [
            section("Verdict", verdict.body(run)),
            section("Samples", _samples(run)),
            section("Other evaluations", _other_evals(run)),
            section("Plan", _plan(run)),
            section(
                "Where and on what",
                f'<div class="columns">{background}</div>' if background else "",
            ),
            section("Events", _events(run)),
            section("Configuration", _config(run)),
        ]
    )


def _sentence(run: Run, s: Summary) -> str:
    size = run.plan.get("model_size")
    words = [f"GPT-2 <b>{escape(size)}</b>" if size else "A model"]
    if run.dataset.get("name"):
        words.append(f"on <b>{escape(run.dataset['name'])}</b>")
    device = run.machine.get("device_name") or run.machine.get("device")
    world = number(run.plan, "world_size")
    if device:
        many = f"{world:.0f} \N{MULTIPLICATION SIGN} " if world and world > 1 else ""
        words.append(f"with {many}<b>{escape(device)}</b>")
    if run.plan.get("mixed_precision"):
        words.append(f"in <b>{escape(run.plan['mixed_precision'])}</b>")
    text = " ".join(words) + "." if run.plan_file else ""
    if s.steps is None:
        text += " Nothing has been logged yet."
    if s.state == "running" and run.status.get("time"):
        text += f" It was still running at its last record, {escape(clock(run.status['time']))}."
    return f'<p class="summary">{text}</p>'


def _tile(name: str, value: str, note: str, *, big: bool = False, source: str = "") -> str:
    """`value`, `note` and `source` are HTML."""
    note = f"<p>{note}</p>" if note else ""
    source = f'<p class="source">{source}</p>' if source else ""
    kind = "tile big" if big else "tile"
    return f'<div class="{kind}"><h3>{name}</h3><p class="value">{value}</p>{note}{source}</div>'


def _against_unigram(s: Summary) -> str:
    if s.val_loss is None:
        return "not evaluated yet" + (f"; training loss {s.train_loss:.3f}" if s.train_loss else "")
    parts = []
    if s.unigram_entropy is not None:
        below = s.unigram_entropy - s.val_loss
        side = "below" if below >= 0 else "above"
        parts.append(
            f"<b>{abs(below):.2f} {side}</b> the unigram entropy of {s.unigram_entropy:.2f}"
        )
    parts.append("nats per token")
    if s.val_perplexity is not None:
        parts.append(f"perplexity {s.val_perplexity:,.{1 if s.val_perplexity < 1000 else 0}f}")
    if s.val_bits_per_byte is not None:
        parts.append(f"{s.val_bits_per_byte:.3f} bits per byte")
    if s.best_val_loss is not None and s.best_val_loss < s.val_loss - 5e-4:
        parts.append(f"best was {s.best_val_loss:.3f}")
    return ", ".join(parts)


def _hellaswag_tile(score: Score | None) -> str:
    if score is None:
        return _tile("HellaSwag acc_norm", NONE, "not evaluated in this run", big=True)
    spread = f" <small>± {100 * score.stderr:.1f}</small>" if score.stderr else ""
    asked = f"{whole(score.questions)} questions, " if score.questions else ""
    note = f"{asked}{escape(score.protocol or 'unknown')} protocol; ± is one standard error"
    source = ""
    if score.published:
        gpt2 = score.published
        note = f"<b>{escape(gpt2.model)} has {percent(gpt2.value, 2)}</b>: {score.verdict}. {note}"
        source = f"Published score: {escape(gpt2.source)}"
    return _tile("HellaSwag acc_norm", percent(score.value) + spread, note, big=True, source=source)


def _of_steps(s: Summary) -> str:
    if s.steps is None:
        return ""
    of = f" of {whole(s.max_steps)}" if s.max_steps and s.max_steps != s.steps else ""
    return f"{whole(s.steps)}{of} steps"


def _pace(s: Summary) -> str:
    if not s.seconds or not s.steps:
        return ""
    each = s.seconds / s.steps
    return f"{each:.3g} s per step" if each >= 1 else f"{1000 * each:.3g} ms per step"


def _score_rows(scores: Sequence[dict[str, Score]]) -> list[list[str]]:
    """One row per protocol, since scores under two protocols are not comparable; with the number of
    questions, if it is not the same for all."""
    protocols = sorted({protocol for of_run in scores for protocol in of_run})
    asked = {score.questions for of_run in scores for score in of_run.values()}
    return [
        [
            escape(f"HellaSwag acc_norm, {protocol or 'unknown'} protocol"),
            *(_score_cell(of_run.get(protocol), len(asked) > 1) for of_run in scores),
        ]
        for protocol in protocols
    ]


def _score_cell(score: Score | None, with_questions: bool) -> str:
    if score is None:
        return NONE
    spread = f" ± {100 * score.stderr:.1f}" if score.stderr else ""
    asked = f" of {whole(score.questions)} questions" if with_questions else ""
    return percent(score.value) + spread + asked


def _loss_cells(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[str]:
    """Validation losses. The lowest is marked if all are over the same tokens, and their number is
    given if it is not the same for all: on a CPU it depends on the size of the model."""
    losses = [s.val_loss for s in summaries]
    known = [(run, s) for run, s in zip(runs, summaries, strict=True) if s.val_loss is not None]
    counts = {s.val_tokens for _, s in known}
    same = len(counts) == 1 == len({run.dataset.get("fingerprint") for run, _ in known})
    best = decimals(min((v for v in losses if v is not None), default=None), 3)
    cells = []
    for s in summaries:
        text = decimals(s.val_loss, 3)
        if same and text == best:
            text = f'<span class="best">{text}</span>'
        elif len(counts) > 1 and s.val_tokens:
            text += f" over {units.count(s.val_tokens)} tokens"
        cells.append(text)
    return cells


def _named(i: int, run: Run) -> str:
    colour = f"var(--run{i % len(PALETTE)})"
    return f'<span class="dot" style="background:{colour}"></span>{escape(run.name)}'


def _settings(run: Run) -> JsonObject:
    data: JsonObject = {
        f"dataset {k}": run.dataset.get(k) for k in ("name", "fingerprint") if k in run.dataset
    }
    machine: JsonObject = {k: run.machine[k] for k in ("device_name", "cores") if k in run.machine}
    known = [k for k in ("outpace", "source", "torch", "git_commit") if k in run.versions]
    versions: JsonObject = {k: run.versions[k] for k in known}
    return {**_asked(run), **run.plan, **data, **machine, **versions}


def _asked(run: Run) -> JsonObject:
    """The settings in config.toml of model, data and training; `auto` is resolved only in the
    plan."""
    try:
        config = tomllib.loads(run.config_toml)
    except tomllib.TOMLDecodeError:
        return {}
    sections = [config.get(name) for name in ("model", "data", "schedule", "optimizer", "compute")]
    values = {k: v for one in sections if isinstance(one, dict) for k, v in one.items()}
    return {k: v for k, v in values.items() if k not in ("dataset", "device")}


def _samples(run: Run) -> str:
    known = [s for s in run.samples if s.get("text") or s.get("prompt")]
    steps = [number(s, "step") or 0.0 for s in known]
    latest = max(steps, default=0.0)
    newest = [s for s, step in zip(known, steps, strict=True) if step == latest]
    older = [s for s, step in zip(known, steps, strict=True) if step != latest]
    body = "".join(map(_sample, newest[-MOST_SAMPLES:]))
    if older:
        kept = older[-MOST_SAMPLES:]
        said = f"{len(older)} from earlier steps"
        if len(kept) < len(older):
            said += f", the newest {len(kept)} shown"
        body += (
            f"<details><summary>{said}</summary>{''.join(map(_sample, reversed(kept)))}</details>"
        )
    return body


def _sample(record: JsonObject) -> str:
    about = [f"step {whole(number(record, 'step'))}"]
    about += [
        f"{key.replace('_', '-')} {shown('seed', record[key])}"
        for key in ("temperature", "top_k", "top_p", "seed")
        if record.get(key) is not None
    ]
    prompt, text = str(record.get("prompt") or ""), str(record.get("text") or "")
    cut = text[:LONGEST_SAMPLE] + (" …" if len(text) > LONGEST_SAMPLE else "")
    return (
        f'<div class="sample"><p class="about">{escape(", ".join(about))}</p>'
        f'<p class="text" dir="auto"><span class="prompt">{escape(prompt[:LONGEST_SAMPLE])}</span>'
        f"{escape(cut)}</p></div>"
    )


def _other_evals(run: Run) -> str:
    last: dict[tuple[str, str], JsonObject] = {}
    for record in run.evals:
        task = str(record.get("task") or "unknown")
        if task not in ("validation", "hellaswag"):
            last[(task, str(record.get("protocol") or ""))] = record
    rows = [
        [
            escape(f"{task} {protocol}".strip()),
            whole(number(record, "step")),
            escape(
                ", ".join(f"{k} {shown(k, v)}" for k, v in record.items() if k not in _NOT_SCORES)
            ),
        ]
        for (task, protocol), record in last.items()
    ]
    return table(["task", "step", "scores"], rows) if rows else ""


_NOT_SCORES = ("task", "protocol", "step", "tokens", "elapsed_s")


def _plan(run: Run) -> str:
    chosen = {str(c.get("setting") or NONE): c for c in run.choices}
    rows = [
        [escape(name), escape(shown(name, c.get("value"))), escape(c.get("reason") or "")]
        for name, c in chosen.items()
    ]
    body = table(["chosen", "value", "why"], rows, "plan") if rows else ""
    rest = facts(run.plan, leave_out=list(chosen))
    if rest:
        body += f'<div class="grid" style="margin-top:22px">{rest}</div>'
    command = items(run.plan_file, "command")
    if command:
        body += f'<pre class="command">{escape(shown("command", command))}</pre>'
    return body


def _events(run: Run) -> str:
    kept = run.events[-MOST_EVENTS:]
    rows = [
        [
            escape(clock(e.get("time") or NONE)),
            escape(e.get("event") or NONE),
            whole(number(e, "step")),
            escape(
                ", ".join(f"{k} {shown(k, v)}" for k, v in e.items() if k not in _EVENT_COLUMNS)
            ),
        ]
        for e in kept
    ]
    if not rows:
        return ""
    left_out = len(run.events) - len(kept)
    note = f'<p class="lead">{left_out:,} older ones are in events.jsonl.</p>' if left_out else ""
    return f'{note}<div class="tall">{table(["time", "event", "step", ""], rows, "events")}</div>'


_EVENT_COLUMNS = ("time", "event", "step")


def _config(run: Run) -> str:
    if not run.config_toml:
        return ""
    lines = "\n".join(map(_config_line, run.config_toml.splitlines()))
    said = "config.toml, and who set each value"
    return f"<details><summary>{said}</summary><pre>{lines}</pre></details>"


def _config_line(line: str) -> str:
    if line.startswith("["):
        return f'<span class="head">{escape(line)}</span>'
    value, mark, who = line.rpartition("  # ")
    if not mark:
        return escape(line)
    kind = "by" if who == "default" else "by set"
    return f'{escape(value)}  <span class="{kind}"># {escape(who)}</span>'
