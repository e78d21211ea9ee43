"""Bounding-box-aligned k-NN evaluation of patch features during training and testing."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from fgssl.callbacks.evaluation import Evaluation, log_exactly
from fgssl.data.batch import Batch
from fgssl.data.images import open_image
from fgssl.distributed import from_rank_zero, gather_rows
from fgssl.errors import UserError, above, at_least
from fgssl.evaluation.box_knn import PART, box_patches, patches_right
from fgssl.evaluation.embedding import Embeddings, collect
from fgssl.metrics.clustering import k_means, nmi, purity


class BoxKNN(Evaluation):
    """Bounding-box-aligned k-NN accuracy (FLSL, appendix F) of the validation and test rows, as ``box_knn_top1``.

    An image counts as right if one of its 9 patches is, as in the paper; ``box_knn_patches`` is the share of patches.
    Off by default. ``--trainer.callbacks+ BoxKNN`` adds it to ``fgssl fit``, ``fgssl test`` or ``fgssl embed --model
    timm/...``. The bank holds the patches of the training images; images without a box are left out. It is searched
    while it is made, 262,144 patches at a time in float16, and never held as a whole: ImageNet's, of 544,546 images,
    would be 7.5 GB of ViT-S in float32. The plain k-NN of the pooled features (class token or mean) is ``OnlineKNN``.
    Needs a data set with boxes: CUB (``bounding_boxes.txt``), Cars, Aircraft, ImageNet with ``--data.dataset.boxes
    true``, or the CSV file of a Folder.

    With ``clusters``, k-means groups the same patches of the evaluated images, without the training images:
    ``patch_purity`` is the share of patches whose class is the most frequent of their cluster, ``patch_nmi`` the
    normalised mutual information of clusters and classes.

    Args:
        k: neighbours of a patch that vote; the paper's 20 times 7, because the bank has 9 patches an image.
        temperature: temperature of the votes.
        every_n_epochs: epochs between evaluations in training; the test at the end is always evaluated.
        clusters: number of k-means clusters of patches; 0: no clustering.
    """

    def __init__(self, k: int = 140, temperature: float = 0.07, every_n_epochs: int = 1, clusters: int = 0):
        super().__init__()
        at_least(1, k=k, every_n_epochs=every_n_epochs)
        at_least(0, clusters=clusters)
        above(0, temperature=temperature)
        self.k, self.temperature, self.every_n_epochs, self.clusters = k, temperature, every_n_epochs, clusters

    def setup(self, trainer: Trainer, method, stage: str) -> None:
        index = trainer.datamodule.parts.index  # type: ignore[attr-defined]
        if index.boxes is None or np.isnan(index.boxes).all():
            raise UserError(
                f"BoxKNN: {index.name} has no bounding boxes here. CUB's are in bounding_boxes.txt, ImageNet's in "
                "Annotations/ (--data.dataset.boxes true), a Folder's in the columns x0, y0, x1, y1 of its CSV file; "
                "or take BoxKNN out of trainer.callbacks."
            )
        if index.paths is None or index.pixels is not None or index.targets is not None:
            raise UserError(f"BoxKNN needs image files with one class each, and {index.name} has none.")
        parts = trainer.datamodule.parts  # type: ignore[attr-defined]
        for name, rows in (("training", parts.train), ("validation", parts.val), ("test", parts.test)):
            if len(rows) and np.isnan(index.boxes[rows]).any(axis=1).all():
                raise UserError(f"BoxKNN: none of the {len(rows)} {name} images of {index.name} has a bounding box.")

    def keep(self, trainer: Trainer, method, outputs, batch: Batch) -> dict[str, Tensor] | None:
        return self._patches(trainer, method, batch) if self._wanted(trainer) else None

    def _wanted(self, trainer: Trainer) -> bool:
        in_training = trainer.state.fn == "fit" and not trainer.testing
        return not in_training or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _patches(self, trainer: Trainer, method, batch: Batch) -> dict[str, Tensor]:
        """Patches of the box of each image of a batch, for ``collect``."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            map_BDHW = method.patch_map(batch.views[0])
        seen = [_seen(data, row) for row in batch.index.tolist()]
        boxes_B4 = torch.from_numpy(data.parts.index.boxes[batch.index.cpu().numpy()])
        numbers_BP = box_patches(boxes_B4.nan_to_num(), torch.tensor(seen), tuple(map_BDHW.shape[2:]))
        tokens_BND = map_BDHW.flatten(2).transpose(1, 2)
        patches_BPD = tokens_BND.take_along_dim(numbers_BP.to(tokens_BND.device)[..., None], dim=1)
        return {"embedding": patches_BPD.flatten(1), "fine": batch.fine, "index": batch.index}

    def evaluate(self, trainer: Trainer, method, outputs: list[dict[str, Tensor]], part: str) -> None:
        if not outputs:
            return
        queries_NPD, labels_N = self._with_boxes(trainer, collect(outputs))
        if not len(labels_N):  # a run limited to a few batches
            rank_zero_warn(f"no {part}/box_knn_top1: none of these images has a bounding box.")
            return
        mine = slice(trainer.global_rank, None, trainer.world_size)
        options: dict[str, Any] = {"k": self.k, "temperature": self.temperature}
        fine = torch.from_numpy(trainer.datamodule.parts.index.fine).to(labels_N.device)  # type: ignore[attr-defined]
        bank = self._bank(trainer, method)
        right_NP = patches_right(queries_NPD[mine], labels_N[mine], bank, fine, **options)
        counts = torch.stack([right_NP.any(dim=1).sum(), right_NP.sum()])
        images, patches = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        shares = {"box_knn_top1": images / len(labels_N), "box_knn_patches": patches / queries_NPD[..., 0].numel()}
        log_exactly(method, part, shares)
        if self.clusters:
            log_exactly(method, part, from_rank_zero(lambda: self._agreement(queries_NPD, labels_N)))

    def _agreement(self, patches_NPD: Tensor, labels_N: Tensor) -> dict[str, float]:
        """Purity and NMI of the clusters of all patches."""
        labels = labels_N.repeat_interleave(patches_NPD.shape[1]).cpu().numpy()
        clusters = k_means(patches_NPD.flatten(0, 1), min(self.clusters, len(labels)))
        return {"patch_purity": purity(labels, clusters), "patch_nmi": nmi(labels, clusters)}

    @torch.no_grad()
    def _bank(self, trainer: Trainer, method) -> Iterator[tuple[Tensor, Tensor]]:
        """Patches [n, 9, D] of unit length in float16 of training images with a box, and their rows, from all ranks.

        Less than half of ImageNet's training images have a box.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = data.parts.train
        rows = rows[~np.isnan(data.parts.index.boxes[rows]).any(axis=1)]
        place = trainer.global_rank * -(-len(rows) // trainer.world_size)  # of the next image, among all ranks'
        parts: list[tuple[Tensor, Tensor]] = []
        for batch in data.gallery_loader(rows):
            kept = self._patches(trainer, method, trainer.strategy.batch_to_device(batch))
            patches_BPD = F.normalize(kept["embedding"].float().unflatten(1, (9, -1)), dim=2).half()
            places = torch.arange(place, place + len(patches_BPD), device=patches_BPD.device)
            patches, index = gather_rows(patches_BPD, kept["index"].where(places < len(rows), -1))
            parts.append((patches[index >= 0], index[index >= 0]))  # without images that come again to fill the ranks
            place += len(patches_BPD)
            if sum(len(index) for _, index in parts) * 9 >= PART:
                yield _joined(parts)
                parts = []
        if parts:
            yield _joined(parts)

    def _with_boxes(self, trainer: Trainer, rows: Embeddings) -> tuple[Tensor, Tensor]:
        """Patches [n, 9, D] and classes [n] of the rows with a box."""
        boxes = trainer.datamodule.parts.index.boxes[rows.index.cpu().numpy()]  # type: ignore[attr-defined]
        has_box = torch.from_numpy(~np.isnan(boxes).any(axis=1)).to(rows.fine.device)
        return rows.embedding[has_box].unflatten(1, (9, -1)), rows.fine[has_box]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    patches, rows = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return patches, rows


def _seen(data: Any, row: int) -> tuple[int, int, int, int]:
    """The part (x0, y0, x1, y1) of an image that the evaluation view shows, in pixels of the stored image."""
    with open_image(data.parts.index.paths[row]) as image:  # reads the header alone
        size = image.size
    (numbers,) = data.eval_view.numbers(0, np.array([-1]))
    return data.eval_view.boxes(size, numbers)[0]
