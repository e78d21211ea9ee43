"""The data sets, one file each. A config names them by class (``dataset: CUB``), the command line in lower case."""

from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.cars import Cars
from fgssl.data.datasets.cifar10 import CIFAR10
from fgssl.data.datasets.cifartoy import CIFARToy
from fgssl.data.datasets.cub import CUB
from fgssl.data.datasets.digits import Digits
from fgssl.data.datasets.folder import Folder

ALL: dict[str, type[DataSet]] = {cls.name: cls for cls in (CUB, Cars, CIFAR10, CIFARToy, Digits, Folder)}
