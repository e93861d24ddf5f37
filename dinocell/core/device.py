"""Choice of device and number format, with the reasons in words."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from dinocell.core import log
from dinocell.core.errors import ConfigError, first_line

Precision = Literal["auto", "float32", "bfloat16"]


def choose_device(name: str = "auto", *, probe: bool = True) -> tuple[torch.device, str]:
    """Return the device and the reason for it.

    `auto` prefers CUDA, then Apple's MPS, then the CPU. A GPU that is present but cannot be used is a warning that
    says why, and the reason says it too.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        probe: let `auto` multiply two small matrices on the GPU. Not for several processes on one machine: each would
            open the first GPU.

    Raises:
        ConfigError: the device is unknown, or was asked for by name and cannot be used.
    """
    if name == "auto":
        return _automatic_device(probe)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not known; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for but {_why_no_cuda()}; use device=auto or device=cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {name!r} does not exist, this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device: {name!r} was asked for but this machine has no usable Metal GPU; use device=auto")
    return device, "asked for"


def _automatic_device(probe: bool) -> tuple[torch.device, str]:
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if gpu is not None:
        problem = _fails_on(gpu) if probe else None
        if problem is None:
            return torch.device(gpu), f"{torch.cuda.get_device_name(0) if gpu == 'cuda' else 'Apple GPU'} found"
        reason = f"the {gpu} GPU fails: {problem}"
        log.warning(f"device: {reason}; the CPU is used instead")
        return torch.device("cpu"), reason
    unused = unused_gpu()
    if unused is not None:
        log.warning(f"device: {unused}; the CPU is used instead")
    return torch.device("cpu"), unused or _why_no_cuda()


@lru_cache(maxsize=2)
def _fails_on(gpu: str) -> str | None:
    """Reason that a GPU offered by torch cannot compute: no kernels for its generation, or taken by another process."""
    try:
        ones = torch.ones(8, 8, device=gpu)
        (ones @ ones).sum().item()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return None


def unused_gpu() -> str | None:
    """Reason that the installed torch cannot use a GPU of this machine; None without one, or if it is hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return None  # hidden on purpose
    if _has_nvidia_driver():
        return _why_no_cuda()
    if Path("/dev/kfd").exists() and torch.version.hip is None:
        return "an AMD GPU is present but this torch is not a ROCm build"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "an Apple GPU is present but this torch cannot use it (built without Metal, or macOS is too old)"
    return None


def _why_no_cuda() -> str:
    """Reason that CUDA cannot be used; mostly a CPU-only torch on a machine with an NVIDIA driver."""
    driver = _has_nvidia_driver()
    if driver and os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides the GPU"
    if torch.version.cuda is None:
        return "an NVIDIA driver is present but this torch is a CPU build" if driver else "no GPU found"
    return "an NVIDIA driver is present but CUDA does not start" if driver else "no NVIDIA GPU found"


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def cpu_has_fast_bfloat16() -> tuple[bool, str]:
    """Unit with which this CPU multiplies bfloat16 matrices in hardware (AMX or AVX512_BF16), if any."""
    cpu = torch.cpu
    if getattr(cpu, "_is_amx_tile_supported", lambda: False)():
        return True, "AMX"
    if getattr(cpu, "_is_avx512_bf16_supported", lambda: False)():
        return True, "AVX512_BF16"
    return False, platform.machine() or "this CPU"


def choose_dtype(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the dtype for matrix products and the reason for it.

    bfloat16 where the hardware has it: CUDA devices that support it, and CPUs with AMX or AVX512_BF16 (3 to 5 times
    float32's rate there). Everything else stays in float32.

    Raises:
        ConfigError: the precision is unknown.
    """
    match precision:
        case "float32":
            return torch.float32, "asked for"
        case "bfloat16":
            return torch.bfloat16, "asked for"
        case "auto":
            return _automatic_dtype(device)
        case _:
            raise ConfigError(f"precision: {precision!r} is not known; use auto, float32 or bfloat16")


def _automatic_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU has bfloat16"
        return torch.float32, "the GPU has no bfloat16"
    if device.type == "cpu":
        fast, unit = cpu_has_fast_bfloat16()
        return (torch.bfloat16, f"the CPU has {unit}") if fast else (torch.float32, "the CPU has no bfloat16 unit")
    return torch.float32, f"{device.type} runs in float32"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Mixed precision for the run loops; a no-op for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)  # type: ignore[return-value]
