"""Record tests/golden/pretrain.json by running the upstream DINOv2 implementation.

    git clone https://github.com/facebookresearch/dinov2 && git -C dinov2 checkout b8931f7
    PYTHONPATH=dinov2:. python tests/golden/pretrain_record.py b8931f7bf91576930313be2c6d6af376033b35f0

Runs on a CPU: xformers' few operators that upstream's training step needs are replaced by their definitions, and
`.cuda()` does nothing. Nothing of upstream is kept but the numbers.
"""

import hashlib
import json
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from pretrain_fill import crops, fill, numbers


class BlockDiagonal:
    """xformers.ops.fmha.BlockDiagonalMask: sequences packed along one axis."""

    def __init__(self, lengths, batch_sizes=None):
        self.lengths, self._batch_sizes = lengths, batch_sizes

    @classmethod
    def from_seqlens(cls, lengths):
        return cls(list(lengths))

    @classmethod
    def from_tensor_list(cls, tensors):
        lengths = [t.shape[1] for t in tensors for _ in range(t.shape[0])]
        return cls(lengths, [t.shape[0] for t in tensors]), torch.cat(
            [t.reshape(1, -1, t.shape[-1]) for t in tensors], 1
        )

    def split(self, x):
        parts, first, at = [], 0, 0
        for count in self._batch_sizes:
            length = self.lengths[first]
            parts.append(x[:, at : at + count * length].reshape(count, length, *x.shape[2:]))
            first, at = first + count, at + count * length
        return parts


def attention(q, k, v, attn_bias=None):
    """Packed attention [1, T, H, D] within each sequence, or plain attention without a bias."""
    lengths = attn_bias.lengths if attn_bias is not None else [q.shape[1]]
    parts = [t.transpose(1, 2).split(lengths, dim=2) for t in (q, k, v)]
    return torch.cat([F.scaled_dot_product_attention(*p) for p in zip(*parts, strict=True)], dim=2).transpose(1, 2)


def stub_xformers():
    ops = types.ModuleType("xformers.ops")
    ops.fmha = types.SimpleNamespace(BlockDiagonalMask=BlockDiagonal)
    ops.memory_efficient_attention = attention
    ops.unbind = torch.unbind
    ops.index_select_cat = lambda xs, idx: torch.cat([x[i].flatten() for x, i in zip(xs, idx, strict=True)])
    ops.scaled_index_add = lambda x, index, source, scaling, alpha: x.index_add(0, index, source * scaling, alpha=alpha)
    ops.SwiGLU = torch.nn.Module
    package = types.ModuleType("xformers")
    package.ops = ops
    sys.modules |= {"xformers": package, "xformers.ops": ops}


def stub_torchvision():
    """Upstream's data package imports torchvision for parts that are not recorded here."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms")
    modules = {name: types.ModuleType(name) for name in names}
    modules["torchvision.datasets"].VisionDataset = object
    for name in ("RandomApply", "ToTensor", "Compose", "Normalize", "InterpolationMode"):
        setattr(modules["torchvision.transforms"], name, type(name, (), {"BICUBIC": None}))
    modules["torchvision"].transforms = modules["torchvision.transforms"]
    sys.modules |= modules


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def losses():
    from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss

    batch, prototypes, local = 4, 32, 3
    dino, koleo, ibot = DINOLoss(prototypes), KoLeoLoss(), iBOTPatchLoss(prototypes)
    teacher_scores = numbers("teacher", (2 * batch, prototypes))
    targets = dino.sinkhorn_knopp_teacher(teacher_scores, 0.07).view(2, batch, prototypes)
    local_logits = numbers("local", (local * batch, prototypes))
    global_logits = numbers("global", (2 * batch, prototypes))
    pairs = 2 * local + 2
    masks = torch.zeros(2 * batch, 16, dtype=torch.bool)
    masks[0, :5], masks[3, 2:9], masks[6, 15] = True, True, True
    count = int(masks.sum())
    weights = (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks]
    patch_targets = ibot.sinkhorn_knopp_teacher(
        numbers("patch teacher", (count, prototypes)), 0.05, torch.tensor([count])
    )
    center = DINOLoss(prototypes)
    center.update_center(teacher_scores)
    softmax = center.softmax_center_teacher(teacher_scores, 0.05)
    return {
        "sinkhorn": targets.flatten(0, 1).tolist(),
        "ibot_sinkhorn": patch_targets.tolist(),
        "softmax_centered": softmax.tolist(),
        "center": center.center.flatten().tolist(),
        "dino_local": float(dino(local_logits.chunk(local), targets) / pairs),
        # upstream swaps the teacher's crops before centring
        "dino_global": float(dino([global_logits], [targets.flip(0).flatten(0, 1)]) * 2 / pairs),
        "ibot": float(
            ibot.forward_masked(numbers("patch student", (count, prototypes)), patch_targets, masks, count, weights)
        ),
        "koleo": float(koleo(numbers("cls", (6, 24)))),
    }


def head():
    from dinov2.layers import DINOHead

    module = DINOHead(48, 40, hidden_dim=64, bottleneck_dim=16)
    fill(module)
    return module(numbers("tokens", (3, 48))).tolist()


def masking():
    from dinov2.data import MaskingGenerator, collate_data_and_cast

    records = []
    for grid, images, seed in ((14, 4, 0), (26, 16, 1), (64, 8, 2)):
        generator = MaskingGenerator((grid, grid), max_num_patches=0.5 * grid * grid)
        random.seed(seed)
        sample = ({"global_crops": [torch.zeros(1)] * 2, "local_crops": [torch.zeros(1)]}, ())
        batch = collate_data_and_cast(
            [sample] * (images // 2), (0.1, 0.5), 0.5, torch.float32, n_tokens=grid * grid, mask_generator=generator
        )
        masks = batch["collated_masks"].numpy()
        counts = masks.sum(1).tolist()
        records.append({"grid": grid, "images": images, "seed": seed, "counts": counts, "sha256": digest(masks)})
    return records


def schedules():
    from dinov2.train.train import build_schedulers
    from omegaconf import OmegaConf

    peak = 2e-4 * (128 / 1024) ** 0.5
    cfg = OmegaConf.create(
        {
            "train": {"OFFICIAL_EPOCH_LENGTH": 10},
            "optim": {
                "lr": peak, "min_lr": 1e-6, "epochs": 100, "warmup_epochs": 20, "weight_decay": 0.04,
                "weight_decay_end": 0.2, "freeze_last_layer_epochs": 1,
            },
            "teacher": {
                "momentum_teacher": 0.994, "final_momentum_teacher": 1, "teacher_temp": 0.07,
                "warmup_teacher_temp": 0.04, "warmup_teacher_temp_epochs": 30,
            },
        }
    )  # fmt: skip
    lr, decay, momentum, temperature, last = build_schedulers(cfg)
    steps = [0, 1, 9, 10, 100, 199, 200, 299, 300, 301, 650, 999, 1000]
    rows = [[float(s[step]) for s in (lr, last, decay, momentum, temperature)] for step in steps]
    return {"peak_lr": peak, "steps": steps, "values": rows}


def training_step():
    """Three whole steps of upstream's SSLMetaArch on a two-block ViT, with drop path, masks and registers."""
    import dinov2.models.vision_transformer as vits
    from dinov2.train import ssl_meta_arch
    from dinov2.train.train import apply_optim_scheduler
    from omegaconf import OmegaConf

    vits.vit_tiny = lambda patch_size, num_register_tokens, **kwargs: vits.DinoVisionTransformer(
        patch_size=patch_size, num_register_tokens=num_register_tokens, embed_dim=192, depth=2, num_heads=3,
        block_fn=lambda *a, **k: vits.Block(*a, attn_class=vits.MemEffAttention, **k), **kwargs,
    )  # fmt: skip
    head_cfg = {"head_hidden_dim": 32, "head_nlayers": 3, "head_n_prototypes": 48}
    cfg = OmegaConf.create(
        {
            "compute_precision": {"grad_scaler": False},
            "student": {
                "arch": "vit_tiny", "patch_size": 8, "layerscale": 1e-5, "ffn_layer": "mlp", "block_chunks": 0,
                "qkv_bias": True, "proj_bias": True, "ffn_bias": True, "num_register_tokens": 2,
                "interpolate_offset": 0.1, "interpolate_antialias": False, "drop_path_rate": 0.3,
                "drop_path_uniform": True, "pretrained_weights": "",
            },
            "dino": {"loss_weight": 1.0, "koleo_loss_weight": 0.1, "head_bottleneck_dim": 24, **head_cfg},
            "ibot": {
                "loss_weight": 1.0, "separate_head": True, "head_bottleneck_dim": 16, "mask_ratio_min_max": [0.1, 0.5],
                "mask_sample_probability": 0.5, **head_cfg,
            },
            "crops": {"local_crops_number": 3, "global_crops_size": 48},
            "train": {"centering": "sinkhorn_knopp"},
            "optim": {"layerwise_decay": 0.9, "patch_embed_lr_mult": 0.2},
        }
    )  # fmt: skip
    arch = ssl_meta_arch.SSLMetaArch(cfg)
    arch.need_to_synchronize_fsdp_streams = False
    fill(arch.student)
    arch.teacher.load_state_dict(arch.student.state_dict())
    arch.train()
    groups = [dict(g) for g in arch.get_params_groups()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    records = []
    for step in range(3):
        batch = upstream_batch(step, mean, std)
        apply_optim_scheduler(optimizer, 1e-3, 0.04, 0.0 if step == 0 else 1e-3)
        optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        terms = arch.forward_backward(batch, teacher_temp=0.05)
        norms = {k: float(torch.nn.utils.clip_grad_norm_(v.parameters(), 3.0)) for k, v in arch.student.items()}
        optimizer.step()
        with torch.no_grad():
            for student, teacher in zip(arch.student.parameters(), arch.teacher.parameters(), strict=True):
                teacher.mul_(0.9).add_(student, alpha=0.1)
        records.append(
            {
                "dino_local": float(terms["dino_local_crops_loss"]),
                "dino_global": float(terms["dino_global_crops_loss"]),
                "ibot": float(terms["ibot_loss"]) * 2,  # upstream halves these two for display only
                "koleo": float(terms["koleo_loss"]) * 2,
                "grad_norms": norms,
                "student_sum": float(sum(p.double().abs().sum() for p in arch.student.parameters())),
                "teacher_sum": float(sum(p.double().abs().sum() for p in arch.teacher.parameters())),
            }
        )
    return records


def upstream_batch(step, mean, std):
    masks = torch.from_numpy(np.random.RandomState(step).rand(6, 36) < 0.3)
    masks[[0, 4]] = False
    return {
        "collated_global_crops": (crops(f"global{step}", (6, 1, 48, 48)).float() / 255 - mean) / std,
        "collated_local_crops": (crops(f"local{step}", (9, 1, 24, 24)).float() / 255 - mean) / std,
        "collated_masks": masks,
        "mask_indices_list": masks.flatten().nonzero().flatten(),
        "n_masked_patches": torch.tensor([int(masks.sum())]),
        "upperbound": int(masks.sum()) + 3,
        "masks_weight": (1 / masks.sum(-1).clamp(min=1.0)).unsqueeze(-1).expand_as(masks)[masks],
    }


def main(commit):
    stub_xformers()
    stub_torchvision()
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    golden = {
        "upstream": f"facebookresearch/dinov2@{commit}",
        "losses": losses(),
        "head": head(),
        "masking": masking(),
        "schedules": schedules(),
        "training_steps": training_step(),
    }
    Path(__file__).with_name("pretrain.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
