"""Tiny data sets in the real format, written by TensorFlow Datasets itself, without TensorFlow or a download.

The registered builder's own description, features and version, and the writer of the library; the images are made up.
Their class can be learned: each class has a colour, or a brightness, and a bright bar at a place of its own.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

SIZES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "svhn_cropped": (32, 32, 3)}
"""Sets of small images of one size; `imagenet2012` has JPEG files of many sizes."""

CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "svhn_cropped": 10, "imagenet2012": 1000}

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def write_prepared(
    name: str,
    folder: Path,
    *,
    num_train: int = 100,
    num_test: int = 20,
    num_labels: int | None = None,
    side: int = 64,
    shards: int = 2,
) -> Path:
    """Writes a prepared data set and returns its folder, `folder/NAME/VERSION`.

    `imagenet2012` gets its test images in the split "validation", as the real one does. Labels go round: example i has
    class i % `num_labels`, which is all classes unless something smaller is asked for, 10 for `imagenet2012`.

    Args:
      name: one of `CLASSES`.
      folder: the data directory, to be passed on as `data_dir`.
      num_train: number of training images.
      num_test: number of test images.
      num_labels: number of different labels.
      side: shorter side of the smallest image of `imagenet2012`; the others are up to a third larger.
      shards: number of files of the training split.
    """
    import tensorflow_datasets as tfds

    num_labels = num_labels or (10 if name == "imagenet2012" else CLASSES[name])
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    info, place = builder.info, Path(builder.data_dir)
    place.mkdir(parents=True)
    if name == "cifar10":
        info.features["label"].names = CIFAR10
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=-(-num_train // shards), file_format="array_record"
    )
    numbers = {"train": num_train, "validation" if name == "imagenet2012" else "test": num_test}
    writer.initialize_splits(list(numbers))
    for seed, (split, number) in enumerate(numbers.items()):
        writer.add_examples(
            {split: [_example(name, i, i % num_labels, seed, side, split) for i in range(number)]}
        )
    writer.close_all()
    info.features.save_metadata(place)
    return place


def made_up_image(label: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """A noisy [H, W, C] uint8 image from which its label, in [0, 100), can be learned."""
    rng = np.random.Generator(np.random.Philox(seed))
    height, width, num_colours = shape
    image = rng.integers(0, 60, shape)
    image[..., label % num_colours] += 20 + label % 7 * 15
    top = label % 10 * height // 10
    image[top : top + max(2, height // 10)] += 90
    left = label // 10 % 10 * width // 10
    image[:, left : left + max(2, width // 10)] += 40
    return np.minimum(image, 255).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """An image as the content of a JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=90)
    return file.getvalue()


def _example(name: str, number: int, label: int, seed: int, side: int, split: str) -> dict[str, object]:
    """One example in the form that the set's features encode."""
    from PIL import Image

    if name == "imagenet2012":
        shape = (side + 3 * number % (side // 3), side + 5 * number % (side // 3), 3)
        content = io.BytesIO(jpeg(made_up_image(label % 100, shape, seed * 100_000 + number)))
        return {"file_name": f"n{label:08d}_{number}.JPEG", "image": content, "label": label}
    image = made_up_image(label, SIZES[name], seed * 100_000 + number)
    example = {"image": Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), "label": label}
    if name == "cifar100":
        example["coarse_label"] = label // 5
    return example if name == "mnist" else {"id": f"{split}_{number:05d}", **example}
