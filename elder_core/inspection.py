"""What can be known of a model or a text without loading it: where it is, what its config says. Imports no torch.

The API refuses a bad job with this at submission; the pipeline uses the same functions, so that both agree.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _builtin_root() -> Path:
    given = os.environ.get("ELDER_BUILTIN_ROOT")
    return Path(given) if given else Path(__file__).resolve().parents[1] / "examples" / "models"


@dataclass(frozen=True)
class Sources:
    """Where models and texts may come from.

    `builtin:NAME` is looked up below `builtin_root`, `local:NAME` below each of `model_roots` (models) or
    `text_roots` (texts), in order. `allow_paths` lets a plain path name any folder or file: for the command line
    only, never for a service. `texts` maps further names (uploaded sets) to files. `hub_cache` is where hub models
    are downloaded to; None means the hub client's own default.
    """

    builtin_root: Path = field(default_factory=_builtin_root)
    model_roots: tuple[Path, ...] = ()
    text_roots: tuple[Path, ...] = ()
    texts: tuple[tuple[str, Path], ...] = ()
    hub_cache: Path | None = None
    allow_paths: bool = False


@dataclass(frozen=True)
class CheckpointInfo:
    """What the config of a checkpoint folder says.

    `max_positions` is the longest sequence, None where the architecture has no limit. `weight_bytes` is the size
    of its safetensors files.
    """

    path: Path
    model_type: str
    architecture: str
    layers: int
    hidden_size: int
    max_positions: int | None
    dtype: str
    weight_bytes: int


def is_hub_id(model_id: str) -> bool:
    """Whether `model_id` names a model on the hub rather than a local one."""
    raise NotImplementedError


def local_model(model_id: str, sources: Sources) -> Path:
    """Folder of a `builtin:`, `local:` or (where allowed) path model.

    Raises:
        PathForbidden: the name is absolute, climbs with `..`, or resolves through a symbolic link to outside its root.
        ModelNotFound: there is no such folder; the message lists what there is.
    """
    raise NotImplementedError


def inspect_checkpoint(path: Path) -> CheckpointInfo:
    """Read and check the config of a checkpoint folder; weights are not opened.

    Raises:
        InvalidCheckpoint, PickledWeights, QuantizedCheckpoint, UnsupportedArchitecture: see each.
    """
    raise NotImplementedError


def text_path(source: str, sources: Sources) -> Path:
    """File of a text source.

    Raises:
        PathForbidden, TextNotFound: as for models.
    """
    raise NotImplementedError


def read_texts(path: Path) -> list[str]:
    """The documents of a `.txt` (one document) or `.jsonl` file (one a line, field `text`).

    Raises:
        TextFormat, TextNotUtf8, TextEmpty: the message names the file and line.
    """
    raise NotImplementedError


def available_models(sources: Sources) -> list[str]:
    """Ids of the local models there are, `builtin:` first."""
    raise NotImplementedError


def available_texts(sources: Sources) -> list[str]:
    """Names of the local texts there are, `builtin:` first: `builtin:manuals-calibration`, `local:notes.jsonl`, …"""
    raise NotImplementedError
