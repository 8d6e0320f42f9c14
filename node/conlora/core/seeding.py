"""The identical start: every trainable tensor's first value, from the federation's seed and the tensor's name alone.

Only raw PCG64 output is used, which NumPy promises never to change (NEP 19); its `Generator` methods carry no such
promise, and torch's generators differ between devices and versions.
"""

import hashlib
import math

import numpy as np

from conlora.core.schema import Role, Schema, TensorSpec, Vector

HEAD_STD = 0.02  # the usual `initializer_range` of transformer heads


def initial_vector(schema: Schema, seed: int) -> Vector:
    """The start of all nodes: A uniform as PEFT's Kaiming default, B zero, head uniform with deviation 0.02, biases zero.

    Returns a flat fp32 vector of shape `(schema.size,)`.
    """
    vector = np.zeros(schema.size, np.float32)
    views = schema.views(vector)
    for spec in schema.tensors:
        bound = _uniform_bound(spec)
        if bound > 0:
            views[spec.name][...] = _uniform(seed, spec) * bound
    return vector


def _uniform_bound(spec: TensorSpec) -> float:
    if spec.role is Role.A:
        # kaiming_uniform_(a=sqrt(5)) over fan_in = columns of A (He et al. 2015, eq. 10; PEFT's reset_lora_parameters)
        return 1 / math.sqrt(math.prod(spec.shape[1:]))
    if spec.role is Role.HEAD and len(spec.shape) > 1:
        return HEAD_STD * math.sqrt(3)
    return 0.0


def _uniform(seed: int, spec: TensorSpec) -> np.ndarray:
    """Uniform on [-1, 1), fp32, in the tensor's shape."""
    words = np.frombuffer(hashlib.sha256(f"{seed}/{spec.name}".encode()).digest(), np.uint32)
    raw = np.random.PCG64(np.random.SeedSequence(words.tolist())).random_raw(spec.size)
    unit = (raw >> np.uint64(11)) * 2.0**-53
    return (2 * unit - 1).astype(np.float32).reshape(spec.shape)
