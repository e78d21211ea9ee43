"""Pictures of query crops and their nearest dictionary entries (MLS, Figs. 5 and 6)."""

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image, ImageDraw

from fgssl.data.views import views_of_row
from fgssl.distributed import from_rank_zero
from fgssl.errors import at_least
from fgssl.report.figures import QUERY, image_of, picture_rows
from fgssl.report.pictures import log_picture
from fgssl.run import folder_of

RED, YELLOW = "#d1352b", "#ffd400"  # frames of the paper: the query's crop, and its neighbours'


class Neighbours(Callback):
    """Draws query crops and their nearest entries of the labels' dictionary, whole images with the crop framed.

    Of MLS. In training after every ``every_n_epochs`` and at the end; in a test from a checkpoint, which has to be of
    the same data, views and seed, since a dictionary knows rows and draws and not images. The queries are the same
    crops each time. Files: ``neighbours_<epoch>.png`` in the run folder.

    Args:
        every_n_epochs: Epochs between two pictures.
        count: Number of queries, one in each row.
        neighbours: Number of entries beside each query.
    """

    def __init__(self, every_n_epochs: int = 50, count: int = 6, neighbours: int = 10):
        at_least(1, every_n_epochs=every_n_epochs, count=count, neighbours=neighbours)
        self.every_n_epochs, self.count, self.neighbours = every_n_epochs, count, neighbours

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs:
            self._draw(trainer, method, f"neighbours_{epoch:04d}.png")

    def on_test_end(self, trainer: Trainer, method) -> None:
        if trainer.state.fn == "fit" or not trainer.ckpt_path:
            return  # drawn already; or an untrained network, whose dictionaries are empty
        saved = torch.load(trainer.ckpt_path, map_location="cpu", weights_only=True, mmap=True)["config"]
        ours = trainer.datamodule
        dataset = saved["data"]["dataset"]["class_path"].rsplit(".", 1)[-1]
        if saved["seed_everything"] != ours.seed or dataset != type(ours.dataset).__name__:
            rank_zero_warn("neighbours: no picture, the dictionaries are of another data set or seed.")
            return
        self._draw(trainer, method, "neighbours.png")

    def _draw(self, trainer: Trainer, method, name: str) -> None:
        from_rank_zero(lambda: self._draw_here(trainer, method, name))

    @torch.no_grad()
    def _draw_here(self, trainer: Trainer, method, name: str) -> None:
        if not (hasattr(method, "nearest_entries") and method.memory.fill):
            rank_zero_warn("neighbours: no picture, only MLS has the dictionaries, and they have to be filled.")
            return
        data = trainer.datamodule
        batch = trainer.strategy.batch_to_device(next(iter(data.train_loader(epoch=-1))))
        was_training = method.training
        method.eval()
        cosine_Bk, nearest_Bk = method.nearest_entries(batch.views[0][: self.count], self.neighbours)
        method.train(was_training)
        lines = []
        for query, near_k in enumerate(nearest_Bk.tolist()):
            row, draw = int(batch.index[query]), int(batch.draw[query])
            line = [(framed(data, row, draw, 0, RED), "query", QUERY)]
            for cosine, entry in zip(cosine_Bk[query], near_k, strict=True):
                row, draw = int(method.memory.index[entry]), int(method.memory.labels[entry])
                line.append((framed(data, row, draw, 1, YELLOW), f"{cosine:.2f}", QUERY))
            lines.append(line)
        path = folder_of(trainer.loggers) / name
        picture_rows(lines, "query crop (red), then its nearest dictionary entries (yellow) and their cosine", path)
        log_picture(trainer.loggers, "train/neighbours", path)


def framed(datamodule, row: int, draw: int, view: int, colour: str) -> np.ndarray:
    """[S, S, 3]: a whole image on a white square, with a frame around the part that a view of it took.

    Args:
        datamodule: Source of images, views and seed.
        row: Row of the data set.
        draw: Serial number of the sample, which determines the crop.
        view: 0 for the query's crop, 1 for the key's.
        colour: Colour of the frame.
    """
    image = Image.fromarray(image_of(datamodule.parts.index, row))
    numbers = datamodule.views.numbers(datamodule.seed, np.array([draw]))[0]
    views = views_of_row(datamodule.views, datamodule.objects, row)  # with the boxes of now
    box = views.boxes(image.size, numbers)[view]
    scale = 160 / max(image.size)  # size in the picture; frames of small images would be too thick otherwise
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    x0, y0, x1, y1 = (scale * side for side in box)
    ImageDraw.Draw(image).rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=4)
    square = Image.new("RGB", (160, 160), "white")
    square.paste(image, ((160 - image.width) // 2, (160 - image.height) // 2))
    return np.asarray(square)
