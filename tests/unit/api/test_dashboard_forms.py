from __future__ import annotations

import pytest
from pydantic import ValidationError

from api.dashboard import forms
from api.dashboard.fields import Control, Field
from api.schemas import JobCreate
from elder_core.errors import AmbiguousTarget, InvalidRatio, LayersOutOfRange, ModelNotFound
from elder_core.parameters import ElderParameters, Norm
from elder_core.registry import METHODS
from elder_core.spec import REMOVALS, ModelRef
from elder_core.target import Target


def field(name: str) -> Field:
    return next(one for one in forms.blank().all_fields() if one.name == name)


def typed(**changes: str) -> dict[str, str]:
    """The form as it is opened, with a model, and then `changes` (`__` for the dots of a name)."""
    return {**forms.defaults(), "model.id": "local:m", **{key.replace("__", "."): v for key, v in changes.items()}}


def spec_of(values: dict[str, str]) -> JobCreate:
    return JobCreate.model_validate(forms.body_of(values))


def test_the_form_as_opened_asks_for_what_the_api_does_by_default() -> None:
    assert spec_of(typed()) == JobCreate(model=ModelRef(id="local:m"), ratio=0.25)


def test_every_parameter_of_every_method_is_a_field() -> None:
    for name, entry in METHODS.items():
        method = forms.blank().method(name)
        assert method is not None
        assert {one.loc[-1] for one in method.section.fields} == set(entry.parameters.model_fields) - {"name"}


def test_every_plain_field_of_a_job_is_asked_for() -> None:
    asked = {one.path[0] for one in forms.blank().all_fields()}
    assert asked == set(JobCreate.model_fields)


def test_label_help_limits_and_default_come_from_the_declaration() -> None:
    penalty = field("method.elder.gate_penalty")
    assert penalty.label == "Gate penalty"
    assert penalty.help == ElderParameters.model_fields["gate_penalty"].description
    assert penalty.limits == "From 0 to 100."
    assert not [one for one in forms.blank().all_fields() if "null" in one.help.lower()], "null cannot be typed"
    assert penalty.control is Control.DECIMAL
    assert penalty.default == str(ElderParameters().gate_penalty)
    assert field("method.elder.norm").choices == tuple(Norm)
    assert field("ratio").limits == "Above 0, below 1."
    assert field("evaluation.speed").control is Control.SWITCH


def test_what_is_typed_reaches_the_spec() -> None:
    job = spec_of(
        typed(
            method__elder__updates="7",
            method__elder__norm="l1",
            calibration__samples="32",
            evaluation__prompts="One\n\n Two ",
            metadata="team = models\nnote=a=b",
            priority="high",
        )
    )
    assert isinstance(job.method, ElderParameters)
    assert (job.method.updates, job.method.norm) == (7, Norm.L1)
    assert job.calibration.samples == 32
    assert job.evaluation.prompts == ("One", "Two")
    assert job.metadata == {"team": "models", "note": "a=b"}
    assert job.priority == "high"


def test_only_the_chosen_target_and_method_are_sent() -> None:
    job = spec_of(
        typed(
            target="layers",
            ratio="nonsense",
            layers="3, 7 9",
            method__name="shortgpt",
            method__elder__penalty="nonsense",
        )
    )
    assert (job.ratio, job.layers) == (None, (3, 7, 9))
    assert job.method.name == "shortgpt"


def test_an_empty_field_is_null_where_null_is_allowed_and_else_the_default() -> None:
    job = spec_of(typed(evaluation__samples="", seed=" "))
    assert job.evaluation.samples is None
    assert job.seed == 0


def test_an_unchecked_box_is_false() -> None:
    values = typed()
    del values["evaluation.speed"]
    assert spec_of(values).evaluation.speed is False


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"model__id": ""}, "model.id"),
        ({"method__elder__penalty": "-1"}, "method.elder.penalty"),
        ({"method__elder__updates": "1.5"}, "method.elder.updates"),
        ({"method__name": "magic"}, "method.name"),
        ({"calibration__sequence_length": "x"}, "calibration.sequence_length"),
        ({"target": "layers", "layers": "1, b"}, "layers"),
        ({"ratio": "much"}, "ratio"),
        ({"target": "target.min_speedup", "target__min_speedup": "1"}, "target.min_speedup"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_what_pydantic_refuses_is_said_beside_its_field(changes: dict[str, str], name: str) -> None:
    values = typed(**changes)
    with pytest.raises(ValidationError) as caught:
        spec_of(values)
    errors = forms.errors_of(caught.value, values)
    assert set(errors.fields) == {name} if name != "method.name" else errors
    assert errors


def test_what_the_service_refuses_is_said_beside_its_field() -> None:
    values = typed(target="layers_to_remove")
    for error, name in (
        (InvalidRatio("r", loc=("ratio",)), "ratio"),
        (LayersOutOfRange("l", loc=("layers", 2)), "layers"),
        (ModelNotFound("m", loc=("model", "id")), "model.id"),
        (AmbiguousTarget("none"), "layers_to_remove"),
    ):
        assert forms.errors_of(error, values) == forms.Errors({name: error.message})


def test_an_error_of_no_field_is_general() -> None:
    assert forms.errors_of(InvalidRatio("hm"), typed()) == forms.Errors({}, ("hm",))


def test_the_form_offers_every_way_to_say_how_much() -> None:
    asked = {one.path[0] for one in forms.blank().targets}
    assert asked == set(REMOVALS)
    limits = {one.path[1] for one in forms.blank().targets if one.path[0] == "target"}
    assert limits == set(Target.model_fields)


def test_a_limit_is_sent_alone() -> None:
    job = spec_of(typed(**{"target": "target.max_bytes", "target.max_bytes": "12000000", "target.min_speedup": "2"}))
    assert job.target == Target(max_bytes=12_000_000)
    assert job.ratio is None


def test_a_limit_left_empty_is_asked_for_beside_it() -> None:
    values = typed(target="target.min_speedup")
    with pytest.raises(AmbiguousTarget) as caught:
        spec_of(values).check_target()
    assert set(forms.errors_of(caught.value, values).fields) == {"target.min_speedup"}
