"""How whole-number images become standardised ones: on the host, or on the device batch by batch, with equal bits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

NUM_VALUES = 256
"""Values that a pixel can have."""


class Scaling(NamedTuple):
    """Shift and scale of each colour; called with images, it standardises them.

    Attributes:
      mean: [C] float32, the mean of each colour over the training images.
      scale: [C] float32, one by its standard deviation.
    """

    mean: np.ndarray | jax.Array
    scale: np.ndarray | jax.Array

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Standardises images.

        A difference and a product, each rounded to float32: NumPy and compiled programs compute the same bits.

        Args:
          images: [..., C] uint8, of NumPy or JAX.

        Returns:
          [..., C] float32, as NumPy or JAX array.
        """
        shape = (1,) * (images.ndim - 1) + (-1,)
        scaled = images.astype(np.float32)
        scaled -= self.mean.reshape(shape)  # in place where NumPy's, to need the memory once
        scaled *= self.scale.reshape(shape)
        return scaled


def scaling_of(images: np.ndarray) -> Scaling:
    """Computes mean and standard deviation of each colour from how often each value occurs, exactly.

    Args:
      images: [N, H, W, C] uint8.

    Returns:
      The scaling; a colour of one value only is shifted, not scaled.

    Example:
      >>> pixels = np.array([0, 2, 4, 6], np.uint8).reshape(2, 1, 2, 1)
      >>> scaling = scaling_of(pixels)
      >>> scaling.mean.tolist(), scaling(pixels).astype(float).ravel().round(2).tolist()
      ([3.0], [-1.34, -0.45, 0.45, 1.34])
    """
    values = np.arange(NUM_VALUES, dtype=np.float64)
    counts = np.zeros((images.shape[-1], NUM_VALUES), np.int64)
    for some in np.array_split(images, max(1, len(images) // 1000)):  # bincount makes int64 of what it counts
        for colour, row in enumerate(counts):
            row += np.bincount(some[..., colour].ravel(), minlength=NUM_VALUES)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
    spread = np.where(variance > 0, np.sqrt(variance), 1.0)
    return Scaling(mean.astype(np.float32), (1 / spread).astype(np.float32))
