"""Runs over several hosts. Processes in folders of their own stand for hosts without a shared disk;
how hosts reach each other, or do not, is the same code on one machine."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import poison
import pytest
import torch
import torch.distributed as dist
from conftest import TINY, final_hash
from harness import Child, events, rollbacks, status
from peers import call_ranks, start_ranks

import outpace
from outpace.checkpoint import store
from outpace.core import locks
from outpace.core.errors import PeerLost
from outpace.data.folder import LOCK
from outpace.data.shards import MANIFEST
from outpace.runtime.distributed import Group, Ranks
from outpace.train import alike, corpus, environment
from outpace.train.watchdog import Watchdog

RUN = Path("run")


@pytest.fixture
def hosts(tmp_path: Path, tiny_dataset: Path) -> list[Path]:
    """Two folders, each with the dataset."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        shutil.copytree(tiny_dataset, folder / "data" / "tiny")
    return folders


def train(steps: int, *extra: str) -> list[str]:
    return [
        "train", *TINY, "--gradient_accumulation_steps", "1", "--tokens_per_step", "128",
        "--schedule", "constant", "--dataset", "tiny", "--run_dir", str(RUN),
        "--max_steps", str(steps), "--save_every_steps", "5", "--eval_every_steps", "5", *extra,
    ]  # fmt: skip


def codes(children: list[Child]) -> list[int | None]:
    return [child.code for child in children]


def test_a_run_goes_on_where_only_the_first_host_has_its_folder(hosts, tmp_path):
    shared = tmp_path / "shared"
    shutil.copytree(hosts[0] / "data", shared / "data")
    assert codes(call_ranks(2, *train(10), cwd=shared)) == [0, 0]

    assert codes(call_ranks(2, *train(5), cwd=hosts)) == [0, 0]
    assert codes(call_ranks(2, *train(5), cwd=hosts)) == [0, 0], "nothing is left to do"
    ranks = call_ranks(2, *train(10), cwd=hosts)
    assert codes(ranks) == [0, 0], ranks[0].err
    assert [e["step"] for e in events(hosts[0] / RUN, "resumed")] == [5, 5]
    assert final_hash(hosts[0] / RUN) == final_hash(shared / RUN)
    assert not (hosts[1] / RUN).exists()


def test_an_evaluation_that_one_host_alone_has_on_record_is_not_repeated(hosts):
    """Else one process would wait for a sum of which the others know nothing."""
    call_ranks(2, *train(5, "--eval_every_steps", "0"), cwd=hosts)
    path = hosts[0] / RUN / "STATUS.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "stopped"}))
    ranks = call_ranks(2, *train(5, "--eval_every_steps", "0"), cwd=hosts)
    assert codes(ranks) == [0, 0], ranks[1].err


def test_a_rollback_needs_no_shared_disk(hosts):
    bad = {"setup": poison.loss, "args": (range(21, 26),)}
    more = ("--save_every_steps", "10", "--eval_every_steps", "0")
    ranks = call_ranks(2, *train(30, *more), cwd=hosts, **bad)
    assert codes(ranks) == [6, 6], ranks[1].err  # the steps stay bad, whatever their data
    assert rollbacks(hosts[0] / RUN) == [10, 10]


def test_a_first_process_on_a_host_without_the_checkpoints_starts_nothing_new(hosts):
    call_ranks(2, *train(5), cwd=hosts)
    ranks = call_ranks(2, *train(10), cwd=hosts[::-1])
    assert codes(ranks) == [4, 4]
    for child in ranks:
        assert "error[CKPT-ELSEWHERE]" in child.err
        assert f"has {RUN / 'checkpoints' / store.name_of(5, 0)}" in child.err
    assert not (hosts[1] / RUN).exists()
    assert status(hosts[0] / RUN)["state"] == "finished"

    shutil.copytree(hosts[0] / RUN, hosts[1] / RUN)
    assert codes(call_ranks(2, *train(10), cwd=hosts[::-1])) == [0, 0], "the copy is continued"
    ranks = call_ranks(2, *train(15), cwd=hosts)
    assert codes(ranks) == [4, 4], "the older copy is not"
    assert f"has {RUN / 'checkpoints' / store.name_of(10, 0)}" in ranks[0].err


@pytest.mark.parametrize("without", [0, 1])
def test_a_host_without_the_data_does_not_keep_the_others_waiting(hosts, without):
    shutil.rmtree(hosts[without] / "data")
    began = time.monotonic()
    ranks = call_ranks(2, *train(5), cwd=hosts)
    assert codes(ranks) == [3, 3]
    assert "error[NO-DATASET]" in ranks[without].err
    assert "error[PEER-FAILED]" in ranks[1 - without].err
    assert time.monotonic() - began < 60, "the default patience is 10 minutes"


def test_flags_that_one_host_refuses_do_not_keep_the_others_waiting(hosts):
    """As where another release of outpace is installed."""
    ranks = call_ranks(
        2, *train(5), cwd=hosts, setup=poison.flags_of, args=(1, ["--max_stepz", "9"])
    )
    assert codes(ranks) == [2, 2]
    assert "--max_stepz" in ranks[1].err
    assert "error[PEER-FAILED]" in ranks[0].err


def other_code(rank: int) -> None:
    if poison.ours(rank):
        alike.software = lambda: environment.software() | {"source": "01234567"}


def test_hosts_with_other_code_are_refused(hosts):
    """The processes' weights would stay equal, as the gradients are summed, and be of neither."""
    ranks = call_ranks(2, *train(5), cwd=hosts, setup=other_code, args=(1,))
    assert codes(ranks) == [2, 2]
    assert "process 1 differs from process 0: source: " in ranks[0].err
    assert "-> 01234567" in ranks[0].err


def test_the_code_of_a_checkout_is_more_than_its_version(tmp_path, monkeypatch):
    assert environment.software() == environment.software()
    copy = shutil.copytree(Path(outpace.__file__).parent, tmp_path / "outpace")
    monkeypatch.setattr(outpace, "__file__", str(copy / "__init__.py"))
    same = environment.software()
    with open(copy / "model" / "gpt2.py", "a") as changed:
        changed.write("# another release\n")
    assert environment.software() != same


def test_two_hosts_that_share_a_disk_make_the_default_dataset_once(tmp_path, tiny_dataset):
    """The first process of each wants to; one waits for the other."""
    folder = tmp_path / "pydocs"
    folder.mkdir()
    done: list[Path] = []
    held = locks.take(folder / LOCK, 0)

    def make() -> None:
        corpus._make_pydocs(folder, first=True)
        done.append(folder)

    waiting = threading.Thread(target=make)
    waiting.start()
    time.sleep(1.5)
    assert waiting.is_alive() and not done
    for file in tiny_dataset.iterdir():
        if file.name != MANIFEST:
            shutil.copy(file, folder)
    shutil.copy(tiny_dataset / MANIFEST, folder)
    waiting.join(30)
    held.release()
    assert done


def test_stacks_of_a_host_without_the_run_folder_go_to_the_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dog = Watchdog(1.0, tmp_path / "elsewhere", 1, lambda error: None)
    dog.beat("step 3")
    assert dog._stacks == tmp_path / "stacks-step-3-process-1.txt"
    dog._write_stacks()
    assert "most recent call first" in dog._stacks.read_text()


def test_a_process_that_finds_no_other_says_where_it_looked(hosts):
    elsewhere = [{}, {"MASTER_ADDR": "no-such-host.invalid"}]
    flags = train(5, "--peer_timeout_minutes", "0.1")
    ranks = call_ranks(2, *flags, cwd=hosts, env=elsewhere)
    assert codes(ranks) == [9, 9]
    assert "error[NOT-ALL-CAME]: process 1 did not come" in ranks[0].err
    assert "error[NO-ANSWER]: nothing answers at no-such-host.invalid:" in ranks[1].err


def test_another_program_where_the_processes_meet_is_not_waited_for_without_end(hosts):
    """Its port is taken, by a program that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = {"MASTER_PORT": str(taken.getsockname()[1])}
        flags = train(5, "--peer_timeout_minutes", "0.05")
        ranks = call_ranks(2, *flags, cwd=hosts, env=[there, there])
    assert codes(ranks) == [9, 9]
    assert "error[PORT-IN-USE]" in ranks[0].err
    assert "error[NO-ANSWER]: nothing answers at 127.0.0.1:" in ranks[1].err


@pytest.fixture
def agent() -> Iterator[Any]:
    """The store that torchrun keeps over its restarts."""
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_a_group_starts_again_although_its_hosts_count_restarts_differently(hosts, agent):
    """torchrun counts a failure only on the host where it happened; the store is the same, with the
    addresses of the processes that are gone."""
    ours = {"MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def counted(*restarts: int) -> list[dict[str, str]]:
        return [ours | {"TORCHELASTIC_RESTART_COUNT": str(n)} for n in restarts]

    first = start_ranks(2, *train(100_000), cwd=hosts, env=counted(0, 0))
    first[0].until_step(hosts[0] / RUN, 1)
    first[0].until(lambda: any((hosts[0] / RUN / "checkpoints").glob("step-*")))
    first[1].kill()
    assert first[0].wait(60) == 9
    again = start_ranks(2, *train(100_000), cwd=hosts, env=counted(0, 1))
    again[0].until(lambda: bool(events(hosts[0] / RUN, "resumed")), 60)
    assert codes(again) == [None, None], again[0].err
    again[1].send(signal.SIGTERM)
    assert [child.wait(60) for child in again] == [75, 75]


def keep_store(send: Any) -> None:
    kept = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    send.send(kept.port)
    time.sleep(600)


def test_a_store_that_no_longer_answers_does_not_hold_up_the_end():
    """As when the network to the first host is gone: nothing comes back, no error either."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe()
    host = context.Process(target=keep_store, args=(send,), daemon=True)
    host.start()
    try:
        group = Group(Ranks(), torch.device("cpu"), timeout_s=1.0)
        group.ranks = Ranks(1, 2)
        group._store = dist.TCPStore("127.0.0.1", receive.recv(), wait_for_workers=False)
        os.kill(host.pid or 0, signal.SIGSTOP)
        began = time.monotonic()
        lost = PeerLost("PEER-LOST", "gone")
        assert group.exchange_failure(lost) is lost
        with pytest.raises(RuntimeError, match="timed out"):
            group.anyone(False)
        assert time.monotonic() - began < 30
    finally:
        host.kill()
