"""The experiments, sweeps and fragments of fgssl, found by name from any folder.

In a checkout they are the folders ``experiments/`` and ``configs/`` beside the package; a wheel has them inside it.
"""

from pathlib import Path

from fgssl.errors import UserError, did_you_mean

PACKAGE = Path(__file__).parents[1]
RESULTS = "evidence/results/"  # configurations of finished runs; in a checkout alone


def root() -> Path:
    """The folder that holds ``experiments/`` and ``configs/``."""
    return PACKAGE if (PACKAGE / "experiments").is_dir() else PACKAGE.parent


def experiments(sweeps: bool = False) -> dict[str, Path]:
    """The files of ``experiments/`` by name: ``maskcon_cub``, ``cmd_ablations/table4_lr``.

    Args:
        sweeps: the sweep files (``sweeps/maskcon_cars``, ``evidence/sweeps/mls``) instead of the experiments.
    """
    folder = root() / "experiments"
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    files = {name: path for name, path in files.items() if not name.startswith(RESULTS)}
    return {name: path for name, path in files.items() if ("sweeps" in name.split("/")[:-1]) == sweeps}


def find(name: str | Path) -> Path:
    """The file of a path, or of the name of an experiment with or without ``.yaml``.

    A file of the working folder comes before an experiment of fgssl.

    Raises:
        UserError: there is no such file or experiment; the message suggests the nearest name.
    """
    given = str(name)
    spellings = (given, f"{given}.yaml")
    folders = (Path(), root(), root() / "experiments")
    for path in (folder / spelling for folder in folders for spelling in spellings):
        if path.is_file():
            return path
    beside = [path.name for path in Path(given).parent.glob("*.yaml")] if Path(given).parent.is_dir() else []
    known = {**experiments(), **experiments(sweeps=True)}
    word = given.removesuffix(".yaml").removesuffix(".yml").removeprefix("experiments/")
    hint = did_you_mean(Path(given).name, beside) or did_you_mean(word, known)
    raise UserError(f"config file not found: {name}.{hint} fgssl list experiments has the names of ours.")
