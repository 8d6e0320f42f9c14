"""The identical start: every trainable tensor's first value, from the federation's seed and the tensor's name alone.

Only raw PCG64 output is used, which NumPy promises never to change (NEP 19); its `Generator` methods carry no such
promise, and torch's generators differ between devices and versions.
"""

import hashlib
import math

import numpy as np

from conlora.core.schema import Role, Schema, TensorSpec, Vector

HEAD_STD = 0.02  # the usual `initializer_range` of transformer heads


def initial_vector(schema: Schema, seed: int, orthonormal: bool = False) -> Vector:
    """The start of all nodes: A uniform as PEFT's Kaiming default, B zero, heads uniform with deviation 0.02.

    A head's biases are zero, and its gains (weights with one axis, of normalisation layers) are one. orthonormal: the
    rows of A instead, as far as it has no more rows than columns. Returns a flat fp32 vector of shape `(schema.size,)`.
    """
    vector = np.zeros(schema.size, np.float32)
    views = schema.views(vector)
    for spec in schema.tensors:
        if spec.role is Role.HEAD and len(spec.shape) == 1 and spec.name.endswith(".weight"):
            views[spec.name][...] = 1
        bound = _uniform_bound(spec)
        if orthonormal and spec.role is Role.A and spec.shape[0] <= math.prod(spec.shape[1:]):
            views[spec.name][...] = _orthonormal_rows(_uniform(seed, spec))
        elif bound > 0:
            views[spec.name][...] = _uniform(seed, spec) * bound
    return vector


def _orthonormal_rows(matrix: Vector) -> Vector:
    """Gram-Schmidt, twice, in float64 with correctly rounded sums: the same bits with every BLAS and processor."""
    rows: list[np.ndarray] = []
    for row in matrix.reshape(len(matrix), -1).astype(np.float64):
        for _ in range(2):  # once leaves an error of the condition number's size
            for other in rows:
                row = row - math.fsum(row * other) * other
        rows.append(row / math.sqrt(math.fsum(row * row)))
    return np.stack(rows).astype(np.float32).reshape(matrix.shape)


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
