"""Any microscope file → array, axes and pixel size; label images in and out.

Values are never changed on reading: dtype and range are the file's. What an axis means comes from the file's
metadata, from `axes.py`'s stated rules, or from the caller, and the result says which.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dinocell.data import axes as axis_rules
from dinocell.data.bioformats import BIOIO, read_bioio
from dinocell.data.gray import planes, to_gray
from dinocell.data.image import ImageFile, every_nth_frame, override_axes, reading, refuse_bomb
from dinocell.data.lazy import LazyFile, open_npy
from dinocell.data.tiff import TIFFS, read_tiff, write_label_tiff
from dinocell.data.tiff_planes import open_tiff
from dinocell.data.zarr_files import open_zarr, read_zarr
from dinocell.errors import ConfigError, DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
SUFFIXES = (*PICTURES, *TIFFS, ".npy", ".zarr", *BIOIO)
MASK_ENDINGS = ("_mask", "_masks", "_label", "_labels", "_cp_masks", "_seg", "_instances_ids")


def read_image(path: str | os.PathLike[str], *, axes: str | None = None, max_bytes: int | None = None) -> ImageFile:
    """Read the first image of a file.

    Args:
        path: TIFF (OME, ImageJ, STK, LSM, BigTIFF), PNG, JPEG, BMP, NPY, OME-Zarr; CZI, ND2, LIF through bioio.
        axes: letters out of TZCYXS that override metadata and rules, e.g. "ZYX".
        max_bytes: refuse files that decode to more than this; default: `DINOCELL_MAX_GIB`, or 8 GiB.

    Raises:
        DataError: unreadable, truncated, too large, or axes that do not fit.
    """
    return next(read_series(path, axes=axes, max_bytes=max_bytes))


def read_series(
    path: str | os.PathLike[str], *, axes: str | None = None, t_step: int = 1, max_bytes: int | None = None
) -> Iterator[ImageFile]:
    """Every image of a file (TIFF series, CZI or LIF scenes); errors as `read_image`.

    Args:
        path: see `read_image`.
        axes: see `read_image`.
        t_step: read every `t_step`-th time point only; TIFF pages in between are not even decoded.
        max_bytes: see `read_image`; counts what is read.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(f"{file}: no such file")
    with reading(file, "cannot be read"):
        for image in _series(file, axes, t_step, max_bytes):
            if not image.array.size or image.array.dtype.kind not in "buif" or not {"Y", "X"} <= set(image.axes):
                found = f"{image.axes} {image.array.shape} of {image.array.dtype}"
                raise DataError(f"{file}: no picture of numbers with rows and columns: {found}")
            yield image


def _series(file: Path, axes: str | None, t_step: int, max_bytes: int | None) -> Iterator[ImageFile]:
    suffix = file.suffix.lower()
    if suffix in BIOIO:
        found = read_bioio(file, max_bytes)
    elif suffix == ".zarr":
        found = iter([read_zarr(file, max_bytes)])
    elif file.is_dir():
        raise DataError(f"{file}: is a folder, not an image")
    elif suffix in TIFFS:
        yield from read_tiff(file, axes, t_step, max_bytes)
        return
    elif suffix in PICTURES:
        found = iter([_read_picture(file, max_bytes)])
    elif suffix == ".npy":
        found = iter([_read_npy(file, max_bytes)])
    else:
        raise DataError(f"{file}: unknown image type {suffix or '(none)'}; known: {' '.join(SUFFIXES)}")
    for image in found:
        yield every_nth_frame(override_axes(image, axes, file), t_step)


def open_lazily(path: str | os.PathLike[str], *, axes: str | None = None) -> LazyFile | None:
    """A TIFF, OME-Zarr or NPY file that decodes to more than 256 MiB, to be loaded plane by plane.

    Args:
        path: see `read_image`.
        axes: see `read_image`.

    Returns:
        None for small files, other formats, and the layouts of TIFF that can only be read whole.

    Raises:
        DataError: unreadable, axes that do not fit, or a plane that decodes to more than 64 GiB.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".zarr" and file.is_dir():
        return open_zarr(file, axes)
    if not file.is_file():
        return None
    if suffix in TIFFS:
        return open_tiff(file, axes)
    return open_npy(file, axes) if suffix == ".npy" else None


def _read_picture(file: Path, max_bytes: int | None) -> ImageFile:
    data = np.fromfile(file, dtype=np.uint8)
    shape, itemsize = picture_header(data[: 2**20].tobytes(), data[-4096:].tobytes(), file)
    refuse_bomb(shape, itemsize, max_bytes, file)
    with reading(file, "cannot be decoded"):
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if array is None:
        raise DataError(f"{file}: cannot be decoded as {file.suffix[1:].upper()}")
    if array.ndim == 2:
        return ImageFile(array=array, axes="YX", axes_source="metadata")
    if array.shape[2] == 1:
        return ImageFile(array=array[..., 0], axes="YX", axes_source="metadata")
    upright = cv2.COLOR_BGR2RGB if array.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return ImageFile(array=cv2.cvtColor(array, upright), axes="YXS", axes_source="metadata")


def picture_header(head: bytes, tail: bytes, where: Path) -> tuple[tuple[int, int, int], int]:
    """Height, width and samples, and bytes a sample, that a PNG, JPEG or BMP decodes to, read without decoding it.

    Raises:
        DataError: not such a file, or its end is missing (decoders silently pad truncated pictures).
    """
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) >= 33:
        if b"IEND" not in tail:
            raise DataError(f"{where}: truncated PNG, its end is missing")
        samples = 1 if head[25] == 0 else 4
        return (int.from_bytes(head[20:24]), int.from_bytes(head[16:20]), samples), max(head[24] // 8, 1)
    if head[:2] == b"\xff\xd8":
        if b"\xff\xd9" not in tail:
            raise DataError(f"{where}: truncated JPEG, its end is missing")
        return _jpeg_shape(head, where), 1
    if head[:2] == b"BM" and len(head) >= 26:
        size = int.from_bytes(head[2:6], "little")
        height = abs(int.from_bytes(head[22:26], "little", signed=True))
        width = abs(int.from_bytes(head[18:22], "little", signed=True))
        if size > where.stat().st_size:
            raise DataError(f"{where}: truncated BMP, {where.stat().st_size} of {size} bytes")
        return (height, width, 4), 1
    raise DataError(f"{where}: not a PNG, JPEG or BMP file")


def _jpeg_shape(head: bytes, where: Path) -> tuple[int, int, int]:
    position = 2
    while position + 9 < len(head) and head[position] == 0xFF:
        marker = head[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = (int.from_bytes(head[position + k : position + k + 2]) for k in (5, 7))
            samples = head[position + 9]
            if marker <= 0xC2 and samples <= 4:
                _refuse_short_jpeg(height, width, head[position + 11 : position + 10 + 3 * samples : 3], where)
            return height, width, samples
        position += 2 + int.from_bytes(head[position + 2 : position + 4])
    raise DataError(f"{where}: JPEG without a frame header")


def _refuse_short_jpeg(height: int, width: int, sampling: bytes, where: Path) -> None:
    """Refuse a Huffman-coded JPEG too short for its picture; decoders would fill it up with gray.

    Each 8 × 8 block of each component takes a code word of its own, which has at least one bit. Four bits of
    `sampling`, a byte a component, are its density across, four that down.
    """
    density = [(max(1, one >> 4), max(1, one & 15)) for one in sampling]
    across, down = (8 * max(side, default=1) for side in zip(*density, strict=True)) if density else (8, 8)
    blocks = sum(math.ceil(width * h / across) * math.ceil(height * v / down) for h, v in density)
    size = where.stat().st_size
    if blocks > 8 * size:
        raise DataError(f"{where}: damaged JPEG, {size} bytes cannot hold {height} x {width} px")


def _read_npy(file: Path, max_bytes: int | None) -> ImageFile:
    with reading(file, "not a readable NPY array (pickled objects are not loaded)"):
        view = np.load(file, mmap_mode="r", allow_pickle=False)
    refuse_bomb(view.shape, view.dtype.itemsize, max_bytes, file)
    axes, rule = axis_rules.guess_axes(view.shape)
    return ImageFile(array=np.array(view), axes=axes, axes_source=rule)


def list_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files under files, folders (recursively) and glob patterns, sorted, each once.

    A file named by the caller is always taken. Inside folders, hidden files, files of unknown type, the insides
    of .zarr folders, folders called masks or ignore, and stems that end like a mask's (`MASK_ENDINGS`) are skipped.

    Raises:
        ConfigError: a path or pattern that matches nothing.
    """
    found: set[Path] = set()
    for entry in paths:
        for match in expand(entry):
            if match.is_dir() and match.suffix.lower() != ".zarr":
                found.update(_walk(match))
            else:
                found.add(match)
    return sorted(found)


def expand(entry: str | os.PathLike[str]) -> list[Path]:
    """The file or folder named, or the folders and image files that a glob pattern matches, sorted.

    Raises:
        ConfigError: nothing of that name, or nothing that the pattern matches.
    """
    path = Path(entry).expanduser()
    if path.exists():
        return [path]
    # pathlib's own glob refuses absolute patterns
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    images = [match for match in matches if match.is_dir() or match.suffix.lower() in SUFFIXES]
    if not images:
        raise ConfigError(f"{path}: no such file, folder or pattern")
    return images


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        zarrs = [name for name in folders if name.lower().endswith(".zarr")]
        for name in zarrs:
            stem = name[: -len(".zarr")].lower().removesuffix(".ome")
            if name[0] != "." and not stem.endswith(MASK_ENDINGS):
                yield Path(root, name)
        folders[:] = sorted(
            name for name in folders if name not in zarrs and name not in ("masks", "ignore") and name[0] != "."
        )
        for name in files:
            file = Path(root, name)
            if name[0] != "." and file.suffix.lower() in SUFFIXES and not file.stem.lower().endswith(MASK_ENDINGS):
                yield file


def read_labels(path: str | os.PathLike[str]) -> npt.NDArray[np.int32]:
    """Read a label image: int32 (H, W), 0 = background.

    Colour pictures are accepted only when their colour channels are equal.

    Raises:
        DataError: unreadable, not a single plane, fractional, negative or above 2³¹ − 1.
    """
    image = read_image(path)
    array = image.array
    if "S" in image.axes:
        array = np.moveaxis(array, image.axes.index("S"), -1)
        colour = array[..., :3]
        if not (colour == colour[..., :1]).all():
            raise DataError(f"{path}: a colour picture, not a label image")
        array = array[..., 0]
    array = np.squeeze(array)
    if array.ndim != 2:
        raise DataError(f"{path}: a label image has one plane, this has shape {image.array.shape}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise DataError(f"{path}: fractional values, not a label image")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int32).max):
        raise DataError(f"{path}: labels must lie in 0 … 2³¹ − 1, found {array.min()} … {array.max()}")
    return array.astype(np.int32)


def write_labels(path: str | os.PathLike[str], labels: npt.ArrayLike, pixel_size: float | None = None) -> None:
    """Write a label image (H, W) as zlib TIFF: uint16, or uint32 past 65,535; `pixel_size` in µm."""
    array = np.asarray(labels)
    assert array.ndim == 2 and array.dtype.kind in "bui" and (array.size == 0 or array.min() >= 0)
    dtype = np.uint16 if array.size == 0 or array.max() <= 65_535 else np.uint32
    write_label_tiff(Path(path), array.astype(dtype), pixel_size)


__all__ = [
    "ImageFile",
    "LazyFile",
    "every_nth_frame",
    "expand",
    "list_images",
    "open_lazily",
    "override_axes",
    "planes",
    "read_image",
    "read_labels",
    "read_series",
    "to_gray",
    "write_labels",
]
