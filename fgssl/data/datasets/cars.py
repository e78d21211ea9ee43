"""Stanford Cars, also called Cars196 (Krause et al., 2013)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, some
from fgssl.data.datasets.files import read_mat
from fgssl.data.hierarchies import label_map, read_json
from fgssl.data.index import Index
from fgssl.errors import UserError

# Each part of the original layout, and where re-hosted copies put it: folders nested once more, and test labels named
# after a browser's second download.
PLACES = {
    "cars_train": ("cars_train/cars_train", "cars_train"),
    "cars_test": ("cars_test/cars_test", "cars_test"),
    "devkit/cars_meta.mat": ("devkit/cars_meta.mat", "car_devkit/devkit/cars_meta.mat"),
    "devkit/cars_train_annos.mat": ("devkit/cars_train_annos.mat", "car_devkit/devkit/cars_train_annos.mat"),
    "cars_test_annos_withlabels.mat": (
        "cars_test_annos_withlabels.mat",
        "cars_test_annos_withlabels (1).mat",
        "devkit/cars_test_annos_withlabels.mat",
        "car_devkit/devkit/cars_test_annos_withlabels.mat",
    ),
}
COMBINED = ("car_ims", "cars_annos.mat")


class Annotations(NamedTuple):
    """The rows of one annotation file.

    Attributes:
        files: [N] image names as the file gives them.
        boxes: [N, 4] float32 boxes (x0, y0, x1, y1) in pixels.
        labels: [N] int64 class labels from 0.
        testing: [N] bool, True for a test image; False where the file does not say.
    """

    files: list[str]
    boxes: np.ndarray
    labels: np.ndarray
    testing: np.ndarray


class Cars(DataSet):
    """196 car models. Coarse label: body type, the 8 published classes of MaskCon (appendix A.2).

    Three layouts are read: the original folders, the same re-hosted (folders nested once more), and the combined
    ``car_ims/`` with ``cars_annos.mat``. The coarse classes have 18, 50, 36, 30, 29, 14, 6 and 13 models by the
    authors' label file; the paper's Table 8 prints 7 and 12 for the last two.
    """

    name = "cars"
    folder = "stanford_cars"
    layout = tuple(PLACES)
    other_layouts = (COMBINED,)
    published = Published({"train": 8144, "test": 8041}, fine=196, coarse=8)
    source = (
        "the original host (ai.stanford.edu) is gone. Mirrors: Kaggle 'eduardo4jesus/stanford-cars-dataset', or "
        "'jessicali9530/stanford-cars-dataset' for the images with the devkit and the test labels from "
        "https://github.com/pytorch/vision/issues/7545; Hugging Face 'tanganke/stanford_cars' (export it to one folder "
        "a class and read it as the data set 'folder')"
    )
    licence = "non-commercial research only"

    def check_files(self) -> None:
        """As in the base, but a file may lie in any of the places where the mirrors put it."""
        missing = [part for part in PLACES if not self._find(part).exists()]
        if not missing or self.has(COMBINED):
            return
        error = self.not_found(missing)
        labelled = "cars_test_annos_withlabels.mat"
        if labelled in missing and (self.root / "devkit/cars_test_annos.mat").exists():
            error = UserError(f"{error}\nThe devkit's cars_test_annos.mat has no labels: {labelled} is needed.")
        raise error

    def _find(self, part: str) -> Path:
        """Where a part of the original layout lies in this copy; its original place where it is missing."""
        return next((self.root / place for place in PLACES[part] if (self.root / place).exists()), self.root / part)

    def _read(self) -> Index:
        if self.has(COMBINED):
            fine_names = read_class_names(self.root / "cars_annos.mat")
            rows = read_annotations(self.root / "cars_annos.mat")
            paths = [self.root / file for file in rows.files]
        else:
            fine_names = read_class_names(self._find("devkit/cars_meta.mat"))
            train = read_annotations(self._find("devkit/cars_train_annos.mat"))
            test = read_annotations(self._find("cars_test_annos_withlabels.mat"))
            paths = [self._find("cars_train") / file for file in train.files]
            paths += [self._find("cars_test") / file for file in test.files]
            rows = Annotations(
                files=train.files + test.files,
                boxes=np.concatenate([train.boxes, test.boxes]),
                labels=np.concatenate([train.labels, test.labels]),
                testing=np.arange(len(paths)) >= len(train.files),
            )
        coarse_of = coarse_labels(fine_names)
        if rows.labels.max() >= len(fine_names):
            raise UserError(f"cars: class {rows.labels.max() + 1} is annotated, but only {len(fine_names)} are named.")
        return Index(
            name=self.name,
            paths=np.array([str(path) for path in paths]),
            fine=rows.labels,
            fine_names=fine_names,
            split=np.where(rows.testing, "test", "train"),
            coarse=coarse_of[rows.labels],
            coarse_names=tuple(read_json("cars196_names.json")["coarse_names"]),
            boxes=rows.boxes,
        )


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names of ``cars_meta.mat`` or ``cars_annos.mat``, in label order."""
    content = read_mat(path)
    if "class_names" not in content:
        raise UserError(f"{path} has no class_names.")
    return tuple(str(name) for name in np.atleast_1d(content["class_names"]))


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file of the devkit, or ``cars_annos.mat``.

    Raises:
        UserError: the file is no annotation file, or has no labels (the devkit's ``cars_test_annos.mat``).
    """
    table = np.atleast_1d(read_mat(path).get("annotations", np.empty(0)))
    fields = table.dtype.names or ()
    if "bbox_x1" not in fields:
        raise UserError(f"{path} is no annotation file of Stanford Cars.")
    if "class" not in fields:
        raise UserError(f"{path} has no labels: get cars_test_annos_withlabels.mat, which has them for the test part.")
    name_field = "relative_im_path" if "relative_im_path" in fields else "fname"
    boxes = [[row[side] for side in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")] for row in table]
    return Annotations(
        files=[str(row[name_field]) for row in table],
        boxes=np.array(boxes, dtype=np.float32),
        labels=np.array([row["class"] for row in table], dtype=np.int64) - 1,  # MATLAB counts from 1
        testing=np.array(["test" in fields and bool(row["test"]) for row in table]),
    )


def coarse_labels(fine_names: tuple[str, ...]) -> np.ndarray:
    """The published coarse label of each class, by its name, so that a copy with fewer classes gets the same ones."""
    published = dict(
        zip(read_json("cars196_names.json")["fine_names"], label_map("cars196_fine_to_coarse.json"), strict=True)
    )
    unknown = [name for name in fine_names if name not in published]
    if unknown:
        raise UserError(f"cars: no published coarse class for {some(unknown)}.")
    return np.array([published[name] for name in fine_names], dtype=np.int64)
