"""A job made ready: everything that its spec names found and read, before the method begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from elder_core import checkpoints, devices
from elder_core.budgets import check_budget, most_layers
from elder_core.calibration.token_cache import TokenCache, documents_sha256
from elder_core.calibration.windows import (
    CalibrationText,
    EvaluationText,
    calibration_text,
    evaluation_windows,
    largest_id,
    leading_token,
    window_length,
)
from elder_core.checkpoints import LoadedModel, Resolved
from elder_core.evaluation.environment import environment
from elder_core.evaluation.generation import check_prompts
from elder_core.inspection import Sources, read_texts, text_path
from elder_core.methods.base import Context, Method
from elder_core.monitor import Monitor
from elder_core.overlap import Parted, check_sources, part
from elder_core.parameters import ElderParameters, TrainingParameters
from elder_core.registry import find_method
from elder_core.sizes import count_to_remove, narrowing
from elder_core.spec import JobSpec


@dataclass(frozen=True)
class Job:
    """A spec with everything it names found: documents are read, the target fits the model.

    `count` is how many layers go, None where only the loaded model can tell.
    """

    spec: JobSpec
    device: torch.device
    source: Resolved
    count: int | None
    window_length: int
    calibration: list[str]
    evaluation: Parted
    token_cache: TokenCache

    def method(self) -> Method:
        parameters = self.spec.method_as_run
        return find_method(parameters.name).load()(parameters)

    def identity(self) -> str:
        """SHA-256 of all that decides what comes out: spec, model, texts, versions, kind of device."""
        digest = hashlib.sha256(self.spec.model_dump_json().encode())
        digest.update(repr((self.source.revision, self.device.type, environment("cpu").versions)).encode())
        for documents in (self.calibration, self.evaluation.documents):
            digest.update(documents_sha256(documents))
        return digest.hexdigest()


@dataclass(frozen=True)
class Texts:
    """The texts of a job as tokens, and the tokenizer that made them."""

    tokenizer: PreTrainedTokenizerBase
    calibration: CalibrationText
    evaluation: EvaluationText
    largest_id: int  # of all tokens that the model is going to read


def resolve(spec: JobSpec, sources: Sources, device: str) -> Job:
    """Find what `spec` names, and refuse what can be refused without loading the model.

    Raises:
        InvalidInput, HubUnreachable, DeviceUnavailable: see each.
    """
    spec.check_target()
    chosen = devices.choose(device)
    source = checkpoints.resolve(spec.model, sources)
    check_sources(spec, sources)
    calibration = read_texts(text_path(spec.calibration.source, sources))
    evaluation = read_texts(text_path(spec.evaluation.source, sources))
    return Job(
        spec=spec,
        device=chosen,
        source=source,
        count=count_to_remove(spec, source.info),
        window_length=window_length(spec.calibration.sequence_length, source.info.max_positions),
        calibration=calibration,
        evaluation=part(calibration, evaluation, allowed=spec.evaluation.allow_overlap),
        token_cache=TokenCache(sources.token_cache),
    )


def tokenize(job: Job, monitor: Monitor) -> Texts:
    """The job's texts as tokens; warns of what makes its result worth less, and of settings without effect.

    Raises:
        TextEmpty, TextTooShort, CalibrationTooSmall, PromptEmpty: a text is not enough for this model's tokenizer.
        InvalidCheckpoint: the model has no usable tokenizer.
    """
    tokenizer = checkpoints.load_tokenizer(job.source.path)
    prompts = check_prompts(job.spec.evaluation.prompts, tokenizer)
    length, leading = window_length(None, job.source.info.max_positions), leading_token(tokenizer)
    cut = partial(job.token_cache.stream, tokenizer=tokenizer, tokenizer_hash=checkpoints.tokenizer_hash(job.source))
    documents = job.evaluation.documents
    stream, unseen = cut(job.calibration, field="calibration"), cut(documents, field="evaluation")
    texts = Texts(
        tokenizer,
        _calibration(job, stream, leading),
        evaluation_windows(documents, unseen, length, leading=leading, samples=job.spec.evaluation.samples),
        largest_id(tokenizer, (stream, unseen), prompts),
    )
    layers = job.source.info.layers
    most = most_layers(job.count, layers)
    check_budget(job.spec, job.window_length, texts.calibration.available, most, layers=layers)
    _warn(job, len(texts.calibration.learning), monitor)
    return texts


def load(job: Job, texts: Texts) -> LoadedModel:
    """The job's model on its device, whose memory is counted from here on, to read `texts`."""
    devices.reset_peak_memory(job.device)
    return checkpoints.load(job.source, job.device, largest_id=texts.largest_id)


def context_of(job: Job, loaded: LoadedModel, texts: Texts, monitor: Monitor) -> Context:
    """What the method works on."""
    return Context(
        model=loaded.model, windows=texts.calibration.learning, seed=job.spec.seed, device=job.device, monitor=monitor
    )


def _calibration(job: Job, stream: torch.Tensor, leading: int | None) -> CalibrationText:
    wanted = job.spec.calibration
    return calibration_text(
        stream,
        job.window_length,
        leading=leading,
        samples=wanted.samples,
        seed=wanted.seed,
        keep_apart=job.spec.target is not None,
    )


def _warn(job: Job, sequences: int, monitor: Monitor) -> None:
    samples = job.spec.calibration.samples
    if samples is not None and sequences < samples:
        monitor.warn(
            f"{samples:,} calibration sequences were asked for, but the text fills only {sequences:,} of "
            f"{job.window_length:,} tokens."
        )
    info = job.source.info
    for warning in (*filter(None, [job.evaluation.warning()]), *info.warnings, *narrowing(info, job.spec.output)):
        monitor.warn(warning)
    method = job.spec.method
    if isinstance(method, TrainingParameters):
        for sentence in method.without_effect(layers_named=job.spec.layers is not None):
            monitor.warn(sentence)
    if job.spec.layers is None and not (isinstance(method, ElderParameters) and not method.searched):
        for name in ("search_samples", "scoring_samples"):
            wanted = getattr(method, name, None)
            if wanted is not None and wanted > sequences and name in method.model_fields_set:
                monitor.warn(
                    f"{name} is {wanted:,}, but calibration has only {sequences:,} sequences; all of them were used."
                )
