"""What each method can be told. Imports no torch.

A parameter is declared here once, with its range, unit, default and a sentence of help; the API's schema, the form,
the command line and the documentation come from these declarations. A method's docstring begins with its summary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAPER = "https://arxiv.org/abs/2505.18232"


class Strict(BaseModel):
    """Immutable, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Gate(StrEnum):
    """How a layer's weight g enters the forward pass, x being the layer's input and F(x) its output."""

    RESIDUAL = "residual"  # x + g · (F(x) − x): at 0 the layer is removed exactly
    OUTPUT = "output"  # g · F(x): the wording of the paper


class GateOptimizer(StrEnum):
    PROXIMAL = "proximal"  # gradient step, soft threshold, clamp to [0, 1]
    ADAM = "adam"  # on the loss plus λ1 · Σ|g|


GATE_RATES = {GateOptimizer.PROXIMAL: 1.0, GateOptimizer.ADAM: 0.05}


class Loss(StrEnum):
    KL = "kl"  # Kullback–Leibler divergence from the unpruned model's next-token distribution
    CROSS_ENTROPY = "cross_entropy"  # of the text's own next token


class Norm(StrEnum):
    """How the difference Δ between a layer's output and input is measured by the stage 2 penalty."""

    L1 = "l1"  # mean over tokens of ‖Δ‖₁
    L2 = "l2"  # mean over tokens of ‖Δ‖₂
    RELATIVE = "relative"  # mean over tokens of ‖Δ‖₂² / ‖x‖₂²


class Weights(StrEnum):
    """Which weights training changes."""

    FULL = "full"
    # A low-rank addition to the matrix of every module of the decoder layers, merged in the end (arXiv 2106.09685);
    # experts that are stored fused stay as they are, with a warning.
    LORA = "lora"


BUDGETS = ("tokens", "updates", "seconds")


class TrainingParameters(Strict):
    """How a model is trained to do without the removed layers; the budget is one of tokens, updates and seconds."""

    loss: Loss = Field(default=Loss.KL, description="What the model trains on.")
    default_tokens: ClassVar[int] = 0

    tokens: int | None = Field(
        default=None,
        ge=0,
        le=10**12,
        description="Budget of training after removal, in tokens that it reads; null takes 0 where no other budget is "
        "given, which prunes only.",
    )
    updates: int | None = Field(default=None, ge=0, le=1_000_000, description="Budget in optimiser updates.")
    seconds: float | None = Field(
        default=None,
        ge=0,
        le=10**7,
        description="Budget in seconds; the result then depends on the machine's speed.",
    )
    batch_size: int = Field(default=2, ge=1, le=1024, description="Sequences in one update of training.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak learning rate of training (AdamW); null takes 0.02 / hidden size for cross-entropy after "
        "removal, else 0.13 / hidden size, or 0.19 / hidden size where hidden states are matched; for LoRA ten times "
        "as much, times 16 / lora_rank above rank 16.",
    )
    matching: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of 1 − cos(hidden state, the unpruned model's), each scaled to length 1 and less its mean "
        "over the sequence; the mean over what enters each layer that stays and what leaves the last, added to the "
        "loss.",
    )
    weights: Weights = Field(default=Weights.FULL, description="Which weights training changes.")
    lora_rank: int = Field(
        default=16, ge=1, le=4096, description="Rank of the additions, where weights is lora; at most the matrix's own."
    )

    of_training: ClassVar[tuple[str, ...]] = (
        "loss",
        "batch_size",
        "learning_rate",
        "matching",
        "weights",
        "lora_rank",
    )

    def without_effect(self, *, layers_named: bool) -> Iterator[str]:
        """What to say of settings that are not their defaults and change nothing; `layers_named`: by the job."""
        if not self.trains:
            yield from self._idle(self.of_training, "the budget of training is 0. Give tokens, updates or seconds")
        elif self.weights is Weights.FULL:
            yield from self._idle(("lora_rank",), "weights is full. Give lora")

    def _idle(self, names: Iterable[str], why: str) -> Iterator[str]:
        fields = type(self).model_fields
        if named := [name for name in names if getattr(self, name) != fields[name].default]:
            yield f"{' and '.join(named)} had no effect: {why}, or leave {'it' if len(named) == 1 else 'them'} out."

    @property
    def taught(self) -> bool:
        """Whether training asks the unpruned model."""
        return self.loss is Loss.KL or self.matching > 0

    @property
    def trains(self) -> bool:
        """Whether there is any budget of training."""
        return any(getattr(self, name) for name in BUDGETS)

    @property
    def training_share(self) -> Fraction:
        """Share of the budget that training has; exact, as it is written, so that no update is lost to rounding."""
        return Fraction(1)

    def training_updates(self, length: int) -> int | None:
        """Updates of training that the budget allows, on sequences of `length` tokens; None where seconds bound it."""
        if self.seconds is not None:
            return None
        if self.updates is not None:
            return math.ceil(self.training_share * self.updates)
        return math.ceil(self.training_share * (self.tokens or 0) / (self.batch_size * length))

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, given: Any) -> Any:
        """Where no budget is given, the default one becomes part of the parameters, and so of every record of them."""
        if not isinstance(given, dict):
            return given
        named = [name for name in BUDGETS if given.get(name) is not None]
        if len(named) > 1:
            raise ValueError(f"give one of {', '.join(BUDGETS)}; found {' and '.join(named)}")
        return given if named else {**given, "tokens": cls.default_tokens}


class ElderParameters(TrainingParameters):
    """ELDeR: learn a weight for every layer, remove those of the smallest, train the rest to do without them."""

    name: Literal["elder"] = "elder"

    gate: Gate = Field(default=Gate.RESIDUAL, description="Form of the layer weight.")
    gate_optimizer: GateOptimizer = Field(default=GateOptimizer.PROXIMAL, description="How the weights are learnt.")
    gate_loss: Loss = Field(default=Loss.KL, description="What the weights are learnt against.")
    gate_penalty: float = Field(default=0.1, ge=0, le=100, description="λ1, the ℓ1 penalty on the layer weights.")
    gate_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Step size for the layer weights; null takes 1 for proximal steps and 0.05 for Adam.",
    )
    gate_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Updates of the layer weights in each round of selection, at most. Null takes 96; where a search "
        "follows, which corrects the choice, and gate_patience is null too, 16, or two turns of all layers where that "
        "is more.",
    )
    gate_patience: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Updates without a change in which layers have the smallest weights, after which learning ends; 0 "
        "makes all updates that it may. Null takes 8, or two turns of all layers where that is more.",
    )
    gate_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the budget set apart for learning the weights, in equal parts for the rounds of the "
        "deepest selection that may be asked for; a round uses at most gate_steps of its part, and one turn of all "
        "layers at least if those are as many, and what is left is not spent. Null bounds learning by gate_steps "
        "alone, and the whole budget is for stage 2, as it is where the job names its layers.",
    )
    gate_batch_size: int = Field(default=1, ge=1, le=1024, description="Sequences in one update of the weights.")
    gate_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the layers, rounded up to whole ones, whose weights are in effect, and learn, in one "
        "update, at most; the layers take turns in as few equal parts as that allows, and the others stay whole. 1 "
        "weights all at once, as the paper does.",
    )
    layers_per_round: int | None = Field(
        default=None,
        ge=1,
        description="Layers chosen after each round of learning; 1 is the paper's iterative selection, null chooses "
        "all in one round.",
    )
    search_samples: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Sequences on which chosen layers are then exchanged for others, while KL from the unpruned model "
        "falls; its logits are kept in memory. 0 takes the layers with the smallest weights as they are. Null takes 16 "
        "where nothing is trained, and 0 where training follows, which makes up for more than a search would gain.",
    )
    search_border: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description="Layers that the search may exchange: so many of the last chosen, and of the first kept.",
    )
    search_batch_size: int = Field(default=4, ge=1, le=1024, description="Sequences in one forward pass of the search.")
    search_width: int = Field(
        default=1, ge=0, le=100, description="Chosen layers whose return is tried in one step of the search."
    )

    penalty: float = Field(
        default=0.1,
        ge=0,
        le=1000,
        description="λ2, the weight of the penalty on Δ in stage 2, for as long as the chosen layers are computed.",
    )
    norm: Norm = Field(
        default=Norm.RELATIVE,
        description="Norm of Δ in that penalty; l1 sums over the hidden size, and so wants a smaller one than l2.",
    )
    anneal_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of stage 2 over which the chosen layers' weights fall from 1 to 0; 0 leaves them at 1, as "
        "the paper does, and null takes them out from the first update on, which costs least and is as good.",
    )

    recovery_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of stage 2, at its end, in which the model trains without the chosen layers, whatever their "
        "weights would still be.",
    )

    matching: float = Field(
        default=48.0, ge=0, le=1000, description=TrainingParameters.model_fields["matching"].description
    )

    @model_validator(mode="after")
    def _budget_to_share(self) -> Self:
        if self.gate_fraction is not None and not self.trains:
            raise ValueError(
                f"gate_fraction {self.gate_fraction:g} is a share of a budget that is 0; give {', '.join(BUDGETS)}, "
                "or leave gate_fraction out"
            )
        return self

    @classmethod
    def of_the_paper(cls) -> Self:
        """Its own words and figures (section 4.1); the number of updates for the weights is not among them."""
        return cls(
            gate=Gate.OUTPUT,
            gate_optimizer=GateOptimizer.ADAM,
            gate_loss=Loss.CROSS_ENTROPY,
            gate_penalty=5e-3,
            gate_steps=32,
            gate_patience=0,
            gate_share=1.0,
            layers_per_round=1,
            loss=Loss.CROSS_ENTROPY,
            matching=0.0,
            penalty=1e-3,
            norm=Norm.L2,
            anneal_fraction=0.0,
        )

    of_training: ClassVar[tuple[str, ...]] = (
        *TrainingParameters.of_training,
        "penalty",
        "norm",
        "anneal_fraction",
        "recovery_fraction",
    )
    of_a_search: ClassVar[tuple[str, ...]] = ("search_samples", "search_border", "search_batch_size", "search_width")

    def without_effect(self, *, layers_named: bool) -> Iterator[str]:
        yield from super().without_effect(layers_named=layers_named)
        if self.trains and self.anneal_fraction is None:
            yield from self._idle(
                ("penalty", "norm", "recovery_fraction"),
                "the chosen layers are gone from the first update on. Give anneal_fraction, as 0, which keeps them as "
                "the paper does, or as the share of training over which they fade",
            )
        if self.trains and self.anneal_fraction is not None:
            if not self.penalty:
                yield from self._idle(("norm",), "penalty is 0. Give a larger one")
            if 0 < self.anneal_fraction <= 1 - self.recovery_fraction:
                why = "the layers have faded by then. Give more than what anneal_fraction leaves"
                yield from self._idle(("recovery_fraction",), why)
        if layers_named:
            learning = [name for name in type(self).model_fields if name.startswith("gate")]
            yield from self._idle(
                (*learning, "layers_per_round", *self.of_a_search),
                "the job names its layers, so no layer weights are learnt, and training has the whole budget. Give "
                "a ratio instead",
            )
        elif not self.searched:
            why = "no search follows"
            if self.layers_per_round is not None:
                why += " where layers_per_round is given. Give that as null, and search_samples"
            elif not self.search_width:
                why += " where search_width is 0. Give that as 1 or more, and search_samples"
            else:
                why += ". Give search_samples"
            given = [name for name in self.of_a_search if getattr(self, name)]  # 0 means that there is to be none
            yield from self._idle(given, why)

    @property
    def training_share(self) -> Fraction:
        return 1 - Fraction(str(self.gate_fraction or 0))

    def turn(self, layers: int) -> int:
        """Updates of the layer weights in which so many layers are all in effect once."""
        return min(layers, math.ceil(1 / Fraction(str(self.gate_share))))

    def rounds(self, count: int) -> int:
        """Rounds of learning in which `count` layers are chosen."""
        return 1 if self.layers_per_round is None else math.ceil(count / self.layers_per_round)

    @property
    def begins_a_search(self) -> bool:
        """Whether the layer weights are learnt only for as long as a search needs to begin with."""
        return bool(self.searched) and self.gate_steps is None and self.gate_patience is None

    def most_gate_updates(self, turn: int) -> int:
        """Updates of the layer weights in each round at most; all layers are in effect once in `turn` updates."""
        if self.begins_a_search:
            return max(16, 2 * turn)
        return self.gate_steps or 96

    def gate_updates(self, length: int, rounds: int, turn: int) -> int:
        """Updates of the layer weights that the budget allows each of so many rounds, on sequences of `length` tokens.

        One turn of all layers at least, where `most_gate_updates` allows as much.
        """
        most = self.most_gate_updates(turn)
        if self.gate_fraction is None or self.seconds is not None:
            return most
        if self.updates is not None:
            batches = Fraction(self.updates)
        else:
            batches = Fraction(self.tokens or 0, self.gate_batch_size * length)
        return min(most, max(turn, math.floor((1 - self.training_share) * batches / rounds)))

    def gate_seconds(self, rounds: int) -> float | None:
        """Seconds of each of so many rounds, at most; None where they are not bounded so."""
        if self.gate_fraction is None or self.seconds is None:
            return None
        return self.gate_fraction * self.seconds / rounds

    @property
    def gate_rate(self) -> float:
        """Step size for the layer weights."""
        return self.gate_learning_rate or GATE_RATES[self.gate_optimizer]

    def patience(self, turn: int) -> int:
        """Updates without a change in which layers have the smallest weights, after which learning ends; 0: never.

        All layers are in effect once in `turn` updates.
        """
        if self.gate_patience is None:
            return max(8, 2 * turn)
        return self.gate_patience

    @property
    def searched(self) -> int:
        """Sequences that a search over sets of layers looks at; 0 if there is none."""
        if self.layers_per_round is not None or not self.search_width:
            return 0
        if self.search_samples is None:
            return 0 if self.trains else 16
        return self.search_samples

    default_tokens: ClassVar[int] = 250_000
    tokens: int | None = Field(
        default=None,
        ge=0,
        le=10**12,
        description="Budget of stage 2, and of stage 1 where gate_fraction is given, in tokens that are read; null "
        "takes 250,000 where no other budget is given, and 0 prunes without regularising.",
    )


class BaselineParameters(TrainingParameters):
    """What all methods have in common that score layers and remove them; with a budget they train afterwards."""

    scoring_samples: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Calibration sequences to score on; null uses all there are."
    )
    scoring_batch_size: int = Field(default=4, ge=1, le=1024, description="Sequences in one forward pass.")

    only_chooses: ClassVar[bool] = True
    """Whether its own settings are of the choice of layers alone, and not of making up for them."""

    def without_effect(self, *, layers_named: bool) -> Iterator[str]:
        yield from super().without_effect(layers_named=layers_named)
        if layers_named and self.only_chooses:
            own = [name for name in type(self).model_fields if name not in {*TrainingParameters.model_fields, "name"}]
            yield from self._idle(own, "the job names its layers. Give a ratio instead")


def _scoring_samples(default: int, how: str) -> Any:
    """`scoring_samples` of a method that goes through the text more than once."""
    return Field(
        default=default, ge=1, le=1_000_000, description=f"Calibration sequences to score on, {how}; null uses all."
    )


class ShortGptParameters(BaselineParameters):
    """ShortGPT: remove the layers of least block influence, 1 − cos(input, output)."""

    name: Literal["shortgpt"] = "shortgpt"


class UidlParameters(BaselineParameters):
    """UIDL: remove the block of neighbouring layers between whose input and output the angle is smallest."""

    name: Literal["uidl"] = "uidl"


class SlebParameters(BaselineParameters):
    """SLEB: remove one layer at a time, always the one without which the text is predicted best."""

    name: Literal["sleb"] = "sleb"

    scoring_samples: int | None = _scoring_samples(24, "all of them again for every layer removed")


class Criterion(StrEnum):
    """What Shortened LLaMA ranks layers by."""

    PERPLEXITY = "perplexity"  # of the text without the layer
    TAYLOR = "taylor"  # Σ |w · ∂loss/∂w| over the layer's matrices; the paper's Taylor+ with protected layers


class ShortenedLlamaParameters(BaselineParameters):
    """Shortened LLaMA: try the model without each of its layers once, and remove those that it misses least."""

    name: Literal["shortened_llama"] = "shortened_llama"

    criterion: Criterion = Field(default=Criterion.PERPLEXITY, description="What the layers are ranked by.")
    protect_first: int = Field(default=4, ge=0, le=1000, description="First layers that the taylor criterion keeps.")
    protect_last: int = Field(default=2, ge=0, le=1000, description="Last layers that the taylor criterion keeps.")
    scoring_samples: int | None = _scoring_samples(24, "each without every layer in turn")

    def without_effect(self, *, layers_named: bool) -> Iterator[str]:
        yield from super().without_effect(layers_named=layers_named)
        if not layers_named and self.criterion is Criterion.PERPLEXITY:
            yield from self._idle(("protect_first", "protect_last"), "criterion is perplexity. Give taylor")


class EvoPressParameters(BaselineParameters):
    """EvoPress: search for the best set of layers by mutation and selection, measured by KL from the whole model."""

    name: Literal["evopress"] = "evopress"

    generations: int = Field(default=40, ge=1, le=100_000, description="Generations of the search.")
    offspring: int = Field(default=16, ge=1, le=10_000, description="Mutants in each generation.")
    first_samples: int = Field(
        default=2,
        ge=1,
        le=10_000,
        description="Calibration sequences that all mutants are measured on, new ones each time.",
    )
    survivors: int = Field(
        default=2,
        ge=1,
        le=10_000,
        description="Mutants that are measured again, on all scoring samples, like their parent.",
    )
    scoring_samples: int | None = _scoring_samples(
        16, "for the mutants that survive, with the whole model's logits kept in memory"
    )


class ReplaceMeParameters(BaselineParameters):
    """ReplaceMe: remove the block of least cosine distance and let the layer before it stand in, by least squares."""

    name: Literal["replaceme"] = "replaceme"

    only_chooses: ClassVar[bool] = False

    ridge: float = Field(
        default=1e-3,
        gt=0,
        le=1e6,
        description="Pull of the linear map towards leaving everything as it is, in mean squares of what it maps.",
    )
    scoring_samples: int | None = _scoring_samples(128, "once for the choice and once for the map")


class PruneCompParameters(BaselineParameters):
    """Prune&Comp: remove layers of least block influence and make up for the magnitude that they added."""

    name: Literal["prune_comp"] = "prune_comp"

    only_chooses: ClassVar[bool] = False

    layers_per_round: int | None = Field(
        default=1,
        ge=1,
        description="Layers chosen before the others are measured again; 1 is the paper's iterative form, null chooses "
        "all at once.",
    )
    scoring_samples: int | None = _scoring_samples(32, "twice for every round")


class CutParameters(Strict):
    """Cut: remove the layers that the job names, from file to file, without loading the model for it."""

    name: Literal["cut"] = "cut"


class RandomParameters(TrainingParameters):
    """Random layers, drawn from the job's seed: what any method must beat."""

    name: Literal["random"] = "random"


class LastParameters(TrainingParameters):
    """Last layers: remove those next to the output, whatever they do."""

    name: Literal["last"] = "last"


MethodParameters = Annotated[
    ElderParameters  # a method more is a line more
    | ShortGptParameters
    | UidlParameters
    | SlebParameters
    | ShortenedLlamaParameters
    | EvoPressParameters
    | ReplaceMeParameters
    | PruneCompParameters
    | CutParameters
    | RandomParameters
    | LastParameters,
    Field(discriminator="name"),
]
