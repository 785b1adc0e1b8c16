"""Tiny archives as ILSVRC-2012 has them: a tar of tars for training, one tar for validation."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from prepared_data import jpeg, made_up_image


def write_archives(
    folder: Path, *, num_classes: int = 3, per_class: int = 4, num_validation: int = 6
) -> None:
    """Writes both archives; training images are of the classes that the first validation images have.

    Args:
      folder: where to.
      num_classes: number of classes with training images.
      per_class: training images of each.
      num_validation: number of validation images, whose labels are those of the real set.
    """
    import tensorflow_datasets as tfds

    place = Path(tfds.__file__).parent / "datasets" / "imagenet2012"
    names = (place / "labels.txt").read_text().split()
    labels = (place / "validation_labels.txt").read_text().split()[:num_validation]
    train = {
        name: {f"{name}_{i}.JPEG": picture(names.index(name), i) for i in range(per_class)}
        for name in list(dict.fromkeys(labels))[:num_classes]
    }
    files = {f"{name}.tar": tar(images) for name, images in train.items()}
    validation = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": picture(names.index(label), i) for i, label in enumerate(labels)
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(files))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(validation))


def picture(label: int, number: int) -> bytes:
    """A JPEG file of a class; sizes differ."""
    return jpeg(made_up_image(label % 100, (50 + number, 60 - number, 3), number))


def tar(files: dict[str, bytes]) -> bytes:
    """The content of a tar archive of some files."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()
