"""Whether the config and the weights of a checkpoint belong together: by names and shapes, before a weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from elder_core.errors import ConfigMismatch, InvalidCheckpoint
from elder_core.inspection import MODEL, CheckpointInfo
from elder_core.weight_files import FLOAT_TYPES, read_header, weight_files

META = torch.device("meta")  # tensors there have a shape and take no memory
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError, SafetensorError)


def check_agreement(info: CheckpointInfo) -> None:
    """Refuse weights that do not fit the config: transformers would fill the gaps with random numbers.

    The model that the config describes is built without memory, and "loaded" from the headers of the files as
    transformers loads it: with its tied weights, old names, and experts that are put together.

    Raises:
        ConfigMismatch: a tensor is missing, of another shape, or not of this model.
        InvalidCheckpoint: the config cannot be used.
    """
    # on that device a RuntimeError is never for want of memory, but for sizes that no tensor can have
    with as_invalid_checkpoint("The model cannot be loaded", (*LOADING_ERRORS, RuntimeError)), _quiet():
        loading = _loaded(info)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = sorted(str(key) for key in loading[kind])
        if kind == "unexpected_keys":
            found = [key for key in found if info.row.keeps(key) and (info.row.place(key)[1] or 0) < info.layers]
        if found:
            raise ConfigMismatch(
                f"Config and weights do not belong together: {len(found)} {kind.replace('_', ' ')}, such as "
                f"{found[0]}.",
                loc=MODEL,
            )


def _loaded(info: CheckpointInfo) -> Mapping[str, Any]:
    """What `from_pretrained` reports of the files, by the steps that it takes itself."""
    config = AutoConfig.from_pretrained(info.path, local_files_only=True, trust_remote_code=False)
    model_class: type[PreTrainedModel] = getattr(transformers, info.row.model_class)
    with ExitStack() as contexts:
        for context in model_class.get_init_context(torch.float32, False, False, False):
            contexts.enter_context(context)
        model = model_class(config)
    how = LoadStateDictConfig(
        ignore_mismatched_sizes=True,  # only so that they are reported
        device_map={"": META},
        dtype=torch.float32,
        weight_mapping=get_model_conversion_mapping(model),
    )
    loading, _ = model_class._load_pretrained_model(model, _stored(info), None, how)
    return model_class._finalize_model_loading(model, how, loading).to_dict()  # type: ignore[no-any-return]


def _stored(info: CheckpointInfo) -> dict[str, torch.Tensor]:
    """Name → a tensor of that shape, of all that the files hold."""
    return {
        name: torch.empty(tensor.shape, dtype=getattr(torch, FLOAT_TYPES.get(tensor.dtype, "int64")), device=META)
        for file in weight_files(info.path)
        for name, tensor in read_header(file).items()
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report, and its bars."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def as_invalid_checkpoint(what: str, errors: tuple[type[Exception], ...] = LOADING_ERRORS) -> Iterator[None]:
    """Turn what transformers raises for a checkpoint that it cannot use, `errors`, into one that begins `what`.

    Raises:
        InvalidCheckpoint: instead of it.
    """
    try:
        yield
    except errors as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidCheckpoint(f"{what}: {reason}", loc=MODEL) from error
