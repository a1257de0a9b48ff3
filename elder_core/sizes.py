"""How many bytes a checkpoint takes once layers are removed, from the headers of its files alone. Imports no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from elder_core.architectures import table
from elder_core.errors import NoLayerLeft, TargetAlreadyMet, TargetUnreachable
from elder_core.inspection import CONFIG_FILE, CheckpointInfo
from elder_core.spec import JobSpec, OutputSpec, Precision
from elder_core.weight_files import FLOAT_TYPES, StoredTensor, read_header, read_json_object, weight_files

TYPES = {torch_name: name for name, torch_name in FLOAT_TYPES.items()}
TYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}

# Causal masks and rotation frequencies: old checkpoints hold them, loading ignores them, and they are not saved again.
RECOMPUTED = re.compile(r"\.(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
COMPARED_BYTES = 1 << 20

METADATA = {"format": "pt"}
ALIGNMENT = 8
SHARD_OVERHEAD = 64  # bytes at most: length, metadata and padding


@dataclass(frozen=True)
class SavedSizes:
    """What a checkpoint's tensors take when it is saved: by layer, and those that are in none.

    `rest` and each of `layers` are name → tensor; a layer's names have `{}` where the layer's number stands.
    """

    layers: tuple[Mapping[str, StoredTensor], ...]
    rest: Mapping[str, StoredTensor]
    max_shard_bytes: int

    def without(self, removed: Collection[int]) -> int:
        """Bytes of the safetensors files without the layers `removed`; of several files an upper bound."""
        kept = [layer for index, layer in enumerate(self.layers) if index not in removed]
        named = {name.format(index): tensor for index, layer in enumerate(kept) for name, tensor in layer.items()}
        tensors = {**self.rest, **named}
        data = sum(tensor.bytes for tensor in tensors.values())
        shards = 1 if data <= self.max_shard_bytes else 2 * math.ceil(data / self.max_shard_bytes) + 1
        return data + _header_bytes(tensors) + (shards - 1) * SHARD_OVERHEAD

    def least_saving(self, count: int) -> tuple[int, ...]:
        """The `count` layers that take the fewest bytes: whichever are removed, no less is saved."""
        sizes = [sum(tensor.bytes for tensor in layer.values()) for layer in self.layers]
        return tuple(sorted(range(len(sizes)), key=lambda layer: (sizes[layer], layer))[:count])


def saved_sizes(info: CheckpointInfo, output: OutputSpec) -> SavedSizes:
    """What the checkpoint `info` takes when it is saved as `output` says.

    Raises:
        InvalidCheckpoint: a weight file is not valid.
    """
    row = table.find(info.model_type)
    stored = info.dtype if output.dtype is Precision.SAME else output.dtype.value
    numbered = re.compile(rf"^(.*?\b{re.escape(row.stack.rpartition('.')[2])})\.(\d+)\.(.+)$")
    layers: list[dict[str, StoredTensor]] = [{} for _ in range(info.layers)]
    rest: dict[str, StoredTensor] = {}
    for name, tensor in _saved_tensors(info, row).items():
        wanted = "F32" if row.keeps_float32(name) else TYPES[stored]
        found = numbered.match(name)
        if found and int(found[2]) >= info.layers:
            continue  # see table.APPENDED
        if found:
            layers[int(found[2])][f"{row.stack}.{{}}.{found[3]}"] = _as_type(tensor, wanted)
        else:
            rest[_full_name(name, row)] = _as_type(tensor, wanted)
    return SavedSizes(tuple(layers), rest, output.max_shard_bytes)


def count_to_remove(spec: JobSpec, info: CheckpointInfo) -> int | None:
    """Number of layers that `spec` removes from the model `info`; None where only the loaded model can tell.

    Raises:
        TargetError: the target does not fit the model; the subclass and message say how.
    """
    spec.check_target()
    if spec.target is None:
        return spec.count_to_remove(info.layers)
    if info.layers == 1:
        raise NoLayerLeft("The model has one layer, and removing it leaves none.", loc=("target",))
    if spec.target.max_bytes is None:
        return None
    return fewest_layers(saved_sizes(info, spec.output), spec.target.max_bytes)


def fewest_layers(sizes: SavedSizes, max_bytes: int) -> int:
    """The least number of layers without which, whichever they are, the weights take at most `max_bytes` on disk.

    Raises:
        TargetUnreachable: one layer alone takes more.
        TargetAlreadyMet: all layers take no more.
    """
    loc = ("target", "max_bytes")
    if (whole := sizes.without(())) <= max_bytes:
        raise TargetAlreadyMet(
            f"The weights take {whole:,} bytes with all their layers, so max_bytes {max_bytes:,} asks for nothing to "
            f"be removed; give less than {whole:,}.",
            loc=loc,
        )
    for count in range(1, len(sizes.layers)):
        if (size := sizes.without(sizes.least_saving(count))) <= max_bytes:
            return count
    raise TargetUnreachable(
        f"With a single layer left the weights take {size:,} bytes, above max_bytes {max_bytes:,}; give {size:,} or "
        "more, or a smaller output.dtype.",
        loc=loc,
    )


def _saved_tensors(info: CheckpointInfo, row: table.Architecture) -> dict[str, StoredTensor]:
    """What is stored, less what will not be saved: buffers computed anew, and a head tied to the embeddings."""
    dropped = [re.compile(pattern) for pattern in row.obsolete] + [RECOMPUTED]
    files = weight_files(info.path)
    tensors = {name: tensor for file in files for name, tensor in read_header(file).items()}
    kept = {name: tensor for name, tensor in tensors.items() if not any(one.search(name) for one in dropped)}
    head = row.head
    settings = read_json_object(info.path / CONFIG_FILE)
    if head in kept and settings.get("tie_word_embeddings", row.tied):
        twin = next((name for name, tensor in kept.items() if name != head and tensor == kept[head]), None)
        if twin is not None and _beginning(files, head) == _beginning(files, twin):
            del kept[head]
    return kept


def _beginning(files: list[Path], name: str) -> bytes:
    """The first mebibyte of a tensor: if two of one shape have that in common, they are the same."""
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entry = json.loads(stream.read(length)).get(name)
            if entry is not None:
                begin, end = entry["data_offsets"]
                stream.seek(8 + length + begin)
                return stream.read(min(end - begin, COMPARED_BYTES))
    return b""


def _full_name(name: str, row: table.Architecture) -> str:
    """As transformers saves it: the base model's own checkpoints leave out the name that it has in the whole."""
    base = row.stack.partition(".")[0] + "."
    head = row.head.rpartition(".")[0] + "."
    return name if name.startswith((base, head)) else base + name


def _as_type(tensor: StoredTensor, dtype: str) -> StoredTensor:
    if tensor.dtype not in TYPE_BYTES:
        return tensor
    return StoredTensor(dtype, tensor.shape, math.prod(tensor.shape) * TYPE_BYTES[dtype])


def _header_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """Of one safetensors file that holds `tensors`, with the length before it: compact JSON, padded to 8 bytes."""
    order = sorted(tensors, key=lambda name: (-TYPE_BYTES.get(tensors[name].dtype, 1), name))
    ends = list(accumulate((tensors[name].bytes for name in order), initial=0))
    header = {"__metadata__": METADATA} | {
        name: {"dtype": tensors[name].dtype, "shape": tensors[name].shape, "data_offsets": (begin, end)}
        for name, begin, end in zip(order, ends[:-1], ends[1:], strict=True)
    }
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + math.ceil(length / ALIGNMENT) * ALIGNMENT
