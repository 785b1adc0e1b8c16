"""The images of a transfer: what they are told by, and how they are cut."""

from __future__ import annotations

from images_in_memory import encoded, smooth_pixels, some_images

from jaxprune.comparison import transfer_data
from jaxprune.comparison.transfer_data import EncodedData, open_data


def test_images_decoded_by_another_program_are_other_images(monkeypatch):
    images = some_images(4)

    def fingerprint(size=8):
        return EncodedData("mine", "", images, images, None, size).fingerprint

    found = {fingerprint(), fingerprint(), fingerprint(16)}
    monkeypatch.setattr(transfer_data, "choose_decoder", lambda: "pillow")
    assert len(found | {fingerprint()}) == 3


def test_a_folder_for_validation_is_used(tmp_path):
    for part, count in (("train", 5), ("validation", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                file = tmp_path / part / name / f"{number}.jpg"
                file.write_bytes(encoded(smooth_pixels(20 + number, 16)))
    data = open_data(str(tmp_path), image_size=8)
    assert (data.num_train, data.num_validation, data.test) == (10, 4, None)
    (tmp_path / "validation").rename(tmp_path / "other")
    data = open_data(str(tmp_path), image_size=8)
    assert (data.num_train, data.num_validation) == (8, 2)
