"""Files, names and text from others: none runs code, takes memory it does not have, writes outside
its folder, follows a link, commands a terminal or a browser, or carries a secret away."""

import ast
import http.server
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fuzz_models
import psutil
import pytest
import torch
from conftest import ROOT, TINY, outpace, serving
from fake_hub import Hub
from fuzz_models import MANIFEST, MODEL, STATE, Touch
from harness import Child, Sentinel, call, start
from made_up_run import HOSTILE, Elements, figures_of, make_run, poison, text_of

from outpace.cli.main import main
from outpace.core.secrets import redact

PACKAGE = ROOT / "outpace"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint, Hugging Face folder and ckpt.pt."""
    return fuzz_models.originals(tmp_path_factory.mktemp("good"))


def flags(dataset: Path | str, run: Path | str, steps: int = 3, *more: str) -> list[str]:
    return [
        "train", *TINY, "--dataset", str(dataset), "--run_dir", str(run),
        "--max_steps", str(steps), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A run of 4 steps with a checkpoint at each, two kept. Not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    child = call(*flags(tiny_dataset, "run", 4, "--save_every_steps", "1"), cwd=folder)
    assert child.code == 0, child.err
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def refused(capfd: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    """Exit code and error line of a command line that fails without a traceback."""
    capfd.readouterr()
    code = main([str(a) for a in argv])
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert code not in (0, 1), err
    assert err.count("error[") == 1, err
    return code, err.rstrip().rpartition("\n")[2]


def assert_one_line(child: Child, *codes: int) -> None:
    assert child.code in codes, child.err
    assert "Traceback" not in child.err
    assert child.err.rstrip().rpartition("\n")[2].startswith("error["), child.err


# Q1 to Q3, Q11: models made up by others.


def test_q1_q2_q11_models_damaged_in_400_ways_are_refused_and_never_computed_with(
    good, tmp_path, capfd
):
    """One process meets them all: its peak memory stays that of the sound ones and a little."""
    for sound in ("ckpt", "hf", "nano/ckpt.pt"):
        assert main(fuzz_models.sample(good / sound)) == 0
    sealed = Path(shutil.copytree(good / "ckpt", tmp_path / "sealed"))
    fuzz_models.seal(sealed)
    assert main(fuzz_models.sample(sealed)) == 0, "what the fuzz seals must be accepted"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for i, case in enumerate(fuzz_models.cases(good)):
        folder = tmp_path / str(i)
        folder.mkdir()
        argv = case.make(folder)
        capfd.readouterr()
        code = main(argv)
        err = capfd.readouterr().err
        lines = err.count("error[")
        touched = (folder / fuzz_models.CANARY).exists() or (folder / "out").exists()
        if code not in case.codes or lines != (code != 0) or "Traceback" in err or touched:
            wrong.append(f"{case.name}: {code}, {err[-200:]!r}")
        shutil.rmtree(folder)
    assert not wrong, "\n" + "\n".join(wrong)
    assert i >= 400
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 300


def test_q1_a_pickle_in_the_place_of_the_optimizers_state_is_not_opened(run, tmp_path):
    """With right hashes, as whoever wrote it would have made them."""
    import pickle

    canary = tmp_path / "canary"
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (checkpoint / "optimizer.safetensors").write_bytes(pickle.dumps(Touch(canary)))
        fuzz_models.seal(checkpoint)
    command = json.loads((run / "plan.json").read_text())["command"]
    child = call(*command, "--max_steps", "6", cwd=tmp_path)
    assert_one_line(child, 4)
    assert not canary.exists()


@pytest.mark.parametrize("file", ["encoder.json", "vocab.bpe"])
def test_q1_a_pickle_in_the_place_of_the_vocabulary_is_not_opened(
    file, tmp_path, monkeypatch, capfd
):
    import pickle

    from outpace.tokenizer import gpt2, shared

    folder = Path(shutil.copytree(gpt2.VOCAB_FOLDER, tmp_path / "vocabulary"))
    (folder / file).write_bytes(pickle.dumps(Touch(tmp_path / "canary")))
    monkeypatch.setattr(gpt2, "VOCAB_FOLDER", folder)
    gpt2._built.cache_clear()
    shared.release()  # a preparation that was refused early leaves it
    (tmp_path / "a.txt").write_text("some text")
    try:
        code, line = refused(capfd, "prepare", "files", "--input", str(tmp_path / "a.txt"),
                             "--output", str(tmp_path / "out"), "--workers", "1")  # fmt: skip
    finally:
        gpt2._built.cache_clear()
    assert code == 3
    assert "VOCABULARY" in line
    assert not (tmp_path / "canary").exists()


def test_q1_the_tokenizer_reads_no_cache_of_others(tmp_path):
    """tiktoken keeps downloaded vocabularies; one that was tampered with is not even looked at."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for url in ("encoder.json", "vocab.bpe"):
        (cache / url).write_text("x")
    (tmp_path / "a.txt").write_text("some text " * 100)
    env = {"TIKTOKEN_CACHE_DIR": str(cache), "DATA_GYM_CACHE_DIR": str(cache)}
    done = outpace("prepare", "files", "--input", "a.txt", "--output", "out", cwd=tmp_path, **env)
    assert done.returncode == 0
    assert sorted(p.name for p in cache.iterdir()) == ["encoder.json", "vocab.bpe"]


def test_q2_old_torch_is_not_trusted_with_foreign_files(good, monkeypatch, capfd):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    code, line = refused(capfd, *fuzz_models.sample(good / "nano" / "ckpt.pt"))
    assert code == 4
    assert "torch>=2.11" in line


@pytest.mark.parametrize("name", [
    "nanogpt-deflate-bomb", "nanogpt-bytearray-bomb", "nanogpt-stride-0",
    "nanogpt-n_layer-1000000000", "huggingface-n_layer-1000000000",
    "huggingface-weights-header-length-9223372036854775808",
    "checkpoint-sample-sealed-shape-[1000000000000, 10000000",
    "checkpoint-sample-n_layer-1000000000",
])  # fmt: skip
def test_q2_what_would_take_all_memory_is_refused_within_a_little(name, good, tmp_path):
    """In a process that may take 2 GiB of addresses beside PyTorch's own."""
    case = next(c for c in fuzz_models.cases(good) if c.name.startswith(name))
    argv = case.make(tmp_path)
    most = psutil.Process().memory_info().vms + (2 << 30)
    child = call(*argv, cwd=tmp_path, limits={resource.RLIMIT_AS: most}, timeout=60)
    assert_one_line(child, 4)


# Q3, Q4: paths.


@pytest.mark.parametrize("argv", [
    ["train", "--dataset", "../../x"], ["train", "--dataset", "/no/such"],
    ["train", "--dataset", "a\0b"], ["train", "--run_dir", "a\0b"], ["train", "--recipe", "a\0b"],
    ["train", "--init_from", "a\0b"], ["train", "--init_from", "../../x.pt"],
    ["train", "--resume", "a\0b"], ["sample", "a\0b"], ["sample", "hf:../../x"],
    ["sample", "hf:a/b/../../c"], ["sample", "hf:a\0b"], ["evaluate", "a\0b"],
    ["evaluate", "x", "--output", "a\0b/c"], ["convert", "a\0b", "out"],
    ["convert", "HF", "a\0b"], ["report", "a\0b"], ["verify", "a\0b"], ["status", "a\0b"],
    ["prepare", "files", "--input", "a\0b"], ["prepare", "hellaswag", "--input", "a\0b"],
])  # fmt: skip
def test_q3_names_that_lead_out_or_nowhere_write_nothing(argv, good, tmp_path, tiny_dataset):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    before = Sentinel(tmp_path, folder / "no-run")
    argv = [str(good / "hf") if a == "HF" else a for a in argv]
    if argv[0] == "train":
        argv = ["train", *TINY, "--dataset", str(tiny_dataset), "--max_steps", "1", *argv[1:]]
    env = Hub({}, address="http://127.0.0.1:9").env(Path(tempfile.mkdtemp(dir=tmp_path.parent)))
    child = call(*argv, cwd=folder, env=env)
    assert_one_line(child, 2, 3, 4, 5, 10)
    before.check()


@pytest.mark.parametrize("name", ["../../../x", "/tmp/x", "a/b", "..", "a\0b", "", "x" * 300, "\n"])
def test_q3_a_datasets_name_does_not_lead_out_of_runs(name, tmp_path, tiny_dataset):
    """The run folder is named after the dataset, and the dataset says how it is named."""
    folder = tmp_path / "deep" / "er"
    data = Path(shutil.copytree(tiny_dataset, folder / "data" / "d"))
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(manifest | {"name": name}))
    before = Sentinel(tmp_path, folder / "runs")
    argv = ["train", *TINY, "--dataset", "d", "--max_steps", "1"]
    child = call(*argv, cwd=folder)
    assert child.code in (0, 2, 3), child.err
    before.check()
    if child.code == 0:
        (run,) = (folder / "runs").iterdir()
        assert (run / "STATUS.json").is_file()


@pytest.mark.parametrize("name", ["../../x.bin", "/etc/passwd", "a\0b", "..", "", "sub/x.bin"])
def test_q3_a_datasets_files_are_those_in_its_folder(name, tmp_path, tiny_dataset):
    data = Path(shutil.copytree(tiny_dataset, tmp_path / "a" / "data"))
    shard = next(data.glob("train_*.bin"))
    shutil.copy(shard, tmp_path / "x.bin")
    (data / "sub").mkdir()
    shutil.copy(shard, data / "sub" / "x.bin")
    manifest = json.loads((data / "manifest.json").read_text())
    entry = next(s for s in manifest["shards"] if s["file"] == shard.name)
    entry["file"] = name
    (data / "manifest.json").write_text(json.dumps(manifest))
    child = call(*flags(data, tmp_path / "a" / "run", 1), cwd=tmp_path)
    assert_one_line(child, 3)
    assert not (tmp_path / "a" / "run").exists()


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "a\0b", "..", "sub/x"])
def test_q3_a_checkpoints_files_are_those_in_its_folder(name, good, tmp_path, capfd):
    folder = Path(shutil.copytree(good / "ckpt", tmp_path / "a" / "ckpt"))
    (tmp_path / "outside").write_text("x")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"][STATE]
    fuzz_models.write_manifest(folder, manifest)
    assert refused(capfd, "verify", folder)[0] == 4
    assert refused(capfd, *fuzz_models.sample(folder))[0] == 4


def test_q3_paths_in_a_recipe_are_flags_and_refused_like_them(tmp_path, tiny_dataset):
    for line in ('run_dir = "a\\u0000b"', 'run_dir = ""', 'resume = "../../nowhere"'):
        (tmp_path / "r.toml").write_text(f"[run]\n{line}\n")
        argv = ["train", *TINY, "--dataset", str(tiny_dataset), "--recipe", "r.toml"]
        before = Sentinel(tmp_path, tmp_path / "no-run")
        assert_one_line(call(*argv, "--max_steps", "1", cwd=tmp_path), 2, 4, 5)
        before.check()


def test_q4_checkpoints_that_are_links_are_neither_read_nor_deleted(run, tmp_path, tiny_dataset):
    """The folder holds a link with a checkpoint's name, one with a leftover's, and one inside a
    checkpoint; training goes on, prunes and sweeps, and what they lead to stays."""
    outside = Path(shutil.copytree(run / "checkpoints" / "step-00000003", tmp_path / "outside"))
    checkpoints = run / "checkpoints"
    (checkpoints / "step-00000001").symlink_to(outside)
    (checkpoints / "step-00000009").symlink_to(outside)
    (checkpoints / ".tmp-3-0123abcd").symlink_to(outside)
    (checkpoints / ".del-3-0123abcd").symlink_to(outside)
    inner = checkpoints / "step-00000003" / MODEL
    inner.unlink()
    inner.symlink_to(outside / MODEL)
    before = Sentinel(outside, run)
    child = call(*flags(tiny_dataset, run, 8, "--save_every_steps", "1"), cwd=tmp_path)
    assert child.code == 0, child.err
    before.check()
    assert json.loads((run / "STATUS.json").read_text())["last_step"] == 8
    for link in ("step-00000001", "step-00000009"):
        assert (checkpoints / link).is_symlink()


def test_q4_a_link_inside_a_checkpoint_is_a_fault(run, tmp_path, capfd):
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    moved = tmp_path / "moved"
    (newest / MODEL).rename(moved)
    (newest / MODEL).symlink_to(moved)
    assert refused(capfd, "verify", newest)[0] == 4


def test_q4_a_checkpoints_folder_that_is_a_link_is_not_emptied(run, tmp_path, tiny_dataset):
    """As when a disk was full and its owner moved the checkpoints: the run goes on there, and
    lets go of its own checkpoints only."""
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    (elsewhere / "notes").mkdir()
    (elsewhere / "notes" / "mine.txt").write_text("mine")
    child = call(*flags(tiny_dataset, run, 6, "--save_every_steps", "1"), cwd=tmp_path)
    assert child.code in (0, 4, 5), child.err
    assert (elsewhere / "notes" / "mine.txt").read_text() == "mine"
    assert (run / "checkpoints").is_symlink()


# Q5: the report.

PAYLOAD = (
    "</script></style></title><script>document.documentElement.dataset.owned=1</script>"
    "<img src=x onerror='document.documentElement.dataset.owned=2'>"
    "<a href='javascript:document.documentElement.dataset.owned=3'>x</a>\"'`"
)


def test_q5_text_from_the_records_is_only_ever_text(tmp_path):
    from outpace.report.load import load_run, load_runs
    from outpace.report.page import page

    whole = page([load_run(make_run(tmp_path / "whole"))])
    root = make_run(tmp_path / "<b onload=x>&amp;%{x}", steps=300, data_set=HOSTILE, prompt=HOSTILE)
    poison(root)
    for html in (page([load_run(root)]), page(load_runs([root, make_run(tmp_path / "b")]))):
        html.encode()  # a lone surrogate would refuse
        parsed = Elements(html)
        kinds = {tag for tag, _ in parsed.elements}
        assert "img" not in kinds
        assert kinds <= {tag for tag, _ in Elements(whole).elements} | {"ul", "li", "tr", "b"}
        names = {name for _, attributes in parsed.elements for name in attributes}
        assert not {name for name in names if name.startswith("on")}
        assert html.count("<script") - html.count("<script>") == 2  # the two blocks of JSON
        without_plotly = re.sub("<script>.*?</script>", "", html, flags=re.DOTALL)
        assert not set("\x1b\x00\u202e\r") & set(without_plotly)
        assert "https://evil.test/x onerror" in " ".join(parsed.text)  # shown, so not lost either
        for figure in figures_of(html).values():
            for trace in figure["data"]:
                assert "<" not in trace.get("name", "")
            for note in figure["layout"].get("annotations", []):
                assert "<" not in note["text"]


@contextmanager
def listener() -> Iterator[tuple[str, list[str]]]:
    """An address on this machine, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address, asked


def in_a_browser(page: Path, home: Path) -> str:
    """The document after its scripts ran."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip("no Chromium to open the page with")
    command = [
        browser, "--headless", "--no-sand" "box", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={home}", "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_q5_a_browser_runs_the_pages_own_scripts_and_no_other(tmp_path):
    from outpace.report.page import write_report

    with listener() as (address, asked):
        payload = PAYLOAD + f"<img src={address}/a><link rel=stylesheet href={address}/b>"
        control = tmp_path / "control.html"
        control.write_text(f"<html><body>{payload}</body></html>")
        assert "data-owned" in in_a_browser(control, tmp_path / "c"), "the payload works if let"
        assert asked, "and asks"
        asked.clear()
        name = "<img src=x onerror=document.documentElement.dataset.owned=4>"
        root = make_run(tmp_path / name, steps=100, data_set=payload, prompt=payload)
        with open(root / "metrics.jsonl", "a") as f:
            f.write(json.dumps({"step": 9999, "loss": 3.0, payload: 1.0}) + "\n")
        (root / "STATUS.json").write_text(json.dumps({"state": "failed", "reason": payload}))
        dom = in_a_browser(write_report([root], tmp_path / "r.html"), tmp_path / "h")
    assert "data-owned" not in dom
    assert 'class="main-svg"' in dom, "the figures were drawn, so scripts did run"
    assert not asked


# U11: records that are cut, noise, no numbers or very many.


def _garbage(path: Path) -> None:
    noise = bytes(range(256)) * 40
    path.write_bytes(noise + b"\n" + path.read_bytes()[:-9] + b"\n" + noise)


@pytest.mark.parametrize("damage", [
    lambda p: p.write_bytes(p.read_bytes()[:-9]), _garbage,
    lambda p: p.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity}\n[[[\n'),
    lambda p: p.write_text('{"step": 1, "loss": 3}\n' + "[" * 100_000),
    lambda p: p.write_bytes(b"\0" * 3_000_000),
], ids=["cut", "noise", "nan", "deep", "one-line"])  # fmt: skip
def test_u11_a_damaged_metrics_file_still_makes_a_report_that_says_so(damage, tmp_path, capfd):
    root = make_run(tmp_path / "run", steps=100)
    damage(root / "metrics.jsonl")
    assert main(["report", str(root)]) == 0
    text = text_of((root / "report.html").read_text())
    assert re.search(r"metrics\.jsonl has (a line that is|\d+ lines that are) incomplete", text)


@pytest.mark.exhaustive
def test_u11_a_million_records_make_a_page_of_the_usual_size(tmp_path):
    root = make_run(tmp_path / "run", steps=100)
    with open(root / "metrics.jsonl", "w") as f:
        f.writelines(f'{{"step":{i},"tokens":{i},"loss":{3 + 1 / i}}}\n' for i in range(1, 10**6))
    code = (
        "from outpace.cli.main import main\n"
        "from outpace.runtime.hardware import peak_resident_bytes\n"
        "assert main(['report', 'run']) == 0\n"
        "print(peak_resident_bytes() // 1024)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 600 * 1024
    page = (root / "report.html").read_text()
    assert len(page) < 20_000_000
    assert "Of the 999,999 records in metrics.jsonl, only one in " in text_of(page)


# Q6: the terminal.

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b1m\u202e\r\x08"


def test_q6_a_models_escapes_are_shown_and_not_obeyed(good, tmp_path, capfd):
    """A model of bytes at temperature 1000 says any byte, escapes among them."""
    argv = ["sample", str(good / "ckpt"), "--prompt", ESCAPES, "--max_new_tokens", "900"]
    assert main([*argv, "--temperature", "1000", "--top_k", "0", "--device", "cpu"]) == 0
    out = capfd.readouterr().out
    assert "\\x1b]0;owned\\x07" in out
    assert not set(out) & set(map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E]))


def test_q6_names_and_samples_in_a_runs_log_are_shown_and_not_obeyed(tmp_path, tiny_dataset):
    name = "run\x1b]0;owned\x07"
    child = call(*flags(tiny_dataset, tmp_path / name, 2, "--sample_tokens", "64",
                        "--sample_prompt", ESCAPES), cwd=tmp_path)  # fmt: skip
    assert child.code == 0, child.err
    said = child.out_file.read_bytes() + child.err_file.read_bytes()
    assert b"\x1b" not in said
    assert b"\x07" not in said
    assert b"\\x1b]0;owned" in said
    assert main(["status", str(tmp_path / name)]) == 0


# Q7: secrets.

SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz", "AWS_SECRET_ACCESS_KEY": "wJalrXUtn/FEMI'K7\"MD+x",
    "DB_PASSWORD": "correct horse\nbattery staple", "MY_API_KEY": "key-0123456789",
}  # fmt: skip
URL = "https://someone:pa55-w0rd@example.com/model"


def leaks(folder: Path) -> list[str]:
    """Files below a folder in which a secret stands, as it is or as JSON or Python write it."""
    wanted = ["pa55-w0rd"]
    for value in SECRETS.values():
        wanted += [value, json.dumps(value)[1:-1], repr(value)[1:-1]]
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [str(path) for w in wanted if w.encode() in content or w in path.name]
    return found


def _crash(folder: str) -> None:
    """In a child: a bug in planning, whose message holds what it should not."""
    from outpace.train import run

    tempfile.tempdir = folder
    sys.argv = ["outpace", SECRETS["HF_TOKEN"], URL, SECRETS["DB_PASSWORD"]]

    def plan_run(*_: object, **__: object) -> None:
        raise AssertionError(f"no {SECRETS['HF_TOKEN']} {SECRETS['AWS_SECRET_ACCESS_KEY']!r} {URL}")

    run.plan_run = plan_run


def test_q7_a_crash_tells_no_secret(tmp_path, tiny_dataset):
    child = call(*flags(tiny_dataset, tmp_path / "run"), cwd=tmp_path, env=SECRETS, setup=_crash,
                 args=(str(tmp_path),))  # fmt: skip
    assert child.code == 1
    (report,) = tmp_path.glob("crash-*.txt")
    text = report.read_text()
    assert "plan_run" in text, "the traceback is there"
    assert "https://***@example.com/model" in text
    assert "error[BUG]: AssertionError: no *** " in child.err
    assert not leaks(tmp_path)


def test_q7_a_run_tells_no_secret(tmp_path, tiny_dataset):
    """One whose command line holds them: logs, plan, status, events, records, report, config."""
    prompt = f"{SECRETS['HF_TOKEN']} {URL}"
    argv = flags(tiny_dataset, tmp_path / "run", 2, "--sample_prompt", prompt)
    child = call(*argv, "--sample_tokens", "8", cwd=tmp_path, env=SECRETS)
    assert child.code == 0, child.err
    assert (tmp_path / "run" / "report.html").is_file()
    assert not leaks(tmp_path)


def test_q7_a_refusal_tells_no_secret(tmp_path, tiny_dataset):
    argv = flags(SECRETS["HF_TOKEN"], tmp_path / "run")
    child = call(*argv, cwd=tmp_path, env=SECRETS)
    assert child.code == 3
    assert "***" in child.err
    assert not leaks(tmp_path)


def test_q7_a_download_tells_no_secret(tmp_path):
    env = Hub({}, address="http://someone:pa55-w0rd@127.0.0.1:9").env(tmp_path / "home")
    child = call("sample", "hf:tiny/gpt2", cwd=tmp_path, env=env | SECRETS)
    assert child.code == 10
    assert not leaks(tmp_path)


def test_q7_ordinary_words_and_settings_are_told(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel-1")
    monkeypatch.setenv("LICENSE_KEY", "short")
    text = "parallel-1 short https://example.com/a@b me@example.com 3 @ 4"
    assert redact(text) == text


# Q8, Q9, Q10: outpace has no server, so none that can be flooded, frozen or reached.

SERVERS = {
    "http.server", "socketserver", "xmlrpc.server", "wsgiref", "uvicorn", "fastapi", "flask",
    "starlette", "aiohttp", "tornado", "gunicorn", "hypercorn", "werkzeug", "grpc", "bottle",
}  # fmt: skip
LISTENS = {"bind", "socket", "start_server", "start_unix_server", "create_server", "serve_forever"}
"""Methods; a socket must be made before it can listen."""


def listening(code: str) -> list[str]:
    """What in the code makes, or could make, a server."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        found += [n for n in names if n in SERVERS or n.split(".")[0] in SERVERS]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += [node.func.attr] * (node.func.attr in LISTENS)
    return found


def test_q8_no_module_can_take_a_request():
    """So there is no body to bomb, no parameter to fuzz and no URL to traverse."""
    found = {str(p): listening(p.read_text(encoding="utf-8")) for p in PACKAGE.rglob("*.py")}
    # It asks for the way to another host; no address is bound.
    assert found.pop(str(PACKAGE / "runtime" / "interface.py")) == ["socket"]
    assert not {path: what for path, what in found.items() if what}
    for code in ("import http.server", "from http import server", "import uvicorn",
                 "s.bind(('', 1))", "socket.socket()", "asyncio.start_server(f)"):  # fmt: skip
        assert listening(code), code


def _listeners(pid: int) -> list[Any]:
    process = psutil.Process(pid)
    found = [process, *process.children(recursive=True)]
    return [c for p in found for c in p.net_connections("all")
            if c.status == psutil.CONN_LISTEN or c.type == 2]  # fmt: skip


def _watch(child: Child, happened: Callable[[], bool]) -> list[Any]:
    seen: list[list[Any]] = []

    def look() -> bool:
        try:
            seen.append(_listeners(child.pid))
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:  # its last moments, to all but root
            pass
        return happened()

    child.until(look)
    assert seen
    return [listener for found in seen for listener in found]


def test_q9_training_has_no_open_port_to_flood(tmp_path, tiny_dataset):
    run = tmp_path / "run"
    child = start(*flags(tiny_dataset, run, 20_000), cwd=tmp_path)
    try:
        seen = _watch(child, lambda: (run / "metrics.jsonl").exists()
                      and len((run / "metrics.jsonl").read_bytes().splitlines()) > 20)  # fmt: skip
        assert child.code is None, child.err
        child.send(signal.SIGTERM)
        assert child.wait() == 75
    finally:
        child.kill()
    assert not seen


def test_q10_sampling_and_evaluating_bind_no_address(good, tmp_path, tiny_dataset):
    for argv in (
        ["sample", str(good / "ckpt"), "--max_new_tokens", "3000"],
        ["evaluate", str(good / "ckpt"), "--tasks", "loss", "--dataset", str(tiny_dataset)],
    ):
        child = start(*argv, "--device", "cpu", cwd=tmp_path)
        assert not _watch(child, lambda: False)
        assert child.wait() == 0, child.err


# Q11: every command that computes with a model.


@pytest.mark.parametrize("damage", ["flip", "state"])
@pytest.mark.parametrize("command", ["sample", "loss", "hellaswag", "convert", "init_from"])
def test_q11_no_command_computes_with_a_damaged_checkpoint(
    command, damage, good, tmp_path, tiny_dataset, capfd
):
    path = Path(shutil.copytree(good / "ckpt", tmp_path / "ckpt"))
    if damage == "flip":
        fuzz_models.flip(path / MODEL, 8 * (path / MODEL).stat().st_size - 3)
    else:
        (path / STATE).write_bytes((path / STATE).read_bytes().replace(b"257", b"258"))
    questions = tmp_path / "q.jsonl"
    row = {"ind": 1, "ctx": "A", "endings": ["a", "b", "c", "d"], "label": 0}
    questions.write_text(json.dumps(row) + "\n")
    argv = {
        "sample": fuzz_models.sample(path),
        "loss": ["evaluate", str(path), "--tasks", "loss", "--dataset", str(tiny_dataset)],
        "hellaswag": ["evaluate", str(path), "--tasks", "hellaswag"],
        "convert": ["convert", str(path), str(tmp_path / "out"), "--to", "outpace"],
        "init_from": flags(tiny_dataset, tmp_path / "run", 1, "--init_from", str(path)),
    }[command]
    if command == "hellaswag":
        real = ROOT.parent / "shared" / "data" / "hellaswag" / "hellaswag_val.jsonl"
        if not real.exists():
            pytest.skip("the real questions are not beside the checkout")
        argv += ["--hellaswag_path", str(real)]
    code, line = refused(capfd, *argv)
    assert code == 4, line
    assert "CKPT-BAD" in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset": 3}', "[" * 100_000, "\udcff"])
def test_q11_a_runs_damaged_plan_is_not_guessed_at(text, run, capfd):
    (run / "plan.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    code, line = refused(capfd, "evaluate", run, "--tasks", "loss", "--device", "cpu")
    assert code == 3
    assert "--dataset" in line
