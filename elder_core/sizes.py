"""How many bytes a checkpoint takes once layers are removed, from the headers of its files alone. Imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from elder_core.architectures import table
from elder_core.errors import InvalidCheckpoint, NoLayerLeft, TargetAlreadyMet, TargetUnreachable
from elder_core.inspection import CONFIG_FILE, MODEL, CheckpointInfo
from elder_core.spec import JobSpec, OutputSpec, Precision
from elder_core.weight_files import (
    FLOAT_TYPES,
    TYPE_BYTES,
    StoredTensor,
    encoded_header,
    read_header,
    read_json_object,
    weight_files,
)

TYPES = {torch_name: name for name, torch_name in FLOAT_TYPES.items()}
COMPARED_BYTES = 1 << 20  # if two tensors of one shape have that in common, they are the same
PART_BYTES = 1 << 24
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
        return data + len(encoded_header(tensors)) + (shards - 1) * SHARD_OVERHEAD

    def least_saving(self, count: int) -> tuple[int, ...]:
        """The `count` layers that take the fewest bytes: whichever are removed, no less is saved."""
        sizes = [sum(tensor.bytes for tensor in layer.values()) for layer in self.layers]
        return tuple(sorted(range(len(sizes)), key=lambda layer: (sizes[layer], layer))[:count])


def saved_sizes(info: CheckpointInfo, output: OutputSpec) -> SavedSizes:
    """What the checkpoint `info` takes when it is saved as `output` says.

    Raises:
        InvalidCheckpoint: a weight file is not valid.
    """
    dtype = saved_type(info, output)
    layers: list[dict[str, StoredTensor]] = [{} for _ in range(info.layers)]
    rest: dict[str, StoredTensor] = {}
    for held in held_tensors(info):
        place = rest if held.layer is None else layers[held.layer]
        place[held.name] = as_saved(held, dtype, info)
    return SavedSizes(tuple(layers), rest, output.max_shard_bytes)


def count_to_remove(spec: JobSpec, info: CheckpointInfo) -> int | None:
    """Number of layers that `spec` removes from the model `info`; None where only the loaded model can tell.

    Raises:
        TargetError: the target does not fit the model; the subclass and message say how.
        UnsupportedArchitecture: the config has no words for the model without the layers that `spec` names.
    """
    spec.check_target()
    if spec.target is None:
        count = spec.count_to_remove(info.layers)
        if spec.layers is not None:
            _check_words(info, spec.layers)
        return count
    if info.layers == 1:
        raise NoLayerLeft("The model has one layer, and removing it leaves none.", loc=("target",))
    if spec.target.max_bytes is None:
        return None
    return fewest_layers(saved_sizes(info, spec.output), spec.target.max_bytes)


def _check_words(info: CheckpointInfo, removed: Collection[int]) -> None:
    """Ask the rules as far as config.json has their settings; where it leaves one out, the loaded config is asked."""
    settings = table.text_settings(info.row, read_json_object(info.path / CONFIG_FILE))
    with suppress(KeyError):
        table.changes(
            info.row, info.row.completed(settings), [layer for layer in range(info.layers) if layer not in removed]
        )


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
    counts = range(1, len(sizes.layers))
    enough = bisect_left(counts, True, key=lambda count: sizes.without(sizes.least_saving(count)) <= max_bytes)
    if enough < len(counts):
        return counts[enough]
    size = sizes.without(sizes.least_saving(len(counts)))
    raise TargetUnreachable(
        f"With a single layer left the weights take {size:,} bytes, above max_bytes {max_bytes:,}; give {size:,} or "
        "more, or a smaller output.dtype.",
        loc=loc,
    )


@dataclass(frozen=True)
class Held:
    """A tensor of a checkpoint that is saved again.

    `name` is as transformers saves it, with `{}` for the number of its `layer`, which is None for a tensor of no layer.
    """

    name: str
    layer: int | None
    file: Path
    stored: StoredTensor

    def read(self, limit: int | None = None) -> Iterator[bytearray]:
        """Its bytes, at most `limit`, in parts of at most 16 MiB."""
        left = self.stored.bytes if limit is None else min(limit, self.stored.bytes)
        with self.file.open("rb") as stream:
            stream.seek(self.stored.begin)
            while left:
                part = bytearray(min(left, PART_BYTES))
                if stream.readinto(part) != len(part):
                    raise InvalidCheckpoint(f"{self.file.name} is cut short. Copy it again.", loc=MODEL)
                yield part
                left -= len(part)


def held_tensors(info: CheckpointInfo, *, compared_bytes: int | None = COMPARED_BYTES) -> list[Held]:
    """What of the checkpoint `info` is saved again: without buffers computed anew, and a head tied to the embeddings.

    A head that is stored beside the embeddings is taken to be tied if as many of their first bytes are the same; None
    compares them all.

    Raises:
        InvalidCheckpoint: a weight file is not valid.
    """
    row = info.row
    kept: dict[str, Held] = {}
    for file in weight_files(info.path):
        for name, tensor in read_header(file).items():
            saved_name, layer = row.place(name)
            if row.keeps(name) and (layer is None or layer < info.layers):  # see table.APPENDED
                kept[saved_name.format(layer)] = Held(saved_name, layer, file, tensor)
    head = next((name for name in kept if name.endswith(row.head)), None)
    settings = read_json_object(info.path / CONFIG_FILE)
    if head is not None and row.ties(settings, table.text_settings(row, settings)):
        twin = next((one for name, one in kept.items() if name != head and one.stored == kept[head].stored), None)
        if twin is not None and _same(kept[head], twin, compared_bytes):
            del kept[head]
    return list(kept.values())


def parameter_count(info: CheckpointInfo) -> int:
    """How many numbers the tensors of the checkpoint `info` hold, tied ones counted once.

    Raises:
        InvalidCheckpoint: a weight file is not valid.
    """
    return sum(held.stored.numbers for held in held_tensors(info))


def _same(one: Held, other: Held, limit: int | None) -> bool:
    return all(mine == theirs for mine, theirs in zip(one.read(limit), other.read(limit), strict=True))


def saved_type(info: CheckpointInfo, output: OutputSpec) -> str:
    """The number type that the weights of `info` are saved in, in torch's words."""
    return info.dtype if output.dtype is Precision.SAME else output.dtype.value


def narrowing(info: CheckpointInfo, output: OutputSpec) -> Iterator[str]:
    """A sentence for people where weights lose digits that nobody asked to drop: all are saved in one number type.

    Raises:
        InvalidCheckpoint: a weight file is not valid.
    """
    if output.dtype is not Precision.SAME:
        return
    finer = [held for held in held_tensors(info) if _loses_digits(held.stored, as_saved(held, info.dtype, info))]
    if finer:
        name, stored = finer[0].name.format(finer[0].layer), FLOAT_TYPES[finer[0].stored.dtype]
        yield (
            f"{len(finer)} of the tensors, such as {name}, are stored as {stored}, and are saved as {info.dtype} as "
            f"most are. On a CPU, output.dtype float32 keeps all of their digits."
        )


def _loses_digits(stored: StoredTensor, saved: StoredTensor) -> bool:
    return stored.dtype != saved.dtype and stored.bytes >= saved.bytes


def as_saved(held: Held, dtype: str, info: CheckpointInfo) -> StoredTensor:
    """The tensor `held` with its numbers as `dtype`, in torch's words, or float32 where the architecture insists.

    What is no float stays as it is.
    """
    tensor = held.stored
    if tensor.dtype not in TYPE_BYTES:
        return tensor
    wanted = "F32" if info.row.keeps_float32(held.name) else TYPES[dtype]
    return StoredTensor(wanted, tensor.shape, tensor.numbers * TYPE_BYTES[wanted])
