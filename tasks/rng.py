"""Named random streams: a NumPy generator as a pure function of a seed and what it is for."""

import hashlib
import json

import numpy as np


def stream(*names: int | str) -> np.random.Generator:
    """A generator keyed by a hash of the names: neighbouring seeds and steps share nothing, `stream(seed, step, "text")`."""
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
