"""What is said of last.ckpt."""

from types import SimpleNamespace

from fgssl.callbacks import last_checkpoint
from fgssl.callbacks.last_checkpoint import LastCheckpoint


def test_checkpoint_is_named_from_the_working_directory(tmp_path, monkeypatch):
    """Also where the run folder is given in full, as to a probe beside its run."""
    said = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(last_checkpoint, "rank_zero_info", said.append)
    monkeypatch.setattr(LastCheckpoint, "_save_checkpoint", lambda *_: None)
    LastCheckpoint(tmp_path / "runs" / "first_probe").save_now(SimpleNamespace(global_step=3))
    assert said == ["runs/first_probe/last.ckpt: written at step 3"]
