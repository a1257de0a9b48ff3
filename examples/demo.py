"""`make demo`: a real language model made a quarter shorter by the real service, start to finish.

Starts a server in a folder of its own, submits a job through the command line client, follows it, downloads and
verifies the result, loads it with plain transformers, and leaves `demo-output/{report.json,report.html,model/}`.
Exit status 0 if all of that worked; otherwise a sentence says what did not, with the end of the server's log.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elder_client.types import Report

MODEL = "builtin:manuals-16l"
RATIO = 0.25
PROMPT = "The function returns"
OUTPUT = Path(__file__).resolve().parent.parent / "demo-output"

PROGRAMS = Path(sys.executable).parent
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
LOG_LINES = 40

console = Console(highlight=False)


class DemoFailed(Exception):  # reads as the sentence that it prints
    """A step of the demo did not do what it should."""


def main() -> int:
    signal.signal(signal.SIGTERM, _exit_on_signal)
    with tempfile.TemporaryDirectory(prefix="elder-demo-") as scratch:
        log = Path(scratch) / "server.log"
        try:
            demo(Path(scratch), log)
        except (DemoFailed, OSError, ValueError) as error:  # the last two: a file that is missing or malformed
            console.print(f"\n[red]The demo failed:[/red] {escape(str(error))}")
            _print_tail(log)
            return 1
        except KeyboardInterrupt:
            console.print("\nThe demo was interrupted; the server is stopped.")
            return 130
    return 0


def demo(scratch: Path, log: Path) -> None:
    """All of it, in order.

    Raises:
        DemoFailed: the message says what went wrong.
    """
    shutil.rmtree(OUTPUT, ignore_errors=True)
    with running_server(scratch, log) as url:
        job_id = prune(url)
        step(f"elder download {job_id} {OUTPUT.name}")
        elder("download", job_id, str(OUTPUT), "--server", url)
    verify_hashes(OUTPUT / "model")
    step("Loading the result with plain transformers")
    sentence = generate(OUTPUT / "model")
    report = Report.model_validate_json((OUTPUT / "report.json").read_bytes())
    print_summary(report, sentence)


@contextmanager
def running_server(scratch: Path, log: Path) -> Iterator[str]:
    """A server with everything below `scratch`; yields its URL and stops it in the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    step(f"elder-server serve --port {port}")
    command = [str(PROGRAMS / "elder-server"), "serve", "--port", str(port), "--data-dir", str(scratch / "data")]
    with log.open("wb") as output:
        # a session of its own: Ctrl-C reaches the demo alone, which then stops the server in order
        server = subprocess.Popen(
            command, cwd=scratch, env=_own_environment(), stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_ready(server, url)
        console.print(f"The server is ready; its dashboard is at {url}/")
        yield url
    finally:
        stop(server)


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DemoFailed(f"The server ended while starting, with exit status {server.returncode}.")
        try:
            if httpx2.get(f"{url}/readyz", timeout=5, trust_env=False).is_success:
                return
        except httpx2.RequestError:
            pass  # not listening yet
        time.sleep(0.2)
    raise DemoFailed(f"The server was not ready after {READY_SECONDS:g} s.")


def stop(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and no process of the server left within 10 seconds.

    Raises:
        DemoFailed: some process was left, and had to be killed.
    """
    # Looked up beforehand: the worker has a session of its own, and whoever outlives the server is no longer its child.
    processes = family(server.pid)
    deadline = time.monotonic() + STOP_SECONDS
    if server.poll() is None:
        server.terminate()
    while (left := [process for process in processes if runs(process)]) and time.monotonic() < deadline:
        server.poll()  # takes note of its end
        time.sleep(0.05)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait()
    if left:
        names = ", ".join(str(process.pid) for process in left)
        raise DemoFailed(f"{STOP_SECONDS:g} s after SIGTERM to the server there still ran, and were killed: {names}.")


def family(pid: int) -> list[psutil.Process]:
    """The process and all that descend from it; none if it is gone."""
    try:
        server = psutil.Process(pid)
        return [server, *server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def runs(process: psutil.Process) -> bool:
    """Not one that has ended and whose new parent has not taken note, either."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def prune(url: str) -> str:
    """Submit the job and show it live until it has ended; returns its id."""
    step(f"elder submit {MODEL} --ratio {RATIO} --follow")
    elder("submit", MODEL, "--ratio", str(RATIO), "--follow", "--server", url)
    jobs = json.loads(elder("list", "--limit", "1", "--json", "--server", url, capture=True))
    return str(jobs[0]["id"])


def elder(*arguments: str, capture: bool = False) -> str:
    """Run the `elder` command on this terminal, or return what it prints."""
    command, output = [str(PROGRAMS / "elder"), *arguments], subprocess.PIPE if capture else None
    done = subprocess.run(command, check=False, text=True, stdout=output)
    if done.returncode != 0:
        raise DemoFailed(f"`elder {arguments[0]}` ended with exit status {done.returncode}.")
    return done.stdout or ""


def verify_hashes(folder: Path) -> None:
    """Every file of the model is the one that `elder.json` describes, and there is no other."""
    files: dict[str, Any] = json.loads((folder / "elder.json").read_text("utf-8"))["files"]
    found = {path.name for path in folder.iterdir()} - {"elder.json"}
    if found != set(files):
        raise DemoFailed(f"elder.json lists {sorted(files)}, but {folder} holds {sorted(found)}.")
    for name, record in files.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                raise DemoFailed(f"{name} is not the file that elder.json describes: its hash differs.")
    console.print(f"{len(files)} hashes in model/elder.json are right")


@dataclass(frozen=True)
class Sentence:
    """What the shorter model makes of a prompt, and how many layers transformers counts in it."""

    text: str
    layers: int


# In a process that knows nothing of this project: what anybody would write.
RELOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = tokenizer(prompt, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
text = tokenizer.decode(tokens[0], skip_special_tokens=True)
print(json.dumps({"text": text, "layers": model.config.num_hidden_layers}))
"""


def generate(folder: Path) -> Sentence:
    """Load the model with transformers alone and let it go on from a prompt."""
    command = [sys.executable, "-I", "-c", RELOAD, str(folder), PROMPT]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"transformers could not load or run the result:\n{done.stderr.strip()[-2000:]}")
    sentence = Sentence(**json.loads(done.stdout))
    if not sentence.text.startswith(PROMPT) or len(sentence.text) == len(PROMPT):
        raise DemoFailed(f"the model generated nothing after {PROMPT!r}.")
    return sentence


def print_summary(report: Report, sentence: Sentence) -> None:
    before, after, ratios = report.evaluation.before, report.evaluation.after, report.evaluation.ratios
    if sentence.layers != after.layers:
        raise DemoFailed(f"the report says {after.layers} layers, transformers loads {sentence.layers}.")
    removed = ", ".join(map(str, report.removed_layers))
    table = Table("", "before", "after", "ratio", title=f"{MODEL} without layers {removed}")
    rows = {
        "perplexity on unseen text": ("perplexity", ".2f"),
        "parameters": ("parameters", ","),
        "layers": ("layers", "d"),
        "decoding, tokens/s": ("decode_tokens_per_second", ".1f"),
    }
    for label, (name, form) in rows.items():
        old, new = getattr(before, name), getattr(after, name)
        ratio = ratios.get(name, new / old)
        table.add_row(label, format(old, form), format(new, form), f"{ratio:.3f}")
    console.print()
    console.print(table)
    console.print(f"[dim]It writes:[/dim] {escape(repr(sentence.text))}")
    console.print(f"\nLook at {OUTPUT.name}/report.html; the model is in {OUTPUT.name}/model/")


def step(text: str) -> None:
    console.print(f"\n[bold]▸ {text}[/bold]")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _own_environment() -> dict[str, str]:
    """Without the settings of another server that this shell may know."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ELDER_")}


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # unwinds, so that the server is stopped


def _print_tail(log: Path) -> None:
    lines = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    if lines:
        console.print("\nThe server's log ends with:", *lines, sep="\n", markup=False)


if __name__ == "__main__":
    sys.exit(main())
