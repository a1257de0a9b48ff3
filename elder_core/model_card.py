"""The `README.md` of a pruned checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from elder_core.architectures import table
from elder_core.inspection import is_hub_id
from elder_core.manifest import MANIFEST_FILE, Provenance
from elder_core.parameters import CutParameters
from elder_core.registry import find_method
from elder_core.spec import Precision

CARD_FILE = "README.md"
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
LICENCE_FIELDS = re.compile(r"^license(?:_name|_link)?: *\S.*$", re.MULTILINE)
SEEING = {row.model_class for row in table.MULTIMODAL.values()}


def licence_lines(source: Path) -> list[str]:
    """The `license…` lines in the front matter of the source's own card; empty if it has none."""
    card = source / CARD_FILE
    if not card.is_file():
        return []
    front = FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    return LICENCE_FIELDS.findall(front[1]) if front else []


def model_card(provenance: Provenance, source: Path) -> str:
    """Markdown with front matter: what the checkpoint was made from (the folder `source`), and how."""
    licence = licence_lines(source)
    return "\n".join(
        [
            *_front_matter(provenance, licence),
            *_origin(provenance),
            "",
            "## Licence",
            "",
            "That of the source model, as its card states it." if licence else "That of the source model; see there.",
            "",
        ]
    )


def _front_matter(provenance: Provenance, licence: list[str]) -> list[str]:
    base = [f"base_model: {provenance.source.id}"] if is_hub_id(provenance.source.id) else []
    return [
        "---",
        *licence,
        *base,
        "library_name: transformers",
        f"pipeline_tag: {'image-text-to-text' if provenance.source.architecture in SEEING else 'text-generation'}",
        "tags: [pruned]",
        "---",
    ]


def _text(provenance: Provenance) -> list[str]:
    spec = provenance.spec
    if isinstance(spec.method, CutParameters):
        dtype = provenance.source.dtype if spec.output.dtype is Precision.SAME else spec.output.dtype.value
        return [f"- All weights that stay are those of the source, as {dtype}."]
    return [f"- Calibration text: `{spec.calibration.source}`."]


def _origin(provenance: Provenance) -> list[str]:
    source, method = provenance.source, find_method(provenance.spec.method.name)
    kept = source.layers - len(provenance.removed_layers)
    removed = ", ".join(map(str, provenance.removed_layers))
    return [
        f"# {source.id}, {kept} of {source.layers} layers",
        "",
        f"Made from `{source.id}` at revision `{source.revision}` by removing {source.layers - kept} of its "
        f"{source.layers} decoder layers with [{method.title}]({method.source}).",
        "",
        f"- Architecture: {source.architecture}, as that of the source; any loader of it reads this checkpoint.",
        f"- Removed layers, counted from 0 in the source: {removed}.",
        *_text(provenance),
        f"- Settings, seeds, versions, the weight of every layer and the hash of every file: `{MANIFEST_FILE}`.",
    ]
