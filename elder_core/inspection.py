"""What can be known of a model or a text without loading it: where it is, what its config says. Imports no torch.

The API refuses a bad job with this at submission; the pipeline uses the same functions, so that both agree.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elder_core import confined
from elder_core.architectures import table
from elder_core.architectures.architecture import Architecture
from elder_core.architectures.rules import Inexpressible, Settings
from elder_core.errors import (
    AdapterOnly,
    ConfigMismatch,
    InvalidCheckpoint,
    ModelNotFound,
    QuantizedCheckpoint,
    TextEmpty,
    TextFormat,
    TextNotFound,
    TextNotUtf8,
    TextTooLarge,
    TextTooShort,
    UnsupportedArchitecture,
)
from elder_core.weight_files import (
    UNQUANTIZED,
    StoredTensor,
    WeightSummary,
    read_json_object,
    summarize,
    weight_files,
)

MODEL = ("model", "id")
CONFIG_FILE = "config.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
UNMERGED = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|ia3_l)\.")
MERGE = (
    "Merge it into its model first (peft: merge_and_unload, then save_pretrained) and give the folder that this writes."
)
MAX_LAYERS = 10_000  # far above any model, as it is for experts; a count beyond it is damage, not a model
MAX_NUMBER = 2**32
COUNTS_PARTS = re.compile(r"^(num_\w*layers|n_layers?|depth|\w*experts)$")  # that are built one after the other
WRITES_TEXT = ("forcausallm", "lmheadmodel")  # how the classes of language models end, in small letters
SEES = "forconditionalgeneration"
LONGEST_DEFAULT = 2048  # tokens a sequence where nothing else is asked for
BEGINNING_BYTES = 1 << 20  # as much of a text as is looked at before a job is taken
EMBEDDINGS = ("embed_tokens", "embed_in", "wte")  # what token embeddings are called
LEFT_OUT = (
    "The checkpoint also holds layers for predicting several tokens at once, made for the model as it was; they are "
    "left out of the result, whose config says that there are none."
)
PREDICTOR = re.compile(r"(^|[._])mtp[._]")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# name → path below `builtin_root`
BUILTIN_TEXTS = {
    "manuals-calibration": Path("manuals-texts/calibration.jsonl"),
    "manuals-test": Path("manuals-texts/test.jsonl"),
}


def _builtin_root() -> Path:
    given = os.environ.get("ELDER_BUILTIN_ROOT")
    return Path(given) if given else Path(__file__).resolve().parents[1] / "examples" / "models"


@dataclass(frozen=True)
class Sources:
    """Where models and texts may come from.

    `builtin:NAME` is looked up below `builtin_root`, `local:NAME` below each of `model_roots` (models) or
    `text_roots` (texts), in order. `allow_paths` lets a plain path name any folder or file: for the command line
    only, never for a service. `texts` maps further names to files. `max_text_bytes` is the largest text file that is
    taken, None any. `hub_cache` is where hub models are downloaded to; None means the hub client's own default.
    `token_cache` is where texts are kept as tokens; None keeps none.
    """

    builtin_root: Path = field(default_factory=_builtin_root)
    model_roots: tuple[Path, ...] = ()
    text_roots: tuple[Path, ...] = ()
    texts: tuple[tuple[str, Path], ...] = ()
    max_text_bytes: int | None = None
    hub_cache: Path | None = None
    token_cache: Path | None = None
    allow_paths: bool = False


@dataclass(frozen=True)
class CheckpointInfo:
    """What the config of a checkpoint folder says.

    `architecture` is the class of the model in transformers. `max_positions` is the longest sequence, None where the
    architecture has no limit. `dtype` is the number type that most of the weights are stored in, in torch's words.
    `weight_bytes` is the size of its safetensors files. `predictors`: they also hold layers for predicting several
    tokens at once, which are neither loaded nor saved again. `text_type`: see Architecture.
    """

    path: Path
    model_type: str
    architecture: str
    layers: int
    hidden_size: int
    max_positions: int | None
    dtype: str
    weight_bytes: int
    predictors: bool = False
    text_type: str | None = None

    @property
    def row(self) -> Architecture:
        """What the table says of the model."""
        return table.find(self.model_type, self.text_type)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for people: what of the checkpoint its pruned model will not have."""
        return (LEFT_OUT,) * self.predictors


@dataclass(frozen=True)
class ConfigFacts:
    """What a config says, checked, before any weights are there. `appended`: see table.APPENDED."""

    row: Architecture
    layers: int
    hidden_size: int
    max_positions: int | None
    appended: int


def is_hub_id(model_id: str) -> bool:
    """Whether `model_id` names a model on the hub (`OWNER/NAME`) rather than a local one."""
    return HUB_ID.fullmatch(model_id) is not None and ".." not in model_id


def local_model(model_id: str, sources: Sources) -> Path:
    """Folder of a `builtin:`, `local:` or (where allowed) path model.

    Raises:
        PathForbidden: the name is absolute, climbs with `..`, or resolves through a symbolic link to outside its root.
        ModelNotFound: there is no such folder; the message lists what there is.
    """
    kind, _, name = model_id.partition(":")
    if kind in ("builtin", "local"):
        confined.check_name(name, loc=MODEL)
    for root in _roots(kind, sources.builtin_root, sources.model_roots):
        found = confined.below(root, name, loc=MODEL)
        if found is not None and found.is_dir():
            confined.check_links(found, root, loc=MODEL)
            return found
    if kind not in ("builtin", "local"):
        if sources.allow_paths and Path(model_id).is_dir():
            return Path(model_id).resolve()
        if not sources.allow_paths:
            confined.check_name(model_id, loc=MODEL)
    raise ModelNotFound(
        f"There is no model {model_id!r}. Give a hub id OWNER/NAME, or one of those here: "
        f"{', '.join(available_models(sources)) or 'none'}.",
        loc=MODEL,
    )


def inspect_config(settings: Settings) -> ConfigFacts:
    """Check the contents of a `config.json`.

    Raises:
        ConfigMismatch, InvalidCheckpoint, QuantizedCheckpoint, UnsupportedArchitecture: see each.
    """
    row = table.find_for(settings)
    for field_name in ("quantization_config", "compression_config"):
        if settings.get(field_name) or table.text_settings(row, settings).get(field_name):
            raise QuantizedCheckpoint(
                f"The config has a {field_name}: this checkpoint is quantised. {UNQUANTIZED}", loc=MODEL
            )
    table.check_settings(row, settings)
    _check_class(row, settings)
    whole, settings = settings, row.completed(table.text_settings(row, settings))
    table.check_settings(row, settings)
    layers = _whole_number(settings, row.count, MAX_LAYERS)
    _check_numbers(whole)
    for field_name in row.per_layer:
        entries = settings.get(field_name)
        if isinstance(entries, list) and len(entries) != layers:
            raise ConfigMismatch(
                f"The config has {layers} layers ({row.count}), but {len(entries)} entries in {field_name}.", loc=MODEL
            )
    _check_rules(row, settings, layers)
    return ConfigFacts(
        row=row,
        layers=layers,
        hidden_size=_whole_number(settings, row.hidden, 2**31),
        max_positions=None if row.positions is None else _whole_number(settings, row.positions, 2**31),
        appended=_whole_number(settings, table.APPENDED, MAX_LAYERS) if settings.get(table.APPENDED) else 0,
    )


def inspect_checkpoint(path: Path) -> CheckpointInfo:
    """Read and check the config of a checkpoint folder; of the weights only the headers are read.

    Raises:
        InvalidCheckpoint, PickledWeights, QuantizedCheckpoint, UnsupportedArchitecture: see each.
        AdapterOnly, ConfigMismatch, ShardMissing, IndexForbidden: each an InvalidCheckpoint.
    """
    refuse_adapter([entry.name for entry in path.iterdir()])
    if not (path / CONFIG_FILE).is_file():
        raise InvalidCheckpoint(f"There is no {CONFIG_FILE}: the folder is no checkpoint.", loc=MODEL)
    settings = read_json_object(path / CONFIG_FILE)
    facts = inspect_config(settings)
    weights = summarize(weight_files(path))
    _refuse_unmerged(weights.tensors)
    _check_layers(facts, weights)
    _check_shapes(facts, facts.row.completed(table.text_settings(facts.row, settings)), weights)
    return CheckpointInfo(
        path=path,
        model_type=facts.row.model_type,
        architecture=facts.row.model_class,
        layers=facts.layers,
        hidden_size=facts.hidden_size,
        max_positions=facts.max_positions,
        dtype=weights.dtype,
        weight_bytes=weights.total_bytes,
        predictors=any(_predicts(facts, name) for name in weights.tensors),
        text_type=facts.row.text_type,
    )


def _predicts(facts: ConfigFacts, tensor: str) -> bool:
    layer = facts.row.place(tensor)[1]
    return PREDICTOR.search(tensor) is not None or (layer is not None and layer >= facts.layers)


def refuse_adapter(names: Collection[str]) -> None:
    """Raise for a list of file names among which are an adapter's, alone or beside a model's.

    Raises:
        AdapterOnly: some are.
    """
    for found in (name for name in ADAPTER_FILES if name in names):
        beside = " To prune the model beside it without it, take the adapter's files away." * (CONFIG_FILE in names)
        raise AdapterOnly(
            f"The folder holds an adapter ({found}), which is only what was added to a model. {MERGE}{beside}",
            loc=MODEL,
        )


def _refuse_unmerged(tensors: Collection[str]) -> None:
    """Raise for the names of tensors of a model that was saved with an adapter inside it."""
    for found in (name for name in tensors if UNMERGED.search(name)):
        raise AdapterOnly(f"The weights hold an adapter that is not merged into them ({found}). {MERGE}", loc=MODEL)


def text_path(source: str, sources: Sources) -> Path:
    """File of a text source.

    Raises:
        PathForbidden, TextNotFound: as for models.
        TextTooLarge: the file is above `sources.max_text_bytes`.
    """
    path = _find_text(source, sources)
    size = path.stat().st_size
    if sources.max_text_bytes is not None and size > sources.max_text_bytes:
        raise TextTooLarge(
            f"{path.name} has {size:,} bytes; a text may have at most {sources.max_text_bytes:,} "
            "(ELDER_MAX_TEXT_BYTES). Give a part of it.",
            loc=("source",),
        )
    return path


def _find_text(source: str, sources: Sources) -> Path:
    named = dict(sources.texts).get(source)
    if named is not None and named.is_file():
        return named
    kind, _, name = source.partition(":")
    if kind in ("builtin", "local"):
        confined.check_name(name, loc=("source",))
    if kind == "builtin" and name in BUILTIN_TEXTS and (found := sources.builtin_root / BUILTIN_TEXTS[name]).is_file():
        return found
    for root in sources.text_roots if kind == "local" else ():
        below = confined.below(root, name, loc=("source",))
        if below is not None and below.is_file():
            return below
    if kind not in ("builtin", "local"):
        if sources.allow_paths and Path(source).is_file():
            return Path(source).resolve()
        if not sources.allow_paths:
            confined.check_name(source, loc=("source",))
    raise TextNotFound(
        f"There is no text {source!r}. Those here: {', '.join(available_texts(sources)) or 'none'}.", loc=("source",)
    )


def read_texts(path: Path) -> list[str]:
    """The documents of a `.txt` (one document) or `.jsonl` file (one a line, field `text`); empty ones are left out.

    Raises:
        TextFormat, TextNotUtf8, TextEmpty: the message names the file and line.
    """
    _check_format(path)
    documents = _documents(path, path.read_bytes())
    if not documents:
        raise TextEmpty(f"{path.name} holds no text.", loc=("source",))
    return documents


def check_beginning(path: Path, sequence_length: int = 1, *, beginning_bytes: int = BEGINNING_BYTES) -> int:
    """Check a text as far as its first bytes show, in little memory however large it is; `read_texts` reads it all.

    Returns the most tokens that any tokenizer can make of it.

    Raises:
        TextFormat, TextNotUtf8: the message names the file and line.
        TextEmpty, TextTooShort: the whole file has no text, or less than one sequence of `sequence_length` tokens.
    """
    _check_format(path)
    with path.open("rb") as file:
        raw = file.read(beginning_bytes + 1)
    whole = len(raw) <= beginning_bytes
    documents = _documents(path, raw if whole else _up_to_last_line(raw))
    if not whole:
        return 3 * path.stat().st_size  # a document has a byte or more
    if not documents:
        raise TextEmpty(f"{path.name} holds no text.", loc=("source",))
    size = sum(len(document.encode()) for document in documents)
    # A token is a byte or more; a document may get one more token before it and one after it.
    most_tokens = size + 2 * len(documents)
    if most_tokens < sequence_length:
        raise TextTooShort(
            f"{path.name} holds {size:,} bytes of text, too few for one sequence of {sequence_length:,} tokens; "
            "give more text, or a shorter sequence where the job has the choice.",
            loc=("source",),
        )
    return most_tokens


def default_sequence_length(max_positions: int | None) -> int:
    """Tokens a sequence where none is asked for: the model's limit, at most 2048."""
    return min(max_positions or LONGEST_DEFAULT, LONGEST_DEFAULT)


def available_models(sources: Sources) -> list[str]:
    """Ids of the local models there are, `builtin:` first."""
    return list(
        dict.fromkeys(
            f"{kind}:{config.parent.relative_to(root).as_posix()}"
            for kind, roots in (("builtin", (sources.builtin_root,)), ("local", sources.model_roots))
            for root in roots
            for pattern in (f"*/{CONFIG_FILE}", f"*/*/{CONFIG_FILE}")
            for config in sorted(root.glob(pattern))
            if config.resolve().is_relative_to(root.resolve())
        )
    )


def available_texts(sources: Sources) -> list[str]:
    """Names of the local texts there are, `builtin:` first: `builtin:manuals-calibration`, `local:notes.jsonl`, …"""
    builtin = [f"builtin:{name}" for name, path in BUILTIN_TEXTS.items() if (sources.builtin_root / path).is_file()]
    local = [
        f"local:{file.relative_to(root).as_posix()}"
        for root in sources.text_roots
        for file in sorted((*root.glob("*.txt"), *root.glob("*.jsonl")))
        if file.is_file() and file.resolve().is_relative_to(root.resolve())
    ]
    return [*builtin, *dict.fromkeys(local), *(name for name, _ in sources.texts)]


def _roots(kind: str, builtin_root: Path, local_roots: tuple[Path, ...]) -> tuple[Path, ...]:
    return {"builtin": (builtin_root,), "local": local_roots}.get(kind, ())


def _check_class(row: Architecture, settings: Settings) -> None:
    """The class as transformers calls it, or any language model: its first authors called it as they liked, such as
    MPTForCausalLM or BailingMoeV3ForCausalLM, and `model_type` says what is loaded."""
    classes = settings.get("architectures") or [row.model_class]
    endings = WRITES_TEXT + (SEES,) * (row.text_type is not None)
    names = [str(name).lower() for name in classes] if isinstance(classes, list) else []
    if not any(name == row.model_class.lower() or name.endswith(endings) for name in names):
        raise UnsupportedArchitecture(
            f"The checkpoint holds {classes}, not a language model; give a {row.model_class}.", loc=MODEL
        )


def _check_numbers(settings: Settings, where: str = "") -> None:
    """Refuse a number, in the config or a part of it, by which something absurdly large would be built."""
    for name, value in settings.items():
        for found in value if isinstance(value, list) else [value]:
            if isinstance(found, dict):
                _check_numbers(found, f"{where}{name}.")
            limit = MAX_LAYERS if COUNTS_PARTS.search(name) else MAX_NUMBER
            if isinstance(found, int) and abs(found) > limit:
                raise ConfigMismatch(f"The config's {where}{name} is {found}; expected {limit} at most.", loc=MODEL)


def _check_rules(row: Architecture, settings: Settings, layers: int) -> None:
    """Refuse settings of the rules by index that say nothing; one that is left out is asked of the loaded config."""
    for rule in (*row.rules, *row.first_authors):
        try:
            rule.after(settings, range(layers), layers)
        except (KeyError, Inexpressible):
            continue
        except (AssertionError, AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError):
            found = ", ".join(f"{name} {str(settings.get(name))[:80]}" for name in rule.names)
            raise ConfigMismatch(
                f"The config says which of its {layers} layers are of which kind by {found}, which cannot be read.",
                loc=MODEL,
            ) from None


def _whole_number(settings: Settings, name: str, limit: int) -> int:
    value = settings.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise ConfigMismatch(f"The config's {name} is {value!r}; expected a whole number from 1 to {limit}.", loc=MODEL)
    return value


def _check_layers(facts: ConfigFacts, weights: WeightSummary) -> None:
    """Compare the layer count with the names of the tensors, before anything is built by it."""
    held = {layer for layer, _ in _by_layer(facts.row, weights.tensors)}
    counts = {facts.layers, facts.layers + facts.appended}
    if held != set(range(len(held))) or len(held) not in counts:
        raise ConfigMismatch(
            f"The config has {facts.layers} layers ({facts.row.count}), but the weights are of {len(held)}; "
            "the two do not belong together.",
            loc=MODEL,
        )


def _by_layer(row: Architecture, tensors: Mapping[str, StoredTensor]) -> dict[tuple[int, str], StoredTensor]:
    """(layer, name within the layer) → tensor, of those that are in layers and are saved again."""
    placed = ((row.place(name), tensor) for name, tensor in tensors.items() if row.keeps(name))
    return {(layer, name.partition(".{}.")[2]): tensor for (name, layer), tensor in placed if layer is not None}


def _check_shapes(facts: ConfigFacts, settings: Settings, weights: WeightSummary) -> None:
    """Compare the tensors' shapes with the config, as far as the table knows, and the layers with each other."""
    row, layers = facts.row, _by_layer(facts.row, weights.tensors)
    if row.alike:
        _check_alike(facts, layers)
        _check_size(settings, "intermediate_size", row.writers[-1], layers)
    for writer in row.writers:
        _check_size(settings, row.hidden, writer, layers)
    for name, tensor in weights.tensors.items():
        if name.removesuffix(".weight").endswith(EMBEDDINGS):
            _check_shape(settings, "vocab_size", name, tensor)


def _check_size(settings: Settings, field_name: str, matrix: str, layers: dict[tuple[int, str], StoredTensor]) -> None:
    """`_check_shape` for a matrix of the first layer, if it goes by that name there."""
    if (tensor := layers.get((0, f"{matrix}.weight"))) is not None:
        _check_shape(settings, field_name, f"{matrix}.weight", tensor)


def _check_shape(settings: Settings, field_name: str, name: str, tensor: StoredTensor) -> None:
    """Check that the size that the config gives in `field_name`, if it does, is one of the tensor's."""
    size = settings.get(field_name)
    if size is not None and size not in tensor.shape:
        raise ConfigMismatch(
            f"The config's {field_name} is {size!r}, but {name} is {list(tensor.shape)}; config and weights do not "
            "belong together.",
            loc=MODEL,
        )


def _check_alike(facts: ConfigFacts, layers: dict[tuple[int, str], StoredTensor]) -> None:
    firsts: dict[str, int] = {}
    for layer, name in sorted(layers):
        firsts.setdefault(name, layer)
    for layer in range(facts.layers):
        for name, first in firsts.items():
            found, expected = layers.get((layer, name)), layers[first, name]
            if found is None or found.shape != expected.shape:
                raise ConfigMismatch(
                    f"The layers are not alike: {name} is {list(expected.shape)} in layer {first}, but "
                    f"{'missing' if found is None else list(found.shape)} in layer {layer}, as in no "
                    f"{facts.row.model_class}; copy the checkpoint again, whole.",
                    loc=MODEL,
                )


def _check_format(path: Path) -> None:
    if path.suffix not in (".txt", ".jsonl"):
        raise TextFormat(f"{path.name} is neither .txt nor .jsonl; give one of these.", loc=("source",))


def _up_to_last_line(raw: bytes) -> bytes:
    """Without what follows the last line end, which is cut off somewhere, perhaps within a character."""
    return raw[: raw.rfind(b"\n") + 1]


def _documents(path: Path, raw: bytes) -> list[str]:
    """The documents that are more than white space."""
    content = _decode(path.name, raw)
    documents = [content] if path.suffix == ".txt" else _json_lines(path.name, content)
    return [document for document in documents if document.strip()]


def _decode(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise TextNotUtf8(
            f"{name}, line {line}: not UTF-8 ({error.reason} at byte {error.start}). Convert the file to UTF-8.",
            loc=("source",),
        ) from error


def _json_lines(name: str, content: str) -> Iterator[str]:
    # not splitlines(): JSON strings may hold U+2028 and others that it splits at
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextFormat(f"{name}, line {number}: not JSON ({error}).", loc=("source",)) from error
        if not isinstance(record, dict) or not isinstance(text := record.get("text"), str):
            raise TextFormat(
                f'{name}, line {number}: no field \'text\' with a string; write {{"text": "…"}}.', loc=("source",)
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextNotUtf8(
                f"{name}, line {number}: the text holds half of a surrogate pair, which UTF-8 cannot.", loc=("source",)
            ) from error
        yield text
