from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from elder_core.reports import formatting
from elder_core.reports.assets import static_dir
from elder_core.reports.charts import MOST_POINTS, charts, gate_path, layer_weights, training
from elder_core.reports.html import embedded_json, render
from elder_core.reports.summary import summary
from elder_core.reports.targets import asked, before_training, missed
from elder_core.reports.write import write
from elder_core.spec import (
    Environment,
    Evaluation,
    Expected,
    GatePoint,
    Generation,
    Ideal,
    JobSpec,
    LayerReport,
    Measurement,
    ModelRef,
    ModelSummary,
    Report,
    Stage,
    TrainingPoint,
)
from elder_core.target import Target

LAYERS = 16
REMOVED = (5, 7, 9, 10)
EVIL = "</script><script>alert(1)</script><!-- <b>& \u2028"


def measurement(*, layers: int, scale: float, perplexity: float) -> Measurement:
    return Measurement(
        layers=layers,
        parameters=round(7_310_000 * scale),
        bytes_on_disk=round(14_620_000 * scale),
        perplexity=perplexity,
        bits_per_byte=math.log2(perplexity) / 3.1,
        prefill_tokens_per_second=4000 / scale,
        prefill_latency_seconds=0.056 * scale,
        decode_tokens_per_second=110 / scale,
        decode_latency_seconds=scale / 110,
        peak_memory_bytes=round(88_000_000 * scale),
    )


def ratios(before: Measurement, after: Measurement) -> dict[str, float]:
    old, new = before.model_dump(), after.model_dump()
    return {name: new[name] / old[name] for name in old}


def gates() -> tuple[GatePoint, ...]:
    points = []
    for round_ in range(4):
        for step in range(100):
            weights = [
                max(0.0, 1 - (step + 1) / (40 + 7 * layer)) if layer in REMOVED else 1 - 0.3 * step / (200 + 20 * layer)
                for layer in range(LAYERS)
            ]
            points.append(GatePoint(round=round_, step=step, loss=0.2, weights=tuple(weights)))
    return tuple(points)


def report(**changes: object) -> Report:
    before = measurement(layers=16, scale=1, perplexity=40.1)
    after = measurement(layers=12, scale=0.79, perplexity=43.6)
    made = Report(
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        spec=JobSpec(model=ModelRef(id="builtin:manuals-16l"), ratio=0.25),
        model=ModelSummary(
            id="builtin:manuals-16l",
            revision="sha256:" + "0123456789abcdef" * 4,
            architecture="LlamaForCausalLM",
            layers=16,
            parameters=7_310_000,
            dtype="bfloat16",
        ),
        removed_layers=REMOVED,
        layers=tuple(
            LayerReport(
                index=index,
                weight=0.04 if index in REMOVED else 0.35 + (index - 8) ** 2 / 100,
                removed=index in REMOVED,
                new_index=None if index in REMOVED else index - sum(other < index for other in REMOVED),
            )
            for index in range(LAYERS)
        ),
        weight_label="learnt layer weight",
        gate_path=gates(),
        training=tuple(
            TrainingPoint(
                update=update,
                loss=0.3 / (1 + update / 20) + 0.02 * math.sin(7 * update),
                penalty=math.exp(-update / 20),
                gate=max(0.0, 1 - update / 30),
                learning_rate=1e-3,
            )
            for update in range(120)
        ),
        evaluation=Evaluation(
            source="builtin:manuals-test",
            sequences=128,
            sequence_length=256,
            tokens=128 * 255,
            before=before,
            after=after,
            ratios=ratios(before, after),
            ideal=Ideal(prefill_speedup=1.3, decode_speedup=1.31),
        ),
        generations=(
            Generation(
                prompt="The function returns a list of",
                before=" all the names that the module exports.\n\nChanged in version 3.9: ...",
                after=" the names in the module.",
            ),
            Generation(prompt="CREATE INDEX builds", before=" an index on the table.", after=" a table on an index."),
        ),
        stage_seconds={Stage.LOADING: 0.5, Stage.SELECTING: 44.2, Stage.REGULARIZING: 95.0},
        peak_memory_bytes=900_000_000,
        environment=Environment(
            device="cpu",
            cpu="Some Processor @ 2.50GHz",
            threads=2,
            platform="Linux-6.1-x86_64",
            versions={"elder": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0"},
        ),
        warnings=("2 evaluation documents are calibration documents too.",),
    )
    return made.model_copy(update=changes)


class Page(HTMLParser):
    """Tags that stay open, what would be loaded, and the JSON within."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})
    LOADS = ("src", "srcset", "poster", "data", "action", "background")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.data: list[object] = []
        self._json = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.loads += [given[name] or "" for name in self.LOADS if name in given]
        if tag == "link":
            self.loads.append(given.get("href") or "")
        self._json = given.get("type") == "application/json"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._json:
            self.data.append(json.loads(data))
            self._json = False


def test_page_is_well_formed_and_loads_nothing() -> None:
    page = Page(render(report()))

    assert page.open == []
    assert page.loads == []
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("canvas") == page.tags.count("figure") == len(page.data) == len(charts(report()))


def test_styles_and_scripts_name_no_address_to_load() -> None:
    style = render(report()).split("<style>")[1].split("</style>")[0]
    script = (static_dir() / "charts.js").read_text(encoding="utf-8")

    for text in (style, script):
        assert "url(" not in text
        assert "@import" not in text
        assert "http" not in text
    assert "default-src 'none'" in render(report())
    assert "sourceMappingURL" not in render(report())


def test_text_of_others_stays_text() -> None:
    evil = report(
        generations=(Generation(prompt=EVIL, before=EVIL, after=EVIL),),
        warnings=(EVIL,),
        weight_label=EVIL,
        model=report().model.model_copy(update={"id": EVIL, "revision": EVIL}),
    )

    page = Page(render(evil))

    assert page.open == []
    assert page.tags.count("script") == Page(render(report())).tags.count("script")
    assert "<script>alert" not in render(evil)


def test_embedded_json_comes_back_unchanged() -> None:
    text = embedded_json({"a": EVIL})

    assert "<" not in text
    assert json.loads(text) == {"a": EVIL}


def test_every_chart_has_a_table_of_its_shape() -> None:
    found = charts(report())

    assert [chart.id for chart in found] == [
        "comparison",
        "layer-weights",
        "gate-path",
        "training-loss",
        "training-penalty",
        "training-gate",
    ]
    for chart in found:
        assert chart.table.rows
        assert {len(row) for row in chart.table.rows} == {len(chart.table.columns)}
        json.dumps(chart.config, allow_nan=False)


def test_removed_layers_differ_by_more_than_colour() -> None:
    chart = layer_weights(report().layers, "weight")
    kept, removed = chart.config["data"]["datasets"]

    marked = [name for name, mark in chart.config["data"]["labels"] if mark]
    assert marked == [str(layer) for layer in REMOVED]
    assert removed["backgroundColor"].startswith("hatch:")
    assert [(one is None) != (other is None) for one, other in zip(kept["data"], removed["data"], strict=True)] == [
        True
    ] * LAYERS
    assert "5, 7, 9 and 10" in chart.summary


def test_comparison_is_in_percent_of_before() -> None:
    before, after, ideal = charts(report())[0].config["data"]["datasets"]

    assert set(before["data"]) == {100.0}
    assert after["data"][0] == pytest.approx(100 * 43.6 / 40.1, rel=1e-5)
    assert after["texts"][0] == "43.6 (+8.7 %)"
    assert [value for value in ideal["data"] if value is not None] == [131, 130]


def test_a_huge_ratio_is_cut_and_said_so() -> None:
    evaluation = report().evaluation
    worse = evaluation.model_copy(update={"ratios": evaluation.ratios | {"perplexity": 90.0}})

    chart = charts(report(evaluation=worse))[0]

    assert chart.config["options"]["scales"]["x"]["max"] == 300
    assert "cut at 300 %" in chart.summary


def test_charts_of_partial_data() -> None:
    points = tuple(TrainingPoint(update=update, loss=1.0, learning_rate=1e-3) for update in range(3))

    assert [chart.id for chart in training(points)] == ["training-loss"]
    assert training(()) == []
    assert gate_path((), ()).config["data"]["datasets"] == []
    assert layer_weights((), "weight").table.rows == ()


def test_long_runs_are_thinned_with_both_ends_kept() -> None:
    points = tuple(TrainingPoint(update=update, loss=1.0, learning_rate=1e-3) for update in range(5000))

    data = training(points)[0].config["data"]["datasets"][0]["data"]

    assert len(data) == MOST_POINTS
    assert (data[0]["x"], data[-1]["x"]) == (0, 4999)


def test_a_value_that_is_no_number_leaves_a_gap() -> None:
    points = [TrainingPoint(update=0, loss=math.nan, learning_rate=1e-3)]

    assert training(points)[0].config["data"]["datasets"][0]["data"] == [{"x": 0, "y": None}]


def test_report_without_speed_weights_training_or_texts() -> None:
    cheap = {"layers": 16, "parameters": 100, "bytes_on_disk": 200, "perplexity": 40.0, "bits_per_byte": 1.7}
    before = Measurement(**cheap)
    after = before.model_copy(update={"layers": 12, "parameters": 80})
    evaluation = report().evaluation.model_copy(
        update={
            "before": before,
            "after": after,
            "ideal": None,
            "ratios": {name: getattr(after, name) / value for name, value in cheap.items()},
        }
    )
    layers = tuple(layer.model_copy(update={"weight": None}) for layer in report().layers)
    bare = report(evaluation=evaluation, layers=layers, gate_path=(), training=(), generations=(), warnings=())

    page = Page(render(bare))

    assert [chart.id for chart in charts(bare)] == ["comparison"]
    assert page.open == []
    assert "20 % fewer parameters." in summary(bare)


def test_summary_is_in_plain_words() -> None:
    assert summary(report()) == (
        "ELDeR removed 4 of the 16 layers of builtin:manuals-16l (layers 5, 7, 9 and 10). "
        "The model has 21 % fewer parameters and writes text 1.27 times as fast, of an ideal 1.31. "
        "Its perplexity on text that it never saw, where lower is better, went from 40.1 to 43.6 (+8.7 %)."
    )


def test_written_json_reads_back_as_the_same_report(tmp_path: Path) -> None:
    write(report(), tmp_path / "new" / "reports")

    folder = tmp_path / "new" / "reports"
    assert Report.model_validate_json((folder / "report.json").read_text(encoding="utf-8")) == report()
    assert (folder / "report.html").read_text(encoding="utf-8") == render(report())


def test_reports_import_no_torch() -> None:
    code = "import sys, elder_core.reports.write; print('torch' in sys.modules or 'transformers' in sys.modules)"

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.number(0), "0"),
        (formatting.number(0.012345), "0.0123"),
        (formatting.number(43.56), "43.6"),
        (formatting.number(1234.4), "1,234"),
        (formatting.number(math.inf), "inf"),
        (formatting.count(16), "16"),
        (formatting.count(7_310_000), "7.31 million"),
        (formatting.count(8e9), "8.00 billion"),
        (formatting.size(512), "512 bytes"),
        (formatting.size(14_620_000), "14.6 MB"),
        (formatting.duration(0.0081), "8.10 ms"),
        (formatting.duration(4.567), "4.57 s"),
        (formatting.duration(200), "3 min 20 s"),
        (formatting.duration(7300), "2 h 1 min"),
        (formatting.change(1.0001), "0.0 %"),
        (formatting.change(0.79), "−21 %"),
        (formatting.change(1.085), "+8.5 %"),
        (formatting.listing([3]), "3"),
        (formatting.listing([3, 5, 7]), "3, 5 and 7"),
        (formatting.listing([]), "none"),
    ],
)
def test_numbers_for_people(written: str, expected: str) -> None:
    assert written == expected


# Targets


EXPECTED = Expected(
    layers=4,
    perplexity_before=40.0,
    perplexity_after=46.5,
    sequences=32,
    kept_apart=True,
    decode_speedup=1.31,
    bytes_on_disk=11_549_800,
)


@pytest.mark.parametrize(
    ("target", "words", "warning"),
    [
        (Target(max_perplexity_increase=0.1), "at most 10 % more perplexity", None),
        (Target(max_perplexity_increase=0.08), "at most 8 % more perplexity", "perplexity +8.7 %"),
        (Target(max_bytes=11_549_800), "at most 11.5 MB", None),
        (Target(max_bytes=11_549_799), "at most 11.5 MB", "11,549,800 bytes"),
        (Target(min_speedup=1.26), "at least 1.26 times as fast", None),
        (Target(min_speedup=1.27), "at least 1.27 times as fast", "decode speed ×1.266"),
    ],
)
def test_a_target_that_the_result_misses_is_warned_of(target: Target, words: str, warning: str | None) -> None:
    assert asked(target) == words
    found = missed(target, report().evaluation)
    assert found == (f"The target, {words}, is missed: measured {warning}." if warning else None)


def test_a_speed_that_was_not_measured_is_not_met() -> None:
    evaluation = report().evaluation
    slow = evaluation.model_copy(update={"ratios": {"perplexity": 1.0, "parameters": 0.8}})
    assert "evaluation.speed is off" in (missed(Target(min_speedup=1.2), slow) or "")


def test_what_was_expected_is_told_in_a_sentence() -> None:
    assert before_training(EXPECTED) == (
        "4 layers: perplexity +16 % before training, on 32 sequences kept apart from learning, "
        "ideal decode speed ×1.31, 11.5 MB on disk"
    )
    poor = EXPECTED.model_copy(
        update={"layers": 1, "perplexity_after": None, "kept_apart": False, "decode_speedup": None}
    )
    assert before_training(poor).startswith("1 layer: perplexity no number before training, on 32 cal")


def test_the_page_tells_of_a_target_and_of_none() -> None:
    spec = JobSpec(model=ModelRef(id="m"), target=Target(max_bytes=12_000_000))
    page = render(report(spec=spec, expected=EXPECTED))
    assert "Asked for" in page
    assert "at most 12.0 MB" in page
    assert "4 layers: perplexity +16 %" in page
    assert "11,549,800 bytes" in page
    assert "Asked for" not in render(report())


def test_layers_that_were_out_from_the_first_update_on_have_no_chart_of_their_weight() -> None:
    points = [TrainingPoint(update=update, loss=1.0, gate=0.0, learning_rate=1e-3) for update in (1, 2)]
    assert [chart.title for chart in training(points)] == ["Training loss"]
    faded = [points[0].model_copy(update={"gate": 0.5}), points[1]]
    assert [chart.title for chart in training(faded)] == ["Training loss", "Weight of the chosen layers"]
