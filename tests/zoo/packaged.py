"""The networks that come with the package."""

from __future__ import annotations

from jaxprune.nets import (
    VGG16,
    VGG19,
    CifarResNet,
    DepthwiseNet,
    ImageNetResNet,
    LeNet5,
    MobileNetV2,
    PreActResNet,
)

from .entry import Entry
from .layers import images

LAYOUT = (4, 5, 6, 6, 8, 8, 8, 10, 10, 10, 10, 10, 10)
SMALL_STAGES = (8, 12, 17)


def small_mobilenet_v2(rngs):
    return MobileNetV2(
        rngs,
        widths=(8, 10, 12, 14, 8, 10, 12, 14, 16),
        repeats=(1, 2, 1, 1, 1, 1, 1),
        strides=(1, 2, 1, 1, 1, 2, 1),
        num_classes=10,
        image_shape=(16, 16, 3),
    )


def small_imagenet_resnet(depth):
    """Basic blocks with and without projection (18), bottlenecks likewise (26)."""
    widths = (8, 8, 12, 12, 16) if depth == 18 else (8, 6, 8, 8, 10)
    return lambda rngs: ImageNetResNet(
        rngs, depth=depth, widths=widths, num_classes=10, image_shape=(32, 32, 3)
    )


ENTRIES = (
    Entry(
        "lenet5",
        lambda rngs: LeNet5(rngs, widths=(4, 6, 10), image_shape=(16, 16, 1)),
        lambda rngs: LeNet5(rngs),
        images(16, 1),
        images(28, 1),
        431_080,
        "flattened channels",
    ),
    Entry(
        "vgg16",
        lambda rngs: VGG16(rngs, widths=(*LAYOUT, 12)),
        lambda rngs: VGG16(rngs),
        images(32),
        images(32),
        None,
        "norms after the ReLU",
    ),
    Entry(
        "vgg19",
        lambda rngs: VGG19(rngs, widths=(*LAYOUT, 10, 10, 10, 12)),
        lambda rngs: VGG19(rngs),
        images(32),
        images(32),
        None,
        "norms after the ReLU",
    ),
    Entry(
        "resnet56_padded",
        lambda rngs: CifarResNet(rngs, depth=14, widths=SMALL_STAGES, image_shape=(16, 16, 3)),
        lambda rngs: CifarResNet(rngs, depth=56),
        images(16),
        images(32),
        853_018,
        "zero-padded shortcuts; an odd number of zero channels in the small one",
    ),
    Entry(
        "resnet56_projected",
        lambda rngs: CifarResNet(rngs, depth=14, shortcut="B", widths=SMALL_STAGES, image_shape=(16, 16, 3)),
        lambda rngs: CifarResNet(rngs, depth=56, shortcut="B"),
        images(16),
        images(32),
        855_770,
        "projected shortcuts",
    ),
    Entry(
        "resnet164",
        lambda rngs: PreActResNet(rngs, depth=20, widths=(4, 5, 6), image_shape=(16, 16, 3)),
        lambda rngs: PreActResNet(rngs),
        images(16),
        images(32),
        1_703_258,
        "pre-activation: each norm reads a sum of its own length",
    ),
    Entry(
        "resnet18",
        small_imagenet_resnet(18),
        lambda rngs: ImageNetResNet(rngs, depth=18),
        images(32),
        images(224),
        11_689_512,
        "basic blocks",
    ),
    Entry(
        "resnet50",
        small_imagenet_resnet(26),
        lambda rngs: ImageNetResNet(rngs, depth=50),
        images(32),
        images(224),
        25_557_032,
        "bottlenecks",
    ),
    Entry(
        "mobilenet_v2",
        small_mobilenet_v2,
        lambda rngs: MobileNetV2(rngs),
        images(16),
        images(224),
        3_504_872,
        "inverted residuals around depthwise convolutions",
    ),
    Entry(
        "depthwise_net",
        lambda rngs: DepthwiseNet(rngs, widths=(8, 10, 12, 16)),
        lambda rngs: DepthwiseNet(rngs),
        images(8, 1),
        images(8, 1),
        None,
        "depthwise and 1x1 convolutions, no shortcuts",
    ),
)
