"""Train the bundled model `manuals-16l` from the English manuals of Python 3.11 and PostgreSQL 15.

    apt-get install python3.11-doc postgresql-doc-15
    pip install -c constraints.txt '.[worker]' beautifulsoup4
    python examples/models/train_manuals.py --out examples/models/manuals-16l

About an hour on two cores, in float32: few CPUs compute in bfloat16. `--resume` goes on from the last checkpoint in
`--work`.
Reads: the HTML pages of the two Debian packages. Writes: the checkpoint folder with its model card and, in the
folder `manuals-texts` beside it, the held-out splits (`calibration.jsonl`, `test.jsonl`, `reserve.jsonl`,
`validation.jsonl`), one JSON object with `text` a line, one line per page of the manuals.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from bs4 import BeautifulSoup
from small_models import (
    BATCH,
    SEQUENCE_LENGTH,
    VOCABULARY,
    Corpus,
    parser,
    save,
    split_corpus,
    train,
    train_tokenizer,
    utf8_bytes,
    write_splits,
)
from transformers import LlamaConfig, LlamaForCausalLM

SOURCES = {
    "python3.11-doc": (Path("/usr/share/doc/python3.11/html"), "div[role=main]"),
    "postgresql-doc-15": (Path("/usr/share/doc/postgresql-doc-15/html"), "body"),
}
# Pages without running text: indices, tables of contents, the list of every change.
SKIPPED_PAGES = re.compile(r"(^|/)(genindex.*|py-modindex|contents|search|download|changelog|bookindex|biblio)\.html$")
NOISE = "script, style, a.headerlink, .navheader, .navfooter, .sphinxsidebar, .related, .toc, .toctree-wrapper"


def page_text(html: str, selector: str) -> str:
    """The running text of one page, paragraphs separated by a blank line."""
    soup = BeautifulSoup(html, "html.parser")
    body = soup.select_one(selector)
    if body is None:
        return ""
    for element in body.select(NOISE):
        element.decompose()
    for cell in body.select("td, th, dt"):
        cell.append(" ")
    text = body.get_text().replace("\u00a0", " ").replace("\r", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def pages() -> Iterator[tuple[str, str]]:
    """(source, text) of each page of running text."""
    for package, (root, selector) in SOURCES.items():
        if not root.is_dir():
            raise SystemExit(f"{root} is missing: install the Debian package {package}")
        for path in sorted(root.rglob("*.html")):
            page = f"{package}/{path.relative_to(root)}"
            if not SKIPPED_PAGES.search(page):
                yield page, page_text(path.read_text(encoding="utf-8", errors="strict"), selector)


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=16,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=SEQUENCE_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # the residual stream keeps its scale over the depth (GPT-2, section 2.3)
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.data.div_(math.sqrt(2 * config.num_hidden_layers))
    return model


def texts_beside(out: Path) -> Path:
    return out.parent / "manuals-texts"


def megabytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


def write_card(out: Path, corpus: Corpus, bits: float, args: argparse.Namespace) -> None:
    stored = {True: "in `manuals-texts`", False: "not stored"}
    texts = texts_beside(out)
    rows = "\n".join(
        f"| {name} | {len(documents):,} | {utf8_bytes(documents):,} | {stored[(texts / f'{name}.jsonl').exists()]} |"
        for name, documents in corpus.items()
    )
    files = [file for file in out.iterdir() if file.name != "README.md"]
    template = (Path(__file__).parent / "manuals_card.md").read_text(encoding="utf-8")
    (out / "README.md").write_text(
        template.format(
            bits=bits,
            megabytes=megabytes(files),
            splits=rows,
            steps=args.steps,
            seed=args.seed,
            tokens=args.steps * BATCH * SEQUENCE_LENGTH,
        ),
        encoding="utf-8",
    )


def main() -> None:
    args = parser(__doc__, work=Path("/tmp/train-manuals"), steps=2700).parse_args()
    corpus = split_corpus(pages())
    for name, documents in corpus.items():
        print(f"{name}: {len(documents)} pages, {utf8_bytes(documents):,} bytes", flush=True)
    write_splits(texts_beside(args.out), corpus)
    tokenizer = train_tokenizer([document["text"] for document in corpus["train"]])
    torch.manual_seed(args.seed)
    model = build_model()
    train(model, tokenizer, corpus, steps=args.steps, seed=args.seed, work=args.work, resume=args.resume)
    write_card(args.out, corpus, save(model, tokenizer, args.out, corpus["test"]), args)


if __name__ == "__main__":
    main()
