"""Data for training: images for the tokenizer."""
