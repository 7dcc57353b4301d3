"""What the race of preparations is made of: the corpus, the peer's script, the clock."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from outpace.bench.prepare import documents, measure, nanogpt_command, write_corpus
from outpace.core.errors import DataError

SCRIPT = """num_proc = 8
dataset = load_dataset("openwebtext", num_proc=num_proc)
total_batches = 1024
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    path = tmp_path / "nanoGPT" / "data" / "openwebtext" / "prepare.py"
    path.parent.mkdir(parents=True)
    path.write_text(SCRIPT)
    return tmp_path / "nanoGPT"


def test_documents_are_whole_lines_of_the_text_in_order():
    texts = [f"line {n}\n" * 3000 for n in range(20)]
    cut = list(documents(texts, 0.3))
    assert "".join(texts).startswith("".join(cut))
    assert all(text.endswith("\n") for text in cut)
    assert 0.3e6 <= sum(map(len, cut)) < 0.36e6
    assert len(set(map(len, cut))) > 10


def test_a_corpus_is_linked_as_often_as_it_is_repeated(tmp_path):
    (tmp_path / "x.txt").write_text("".join(f"line {n}\n" for n in range(30_000)))
    size = write_corpus(tmp_path / "corpus", [str(tmp_path / "x.txt")], 0.2, 3)
    files = sorted((tmp_path / "corpus").iterdir())
    assert len(files) == 12
    texts = [t for f in files for t in pq.read_table(f)["text"].to_pylist()]
    assert sum(len(t.encode()) for t in texts) == size
    assert texts[: len(texts) // 3] * 3 == texts
    with pytest.raises(DataError, match="are needed"):
        write_corpus(tmp_path / "more", [str(tmp_path / "x.txt")], 50, 1)


def test_three_lines_of_nanogpts_script_are_changed_and_another_script_is_refused(
    checkout, tmp_path
):
    command, env = nanogpt_command(checkout, "python", tmp_path / "corpus", tmp_path / "run", 2)
    assert command == ["python", str(tmp_path / "run" / "prepare.py")]
    script = Path(command[1]).read_text()
    assert script == (
        "num_proc = 2\n"
        'dataset = load_dataset("parquet", data_files=[], num_proc=num_proc)\n'
        "total_batches = min(1024, len(dset))\n"
    )
    assert len(list(Path(env["TIKTOKEN_CACHE_DIR"]).iterdir())) == 2
    path = checkout / "data" / "openwebtext" / "prepare.py"
    path.write_text(SCRIPT.replace("1024", "512"))
    with pytest.raises(DataError, match="has changed: no 'total_batches = 1024'"):
        nanogpt_command(checkout, "python", tmp_path / "corpus", tmp_path / "again", 2)


def test_a_run_is_measured_with_its_children_and_a_failed_one_is_told(tmp_path):
    child = "import time; data = bytearray(150_000_000); time.sleep(0.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    code += "; open('left.bin', 'wb').write(bytes(10)); sum(range(3_000_000))"
    (tmp_path / "cache").write_bytes(bytes(5000))
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {code}"]
    run = measure(command, tmp_path, tmp_path.parent / "log")
    assert run.peak_bytes > 150e6
    assert run.seconds > 0.5
    assert 0.02 < run.cpu_seconds < 10
    assert run.peak_disk_bytes == 5000
    with pytest.raises(DataError, match=r"(?s)ended with 1: .*ValueError: no"):
        measure([sys.executable, "-c", "raise ValueError('no')"], tmp_path, tmp_path.parent / "log")
