"""FID from pixels to the number, against pytorch-fid with made-up weights of its layout."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vqgan.features import inception, load_features
from vqgan.metrics.frechet import feature_statistics, frechet_distance

COUNT, SIDE = 8, 64
EXPECTED = 1408.3570
"""By pytorch-fid 0.3.0 and SciPy's square root of a matrix, which the last test computes anew."""


def fid_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in inception._convs():
        shapes[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = shape[:1]
    return shapes


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Originals of coarse random colours, and the same, darker and with noise: uint8 ``[N, 64, 64, 3]``."""
    rng = np.random.default_rng(11)
    coarse = rng.integers(0, 256, (COUNT, 8, 8, 3))
    originals = coarse.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    changed = 0.8 * originals + rng.normal(0, 12, originals.shape)
    return originals.astype(np.uint8), np.clip(changed, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(state_dicts: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = state_dicts.write(
        tmp_path_factory.mktemp("fid") / "fid.pth", state_dicts.ruled(fid_shapes())
    )
    return path


@pytest.fixture(scope="module")
def ours(weights: Path) -> float:
    """In the space that all features lie in, whose roots are small matrices: the distance is the same."""
    network = load_features("inception", weights)
    found = [np.asarray(network.features(images), np.float64) for images in pictures()]
    axes, _ = np.linalg.qr(np.concatenate(found).T)  # (2048, 16)
    return frechet_distance(*(feature_statistics(features @ axes) for features in found))


def test_the_number_is_pytorch_fids(ours: float) -> None:
    assert ours == pytest.approx(EXPECTED, rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # SciPy's, of singular matrices
def test_the_number_is_pytorch_fids_where_it_is_installed(
    ours: float, state_dicts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="NOT COMPARED: torch is not installed, nor pytorch-fid")
    peer = pytest.importorskip("pytorch_fid.inception", reason="NOT COMPARED: pytorch-fid is not installed")
    score = pytest.importorskip("pytorch_fid.fid_score")
    made = state_dicts.ruled(fid_shapes())
    state = {name: torch.from_numpy(values.astype(np.float32)) for name, values in made.items()}
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *_, **__: state)
    model = peer.InceptionV3([peer.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    moments = []
    for images in pictures():
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            features = model(batch)[0][:, :, 0, 0].double().numpy()
        moments += [features.mean(axis=0), np.cov(features, rowvar=False)]
    theirs = float(score.calculate_frechet_distance(*moments))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert theirs == pytest.approx(EXPECTED, rel=1e-3)
