"""Data sets, one file each. Configurations name them by class (``dataset: CUB``), ``fgssl data`` in lower case.

``Items`` is for Python alone.
"""

from fgssl.data.datasets.ade20k import ADE20K
from fgssl.data.datasets.aircraft import Aircraft
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.cars import Cars
from fgssl.data.datasets.cifar10 import CIFAR10
from fgssl.data.datasets.cifar100 import CIFAR100
from fgssl.data.datasets.cifartoy import CIFARToy
from fgssl.data.datasets.cityscapes import Cityscapes
from fgssl.data.datasets.coco import COCO
from fgssl.data.datasets.coco_instances import COCOInstances
from fgssl.data.datasets.cub import CUB
from fgssl.data.datasets.digits import Digits
from fgssl.data.datasets.dtd import DTD
from fgssl.data.datasets.flowers import Flowers
from fgssl.data.datasets.folder import Folder
from fgssl.data.datasets.imagenet import ImageNet
from fgssl.data.datasets.imagenet32 import ImageNet32
from fgssl.data.datasets.indoor67 import Indoor67
from fgssl.data.datasets.items import HuggingFace
from fgssl.data.datasets.items import Items as Items
from fgssl.data.datasets.pets import Pets
from fgssl.data.datasets.sop import SOP
from fgssl.data.datasets.uavdt import UAVDT
from fgssl.data.datasets.voc0712 import VOC0712
from fgssl.data.datasets.voc2007 import VOC2007

_CLASSES = (
    CUB, Cars, Aircraft, SOP, ImageNet, ImageNet32, CIFAR10, CIFAR100, CIFARToy, COCO, COCOInstances,
    Flowers, Pets, DTD, Indoor67, VOC2007, VOC0712, UAVDT, ADE20K, Cityscapes, Digits, Folder,
    HuggingFace,
)  # fmt: skip
ALL: dict[str, type[DataSet]] = {cls.name: cls for cls in _CLASSES}
