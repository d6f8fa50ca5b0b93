"""Packaging. Imports the standard library and setuptools only: Beam's stager builds this on launch.

The metadata stand here rather than in pyproject.toml's ``[project]``, so that the stager's
``python setup.py sdist`` works with whatever setuptools the launcher's environment has.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "vqgan" / "__init__.py").read_text(), re.MULTILINE)[1]
EXTRAS = {
    # Training codecs and priors; vqgan demo.
    "train": ["grain>=0.2.18", "optax>=0.2.6", "tensorboardX>=2.6"],
    # Checkpoints of other code bases as codecs, and exporting to them.
    "import": ["safetensors"],
    # vqgan export --to onnx.
    "export": ["onnx>=1.17"],
    # hf://OWNER/NAME as a codec or prior, hf://datasets/OWNER/NAME as tokens; vqgan push.
    "hub": ["huggingface-hub"],
    # tfds:NAME/SPLIT inputs, in both of its file formats, without TensorFlow.
    "tfds": ["tensorflow-datasets>=4.9.9", "array-record>=0.8", "importlib-resources"],
    # HEIF images (HEIC), decoded by libheif.
    "heic": ["pillow-heif>=1.8"],
    # JPEG XL images, decoded by libjxl. The package is under the GPL, so that nothing else brings it along.
    "jxl": ["pillow-jxl-plugin>=1.3.8"],
    # --engine openvino: a codec's networks on a processor.
    "cpu": ["openvino>=2026.2"],
    # vqgan train --wandb.
    "wandb": ["wandb"],
    # Dask as a runner.
    "dask": ["dask>=2026.3", "distributed>=2026.3"],
    # Dataflow as a runner.
    "gcp": ["apache-beam[gcp]"],
    # The documentation as a site: make docs.
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings-python>=2"],
    # Tests, checks and building.
    "dev": [
        "build",
        "datasets",
        "duckdb",
        "flask",
        "flask-cors",
        "gcp-storage-emulator",
        "hypothesis",
        "ipykernel",
        "lunr",
        "moto[s3]",
        "mypy",
        "nbclient",
        "nbformat",
        "onnxruntime",
        "opencv-python-headless",
        "pandas",
        "pillow-jxl-plugin",
        "polars",
        "pytest>=9",
        "pytest-xdist",
        "ruff",
        "setuptools>=77",
        "webdataset",
        "wheel",
    ],
}
EXTRAS["dev"] += EXTRAS["docs"] + EXTRAS["dask"]
EXTRAS["all"] = sorted(
    {need for name in ("train", "import", "export", "hub", "tfds", "heic", "cpu") for need in EXTRAS[name]}
)

setup(
    name="vqgan-pipelines",
    version=VERSION,
    description="Turns image corpora into VQGAN tokens with Apache Beam and JAX, and back",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The vqgan-pipelines authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["vqgan", "image tokenizer", "vector quantization", "apache beam", "jax", "flax", "parquet"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["vqgan", "vqgan.*", "transforms", "transforms.*", "pipelines", "pipelines.*"]
    ),
    package_data={
        "vqgan": ["pretrained/**/*", "py.typed"],
        "transforms": ["py.typed"],
        "pipelines": ["photos/*", "digits/*", "py.typed"],
    },
    # Everything that a worker imports, by name: nothing of it may be there only because another brings it.
    install_requires=[
        "apache-beam>=2.77,<3",
        "flax>=0.12.8",
        "google-crc32c>=1.5",
        "jax>=0.10",
        "ml-dtypes>=0.5",
        "msgpack>=1",
        "numpy>=2,<2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=12",
        "protobuf>=5",
        "pyarrow>=21,<26",
        "pyyaml>=6",
        "tensorstore>=0.1.75",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vqgan = vqgan.__main__:start"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
)
