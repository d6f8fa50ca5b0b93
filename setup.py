"""Packaging. Imports the standard library and setuptools only: Beam's stager builds this on launch."""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    # Training the VQGAN itself.
    "train": ["grain>=0.2.18", "optax>=0.2.6", "tensorboardX>=2.6"],
    # Checkpoints of other code bases as codecs, and exporting to them.
    "import": ["pyyaml", "safetensors"],
    # hf://OWNER/NAME as a codec or prior, hf://datasets/OWNER/NAME as tokens; vqgan push.
    "hub": ["huggingface-hub"],
    # tfds:NAME/SPLIT inputs, in both of its file formats, without TensorFlow.
    "tfds": ["tensorflow-datasets>=4.9.9", "array-record>=0.8", "importlib-resources"],
    # Dataflow as a runner.
    "gcp": ["apache-beam[gcp]"],
    # Tests, checks and building.
    "dev": [
        "build",
        "datasets",
        "duckdb",
        "hypothesis",
        "mypy",
        "pandas",
        "polars",
        "pytest>=9",
        "pytest-xdist",
        "ruff",
        "setuptools>=77",
        "webdataset",
        "wheel",
    ],
}
EXTRAS["all"] = sorted({need for name in ("train", "import", "hub", "tfds") for need in EXTRAS[name]})

setup(
    name="vqgan-pipelines",
    version="0.1.0",
    description="Turns image corpora into VQGAN tokens with Apache Beam and JAX, and back",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["vqgan", "vqgan.*", "transforms", "transforms.*", "pipelines", "pipelines.*"]
    ),
    package_data={"vqgan": ["pretrained/**/*", "py.typed"], "pipelines": ["photos/*"]},
    # Everything that a worker imports.
    install_requires=[
        "apache-beam>=2.77,<3",
        "flax>=0.12.8",
        "google-crc32c>=1.5",
        "jax>=0.10",
        "numpy>=2,<2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=12",
        "protobuf>=5",
        "pyarrow>=21,<26",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vqgan = pipelines.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
