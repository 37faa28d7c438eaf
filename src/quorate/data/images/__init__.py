"""Images: decoding one file, folders of classes, and the published CIFAR files."""

from quorate.data.images.cifar import cifar10, cifar100
from quorate.data.images.decoding import Decoding
from quorate.data.images.folder import image_folder

__all__ = ["Decoding", "cifar10", "cifar100", "image_folder"]
