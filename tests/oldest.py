"""The oldest version of each dependency that pyproject.toml allows, as constraints for pip (``make test-oldest``).

Run by a Python without packages: standard library only.
"""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest(requirements: list[str]) -> list[str]:
    """``numpy>=2.0,<3; marker`` as ``numpy==2.0; marker``; requirements without a lower bound are left out."""
    found = [re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)[^;]*(;.*)?", each) for each in requirements]
    return [f"{match[1]}=={match[2]}{match[3] or ''}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(oldest(tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])))
