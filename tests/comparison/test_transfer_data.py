"""The images of a transfer: what they are told by, and how they are cut."""

from __future__ import annotations

from images_in_memory import some_images

from jaxprune.comparison import transfer_data
from jaxprune.comparison.transfer_data import EncodedData


def test_images_decoded_by_another_program_are_other_images(monkeypatch):
    images = some_images(4)

    def fingerprint(size=8):
        return EncodedData("mine", "", images, images, None, size).fingerprint

    found = {fingerprint(), fingerprint(), fingerprint(16)}
    monkeypatch.setattr(transfer_data, "choose_decoder", lambda: "pillow")
    assert len(found | {fingerprint()}) == 3
