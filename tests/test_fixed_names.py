"""Functions that others' checks call by name: their modules and arguments stay as they are."""

import importlib
import inspect

import pytest

FIXED = {
    "fgssl.losses.maskcon.soft_targets": "keys, queue, labels, queue_labels, *, tau, weight",
    "fgssl.losses.maskcon.soft_contrastive_loss": "queries, keys, queue, targets, *, tau0",
    "fgssl.losses.mls.pseudo_labels": "features, feature_queue, *, k",
    "fgssl.losses.mls.multi_label_loss": "projections, projection_queue, labels, *, tau",
    "fgssl.losses.contrastive.info_nce": "queries, keys, queue, *, tau",
    "fgssl.losses.obd_sd.diffused_targets": "teacher_similarity, *, omega, tau, tau_d, normalization, clamp",
    "fgssl.losses.obd_sd.relation_distillation": "student_similarity, targets, *, tau",
    "fgssl.losses.obd_sd.distillation_weight": "epoch, max_epochs, *, lam, tau",
    "fgssl.losses.cmd.image_distillation": "student_logits, teacher_logits, *, center, tau_s, tau_t, pairs",
    "fgssl.losses.cmd.region_distillation": "student_logits, teacher_logits, student_features, teacher_features, "
    "*, center, tau_s, tau_t, pairs",
    "fgssl.losses.cmd.inter_level": "bags, *, pairs",
    "fgssl.losses.flsl.mean_shift": "queries, keys, *, temperature",
    "fgssl.losses.flsl.intra_view": "z, modes",
    "fgssl.losses.flsl.inter_view": "student_logits, teacher_logits, *, tau_s, tau_t",
    "fgssl.losses.flsl.volume": "student_probs",
    "fgssl.metrics.retrieval.retrieval_metrics": "embeddings, labels, *, ks, gallery, gallery_labels",
    "fgssl.metrics.clustering.clustering_metrics": "embeddings, labels, *, n_clusters, seed",
    "fgssl.metrics.structure.embedding_density": "embeddings, labels",
    "fgssl.metrics.structure.spectral_decay": "embeddings, *, drop",
}


@pytest.mark.parametrize("name", FIXED)
def test_function_takes_the_arguments_that_others_give(name):
    module, _, function = name.rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    positional, _, keywords = (part.strip(", ") for part in FIXED[name].partition("*"))
    kinds = {argument: parameter.kind for argument, parameter in found.items()}
    first = [argument for argument, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert first[: len(positional.split(", "))] == positional.split(", ")
    assert set(filter(None, keywords.split(", "))) <= found.keys()
    stated = {*positional.split(", "), *keywords.split(", ")}
    assert all(p.default is not p.empty for argument, p in found.items() if argument not in stated)
