"""What happens to data inside a pipeline: plain functions first, thin Beam transforms around them."""
