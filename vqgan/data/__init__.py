"""Data for training the tokenizer: random crops of pictures."""
