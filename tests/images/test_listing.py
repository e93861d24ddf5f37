"""One place decides what an input is: images, not their labels, figures or other results."""

from pathlib import Path

import pytest

from dinocell.core.errors import ConfigError
from dinocell.evaluation.pairing import bare_stem
from dinocell.images.listing import FIGURE_ENDINGS, LABEL_ENDINGS, label_ending, list_images, plain_stem
from dinocell.segmentation.outputs.save import FORMATS


def test_list_images_skips_masks_and_hidden_files(tmp_path: Path) -> None:
    for name in (
        "b.png",
        "a.tif",
        "a_mask.png",
        "x_cp_masks.tif",
        ".hidden.png",
        "notes.txt",
        "masks/a.png",
        "sub/c.jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in list_images([tmp_path])]
    assert found == ["a.tif", "b.png", "sub/c.jpg"]
    assert list_images([tmp_path / "a_mask.png", tmp_path / "*.png"])[0].name == "a_mask.png"
    assert [path.name for path in list_images([tmp_path / "*.[pt]*"])] == [
        "a.tif",
        "a_mask.png",
        "b.png",
        "x_cp_masks.tif",
    ]  # no notes.txt
    with pytest.raises(ConfigError, match="no such file, folder or pattern"):
        list_images([tmp_path / "nothing*"])


@pytest.mark.parametrize("image", ["field.tif", "Field.ome.tif", "field.png"])
def test_no_result_of_an_image_is_an_image(image: str, tmp_path: Path) -> None:
    source = tmp_path / image
    source.write_bytes(b"")
    for one in FORMATS.values():
        (tmp_path / f"{plain_stem(source)}{one.suffix}").mkdir()
    for folder in list(tmp_path.glob("*_*")):
        if folder.suffix != ".zarr":
            folder.rmdir()
            folder.write_bytes(b"")
    assert list_images([tmp_path]) == [source]


def test_figures_are_taken_where_they_are_named_or_stand_alone(tmp_path: Path) -> None:
    for name in ("a.tif", "a_overlay.png", "b_outlines.png"):
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in list_images([tmp_path])] == ["a.tif", "b_outlines.png"]
    assert [file.name for file in list_images([tmp_path / "a*"])] == ["a.tif"]
    assert len(list_images([tmp_path / "a_overlay.png", tmp_path / "a.tif"])) == 2


@pytest.mark.parametrize("ending", LABEL_ENDINGS)
def test_endings_of_labels_are_known_in_any_case(ending: str) -> None:
    assert label_ending(f"field{ending.upper()}") is not None and label_ending(f"{ending}field") is None
    assert bare_stem(Path(f"Field{ending}.ome.tif")) == "Field"
    assert bare_stem(Path(f"{ending}.tif")), "a name is never empty"


def test_figures_are_what_segmentation_writes_as_png() -> None:
    written = {one.suffix.removesuffix(".png") for one in FORMATS.values() if one.suffix.endswith(".png")}
    assert written == set(FIGURE_ENDINGS)
