"""What nvidia-smi tells, asked of a program of that name that answers as the real one does."""

import stat
import threading

import pytest
import torch

from outpace.core.errors import UsageError
from outpace.runtime import driver
from outpace.runtime.device import choose_device

ANSWER = "1755, 2619, 612.43, 700.00, 58, [N/A], 0x0000000000000004"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    def install(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return install


def test_the_state_is_read_by_field(nvidia_smi, tmp_path):
    nvidia_smi(f'echo "$@" > {tmp_path}/asked; echo "{ANSWER}"')
    assert driver.ask("GPU-12ab") == {
        "sm_clock_mhz": 1755.0,
        "memory_clock_mhz": 2619.0,
        "power_w": 612.43,
        "power_limit_w": 700.0,
        "temperature_c": 58.0,
        "utilisation_percent": None,
        "throttle_reasons": "0x0000000000000004",
    }
    asked = (tmp_path / "asked").read_text()
    assert "--id=GPU-12ab" in asked
    assert "clocks.sm,clocks.mem,power.draw" in asked


@pytest.mark.parametrize("script", ["exit 9", "echo no devices", "true"])
def test_an_answer_that_is_none_is_no_state(nvidia_smi, script):
    nvidia_smi(script)
    assert driver.ask("GPU-12ab") is None


def test_a_machine_without_the_tool_has_no_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver.ask("GPU-12ab") is None
    assert driver.gpu_state(torch.device("cpu")) is None


def test_a_gpu_is_asked_while_it_is_at_work(monkeypatch):
    asked = threading.Event()

    def state(device: torch.device) -> driver.State:
        asked.set()
        return {"sm_clock_mhz": 1755.0}

    monkeypatch.setattr(driver, "gpu_state", state)
    with driver.state_amid(torch.device("cuda"), 0.01) as found:
        assert asked.wait(60)
    assert found == [{"sm_clock_mhz": 1755.0}]
    with driver.state_amid(torch.device("cuda"), 3600.0) as found:
        pass  # it is over before
    assert found == []


def test_a_cpu_has_no_state_amid_anything():
    with driver.state_amid(torch.device("cpu"), 0.0) as found:
        pass
    assert found == []


def test_the_version_of_the_driver_is_that_of_the_first_gpu(nvidia_smi, tmp_path):
    nvidia_smi(f'echo "$@" > {tmp_path}/asked; echo 580.65.06; echo 580.65.06')
    assert driver.driver_version() == "580.65.06"
    assert "--query-gpu=driver_version" in (tmp_path / "asked").read_text()
    nvidia_smi("exit 9")
    assert driver.driver_version() is None


def test_a_cudnn_that_is_not_pytorchs_is_told_and_stops_nothing(monkeypatch, capsys):
    def mismatch():
        raise RuntimeError(
            "cuDNN version incompatibility: PyTorch was compiled  against (9, 20, 0) but found "
            "runtime version (9, 19, 0). PyTorch already comes bundled with cuDNN."
        )

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", mismatch)
    driver.cudnn_version.cache_clear()
    try:
        found = driver.cudnn_version()
    finally:
        driver.cudnn_version.cache_clear()
    assert found.endswith("compiled against (9, 20, 0) but found runtime version (9, 19, 0)")
    assert "Unset LD_LIBRARY_PATH" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch uses the GPU")
def test_a_gpu_that_pytorch_cannot_use_is_not_left_idle_in_silence(
    nvidia_smi, tmp_path, monkeypatch, capsys
):
    """As with a torch for CUDA 13 over a driver for 12: without a word a run takes weeks."""
    monkeypatch.setattr(driver, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_smi("echo 550.54.15")
    assert driver.unusable_gpu() is None  # nvidia-smi alone makes no GPU
    choose_device("auto", 0)
    (tmp_path / "nvidiactl").touch()
    assert driver.unusable_gpu() is None
    assert capsys.readouterr().err == ""

    (tmp_path / "nvidia3").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert choose_device("auto", 0).type == "cpu"
    told = " ".join(capsys.readouterr().err.split())
    assert "there is a GPU, but its driver 550.54.15 does not serve this torch" in told
    assert "install one for CUDA 13.0" in told and "--device cpu" in told
    with pytest.raises(UsageError, match=r"--device cuda, but its driver 550\.54\.15 does not"):
        choose_device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match="this torch is built for CPUs"):
        choose_device("cuda", 0)

    choose_device("cpu", 0)
    choose_device("auto", 1)  # the first process of a host has said it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    choose_device("auto", 0)
    assert capsys.readouterr().err == ""
