"""What the scripts beside it have in common: small language models of a few million parameters, trained on a CPU."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Corpus = dict[str, list[dict[str, str]]]
"""Split name → documents, each with its `source` and its `text`."""

END_OF_TEXT = "<|endoftext|>"

SPLITS = {"test": 4, "reserve": 4, "validation": 2, "calibration": 8}
STORED = ("calibration", "test", "reserve", "validation")

SHORTEST = 200  # characters of a document
VOCABULARY = 4096
SEQUENCE_LENGTH = 256
BATCH = 8
PEAK_LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 100


def split_of(page: str) -> str:
    """The split that the document called `page` belongs to."""
    bucket = int.from_bytes(hashlib.sha256(page.encode()).digest()[:4], "big") % 100
    for name, share in SPLITS.items():
        if bucket < share:
            return name
        bucket -= share
    return "train"


def split_corpus(documents: Iterable[tuple[str, str]]) -> Corpus:
    """(source, text) of documents, each in its split; short ones are left out, and those that were there already."""
    corpus: Corpus = {name: [] for name in [*SPLITS, "train"]}
    seen: set[str] = set()
    for source, text in documents:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if len(text) >= SHORTEST and digest not in seen:
            seen.add(digest)
            corpus[split_of(source)].append({"source": source, "text": text})
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


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then linear decay to zero."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    return peak * max(0.0, (steps - step) / (steps - WARMUP_STEPS))


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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    *,
    steps: int,
    seed: int,
    work: Path,
    resume: bool,
    peak: float = PEAK_LEARNING_RATE,
    bfloat16: bool = False,
) -> None:
    """Train `model` in place for `steps` updates of 8 x 256 tokens, at the learning rate `peak` after a warm-up.

    Checkpoints go to the folder `work`.
    With `bfloat16`, matrices are multiplied in that: faster on CPUs with AMX, far slower on others.
    """
    torch.set_flush_denormal(True)
    stream = encode(tokenizer, corpus["train"])
    validation = encode(tokenizer, corpus["validation"])
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=True,
    )
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    first = 0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    compiled = torch.compile(model)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} training tokens", flush=True)
    started = time.monotonic()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = loss_of(compiled, batch_at(stream, step, seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19:
            speed = (step + 1 - first) * BATCH * SEQUENCE_LENGTH / (time.monotonic() - started)
            print(f"step {step + 1}/{steps} loss {float(loss):.4f} {speed:,.0f} tokens/s", flush=True)
        if step % 200 == 199:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, checkpoint)
        if step % 400 == 399:
            bits = bits_per_byte(model, validation, utf8_bytes(corpus["validation"]))
            print(f"step {step + 1} validation {bits:.4f} bits per byte", flush=True)


def write_splits(folder: Path, corpus: Corpus) -> None:
    """The splits that are stored, one JSON object a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in STORED:
        lines = [json.dumps(document, ensure_ascii=False) for document in corpus[name]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path, test: Sequence[dict[str, str]]
) -> float:
    """Save in bfloat16; bits per byte of the rounded weights on `test`, in float32 as the service computes on a CPU."""
    tokenizer.save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)
    bits = bits_per_byte(model.float(), encode(tokenizer, list(test)), utf8_bytes(list(test)))
    print(f"test {bits:.4f} bits per byte", flush=True)
    return bits


def parser(description: str | None, *, work: Path, steps: int) -> argparse.ArgumentParser:
    """The options that every script has."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    found.add_argument("--work", type=Path, default=work, help="folder for checkpoints")
    found.add_argument("--steps", type=int, default=steps, help="optimiser updates of 8 x 256 tokens")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --work")
    return found
