"""Token shards in a torch training loop.

    python examples/torch_tokens.py tokens/

Reading takes a small part of one core, so the loader needs no worker processes. The position is one number:
save ``batches.get_state()`` beside the model, and ``set_state`` goes on from it, with any number of hosts.
"""

import sys
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from vqgan.data.token_batches import TokenBatches, token_batches
from vqgan.data.tokens import open_tokens


class Tokens(IterableDataset):
    """Batches of ``(tokens, labels)``: int64 ``[B, L]`` and int64 ``[B]``, -1 where there is no class."""

    def __init__(self, batches: TokenBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            yield torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.labels).long()


def main() -> None:
    """Prints the shapes of a few batches."""
    batches = token_batches([open_tokens(sys.argv[1])], batch_size=8, seed=0)
    loader = DataLoader(Tokens(batches), batch_size=None)  # they are batches already
    for _, (tokens, labels) in zip(range(3), loader, strict=False):
        print(tuple(tokens.shape), tokens.dtype, labels.tolist())
    print("position:", batches.get_state()["position"])


if __name__ == "__main__":
    main()
