"""Stanford Online Products (Song et al., 2016)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_table
from fgssl.data.index import Index
from fgssl.errors import UserError


class SOP(DataSet):
    """22,634 products in 12 super-classes (the coarse label); training and test products are different ones.

    MaskCon's SOP-split1 and SOP-split2 are protocols on these rows, see ``fgssl/data/protocols.py``.
    """

    name = "sop"
    folder = "Stanford_Online_Products"
    layout = ("Ebay_train.txt", "Ebay_test.txt")
    published = Published({"train": 59_551, "test": 60_502}, fine=22_634, coarse=12)
    source = "Stanford_Online_Products.zip from https://cvgl.stanford.edu/projects/lifted_struct/"
    licence = "images from eBay, their owners' rights hold; research only"

    def _read(self) -> Index:
        # columns: image id, class id, super-class id, path such as bicycle_final/111085122871_0.JPG
        lists = {part: read_table(self.root / f"Ebay_{part}.txt", columns=4, header=1) for part in ("train", "test")}
        rows = [row for part in lists.values() for row in part]
        paths = [path for _, _, _, path in rows]
        class_ids = [class_id for _, class_id, _, _ in rows]
        name_of = {class_id: product(path) for class_id, path in zip(class_ids, paths, strict=True)}
        supers = [path.split("/")[0].removesuffix("_final") for path in paths]  # sorted as the super-class ids are
        coarse_names = tuple(sorted(set(supers)))
        order = sorted(name_of, key=lambda class_id: (len(class_id), class_id))  # by number
        return Index(
            name=self.name,
            paths=np.array([str(self.root / path) for path in paths]),
            fine=encode(class_ids, order, self.root / "Ebay_*.txt"),
            fine_names=tuple(name_of[class_id] for class_id in order),
            split=np.array([part for part, listed in lists.items() for _ in listed]),
            coarse=encode(supers, coarse_names, self.root / "Ebay_*.txt"),
            coarse_names=coarse_names,
        )


def product(path: str) -> str:
    """The name of a product: ``bicycle_final/111085122871_0.JPG`` shows ``bicycle 111085122871``.

    Raises:
        UserError: the path is of another form.
    """
    folder, slash, file = path.partition("/")
    if not slash or "/" in file:
        raise UserError(
            f"sop: Ebay_train.txt or Ebay_test.txt lists '{path}'; <super-class>_final/<image> is expected."
        )
    return f"{folder.removesuffix('_final')} {file.split('_')[0]}"
