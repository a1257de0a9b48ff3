"""A process that has seen no model of the test, and loads folders with nothing of this project, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

# One line in, {"folder": …, "new_tokens": …}; one line out, what was found. Tensors go in files beside the folder.
CODE = """
import json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
for line in sys.stdin:
    asked = json.loads(line)
    given = load_file(asked["folder"] + ".given.safetensors")
    automatic = AutoModelForImageTextToText if "pixel_values" in given else AutoModelForCausalLM
    model, loading = automatic.from_pretrained(asked["folder"], dtype=torch.float32, output_loading_info=True)
    model.config.validate()
    with torch.no_grad():
        found = {"logits": model(**given, use_cache=False).logits}
        found["default"] = model(**given).logits
    for use_cache in (True, False) if (count := asked["new_tokens"]) else ():
        new = model.generate(**given, attention_mask=torch.ones_like(given["input_ids"]), max_new_tokens=count,
                             min_new_tokens=count, do_sample=False, use_cache=use_cache, output_logits=True,
                             suppress_tokens=asked["never"], return_dict_in_generate=True)
        found[f"new {use_cache}"] = torch.cat(new.logits)
    save_file(found, asked["folder"] + ".found.safetensors")
    head = model.get_output_embeddings() or model.get_decoder().lm_head
    facts = {
        "complaints": [str(key) for keys in loading.values() for key in keys],
        "tied": getattr(head, "weight", None) is model.get_input_embeddings().weight,
        "model_class": type(model).__name__,
    }
    print(json.dumps(facts), flush=True)
"""


@dataclass(frozen=True)
class Found:
    """What a folder holds once it is loaded, its config being valid.

    `logits` `[batch, seq, vocabulary]` are of the forward pass, without cache and as it is by default; `new`
    `[step, vocabulary]` of new tokens, by whether the cache was used. `complaints` are those of loading.
    """

    logits: tuple[Tensor, Tensor]
    new: Mapping[bool, Tensor]
    complaints: list[str]
    tied: bool
    model_class: str


@dataclass(frozen=True)
class FreshProcess:
    """Serves many folders one after the other; only their paths and the model's inputs reach it."""

    process: subprocess.Popen[str]

    def load(
        self, folder: Path, given: Mapping[str, Tensor], *, new_tokens: int = 0, never: list[int] | None = None
    ) -> Found:
        """Load the checkpoint `folder`, which sees if `given` holds an image, and run it; `never` is not generated."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        save_file(dict(given), f"{folder}.given.safetensors")
        self.process.stdin.write(json.dumps({"folder": str(folder), "new_tokens": new_tokens, "never": never}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process ended: its error stands above"
        found = load_file(f"{folder}.found.safetensors")
        return Found(
            logits=(found["logits"], found["default"]),
            new={use_cache: found[f"new {use_cache}"] for use_cache in (True, False)} if new_tokens else {},
            **json.loads(answer),
        )


@contextmanager
def fresh_process() -> Iterator[FreshProcess]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield FreshProcess(process)
