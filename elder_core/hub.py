"""Models from the Hugging Face hub: resolved to a commit, looked at, and only then downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from elder_core.errors import HubUnreachable, InvalidCheckpoint, ModelNotFound
from elder_core.inspection import CONFIG_FILE, MODEL, inspect_config, refuse_adapter
from elder_core.weight_files import INDEX_FILE, SINGLE_FILE, read_json_object, refuse_pickled

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"  # in the one folder that transformers saves in a checkpoint
PROCESSOR_PATTERNS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
TEXT_PATTERNS = ("generation_config.json", "README.md", "LICENSE*", "NOTICE*")
# The index names its shards; these are the ways in which repositories call them.
SHARD_PATTERNS = ("model*-*-of-*.safetensors", "pytorch_model*-*-of-*.safetensors")
WEIGHT_PATTERNS = (SINGLE_FILE, INDEX_FILE, *SHARD_PATTERNS)
NEVER = ("*/*", "*.py", "*.bin", "*.pt", "*.pth", "*.pkl")  # also nothing from sub-folders but NAMED_TEMPLATES
TRY_AGAIN = frozenset({408, 429})
GIVE_TOKEN = "set HF_TOKEN (of a service: for the API and the workers)"

# With telemetry, the client first asks the hub for a list of agents, for up to 3 s, and keeps what it is told for a
# day: where a mirror answers that with another kind of JSON, every call fails.
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True)
class Download:
    """A folder that holds the checkpoint of `commit`."""

    path: Path
    commit: str


def fetch(model_id: str, revision: str | None, cache: Path | None) -> Download:
    """Download a hub model, if it can be pruned: config and file names are checked before any weights are fetched.

    With `HF_HUB_OFFLINE` set, what an earlier call left in the cache is used. No code from the hub is ever fetched.

    Raises:
        ModelNotFound: no such model or revision, or no access to it.
        HubUnreachable: the hub does not answer.
        InvalidCheckpoint, PickledWeights, QuantizedCheckpoint, UnsupportedArchitecture: see each.
    """
    api = HfApi()
    with translated(model_id, revision):
        try:
            commit = _check(api, model_id, revision, cache)
        except OfflineModeIsEnabled:
            return _cached(api, model_id, revision, cache)
        return Download(_snapshot(api, model_id, commit, cache), commit)


def _check(api: HfApi, model_id: str, revision: str | None, cache: Path | None) -> str:
    """The commit of a model whose file names and config are those of a checkpoint that can be pruned."""
    commit, _ = listed(api, model_id, revision)
    config = api.hf_hub_download(model_id, CONFIG_FILE, revision=commit, cache_dir=cache)
    inspect_config(read_json_object(Path(config)))
    return commit


def listed(
    api: HfApi, model_id: str, revision: str | None, timeout: float = constants.HF_HUB_ETAG_TIMEOUT
) -> tuple[str, list[str]]:
    """Commit and file names of a model, if these are the names of a checkpoint that can be pruned.

    `timeout` is how many seconds the hub may be silent. Errors are the hub client's; see `translated`.
    """
    commit, files = _info(api, model_id, revision, timeout)
    names = [name for name in files if "/" not in name]
    refuse_adapter(names)
    if CONFIG_FILE not in names:
        raise InvalidCheckpoint(f"{model_id} has no {CONFIG_FILE}: it is no transformers checkpoint.", loc=MODEL)
    refuse_pickled(names)
    return commit, names


def _info(api: HfApi, model_id: str, revision: str | None, timeout: float) -> tuple[str, list[str]]:
    """Commit and file names, also of folders, as the hub tells them."""
    try:
        found = api.model_info(model_id, revision=revision, timeout=timeout)
        names = [sibling.rfilename for sibling in found.siblings or ()]
    except HFValidationError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # The client takes apart, unchecked, whatever comes with status 200.
        raise unreachable(model_id, f"it, or a proxy on the way, answers with something else: {error!r}") from error
    if not isinstance(found.sha, str) or not all(isinstance(name, str) for name in names):
        raise unreachable(model_id, "it, or a proxy on the way, names no commit or no files")
    return found.sha, names


def _snapshot(
    api: HfApi, model_id: str, revision: str | None, cache: Path | None, *, local_files_only: bool = False
) -> Path:
    at_the_top = [CONFIG_FILE, *WEIGHT_PATTERNS, *TOKENIZER_PATTERNS, *PROCESSOR_PATTERNS, *TEXT_PATTERNS]
    folders = [
        api.snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache,
            allow_patterns=allowed,
            ignore_patterns=never,
            local_files_only=local_files_only,
        )
        for allowed, never in ((at_the_top, list(NEVER)), ([NAMED_TEMPLATES], None))  # "*" means "/" too
    ]
    return Path(folders[0])


def _cached(api: HfApi, model_id: str, revision: str | None, cache: Path | None) -> Download:
    path = _snapshot(api, model_id, revision, cache, local_files_only=True)
    return Download(path, commit=path.name)  # the cache names its folders by commit


@contextmanager
def translated(model_id: str, revision: str | None) -> Iterator[None]:
    """Turn the hub client's errors into ours."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelNotFound(f"{model_id} is gated: accept its terms on the hub and {GIVE_TOKEN}.", loc=MODEL) from error
    except RevisionNotFoundError as error:
        raise ModelNotFound(
            f"{model_id} has no revision {revision!r}; give a branch, tag or commit.", loc=("model", "revision")
        ) from error
    except (RepositoryNotFoundError, DisabledRepoError, HFValidationError) as error:
        raise ModelNotFound(
            f"There is no model {model_id} on the hub, or it is private. Check the name; for a private model "
            f"{GIVE_TOKEN}.",
            loc=MODEL,
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if 400 <= status < 500 and status not in TRY_AGAIN:
            raise ModelNotFound(
                f"The hub refuses {model_id} with status {status}; check the name and HF_TOKEN.", loc=MODEL
            ) from error
        raise unreachable(model_id, f"it answers with status {status}") from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise unreachable(model_id, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def unreachable(model_id: str, reason: str) -> HubUnreachable:
    """The error for a hub that, for `reason`, does not give what was asked for."""
    return HubUnreachable(
        f"{model_id} cannot be fetched from the hub ({reason}). Try again later, or give a local model as local:NAME.",
        loc=MODEL,
    )
