"""The choice of the fastest: what is measured, believed, remembered; and what is not."""

import json
import threading

import pytest
import torch

from outpace.ops import attention, cross_entropy, fastest

CPU = torch.device("cpu")
SHAPE = {"N": 4}


CLOCK = [0.0]
"""Seconds. Candidates say how long they take, so that no test waits or depends on the machine."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: CLOCK[0])
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels.json"


def candidate(seconds: float, value: float = 1.0):
    def work():
        CLOCK[0] += seconds
        return (torch.full((3,), value),)

    return work


def broken():
    raise RuntimeError("no kernel image\nand a long story")


def run(candidates, names=None):
    calls = []

    def prepare():
        calls.append(1)
        return candidate(0), candidates

    names = names or list(candidates)
    return fastest.fastest("test", CPU, torch.float32, SHAPE, names, prepare), len(calls)


def test_the_fastest_that_ran_and_agreed_is_taken():
    found, _ = run(
        {
            "slow": candidate(0.05),
            "fast": candidate(0.01),
            "wrong": candidate(0.0, value=1.5),
            "nan": candidate(0.0, value=float("nan")),
            "broken": broken,
        }
    )
    assert found.choice == "fast"
    assert found.ms == pytest.approx({"slow": 50.0, "fast": 10.0})
    assert found.excluded == {"wrong": "wrong by 50.0%", "nan": "wrong by nan%"} | {
        "broken": "no kernel image"
    }
    assert found.reason().startswith("fastest of fast 10 ms, slow 50 ms, measured here on ")
    assert "broken left out: no kernel image" in found.reason()


def test_a_tie_goes_to_the_first():
    assert run({"first": candidate(0.0505), "second": candidate(0.05)})[0].choice == "first"
    assert run({"1st": candidate(0.0515), "2nd": candidate(0.05)})[0].choice == "2nd"


def test_measured_once_and_again_for_what_is_new(cache):
    first, measured = run({"a": candidate(0)})
    assert measured == 1
    again, measured = run({"a": candidate(0)})
    assert (again, measured) == (first, 0)
    _, measured = run({"a": candidate(0), "b": candidate(0)})  # another package was installed
    assert measured == 1
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": 3}', b"\xff\xfe", None])
def test_a_damaged_or_foreign_file_is_as_good_as_none(cache, content):
    first, _ = run({"a": candidate(0)})
    if content is None:  # the entry itself is damaged
        key = next(iter(json.loads(cache.read_text())))
        content = json.dumps({key: {"choice": "b", "ms": {"a": 1.0}}})
    cache.write_bytes(content if isinstance(content, bytes) else content.encode())
    found, measured = run({"a": candidate(0)})
    assert (found.choice, measured) == (first.choice, 1)
    assert run({"a": candidate(0)})[1] == 0


def test_a_folder_that_cannot_be_written_costs_a_measurement(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "file" / "cache"))
    assert [run({"a": candidate(0)})[1] for _ in range(2)] == [1, 1]


def test_nothing_that_works_is_no_choice():
    assert run({"broken": broken, "wrong": candidate(0, 2.0)})[0] is None

    def no_memory():
        raise torch.OutOfMemoryError

    assert fastest.fastest("test", CPU, torch.float32, SHAPE, ["a"], no_memory) is None


def test_one_that_has_no_memory_just_now_is_not_left_out_for_good(cache):
    def no_memory():
        raise torch.OutOfMemoryError

    assert run({"first": no_memory, "second": candidate(0.05)})[0] is None
    assert not cache.exists()
    assert run({"first": candidate(0.01), "second": candidate(0.05)})[0].choice == "first"


def test_two_that_start_together_measure_once_and_choose_alike():
    found, measured = [], []

    def choose() -> None:
        names = ["a", "b"]
        found.append(fastest.fastest("test", CPU, torch.float32, SHAPE, names, prepare).choice)

    def prepare():
        measured.append(1)
        if not other.is_alive():
            other.start()  # while the first measures
            other.join(0.3)
        fast, slow = (0.01, 0.05) if len(measured) == 1 else (0.05, 0.01)
        return candidate(0), {"a": candidate(fast), "b": candidate(slow)}

    other = threading.Thread(target=choose)
    choose()
    other.join()
    assert found == ["a", "a"] and len(measured) == 1


def test_the_folder(monkeypatch, tmp_path):
    assert fastest.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("OUTPACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fastest.cache_folder() == tmp_path / "xdg" / "outpace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fastest.cache_folder() == tmp_path / ".cache" / "outpace"


def test_the_choices_on_a_cpu_are_not_measured(cache):
    assert attention.choose(CPU, torch.float32, 12, 1024, 64)[0] == "sdpa"
    assert cross_entropy.choose(CPU, torch.bfloat16, 768, 50304, True)[0] == "chunked"
    assert cross_entropy.choose(CPU, torch.float32, 768, 50304, True)[0] == "chunked"
    assert cross_entropy.choose(CPU, torch.float32, 768, 50304, False)[0] == "chunked"
    assert not cache.exists()


def test_the_real_candidates_run_and_agree():
    """What `choose` measures on a GPU, at a small size here."""
    work = attention._candidates(
        CPU, torch.bfloat16, {"B": 2, "H": 2, "T": 32, "D": 16}, ["sdpa", "flash"]
    )
    found = fastest.measure(*work, CPU, fastest.TOLERANCE[torch.bfloat16])
    assert found.ms.keys() == {"sdpa", "flash"}
    for dtype in (torch.float32, torch.bfloat16):
        work = cross_entropy._candidates(
            CPU, dtype, {"N": 64, "C": 16, "V": 512}, ["eager", "chunked"]
        )
        found = fastest.measure(*work, CPU, fastest.TOLERANCE[dtype])
        assert found.ms.keys() == {"eager", "chunked"}, found.excluded


@pytest.mark.gpu
def test_the_choices_on_a_gpu_are_measured(cache):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    cuda = torch.device("cuda")
    name, reason = attention.choose(cuda, torch.bfloat16, 4, 256, 64)
    assert name in attention.BACKENDS.names()
    assert "measured here" in reason
    name, reason = cross_entropy.choose(cuda, torch.bfloat16, 64, 1024, False)
    assert name in cross_entropy.LOSSES.names()
    assert "measured here" in reason
    assert len(json.loads(cache.read_text())) == 2
