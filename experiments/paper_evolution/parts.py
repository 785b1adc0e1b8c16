"""Images other than the whole data sets: parts of them from archives, and stand-ins to rehearse with."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from config import REHEARSAL_IMAGES

from jaxprune.datasets.dataset import Dataset, load_dataset
from jaxprune.tasks.named_tasks import lenet5_task, vgg16_task
from jaxprune.tasks.tasks import Task

IMAGES = "PAPER_EVOLUTION_IMAGES"
"""Environment variable with the folder of the archives."""


def mnist_part() -> Task:
    """LeNet-5 on a part of MNIST."""
    with np.load(Path(os.environ[IMAGES]) / "mnist_8k_2k.npz", allow_pickle=False) as archive:
        splits = {part: (archive[f"x_{part}"], archive[f"y_{part}"]) for part in ("train", "test")}
    return lenet5_task("mnist-part", _pixels("mnist-part", splits))


def cifar_part() -> Task:
    """VGG-16 on a part of CIFAR-10 that was encoded as JPEG, and so is not CIFAR-10 any more."""
    from PIL import Image

    splits = {}
    with np.load(Path(os.environ[IMAGES]) / "cifar10_jpegbytes_8k_2k.npz", allow_pickle=False) as archive:
        for part in ("train", "test"):
            files = np.split(archive[f"jpeg_{part}"], archive[f"end_{part}"][:-1])
            images = [np.asarray(Image.open(io.BytesIO(file.tobytes())).convert("RGB")) for file in files]
            splits[part] = (np.stack(images), archive[f"y_{part}"])
    return vgg16_task("cifar-part", _pixels("cifar-part", splits))


def write_stand_ins(folder: Path) -> None:
    """Writes tiny sets in the real format into a data directory, with images of the packaged Fashion-MNIST in them.

    They are there to run the whole path; what is measured on them says nothing about MNIST or CIFAR-10.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    fashion = load_dataset("fashion").limited(num_train=1000).train
    low, high = fashion.images.min(), fashion.images.max()
    grey = np.round((fashion.images[..., 0] - low) / (high - low) * 255).astype(np.uint8)
    for name, (num_train, num_test) in REHEARSAL_IMAGES.items():
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        info, place = builder.info, Path(builder.data_dir)
        if place.exists():
            continue
        place.mkdir(parents=True)
        if name == "cifar10":
            info.features[
                "label"
            ].names = "airplane automobile bird cat deer dog frog horse ship truck".split()
        writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000, file_format="array_record")
        writer.initialize_splits(["train", "test"])
        for split, rows in {
            "train": range(num_train),
            "test": range(num_train, num_train + num_test),
        }.items():
            examples = []
            for row in rows:
                image = Image.fromarray(grey[row])
                if name == "cifar10":
                    image = image.resize((32, 32)).convert("RGB")
                identity = {"id": f"{split}_{row:05d}"} if name == "cifar10" else {}
                examples.append({**identity, "image": image, "label": int(fashion.labels[row])})
            writer.add_examples({split: examples})
        writer.close_all()
        info.features.save_metadata(place)


def _pixels(name: str, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """Images from 0 to 255 as a dataset, with every fifth training image for validation."""
    return Dataset.from_arrays(name, train=splits["train"], test=splits["test"])
