"""The report of made-up runs: whole, cut, hostile and several at once."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from made_up_run import TOKENS_PER_STEP, Elements, figures_of, make_run, text_of

from outpace.core.errors import StorageError, UsageError
from outpace.report.figures import charts, smooth, thin
from outpace.report.load import load_run, load_runs
from outpace.report.markup import plain, shown
from outpace.report.page import page, write_report
from outpace.report.summary import Score, published_hellaswag, summarise


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "gpt2-124M")


@pytest.fixture(scope="module")
def whole_page(whole_run: Path) -> str:
    return page([load_run(whole_run)])


def test_the_page_says_what_happened(whole_page: str, whole_run: Path) -> None:
    text = text_of(whole_page)
    final = summarise(load_run(whole_run)).val_loss
    assert final is not None
    for said in (
        "gpt2-124M", "finished", f"{final:.3f}", "the unigram entropy of 7.63", "1.05B",
        "2,000 steps", "GPT-2 124M has 29.55%", "karpathy/build-nanogpt", "completion protocol",
        "10m20s", "NVIDIA H100 80GB HBM3", "the largest power of two whose activations fit",
        "train.py --model_size 124M", "124,439,808", "79.65 GiB", "Thursday to consider",
        "resumed", "# recipe gpt2_124M", "2.13.0", "9,035,582,198", "989TFLOP/s",
    ):  # fmt: skip
        assert said in text, said


def test_every_chart_has_its_place_and_its_points(whole_page: str) -> None:
    figures = figures_of(whole_page)
    places = [a["data-figure"] for _, a in Elements(whole_page).elements if "data-figure" in a]
    assert places == list(figures)
    assert {"loss-tokens", "loss-time", "hellaswag", "lr", "grad-norm", "mfu"} <= set(places)
    hellaswag = figures["hellaswag"]["data"][0]
    assert len(hellaswag["y"]) == 10
    assert hellaswag["error_y"]["array"][0] == pytest.approx(1.96 * 0.0046)
    labels = {a["text"] for a in figures["hellaswag"]["layout"]["annotations"]}
    assert labels == {"GPT-2 124M 29.55%", "chance 25%"}
    shapes = figures["loss-tokens"]["layout"]["shapes"]
    assert {"dash", "dot"} == {s["line"]["dash"] for s in shapes}  # entropy, and the resume
    resumed = next(s["x0"] for s in shapes if s["line"]["dash"] == "dot")
    assert resumed == pytest.approx(600 * TOKENS_PER_STEP / 1e9)


def test_the_page_loads_nothing(whole_page: str) -> None:
    for tag, attributes in Elements(whole_page).elements:
        assert not {"src", "href", "srcset", "action", "background"} & set(attributes), tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "img"), tag
    css = re.search("<style>(.*?)</style>", whole_page, re.DOTALL)
    assert css
    assert "url(" not in css[1]
    assert "@import" not in css[1]
    policy = re.search('Content-Security-Policy" content="([^"]*)"', whole_page)
    assert policy
    assert policy[1].startswith("default-src 'none';")
    assert "unsafe-inline' 'sha" not in policy[1]
    assert "connect-src" not in policy[1]  # so default-src, none, holds


def test_the_policy_allows_the_pages_own_scripts_and_no_other(whole_page: str) -> None:
    import base64
    import hashlib

    scripts = re.findall("<script>(.*?)</script>", whole_page, re.DOTALL)
    assert len(scripts) == 2
    assert scripts[0].count("plotly.js v") == 1
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in whole_page
    allowed = re.search('script-src ([^"]*)"', whole_page)
    assert allowed
    assert len(allowed[1].split()) == 2
    assert all(source.startswith("'sha256-") for source in allowed[1].split())


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    root = make_run(tmp_path / "live", steps=100, state="running")
    for name in ("metrics", "evals", "samples", "events"):
        path = root / f"{name}.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
    with FileLock(root / ".lock"):
        run = load_run(root)
    assert len(run.metrics) == 9
    assert len(run.problems) == 4
    text = text_of(page([run]))
    assert "metrics.jsonl has a line that is incomplete or damaged, and left out." in text
    assert "Validation loss so far" in text
    assert "It was still running at its last record" in text
    text = text_of(page([load_run(root)]))  # once its process is gone
    assert "still running" not in text and "its process 4242 on node7 is gone" in text


@pytest.mark.parametrize("kept", ["plan.json", "STATUS.json", "metrics.jsonl", "config.toml"])
def test_any_one_file_is_enough(tmp_path: Path, kept: str) -> None:
    root = make_run(tmp_path / "part", steps=50)
    for path in root.iterdir():
        if path.name != kept:
            path.unlink()
    html = page([load_run(root)])
    assert "part" in text_of(html)
    assert ("data-figure" in html.split("</style>")[1]) == (kept == "metrics.jsonl")


def test_an_empty_start_and_damaged_json_are_told(tmp_path: Path) -> None:
    root = make_run(tmp_path / "torn", steps=50)
    (root / "plan.json").write_text('{"format": 1, "plan": {"model_')
    (root / "STATUS.json").write_text("[]")
    text = text_of(page([load_run(root)]))
    assert "plan.json is incomplete or damaged" in text
    assert "STATUS.json is incomplete or damaged" in text


def test_values_of_the_wrong_kind_do_no_harm(tmp_path: Path) -> None:
    root = tmp_path / "odd"
    root.mkdir()
    odd: list[Any] = [None, True, "7", [], {}, float("nan"), float("inf"), 10**400, -1, 1e300]
    keys = (
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "elapsed_s",
        "acc_norm",
    )
    rows = [{"step": i, **dict.fromkeys(keys, v)} for i, v in enumerate(odd)]
    rows += [{"step": v, "loss": 1} for v in odd]
    for name, task in (("metrics", None), ("evals", "hellaswag"), ("samples", 3), ("events", [])):
        lines = [json.dumps({**row, "task": task, "text": row["step"]}) for row in rows]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n3\nnull\n")
    for value in odd:
        fields = ("plan", "choices", "warnings", "machine", "versions", "dataset", "command")
        (root / "plan.json").write_text(json.dumps(dict.fromkeys(fields, value)))
        inner = {"plan": dict.fromkeys(("model_size", "max_steps", "world_size", "x_bytes"), value)}
        page([load_run(root)])
        (root / "plan.json").write_text(
            json.dumps(inner | {"choices": [value, {"setting": value}]})
        )
        (root / "STATUS.json").write_text(json.dumps({"state": value, "reason": value}))
        figures_of(page([load_run(root)]))


def test_a_repeated_step_stands_once(tmp_path: Path) -> None:
    root = tmp_path / "again"
    root.mkdir()
    rows = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}, {"step": 1, "loss": 7.0}]
    (root / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [r["loss"] for r in load_run(root).metrics] == [7.0, 8.0]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for root in (tmp_path, tmp_path / "missing", tmp_path / "notes.txt"):
        with pytest.raises(UsageError) as refused:
            write_report([root], tmp_path / "report.html")
        assert refused.value.name == "NOT-A-RUN"
        assert refused.value.do
    with pytest.raises(UsageError, match="no run folder"):
        load_runs([])
    assert not (tmp_path / "report.html").exists()


def test_several_runs_are_overlaid_and_only_what_differs_is_listed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "slow", lr=3e-4), make_run(tmp_path / "quick", seed=3)]
    html = page(load_runs([*runs, runs[0] / ".." / "slow"]))
    figures = figures_of(html)
    assert [t["name"] for t in figures["lr"]["data"]] == ["slow", "quick"]
    assert len({t["line"]["color"] for t in figures["lr"]["data"]}) == 2
    text = text_of(html)
    assert "2 runs compared" in text
    table = re.search("settings that differ(.*?)</table>", html, re.DOTALL)
    assert table
    assert re.findall('<th scope="row">(.*?)</th>', table[1]) == ["lr"]
    assert re.findall("<td>([^<]+)</td>", table[1]) == ["0.0003", "0.0006"]
    best = re.findall('class="best">(.*?)<', html)
    assert best == [f"{summarise(load_run(runs[1])).val_loss:.3f}"]


def test_the_lowest_loss_is_only_marked_if_all_are_over_the_same_tokens(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "slow", lr=3e-4), make_run(tmp_path / "quick")]
    other = make_run(tmp_path / "other", data_set="fineweb-edu")
    low = f"{summarise(load_run(runs[1])).val_loss:.3f}"
    plan = json.loads((other / "plan.json").read_text())
    plan["dataset"]["fingerprint"] = "another"
    (other / "plan.json").write_text(json.dumps(plan))
    text = page(load_runs([runs[0], other]))
    assert low in text and 'class="best"' not in text and "tokens</td>" not in text
    evals = (runs[1] / "evals.jsonl").read_text().replace("10485760", "29696")
    (runs[1] / "evals.jsonl").write_text(evals)
    text = page(load_runs(runs))
    assert 'class="best"' not in text
    assert f"{low} over 29.7k tokens</td>" in text and " over 10.5M tokens</td>" in text


def test_settings_that_no_plan_holds_are_compared_too(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / side) for side in ("left", "right")]
    for run, decay in zip(runs, (0.1, 0.5), strict=True):
        (run / "config.toml").write_text(
            f'[optimizer]\nweight_decay = {decay}\noptimizer = "adamw"\n[run]\nrun_dir = "{run}"\n'
        )
    html = page(load_runs(runs))
    table = re.search("settings that differ(.*?)</table>", html, re.DOTALL)
    assert table and re.findall('<th scope="row">(.*?)</th>', table[1]) == ["weight_decay"]
    (runs[1] / "config.toml").write_text("[optimizer")
    assert "weight_decay" in page(load_runs(runs)), "what cannot be read is nobody's"


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / side / "run", steps=20) for side in ("left", "right")]
    assert [run.name for run in load_runs(runs)] == ["left/run", "right/run"]


def test_a_run_of_three_points_shows_each(tmp_path: Path) -> None:
    root = make_run(tmp_path / "tiny", steps=3, every=1, mfu=False)
    html = page([load_run(root)])
    figures = figures_of(html)
    assert all("markers" in trace["mode"] for f in figures.values() for trace in f["data"])
    assert "mfu" not in figures
    assert "the device's peak is unknown" in text_of(html)


def test_scores_of_two_protocols_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    runs = []
    for name, scores in (("a", {"completion": 0.65}), ("b", {"harness": 0.15, "completion": 0.65})):
        runs.append(make_run(tmp_path / name, steps=20))
        record = {"step": 20, "task": "hellaswag", "questions": 20}
        records = [record | {"protocol": p, "acc_norm": v} for p, v in scores.items()]
        (runs[-1] / "evals.jsonl").write_text("\n".join(map(json.dumps, records)))

    def row(protocol: str) -> list[str]:
        head = f"HellaSwag acc_norm, {protocol} protocol</th>(.*?)</tr>"
        found = re.search(head, page(load_runs(runs)), re.DOTALL)
        return re.findall("<td>(.*?)</td>", found[1]) if found else []

    assert (row("completion"), row("harness")) == (["65.0%", "65.0%"], ["–", "15.0%"])
    assert text_of(page([load_run(runs[1])])).count("HellaSwag acc_norm") == 2
    fewer = json.dumps(record | {"protocol": "completion", "acc_norm": 0.5, "questions": 10})
    (runs[0] / "evals.jsonl").write_text(fewer)
    assert row("completion") == ["50.0% of 10 questions", "65.0% of 20 questions"]


def test_an_unknown_protocol_is_not_compared() -> None:
    score = Score(0.3, 0.004, "own", 100, published_hellaswag("own"))
    assert score.published is None
    assert score.verdict == ""


@pytest.mark.parametrize(
    ("value", "stderr", "said"),
    [
        (0.32, 0.005, "points above"),
        (0.26, 0.005, "points below"),
        (0.297, 0.005, "inside"),
    ],
)
def test_the_verdict_knows_its_error_bar(value: float, stderr: float, said: str) -> None:
    assert said in Score(value, stderr, "completion", 9, published_hellaswag("completion")).verdict


def test_smoothing_is_unbiased_and_thinning_keeps_extremes() -> None:
    assert smooth([3.0] * 5, 10) == pytest.approx([3.0] * 5)
    assert smooth([10.0, 0.0], 3)[0] == 10.0
    y = [math.sin(i / 50) for i in range(20_000)]
    y[12_345] = 9.0
    x, kept = thin(list(range(20_000)), y, 500)
    assert len(x) <= 502
    assert x == sorted(x)
    assert (x[0], x[-1]) == (0, 19_999)
    assert (12_345, 9.0) in zip(x, kept, strict=True)


def test_plain_shows_what_it_does_not_obey() -> None:
    assert plain("a\x1b[0m\u202e\ud800\r") == "a\\x1b[0m\\u202e\\ud800\\r"
    assert plain("tab\tline\n\xa0café 👩\u200d🔬 日本") == "tab\tline\n\xa0café 👩\u200d🔬 日本"
    assert shown("memory_bytes", 2**30) == "1.00 GiB"
    assert shown("seed", 1337) == "1337"
    assert shown("peak_flops", None) == "–"


def test_the_page_is_written_whole_or_not_at_all(whole_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.html"
    assert write_report([whole_run], output) == output
    assert output.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]
    with pytest.raises(StorageError):
        write_report([whole_run], tmp_path / "missing" / "out.html")


def test_the_command_writes_beside_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from outpace.cli.report import run

    first, second = make_run(tmp_path / "a", steps=20), make_run(tmp_path / "b", steps=20)
    assert run([str(first), str(second)]) == 0
    assert capsys.readouterr().out.strip() == str(first / "comparison.html")
    assert not (first / "report.html").exists(), "that page is about this run alone"
    assert run([str(first), "--output", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").is_file()
    with pytest.raises(UsageError):
        run([str(tmp_path / "none")])


def test_the_command_starts_light_and_never_loads_torch(whole_run: Path, tmp_path: Path) -> None:
    code = (
        "import sys, outpace.cli.report as r; assert 'plotly' not in sys.modules\n"
        f"r.run([{str(whole_run)!r}, '--output', {str(tmp_path / 'r.html')!r}])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_long_run_still_makes_a_small_page(tmp_path: Path) -> None:
    root = make_run(tmp_path / "long", steps=20_000, every=1)
    made = charts([load_run(root)])
    points = sum(len(trace.x) for chart in made for trace in chart.figure.data)
    assert points < 16_000  # of 120,000 in the records


def test_the_lengths_of_documents_are_drawn_where_they_are_recorded(tmp_path):
    from outpace.report.corpus import lengths_chart

    def run(lengths: object):
        (tmp_path / "plan.json").write_text(json.dumps({"dataset": {"document_lengths": lengths}}))
        return load_run(tmp_path)

    [bars] = lengths_chart([run([[256, 512, 7], [512, 1024, 9]])]).figure.data
    assert (list(bars.x), list(bars.y)) == (["256", "512"], [7, 9])
    for odd in (None, [], "text", [[1, 2]], [["a", 2, 3]], [[1, 2, -3]], [[1, 2, 10**400]]):
        assert lengths_chart([run(odd)]) is None
    assert lengths_chart([run([[1, 2, 3]]), run([[1, 2, 3]])]) is None
