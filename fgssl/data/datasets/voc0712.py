"""Pascal VOC 2007 and 2012, the detection task (Everingham et al., 2010): VOC0712."""

from pathlib import Path
from xml.etree import ElementTree

from fgssl.data.datasets.base import Published
from fgssl.data.datasets.files import read_table
from fgssl.data.datasets.object_dataset import ObjectDataSet
from fgssl.data.datasets.objects import Annotation, ObjectIndex, Scene, finite, known_class, object_index
from fgssl.data.datasets.voc2007 import CLASSES
from fgssl.errors import UserError

LISTS = (("VOC2007", "trainval", "train"), ("VOC2012", "trainval", "train"), ("VOC2007", "test", "test"))


class VOC0712(ObjectDataSet):
    """Boxes of 20 classes; the trainval parts of both years are the training part, the test part of 2007 the test part.

    Difficult objects are used in training, as in Detectron2 (MoCo, MLS), and ignored in evaluation.
    """

    name = "voc0712"
    folder = "VOCdevkit"
    layout = tuple(
        f"{year}/{part}"
        for year, official, _ in LISTS
        for part in (f"ImageSets/Main/{official}.txt", *(("JPEGImages", "Annotations") if official != "test" else ()))
    )
    published = Published({"train": 16_551, "test": 4952}, fine=20)
    source = (
        "VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar, VOCtrainval_11-May-2012.tar from "
        "http://host.robots.ox.ac.uk/pascal/VOC/"
    )
    licence = "images from Flickr, under its terms; research only"

    def _parse(self) -> ObjectIndex:
        scenes = []
        for year, official, part in LISTS:
            folder = self.root / year
            for (key,) in read_table(folder / "ImageSets/Main" / f"{official}.txt", columns=1):
                scenes.append(_read_scene(folder, key, part))
        return object_index(self.name, CLASSES, scenes)


def _read_scene(folder: Path, key: str, part: str) -> Scene:
    """One annotation file.

    Raises:
        UserError: the file is missing, is no XML in VOC's format, or names an unknown class.
    """
    path, label_of = folder / "Annotations" / f"{key}.xml", {name: label for label, name in enumerate(CLASSES)}
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (round(float(_text(root, f"size/{side}"))) for side in ("width", "height"))
        objects = []
        for item in root.findall("object"):
            x0, y0, x1, y1 = (
                finite(_text(item, f"bndbox/{side}"), f"{path}: {side}") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            if x1 < x0 or y1 < y0:
                raise ValueError(f"xmin {x0:g}, xmax {x1:g}, ymin {y0:g}, ymax {y1:g} are no box")
            box = (x0 - 1, y0 - 1, x1, y1)  # VOC counts pixels from 1 and includes the last
            label = known_class(_text(item, "name"), label_of, str(path))
            difficult = item.findtext("difficult", "0").strip() == "1"
            objects.append(Annotation(box, label, difficult, True, (x1 - box[0]) * (y1 - box[1])))
    except FileNotFoundError:
        raise UserError(f"voc0712: not found: {path}.") from None
    except (ElementTree.ParseError, ValueError) as fault:
        raise UserError(f"{path} is not an annotation of VOC ({fault}).") from None
    return Scene(str(folder / "JPEGImages" / f"{key}.jpg"), part, (width, height), objects)


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"no {path} in <{element.tag}>")
    return text.strip()
