"""Published results are shown only beside a network and a set of images that they are about."""

from __future__ import annotations

import pytest

from jaxprune.comparison.published_results import published_results
from jaxprune.nets import NETWORKS


@pytest.mark.parametrize(
    ("network", "data", "num_images"),
    [("resnet50", "imagenet2012", 1_281_167), ("resnet56", "cifar10", 50_000), ("vgg19", "cifar100", 50_000),
     ("mobilenet_v2", "imagenet2012", 1_281_167)],
)  # fmt: skip
def test_every_result_has_a_source_and_lies_between_0_and_100(network, data, num_images):
    results = published_results(network, f"tfds:{data}", num_images)
    assert network in NETWORKS and len(results) >= 4
    for result in results:
        assert 0 < result.top1 < 100 and result.source and result.cost
        assert result.dense is None or abs(result.dense - result.top1) < 10


def test_a_version_and_a_shrunk_copy_are_the_same_set():
    assert published_results("resnet56", "tfds:cifar10:3.0.2", 50_000)
    assert published_results("resnet50", "tfds:imagenet2012/shrunk256", 1_281_167)


@pytest.mark.parametrize("data", ["cifar10", "cifar-part", "tfds:cifar10_1", "tfds:svhn_cropped"])
def test_other_images_have_no_published_results(data):
    assert published_results("resnet56", data, 50_000) == ()


def test_a_rehearsal_on_few_images_has_no_published_results():
    assert published_results("resnet56", "tfds:cifar10", 400) == ()
