"""The memory that a container, a job or a unit may use, of both versions of control groups."""

from pathlib import Path

from outpace.runtime.hardware import memory_limits


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
