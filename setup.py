"""Install DINOCell: ``pip install -c constraints.txt .`` (see README.md)."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


RECIPES = {  # name in the package → folder in the repository, as in dinocell/core/recipes.py
    "data_curation": "data_curation/configs",
    "ssl": "ssl/configs",
    "finetune": "finetune/configs",
    "slurm": "slurm/profiles",
}


class BuildWithRecipes(build_py):
    """Copies the recipes of the script folders into the package, so that they work without the repository."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for kind, source in RECIPES.items():
                target = Path(self.build_lib, "dinocell", "recipes", kind)
                target.mkdir(parents=True, exist_ok=True)
                for recipe in sorted((HERE / source).glob("*.yaml")):
                    shutil.copyfile(recipe, target / recipe.name)


setup(
    name="dinocell",
    cmdclass={"build_py": BuildWithRecipes},
    version="0.1.0",
    description="Self-supervised pretraining and fine-tuning of cell-segmentation models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # Only the library: the script folders (ssl/ above all) must never be installed as packages.
    packages=find_packages(include=["dinocell", "dinocell.*"]),
    package_data={"dinocell": ["py.typed", "napari/napari.yaml", "models/packaged/*/*"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "scikit-image>=0.22",
        "opencv-python-headless>=4.8",
        "numba>=0.59",
        "tifffile>=2024.2.12",
        "imagecodecs>=2023.7",
        "omegaconf>=2.4,<3",
        "fvcore>=0.1.5",
        "iopath>=0.1.10",
        "submitit>=1.5",
        "safetensors>=0.4",
        "typer>=0.12",
        "rich>=14.1",
        "matplotlib>=3.8",
        "pandas>=2.1",
        "tensorboard>=2.14",
        "pyyaml>=6",
        "roifile>=2023.5",
    ],
    extras_require={
        "xformers": ["xformers>=0.0.29"],
        "formats": ["bioio", "bioio-czi", "bioio-nd2", "liffile", "zarr>=3"],
        "napari": ["napari[pyqt6]>=0.6.2"],
        "parquet": ["pyarrow>=14"],
        "onnx": ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"],
        # bioimageio.spec 0.5.12 fails on pydantic 2.14 ("index_key is expected to be an integer or a string")
        "bioimage": [
            "bioimageio.core>=0.11",
            "onnx>=1.17",
            "onnxscript>=0.3",
            "onnxruntime>=1.20",
            "pydantic<2.14",
        ],
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "shapely>=2",
            "pyarrow>=14",
            "zarr>=3",
            "nbclient",
            "ipykernel",
        ],
        "test-napari": ["napari[pyqt6]>=0.6.2", "pytest>=8", "pytest-timeout", "pytest-qt"],
        "dev": ["ruff", "mypy", "types-PyYAML"],
    },
    entry_points={
        "console_scripts": ["dinocell = dinocell.cli:main"],
        "napari.manifest": ["dinocell = dinocell.napari:napari.yaml"],
    },
    classifiers=[
        "Framework :: napari",
        "Programming Language :: Python :: 3",
        "License :: OSI Approved :: Apache Software License",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
