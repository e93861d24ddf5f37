"""A tiny network in a model folder; its cells mean nothing, but they are the same wherever it runs."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model
from dinocell.models.training_record import Training
from dinocell.objectives import ObjectiveConfig

os.environ["NAPARI_CONFIG"] = ""  # napari neither reads nor writes the settings of whoever runs the tests


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where anything looks up a name or connects to a machine, also in a thread whose error nobody sees."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def noted(place: Any) -> None:
        asked.append(place)
        raise OSError(f"no network in tests: {place}")

    def local(self: socket.socket, address: Any) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else noted(address)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: noted(host))
    yield
    assert asked == []


def write_model(folder: Path, objective: ObjectiveConfig, channels: int) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)
    model = SegmentationModel(VisionTransformer(config), DecoderConfig(neck_width=16), channels, 64, 64)
    last = [module for module in model.decoder.heads.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        assert last.bias is not None
        last.bias -= model(torch.randn(4, 1, 64, 64))[:, -1].mean()  # half of the pixels are cells
    return save_model(folder, model, ModelCard(crop_size=64, objective=objective, training=Training(diameter=20.0)))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", ObjectiveConfig(kind="semantic", min_size=5), 1)


@pytest.fixture(scope="session")
def flows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "flows", ObjectiveConfig(min_size=5), 3)
