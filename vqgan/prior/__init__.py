"""Stage 2: transformers that learn the distribution of token grids, and sampling from them."""
