"""Every error that the library raises on purpose.

    ElderError                          code, retryable, loc
    ├── InvalidInput                    the caller can mend it
    │   ├── UnknownMethod               unknown_method
    │   ├── TargetError
    │   │   ├── InvalidRatio            invalid_ratio
    │   │   ├── AmbiguousTarget         ambiguous_target
    │   │   ├── NoLayerLeft             no_layer_left
    │   │   ├── LayersOutOfRange        layers_out_of_range
    │   │   ├── DuplicateLayers         duplicate_layers
    │   │   ├── LayersNotNamed          layers_not_named
    │   │   ├── TargetUnreachable       target_unreachable
    │   │   └── TargetAlreadyMet        target_already_met
    │   ├── ModelError
    │   │   ├── ModelNotFound           model_not_found
    │   │   ├── PathForbidden           path_forbidden
    │   │   ├── InvalidCheckpoint       invalid_checkpoint
    │   │   │   ├── ConfigMismatch      config_mismatch
    │   │   │   ├── ShardMissing        shard_missing
    │   │   │   ├── IndexForbidden      index_forbidden
    │   │   │   ├── NonFiniteWeights    non_finite_weights
    │   │   │   └── AdapterOnly         adapter_only
    │   │   ├── PickledWeights          pickled_weights
    │   │   ├── QuantizedCheckpoint     quantized_checkpoint
    │   │   └── UnsupportedArchitecture unsupported_architecture
    │   └── TextError
    │       ├── TextNotFound            text_not_found
    │       ├── TextFormat              text_format
    │       ├── TextNotUtf8             text_not_utf8
    │       ├── TextEmpty               text_empty
    │       ├── TextTooLarge            text_too_large
    │       ├── TextTooShort            text_too_short
    │       ├── CalibrationTooSmall     calibration_too_small
    │       ├── TextOverlap             text_overlap
    │       ├── SequenceTooLong         sequence_too_long
    │       └── PromptEmpty             prompt_empty
    ├── HubUnreachable                  hub_unreachable (retryable)
    ├── NonFiniteLoss                   non_finite_loss
    ├── OutOfMemory                     out_of_memory
    ├── MeasurementFailed               measurement_failed (retryable)
    ├── OutputExists                    output_exists
    ├── OutputNotWritable               output_not_writable
    └── DeviceUnavailable               device_unavailable

`Cancelled` is no error: it ends a run that somebody asked to end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

MOST_SHOWN = 80  # characters of a value in a message


class ElderError(Exception):
    """Base of all errors raised on purpose.

    `code` is stable and part of the API. `loc` names the field of the job spec that is at fault, as the caller
    wrote it, or is empty. `retryable` says whether the same job may succeed when tried again.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, loc: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc


class InvalidInput(ElderError):
    """The request itself is at fault; sending it again changes nothing."""


class UnknownMethod(InvalidInput):
    """No method of that name is registered."""

    code = "unknown_method"


class TargetError(InvalidInput):
    """What to remove is not well defined."""


class InvalidRatio(TargetError):
    """The ratio is not strictly between 0 and 1, or removes less than one layer."""

    code = "invalid_ratio"


class AmbiguousTarget(TargetError):
    """None, or more than one, of `ratio`, `layers_to_remove`, `layers` and `target` is given, or of its limits."""

    code = "ambiguous_target"


class NoLayerLeft(TargetError):
    """The target would remove every layer."""

    code = "no_layer_left"


class LayersOutOfRange(TargetError):
    """A named layer does not exist in the model, or the number of layers to remove is below one."""

    code = "layers_out_of_range"


class DuplicateLayers(TargetError):
    """A layer is named twice."""

    code = "duplicate_layers"


class LayersNotNamed(TargetError):
    """The method removes only layers that the job names in `layers`, and the job says something else."""

    code = "layers_not_named"


class TargetUnreachable(TargetError):
    """No number of layers keeps to the target; the message names the nearest that can be had."""

    code = "target_unreachable"


class TargetAlreadyMet(TargetError):
    """The model keeps to the target as it is, so there is nothing to remove."""

    code = "target_already_met"


class ModelError(InvalidInput):
    """The model cannot be used."""


class ModelNotFound(ModelError):
    """No model of that name under the configured roots or on the hub."""

    code = "model_not_found"


class PathForbidden(ModelError):
    """The name leads outside the configured roots (`..`, an absolute path, a symbolic link)."""

    code = "path_forbidden"


class InvalidCheckpoint(ModelError):
    """The folder is not a readable checkpoint: a file is missing or disagrees with another."""

    code = "invalid_checkpoint"


class ConfigMismatch(InvalidCheckpoint):
    """The config tells of other tensors, in number or shape, than there are; or of an impossible number."""

    code = "config_mismatch"


class ShardMissing(InvalidCheckpoint):
    """The index names a weight file that is not there."""

    code = "shard_missing"


class IndexForbidden(InvalidCheckpoint):
    """The index names something else than a safetensors file in its own folder."""

    code = "index_forbidden"


class NonFiniteWeights(InvalidCheckpoint):
    """A weight is NaN or infinite."""

    code = "non_finite_weights"


class AdapterOnly(InvalidCheckpoint):
    """The folder holds an adapter (LoRA): alone, beside a model, or within its weights but not merged."""

    code = "adapter_only"


class PickledWeights(ModelError):
    """The checkpoint holds only pickled weights, which can run code when they are loaded."""

    code = "pickled_weights"


class QuantizedCheckpoint(ModelError):
    """The checkpoint is quantised: its layers cannot be trained or measured as they are."""

    code = "quantized_checkpoint"


class UnsupportedArchitecture(ModelError):
    """The architecture is not in the table of supported ones, or uses a feature that removal would break."""

    code = "unsupported_architecture"


class TextError(InvalidInput):
    """The calibration or evaluation text cannot be used."""


class TextNotFound(TextError):
    """No such built-in set or file."""

    code = "text_not_found"


class TextFormat(TextError):
    """Neither `.txt` nor `.jsonl` with a `text` field on every line."""

    code = "text_format"


class TextNotUtf8(TextError):
    """The file is not UTF-8."""

    code = "text_not_utf8"


class TextEmpty(TextError):
    """The file holds no text."""

    code = "text_empty"


class TextTooLarge(TextError):
    """The file is larger than the service takes."""

    code = "text_too_large"


class TextTooShort(TextError):
    """The text is shorter than one sequence."""

    code = "text_too_short"


class CalibrationTooSmall(TextError):
    """The budget would go through the calibration text more often than does any good."""

    code = "calibration_too_small"


class TextOverlap(TextError):
    """More than a trace of the evaluation text is calibration text too."""

    code = "text_overlap"


class SequenceTooLong(TextError):
    """The sequence length is above what the model was built for."""

    code = "sequence_too_long"


class PromptEmpty(TextError):
    """A prompt holds nothing that the model's tokenizer makes a token of."""

    code = "prompt_empty"


class HubUnreachable(ElderError):
    """The model hub does not answer, or not now."""

    code = "hub_unreachable"
    retryable = True


class NonFiniteLoss(ElderError):
    """The loss became NaN or infinite while training."""

    code = "non_finite_loss"


class OutOfMemory(ElderError):
    """The device, or the machine, has too little memory for this job."""

    code = "out_of_memory"
    REMEDY = (
        "Lower method.batch_size and, where the method has them, method.gate_batch_size, method.search_samples, "
        "method.search_batch_size and method.scoring_batch_size, then calibration.sequence_length; where all weights "
        "are trained, give method.weights as lora; or choose a device with more memory."
    )


class MeasurementFailed(ElderError):
    """The process that measures a saved model's memory failed; the message holds its last lines."""

    code = "measurement_failed"
    retryable = True


class OutputExists(ElderError):
    """The output folder is not empty, or holds a sweep of something else."""

    code = "output_exists"


class OutputNotWritable(ElderError):
    """No output folder can be made where it was asked for."""

    code = "output_not_writable"


class DeviceUnavailable(ElderError):
    """The device that was asked for is not there."""

    code = "device_unavailable"


class Cancelled(Exception):  # an ending, not an error
    """Raised inside a run when its caller asked it to stop."""


def in_words(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as words, without a full stop, that name the value and what to do."""
    kind, message, given = error["type"], str(error["msg"]).removeprefix("Value error, "), error["input"]
    match kind:
        case "missing":
            return message
        case "extra_forbidden":
            return "There is no such field; correct its name or leave it out"
        case "union_tag_not_found":
            return f"Its {error['ctx']['discriminator']!s} is missing; give it"
        case "model_type" | "model_attributes_type":
            return f"Give an object of named fields; found {_shown(given)}"
        case "tuple_type":
            return f"Give a list; found {_shown(given)}"
    return f"{message}; found {_shown(given)}" if given is None or isinstance(given, str | int | float) else message


def _shown(given: object) -> str:
    found = json.dumps(given, ensure_ascii=False, default=repr)
    found = found.encode(errors="backslashreplace").decode()  # half a surrogate pair could not be sent
    return found if len(found) <= MOST_SHOWN else f"{found[: MOST_SHOWN - 1]}…"
