"""What a container, a job or a unit may use, of both versions of control groups."""

from pathlib import Path

import pytest

from outpace.core import limits
from outpace.core.limits import cores_to_run_on, cpu_limits, memory_limits, usable_cores


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_every_level_counts_of_a_job_inside_a_slice(tmp_path):
    group(tmp_path / "slice", memory__max="8000\n", memory__current="5000\n")
    group(tmp_path / "slice" / "job", memory__max="max\n", memory__current="100\n")
    group(tmp_path / "slice" / "job" / "step", memory__max="3000\n", memory__current="90\n")
    found = memory_limits("0::/slice/job/step\n", tmp_path)
    assert found == [(3000, 90), (8000, 5000)]


def test_a_container_sees_its_own_limit_at_the_top(tmp_path):
    group(tmp_path, memory__max="700\n", memory__current="1\n")
    assert memory_limits("0::/\n", tmp_path) == [(700, 1)]
    assert memory_limits("0::/kubepods/not/here\n", tmp_path) == [(700, 1)]


def test_version_1_has_its_own_names_beside_other_controllers(tmp_path):
    group(tmp_path / "memory" / "job", memory__limit_in_bytes="900", memory__usage_in_bytes="5")
    text = "5:devices:/x\n4:cpu,memory:/job\n1:name=systemd:/\n0::/\n"
    assert memory_limits(text, tmp_path) == [(900, 5)]
    assert memory_limits("1:name=systemd:/\n", tmp_path) == []


def test_files_that_were_read_do_not_use_up_the_memory(tmp_path):
    group(tmp_path / "job", memory__max="900\n", memory__current="890\n",
          memory__stat="anon 80\nfile 810\ninactive_anon 5\ninactive_file 800\n")  # fmt: skip
    assert memory_limits("0::/job\n", tmp_path) == [(900, 90)]
    group(tmp_path / "memory", memory__limit_in_bytes="900", memory__usage_in_bytes="890",
          memory__stat="inactive_file 1\ntotal_inactive_file 700\n")  # fmt: skip
    assert memory_limits("4:memory:/\n", tmp_path) == [(900, 190)]


def test_a_share_of_time_counts_at_every_level(tmp_path):
    group(tmp_path / "slice", cpu__max="150000 100000\n")
    group(tmp_path / "slice" / "job", cpu__max="max 100000\n")
    assert cpu_limits("0::/slice/job\n", tmp_path) == [1.5]
    group(tmp_path, cpu__max="50000 100000\n")
    assert cpu_limits("0::/slice/job\n", tmp_path) == [1.5, 0.5]


def test_a_share_of_time_in_version_1(tmp_path):
    times = {"cpu__cfs_quota_us": "400000\n", "cpu__cfs_period_us": "100000\n"}
    group(tmp_path / "cpu" / "docker", **times)
    group(tmp_path / "cpu", **{**times, "cpu__cfs_quota_us": "-1\n"})
    assert cpu_limits("4:cpu,cpuacct:/docker\n2:memory:/x\n", tmp_path) == [4.0]


@pytest.mark.parametrize(("share", "cores"), [("40000", 1), ("100000", 1), ("max", None)])
def test_cores_are_those_that_the_share_is_worth(tmp_path, monkeypatch, share, cores):
    group(tmp_path, cpu__max=f"{share} 100000\n", groups="0::/\n")
    monkeypatch.setattr(limits, "MOUNTED", tmp_path)
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    assert usable_cores() == (cores or len(cores_to_run_on()))


def test_without_control_groups_all_cores_are_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "none")
    assert usable_cores() == len(cores_to_run_on()) >= 1
