"""Preparation on other engines than the threads of one process: the same bytes, whoever did what,
in whatever order, and however often it was interrupted."""

import dataclasses
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import files

from outpace.cli.main import main
from outpace.core.errors import DataError, PeerLost, RunInUse, UsageError
from outpace.data import rank_parts
from outpace.data.encode import Work, encode_chunk
from outpace.data.folder import locked
from outpace.data.prepare import PrepareOptions, prepare
from outpace.data.rank_parts import PARTS, part_of, prepare_share, ranks_from, read_part, write_part
from outpace.data.ray_engine import RayEngine, outcomes, piece_of
from outpace.data.shards import MANIFEST, verify_dataset
from outpace.data.sources.files import FilesSource

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = PrepareOptions(
    tokenizer="bytes", val_fraction=0.1, shard_tokens=12_000,
    filters=("characters>=20",), near_duplicates=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine files, each a chunk: some with copies and near copies of others, one with nothing."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(5)
    words = ["gull", "rail", "water", "owed", "boat", "mill", "short", "road", "pier", "cold"]
    last: list[str] = []
    for number in range(9):
        texts = [" ".join(rng.choices(words, k=rng.randint(3, 120))) for _ in range(40)]
        texts += last[:3] + [text + " and so on" for text in last[3:5]] + ["", "short"]
        last = texts
        lines = [json.dumps({"text": text}) for text in (texts if number != 4 else [])]
        (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def source(corpus: Path) -> FilesSource:
    made = FilesSource([str(corpus)])
    assert len(made.chunks()) > 5
    return made


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of what one process makes."""
    folder = tmp_path_factory.mktemp("alone") / "data"
    verify_dataset(prepare(source(corpus), folder, OPTIONS, workers=2))
    found = files(folder)
    assert len(found) > 8
    return found


def share(corpus: Path, output: Path, rank: int, world: int) -> bool:
    """Whether this rank merged, or found it done."""
    made = prepare_share(
        source(corpus), output, OPTIONS, rank=rank, world_size=world, workers=1
    )  # fmt: skip
    return made is not None


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), tuple(range(12))], ids=str)
def test_ranks_in_any_order_give_the_bytes_of_one_process(corpus, alone, tmp_path, order):
    merged = [share(corpus, tmp_path / "data", rank, len(order)) for rank in order]
    last_with_work = max(i for i, rank in enumerate(order) if rank < len(source(corpus).chunks()))
    assert merged == [i >= last_with_work for i in range(len(order))]
    assert files(tmp_path / "data") == alone
    assert not (tmp_path / "data" / PARTS).exists()
    assert share(corpus, tmp_path / "data", 0, len(order)), "once more: it is there"
    assert files(tmp_path / "data") == alone


def test_another_number_of_ranks_goes_on_from_the_parts_that_are_there(
    corpus, alone, tmp_path, monkeypatch
):
    assert not share(corpus, tmp_path / "data", 1, 3)
    done, write = [], rank_parts.write_part
    monkeypatch.setattr(
        rank_parts, "write_part", lambda path, pieces: (done.append(path.name), write(path, pieces))
    )
    assert not share(corpus, tmp_path / "data", 0, 2)
    assert share(corpus, tmp_path / "data", 1, 2)
    assert sorted(done) == [f"{n:06d}.zip" for n in range(9) if n % 3 != 1]
    assert files(tmp_path / "data") == alone


def test_a_merge_that_was_interrupted_goes_on(corpus, alone, tmp_path, monkeypatch):
    real, seen = rank_parts.read_part, []

    def dies(path: Path):
        seen.append(path.name)
        if len(seen) == 6:
            raise KeyboardInterrupt
        yield from real(path)

    assert not share(corpus, tmp_path / "data", 0, 2)
    monkeypatch.setattr(rank_parts, "read_part", dies)
    with pytest.raises(KeyboardInterrupt):
        share(corpus, tmp_path / "data", 1, 2)
    assert not (tmp_path / "data" / MANIFEST).exists()
    assert share(corpus, tmp_path / "data", 0, 2)
    assert files(tmp_path / "data") == alone


def test_two_ranks_that_finish_together_do_not_both_merge(corpus, tmp_path):
    assert not share(corpus, tmp_path / "data", 0, 2)
    with locked(tmp_path / "data"):  # the other rank, at its merge
        assert not share(corpus, tmp_path / "data", 1, 2)
    with pytest.raises(RunInUse), locked(tmp_path / "data"), locked(tmp_path / "data"):
        pass
    assert share(corpus, tmp_path / "data", 1, 2)


def test_a_part_cut_short_is_named_and_made_again_when_it_is_gone(corpus, alone, tmp_path):
    assert not share(corpus, tmp_path / "data", 0, 2)
    (folder,) = (tmp_path / "data" / PARTS).iterdir()
    os.truncate(part_of(folder, 2), 700)
    with pytest.raises(DataError, match=r"000002\.zip"):
        share(corpus, tmp_path / "data", 1, 2)
    part_of(folder, 2).unlink()
    assert not share(corpus, tmp_path / "data", 1, 2)
    assert share(corpus, tmp_path / "data", 0, 2)
    assert files(tmp_path / "data") == alone


def test_ranks_with_other_options_do_not_finish_together_and_say_so(corpus, tmp_path, capsys):
    """The last one's would have won."""
    output, other = tmp_path / "data", dataclasses.replace(OPTIONS, val_fraction=0.5)
    assert not share(corpus, output, 1, 2)
    assert prepare_share(source(corpus), output, other, rank=0, world_size=2, workers=1) is None
    said = capsys.readouterr().err
    assert "has parts of other text or other options" in said and str(output / PARTS) in said
    assert share(corpus, output, 0, 2), "as the first was given"
    assert not (output / PARTS).exists()


def test_parts_go_when_another_command_has_made_the_dataset(corpus, tmp_path):
    assert not share(corpus, tmp_path / "data", 1, 2)
    prepare(source(corpus), tmp_path / "data", OPTIONS)
    assert share(corpus, tmp_path / "data", 0, 2)
    assert not (tmp_path / "data" / PARTS).exists()


def test_other_text_does_not_take_the_parts_of_the_first(corpus, tmp_path):
    assert not share(corpus, tmp_path / "data", 0, 2)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in corpus.iterdir():
        (copy / path.name).write_text(path.read_text().replace("gull", "mew"))
    assert not share(copy, tmp_path / "data", 1, 2), "the parts of rank 0 are of other text"


def test_pieces_come_back_from_a_part_as_they_were(corpus, tmp_path):
    work = Work("bytes", near_duplicates=True)
    for number, chunk in enumerate(source(corpus).chunks()):
        pieces = list(encode_chunk(chunk, work))
        write_part(tmp_path / "part.zip", pieces)
        back = list(read_part(tmp_path / "part.zip"))
        assert repr(back) == repr(pieces), number
        for a, b in zip(back, pieces, strict=True):
            assert a.ids.tolist() == b.ids.tolist() and a.ids.dtype == b.ids.dtype


def test_a_part_is_gone_through_once_however_many_pieces_it_has(corpus, tmp_path, monkeypatch):
    rounds = []

    class Names(list):
        def __iter__(self):
            rounds.append(1)
            return super().__iter__()

    [chunk, *_] = source(corpus).chunks()
    pieces = list(encode_chunk(chunk, Work("bytes"))) * 3
    write_part(tmp_path / "part.zip", pieces)
    namelist = zipfile.ZipFile.namelist
    monkeypatch.setattr(zipfile.ZipFile, "namelist", lambda file: Names(namelist(file)))
    assert len(list(read_part(tmp_path / "part.zip"))) == len(pieces) >= 3
    assert len(rounds) == 1


def test_a_source_so_small_that_it_takes_a_second_pass(tmp_path):
    """A single document, which is cut in two."""
    (tmp_path / "one.txt").write_text("The gull owed the mill a boat.\n" * 30)
    options = PrepareOptions(tokenizer="bytes", val_fraction=0.1)
    text = FilesSource([str(tmp_path / "one.txt")])
    prepare(text, tmp_path / "alone" / "data", options)
    made = [
        prepare_share(text, tmp_path / "data", options, rank=r, world_size=2, workers=1)
        for r in (1, 0)
    ]
    assert made[0] is None and made[1] is not None
    assert files(tmp_path / "data") == files(tmp_path / "alone" / "data")


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None), TORCHRUN, (3, 8)),
        ((None, None), ARRAY, (4, 8)),
        ((None, None), ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, (2, 8)),
        ((None, None), {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 2)),
        ((1, 2), TORCHRUN, (1, 2)),
        ((None, None), TORCHRUN | ARRAY, (3, 8)),
    ],
)
def test_the_rank_is_that_of_the_flags_or_of_what_started_us(flags, environment, expected):
    assert ranks_from(*flags, environment) == expected


@pytest.mark.parametrize(
    ("flags", "environment"),
    [((None, None), {}), ((2, 2), {}), ((1, None), TORCHRUN), ((None, None), {"RANK": "1"})],
)
def test_a_rank_that_cannot_be_is_refused(flags, environment):
    with pytest.raises(UsageError):
        ranks_from(*flags, environment)


def outpace(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outpace", "prepare", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_two_ranks_on_the_command_line_at_the_same_time(corpus, alone, tmp_path):
    flags = [
        "files", "--input", str(corpus), "--output", str(tmp_path / "data"),
        "--val_fraction", "0.1", "--shard_tokens", "12000", "--filter", "characters>=20",
        "--near_duplicates", "--tokenizer", "bytes", "--engine", "ranks", "--workers", "1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "outpace", "prepare", *flags]
    running = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert sum("training tokens in" in out for out, _ in said) in (1, 2)
    assert files(tmp_path / "data") == alone


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--engine", "ranks"], "RANKS"),
        (["--engine", "ray", "--rank", "0", "--world_size", "2"], "BAD-VALUE"),
        (["--address", "local"], "BAD-VALUE"),
        (["--rank", "3", "--world_size", "2"], "RANKS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flags_that_do_not_go_together(corpus, tmp_path, capsys, flags, name):
    command = ["prepare", "files", "--input", str(corpus), "--output", str(tmp_path / "data")]
    assert main([*command, *flags]) == 2
    assert f"error[{name}]" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


# Ray.


def test_without_a_cluster_the_error_names_the_address(corpus, tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(PeerLost, match=r"no Ray cluster at 127\.0\.0\.1:1"):
        prepare(source(corpus), tmp_path / "data", OPTIONS, engine=RayEngine("127.0.0.1:1"))


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.txt").write_text("some text")
    argv = ["prepare", "files", "--input", str(tmp_path / "a.txt"), "--engine", "ray"]
    assert main([*argv, "--output", str(tmp_path / "made")]) == 2
    assert "has no package ray; do: pip install 'outpace[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_fault_in_the_input_comes_whole_from_a_worker(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "well"}\n{"text": oh\n')
    (chunk,) = FilesSource([str(tmp_path / "bad.jsonl")]).chunks()
    with pytest.raises(DataError) as here:
        list(encode_chunk(chunk, Work("bytes")))
    sent = pickle.loads(pickle.dumps(list(outcomes(chunk, Work("bytes"), 0))))
    with pytest.raises(DataError, match="line 2") as there:
        [piece_of(outcome) for outcome in sent]
    assert str(there.value) == str(here.value)


@pytest.mark.slow
def test_two_ray_workers_give_the_bytes_of_one_process(corpus, alone, tmp_path):
    pytest.importorskip("ray")
    flags = [
        "--val_fraction", 0.1, "--shard_tokens", 12000, "--filter", "characters>=20",
        "--near_duplicates", "--tokenizer", "bytes", "--engine", "ray", "--address", "local",
        "--workers", 2,
    ]  # fmt: skip
    done = outpace("files", "--input", corpus, "--output", tmp_path / "data", *flags)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "data") == alone
