"""The codec for people with Beam pipelines of their own: a ``ModelHandler`` for ``RunInference``.

>>> from apache_beam.ml.inference.base import RunInference
>>> encode = RunInference(CodecModelHandler("tiny"))

For whole corpora run :class:`transforms.tokenizing.job.TokenizeJob`: pixels never leave a function of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from apache_beam.ml.inference.base import ModelHandler

from transforms.sharded.batching import load_codec

if TYPE_CHECKING:
    from vqgan.codec import Codec


class CodecModelHandler(ModelHandler[np.ndarray, np.ndarray, "Codec"]):
    """uint8 images ``[H, W, 3]`` of one size to int32 tokens ``[h, w]``.

    Elements come out as bare tokens, without their input: wrap the handler in Beam's
    ``KeyedModelHandler`` to keep keys. Beam's last batch of a bundle may be short; the codec pads it
    to its fixed batch, so nothing is compiled anew.

    Args:
      codec: path or name.
      batch_size: images per device call, and the most that Beam puts into one batch.
      dtype: type that convolutions compute in.
      max_batch_seconds: for streams, whose bundles are small: how long images wait for others of their batch,
        beyond their bundle. Needs a runner with timers. None: a batch ends with its bundle.
    """

    def __init__(
        self,
        codec: str,
        batch_size: int = 32,
        dtype: str = "float32",
        max_batch_seconds: int | None = None,
    ):
        # The least is the most: a smaller batch would be padded, and Beam need not try which is fastest.
        super().__init__(
            min_batch_size=batch_size, max_batch_size=batch_size, max_batch_duration_secs=max_batch_seconds
        )
        self._codec, self._batch_size, self._dtype = codec, batch_size, dtype

    def load_model(self) -> "Codec":
        """Returns the process's codec."""
        return load_codec(self._codec, self._batch_size, self._dtype)

    def run_inference(
        self,
        batch: Sequence[np.ndarray],
        model: "Codec",
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[np.ndarray]:
        """Returns tokens of each image of a batch, in order."""
        return list(model.encode(np.stack(batch)))

    def get_num_bytes(self, batch: Sequence[np.ndarray]) -> int:
        """Returns bytes of a batch; Beam's own way would pickle it."""
        return sum(image.nbytes for image in batch)

    def get_metrics_namespace(self) -> str:
        """Returns names where Beam's counters of this handler are found."""
        return "vqgan"
