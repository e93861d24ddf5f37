"""Projection head of DINO and iBOT: MLP, L2 normalisation, weight-normed prototypes (DINO, appendix C)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrototypeLayer(nn.Module):
    """Bias-free linear layer with weight normalisation: row k is g_k v_k / |v_k|, g starts at 1 and is trained.

    Parameter names are those of upstream's `weight_norm` layer, so its heads load.
    """

    def __init__(self, in_features: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, in_features))
        # the default initialization of nn.Linear, as upstream; only the direction counts
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., K] prototype scores."""
        norm = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)  # [K, 1]
        return F.linear(x, self.weight_v * (self.weight_g / norm))


class DINOHead(nn.Module):
    """D -> hidden -> GELU -> hidden -> GELU -> bottleneck -> L2 normalise -> prototypes."""

    def __init__(self, in_features: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = PrototypeLayer(bottleneck, prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] tokens -> [..., K] prototype scores, each in [-g, g]."""
        x = self.mlp(x)
        x = F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        scores: Tensor = self.last_layer(x)
        return scores
