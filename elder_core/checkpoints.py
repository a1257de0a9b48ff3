"""All disk access for checkpoints: find, load, save."""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from elder_core.agreement import as_invalid_checkpoint, check_agreement
from elder_core.architectures import table
from elder_core.disk import file_sha256, sync
from elder_core.errors import InvalidCheckpoint, ModelNotFound, NonFiniteWeights, OutputExists, OutputNotWritable
from elder_core.hub import NAMED_TEMPLATES, PROCESSOR_PATTERNS, TOKENIZER_PATTERNS, fetch
from elder_core.inspection import CONFIG_FILE, CheckpointInfo, Sources, inspect_checkpoint, is_hub_id, local_model
from elder_core.manifest import Provenance, verify, write_manifest
from elder_core.model_card import CARD_FILE, model_card
from elder_core.spec import ModelRef, Precision
from elder_core.surgery import row_of
from elder_core.weight_files import INDEX_FILE, checkpoint_bytes, read_json_object, weight_files

__all__ = [
    "LoadedModel",
    "NewFolder",
    "Provenance",
    "Resolved",
    "check_output",
    "checkpoint_bytes",
    "created",
    "load",
    "load_tokenizer",
    "resolve",
    "save",
    "tokenizer_hash",
    "verify",
]

GENERATION_FILE = "generation_config.json"
FOREIGN_CODE = "auto_map"  # the classes, in Python files beside a config, by which remote code reads it
LICENCE_PATTERNS = ("LICENSE*", "NOTICE*")
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Resolved:
    """A checkpoint folder. `revision` is a commit for hub models, a hash of the contents for folders."""

    path: Path
    revision: str
    info: CheckpointInfo


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to compute, in eval mode, with its tokenizer. `source.info.dtype` is what it is stored in."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Resolved


def resolve(model: ModelRef, sources: Sources) -> Resolved:
    """Find a model, download it if it is on the hub, and check it without loading it.

    Raises:
        ModelError: it cannot be used; the subclass and message say why.
        HubUnreachable: it is on the hub, which does not answer.
    """
    is_path = sources.allow_paths and Path(model.id).is_dir()  # before the hub, as transformers has it
    if is_hub_id(model.id) and not is_path:
        download = fetch(model.id, model.revision, sources.hub_cache)
        return Resolved(download.path, download.commit, checked(download.path))
    if model.revision is not None:
        raise ModelNotFound(
            f"{model.id} is a local model, which has no revisions; leave revision out.", loc=("model", "revision")
        )
    path = local_model(model.id, sources)
    info = checked(path)  # before the weights are read for their hash
    return Resolved(path, content_hash(path), info)


def checked(path: Path) -> CheckpointInfo:
    """What `load` and cutting need to know of a checkpoint folder, once config and weights are seen to agree.

    Raises:
        InvalidCheckpoint, UnsupportedArchitecture: see inspect_checkpoint and check_agreement.
    """
    info = inspect_checkpoint(path)
    check_agreement(info)
    return info


def content_hash(path: Path) -> str:
    """`sha256:…` over config, weights and tokenizer of a checkpoint folder; other files do not count."""
    matched = [file for file in path.iterdir() if _matches(file.name, TOKENIZER_PATTERNS)]
    named = {path / CONFIG_FILE, path / INDEX_FILE, path / GENERATION_FILE}
    files = {*matched, *path.glob(NAMED_TEMPLATES), *weight_files(path), *named}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def tokenizer_hash(resolved: Resolved) -> str:
    """Hex SHA-256 over what decides how a checkpoint's tokenizer cuts text."""
    digest = hashlib.sha256(resolved.info.model_type.encode())
    for file in sorted(resolved.path.iterdir()):
        if file.is_file() and _matches(file.name, TOKENIZER_PATTERNS):
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()


def load(resolved: Resolved, device: torch.device, *, largest_id: int | None = None) -> LoadedModel:
    """Load model and tokenizer: float32 on a CPU, elsewhere the number type that most of the weights are stored in.

    So none of these is rounded on its way through: what is exported in that type is what was there. `largest_id` is the
    largest token id that the model is going to read; None means any that its tokenizer knows. Some released models'
    tokenizers know tokens, such as those of images, that the model has no embedding of.

    Raises:
        InvalidCheckpoint: config, weights and tokenizer do not belong together.
        NonFiniteWeights: a weight is NaN or infinite.
    """
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, resolved.info.dtype)
    with as_invalid_checkpoint("The model cannot be loaded"):
        automatic = AutoModelForImageTextToText if resolved.info.text_type else AutoModelForCausalLM
        model = automatic.from_pretrained(
            resolved.path, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    _check_finite(model)
    tokenizer = load_tokenizer(resolved.path)
    rows = model.get_input_embeddings().num_embeddings
    largest = len(tokenizer) - 1 if largest_id is None else largest_id
    if largest >= rows:
        raise InvalidCheckpoint(
            f"The tokenizer makes token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), and the model has "
            f"embeddings for tokens 0 to {rows - 1} only; leave it out of texts and prompts, or resize the embeddings.",
            loc=("model", "id"),
        )
    return LoadedModel(model.to(device).eval(), tokenizer, resolved)


def _check_finite(model: PreTrainedModel) -> None:
    for name, tensor in model.state_dict().items():  # saved buffers, such as a router's correction, count as well
        if tensor.is_floating_point():
            check_finite(name, tensor)


def check_finite(name: str, numbers: torch.Tensor) -> None:
    """Refuse weights, of the tensor `name`, with which nothing can be computed.

    Raises:
        NonFiniteWeights: one of `numbers` is NaN or infinite.
    """
    if numbers.numel() and not torch.stack(numbers.aminmax()).isfinite().all():  # needs no memory beside them
        raise NonFiniteWeights(
            f"{name} holds NaN or an infinite number, so the model computes nothing; give a checkpoint from before "
            "its training went wrong, or download it again.",
            loc=("model", "id"),
        )


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        InvalidCheckpoint: there is none that knows any text.
    """
    with as_invalid_checkpoint("The tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    # without its files transformers makes one up that knows no text
    if not tokenizer("tokenizer", add_special_tokens=False)["input_ids"]:
        raise InvalidCheckpoint(
            "The checkpoint has no usable tokenizer; add the tokenizer files that belong to the model.",
            loc=("model", "id"),
        )
    return tokenizer


def check_output(model_dir: Path) -> None:
    """Check that a checkpoint may be written to `model_dir`, before the work is done.

    Raises:
        OutputExists: something is there already.
        OutputNotWritable: no folder can be made there.
    """
    try:
        if model_dir.is_symlink() or (model_dir.exists() and (not model_dir.is_dir() or any(model_dir.iterdir()))):
            raise OutputExists(f"{model_dir} exists and is not empty; give another folder or empty this one.")
        if model_dir.is_mount():
            raise OutputNotWritable(f"{model_dir} is a disk's own folder and cannot be replaced; give one inside it.")
        there = next(folder for folder in model_dir.absolute().parents if os.path.lexists(folder))
        with tempfile.TemporaryDirectory(prefix=f".{model_dir.name}.", suffix=UNFINISHED, dir=there):
            pass
    except OSError as error:
        raise OutputNotWritable(
            f"{model_dir} cannot be written, nor a folder beside it ({error.strerror}); give another folder."
        ) from error


@dataclass(frozen=True)
class NewFolder:
    """A checkpoint folder being written; `hashes` is name → hex SHA-256 of files whose hash is known already."""

    path: Path
    hashes: dict[str, str] = field(default_factory=dict)


@contextmanager
def created(model_dir: Path, *, source: Path, provenance: Provenance) -> Iterator[NewFolder]:
    """A folder to write config and weights to, which becomes the checkpoint `model_dir`, whole or not at all.

    When the context is left it gets the tokenizer with its chat templates, generation config and licence files of the
    folder `source` as they are, a model card and `elder.json`; it is `model_dir` once the disk holds all of it.

    Raises:
        OutputExists, OutputNotWritable: see check_output.
    """
    check_output(model_dir)
    with _appearing_whole(model_dir) as folder:
        new = NewFolder(folder)
        yield new
        _copy_companions(source, folder)
        (folder / CARD_FILE).write_text(model_card(provenance, source), encoding="utf-8")
        write_manifest(folder, provenance, new.hashes)


def save(
    model: PreTrainedModel,
    model_dir: Path,
    *,
    source: Path,
    provenance: Provenance,
    dtype: Precision,
    max_shard_bytes: int,
) -> None:
    """Write an ordinary checkpoint folder; see `created`.

    `Precision.SAME` keeps the number type of the source's weights, whatever the model was computed in.

    Raises:
        OutputExists, OutputNotWritable: see check_output.
        InvalidCheckpoint: a weight is too large for `dtype`.
    """
    with created(model_dir, source=source, provenance=provenance) as new:
        stored = inspect_checkpoint(source).dtype if dtype is Precision.SAME else dtype.value
        _save_model(model, new.path, getattr(torch, stored), max_shard_bytes)


def _save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    model.save_pretrained(folder, state_dict=_cast(model, dtype), max_shard_size=max_shard_bytes)
    model.config.dtype = model.dtype  # save_pretrained has made it a word, and written that: what the model computes in
    save_config(copy.deepcopy(model.config), folder, dtype)


def save_config(config: PreTrainedConfig, folder: Path, dtype: torch.dtype | str) -> None:
    """Write `config`, and the configs that are parts of it, as that of weights in the number type `dtype`."""
    for part in filter(None, (config, *(getattr(config, name) for name in config.sub_configs))):
        part.dtype = dtype
        vars(part).pop(FOREIGN_CODE, None)
    config.save_pretrained(folder)
    _tell_old_readers(folder / CONFIG_FILE)


def _tell_old_readers(file: Path) -> None:
    """Add to a config.json what its authors' own code needs and transformers leaves out."""
    settings = read_json_object(file)
    row = table.find_for(settings)
    part = table.text_settings(row, settings)
    if told := row.for_old_readers(part):
        whole = {**settings, table.TEXT: {**part, **told}} if row.text_type else {**settings, **told}
        file.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model's tensors on the CPU, floats as `dtype` unless float32 is a must; what shares memory still does."""
    row = row_of(model)
    shared: dict[tuple[int, torch.Size, tuple[int, ...]], torch.Tensor] = {}
    found = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in shared:
            wanted = torch.float32 if row.keeps_float32(name) else dtype
            shared[key] = tensor.to("cpu", wanted if tensor.is_floating_point() else None)
            check_range(name, shared[key])
        found[name] = shared[key]
    return found


def check_range(name: str, numbers: torch.Tensor) -> None:
    """Refuse weights, of the tensor `name`, that their new number type made infinite.

    Raises:
        InvalidCheckpoint: one of `numbers` is infinite.
    """
    if numbers.is_floating_point() and numbers.isinf().any():
        raise InvalidCheckpoint(
            f"{name} holds a number too large for {numbers.dtype}; choose bfloat16 or float32.",
            loc=("output", "dtype"),
        )


def _copy_companions(source: Path, folder: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.is_file() and _matches(
            file.name, (*TOKENIZER_PATTERNS, *PROCESSOR_PATTERNS, *LICENCE_PATTERNS, GENERATION_FILE)
        ):
            shutil.copyfile(file, folder / file.name)
            if _matches(file.name, ("tokenizer_config.json", *PROCESSOR_PATTERNS)):
                _forget_foreign_code(folder / file.name)
    for file in sorted(source.glob(NAMED_TEMPLATES)):
        copy_to = folder / file.relative_to(source)
        copy_to.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy_to)


def _forget_foreign_code(file: Path) -> None:
    """Take the names of Python files out of a copied JSON file: they are not copied, and nothing needs them."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # what cannot be read names none, and stays as it is
        return
    if isinstance(content, dict) and content.pop(FOREIGN_CODE, None) is not None:
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


@contextmanager
def _appearing_whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write to, which takes its place at the end; on an error nothing is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, however it does
        yield folder
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync(path)
        try:
            folder.rename(target)  # replaces an empty folder, refuses any other
        except OSError as error:
            raise OutputExists(f"{target} was filled by somebody else meanwhile; give another folder.") from error
        sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(target: Path) -> None:
    """Remove what runs that were killed have left of a `target` that they were writing."""
    name = re.compile(re.escape(f".{target.name}.") + r"\w{8}" + re.escape(UNFINISHED))
    for left in target.parent.iterdir():
        if name.fullmatch(left.name):
            with suppress(OSError):  # the run lives, or somebody else was faster
                lock = os.open(left, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
                finally:
                    os.close(lock)
