"""Which device is taken, and that a GPU nobody can use is never passed over in silence."""

from __future__ import annotations

import pytest
import torch

from dinocell.core import device
from dinocell.core.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any GPU, on which each test puts its own."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device, "_has_nvidia_driver", lambda: False)
    monkeypatch.setattr(device.platform, "system", lambda: "Linux")
    device._fails_on.cache_clear()


def test_a_machine_without_a_gpu_takes_the_cpu_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    chosen, reason = device.choose_device("auto")
    assert chosen == CPU and "no" in reason and "GPU found" in reason
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("cuda", "said"), [(None, "this torch is a CPU build"), ("13.0", "CUDA does not start")])
def test_a_gpu_that_torch_cannot_use_is_a_warning(
    cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    chosen, reason = device.choose_device("auto")
    assert chosen == CPU and said in reason
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1 and "warning: device: an NVIDIA driver is present" in warned and said in warned
    with pytest.raises(ConfigError, match=said):
        device.choose_device("cuda")


def test_a_gpu_hidden_on_purpose_is_no_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "_has_nvidia_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.choose_device("auto") == (CPU, "CUDA_VISIBLE_DEVICES hides the GPU")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_gpu_that_fails_at_the_first_product_is_a_warning(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = torch.cuda if kind == "cuda" else torch.backends.mps
    monkeypatch.setattr(owner, "is_available", lambda: True)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch, "ones", fail)
    chosen, reason = device.choose_device("auto")
    assert chosen == CPU and reason == f"the {kind} GPU fails: no kernel image is available for execution on the device"
    assert "the CPU is used instead" in capsys.readouterr().err


def test_an_apple_gpu_is_taken_and_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(device, "_fails_on", lambda gpu: None)
    assert device.choose_device("auto") == (torch.device("mps"), "Apple GPU found")
    assert device.choose_dtype("auto", torch.device("mps")) == (torch.float32, "mps runs in float32")


def test_an_apple_gpu_that_torch_does_not_offer_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(device.platform, "machine", lambda: "arm64")
    assert device.choose_device("auto")[0] == CPU
    assert "an Apple GPU is present but this torch cannot use it" in capsys.readouterr().err


def test_unknown_devices_are_one_line() -> None:
    with pytest.raises(ConfigError, match="device: 'tpu9' is not known; use auto, cpu, cuda, cuda:N or mps"):
        device.choose_device("tpu9")


def test_several_processes_do_not_all_open_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(device, "_fails_on", lambda gpu: pytest.fail("probed"))
    assert device.choose_device("auto", probe=False) == (torch.device("cuda"), "a GPU found")
