"""A process that has seen no model of the test, and loads folders with nothing of this project, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

# One line in, {"folder": …, "ids": …}; one line out, what loading it complained of. The logits go beside the folder.
CODE = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()
for line in sys.stdin:
    asked = json.loads(line)
    model, loading = AutoModelForCausalLM.from_pretrained(
        asked["folder"], dtype=torch.float32, output_loading_info=True
    )
    with torch.no_grad():
        logits = model(torch.tensor(asked["ids"]), use_cache=False).logits
    save_file({"logits": logits}, asked["folder"] + ".safetensors")
    print(json.dumps([str(key) for keys in loading.values() for key in keys]), flush=True)
"""


@dataclass(frozen=True)
class FreshProcess:
    """Serves many folders one after the other; only their paths and token ids reach it."""

    process: subprocess.Popen[str]

    def logits(self, folder: Path, ids: Tensor) -> Tensor:
        """Those `[batch, seq, vocabulary]` of the checkpoint `folder`, which must load without a complaint."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "ids": ids.tolist()}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process ended: its error stands above"
        assert json.loads(answer) == []
        return load_file(f"{folder}.safetensors")["logits"]


@contextmanager
def fresh_process() -> Iterator[FreshProcess]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield FreshProcess(process)
