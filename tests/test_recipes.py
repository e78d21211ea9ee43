"""The registers of recipes against the experiments as the command line resolves them; see ``tests/recipes.py``."""

import pytest

from fgssl.cli.compose import read_yaml
from fgssl.errors import UserError
from tests import recipes
from tests.recipes import COLUMNS, EXPERIMENTS, PAPERS, faults, read_register, registers

pytestmark = pytest.mark.slow

NO_RECIPE = {  # experiments of ours alone: no paper or released code states their numbers
    "maskcon_cub": "CUB has no coarse labels in MaskCon's paper",
    "mls_cub": "trained on CUB itself; the paper trains on COCO",
    "flsl_cub": "trained on CUB itself; the paper trains on ImageNet",
    "rivals/densecl_cub": "trained on CUB itself; the papers train on COCO and ImageNet",
    "obd_sd_ablations/loss_proxy_anchor": "a loss that the paper names and does not train",
    "obd_sd_ablations/loss_triplet": "a loss that the paper does not train",
}


def experiments_of(paper: str) -> set[str]:
    """The experiments that reproduce a paper, small ones of ours left out, by their path below ``experiments/``.

    A rival's number may stand in the table of another paper; its recipe is of its own: ``rivals/lcr_cub`` is LCR's.
    """
    return {
        name
        for name, file in experiment_files().items()
        if name.startswith(f"rivals/{paper}_")
        or (not name.startswith("rivals/"))
        and (name.split("/")[0].split("_ablations")[0] == paper or paper_of(file) == paper)
    }


def experiment_files() -> dict:
    files = {str(path.relative_to(EXPERIMENTS).with_suffix("")): path for path in EXPERIMENTS.rglob("*.yaml")}
    ours = ("_digits", "_small", "_small_start")
    # Grids; contrasts at a size of ours, which no paper has.
    elsewhere = ("sweeps/", "evidence/", "rivals/small/", "rivals/tune/")
    return {name: path for name, path in files.items() if not name.startswith(elsewhere) and not name.endswith(ours)}


def paper_of(file) -> str:
    """The paper that an experiment names: in ``run.paper``, else in its first line."""
    named = read_yaml(file).get("run.paper")
    if named:
        return named.split(",")[0]
    first = file.read_text().split("\n")[0]
    names = {"cmd": "CMD", "flsl": "FLSL", "maskcon": "MaskCon", "mls": "MLS", "obd_sd": "OBD-SD"}
    return next((paper for paper, name in names.items() if name in first), "")


@pytest.mark.parametrize("register", registers(), ids=lambda path: path.stem)
def test_every_row_is_what_its_experiment_resolves_to(register):
    wrong = faults(read_register(register))
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("register", registers(), ids=lambda path: path.stem)
def test_register_has_rows_for_every_experiment_of_its_paper(register):
    registered = {name for row in read_register(register) for name in row.experiment.split("+")}
    missing = experiments_of(register.stem) - registered - set(NO_RECIPE)
    assert not missing, f"{register.name} has no row for {', '.join(sorted(missing))}"


def test_every_paper_has_a_register():
    assert {path.stem for path in registers()} == set(PAPERS)


def test_every_ablation_names_its_table():
    """Or null, where the paper prints no number for it."""
    files = [path for path in experiment_files().values() if path.parent.name.endswith("_ablations")]
    assert [str(path) for path in files if "run.paper" not in read_yaml(path)] == []


def test_every_experiment_is_of_a_paper_or_excepted():
    claimed = set().union(*(experiments_of(paper) for paper in PAPERS))
    assert set(experiment_files()) - claimed - set(NO_RECIPE) == set()
    assert set(NO_RECIPE) <= set(experiment_files()), "an exception names an experiment that is gone"


def test_page_of_deviations_is_what_the_registers_give():
    assert recipes.DEVIATIONS.read_text() == recipes.page(registers()), "run: python -m tests.recipes"


# ---- the checker itself, on an experiment of its own ---------------------------------------------------------------

EXPERIMENT = """
model: {class_path: MaskCon, init_args: {dim: 128, backbone: {name: resnet18, small_input: false}, optim: {lr: 0.02}}}
data: {dataset: Cars, views: {class_path: PairViews, init_args: {recipe: moco, size: 160}}, eval_resize: 182}
"""


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """``checked(row, ...)`` gives the faults of a register with these rows of the experiment ``trial``."""
    (tmp_path / "trial.yaml").write_text(EXPERIMENT)
    (tmp_path / "smaller.yaml").write_text("model.dim: 64\n")
    monkeypatch.setattr(recipes, "EXPERIMENTS", tmp_path)
    return lambda *rows: faults(read_register(write(tmp_path, *rows)))


def write(tmp_path, *rows: str):
    path = tmp_path / "maskcon.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("trial,model.optim.lr,0.02,Sec. 4,2e-2,train.py:1,0.02,", None),
        ("trial,model.optim.lr,0.02,Sec. 4,,,0.03,ours", "model.optim.lr to 0.02, the register has 0.03"),
        ("trial,model.dim,128,Sec. 4,256,train.py:1,128,", "model.dim: paper, code and ours are not all equal"),
        ("trial,model.dim,128,Sec. 4,256,train.py:1,128,the text", None),
        ("trial+smaller,model.dim,128,Sec. 4,,,64,ours", None),
        ("trial,model.optim.lrs,0.02,Sec. 4,,,0.02,", "no option model.optim.lrs: at 'lrs' it has name, lr"),
        ("trail,model.dim,128,Sec. 4,,,128,", "no experiments/trail.yaml. Did you mean 'trial'?"),
        ("trial,model.dim,128,,,,128,", "model.dim: paper_place is empty"),
        ("trial,model.dim,,,,,128,", "model.dim: neither the paper's value nor the code's is stated"),
        ('trial,views.0.scale,"[0.2, 1]",App. A.1,,,"[0.2, 1.0]",', None),
        ("trial,views.0.photometric.blur,0.4,App. A.1,,,0.5,ours", None),
        ("trial,views.1.photometric.grey,0.5,App. A.1,,,0.5,", "views.1.photometric.grey to 0.2"),
        ("trial,views.1.photometric.gray,0.2,App. A.1,,,0.2,", "no views.1.photometric.gray: at 'gray' there is"),
        ("trial,views.2.flip,0.5,App. A.1,,,0.5,", "trial has views.0 to views.1"),
        ("trial,eval_view.size,160,App. A.1,,,160,", None),
        ("trial,eval_view.resize,256,App. A.1,,,182,ours", None),
        ("trial,eval_view.resample,bilinear,App. A.1,,,bicubic,ours", "eval_view.resample to bilinear"),
        ("trial,data.dataset,Cars,Sec. 4,,,Cars,", None),
        ("trial,model.backbone.small_input,false,Sec. 4,,,0,ours", "small_input to false, the register has 0"),
    ],
)
def test_register_checker_names_file_line_and_fault(row, fault, checked):
    found = checked(row)
    if fault is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith("maskcon.csv:2: ")
        assert fault in found[0]


def test_register_checker_refuses_a_repeated_option_and_a_missing_cell(checked):
    row = "trial,model.dim,128,Sec. 4,,,128,"
    assert "stands in maskcon.csv:2 already" in checked(row, row)[0]
    with pytest.raises(UserError, match=r"maskcon.csv:3: 7 cells, not 8"):
        checked(row, row.removesuffix(","))


def test_page_lists_what_differs_once_for_all_experiments_alike(tmp_path):
    same = "model.dim,128,Sec. 4,256,train.py:7,128,the text decides"
    rows = [f"maskcon_cars,{same}", f"maskcon_cifar100,{same}", "maskcon_cars,model.optim.lr,0.02,Sec. 4,,,0.02,"]
    page = recipes.page([write(tmp_path, *rows)])
    assert "| all | `model.dim` | 128 (Sec. 4) | 256 (train.py:7) | 128 | the text decides |" in page
    assert "model.optim.lr" not in page
