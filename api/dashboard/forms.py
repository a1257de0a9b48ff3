"""The form that submits a job: what is asked, and what was typed turned into the body of POST /v1/jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from api.dashboard.fields import Field, fields_of
from api.schemas import JobCreate, JobNeeds
from elder_core.errors import AmbiguousTarget, ElderError, in_words
from elder_core.registry import METHODS
from elder_core.spec import CalibrationSpec, EvaluationSpec, ModelRef, OutputSpec
from elder_core.target import Target

TARGETS = ("ratio", "layers_to_remove", "layers")
METHOD_CHOICE = "method.name"
TARGET_CHOICE = "target"

# Shown at once; the others of a method stand behind "More parameters".
MAIN_PARAMETERS = frozenset(
    {"gate_penalty", "gate_steps", "penalty", "norm", "tokens", "batch_size", "learning_rate", "weights"}
)
FEW = 3


@dataclass(frozen=True)
class Section:
    """A group of fields; those in `more` are folded away."""

    title: str
    main: tuple[Field, ...]
    more: tuple[Field, ...] = ()

    @property
    def fields(self) -> tuple[Field, ...]:
        return (*self.main, *self.more)


@dataclass(frozen=True)
class MethodChoice:
    name: str
    title: str
    summary: str
    source: str
    section: Section


@dataclass(frozen=True)
class Blank:
    """The form as it is declared, without anything typed."""

    model: Section
    targets: tuple[Field, ...]
    methods: tuple[MethodChoice, ...]
    calibration: Section
    evaluation: Section
    output: Section
    job: Section

    @property
    def sections(self) -> tuple[Section, ...]:
        return (self.model, self.calibration, self.evaluation, self.output, self.job)

    def method(self, name: str) -> MethodChoice | None:
        return next((method for method in self.methods if method.name == name), None)

    def all_fields(self) -> Iterator[Field]:
        for section in (*self.sections, *(method.section for method in self.methods)):
            yield from section.fields
        yield from self.targets


@dataclass(frozen=True)
class Errors:
    """What is wrong, by the name of the field, and what belongs to none."""

    fields: Mapping[str, str]
    general: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fields or self.general)


@cache
def blank() -> Blank:
    job = {field.name: field for field in fields_of(JobCreate)}
    return Blank(
        model=Section("Model", fields_of(ModelRef, "model")),
        targets=(*(job.pop(name) for name in TARGETS), *fields_of(Target, "target")),
        methods=tuple(_method(name) for name in METHODS),
        calibration=Section("Calibration", *_split(fields_of(CalibrationSpec, "calibration"), {"source", "samples"})),
        evaluation=Section("Evaluation", *_split(fields_of(EvaluationSpec, "evaluation"), {"source", "samples"})),
        output=Section("Output", fields_of(OutputSpec, "output")),
        job=Section("Job", (*job.values(), *fields_of(JobNeeds, "needs"))),
    )


def _method(name: str) -> MethodChoice:
    entry = METHODS[name]
    fields = fields_of(entry.parameters, "method", name)
    section = Section(entry.title, *(_split(fields, MAIN_PARAMETERS) if len(fields) > FEW else (fields, ())))
    return MethodChoice(name, entry.title, entry.summary, entry.source, section)


def _split(fields: Sequence[Field], main: set[str] | frozenset[str]) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    shown = tuple(field for field in fields if field.loc[-1] in main)
    return shown, tuple(field for field in fields if field.loc[-1] not in main)


def defaults() -> dict[str, str]:
    """What the form holds when it is opened."""
    values = {field.name: field.default for field in blank().all_fields() if field.default}
    return {**values, METHOD_CHOICE: next(iter(METHODS)), TARGET_CHOICE: TARGETS[0], TARGETS[0]: "0.25"}


def body_of(values: Mapping[str, str]) -> dict[str, Any]:
    """The body of POST /v1/jobs for what was typed; fields of methods and targets not chosen are left out.

    An empty field is null where null is allowed, and else takes its default.
    """
    form = blank()
    method = form.method(values.get(METHOD_CHOICE, ""))
    fields = [field for section in form.sections for field in section.fields]
    fields += [field for field in form.targets if field.name == values.get(TARGET_CHOICE)]
    fields += method.section.fields if method else ()
    body: dict[str, Any] = {"model": {}, "method": {"name": values.get(METHOD_CHOICE, "")}}
    for field in fields:
        parsed = field.parse(values.get(field.name))
        if parsed is not None or field.nullable:
            _put(body, field.path, parsed)
    return body


def _put(body: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        body = body.setdefault(key, {})
    body[path[-1]] = value


def errors_of(error: ValidationError | ElderError, values: Mapping[str, str]) -> Errors:
    """Each message beside the field that it is about."""
    names = {field.name for field in blank().all_fields()} | {METHOD_CHOICE}
    found: dict[str, str] = {}
    general: list[str] = []
    for loc, message in _messages(error, values):
        name = _nearest(loc, names)
        if name is None:
            general.append(message)
        else:
            found.setdefault(name, message)
    return Errors(found, tuple(general))


def _messages(
    error: ValidationError | ElderError, values: Mapping[str, str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(error, ElderError):
        # The form lets one target be chosen, so "none given" is about the one that was left empty.
        chosen = (values.get(TARGET_CHOICE, TARGETS[0]),) if isinstance(error, AmbiguousTarget) else ()
        yield error.loc or chosen, error.message
        return
    for one in error.errors():
        yield one["loc"], f"{in_words(one)}."


def _nearest(loc: Sequence[str | int], names: set[str]) -> str | None:
    """The longest beginning of `loc` that is the name of a field."""
    names_of_loc = (".".join(map(str, loc[:length])) for length in range(len(loc), 0, -1))
    return next((name for name in names_of_loc if name in names), None)
