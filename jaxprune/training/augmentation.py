"""Random changes to training images that keep their label."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.training.recipes import Augmentation


def augment(key: jax.Array, images: jax.Array, kind: Augmentation) -> jax.Array:
    """The batch of images, each changed at random as `kind` says.

    Args:
      key: a typed key.
      images: [N, H, W, C].
      kind: "none", or "crop_flip": zero-pad by H // 8, crop back at a random place, mirror half of the images.

    Returns:
      [N, H, W, C] of the same dtype.

    Raises:
      ValueError: if `kind` is unknown, or images to crop do not have four axes.

    Example:
      >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 1)), "none").shape
      (2, 8, 8, 1)
    """
    if kind == "none":
        return images
    if kind != "crop_flip":
        raise ValueError(f'augment must be "none" or "crop_flip", got {kind!r}.')
    if images.ndim != 4:
        raise ValueError(
            f'crop_flip needs images [N, H, W, C], got shape {images.shape}. Use augment="none".'
        )
    n, height, width, channels = images.shape
    reach = max(1, height // 8)
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    key_crop, key_flip = jax.random.split(key)
    corners = jax.random.randint(key_crop, (n, 2), 0, 2 * reach + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    cropped = jax.vmap(crop)(padded, corners)
    is_mirrored = jax.random.bernoulli(key_flip, 0.5, (n,))[:, None, None, None]
    return jnp.where(is_mirrored, cropped[:, :, ::-1], cropped)
