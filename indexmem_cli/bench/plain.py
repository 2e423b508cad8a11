"""What the cache of plain transformers takes, beside which the memories of methods are set."""

from transformers import DynamicCache


def kv_bytes(cache: DynamicCache) -> int:
    """Return the bytes of its keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
