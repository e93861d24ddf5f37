"""What the losses and targets must do whatever the numbers: analytic cases, invariances, one process versus two."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dinocell.pretrain.method.losses import (
    SoftmaxCenter,
    dino_global_loss,
    dino_local_loss,
    gram_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)


def test_sinkhorn_rows_are_distributions_and_prototypes_are_used_equally() -> None:
    torch.manual_seed(0)
    targets = sinkhorn_knopp(torch.randn(64, 16), 0.5, iterations=50)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(targets.sum(dim=0), torch.full((16,), 64 / 16), rtol=1e-3, atol=1e-3)


def test_sinkhorn_survives_logits_whose_exponential_overflows() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 6) * 0.3
    targets = sinkhorn_knopp(logits + 50, 0.04)  # exp(50 / 0.04) overflows any float
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets, sinkhorn_knopp(logits, 0.04), rtol=1e-3, atol=1e-5)
    assert torch.isfinite(sinkhorn_knopp(torch.randn(8, 6) * 1e4, 0.04)).all()


def test_sinkhorn_of_no_samples_is_empty() -> None:
    assert sinkhorn_knopp(torch.empty(0, 5), 0.04).shape == (0, 5)


def test_softmax_centre_forgets_a_skipped_step() -> None:
    center = SoftmaxCenter(3)
    center(torch.full((2, 3), torch.nan), 0.1)
    center.update(keep=False)
    center(torch.tensor([[1.0, 2.0, 3.0]]), 0.1)
    center.update()
    torch.testing.assert_close(center.center, torch.tensor([[0.1, 0.2, 0.3]]))


@pytest.mark.parametrize("local", [1, 8])
def test_uniform_predictions_cost_log_prototypes(local: int) -> None:
    """All weights together are 1: local and global terms of a know-nothing student add up to log K."""
    teacher = torch.softmax(torch.randn(2, 3, 32), dim=-1)
    total = dino_local_loss(torch.zeros(local, 3, 32), teacher) + dino_global_loss(
        torch.zeros(2, 3, 32), teacher, local
    )
    assert float(total) == pytest.approx(math.log(32), rel=1e-5)


def test_each_global_crop_predicts_the_other() -> None:
    teacher = torch.zeros(2, 1, 4)
    teacher[0, 0, 1] = teacher[1, 0, 3] = 1.0
    student = torch.zeros(2, 1, 4)
    student[0, 0, 3] = student[1, 0, 1] = 10.0  # each says what the teacher says of the other crop
    assert float(dino_global_loss(student, teacher, 0)) == pytest.approx(0, abs=1e-6)
    assert float(dino_global_loss(student.flip(0), teacher, 0)) > 50


def test_ibot_weighs_images_equally_and_counts_unmasked_ones() -> None:
    """Image 0 has 1 masked patch, image 1 has 3, two images none: mean over 4 images of the mean over patches."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.3], [0.0, 0.3], [0.0, 0.3]])
    teacher = torch.tensor([[1.0, 0.0]] * 4)
    weights = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    expected = (math.log(2) + math.log(1 + math.exp(3))) / 4
    assert float(ibot_loss(logits, teacher, weights, 4)) == pytest.approx(expected, rel=1e-5)


def test_koleo_is_minus_log_distance_of_the_nearest() -> None:
    angles = torch.tensor([0.0, 0.2, 1.2])
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    near, far = 2 * math.sin(0.1), 2 * math.sin(0.5)  # chord lengths
    expected = -(2 * math.log(near) + math.log(far)) / 3
    assert float(koleo_loss(points)) == pytest.approx(expected, rel=1e-4)


def test_koleo_survives_duplicates_and_a_lone_image() -> None:
    points = torch.randn(4, 8)
    points[1] = points[0]
    points.requires_grad_()
    koleo_loss(points).backward()  # type: ignore[no-untyped-call]
    assert points.grad is not None and torch.isfinite(points.grad).all()
    assert points.grad[2:].norm() > points.grad[:2].norm(), "a duplicate pair must not swamp the others"
    alone = torch.randn(1, 8, requires_grad=True)
    value = koleo_loss(alone)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == 0 and alone.grad is not None and not alone.grad.any()


def test_koleo_computes_in_float32_under_autocast() -> None:
    points = torch.randn(6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float(koleo_loss(points)) == float(koleo_loss(points.float()))


def _terms(scores: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    center = SoftmaxCenter(scores.shape[1])
    center(scores, 0.1)
    center.update()
    tokens = tokens.clone().requires_grad_()
    loss = koleo_loss(tokens, across_ranks=True)
    loss.backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    return {
        "sinkhorn": sinkhorn_knopp(scores, 0.07),
        "center": center.center,
        "koleo": loss.detach(),
        "koleo_grad": tokens.grad,
    }


def _rank(rank: int, folder: str, scores: Tensor, tokens: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    # masked patches differ in number between ranks, CLS tokens do not
    part = scores[:5] if rank == 0 else scores[5:]
    torch.save(_terms(part, tokens.chunk(2)[rank]), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    torch.manual_seed(1)
    scores, tokens = torch.randn(12, 10), torch.randn(6, 8)
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_rank, args=(str(folder), scores, tokens), nprocs=2)
    return _terms(scores, tokens), [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_give_the_targets_of_one(
    one_and_two: tuple[dict[str, Tensor], list[dict[str, Tensor]]],
) -> None:
    one, two = one_and_two
    torch.testing.assert_close(torch.cat([part["sinkhorn"] for part in two]), one["sinkhorn"])
    for part in two:
        torch.testing.assert_close(part["center"], one["center"])


def test_koleo_over_two_processes_is_that_of_one(
    one_and_two: tuple[dict[str, Tensor], list[dict[str, Tensor]]],
) -> None:
    """Mean over ranks, as data parallel training averages: value and gradient."""
    one, two = one_and_two
    torch.testing.assert_close(torch.stack([part["koleo"] for part in two]).mean(), one["koleo"])
    torch.testing.assert_close(torch.cat([part["koleo_grad"] for part in two]) / 2, one["koleo_grad"])


def test_gram_anchoring_asks_for_the_same_similarities_and_nothing_else() -> None:
    torch.manual_seed(0)
    anchor = torch.randn(2, 9, 6)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    assert gram_loss(3 * anchor @ rotation, anchor) < 1e-12  # turned and scaled features have the same angles
    student = torch.eye(2).repeat(1, 2, 1)  # similarities 1 0 1 0, 0 1 0 1, …
    assert gram_loss(student, torch.ones(1, 4, 5)).item() == pytest.approx(0.5)  # half of the pairs differ by 1
    assert gram_loss(torch.empty(0, 4, 2), torch.empty(0, 4, 2)) == 0
    moving = torch.randn(2, 9, 6, requires_grad=True)
    gram_loss(moving, anchor).backward()
    step = moving.detach() - 0.5 * moving.grad
    assert gram_loss(step, anchor) < gram_loss(moving.detach(), anchor)
