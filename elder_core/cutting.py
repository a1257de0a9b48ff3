"""Removing layers from the files of a checkpoint: tensor by tensor, from safetensors to safetensors. Loads no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from transformers import AutoConfig, GenerationConfig

from elder_core import checkpoints
from elder_core.agreement import as_invalid_checkpoint
from elder_core.checkpoints import GENERATION_FILE, Provenance, Resolved
from elder_core.inspection import CONFIG_FILE
from elder_core.sizes import Held, as_saved, held_tensors, saved_type
from elder_core.spec import OutputSpec
from elder_core.surgery import apply_changes, config_changes, layer_map
from elder_core.weight_files import (
    FLOAT_TYPES,
    INDEX_FILE,
    SINGLE_FILE,
    StoredTensor,
    data_order,
    encoded_header,
)


@dataclass(frozen=True)
class _Piece:
    """A tensor on its way: where it is `held`, and as what it is `saved`."""

    held: Held
    saved: StoredTensor


Shard = Mapping[str, _Piece]


def cut(
    source: Resolved,
    removed: Collection[int],
    model_dir: Path,
    *,
    provenance: Provenance,
    output: OutputSpec,
    step: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Write the checkpoint `source` without the layers `removed` to `model_dir`; it appears whole or not at all.

    The tensors, and the config, are to the byte those that loading, remove_layers and save would write; where there are
    several files, they may be divided elsewhere. A tensor goes through memory in parts of 16 MiB. `step(done, total)`
    is told of every tensor, and may end it by raising.

    Raises:
        OutputExists, OutputNotWritable: see checkpoints.check_output.
        LayersOutOfRange, DuplicateLayers, NoLayerLeft: `removed` does not fit the model.
        UnsupportedArchitecture: a setting of the config does not allow it.
        NonFiniteWeights: a weight is NaN or infinite.
        InvalidCheckpoint: config or weights are damaged, or a weight is too large for the output's number type.
    """
    mapping = layer_map(source.info.layers, removed)
    dtype = saved_type(source.info, output)
    with checkpoints.created(model_dir, source=source.path, provenance=provenance) as new:
        _write_configs(source, mapping, dtype, new.path)
        pieces = _pieces(source, mapping, dtype)
        shards = _shards(pieces, output.max_shard_bytes)
        numbers = count(1)
        for name, shard in shards.items():
            new.hashes[name] = _write_shard(new.path / name, shard, lambda: step(next(numbers), len(pieces)))
        if len(shards) > 1:
            _write_index(new.path / INDEX_FILE, shards)


def _write_configs(source: Resolved, mapping: Mapping[int, int], dtype: str, folder: Path) -> None:
    row = source.info.row
    with as_invalid_checkpoint("The config cannot be used"):
        config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        apply_changes(config, config_changes(row, config, list(mapping)))
        config.architectures = [row.model_class]
        checkpoints.save_config(config, folder, dtype)
        if not (source.path / GENERATION_FILE).is_file():
            # not from `config`, which has let go of what it held about generation
            GenerationConfig.from_pretrained(
                source.path, config_file_name=CONFIG_FILE, _from_model_config=True, local_files_only=True
            ).save_pretrained(folder)


def _pieces(source: Resolved, mapping: Mapping[int, int], dtype: str) -> dict[str, _Piece]:
    """Name in the result → tensor, those of no layer first, then layer by layer."""
    kept = [
        held for held in held_tensors(source.info, compared_bytes=None) if held.layer is None or held.layer in mapping
    ]
    order = sorted(kept, key=lambda held: (-1 if held.layer is None else held.layer, held.name))
    return {
        held.name if held.layer is None else held.name.format(mapping[held.layer]): _Piece(
            held, as_saved(held, dtype, source.info)
        )
        for held in order
    }


def _shards(pieces: Mapping[str, _Piece], max_bytes: int) -> dict[str, Shard]:
    """File name → what goes into it, at most `max_bytes` unless one tensor alone is larger."""
    found: list[dict[str, _Piece]] = [{}]
    size = 0
    for name, piece in pieces.items():
        if found[-1] and size + piece.saved.bytes > max_bytes:
            found.append({})
            size = 0
        found[-1][name] = piece
        size += piece.saved.bytes
    if len(found) == 1:
        return {SINGLE_FILE: found[0]}
    stem = SINGLE_FILE.removesuffix(".safetensors")
    return {f"{stem}-{number:05d}-of-{len(found):05d}.safetensors": shard for number, shard in enumerate(found, 1)}


def _write_shard(file: Path, shard: Shard, tick: Callable[[], None]) -> str:
    """Write a safetensors file; return its hex SHA-256."""
    tensors = {name: piece.saved for name, piece in shard.items()}
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for part in _contents(shard, tensors, tick):
            stream.write(part)
            digest.update(part)
    return digest.hexdigest()


def _contents(
    shard: Shard, tensors: Mapping[str, StoredTensor], tick: Callable[[], None]
) -> Iterator[bytes | bytearray]:
    yield encoded_header(tensors)
    for name in data_order(tensors):
        tick()
        yield from _converted(shard[name])


def _converted(piece: _Piece) -> Iterator[bytes | bytearray]:
    """The bytes of a tensor in its new number type, part by part."""
    name = piece.held.name.format(piece.held.layer)  # as the source has it
    stored, saved = (FLOAT_TYPES.get(tensor.dtype) for tensor in (piece.held.stored, piece.saved))
    for part in piece.held.read():
        if stored is None or saved is None:
            yield part
            continue
        numbers = torch.frombuffer(part, dtype=getattr(torch, stored))
        checkpoints.check_finite(name, numbers)
        if stored == saved:
            yield part
        else:
            changed = numbers.to(getattr(torch, saved))
            checkpoints.check_range(name, changed)
            yield changed.view(torch.uint8).numpy().tobytes()


def _write_index(file: Path, shards: Mapping[str, Shard]) -> None:
    saved = [piece.saved for shard in shards.values() for piece in shard.values()]
    index = {
        "metadata": {
            "total_parameters": sum(tensor.numbers for tensor in saved),
            "total_size": sum(tensor.bytes for tensor in saved),
        },
        "weight_map": {name: file_name for file_name, shard in shards.items() for name in shard},
    }
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
