"""The weight files of a checkpoint folder, by name and header only. Imports no torch and no safetensors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from elder_core.errors import IndexForbidden, InvalidCheckpoint, PickledWeights, QuantizedCheckpoint, ShardMissing

SINGLE_FILE = "model.safetensors"
INDEX_FILE = f"{SINGLE_FILE}.index.json"
PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
MAX_JSON_BYTES = 100_000_000  # the limit that safetensors sets for its header

# safetensors' number types → torch's names; a checkpoint of any other is quantised
PACKED = (".qweight", ".qzeros")  # of GPTQ and AWQ, where most of the bytes may be embeddings
UNQUANTIZED = "Give the model that it was made from, in float32, bfloat16 or float16, and quantise the pruned result."
FLOAT_TYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
TYPE_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}

# safetensors writes the last of these first
TYPE_ORDER = {
    dtype: place
    for place, dtype in enumerate(
        ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"), 1
    )
}

METADATA = {"format": "pt"}
ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a safetensors header; `dtype` in safetensors' words, `begin` where in the file its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    begin: int = field(default=0, compare=False)

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightSummary:
    """What the headers of all weight files say. `dtype` is the one most of the bytes are in, in torch's words."""

    tensors: Mapping[str, StoredTensor]
    dtype: str
    total_bytes: int


def read_json_object(path: Path) -> dict[str, object]:
    """The JSON object in `path`.

    Raises:
        InvalidCheckpoint: it is missing, too large, not JSON or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InvalidCheckpoint(
                f"{path.name} is larger than {MAX_JSON_BYTES:,} bytes; this is no {path.name}.", loc=("model", "id")
            )
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidCheckpoint(
            f"{path.name} cannot be read: {error.strerror or error}.", loc=("model", "id")
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{path.name} is not valid JSON: {error}.", loc=("model", "id")) from error
    if not isinstance(found, dict):
        raise InvalidCheckpoint(f"{path.name} holds no JSON object.", loc=("model", "id"))
    return found


def refuse_pickled(names: list[str]) -> None:
    """Raise for a list of file names among which are no safetensors weights that transformers loads.

    Raises:
        PickledWeights: some of them are pickles.
        InvalidCheckpoint: there are no weights at all, or only some of another name.
    """
    if SINGLE_FILE in names or INDEX_FILE in names:
        return
    other = sorted(name for name in names if name.endswith(".safetensors"))
    beside = f" {other[0]} is no name that transformers loads." if other else ""
    pickled = sorted(name for name in names if Path(name).suffix in PICKLED_SUFFIXES)
    if pickled:
        raise PickledWeights(
            f"The weights are only there in pickled form ({pickled[0]}), which can run code when it is loaded.{beside} "
            "Give a checkpoint with safetensors files; transformers writes them with save_pretrained.",
            loc=("model", "id"),
        )
    raise InvalidCheckpoint(f"There is no {SINGLE_FILE} and no {INDEX_FILE}.{beside}", loc=("model", "id"))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint in `path`: those that its index names, or the single one.

    Raises:
        PickledWeights, InvalidCheckpoint: there are none.
        ShardMissing, IndexForbidden: the index names one that is missing or elsewhere.
    """
    refuse_pickled([entry.name for entry in path.iterdir()])
    if (path / SINGLE_FILE).is_file():  # before the index, as transformers has it
        return [path / SINGLE_FILE]
    return [_shard(path, name) for name in _indexed_names(path)]


def checkpoint_bytes(path: Path) -> int:
    """Size in bytes of the weight files of the checkpoint in `path`."""
    return sum(file.stat().st_size for file in weight_files(path))


def _indexed_names(path: Path) -> list[str]:
    weight_map = read_json_object(path / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidCheckpoint(f"{INDEX_FILE} has no weight_map.", loc=("model", "id"))
    return sorted({str(name) for name in weight_map.values()})


def _shard(path: Path, name: str) -> Path:
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise IndexForbidden(
            f"{INDEX_FILE} names {name!r}, which is not the name of a safetensors file in the same folder.",
            loc=("model", "id"),
        )
    if not (path / name).is_file():
        raise ShardMissing(
            f"{INDEX_FILE} names {name}, which is missing; copy the checkpoint again, whole.", loc=("model", "id")
        )
    return path / name


def summarize(files: list[Path]) -> WeightSummary:
    """Read the headers of `files`.

    Raises:
        InvalidCheckpoint: a file is cut short or is no safetensors file.
        QuantizedCheckpoint: most of the bytes are in a type that is no ordinary float, or some hold several numbers.
    """
    bytes_by_type: Counter[str] = Counter()
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            bytes_by_type[tensor.dtype] += tensor.bytes
            tensors[name] = tensor
    if not tensors:
        raise InvalidCheckpoint(f"{files[0].name} holds no tensors.", loc=("model", "id"))
    dominant = bytes_by_type.most_common(1)[0][0]
    if dominant not in FLOAT_TYPES:
        raise QuantizedCheckpoint(
            f"The weights are stored as {dominant}: this checkpoint is quantised. {UNQUANTIZED}", loc=("model", "id")
        )
    if packed := next((name for name in tensors if name.endswith(PACKED)), None):
        raise QuantizedCheckpoint(
            f"The weights hold {packed}: this checkpoint is quantised. {UNQUANTIZED}", loc=("model", "id")
        )
    return WeightSummary(tensors, FLOAT_TYPES[dominant], sum(file.stat().st_size for file in files))


def read_header(file: Path) -> dict[str, StoredTensor]:
    """What one safetensors file holds, by name.

    Raises:
        InvalidCheckpoint: it is cut short or is no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_JSON_BYTES):
            raise InvalidCheckpoint(f"{file.name} is cut short or is no safetensors file.", loc=("model", "id"))
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        found = {name: _tensor(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidCheckpoint(f"The header of {file.name} is not valid: {error}.", loc=("model", "id")) from error
    if _end(found, 8 + length) != size:
        raise InvalidCheckpoint(
            f"{file.name} is cut short: its header tells of more, or other, tensors than it holds. Copy it again.",
            loc=("model", "id"),
        )
    return found


def _tensor(entry: dict[str, Any], data_begin: int) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if not 0 <= begin <= end:
        raise ValueError(f"data_offsets are {begin} and {end}")
    shape = tuple(int(size) for size in entry["shape"])
    tensor = StoredTensor(str(entry["dtype"]), shape, end - begin, data_begin + begin)
    if tensor.dtype in TYPE_BYTES and tensor.bytes != tensor.numbers * TYPE_BYTES[tensor.dtype]:
        raise ValueError(f"{tensor.bytes:,} bytes are not {list(shape)} in {tensor.dtype}")
    return tensor


def _end(tensors: Mapping[str, StoredTensor], begin: int) -> int | None:
    """Where the last of `tensors` ends, if the first begins at `begin` and each where another ends; None if not."""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.bytes)):
        if tensor.begin != begin:
            return None
        begin += tensor.bytes
    return begin


def data_order(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The names of `tensors` in the order in which safetensors writes their data."""
    return sorted(tensors, key=lambda name: (-TYPE_ORDER.get(tensors[name].dtype, 0), name))


def encoded_header(tensors: Mapping[str, StoredTensor]) -> bytes:
    """What stands before the data in a safetensors file: the header's length, and compact JSON, padded to 8 bytes."""
    order = data_order(tensors)
    ends = list(accumulate((tensors[name].bytes for name in order), initial=0))
    header = {"__metadata__": METADATA} | {
        name: {"dtype": tensors[name].dtype, "shape": tensors[name].shape, "data_offsets": (begin, end)}
        for name, begin, end in zip(order, ends[:-1], ends[1:], strict=True)
    }
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    length = math.ceil(len(raw) / ALIGNMENT) * ALIGNMENT
    return length.to_bytes(8, "little") + raw.ljust(length)
