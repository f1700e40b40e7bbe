"""Tables the front ends read; each that is not ours has its notice beside it."""
