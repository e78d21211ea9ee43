"""Reads the records of an offline W&B run: protocol buffers in LevelDB's log format."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER = 32768, 7


def records(path: Path) -> Iterator[Any]:
    """The records of a ``run-<id>.wandb`` file, as ``wandb_internal_pb2.Record``."""
    from wandb.proto import wandb_internal_pb2

    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        yield record


def _payloads(content: bytes) -> Iterator[bytes]:
    """Records are cut into chunks (whole 1, first 2, middle 3, last 4) of crc, length, type, data, within blocks."""
    assert content[:4] == b":W&B"
    position, parts = FILE_HEADER, b""
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:  # no room for a header: padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):
            return  # still being written
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def read(folder: Path) -> dict[str, Any]:
    """``run``, ``config`` and ``history`` (name -> values) of the one W&B run in a run folder."""
    found: dict[str, Any] = {"config": {}, "history": {}}
    for record in _finished(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
        if kind in ("run", "config"):
            for item in (record.run.config if kind == "run" else record.config).update:
                found["config"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if kind == "history":
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                found["history"].setdefault(name, []).append(json.loads(item.value_json))
    return found


def _finished(folder: Path) -> list[Any]:
    """All records, once the last one is there: W&B's own process may still be writing when ``finish`` returns."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(2400):
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.5)
    raise TimeoutError(f"{path} has no end")
