"""Published label files. Where each comes from is in README.md beside this file."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


def read_text(name: str) -> str:
    """Text of a label file of this folder."""
    return (files(__name__) / name).read_text(encoding="utf-8")


@cache
def read_json(name: str) -> Any:
    """Content of a JSON label file of this folder. Shared between callers: do not change it."""
    return json.loads(read_text(name))


def label_map(name: str) -> list[int]:
    """A published map of labels as a list: entry i is what label i maps to."""
    mapping = read_json(name)
    return [mapping[str(label)] for label in range(len(mapping))]
