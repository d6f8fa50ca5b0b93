"""Data for training: random crops of pictures, and rows of tokens."""
