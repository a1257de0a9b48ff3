"""EvoPress (arXiv 2410.14649): an evolutionary search over sets of layers (algorithm 1).

One parent; each generation its mutants swap a few removed layers with kept ones (level-switch mutation). All mutants
are measured on a little text, the best of them on more, and the best of those takes the parent's place if it is
better (multi-step selection).

Sets are compared as ELDeR's own search does it (elder_core.methods.prefix): at some positions, from the first layer on
in which they differ from the parent, and the whole model's answers to the text that is used again are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from elder_core.journal import Entry
from elder_core.methods.base import Context, Selection
from elder_core.methods.baseline import ScoringBaseline, require_numbers
from elder_core.methods.prefix import Reference
from elder_core.parameters import EvoPressParameters
from elder_core.surgery import decoder_layers

Layers = frozenset[int]
MOST_SWAPS = 3
TRIES = 20  # draws for each mutant that is wanted, before there is taken to be none left


@dataclass
class _Search:
    """Where a search stands: its random numbers, and the KL of each set that was measured on all scoring samples."""

    layers: int
    random: np.random.Generator
    measured: dict[Layers, float] = field(default_factory=dict)
    generations: int = 0

    @property
    def parent(self) -> Layers:
        """The best set so far; at the very beginning the whole model."""
        return min(self.measured, key=lambda layers: (self.measured[layers], sorted(layers)), default=frozenset())

    def entry(self) -> Entry:
        return Entry(
            {
                "generations": self.generations,
                "random": self.random.bit_generator.state,
                "measured": [(sorted(layers), divergence) for layers, divergence in self.measured.items()],
            }
        )

    def restore(self, entry: Entry) -> None:
        self.generations = entry.facts["generations"]
        self.random.bit_generator.state = entry.facts["random"]
        self.measured = {frozenset(layers): divergence for layers, divergence in entry.facts["measured"]}


class EvoPress(ScoringBaseline[EvoPressParameters]):
    """Fitness is KL(whole model ‖ model without the layers). The first parent is the best of as many random sets."""

    def select(self, context: Context, count: int) -> Selection:
        parameters = self.parameters
        search = _Search(len(decoder_layers(context.model)), np.random.default_rng([context.seed]))
        batches = context.passes(self.scoring_windows(context), parameters.scoring_batch_size)
        text = [Reference.of(context.model, ids) for ids in batches]
        page = context.monitor.page("generations")
        if page.recalled is not None:
            search.restore(page.recalled)
        else:
            drawn = [drawn_at_random(search.layers, count, search.random) for _ in range(parameters.offspring)]
            self._measure(context, search, self._promising(context, search, drawn, 0)[:1], text)
            require_numbers([search.measured[search.parent]])
        for generation in range(search.generations + 1, parameters.generations + 1):
            mutants = self._mutants(search)
            if mutants:
                survivors = self._promising(context, search, mutants, generation)[: parameters.survivors]
                self._measure(context, search, survivors, text)
            search.generations = generation
            page.offer(search.entry)
            context.monitor.step(generation, parameters.generations, loss=search.measured[search.parent])
        return Selection(
            removed=tuple(sorted(search.parent)),
            weights=None,
            weight_label=f"layers found by a search; KL divergence {search.measured[search.parent]:.4g}",
        )

    def _mutants(self, search: _Search) -> list[Layers]:
        """Different mutants of the parent, none of them measured before; fewer where they run out."""
        found: dict[Layers, None] = {}
        for _ in range(TRIES * self.parameters.offspring):
            mutant = mutated(search.parent, search.layers, search.random)
            if mutant not in search.measured:
                found[mutant] = None
            if len(found) == self.parameters.offspring:
                break
        return list(found)

    def _promising(self, context: Context, search: _Search, sets: Sequence[Layers], step: int) -> list[Layers]:
        """`sets` by KL on the few windows of this step, the best first."""
        divergences = np.zeros(len(sets))
        for part in context.in_parts(context.batch(step, self.parameters.first_samples)):
            divergences += len(part) * np.array(
                list(Reference.of(context.model, part).kl_without(sets, like=search.parent))
            )
        return [sets[place] for place in np.argsort(divergences, kind="stable")]

    def _measure(self, context: Context, search: _Search, sets: Sequence[Layers], text: Sequence[Reference]) -> None:
        """KL of `sets` on all scoring windows, of which `text` are the batches."""
        total = np.zeros(len(sets))
        for batch in text:
            total += len(batch.ids) * np.array(list(batch.kl_without(sets, like=search.parent)))
            context.monitor.check_cancelled()
        windows = sum(len(batch.ids) for batch in text)
        search.measured.update(zip(sets, (total / windows).tolist(), strict=True))


def drawn_at_random(layers: int, count: int, random: np.random.Generator) -> Layers:
    """`count` of `layers`, every set as likely as any other."""
    return frozenset(random.choice(layers, count, replace=False).tolist())


def mutated(removed: Layers, layers: int, random: np.random.Generator) -> Layers:
    """`removed` with one to three of it swapped for others of `layers`; fewer swaps are likelier than many."""
    kept = [layer for layer in range(layers) if layer not in removed]
    swaps = min(*random.integers(1, MOST_SWAPS + 1, size=2), len(removed), len(kept))
    out = random.choice(sorted(removed), swaps, replace=False).tolist()
    return (removed - set(out)) | set(random.choice(kept, swaps, replace=False).tolist())
