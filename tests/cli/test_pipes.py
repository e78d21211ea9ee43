"""Between fgssl and the shell: output into a pipe whose reader ends early, and commands to paste."""

import os
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fgssl.errors import UserError
from fgssl.run import provenance, refuse_overwriting


@pytest.mark.parametrize("arguments", [["--help"], ["data", "list"]])
def test_reader_that_ends_early_gets_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)  # before the first line
    done = subprocess.run([sys.executable, "-m", "fgssl", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (1, 128 + signal.SIGPIPE)  # 1 is rich's, which writes the tables


def test_broken_pipe_elsewhere_is_not_hidden(monkeypatch):
    from fgssl.cli import main as cli

    def broken(argv):
        raise BrokenPipeError("a worker's pipe")

    monkeypatch.setattr(cli, "_dispatch", broken)
    with pytest.raises(BrokenPipeError, match="worker"):
        cli.main(["fit"])


def test_commands_that_are_told_can_be_pasted_where_a_path_has_blanks(tmp_path, monkeypatch, capsys):
    from fgssl.cli.application import Application
    from fgssl.report.browser import hint
    from fgssl.report.runs import RunFolder, read_runs

    run = tmp_path / "my run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    line = ["fgssl", "fit", "--config", "my own.yaml", "--model.backbone.options", "{img_size: 32}"]
    monkeypatch.setattr("sys.argv", line)
    assert shlex.split(provenance()["command"]) == line
    with pytest.raises(UserError) as mistake:
        refuse_overwriting(run, "fit")
    told = [str(mistake.value)]
    (run / "results.json").write_text('{"status": "interrupted"}')
    told += read_runs([str(run)])[1]
    told += [hint(RunFolder(run, {"method": "MLS"}, {"data.dataset": "digits"}))]
    Application._explain_stop(
        SimpleNamespace(folder=run, config=SimpleNamespace(subcommand="fit")), KeyboardInterrupt()
    )
    told += [capsys.readouterr().out]
    for text in told:
        assert f"--ckpt_path {shlex.quote(str(run))}" in text, text
