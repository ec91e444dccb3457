"""Seeds from names: what makes weights, dropout and data order independent of the layout."""

from __future__ import annotations

import hashlib


def hash_key(*parts: object) -> int:
    """A seed for a generator: 63 bits that any change of any part changes."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
