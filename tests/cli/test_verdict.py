"""`outpace verdict` and `outpace contamination`, by hand: answers, records, exit codes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from outpace.core.errors import NetworkError
from outpace.core.runfolder import RunFolder
from outpace.report.page import write_report
from outpace.tools import verdict as verdict_module
from outpace.train.corpus import open_mixture

from .helpers import Run

PASSAGE = "The keeper counts the boats in the harbour twice before he lights the lamp, then"


def kind(i: int) -> str:
    return "wikihow" if i % 3 else "activitynet"


def details(path: Path, pattern: str, protocols: tuple[str, ...] = ("completion",)) -> Path:
    rows: list[dict[str, Any]] = [
        {"task": "hellaswag", "protocol": protocol, "ind": i, "source_id": f"{kind(i)}~{i}",
         "label": 1, "pred": int(c), "pred_norm": int(c), "log_likelihoods": [0.0] * 4}
        for protocol in protocols
        for i, c in enumerate(pattern)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(folder: Path) -> tuple[Path, Path]:
    """Answers of a good model and of a worse one, ten questions of which occur in a corpus."""
    return (
        details(folder / "good.jsonl", "1" * 60 + "0" * 40),
        details(folder / "bad.jsonl", "1" * 40 + "0" * 60),
    )


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with GPT-2's vocabulary and hardly a model."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, n_positions=128)
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_each_answer_in_words_and_exit_code_0(run: Run, files: tuple[Path, Path]):
    good, bad = files
    won = run("verdict", good, "--against", bad, "--protocol", "completion")
    assert won.code == 0
    assert "60.00% against 40.00%, +20.00 points" in won.out
    assert "good.jsonl beats" in won.out
    lost = run("verdict", bad, "--against", good, "--protocol", "completion")
    assert lost.code == 0
    assert "bad.jsonl does not beat" in lost.out
    same = run("verdict", bad, "--against", bad, "--protocol", "completion", "--json")
    assert same.code == 0
    assert json.loads(same.out)["answer"] == "cannot tell"


def test_a_required_answer_that_is_not_given_is_exit_code_11(run: Run, files: tuple[Path, Path]):
    good, bad = files
    common = ["--protocol", "completion", "--require", "beats"]
    assert run("verdict", good, "--against", bad, *common).code == 0
    failed = run("verdict", bad, "--against", good, *common)
    assert failed.code == 11
    assert failed.error.startswith("error[NOT-BEATS]: ")


@pytest.mark.parametrize(
    ("code", "name", "more"),
    [
        (2, "UNKNOWN-PROTOCOL", ["--protocol", "harnes"]),
        (2, "UNKNOWN-TASK", ["--task", "helaswag"]),
        (3, "NO-ANSWERS", ["--protocol", "completion,harness"]),
        (2, "NO-METRIC", ["--protocol", "completion", "--metric", "f1"]),
        (3, "DETAILS", ["--protocol", "completion", "--against", "none.jsonl"]),
        (3, "CONTAMINATION", ["--protocol", "completion", "--contamination", "good.jsonl"]),
        (2, "NO-MODEL", ["--protocol", "completion", "--against", "nowhere"]),
        (5, "NO-FOLDER", ["--output", "nowhere/verdict.json"]),
    ],
)
def test_what_cannot_be_judged_is_one_line(refused, files: tuple[Path, Path], code, name, more):
    good, _ = files
    refused(code, name, "verdict", good, *(["--against", good] if "--against" not in more else []),
            *more)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "hint", "more"),
    [
        ("NO-METRIC", "--protocol harness", ["--metric", "acc_bytes"]),
        ("NO-METRIC", "--metric acc or acc_norm", ["--metric", "f1", "--protocol", "completion"]),
        ("NO-METRIC", "--metric acc", ["--metric", "acc_norm", "--task", "lambada"]),
        ("NOT-PUBLISHED", "--against", ["--task", "piqa", "--against", "published"]),
        ("TOKENIZER", "", ["--against", "run"]),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_scored(
    refused, done, folder: Path, tiny_gpt2: Path, name, hint, more
):
    against = [] if "--against" in more else ["--against", tiny_gpt2]
    told = refused(2, name, "verdict", tiny_gpt2, *against, *more, "--hellaswag_path", "none.jsonl")
    assert hint in told.error


def test_a_limit_is_of_questions_that_are_asked(refused, files: tuple[Path, Path]):
    good, bad = files
    argv = ["verdict", good, "--against", bad, "--protocol", "completion", "--limit", "5"]
    refused(2, "BAD-VALUE", *argv)


def test_without_the_hub_the_published_scores_stand_in_unless_it_was_named(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(reference: str, device: object) -> None:
        assert reference == "hf:gpt2"
        raise NetworkError("HUB", "cannot fetch gpt2 from the hub")

    monkeypatch.setattr(verdict_module, "load_model", unreachable)
    path = details(folder / "a.jsonl", "1" * 330 + "0" * 670, ("completion", "harness"))
    done = run("verdict", path, "--json")
    assert done.code == 0
    assert "published scores are used" in done.err
    record = json.loads(done.out)
    assert record["baseline"]["kind"] == "published"
    assert [c["baseline"] for c in record["comparisons"]] == [0.2955, 0.3114]
    assert all(c["paired"] is None for c in record["comparisons"])
    assert [c["answer"] for c in record["comparisons"]] == ["beats", "cannot tell"]
    assert record["answer"] == "cannot tell"
    assert "completion: beats; harness: cannot tell" in record["sentence"]
    named = run("verdict", path, "--against", "hf:gpt2")
    assert named.code == 10
    assert named.error.startswith("error[HUB]: ")


def test_answers_to_one_source_are_not_compared_with_a_score_of_both(
    refused, run: Run, folder: Path, files: tuple[Path, Path]
):
    """Else GPT-2 itself could beat its own published score."""
    rows = [row for row in files[0].read_text().splitlines(keepends=True) if "activitynet" in row]
    (folder / "part.jsonl").write_text("".join(rows))
    one = ["verdict", "part.jsonl", "--protocol", "completion", "--against"]
    told = refused(3, "SUBSET", *one, "published")
    assert "activitynet alone" in told.error
    assert run(*one, files[1]).code == 0, "both answered them"


def record_of_one(answered: Path, path: Path) -> Path:
    """A record of contamination with one question that was answered wrongly."""
    rows = [json.loads(line) for line in answered.read_text().splitlines()]
    wrong = next(r for r in rows if r["protocol"] == "completion" and r["pred"] != r["label"])
    name = f"{wrong['source_id'].partition('~')[0]} {wrong['ind']}"
    found = {"format": 1, "task": "hellaswag", "dataset": "d", "fingerprint": "f",
             "contaminated": {name: {}}}  # fmt: skip
    path.write_text(json.dumps(found))
    return path


def test_an_answer_that_the_run_cannot_keep_is_told(
    run: Run, folder: Path, shared: Path, tiny_gpt2: Path
):
    """As with another user's run: a folder in the way, because to root every folder is writable."""
    model = Path(shutil.copytree(tiny_gpt2, folder / "run"))
    (model / "plan.json").write_text("{}")
    (model / "verdict.json").mkdir()
    done = run("verdict", model, "--against", "published", "--protocol", "completion", "--limit",
               "4", "--hellaswag_path", shared / "hellaswag" / "hellaswag_val.jsonl", "--device",
               "cpu", "--output", folder / "out.json")  # fmt: skip
    assert done.code == 0, done.err
    assert "4 questions" in done.out
    assert "warning: cannot write run/verdict.json" in done.err.replace(str(folder) + "/", "")
    assert json.loads((folder / "out.json").read_text())["sentence"] in done.out


def test_two_models_are_scored_once_and_the_run_keeps_the_answer(
    run: Run, folder: Path, shared: Path, tiny_gpt2: Path
):
    """From weights; then from the answers that were kept, with the same numbers."""
    questions = shared / "hellaswag" / "hellaswag_val.jsonl"
    kept = folder / "kept"
    kept.mkdir()
    model = Path(shutil.copytree(tiny_gpt2, folder / "run"))
    (model / "plan.json").write_text("{}")
    first = run("verdict", model, "--against", tiny_gpt2, "--limit", "12", "--json",
                "--hellaswag_path", questions, "--details", kept, "--device", "cpu")  # fmt: skip
    assert first.code == 0, first.err
    record = json.loads(first.out)
    assert json.loads((model / "verdict.json").read_text()) == record
    assert [c["protocol"] for c in record["comparisons"]] == ["completion", "harness"]
    assert all(c["questions"] == 12 and c["difference"] == 0 for c in record["comparisons"])
    one = record_of_one(kept / "model.jsonl", folder / "c.json")
    done = run("evaluate", tiny_gpt2, "--tasks", "hellaswag", "--limit", "12", "--json", "--device",
               "cpu", "--hellaswag_path", questions, "--contamination", one)  # fmt: skip
    (result,) = json.loads(done.out)["results"]
    assert result["questions"] == 12
    assert result["clean"]["questions"] == 11
    assert result["clean"]["acc"] == pytest.approx(result["acc"] * 12 / 11)  # a wrong one left out
    again = run("verdict", kept / "model.jsonl", "--against", kept / "baseline.jsonl", "--json")
    assert json.loads(again.out)["comparisons"] == record["comparisons"]
    half = folder / "half.jsonl"
    rows = (kept / "model.jsonl").read_text().splitlines(keepends=True)
    half.write_text("".join(row for row in rows if '"completion"' in row))
    missing = run("verdict", half, "--against", tiny_gpt2, "--limit", "12",
                  "--hellaswag_path", questions, "--device", "cpu")  # fmt: skip
    assert missing.code == 3 and "no answers to hellaswag, harness protocol" in missing.error
    assert "questions of" not in missing.err, "said before the other side is scored"


def test_the_report_shows_the_verdict_of_a_run_escaped(run: Run, files: tuple[Path, Path]):
    good, bad = files
    root = good.parent / "runs" / "one"
    root.mkdir(parents=True)
    (root / "plan.json").write_text("{}")
    answered = verdict_module.verdict(
        verdict_module.Side("<script>alert(1)</script>", "details",
                            answers=verdict_module.answers.read(good)),
        verdict_module.Side("b", "details", answers=verdict_module.answers.read(bad)),
        [("hellaswag", "completion", "acc_norm")],
    )  # fmt: skip
    RunFolder(root).verdict.write_text(json.dumps(answered))
    page = write_report([root], root / "report.html").read_text()
    assert "<h2>Verdict</h2>" in page
    assert "+20.00" in page and "beats" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    RunFolder(root).verdict.write_text('{"answer": 3, "comparisons": [1, {"paired": []}]}')
    assert "<h2>Verdict</h2>" in write_report([root], root / "report.html").read_text()


def test_contamination_is_found_recorded_and_left_out_of_the_score(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From text to a clean score: a corpus with one of the questions in it."""
    rows = folder / "piqa.jsonl"
    asked = [{"goal": f"{PASSAGE} {word}", "sol1": "he rests.", "sol2": "he leaves.", "label": 0}
             for word in ("slowly", "at noon", "again")]  # fmt: skip
    asked[1]["goal"] = "To clean a lamp well you should first take a very soft and dry cloth and"
    asked[2]["goal"] = "Short"
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    text = folder / "text"
    text.mkdir()
    (text / "a.txt").write_text("Nothing of it here.")
    (text / "b.txt").write_text(f"Once: “{PASSAGE.upper()}” and so on.")
    assert run("prepare", "files", "--input", text, "--output", "data/boats", "--tokenizer",
               "bytes", "--val_fraction", "0").code == 0  # fmt: skip
    done = run("contamination", "boats", "--task", "piqa", "--task_data", rows)
    assert done.code == 0, done.err
    assert "1 of 3 questions share 13 words in a row" in done.out
    assert "1 questions have fewer words" in done.out
    record = json.loads((folder / "data/boats/contamination-piqa.json").read_text())
    assert list(record["contaminated"]) == ["row 0"]
    assert record["contaminated"]["row 0"]["first"] in ([0], [1])
    assert run("verify", "data/boats").code == 0
    by_name, by_folder = (run("data", "info", named) for named in ("boats", "data/boats"))
    assert by_name.code == 0 and by_name.out == by_folder.out
    missed = run("data", "info", "boat")
    assert (missed.code, missed.err.count("\n")) == (3, 1) and "boats" in missed.err

    answered = folder / "a.jsonl"
    answered.write_text("".join(
        json.dumps({"task": "piqa", "protocol": "harness", "row": i, "label": 0, "pred": 0,
                    "pred_norm": 0 if i == 0 else 1}) + "\n" for i in range(3)
    ))  # fmt: skip
    root = folder / "runs" / "one"
    root.mkdir(parents=True)
    plan = {"dataset": {"path": "data/boats", "fingerprint": record["fingerprint"]}}
    (root / "plan.json").write_text(json.dumps(plan))
    found = verdict_module.find_contamination(None, str(root), "piqa")
    assert found is not None and found.questions == {"row 0"}
    told = run("verdict", answered, "--against", answered, "--task", "piqa", "--json",
               "--contamination", "data/boats/contamination-piqa.json")  # fmt: skip
    full, clean = (json.loads(told.out)[key][0] for key in ("comparisons", "clean"))
    assert (full["questions"], full["model"]) == (3, pytest.approx(1 / 3))
    assert (clean["questions"], clean["model"]) == (2, 0.0)
    plan["dataset"]["fingerprint"] = "another"
    (root / "plan.json").write_text(json.dumps(plan))
    assert verdict_module.find_contamination(None, str(root), "piqa") is None

    (text / "a.txt").write_text(f"And then: {asked[1]['goal']}")
    (text / "b.txt").unlink()
    assert run("prepare", "files", "--input", text, "--output", "data/lamps", "--tokenizer",
               "bytes", "--val_fraction", "0").code == 0  # fmt: skip
    mixture = open_mixture("data/boats,data/lamps")
    plan["dataset"] = {"path": mixture.where, "fingerprint": mixture.fingerprint}
    (root / "plan.json").write_text(json.dumps(plan))
    assert verdict_module.find_contamination(None, str(root), "piqa") is None
    assert run("contamination", "lamps", "--task", "piqa", "--task_data", rows).code == 0
    found = verdict_module.find_contamination(None, str(root), "piqa")
    assert found is not None and found.questions == {"row 0", "row 1"}
    assert found.dataset == "boats+lamps"
    plan["dataset"]["path"] += "/gone"
    (root / "plan.json").write_text(json.dumps(plan))
    assert verdict_module.find_contamination(None, str(root), "piqa") is None


def test_two_files_of_answers_are_compared_without_the_contaminated_questions_too(
    run: Run, folder: Path, files: tuple[Path, Path]
):
    good, bad = files
    record = record_of_one(good, folder / "c.json")
    done = run("verdict", good, "--against", bad, "--protocol", "completion",
               "--contamination", record)  # fmt: skip
    assert done.code == 0
    assert "without the 1 questions that occur in d:" in done.out
    assert "60.61% against 40.40%" in done.out


@pytest.mark.parametrize("against", ["bad.jsonl", "published"])
def test_where_every_question_is_contaminated_the_whole_is_compared_all_the_same(
    run: Run, files: tuple[Path, Path], folder: Path, against: str
):
    good, _ = files
    found = {"format": 1, "task": "hellaswag", "dataset": "d", "fingerprint": "f",
             "contaminated": {f"{kind(i)} {i}": {} for i in range(100)}}  # fmt: skip
    (folder / "all.json").write_text(json.dumps(found))
    done = run("verdict", good, "--against", against, "--protocol", "completion",
               "--contamination", "all.json", "--output", "v.json")  # fmt: skip
    assert done.code == 0, done.err
    assert "no question is left" in done.out
    assert json.loads((folder / "v.json").read_text())["clean"][0]["questions"] == 0
