"""Every code block of every page is run by a clean shell, in order, as a reader would paste it.

``PAGES`` says how each block is run:

- ``run``: as it stands;
- ``long``: as it stands in ``make test-long``, and as ``short`` in ``make test``;
- ``short``: on tiny copies of the data sets, with small networks and one step;
- ``parsed``: all options and values are read and checked;
- ``elsewhere``: by the test that the page's row names, which reads the page too.

A Python block runs as it stands, as a script in the folder where the shell is.

Blocks of YAML or Python that begin with a file name are written to that file; text is not run.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.shell_server import CLIENT, serving, write_program
from tests.shortened import data_folder, furnish

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Page:
    """How the blocks of a page are run.

    Attributes:
        blocks: class of each bash and Python block, in order.
        before: commands of other pages that this one supposes, run short.
        activates: whether the page itself puts fgssl on the path.
        test: file with the test of the blocks that run elsewhere.
    """

    blocks: list[str]
    before: list[str] = field(default_factory=list)
    activates: bool = False
    test: str = ""


PAGES = {
    "README.md": Page(["parsed", "long", "run"], activates=True),
    "CONTRIBUTING.md": Page(["parsed"]),
    "docs/index.md": Page(["parsed"], activates=True),
    "docs/start.md": Page(["parsed", "run", "short", "short", "short"], activates=True),
    "docs/running.md": Page(
        ["run", "run", "run", "short", "short", "short", "parsed", "parsed", "parsed", "parsed", "parsed", "parsed"],
        before=["fgssl fit --config cmd_cub --run.name first"],
    ),
    "docs/cluster.md": Page(["parsed", "parsed", "parsed", "parsed"]),
    "docs/compare.md": Page(["long", "short", "run", "short", "run"]),
    "docs/data.md": Page(["short", "short", "parsed", "short", "run"]),
    "docs/python.md": Page(
        ["run", "elsewhere"],
        before=["fgssl fit --config maskcon_cub --run.name first"],
        test="tests/test_notebook.py",
    ),
    "docs/methods.md": Page(["run", "long"]),
    "docs/methods/barlow_twins.md": Page(["parsed"]),
    "docs/results.md": Page(["parsed"] * 4),
    "docs/methods/byol.md": Page(["parsed"]),
    "docs/methods/cmd.md": Page(["parsed"]),
    "docs/methods/contrastive_crop.md": Page(["parsed"]),
    "docs/methods/densecl.md": Page(["parsed"]),
    "docs/methods/flsl.md": Page(["parsed"]),
    "docs/methods/lcr.md": Page(["parsed"]),
    "docs/methods/lewel.md": Page(["parsed"]),
    "docs/methods/mae.md": Page(["parsed"]),
    "docs/methods/maskcon.md": Page(["parsed"]),
    "docs/methods/metric_learning.md": Page(["parsed"]),
    "docs/methods/mls.md": Page(["parsed"]),
    "docs/methods/obd_sd.md": Page(["parsed"]),
    "docs/methods/simclr.md": Page(["parsed"]),
    "docs/methods/simsiam.md": Page(["parsed"]),
    "docs/methods/swav.md": Page(["parsed"]),
    "docs/methods/vicreg.md": Page(["parsed"]),
    "experiments/evidence/README.md": Page(["parsed"] * 6),
    "experiments/cmd_ablations/README.md": Page(["parsed"]),
    "experiments/flsl_ablations/README.md": Page(["parsed"]),
    "experiments/maskcon_baselines/README.md": Page(["parsed"]),
    "experiments/mls_ablations/README.md": Page(["parsed"] * 4),
    "experiments/obd_sd_ablations/README.md": Page(["parsed"] * 2),
    "experiments/rivals/README.md": Page(["parsed"] * 2),
}
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of a page."""
    return [(language.strip(), text) for _, language, text in BLOCK.findall((ROOT / page).read_text())]


def is_file(text: str) -> bool:
    """Whether a block begins with the name of the file that it is."""
    return bool(re.match(r"# [\w./-]+\.(py|ya?ml)\n", text))


def executed(page: str) -> list[tuple[str, str]]:
    """The blocks of a page that are run."""
    return [block for block in blocks_of(page) if block[0] in ("bash", "python") and not is_file(block[1])]


# ---- the table is whole ----------------------------------------------------------------------------------------------


def test_every_page_is_in_the_table():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
    with_blocks = {str(page.relative_to(ROOT)) for page in pages if BLOCK.search(page.read_text())}
    assert with_blocks == PAGES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_has_a_class(page):
    assert {language for language, _ in blocks_of(page)} <= {"bash", "python", "yaml", "text"}
    assert len(executed(page)) == len(PAGES[page].blocks), "PAGES gives one class a block"
    assert set(PAGES[page].blocks) <= {"run", "long", "short", "parsed", "elsewhere"}
    if "elsewhere" in PAGES[page].blocks:
        assert Path(page).name in (ROOT / PAGES[page].test).read_text()


@pytest.mark.parametrize("page", PAGES)
def test_file_that_a_page_shows_is_the_one_in_the_folder(page):
    for language, text in blocks_of(page):
        name = text.splitlines()[0].removeprefix("# ") if is_file(text) else ""
        if language == "yaml" and (ROOT / name).is_file():
            assert yaml.safe_load(text) == yaml.safe_load((ROOT / name).read_text())


# ---- the shell -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The socket of a process that runs the commands, and the folder of the tiny data sets."""
    folder = tmp_path_factory.mktemp("server")
    data_folder(folder / "data")
    path = folder / "socket"
    with serving(path):
        yield path, folder / "data"


@pytest.fixture
def work(tmp_path, server, request):
    """A reader's checkout: our folders, an environment whose programs are stand-ins, and the reader's own files."""
    long = request.node.get_closest_marker("long") is not None
    path, data = server
    for name in ("experiments", "configs", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs, tools = tmp_path / ".venv" / "bin", tmp_path / "tools"
    for folder in (programs, tools):
        folder.mkdir(parents=True)
    for name in ("fgssl", "pip", "torchrun", "fgssl-python"):
        write_program(programs / name, CLIENT.format(python=sys.executable, socket=str(path)))
    if long:  # what is run as it stands is run by a process of its own
        (programs / "fgssl").rename(programs / "fgssl-client")
        write_program(programs / "fgssl", REAL.format(root=ROOT, python=sys.executable))
    write_program(tools / "make", '#!/bin/bash\nexec /usr/bin/make --dry-run VENV=unused "$@" > /dev/null\n')
    write_program(tools / "sbatch", SBATCH)
    (tools / "slurm").mkdir()
    write_program(tools / "slurm" / "srun", '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    furnish(tmp_path, data)
    return tmp_path


REAL = """#!/bin/bash
if [ "$PAGES" = run ]; then PYTHONPATH={root} exec {python} -m fgssl "$@"; fi
exec -a fgssl "$(dirname "$0")/fgssl-client" "$@"
"""
SBATCH = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_ARRAY_TASK_ID=0 SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2 SLURM_NTASKS_PER_NODE=4 SLURM_CPUS_PER_TASK=8
PATH="$(dirname "$0")/slurm:$PATH"
exec bash "$@"
"""


def shell(work: Path, data: Path, text: str, how: str, activated: bool) -> None:
    """Run a text by a clean ``bash -eu``; its output is shown where it fails."""
    environment = {"PATH": f"{work / 'tools'}:/usr/local/bin:/usr/bin:/bin", "HOME": str(work), "PAGES": how}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "WANDB_MODE": "offline", "FGSSL_DATA": str(data)}
    environment |= {"RANK_OF_THIS_NODE": "0", "FIRST_NODE": "localhost"}  # the reader's own cluster
    lines = f". .venv/bin/activate\n{text}" if activated else text
    streams = {"input": lines, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["bash", "-eu"], cwd=work, env=environment, **streams)
    assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}"


def run_page(name: str, work: Path, data: Path, long: bool) -> None:
    page, classes, activated = PAGES[name], iter(PAGES[name].blocks), not PAGES[name].activates
    for line in page.before:
        shell(work, data, line, "short", True)
    for language, text in blocks_of(name):
        if is_file(text):
            file = work / text.splitlines()[0].removeprefix("# ")
            if not file.exists():
                file.write_text(text)
        elif language in ("bash", "python"):
            how = {"long": "run" if long else "short"}.get(how := next(classes), how)
            if how == "elsewhere":
                continue
            command = text if language == "bash" else f"fgssl-python <<'END'\n{text}END\n"
            shell(work, data, command, how, activated)
            activated = activated or "bin/activate" in text


@pytest.mark.parametrize("name", PAGES)
def test_page_can_be_pasted(name, work, server):
    run_page(name, work, server[1], long=False)
    if name == "docs/compare.md":
        text = (ROOT / name).read_text()
        assert all((work / path).exists() for path in re.findall(r"`(runs/[^`]*)`", text))


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if "long" in page.blocks])
def test_page_can_be_pasted_at_full_size(name, work, server):
    run_page(name, work, server[1], long=True)


@pytest.mark.long
def test_make_demo(tmp_path):
    """In the environment of this process, if make has made it."""
    if not (Path(sys.prefix) / ".ready").exists():
        pytest.skip(f"{sys.prefix} was not made by make: it has no .ready")
    for name in ("experiments", "configs", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    line = ["make", "-o", "pyproject.toml", f"VENV={sys.prefix}", "demo"]  # -o: the environment is up to date
    done = subprocess.run(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("untrained network", "SupCE", "SelfCon", "Grafit", "MaskCon"):
        assert name in done.stdout
    assert (tmp_path / "runs" / "demo" / "maskcon" / "retrieval.jpg").is_file()


def test_output_that_compare_is_shown_with_has_its_columns():
    (shown,) = [text for language, text in blocks_of("docs/compare.md") if language == "text"]
    assert re.search(r"rank +method +epochs +seeds +recall@1 +map", shown)
    best = max(float(value) for value in re.findall(r"(\d\d\.\d\d) ±", shown))
    assert re.search(rf" 1 +MaskCon +8 +2 +{best:.2f} ±", shown), "the walk-through's own claim: MaskCon first"
