"""`dinocell pca`: what backbones see. Patch tokens of any image, coloured by their principal components.

    dinocell pca IMAGE… --weights [NAME=]WEIGHTS … [--mode resize pad tile] [--size 448] [--projection shared|each]
                        [--out pca.png]

One row per backbone (a model, or a stage of one: `random`, a DINOv2 file, a stage-1 run, a model folder or the name of
a packaged model),
one column per image and way of feeding it:

    resize  the whole image scaled to SIZE × SIZE, its aspect not kept
    pad     scaled to fit SIZE × SIZE, the rest filled with its mean gray
    tile    windows of SIZE × SIZE at the image's own resolution, overlapping by half, blended

`random` takes the architecture of the first other weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dinocell.cli.arguments import named, words
from dinocell.core import log
from dinocell.core.arrays import Float32
from dinocell.core.device import autocast, choose_device, choose_dtype
from dinocell.core.errors import ConfigError
from dinocell.core.files import atomic_write_bytes
from dinocell.images.geometry.resize import resize_image
from dinocell.images.gray.channels import to_gray
from dinocell.images.gray.contrast import to_uint8
from dinocell.images.gray.preprocess import PreprocessConfig, preprocess_plane
from dinocell.images.image import ImageFile
from dinocell.images.listing import list_images
from dinocell.images.read import read_image
from dinocell.models import VisionTransformer, load_backbone, load_model_folder
from dinocell.models.packaged import find_model, packaged_models
from dinocell.models.vit.vision_transformer import GRAY_MEAN, GRAY_STD
from dinocell.models.weights.resize import IMAGENET_MEAN, IMAGENET_STD
from dinocell.predict.windows import Stitcher, covering_windows
from dinocell.report.pca import Tokens, pca_grid

Mode = Literal["resize", "pad", "tile"]
Picture = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="dinocell pca", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, folders or patterns")
    parser.add_argument("--weights", nargs="+", required=True, metavar="[NAME=]WEIGHTS", help="a row each")
    parser.add_argument("--mode", nargs="+", choices=("resize", "pad", "tile"), default=["tile"])
    parser.add_argument("--size", type=int, default=448, help="side of what the backbone is fed (px); default 448")
    parser.add_argument(
        "--projection",
        choices=("shared", "each"),
        default="shared",
        help="one projection for a row, so that a colour means the same in it (default), or one for each image",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--out", default="pca.png", type=Path)
    options = parser.parse_args(words(argv))
    draw(
        options.images,
        options.weights,
        options.out,
        modes=options.mode,
        size=options.size,
        shared=options.projection == "shared",
        device=options.device,
    )
    return 0


def draw(
    images: Sequence[str],
    weights: Sequence[str],
    out: Path,
    *,
    modes: Sequence[Mode] = ("tile",),
    size: int = 448,
    shared: bool = True,
    device: str = "auto",
) -> Path:
    """Write the grid of PCA figures as a PNG; returns its path.

    Raises:
        ConfigError: no image, no weights, a size that no patch divides.
        DataError: an image cannot be read. CheckpointError: weights cannot be read.
    """
    paths = [path for given in images for path in list_images([given])]
    if not paths:
        raise ConfigError(f"no image under {', '.join(map(repr, images))}")
    where, _ = choose_device(device)
    dtype, _ = choose_dtype("auto", where)
    pictures = [_read(path) for path in paths]
    columns = [(picture, mode) for picture in pictures for mode in modes]
    rows: dict[str, list[Tokens]] = {}
    for name, backbone, preprocessing in _backbones(weights):
        if size % backbone.patch_size:
            below = max(size // backbone.patch_size, 1) * backbone.patch_size
            raise ConfigError(
                f"--size: {size} px is not a multiple of the patch of {name}, {backbone.patch_size}; try {below}"
            )
        backbone.to(where)
        rows[name] = [
            patch_tokens(backbone, as_fed(picture, preprocessing), mode, size, dtype)
            for picture, mode in log.progress(columns, f"features: {name}", total=len(columns), unit="pictures")
        ]
    titles = [path.stem + (f", {mode}" if len(modes) > 1 else "") for path in paths for mode in modes]
    grid = pca_grid([picture for picture, _ in columns], titles, rows, shared=shared)
    atomic_write_bytes(out, cv2.imencode(".png", grid[..., ::-1])[1].tobytes())
    log.info(f"written: {out}")
    return out


def _read(path: Path) -> Picture:
    """(H, W) or, of a colour image, (H, W, 3), uint8."""
    image = read_image(path)
    colour = _colour(image)
    if colour is not None:
        return colour
    gray = to_gray(image)
    return gray if gray.dtype == np.uint8 else to_uint8(gray)


def _colour(image: ImageFile) -> Picture | None:
    if image.axes != "YXS" or image.array.dtype != np.uint8:
        return None
    rgb = image.array[..., :3]
    return None if np.ptp(rgb, axis=2).max() == 0 else np.ascontiguousarray(rgb)


def _backbones(weights: Sequence[str]) -> list[tuple[str, VisionTransformer, PreprocessConfig | None]]:
    """Name, backbone and preprocessing (of models of stage 2) of each `[NAME=]WEIGHTS`."""
    rows: list[tuple[str, VisionTransformer | None, PreprocessConfig | None]] = []
    for text in weights:
        name, path = named(text)
        if path == "random":
            rows.append((name or "random", None, None))
        elif (Path(path) / "model.safetensors").is_file() or path in packaged_models():
            model, card = load_model_folder(find_model(path))
            rows.append((name or _short(path), model.backbone, card.preprocess))
        else:
            rows.append((name or _short(path), load_backbone(path, in_channels=None), None))
    first = next((backbone for _, backbone, _ in rows if backbone is not None), None)
    if first is None:
        raise ConfigError("--weights: random needs other weights beside it, whose architecture it takes")
    if len({name for name, _, _ in rows}) < len(rows):
        raise ConfigError("--weights: two rows of one name; name them, e.g. before=A after=B")
    torch.manual_seed(0)
    return [
        (name, (backbone or VisionTransformer(first.config)).eval(), preprocessing)
        for name, backbone, preprocessing in rows
    ]


def _short(path: str) -> str:
    parts = Path(path).parts
    return parts[-2] if len(parts) > 1 and Path(path).stem in ("model", "backbone") else Path(path).stem


def as_fed(picture: Picture, preprocessing: PreprocessConfig | None) -> Float32:
    """The image as float32 around 0 … 1, as stage 1 feeds it, or after the preprocessing of a model of stage 2."""
    if preprocessing is None:
        return picture.astype(np.float32) / np.float32(255)
    gray = picture if picture.ndim == 2 else to_gray(picture)
    return np.asarray(preprocess_plane(gray, preprocessing) * GRAY_STD + GRAY_MEAN, np.float32)


def patch_tokens(
    backbone: VisionTransformer, picture: Float32, mode: Mode, size: int, dtype: torch.dtype = torch.float32
) -> Tokens:
    """Normalised patch tokens (h, w, D) float32 of an image, on a grid over the image alone (no padding).

    Args:
        backbone: in evaluation mode.
        picture: (H, W) or (H, W, 3) float32, see `as_fed`.
        mode: how it is fed, see the module's docstring.
        size: side of what is fed, a multiple of the patch.
        dtype: number format of the forward pass.
    """
    height, width = picture.shape[:2]
    patch = backbone.patch_size
    if mode == "resize":
        return _forward(backbone, resize_image(picture, (size, size)), dtype)
    if mode == "pad":
        scale = size / max(height, width)
        inner = max(round(height * scale), 1), max(round(width * scale), 1)
        square = np.full((size, size, *picture.shape[2:]), picture.mean(), np.float32)
        square[: inner[0], : inner[1]] = resize_image(picture, inner)
        rows, columns = (max(length // patch, 1) for length in inner)
        return _forward(backbone, square, dtype)[:rows, :columns]
    pad = [max(-(-length // patch) * patch, size) - length for length in (height, width)]
    padded = cv2.copyMakeBorder(picture, 0, pad[0], 0, pad[1], cv2.BORDER_REPLICATE)
    grid, side = (padded.shape[0] // patch, padded.shape[1] // patch), size // patch
    stitcher = Stitcher(backbone.embed_dim, grid, side, side // 2)
    for at in covering_windows(grid, side, side // 2):
        rows, columns = (slice(part.start * patch, part.stop * patch) for part in at.slices)
        tokens = _forward(backbone, np.asarray(padded[rows, columns], np.float32), dtype)
        stitcher.add(at, np.ascontiguousarray(tokens.transpose(2, 0, 1)))
    return np.ascontiguousarray(stitcher.maps.transpose(1, 2, 0)[: -(-height // patch), : -(-width // patch)])


@torch.no_grad()
def _forward(backbone: VisionTransformer, picture: Float32, dtype: torch.dtype) -> Tokens:
    """Patch tokens (h, w, D) of one picture whose sides the patch divides."""
    device = next(backbone.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device)
    if backbone.in_channels == 1:
        channels = pixels.mean(dim=2)[None] if picture.ndim == 3 else pixels[None]  # [1, H, W]
    else:
        rgb = pixels.permute(2, 0, 1) if picture.ndim == 3 else pixels.expand(3, *picture.shape)
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        channels = (rgb - mean) / std  # [3, H, W]
    with autocast(device, dtype):
        tokens = backbone.forward_features(channels[None])["x_norm_patchtokens"][0]
    grid = picture.shape[0] // backbone.patch_size, picture.shape[1] // backbone.patch_size
    return cast(Any, tokens.unflatten(0, grid).float().cpu().numpy())  # [h, w, D]
