"""`elder.json`: where a pruned checkpoint comes from, and the hash of every file in it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from elder_core.disk import file_sha256
from elder_core.errors import InvalidCheckpoint
from elder_core.parameters import Strict
from elder_core.spec import JobSpec, LayerReport, ModelSummary

MANIFEST_FILE = "elder.json"


class FileRecord(Strict):
    bytes: int
    sha256: str


class Seeds(Strict):
    """`run` seeds everything random, `calibration` the order of the sequences."""

    run: int
    calibration: int


class Manifest(Strict):
    """Contents of `elder.json`, version 1. `layer_map` is index before → index after, for the layers that stayed.

    `files` are all files of the checkpoint but this one, by their paths in it. No times and no host names: the same job
    gives the same bytes.
    """

    schema_version: Literal[1] = 1
    spec: JobSpec
    source: ModelSummary
    layer_map: dict[int, int]
    removed_layers: tuple[int, ...]
    layers: tuple[LayerReport, ...]
    weight_label: str
    seeds: Seeds
    versions: dict[str, str]
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Provenance:
    """What a pruned checkpoint is told about where it comes from.

    `layers` has one entry for every layer of the source, with the weight that selection learnt or measured;
    `weight_label` says what that weight is. `versions` is name → version of the libraries that matter.
    """

    spec: JobSpec
    source: ModelSummary
    layers: tuple[LayerReport, ...]
    weight_label: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def removed_layers(self) -> tuple[int, ...]:
        return tuple(layer.index for layer in self.layers if layer.removed)

    @property
    def layer_map(self) -> dict[int, int]:
        return {layer.index: layer.new_index for layer in self.layers if layer.new_index is not None}


def write_manifest(folder: Path, provenance: Provenance, known: Mapping[str, str]) -> None:
    """Write `elder.json` beside all other files of the checkpoint, which must be there already.

    `known` is name → hex SHA-256 of those whose hash need not be computed again.
    """
    manifest = Manifest(
        spec=provenance.spec,
        source=provenance.source,
        layer_map=provenance.layer_map,
        removed_layers=provenance.removed_layers,
        layers=provenance.layers,
        weight_label=provenance.weight_label,
        seeds=Seeds(run=provenance.spec.seed, calibration=provenance.spec.calibration.seed),
        versions=dict(sorted(provenance.versions.items())),
        files={
            name: FileRecord(bytes=file.stat().st_size, sha256=known.get(name) or file_sha256(file))
            for file in sorted(file for file in folder.rglob("*") if file.is_file())
            for name in [file.relative_to(folder).as_posix()]
        },
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The contents of `elder.json`.

    Raises:
        InvalidCheckpoint: it is missing or not valid.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise InvalidCheckpoint(f"{MANIFEST_FILE} cannot be read: {error.strerror or error}.") from error
    except ValidationError as error:
        raise InvalidCheckpoint(f"{MANIFEST_FILE} is not valid: {error.errors()[0]['msg']}.") from error


def verify(folder: Path) -> None:
    """Compare every file that `elder.json` names with its size and hash there.

    Raises:
        InvalidCheckpoint: one is missing or differs; the message names it. Or `elder.json` itself is at fault.
    """
    for name, record in read_manifest(folder).files.items():
        file = folder / name
        if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise InvalidCheckpoint(f"{MANIFEST_FILE} names {name!r}, which is not in its folder.")
        if not file.is_file():
            raise InvalidCheckpoint(f"{name} is missing; {MANIFEST_FILE} names it.")
        if file.stat().st_size != record.bytes or file_sha256(file) != record.sha256:
            raise InvalidCheckpoint(f"{name} is not the file that {MANIFEST_FILE} describes: its size or hash differs.")
