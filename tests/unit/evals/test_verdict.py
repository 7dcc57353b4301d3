"""Comparisons of answers that were made up, counted by hand."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from outpace.core.errors import DataError
from outpace.core.published import gpt2_published
from outpace.evals import answers, contamination
from outpace.evals.task import Item
from outpace.evals.verdict import (
    BEATS,
    CANNOT_TELL,
    DOES_NOT,
    compare,
    compare_published,
    overall,
)


def example(i: int, right: bool, **more: Any) -> dict[str, Any]:
    """A line of --details; every tenth article has two questions."""
    return {
        "task": "hellaswag",
        "protocol": "completion",
        "ind": i // 2,
        "source_id": ("activitynet~v_" if i % 2 else "wikihow~") + str(i - i % 20 // 18 * 2),
        "label": i % 4,
        "pred": (i + 1) % 4,
        "pred_norm": i % 4 if right else (i + 1) % 4,
        **more,
    }


def made(pattern: str) -> answers.Answers:
    """Answers, right where the pattern has a 1."""
    (found,) = answers.collect(example(i, c == "1") for i, c in enumerate(pattern))
    return found


def model(n: int, right: int, seed: int) -> answers.Answers:
    pattern = ["1"] * right + ["0"] * (n - right)
    random.Random(seed).shuffle(pattern)
    return made("".join(pattern))


def test_every_question_falls_into_one_of_four():
    c = compare(made("1111100000" * 40), made("1110000001" * 40), "acc_norm")
    assert c.paired is not None
    counts = c.paired.both, c.paired.only_model, c.paired.only_baseline, c.paired.neither
    assert counts == (120, 80, 40, 160)
    assert (c.model, c.baseline) == (0.5, 0.4)
    assert c.difference == pytest.approx(0.1)
    assert c.low < c.difference < c.high
    assert c.low == pytest.approx(0.1 - 1.96 * ((0.3 - 0.01) / 400) ** 0.5, abs=2e-3)
    assert c.paired.bootstrap_low == pytest.approx(c.low, abs=0.01)
    assert c.paired.bootstrap_high == pytest.approx(c.high, abs=0.01)
    assert c.answer == BEATS
    back = compare(made("1110000001" * 40), made("1111100000" * 40), "acc_norm")
    assert (back.low, back.high) == pytest.approx((-c.high, -c.low))
    assert back.paired and back.paired.mcnemar_p == c.paired.mcnemar_p
    assert back.answer == DOES_NOT
    assert compare(made("10" * 50), made("10" * 50), "acc_norm").answer == CANNOT_TELL
    assert compare(made("10" * 50), made("01" * 50), "acc_norm").answer == CANNOT_TELL


def test_pairs_see_what_two_shares_alone_cannot():
    """Ten questions more of 1,000, and none lost."""
    better = made("1" * 310 + "0" * 690)
    c = compare(better, made("1" * 300 + "0" * 700), "acc_norm")
    assert c.answer == BEATS
    assert c.paired and c.paired.mcnemar_p == 2**-9


def test_a_tie_within_sources_is_no_evidence():
    """Six sources of 40 questions each, all won: 240 to 0, but six draws."""
    rows = [example(i, True, source_id=f"wikihow~{i // 40}", ind=i) for i in range(240)]
    rows += [example(i, False, source_id=f"wikihow~{i}", ind=i) for i in range(240, 480)]
    lost = [{**r, "pred_norm": (r["label"] + 1) % 4} for r in rows]
    (a,), (b,) = answers.collect(rows), answers.collect(lost)
    c = compare(a, b, "acc_norm")
    assert c.paired and c.paired.sources == 246
    assert c.paired.bootstrap_high - c.paired.bootstrap_low > 2 * (c.high - c.low)


def pair(a: int, b: int, both: int, sources: int) -> tuple[answers.Answers, answers.Answers]:
    """Answers of two models: `a` questions that only the first had right, `b` only the second, and
    `both`; those of the first two kinds come from `sources` sources, each other from its own."""
    right = [(True, False)] * a + [(False, True)] * b + [(True, True)] * both
    rows: list[list[dict[str, Any]]] = [[], []]
    for i, pattern in enumerate(right):
        source = f"wikihow~{i % sources if i < a + b else i}"
        for side, is_right in zip(rows, pattern, strict=True):
            side.append(example(i, is_right, ind=i, source_id=source))
    (first,), (second,) = answers.collect(rows[0]), answers.collect(rows[1])
    return first, second


@pytest.mark.parametrize(
    ("only_a", "only_b", "sources", "agrees"),
    [
        pytest.param(40, 0, 40, True, id="all three agree"),
        pytest.param(40, 0, 1, False, id="the bootstrap does not: it is all one video"),
        pytest.param(14, 5, 19, False, id="McNemar does not: p is 0.064"),
        pytest.param(5, 0, 5, False, id="the closed form does not, nor does McNemar"),
    ],
)
def test_an_answer_needs_the_interval_the_bootstrap_and_mcnemar(only_a, only_b, sources, agrees):
    c = compare(*pair(only_a, only_b, 400, sources), "acc_norm")
    assert c.paired is not None
    found = c.low > 0, c.paired.bootstrap_low > 0, c.paired.mcnemar_p < 0.05
    assert all(found) is agrees and any(found), "the premise of this test"
    assert c.answer == (BEATS if agrees else CANNOT_TELL)
    back = compare(*reversed(pair(only_a, only_b, 400, sources)), "acc_norm")
    assert back.answer == (DOES_NOT if agrees else CANNOT_TELL)


def test_only_common_questions_are_compared_in_any_order():
    a, b = made("1100" * 30), made("1010" * 30)
    order = list(range(119, 19, -1))
    c = compare(a, b.at(order), "acc_norm")
    assert c.questions == 100
    assert c.paired and c.paired.only_model == 25
    assert (c.model, c.baseline) == (0.5, 0.5)


def test_two_questions_with_one_number_are_two():
    names = made("10").names
    assert names == ["wikihow 0", "activitynet 0"]


def test_what_cannot_be_compared_is_refused():
    a = made("1100")
    with pytest.raises(DataError, match="in common"):
        compare(a, a.at([]), "acc_norm")
    (other,) = answers.collect([example(0, True, label=3)])
    with pytest.raises(DataError, match="'wikihow 0' has the answer 0 on one side and 3"):
        compare(a, other, "acc_norm")


@pytest.mark.parametrize(
    ("protocol", "right", "answer"),
    [
        ("completion", 3300, BEATS),
        ("completion", 3098, BEATS),
        ("completion", 3080, CANNOT_TELL),
        ("completion", 2967, CANNOT_TELL),
        ("completion", 2850, CANNOT_TELL),
        ("completion", 2800, DOES_NOT),
        ("harness", 3098, CANNOT_TELL),
        ("harness", 3270, BEATS),
    ],
)
def test_the_margin_over_a_published_share_is_about_a_point_and_a_quarter(protocol, right, answer):
    """1.96 standard errors of a difference of two shares near 0.3 of 10,042 are 1.26 points."""
    c = compare_published(
        model(10_042, right, 0), gpt2_published("hellaswag", protocol, "acc_norm")
    )
    assert c.answer == answer
    variances = sum(p * (1 - p) / 10_042 for p in (right / 10_042, c.baseline))
    assert c.high - c.low == pytest.approx(2 * 1.96 * variances**0.5, rel=1e-3)
    assert c.paired is None
    assert f"{right / 10_042:.2%}" in c.sentence()


def test_protocols_that_disagree_leave_it_open():
    score = gpt2_published("hellaswag", "completion", "acc_norm")
    won, open_ = (compare_published(model(10_042, k, 0), score) for k in (3300, 2967))
    assert overall([won, won]) == BEATS
    assert overall([won, open_]) == CANNOT_TELL


def test_questions_can_be_left_out():
    a = made("1111000000")
    kept = answers.without(a, {"wikihow 0", "activitynet 4"})
    assert len(kept) == 8
    assert kept.right["acc_norm"].sum() == 3


def test_a_file_of_details_is_read_and_a_bad_one_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    rows = [example(i, i < 3) for i in range(9)]
    rows += [example(i, True, protocol="harness", pred_bytes=i % 4) for i in range(9)]
    rows += [{"task": "lambada", "protocol": "harness", "row": 4, "greedy": True}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    completion, harness, lambada = answers.read(path)
    assert (completion.protocol, harness.protocol, lambada.task) == (
        "completion", "harness", "lambada",
    )  # fmt: skip
    assert {m: int(r.sum()) for m, r in completion.right.items()} == {"acc": 0, "acc_norm": 3}
    assert {m: int(r.sum()) for m, r in harness.right.items()} == {
        "acc": 0, "acc_norm": 9, "acc_bytes": 9,
    }  # fmt: skip
    assert lambada.right["acc"].tolist() == [True]
    for bad, complaint in [
        ("", "it is empty"),
        ("{", "JSONDecodeError"),
        ("[1]", "AttributeError"),
        (json.dumps(example(1, True)) * 2, "Extra data"),
        ((json.dumps(example(1, True)) + "\n") * 2, "'activitynet 0' of hellaswag, completion"),
        (json.dumps({"ind": 1, "label": 0}), "no prediction"),
        (json.dumps({"label": 0, "pred": 1}), "KeyError"),
    ]:
        path.write_text(bad)
        with pytest.raises(DataError, match="DETAILS") as caught:
            answers.read(path)
        assert complaint in str(caught.value)
    with pytest.raises(DataError, match="cannot read"):
        answers.read(tmp_path / "none.jsonl")


def test_passages_are_contexts_with_each_ending():
    one = Item(["A man"], [" runs.", " sits."], keys={"ind": 7, "source_id": "wikihow~x"})
    two = Item(["He gave", "She gave"], [" it back."] * 2, keys={"row": 3})
    assert list(contamination.passages([one, two])) == [
        ("wikihow 7", "A man runs."),
        ("wikihow 7", "A man sits."),
        ("row 3", "He gave it back."),
        ("row 3", "She gave it back."),
    ]


@pytest.mark.parametrize("bad", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "task": "x"}'])
def test_a_bad_record_of_contamination_is_refused(tmp_path: Path, bad: str):
    path = tmp_path / "c.json"
    path.write_text(bad)
    with pytest.raises(DataError, match="not a record of contamination"):
        contamination.read(path)
