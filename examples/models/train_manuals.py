"""Train the bundled model `manuals-16l` from the English manuals of Python 3.11 and PostgreSQL 15.

    apt-get install python3.11-doc postgresql-doc-15
    pip install -c constraints.txt '.[worker]' beautifulsoup4
    python examples/models/train_manuals.py --out examples/models/manuals-16l

About an hour on two cores, in float32: few CPUs compute in bfloat16. `--resume` goes on from the last checkpoint in
`--work`.
Reads: the HTML pages of the two Debian packages. Writes: the checkpoint folder with its model card and, in the
folder `manuals-texts` beside it, the held-out splits (`calibration.jsonl`, `test.jsonl`, `reserve.jsonl`), one JSON
object with `text` a line, one line per page of the manuals.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from bs4 import BeautifulSoup
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SOURCES = {
    "python3.11-doc": (Path("/usr/share/doc/python3.11/html"), "div[role=main]"),
    "postgresql-doc-15": (Path("/usr/share/doc/postgresql-doc-15/html"), "body"),
}
# Pages without running text: indices, tables of contents, the list of every change.
SKIPPED_PAGES = re.compile(r"(^|/)(genindex.*|py-modindex|contents|search|download|changelog|bookindex|biblio)\.html$")
NOISE = "script, style, a.headerlink, .navheader, .navfooter, .sphinxsidebar, .related, .toc, .toctree-wrapper"
END_OF_TEXT = "<|endoftext|>"

# Share of the pages, in percent, by a hash of the page's name: a page is wholly in one split.
SPLITS = {"test": 4, "reserve": 4, "validation": 2, "calibration": 8}

VOCABULARY = 4096
SEQUENCE_LENGTH = 256
BATCH = 8
PEAK_LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 100


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


def split_of(page: str) -> str:
    bucket = int.from_bytes(hashlib.sha256(page.encode()).digest()[:4], "big") % 100
    for name, share in SPLITS.items():
        if bucket < share:
            return name
        bucket -= share
    return "train"


def read_corpus() -> dict[str, list[dict[str, str]]]:
    """Split name → documents, each with the page it came from and its text."""
    corpus: dict[str, list[dict[str, str]]] = {name: [] for name in [*SPLITS, "train"]}
    seen: set[str] = set()
    for package, (root, selector) in SOURCES.items():
        if not root.is_dir():
            raise SystemExit(f"{root} is missing: install the Debian package {package}")
        for path in sorted(root.rglob("*.html")):
            page = f"{package}/{path.relative_to(root)}"
            if SKIPPED_PAGES.search(page):
                continue
            text = page_text(path.read_text(encoding="utf-8", errors="strict"), selector)
            digest = hashlib.sha256(text.encode()).hexdigest()
            if len(text) < 200 or digest in seen:
                continue
            seen.add(digest)
            corpus[split_of(page)].append({"source": page, "text": text})
    return corpus


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=SEQUENCE_LENGTH,
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[dict[str, str]]) -> np.ndarray:
    """All documents as one stream of token ids `[tokens]`, each followed by the end-of-text token."""
    ids: list[int] = []
    for document in documents:
        ids.extend(tokenizer(document["text"], verbose=False)["input_ids"])
        ids.append(tokenizer.eos_token_id)
    return np.array(ids, dtype=np.int64)


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


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return PEAK_LEARNING_RATE * max(0.0, (steps - step) / (steps - WARMUP_STEPS))


def batch_at(stream: np.ndarray, step: int, seed: int) -> torch.Tensor:
    """Token ids `[batch, sequence + 1]`: windows without overlap, in an order shuffled anew each epoch."""
    windows = (len(stream) - 1) // SEQUENCE_LENGTH
    per_epoch = windows // BATCH
    epoch, position = divmod(step, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    offset = int(rng.integers(0, SEQUENCE_LENGTH))
    order = rng.permutation(windows - 1)[position * BATCH : (position + 1) * BATCH]
    starts = order * SEQUENCE_LENGTH + offset
    return torch.from_numpy(np.stack([stream[s : s + SEQUENCE_LENGTH + 1] for s in starts]))


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: torch.nn.Module, stream: np.ndarray, text_bytes: int) -> float:
    """Cross-entropy in bits per UTF-8 byte over consecutive windows of `stream`."""
    model.eval()
    windows = (len(stream) - 1) // SEQUENCE_LENGTH
    total = 0.0
    for start in range(0, windows, BATCH):
        rows = range(start, min(start + BATCH, windows))
        batch = torch.from_numpy(np.stack([stream[r * SEQUENCE_LENGTH : (r + 1) * SEQUENCE_LENGTH + 1] for r in rows]))
        total += float(loss_of(model, batch)) * len(rows)
    model.train()
    return total / windows / math.log(2) * len(stream) / text_bytes


def utf8_bytes(documents: list[dict[str, str]]) -> int:
    return sum(len(document["text"].encode()) for document in documents)


def train(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, corpus: dict[str, list[dict[str, str]]]
) -> LlamaForCausalLM:
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    stream = encode(tokenizer, corpus["train"])
    validation = encode(tokenizer, corpus["validation"])
    model = build_model()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    checkpoint = args.work / "checkpoint.pt"
    first = 0
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    compiled = torch.compile(model)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} training tokens", flush=True)
    started = time.monotonic()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps)
        loss = loss_of(compiled, batch_at(stream, step, args.seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19:
            speed = (step + 1 - first) * BATCH * SEQUENCE_LENGTH / (time.monotonic() - started)
            print(f"step {step + 1}/{args.steps} loss {float(loss):.4f} {speed:,.0f} tokens/s", flush=True)
        if step % 200 == 199:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)
        if step % 400 == 399:
            bits = bits_per_byte(model, validation, utf8_bytes(corpus["validation"]))
            print(f"step {step + 1} validation {bits:.4f} bits per byte", flush=True)
    return model


def texts_beside(out: Path) -> Path:
    return out.parent / "manuals-texts"


def write_splits(out: Path, corpus: dict[str, list[dict[str, str]]]) -> None:
    texts = texts_beside(out)
    texts.mkdir(parents=True, exist_ok=True)
    for name in ("calibration", "test", "reserve"):
        lines = [json.dumps(document, ensure_ascii=False) for document in corpus[name]]
        (texts / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def megabytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


def write_card(out: Path, corpus: dict[str, list[dict[str, str]]], bits: float, args: argparse.Namespace) -> None:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--work", type=Path, default=Path("/tmp/train-manuals"), help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=2700, help="optimiser updates of 8 x 256 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    corpus = read_corpus()
    for name, documents in corpus.items():
        print(f"{name}: {len(documents)} pages, {utf8_bytes(documents):,} bytes", flush=True)
    write_splits(args.out, corpus)
    tokenizer = train_tokenizer([document["text"] for document in corpus["train"]])
    tokenizer.save_pretrained(args.out)

    model = train(args, tokenizer, corpus).to(torch.bfloat16)
    model.save_pretrained(args.out)
    model = model.float()  # the rounded weights, measured with float32 arithmetic as the service does on a CPU
    test = encode(tokenizer, corpus["test"])
    bits = bits_per_byte(model, test, utf8_bytes(corpus["test"]))
    print(f"test {bits:.4f} bits per byte", flush=True)
    write_card(args.out, corpus, bits, args)


if __name__ == "__main__":
    main()
