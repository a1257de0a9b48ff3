"""What a job is and what it reports: the types that every process shares. Imports no torch.

Fields are declared here once, as the parameters of the methods are in elder_core.parameters.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from elder_core.errors import (
    AmbiguousTarget,
    DuplicateLayers,
    InvalidRatio,
    LayersNotNamed,
    LayersOutOfRange,
    NoLayerLeft,
)
from elder_core.parameters import CutParameters, ElderParameters, MethodParameters, Strict
from elder_core.target import Target


class Stage(StrEnum):
    """Where a run is. The order is the order of the pipeline."""

    RESOLVING = "resolving"
    CALIBRATING = "calibrating"
    LOADING = "loading"
    SELECTING = "selecting"
    REGULARIZING = "regularizing"
    PRUNING = "pruning"
    EXPORTING = "exporting"
    EVALUATING = "evaluating"


class Precision(StrEnum):
    SAME = "same"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class ModelRef(Strict):
    """Which model to prune."""

    id: str = Field(
        min_length=1,
        max_length=512,
        examples=["builtin:manuals-16l", "HuggingFaceTB/SmolLM2-135M", "local:my-model"],
        description="`builtin:NAME`, `local:NAME` below a configured root, or a hub id `OWNER/NAME`.",
    )
    revision: str | None = Field(
        default=None,
        max_length=200,
        description="Branch, tag or commit of a hub model; resolved to a commit and recorded.",
    )


class CalibrationSpec(Strict):
    """The text that layer weights and stage 2 are learnt on."""

    source: str = Field(
        default="builtin:manuals-calibration",
        min_length=1,
        max_length=512,
        description="`builtin:NAME`, or `local:NAME` below a configured root.",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Sequences to use; null uses all there are.",
    )
    sequence_length: int | None = Field(
        default=None, ge=8, le=1_048_576, description="Tokens a sequence; null takes the model's limit, at most 2048."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Order of the sequences.")


# A model reads the end of a longer one only.
Prompt = Annotated[str, Field(min_length=1, max_length=10_000)]


class EvaluationSpec(Strict):
    """What is measured before and after."""

    source: str = Field(
        default="builtin:manuals-test",
        min_length=1,
        max_length=512,
        description="Text for perplexity, in the same forms as the calibration source, and disjoint from it.",
    )
    samples: int | None = Field(
        default=128, ge=1, description="Sequences to use, spread evenly over the whole text; null uses all there are."
    )
    allow_overlap: bool = Field(
        default=False,
        description="Measure on text that calibration has too; the report is then marked, since its figures are better "
        "than on unseen text. Otherwise equal documents are left out, or refused above 1 % of the bytes, and text with "
        "more than 5 % of its words in passages of 32 words that calibration has word for word is refused.",
    )
    speed: bool = Field(default=True, description="Measure prefill and decoding speed and peak memory.")
    generation: bool = Field(default=True, description="Generate three texts side by side.")
    prompts: tuple[Prompt, ...] | None = Field(
        default=None, max_length=8, description="Prompts to generate from; null takes three from the text."
    )


class OutputSpec(Strict):
    """How the result is written."""

    dtype: Precision = Field(default=Precision.SAME, description="Number type of the saved weights.")
    max_shard_bytes: int = Field(
        default=5_000_000_000, ge=1_000_000, description="Largest size of one safetensors file."
    )


REMOVALS = ("ratio", "layers_to_remove", "layers", "target")


class JobSpec(Strict):
    """One pruning job, whole: with the same spec, seed and machine the result has the same bytes on CPU.

    Where time decides (a budget in seconds, a target of speed) it has only where the machine takes the same time too.
    """

    model: ModelRef
    method: MethodParameters = Field(default_factory=ElderParameters)
    ratio: float | None = Field(
        default=None,
        description="Share of the layers to remove, rounded to whole layers; halves go to the even number.",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    layers_to_remove: int | None = Field(default=None, description="How many layers to remove.")
    layers: tuple[int, ...] | None = Field(
        default=None, description="Exactly these layers, counted from 0; selection is skipped."
    )
    target: Target | None = Field(default=None, description="A limit to keep to; the number of layers is found.")
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    output: OutputSpec = OutputSpec()
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything random.")

    def _given(self) -> tuple[str, ...]:
        return tuple(name for name in REMOVALS if getattr(self, name) is not None)

    @property
    def method_as_run(self) -> MethodParameters:
        """`method`, but with its whole budget for training where `layers` leaves nothing to learn before it."""
        if self.layers is None or not isinstance(self.method, ElderParameters):
            return self.method
        return self.method.model_copy(update={"gate_fraction": None})

    def check_target(self) -> None:
        """Check what can be known without the model.

        Raises:
            AmbiguousTarget: none or several of ratio, layers_to_remove, layers and target are given, or of the limits
                in target.
            InvalidRatio, LayersOutOfRange, DuplicateLayers: the one given is wrong in itself.
            LayersNotNamed: the method needs layers, and another one is given.
        """
        given = self._given()
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise AmbiguousTarget(f"Give exactly one of ratio, layers_to_remove, layers and target; found {found}.")
        if isinstance(self.method, CutParameters) and self.layers is None:
            raise LayersNotNamed(
                f"The method cut chooses no layers: name them in layers, such as [3, 7], instead of {given[0]}, or "
                "take a method that chooses.",
                loc=("method", "name"),
            )
        if self.target is not None:
            self.target.check()
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise InvalidRatio(
                f"ratio is {self.ratio:g}; give a number above 0 and below 1, such as 0.25.", loc=("ratio",)
            )
        if self.layers_to_remove is not None and self.layers_to_remove < 1:
            raise LayersOutOfRange(
                f"layers_to_remove is {self.layers_to_remove}; give 1 or more.", loc=("layers_to_remove",)
            )
        if self.layers is not None:
            if not self.layers:
                raise LayersOutOfRange("layers is empty; name at least one layer.", loc=("layers",))
            seen: set[int] = set()
            for position, layer in enumerate(self.layers):
                if layer in seen:
                    raise DuplicateLayers(f"Layer {layer} is named twice in layers.", loc=("layers", position))
                seen.add(layer)

    def count_to_remove(self, num_layers: int) -> int:
        """Number of layers that this job, which names no `target`, removes from a model of `num_layers`.

        Raises:
            TargetError: the target does not fit the model; the subclass and message say how.
        """
        self.check_target()
        assert self.target is None  # elder_core.sizes.count_to_remove
        if self.layers is not None:
            for position, layer in enumerate(self.layers):
                if not 0 <= layer < num_layers:
                    raise LayersOutOfRange(
                        f"Layer {layer} does not exist: the model has layers 0 to {num_layers - 1}.",
                        loc=("layers", position),
                    )
            count = len(self.layers)
        elif self.layers_to_remove is not None:
            count = self.layers_to_remove
        else:
            assert self.ratio is not None  # check_target
            count = round(self.ratio * num_layers)
            if count < 1:
                raise InvalidRatio(
                    f"ratio {self.ratio:g} of {num_layers} layers is less than one layer; {1 / num_layers:.4g} is one.",
                    loc=("ratio",),
                )
        if count >= num_layers:
            most = f"remove at most {num_layers - 1}"
            if self.ratio is not None:
                most += f", which is ratio {1 - 1 / num_layers:.4g}; found {self.ratio:g}"
            raise NoLayerLeft(
                f"Removing {count} of {num_layers} layers leaves none; {most}.",
                loc=self._given()[:1],
            )
        return count


# What a run reports ---------------------------------------------------------------------------------------------


class Progress(Strict):
    """One step of a run: `step` of `total` within `stage`, with the metrics known at that moment."""

    stage: Stage
    step: int = Field(ge=0)
    total: int = Field(ge=0)
    metrics: dict[str, float] = Field(default_factory=dict)


class Measurement(Strict):
    """One model measured. Speed and memory are null where they were not asked for.

    Latencies are medians. Where a dense and a pruned model were timed in turns, the pruned one's are the dense one's
    times the median ratio of a step's time to that of the same step a moment before or after.
    """

    layers: int
    parameters: int
    bytes_on_disk: int
    perplexity: float
    bits_per_byte: float
    prefill_tokens_per_second: float | None = None
    prefill_latency_seconds: float | None = Field(default=None, description="Time to the first token.")
    decode_tokens_per_second: float | None = None
    decode_latency_seconds: float | None = Field(default=None, description="Time for one further token.")
    peak_memory_bytes: int | None = None


class Ideal(Strict):
    """Speed-up if the removed layers cost nothing and all else stayed: dense time / (dense time − theirs)."""

    prefill_speedup: float
    decode_speedup: float


class Evaluation(Strict):
    """Before and after, on text that calibration never saw. `ratios` holds after / before by field name."""

    source: str
    overlapping_documents: int = Field(
        default=0,
        description="How many documents measured on calibration did see; above 0 the figures are flattered.",
    )
    copied_share: float = Field(
        default=0.0,
        description="Share of the words measured on that stand in passages which calibration did see, if it is above "
        "5 % and whole documents are not counted instead; above 0 the figures are flattered.",
    )
    sequences: int
    sequence_length: int
    tokens: int
    before: Measurement
    after: Measurement
    ratios: dict[str, float]
    ideal: Ideal | None = None

    @property
    def flattered(self) -> bool:
        """Whether calibration saw text that is measured on."""
        return bool(self.overlapping_documents or self.copied_share)


class Generation(Strict):
    """The same prompt continued by both models, greedily."""

    prompt: str
    before: str
    after: str


class LayerReport(Strict):
    """One layer of the unpruned model. `weight`: what selection learnt or measured; small means removable."""

    index: int
    weight: float | None
    removed: bool
    new_index: int | None = Field(description="Its place in the pruned model; null if removed.")


class DepthTrial(Strict):
    """A number of layers that was tried. `perplexity` is null where the model without them predicts no numbers."""

    layers: int
    perplexity: float | None


class Expected(Strict):
    """What removing the chosen layers costs and gains, as far as it is known before any weight has moved."""

    layers: int = Field(description="How many are removed.")
    perplexity_before: float
    perplexity_after: float | None = Field(
        description="Without the chosen layers, with what the method does for them at once, and before training, "
        "which lowers it."
    )
    sequences: int = Field(description="Calibration sequences that both perplexities are measured on.")
    kept_apart: bool = Field(description="Whether nothing was learnt from these sequences.")
    decode_speedup: float | None = Field(
        description="Ideal, by the share of a step that layers take in the unpruned model; null if not measured."
    )
    bytes_on_disk: int = Field(description="Of the saved weights, worked out from those of the source.")
    tried: tuple[DepthTrial, ...] = Field(default=(), description="Every depth whose perplexity was measured.")


class TrainingPoint(Strict):
    """One update of stage 2. `penalty` is Σ over the chosen layers of the norm of Δ, before λ2."""

    update: int
    loss: float
    penalty: float | None = None
    gate: float | None = Field(default=None, description="Weight of the chosen layers at this update.")
    learning_rate: float


class GatePoint(Strict):
    """The layer weights after one update of stage 1, in the order of the layers."""

    round: int
    step: int
    loss: float
    weights: tuple[float, ...]


class Environment(Strict):
    """Where the numbers come from; `arithmetic` is that of learning, null in reports of before 0.3.1."""

    device: str
    cpu: str
    threads: int
    arithmetic: str | None = None
    platform: str
    versions: dict[str, str]


class ModelSummary(Strict):
    """The model that was pruned. `revision` is a commit for hub models, a content hash for folders."""

    id: str
    revision: str
    architecture: str
    layers: int
    parameters: int
    dtype: str


class Report(Strict):
    """Everything a run measured. Version 1 of the schema."""

    schema_version: Literal[1] = 1
    created_at: datetime
    spec: JobSpec
    model: ModelSummary
    removed_layers: tuple[int, ...]
    layers: tuple[LayerReport, ...]
    weight_label: str = Field(description="What a layer's weight is, in a few words, for people.")
    expected: Expected | None = Field(default=None, description="Where the job named a target: what it was met by.")
    gate_path: tuple[GatePoint, ...] = Field(default=(), description="At most 1,000 points, evenly spread.")
    training: tuple[TrainingPoint, ...] = Field(default=(), description="At most 1,000 points, evenly spread.")
    evaluation: Evaluation
    generations: tuple[Generation, ...] = ()
    stage_seconds: dict[Stage, float]
    resumptions: int = Field(default=0, description="How often the run was ended and went on where it was.")
    peak_memory_bytes: int = Field(description="Of the whole run.")
    environment: Environment
    warnings: tuple[str, ...] = ()
