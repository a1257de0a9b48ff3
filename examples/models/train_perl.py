"""Train a GPT-2 of 12 layers on Perl's documentation: a model that no default was chosen on.

    apt-get install perl-doc
    pip install -c constraints.txt '.[worker]'
    python examples/models/train_perl.py --out perl-12l
    python benchmarks/quality.py --model perl-12l --calibration perl-12l-texts/calibration.jsonl \\
        --text perl-12l-texts/reserve.jsonl

About half an hour on two cores with AMX. `--resume` goes on from the last checkpoint in `--work`.
Reads: the pages of Debian's perl-doc, by pod2text. Writes: the checkpoint folder, and beside it its held-out texts.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from small_models import (
    SEQUENCE_LENGTH,
    VOCABULARY,
    parser,
    save,
    split_corpus,
    train,
    train_tokenizer,
    utf8_bytes,
    write_splits,
)
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = Path("/usr/share/perl")
CHAPTER = re.compile(r"\n(?=\S)")  # pod2text begins a heading at the margin and indents all else


def sections() -> Iterator[tuple[str, str]]:
    """(source, text) of each section of every page: pages are few and long."""
    pages = sorted(ROOT.glob("*/pod/*.pod"))
    if len(pages) < 100:
        raise SystemExit(f"{ROOT} holds {len(pages)} pages: install the Debian package perl-doc")
    for page in pages:
        text = subprocess.run(["pod2text", "--utf8", page], capture_output=True, check=True).stdout.decode("utf-8")
        for number, section in enumerate(CHAPTER.split(text)):
            yield f"{page.stem}#{number}", section.strip()


def build_model() -> GPT2LMHeadModel:
    """Positions begin as sines and cosines: where they begin at random, so little text never teaches them."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=SEQUENCE_LENGTH,
        n_embd=192,
        n_layer=12,
        n_head=6,
        initializer_range=0.05,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    places = torch.arange(SEQUENCE_LENGTH)[:, None]
    angles = places / 10_000 ** (torch.arange(0, config.n_embd, 2) / config.n_embd)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [positions, hidden]
    model.transformer.wpe.weight.data.copy_(config.initializer_range * 2**0.5 * waves)
    return model


def main() -> None:
    args = parser(__doc__, work=Path("/tmp/train-perl"), steps=1800).parse_args()
    corpus = split_corpus(sections())
    for name, documents in corpus.items():
        print(f"{name}: {len(documents)} sections, {utf8_bytes(documents):,} bytes", flush=True)
    write_splits(args.out.parent / f"{args.out.name}-texts", corpus)
    tokenizer = train_tokenizer([document["text"] for document in corpus["train"]])
    torch.manual_seed(args.seed)
    model, options = build_model(), {"steps": args.steps, "seed": args.seed, "work": args.work, "resume": args.resume}
    train(model, tokenizer, corpus, **options, peak=1.5e-3, bfloat16=torch.cpu._is_amx_tile_supported())
    save(model, tokenizer, args.out, corpus["test"])


if __name__ == "__main__":
    main()
