"""Settings of `dinocell prepare`; a preset in data_curation/configs fills them in for one public source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinocell.core.fields import SettingError, Settings, field

Layout = Literal["pairs", "coco", "dsb2018", "ctc", "binary", "contours", "rois", "tyc", "nd2_masks"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Settings):
    """One labelled source: how it is laid out, what it is, and where it goes.

    Layouts: pairs (an image and a label image of instances), binary (the same with a foreground mask whose connected
    components are the objects), coco (one JSON of polygons or RLE and a folder of images), dsb2018 (a folder an image
    with images/ and one mask an object in masks/), ctc (Cell Tracking Challenge: 01/, 01_GT/SEG or 01_ST/SEG),
    contours (as pairs, with drawn outlines: BBBC030), rois (as pairs, with a JSON of polygons: NTERA-2), tyc (masks and
    classes, of which cells are taken), nd2_masks (masks of the positions of an ND2 file: idr0095).
    """

    src: str = field(doc="folder that was downloaded and unpacked")
    out: str = field(doc="folder of the prepared dataset")
    layout: Layout = field("pairs", "how the source is laid out")
    images: str = field("**/*", "glob of the images below src; {split} stands for a folder name of splits")
    mask_from: str = field("", "regular expression on an image's path below src, replaced to give its mask's path")
    mask_to: str = field("", "replacement, with \\1 … for groups; empty mask_from pairs images/ with masks/ by stem")
    annotations: str = field("", "coco: glob of the JSON files below src")
    leave_out: tuple[str, ...] = field((), "coco: categories or supercategories that are not cells")
    splits: dict[str, str] = field(factory=dict, doc="train, val, test: regular expression on the path below src")
    name: str = field("", "name of the dataset; empty takes the folder's")
    modality: str = field("unknown", "phase, brightfield, fluorescence, stained …")
    fully_annotated: bool = field(True, "false when cells exist that have no mask")
    licence: str = field("unknown", "licence of the data")
    source: str = field("unknown", "where it is downloaded")
    citation: str = field("", "paper to cite")
    min_area: int = field(0, "objects with fewer pixels are dropped", "px", at_least=0)
    split_components: bool = field(False, "give separate pieces of one label their own numbers")
    background: int = field(0, "label value that means background", at_least=0, advanced=True)
    seed: int = field(0, "of the 80/10/10 split of sources without one", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.splits) - {"train", "val", "test"}
        if unknown:
            raise SettingError("splits", f"{sorted(unknown)[0]!r} is not one of train, val, test")
        if self.layout == "coco" and not self.annotations:
            raise SettingError("annotations", "the coco layout needs the glob of its JSON files")
