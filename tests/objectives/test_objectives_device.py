"""The torch path gives what the CPU kernels give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from dinocell.objectives.device_decode import decode_flows_device
from dinocell.objectives.device_targets import masks_to_flows_device
from dinocell.objectives.flows import decode_flows, masks_to_flows

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["cellpose", "leak_free"])
def test_targets_equal_the_kernels(device: str, variant: str, voronoi):
    labels = voronoi(7, size=72)
    labels[60:64, 2:70] = 40_000
    labels[0, 71] = 99
    labels[66:71, 66:71] = 99
    flows = masks_to_flows_device(torch.from_numpy(labels).to(device), variant)
    assert flows.device.type == device
    np.testing.assert_allclose(flows.cpu().numpy(), masks_to_flows(labels, variant), atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", ["cellpose", "leak_free"])
def test_masks_and_report_equal_the_kernels(device: str, variant: str, voronoi):
    labels = voronoi(8, size=96, cells=14)
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(0, 1.5, (2, 96, 96)), (0, 2, 2)).astype(np.float32)
    flows = masks_to_flows(labels, variant) * 0.9 + noise
    probability = ((labels > 0) * 0.8 + rng.random((96, 96)) * 0.3).astype(np.float32)
    expected, report = decode_flows(flows, probability, variant=variant)
    result, other = decode_flows_device(
        torch.from_numpy(flows).to(device), torch.from_numpy(probability).to(device), variant=variant
    )
    assert report.cells > 5
    assert result.dtype == torch.int32
    assert (result.cpu().numpy() != expected).mean() < 0.002
    assert other.cells == report.cells


@pytest.mark.parametrize("device", DEVICES)
def test_large_masks_are_reported_and_empty_images_pass(device: str):
    labels = np.zeros((40, 40), np.uint8)
    labels[5:35, 5:35] = 1
    flows = torch.from_numpy(masks_to_flows(labels)).to(device)
    result, report = decode_flows_device(flows, torch.from_numpy(labels > 0).to(device))
    assert not result.any()
    assert report.too_large == ((5, 35, 5, 35, 900),)
    empty = torch.zeros(7, 9, device=device)
    assert not masks_to_flows_device(empty.long()).any()
    assert decode_flows_device(torch.zeros(2, 7, 9, device=device), empty)[1].cells == 0
