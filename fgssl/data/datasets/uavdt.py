"""UAVDT, vehicles seen from a drone, the detection task (Du et al., ECCV 2018)."""

from pathlib import Path

import numpy as np

from fgssl.data.datasets.base import Published
from fgssl.data.datasets.object_dataset import ObjectDataSet
from fgssl.data.datasets.objects import Annotation, ObjectIndex, Scene, known_class, object_index
from fgssl.data.images import open_image
from fgssl.errors import UserError

CLASSES = ("car", "truck", "bus")  # 1, 2, 3 in the files
TEST = (  # sequences of the official evaluation; the other 30 are the training part
    "M0203", "M0205", "M0208", "M0209", "M0403", "M0601", "M0602", "M0606", "M0701", "M0801",
    "M0802", "M1001", "M1004", "M1007", "M1009", "M1101", "M1301", "M1302", "M1303", "M1401",
)  # fmt: skip
TRUTH = "UAV-benchmark-MOTD_v1.0/GT"
COLUMNS = 9  # frame, object, left, top, width, height, out of view, occlusion, class


class UAVDT(ObjectDataSet):
    """Boxes of cars, trucks and buses in 50 videos; 30 are the training part, 20 the test part.

    Rows are the frames with an object. Areas that the annotators left out are ignored in the evaluation: detections
    inside them are dropped. The average precision is that of the official toolkit, over all classes together. FLSL and
    others state 23,258 and 15,069 images, fewer than have an object; which ones is not published.
    """

    name = "uavdt"
    folder = "UAVDT"
    layout = ("UAV-benchmark-M", TRUTH)
    published = Published({"train": 23_829, "test": 16_580}, fine=3)
    source = "UAV-benchmark-M.zip and UAV-benchmark-MOTD_v1.0.zip from https://sites.google.com/view/grli-uavdt"
    licence = "research only"

    def annotation_files(self) -> list[Path]:
        return sorted((self.root / TRUTH).glob("*_gt_*.txt"))

    def _parse(self) -> ObjectIndex:
        names = sorted(file.name for file in (self.root / TRUTH).glob("*_gt_whole.txt"))
        if not names:
            raise self.not_found([f"{TRUTH}/*_gt_whole.txt"])
        scenes = [scene for name in names for scene in self._sequence(name.removesuffix("_gt_whole.txt"))]
        return object_index(self.name, CLASSES, scenes)

    def _sequence(self, name: str) -> list[Scene]:
        """The frames with an object of one video, in their order."""
        whole, ignore = (self.root / TRUTH / f"{name}_gt_{kind}.txt" for kind in ("whole", "ignore"))
        objects, areas = read_rows(whole), read_rows(ignore)
        part, label_of = ("test" if name in TEST else "train"), {number: number - 1 for number in (1, 2, 3)}
        frames: dict[int, list[Annotation]] = {}
        for frame, _, x, y, width, height, _, _, number in objects:
            label = known_class(number, label_of, str(whole))
            box = (x, y, x + width, y + height)
            frames.setdefault(frame, []).append(Annotation(box, label, False, True, width * height))
        for frame, _, x, y, width, height, *_ in areas:
            if frame in frames:
                area = Annotation((x, y, x + width, y + height), 0, True, False, width * height)
                frames[frame].append(area)
        folder = self.root / "UAV-benchmark-M" / name
        size = size_of(folder / f"img{min(frames):06d}.jpg") if frames else (0, 0)
        return [Scene(str(folder / f"img{frame:06d}.jpg"), part, size, frames[frame]) for frame in sorted(frames)]


def read_rows(path: Path) -> list[list[int]]:
    """Rows of nine whole numbers; none of an empty file.

    Raises:
        UserError: the file is missing or of another form; the message names it.
    """
    try:
        text = path.read_text()
        rows = np.empty((0, COLUMNS), dtype=np.int64)
        if text.strip():
            rows = np.loadtxt(text.splitlines(), np.int64, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise UserError(f"uavdt: not found: {path}.") from None
    except ValueError as fault:
        raise UserError(f"{path} is not an annotation of UAVDT ({fault}).") from None
    if rows.shape[1] != COLUMNS:
        raise UserError(f"{path} is not an annotation of UAVDT: {rows.shape[1]} columns, not {COLUMNS}.")
    return rows.tolist()


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image, px; those of every frame of its video."""
    with open_image(path) as image:
        return image.size
