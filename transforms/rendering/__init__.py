"""Token shards to pictures: what becomes of one slice, in which form, and how it is checked."""
