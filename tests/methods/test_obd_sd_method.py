"""OBD-SD as a LightningModule: step, teachers, networks, optimiser, resume."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fgssl.callbacks.retrieval import Retrieval
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.protocols import Protocol
from fgssl.data.views import SingleView
from fgssl.errors import UserError
from fgssl.losses.metric_learning import multi_similarity
from fgssl.losses.obd_sd import diffused_targets, global_similarity, relation_distillation
from fgssl.methods.obd_sd import OBDSD, Distillation
from fgssl.nn.backbones import Backbone
from fgssl.optim import Group, Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

pytestmark = pytest.mark.slow

NETWORK = replace(BACKBONE, options={**BACKBONE.options, "stem_width": 4})
PLAIN = Optim(name="adam", lr=1e-2, warmup=0, schedule="steps")
SETTINGS = Distillation(lam=10.0)


def obd_sd(distillation: Distillation = SETTINGS, **options) -> OBDSD:
    torch.manual_seed(0)
    settings = {"dim": 6, "train_classes": [0, 1, 2, 3], "optim": PLAIN, "freeze_bn": False}
    return OBDSD(backbone=NETWORK, distillation=distillation, **(settings | options))


def one_view(batch):
    return batch._replace(views=batch.views[:1])


def one_batch():
    return one_view(next(iter(blob_loader())))


class Loader:
    """The blobs' batches with one view."""

    def __init__(self, **options):
        self.loader = blob_loader(**options)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return map(one_view, self.loader)


def fit(method: OBDSD, *, epochs: int = 3, batch_size: int = 8, callbacks: tuple = (), **options):
    trainer = tiny_trainer(max_epochs=epochs, callbacks=list(callbacks), **options)
    trainer.fit(method, Loader(batch_size=batch_size))
    return trainer


def digits(**options) -> DataModule:
    half = (0.5, 0.5, 0.5)
    settings = {"protocol": Protocol("zero_shot", label_fraction=0.1), "views": SingleView(12), "batch_size": 20}
    settings |= {"images_per_class": 4, "num_workers": 0, "mean": half, "std": half}
    return DataModule(Digits(), **(settings | options))


# ---- the step -------------------------------------------------------------------------------------------------------


def scrambled(method: OBDSD) -> OBDSD:
    """With a teacher that is not the student."""
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return method


@pytest.mark.parametrize("normalization", ["softmax", "symmetric"])
@pytest.mark.parametrize("omega", [0.0, 0.3])
def test_step_loss_is_the_weighted_sum_of_eq_7(omega, normalization, monkeypatch):
    monkeypatch.setattr(OBDSD, "current_epoch", 2)
    monkeypatch.setattr(OBDSD, "epochs", lambda self: 5)
    settings = Distillation(lam=10.0, omega=omega, tau=0.5, tau_d=0.7, normalization=normalization)
    method, batch = scrambled(obd_sd(settings, freeze_bn=True)).train(), one_batch()
    result = method.step(batch)
    with torch.no_grad():
        z_s, z_t = method.student(batch.views[0]), method.teacher(batch.views[0])
        targets = diffused_targets(z_t @ z_t.T, omega=omega, tau=0.5, tau_d=0.7, normalization=normalization)
        kl = relation_distillation(z_s @ z_s.T, targets, tau=0.5)
        dml = multi_similarity(z_s, batch.fine)
    torch.testing.assert_close(result.parts["kl"], kl)
    torch.testing.assert_close(result.loss, dml + 0.5**2 * 2 / 5 * 10 * kl)


def test_step_gradient_reaches_the_student_only(monkeypatch):
    monkeypatch.setattr(OBDSD, "current_epoch", 1)
    method = scrambled(obd_sd()).train()
    method.step(one_batch()).loss.backward()
    assert all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_step_loss_is_float32_under_autocast(monkeypatch):
    monkeypatch.setattr(OBDSD, "current_epoch", 1)
    method = scrambled(obd_sd()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method.step(one_batch())
    assert result.loss.dtype == torch.float32
    assert result.loss.isfinite()


def test_bf16_teacher_gives_nearly_the_targets_of_float32(monkeypatch):
    monkeypatch.setattr(OBDSD, "current_epoch", 1)
    batch = one_batch()
    exact, method = (
        scrambled(obd_sd(replace(SETTINGS, teacher_precision=precision))).train() for precision in ("training", "bf16")
    )
    seen = []
    for network in (method.student, method.teacher):
        network.backbone.layer1[0].conv1.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    result, wanted = method.step(batch), exact.step(batch)
    assert [after for _, after in seen] == [torch.float32, torch.bfloat16]  # the student's is the run's
    z_BD = method.teacher_embeddings(batch.views[0])
    assert z_BD.dtype == torch.float32
    torch.testing.assert_close(z_BD.norm(dim=1), torch.ones(len(z_BD)))
    torch.testing.assert_close(result.parts["dml"], wanted.parts["dml"])
    assert result.parts["kl"] != wanted.parts["kl"]
    torch.testing.assert_close(result.parts["kl"], wanted.parts["kl"], rtol=2e-2, atol=0)
    result.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in method.student.parameters())


def test_bf16_teacher_is_the_student_of_the_last_epoch_in_float32():
    watch, method = Watch(), obd_sd(replace(SETTINGS, teacher_precision="bf16"))
    fit(method, callbacks=(watch,))
    for student, teacher in zip(watch.students[:-1], watch.teachers[1:], strict=True):
        assert all(torch.equal(teacher[name], value) for name, value in student.items())
    assert method.teacher.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


# ---- the teacher of each epoch --------------------------------------------------------------------------------------


class Watch(Callback):
    """Counts the teacher's forwards; keeps the student of each epoch's end, and the teacher seen in each epoch."""

    def __init__(self):
        self.forwards, self.students, self.teachers, self.modes = [], [], [], []

    def on_fit_start(self, trainer, method):
        method.teacher.register_forward_hook(self._count)

    def _count(self, module, *_):
        self.forwards[-1] += 1
        self.modes.append(module.training or any(m.training for m in module.modules()))

    def on_train_epoch_start(self, trainer, method):
        self.forwards.append(0)
        self.teachers.append({name: value.clone() for name, value in method.teacher.state_dict().items()})

    def on_train_epoch_end(self, trainer, method):
        self.students.append({name: value.clone() for name, value in method.student.state_dict().items()})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_teacher_is_the_student_of_the_last_epoch_and_unused_in_the_first(accumulate):
    watch = Watch()
    fit(obd_sd(), callbacks=(watch,), accumulate_grad_batches=accumulate)
    assert watch.forwards == [0, 4, 4]
    assert not any(watch.modes)
    for student, teacher in zip(watch.students[:-1], watch.teachers[1:], strict=True):
        assert all(torch.equal(teacher[name], value) for name, value in student.items())
        assert "backbone.bn1.running_mean" in student
    assert not torch.equal(watch.students[0]["head.weight"], watch.students[1]["head.weight"])


def test_teacher_takes_its_own_statistics_where_those_of_the_student_are_trained():
    """Statistics of the batch would make its targets depend on the other images, and move its own."""
    method, batch = scrambled(obd_sd(freeze_bn=False)).train(), one_batch()
    (images,) = batch.views
    before = {name: value.clone() for name, value in method.teacher.named_buffers()}
    alone, together = method.teacher_embeddings(images[:1]), method.teacher_embeddings(images)
    torch.testing.assert_close(alone, together[:1])
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.named_buffers())
    assert not torch.allclose(method.student(images[:2]), method.student(images)[:2])


def test_distillation_weight_grows_linearly_with_the_epoch():
    logged = []

    class Log(Callback):
        def on_train_epoch_end(self, trainer, method):
            logged.append(float(trainer.callback_metrics.get("train/distillation_weight", 0)))

    fit(obd_sd(Distillation(lam=10.0, tau=2.0)), callbacks=(Log(),), epochs=4)
    assert logged == pytest.approx([0, 10, 20, 30])
    logged.clear()
    fit(obd_sd(Distillation(lam=10.0, tau=2.0)), callbacks=(Log(),), epochs=50, max_steps=16)  # of 4 steps each
    assert logged == pytest.approx([0, 10, 20, 30])
    logged.clear()
    fit(obd_sd(Distillation(lam=10.0, dynamic=False)), callbacks=(Log(),))
    assert logged == pytest.approx([0, 10, 10])


def test_the_growing_weight_needs_a_run_of_known_length():
    (grows,) = obd_sd().follows_length()
    assert "weight of the distillation" in grows
    assert not obd_sd(replace(SETTINGS, dynamic=False)).follows_length()
    assert not obd_sd(replace(SETTINGS, teacher="none")).follows_length()
    fit(obd_sd(replace(SETTINGS, dynamic=False)), epochs=-1, callbacks=(StopAt(5),))


class StopAt(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


class Keep(ModelCheckpoint):
    """A checkpoint after one step."""

    def __init__(self, folder, step: int):
        super().__init__(folder, filename="kept", every_n_train_steps=step, save_top_k=1)


@pytest.mark.parametrize("step", [6, 8, 9], ids=["in mid-epoch", "after an epoch's last batch", "in the third epoch"])
@pytest.mark.parametrize("loss", ["MultiSimilarity", "Margin"])
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(loss, step, tmp_path):
    """Through the data module, whose samplers go on at the checkpoint's batch: 4 steps an epoch."""
    groups = [Group("dml_loss.beta", 5e-3)] if loss == "Margin" else []
    optim = Optim(name="adam", lr=1e-2, warmup=0, schedule="steps", milestones=[2], groups=groups)
    options = {"dml_loss": loss, "miner": "DistanceWeighted" if loss == "Margin" else None, "optim": optim}

    def run(method, *callbacks, **settings):
        trainer = tiny_trainer(max_epochs=3, callbacks=list(callbacks), enable_checkpointing=bool(callbacks))
        trainer.fit(method, datamodule=digits(), **settings)
        return method.state_dict()

    def fresh():
        return obd_sd(train_classes=[0, 1, 2, 3, 4], **options)

    whole = run(fresh())
    run(fresh(), Keep(tmp_path, step), StopAt(step))
    resumed = run(fresh(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert not torch.equal(whole["teacher.head.weight"], fresh().teacher.head.weight)


# ---- networks, classes, optimiser -----------------------------------------------------------------------------------


def test_freeze_bn_fixes_the_statistics_and_trains_the_scale():
    method = obd_sd(freeze_bn=True)
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    fit(method)
    after = method.student.state_dict()
    assert torch.equal(after["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])
    assert torch.equal(after["backbone.bn1.num_batches_tracked"], before["backbone.bn1.num_batches_tracked"])
    assert not torch.equal(after["backbone.bn1.weight"], before["backbone.bn1.weight"])
    free = obd_sd(freeze_bn=False)
    fit(free)
    assert not torch.equal(free.student.backbone.bn1.running_mean, before["backbone.bn1.running_mean"])


@pytest.mark.parametrize("name", ["resnet10t", "inception_v3"])
def test_pooling_avg_max_sums_average_and_maximum(name):
    network = Backbone(name, pooling="avg+max").build().eval()
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        maps = network.forward_features(images)
        expected = maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3))
        torch.testing.assert_close(network(images), expected)
    assert expected.shape == (1, network.num_features)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_pooling_is_refused_for_a_network_without_a_pooling_layer(name):
    with pytest.raises(UserError, match=f"model.backbone.pooling: '{name}' has no pooling layer"):
        Backbone(name, pooling="avg+max").build()


def test_embed_gives_unit_rows():
    z = obd_sd().eval().embed(one_batch().views[0])
    assert z.shape == (8, 6)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(8))


def test_class_of_gives_positions_among_the_training_classes():
    method = obd_sd(train_classes=[3, 7, 20], dml_loss="ProxyAnchorLoss")
    assert method.class_of(torch.tensor([20, 3, 7, 7])).tolist() == [2, 0, 1, 1]
    assert method.dml_loss.proxies.shape == (3, 6)
    assert digits().train_classes == [0, 1, 2, 3, 4]
    assert digits(protocol=Protocol("zero_shot", val_fraction=0.4)).train_classes != [0, 1, 2, 3, 4]


def test_margin_boundaries_form_a_parameter_group_with_its_own_rate():
    optim = Optim(name="adam", lr=1e-3, weight_decay=4e-4, warmup=0, groups=[Group("dml_loss.beta", 5e-4)])
    method = obd_sd(dml_loss="Margin", miner="DistanceWeighted", optim=optim)
    rest, beta = optim.build(method, 8).param_groups
    assert (rest["lr"], rest["weight_decay"]) == (1e-3, 4e-4)
    assert (beta["lr"], beta["weight_decay"]) == (5e-4, 0)
    assert [p is method.dml_loss.beta for p in beta["params"]] == [True]
    assert all(p is not method.dml_loss.beta for p in rest["params"])
    with pytest.raises(UserError, match="no trainable parameter of the model is named 'dml_lo.beta"):
        Optim(groups=[Group("dml_lo.beta", 1.0)]).build(method, 8)


def test_margin_boundaries_are_trained():
    optim = Optim(name="adam", lr=1e-2, warmup=0, groups=[Group("dml_loss.beta", 1e-2)])
    method = obd_sd(dml_loss="Margin", miner="DistanceWeighted", optim=optim)
    fit(method)
    assert (method.dml_loss.beta - 1.2).abs().min() > 1e-3


def test_learning_rate_falls_at_the_milestones():
    rates = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, method, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    optim = Optim(lr=0.1, warmup=0, schedule="steps", milestones=[1, 3], gamma=0.3)
    fit(obd_sd(optim=optim), epochs=4, callbacks=(Look(),))
    assert rates == pytest.approx([0.1] * 4 + [0.03] * 8 + [0.009] * 4)


# ---- the paper's other rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "label"),
    [
        ({"teacher": "none"}, {}, "MS"),
        ({"omega": 0.0}, {}, "MS+PSD"),
        ({"omega": 0.0, "dynamic": False}, {}, "MS+PSD"),
        ({}, {"dml_loss": "Margin", "miner": "SemiHard"}, "Margin+OBD-SD"),
        ({"normalization": "symmetric"}, {"dml_loss": "ProxyAnchorLoss"}, "ProxyAnchor+OBD-SD"),
        ({"teacher": "heads", "head_dims": [8, 12], "omega": 0.0}, {}, "MS+S2SD-MSD"),
        ({"teacher": "heads", "head_dims": [8, 12]}, {"dml_loss": "ProxyAnchorLoss"}, "ProxyAnchor+S2SD-MSD+OBDP"),
    ],
)
def test_each_variant_trains_and_has_its_name_of_the_tables(settings, options, label):
    method = obd_sd(Distillation(**({"lam": 10.0} | settings)), **options)
    before = method.student.backbone.conv1.weight.clone()
    fit(method, epochs=2)
    assert method.variant == label
    assert not torch.equal(before, method.student.backbone.conv1.weight)
    assert all(p.isfinite().all() for p in method.parameters())
    assert hasattr(method, "teacher") == (settings.get("teacher", "epoch") == "epoch")


def test_variant_of_r_margin():
    spec = {"class_path": "Margin", "init_args": {"push_own": 0.4}}
    assert obd_sd(dml_loss=spec, miner="DistanceWeighted").variant == "R-Margin+OBD-SD"


def test_s2sd_heads_give_targets_and_are_trained():
    settings = Distillation(teacher="heads", head_dims=[8, 12], lam=50.0, dynamic=False, omega=0.3)
    method, batch = obd_sd(settings, freeze_bn=True).train(), one_batch()
    result = method.step(batch)
    with torch.no_grad():
        h = method.student.features(batch.views[0])
        z = method.student.project(h)
        zs = [nn.functional.normalize(head(h), dim=1) for head in method.heads]
        dml = (multi_similarity(z, batch.fine) + sum(multi_similarity(x, batch.fine) for x in zs) / 2) / 2
        targets = [diffused_targets(x @ x.T, omega=0.3, tau=1.0) for x in zs]
        kl = sum(relation_distillation(z @ z.T, target, tau=1.0) for target in targets) / 2
    torch.testing.assert_close(result.parts["dml"], dml)
    torch.testing.assert_close(result.loss, dml + 50 * kl)
    result.loss.backward()
    assert all(p.grad is not None for p in method.heads.parameters())
    growing = obd_sd(Distillation(teacher="heads", head_dims=[8, 12])).train()  # with no weight in the first epoch
    growing.step(batch).loss.backward()
    assert all(p.grad is not None for p in growing.heads.parameters())


def test_pretrained_teacher_is_loaded_from_its_checkpoint_and_stays_fixed(tmp_path):
    first = obd_sd(Distillation(teacher="none"))
    fit(first, callbacks=(ModelCheckpoint(tmp_path, filename="first"),), enable_checkpointing=True)
    settings = {"teacher": "pretrained", "lam": 10.0, "dynamic": False, "omega": 0.0}
    method = obd_sd(Distillation(**settings, checkpoint=str(tmp_path / "first.ckpt")))
    watch = Watch()
    fit(method, callbacks=(watch,), epochs=2)
    assert method.variant == "MS+BAR"
    assert watch.forwards == [4, 4]
    assert all(torch.equal(method.teacher.state_dict()[n], v) for n, v in first.student.state_dict().items())

    keep = ModelCheckpoint(tmp_path, filename="second")
    method = obd_sd(Distillation(**settings, checkpoint=str(tmp_path / "first.ckpt")))
    fit(method, callbacks=(keep,), epochs=1, enable_checkpointing=True)
    resumed = obd_sd(Distillation(**settings, checkpoint=str(tmp_path / "gone.ckpt")))  # a run carries its teacher
    loader = Loader(batch_size=8)
    tiny_trainer(max_epochs=2).fit(resumed, loader, ckpt_path=tmp_path / "second.ckpt", weights_only=True)
    assert torch.equal(resumed.teacher.head.weight, first.student.head.weight)

    with pytest.raises(UserError, match="does not fit the model: .* there and .* here"):
        fit(obd_sd(Distillation(**settings, checkpoint=str(tmp_path / "first.ckpt")), dim=4))
    with pytest.raises(UserError, match="needs model.distillation.checkpoint"):
        fit(obd_sd(Distillation(**settings)))


def test_global_relations_are_computed_once_an_epoch_from_all_training_images(monkeypatch):
    """Its plain views, embedded once an epoch; the batch looks its rows up."""
    asked, made = [], []

    def spy(self, index):
        before = self._global
        relations = original(self, index)
        made.append(self._global is not before)
        asked.append((self.current_epoch, index.clone(), relations.clone(), self.training_embeddings()))
        return relations

    original = OBDSD.global_relations
    monkeypatch.setattr(OBDSD, "global_relations", spy)
    settings = Distillation(lam=10.0, manifold="global", normalization="symmetric", neighbours=10, power=3.0)
    method = obd_sd(settings, train_classes=[0, 1, 2, 3, 4])
    trainer = tiny_trainer(max_epochs=3)
    trainer.fit(method, datamodule=digits())
    steps = trainer.num_training_batches
    assert made == [True, *[False] * (steps - 1)] * 2  # none in the first epoch
    for epoch, index, relations, (rows, z) in (asked[0], asked[-1]):
        assert epoch in (1, 2)
        assert torch.equal(rows, torch.as_tensor(trainer.datamodule.parts.train))
        whole = global_similarity(z, omega=0.3, neighbours=10, power=3.0)
        place = torch.stack([(rows == row).nonzero()[0, 0] for row in index])
        torch.testing.assert_close(relations, whole[place][:, place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omega": 1.0}, "distillation.omega is 1.0"),
        ({"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ({"manifold": "global"}, "needs normalization symmetric"),
        ({"teacher": "heads", "head_dims": []}, "needs head_dims"),
    ],
)
def test_distillation_refuses_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Distillation(**settings)


def test_embeddings_of_any_length_are_refused():
    with pytest.raises(UserError, match="model.normalize false: OBDSD compares cosines"):
        obd_sd(normalize=False)


# ---- evaluation and noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_fit", [False, True])
def test_extra_metrics_are_logged_in_the_test_and_on_request_in_validation(in_fit):
    data = digits(protocol=Protocol("zero_shot", val_fraction=0.4, label_fraction=0.3), batch_size=12)
    seen = {}

    class Look(Callback):
        def on_validation_end(self, trainer, method):
            seen["val"] = set(trainer.callback_metrics)

    retrieval = Retrieval(ks=[1], grid=0, extra=["clustering", "density", "spectral_decay"], extra_in_fit=in_fit)
    trainer = tiny_trainer(max_epochs=1, callbacks=[retrieval, Look()], num_sanity_val_steps=0)
    method = obd_sd(Distillation(teacher="none"), train_classes=data.train_classes)
    trainer.fit(method, datamodule=data)
    extra = {"nmi", "ami", "density", "spectral_decay"}
    assert ({f"val/{name}" for name in extra} <= seen["val"]) == in_fit
    assert "val/recall@1" in seen["val"]
    trainer.test(method, datamodule=data, verbose=False)
    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    assert extra | {"map_c", "map@1000", "map@r"} <= metrics.keys()
    assert 0 < metrics["nmi"] < 1
    assert metrics["density"] > 0


def test_label_noise_is_recorded_and_followed_by_the_sampler():
    data = digits(protocol=Protocol("zero_shot", label_noise=0.4), batch_size=20, images_per_class=4)
    said, clean = data.describe(), digits(protocol=Protocol("zero_shot"))
    assert 0.3 < said["flipped"] / said["train"]["images"] < 0.5
    assert len(said["flipped_hash"]) == 8
    index, rows = data.parts.index, data.parts.train
    for batch in data.train_loader(0):
        labels = batch.fine.view(5, 4)
        assert (labels == labels[:, :1]).all()  # classes of four, by the noisy labels
        assert torch.equal(batch.fine, torch.as_tensor(index.fine[batch.index.numpy()]))
    assert (clean.parts.index.fine[rows] != index.fine[rows]).sum() == said["flipped"]
    for batch in data.test_dataloader():
        assert torch.equal(batch.fine, torch.as_tensor(clean.parts.index.fine[batch.index.numpy()]))
