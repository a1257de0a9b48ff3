"""What a job is and what it reports: the types that every process shares. Imports no torch.

Parameters are declared here once, each with its range, unit, default and a sentence of help; the API's schema, the
form, the command line and the documentation come from these declarations.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from elder_core.errors import (
    AmbiguousTarget,
    DuplicateLayers,
    InvalidRatio,
    LayersOutOfRange,
    NoLayerLeft,
)

PAPER = "https://arxiv.org/abs/2505.18232"


class Strict(BaseModel):
    """Immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Stage(StrEnum):
    """Where a run is. The order is the order of the pipeline."""

    RESOLVING = "resolving"
    LOADING = "loading"
    CALIBRATING = "calibrating"
    SELECTING = "selecting"
    REGULARIZING = "regularizing"
    PRUNING = "pruning"
    EXPORTING = "exporting"
    EVALUATING = "evaluating"


class Gate(StrEnum):
    """How a layer's weight g enters the forward pass, x being the layer's input and F(x) its output."""

    RESIDUAL = "residual"  # x + g · (F(x) − x): at 0 the layer is removed exactly
    OUTPUT = "output"  # g · F(x): the wording of the paper


class GateOptimizer(StrEnum):
    PROXIMAL = "proximal"  # gradient step, soft threshold, clamp to [0, 1]
    ADAM = "adam"  # on the loss plus λ1 · Σ|g|


class Loss(StrEnum):
    KL = "kl"  # Kullback–Leibler divergence from the unpruned model's next-token distribution
    CROSS_ENTROPY = "cross_entropy"  # of the text's own next token


class Norm(StrEnum):
    """How the difference Δ between a layer's output and input is measured by the stage 2 penalty."""

    L1 = "l1"  # mean |Δ|
    L2 = "l2"  # mean over tokens of ‖Δ‖₂
    RELATIVE = "relative"  # mean over tokens of ‖Δ‖₂² / ‖x‖₂²


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


class ElderParameters(Strict):
    """ELDeR: learn a weight for every layer, regularise the least important towards the identity, remove them."""

    name: Literal["elder"] = "elder"

    gate: Gate = Field(default=Gate.RESIDUAL, description="Form of the layer weight.")
    gate_optimizer: GateOptimizer = Field(default=GateOptimizer.PROXIMAL, description="How the weights are learnt.")
    gate_loss: Loss = Field(default=Loss.KL, description="What the weights are learnt against.")
    gate_penalty: float = Field(default=0.1, ge=0, le=100, description="λ1, the ℓ1 penalty on the layer weights.")
    gate_learning_rate: float = Field(default=0.3, gt=0, le=10, description="Step size for the layer weights.")
    gate_steps: int = Field(
        default=160, ge=1, le=100_000, description="Updates of the layer weights in each round of selection."
    )
    gate_batch_size: int = Field(default=1, ge=1, le=1024, description="Sequences in one update of the weights.")
    gate_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the layers whose weights are in effect, and learn, in one update; the layers take turns, "
        "and the others stay whole. 1 weights all at once, as the paper does.",
    )
    layers_per_round: int | None = Field(
        default=None,
        ge=1,
        description="Layers chosen after each round of learning; 1 is the paper's iterative selection, null chooses "
        "all in one round.",
    )

    loss: Loss = Field(default=Loss.KL, description="What the model trains on in stage 2.")
    penalty: float = Field(default=0.1, ge=0, le=1000, description="λ2, the weight of the penalty on Δ in stage 2.")
    norm: Norm = Field(default=Norm.RELATIVE, description="Norm of Δ in that penalty.")
    anneal_fraction: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of stage 2 over which the chosen layers' weights fall from 1 to 0; 0 leaves them at 1, as "
        "the paper does.",
    )
    updates: int = Field(
        default=50, ge=0, le=1_000_000, description="Optimiser updates in stage 2; 0 prunes without regularising."
    )
    batch_size: int = Field(default=8, ge=1, le=1024, description="Sequences in one update of stage 2.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of stage 2 (AdamW).")


class ShortGptParameters(Strict):
    """ShortGPT: remove the layers of least block influence, 1 − cos(input, output). No training."""

    name: Literal["shortgpt"] = "shortgpt"
    batch_size: int = Field(default=4, ge=1, le=1024, description="Sequences in one forward pass.")


MethodParameters = Annotated[ElderParameters | ShortGptParameters, Field(discriminator="name")]


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


class JobSpec(Strict):
    """One pruning job, whole: with the same spec, seed and machine the result has the same bytes on CPU."""

    model: ModelRef
    method: MethodParameters = Field(default_factory=ElderParameters)
    ratio: float | None = Field(
        default=None,
        description="Share of the layers to remove, rounded to the nearest whole layer.",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    layers_to_remove: int | None = Field(default=None, description="How many layers to remove.")
    layers: tuple[int, ...] | None = Field(
        default=None, description="Exactly these layers, counted from 0; selection is skipped."
    )
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    output: OutputSpec = OutputSpec()
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything random.")

    def _given(self) -> tuple[str, ...]:
        return tuple(name for name in ("ratio", "layers_to_remove", "layers") if getattr(self, name) is not None)

    def check_target(self) -> None:
        """Check what can be known without the model.

        Raises:
            AmbiguousTarget: none or several of ratio, layers_to_remove and layers are given.
            InvalidRatio, LayersOutOfRange, DuplicateLayers: the one given is wrong in itself.
        """
        given = self._given()
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise AmbiguousTarget(f"Give exactly one of ratio, layers_to_remove and layers; found {found}.")
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
            for position, layer in enumerate(self.layers):
                if layer in self.layers[:position]:
                    raise DuplicateLayers(f"Layer {layer} is named twice in layers.", loc=("layers", position))

    def count_to_remove(self, num_layers: int) -> int:
        """Number of layers that this job removes from a model of `num_layers`.

        Raises:
            TargetError: the target does not fit the model; the subclass and message say how.
        """
        self.check_target()
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
                    f"ratio {self.ratio:g} of {num_layers} layers is less than one layer; give at least "
                    f"{1 / num_layers:.4g}.",
                    loc=("ratio",),
                )
        if count >= num_layers:
            raise NoLayerLeft(
                f"Removing {count} of {num_layers} layers leaves none; remove at most {num_layers - 1}.",
                loc=self._given()[:1],
            )
        return count


# What a run reports ---------------------------------------------------------------------------------------------


class Progress(Strict):
    """One step of a run: `step` of `total` within `stage`, with the metrics known at that moment."""

    stage: Stage
    step: int = Field(ge=0)
    total: int = Field(ge=0)
    metrics: dict[str, float] = {}


class Measurement(Strict):
    """One model measured. Speed and memory are null where they were not asked for."""

    layers: int
    parameters: int
    bytes_on_disk: int
    perplexity: float
    bits_per_byte: float
    prefill_tokens_per_second: float | None = None
    prefill_latency_seconds: float | None = Field(default=None, description="Median time to the first token.")
    decode_tokens_per_second: float | None = None
    decode_latency_seconds: float | None = Field(default=None, description="Median time for one further token.")
    peak_memory_bytes: int | None = None


class Ideal(Strict):
    """Speed-up if the removed layers cost nothing and all else stayed: dense time / (dense time − theirs)."""

    prefill_speedup: float
    decode_speedup: float


class Evaluation(Strict):
    """Before and after, on text that calibration never saw. `ratios` holds after / before by field name."""

    source: str
    sequences: int
    sequence_length: int
    tokens: int
    before: Measurement
    after: Measurement
    ratios: dict[str, float]
    ideal: Ideal | None = None


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
    """Where the numbers come from."""

    device: str
    cpu: str
    threads: int
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
    gate_path: tuple[GatePoint, ...] = ()
    training: tuple[TrainingPoint, ...] = ()
    evaluation: Evaluation
    generations: tuple[Generation, ...] = ()
    stage_seconds: dict[Stage, float]
    peak_memory_bytes: int = Field(description="Of the whole run.")
    environment: Environment
    warnings: tuple[str, ...] = ()
