"""Data sets, the classes of every task, and the canonical tensors that training reads.

A *source* says how to read a data set (``source``); it is prepared once into memory-mapped files (``cache``); classes are
drawn for all tasks and repeats before training (``sequence``), which fixes all static sizes (``sizes``); the *loader* then
builds the tensors of one task at a time, one task ahead of training (``prefetch``).

This table is the list of data sets that come with clray. People add their own as ``package.module:Class``, where the class
derives from ``clray.data.source.Source``.
"""

from __future__ import annotations

TABLE: dict[str, tuple[str, str]] = {
    "digits": ("clray.data.digits:Digits", "scikit-learn's 8x8 digits, 10 classes, 1,797 images; nothing to download"),
    "mnist": ("clray.data.torchvision_sets:Mnist", "handwritten digits, 28x28 grey, 10 classes, 60,000 + 10,000 images"),
    "fashion_mnist": ("clray.data.torchvision_sets:FashionMnist", "clothing, 28x28 grey, 10 classes, 60,000 + 10,000 images"),
    "kmnist": ("clray.data.torchvision_sets:Kmnist", "cursive Japanese characters, 28x28 grey, 10 classes, 60,000 + 10,000 images"),
    "emnist": ("clray.data.torchvision_sets:Emnist", "letters and digits, 28x28 grey, 10 to 62 classes by option split"),
    "cifar10": ("clray.data.torchvision_sets:Cifar10", "objects, 32x32 colour, 10 classes, 50,000 + 10,000 images"),
    "cifar100": ("clray.data.torchvision_sets:Cifar100", "objects, 32x32 colour, 100 classes, 50,000 + 10,000 images"),
    "svhn": ("clray.data.torchvision_sets:Svhn", "house numbers, 32x32 colour, 10 classes, 73,257 + 26,032 images"),
    "image_folder": ("clray.data.image_folder:ImageFolder", "your images as root/train/CLASS/* and root/test/CLASS/*"),
    "arrays": ("clray.data.arrays:ArrayFiles", "your arrays as root/X_train.npy, y_train.npy, X_test.npy, y_test.npy"),
}
"""Name to (import string of the options class, one-line description)."""
