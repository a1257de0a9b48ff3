from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.dashboard import assets, forms, words
from api.dashboard.rendering import prose
from elder_core.spec import JobSpec, Stage
from elder_service.jobs import repository, service
from elder_service.jobs.repository import JobFilter
from elder_service.jobs.states import Status
from tests.dashboard_site import Site, make_site

SAME_ORIGIN = {"Origin": "http://testserver"}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path / "data")
    yield made
    made.services.engine.dispose()


@pytest.fixture
def client(site: Site) -> TestClient:
    return TestClient(site.app, headers=SAME_ORIGIN, follow_redirects=False)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any model and text through: what validation refuses has tests of its own."""
    monkeypatch.setattr("elder_service.jobs.validation.check", lambda spec, *_: spec.check_target())
    monkeypatch.setattr("api.submission.estimated_memory", lambda *_: None)


def form(**changes: str) -> dict[str, str]:
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return {**forms.defaults(), "model.id": "local:m", "idempotency_key": "form-1", **changes}


def jobs(site: Site) -> list[str]:
    with site.services.sessions.begin() as session:
        return [row.id for row in repository.list_jobs(session, JobFilter(), after=None, limit=100)[0]]


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# The list


def test_an_empty_list_says_what_to_do(client: TestClient) -> None:
    page = client.get("/").text
    assert "No jobs yet" in page
    assert 'href="/jobs/new"' in page


def test_the_list_shows_each_job_where_it_is(client: TestClient, site: Site, tmp_path: Path) -> None:
    done, running, failed, waiting = [site.submit() for _ in range(4)]
    site.succeed(site.claim(), tmp_path)
    held = site.claim()
    site.progress(held, Stage.REGULARIZING, 60, 120, loss=0.1)
    site.fail(site.claim())
    rows = dict(re.findall(r'<tr id="row-(\w+)">(.*?)</tr>', client.get("/").text, re.DOTALL))
    assert list(rows) == [waiting, failed, running, done]
    assert "No worker is running." in rows[waiting]
    assert "SIGKILL" in rows[failed]
    assert "Regularising" in rows[running]
    assert '<progress max="100" value="50"' in rows[running]
    assert "40.1 → 43.6" in rows[done]


def test_the_list_is_filtered_and_paged(client: TestClient, site: Site) -> None:
    made = [site.submit() for _ in range(22)]
    with site.services.sessions.begin() as session:
        service.cancel(session, made[0])
    assert re.findall(r'id="row-(\w+)"', client.get("/?status=cancelled").text) == [made[0]]
    first = client.get("/?status=queued").text
    older = re.search(r'href="(/\?status=queued[^"]*)">Older', first)
    assert older is not None
    second = client.get(older[1].replace("&amp;", "&")).text
    assert re.findall(r'id="row-(\w+)"', first) + re.findall(r'id="row-(\w+)"', second) == made[:0:-1]
    assert "Older" not in second
    assert "No job is running" in client.get("/?status=running").text


def test_an_update_is_the_partial_of_the_page(client: TestClient, site: Site) -> None:
    job = site.submit()
    for page, fragment in (("/", "/fragments/jobs"), (f"/jobs/{job}", f"/fragments/jobs/{job}")):
        without_ages = [re.sub(r">(now|\d+ s ago)<|[\d.]+ s\b", "", client.get(url).text) for url in (page, fragment)]
        unindented = [re.sub(r"\s+", " ", text) for text in without_ages]
        assert unindented[1].strip() in unindented[0]


# One job


def test_a_running_job_asks_for_updates_and_can_be_cancelled(client: TestClient, site: Site) -> None:
    job = site.submit()
    held = site.claim()
    site.progress(held, Stage.SELECTING, 3, 40, loss=0.25)
    page = client.get(f"/jobs/{job}").text
    assert f'hx-get="/fragments/jobs/{job}"' in page
    assert "step 3 of 40" in page
    assert "0.250" in page
    assert client.post(f"/jobs/{job}/cancel").headers["location"] == f"/jobs/{job}"
    page = client.get(f"/jobs/{job}").text
    assert "Cancelling" in page
    assert f"/jobs/{job}/cancel" not in page


def test_a_job_that_succeeded_shows_its_report_and_files_and_asks_for_no_more(
    client: TestClient, site: Site, tmp_path: Path
) -> None:
    job = site.submit()
    site.succeed(site.claim(), tmp_path)
    page = client.get(f"/jobs/{job}").text
    assert "hx-get" not in page
    assert "removed: 5, 7, 9 and 10" in page
    assert page.count("data-chart") >= 5
    assert f'href="/v1/jobs/{job}/report.html"' in page
    links = [attributes["href"] for tag, attributes in Tags(page).found if tag == "a" and "download" in attributes]
    assert len(links) == 3
    answer = client.get(str(links[0]))
    assert answer.content == b"{}"
    assert hashlib.sha256(answer.content).hexdigest() in page


def test_a_failed_job_says_why(client: TestClient, site: Site) -> None:
    job = site.submit()
    site.fail(site.claim())
    page = client.get(f"/jobs/{job}").text
    for said in ("Why it failed", "runner_died", "memory ran out", "-9", "loading weights"):
        assert said in page
    assert "<b>allocating" not in page
    assert "hx-get" not in page


def test_settings_that_differ_from_the_defaults_are_marked(client: TestClient, site: Site) -> None:
    job = site.submit(seed=7)
    page = re.sub(r"\s+", " ", client.get(f"/jobs/{job}").text)
    assert re.findall(r'<div class="changed"> <dt>(.*?)</dt> <dd> ?(.*?) ?</dd>', page) == [("Seed", "7")]
    job = site.submit(method={"name": "elder", "updates": 5})
    page = re.sub(r"\s+", " ", client.get(f"/jobs/{job}").text)
    assert re.findall(r'<div class="changed"> <dt>(.*?)</dt> <dd> ?(.*?) ?</dd>', page) == [("Updates", "5")]


def test_a_wrong_address_is_answered_with_a_page(client: TestClient) -> None:
    for url, status, said in (
        ("/jobs/job_x", 404, "There is no job &#39;job_x&#39;."),
        ("/?status=odd", 422, "status: "),
        ("/?after=job_x", 422, "names no job"),
        ("/static/none.js", 404, "There is no file"),
    ):
        answer = client.get(url)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert said in answer.text


# The form


def test_the_form_offers_models_texts_and_methods(client: TestClient) -> None:
    page = client.get("/jobs/new").text
    assert '<option value="builtin:manuals-calibration">' in page
    for name in ("elder", "shortgpt"):
        assert f'name="method.name" value="{name}"' in re.sub(r"\s+", " ", page)


def test_every_control_has_a_label_and_every_id_is_unique(client: TestClient) -> None:
    tags = Tags(client.get("/jobs/new").text).found
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes.get("for") for tag, attributes in tags if tag == "label"}
    for tag, attributes in tags:
        if tag in ("input", "select", "textarea") and attributes.get("type") not in ("hidden", "radio"):
            assert attributes["id"] in labelled
            assert set(str(attributes["aria-describedby"]).split()) <= set(ids)


@pytest.mark.usefixtures("submitted")
def test_the_form_submits_once_however_often_it_is_sent(client: TestClient, site: Site) -> None:
    first = client.post("/jobs/new", data=form(method__elder__updates="5"))
    again = client.post("/jobs/new", data=form(method__elder__updates="5"))
    assert first.status_code == 303
    assert jobs(site) == [first.headers["location"].rpartition("/")[2]]
    assert again.headers["location"] == first.headers["location"]
    with site.services.sessions.begin() as session:
        spec = JobSpec.model_validate(repository.get(session, jobs(site)[0]).spec)
    assert spec.model_dump()["method"]["updates"] == 5


@pytest.mark.usefixtures("submitted")
def test_a_changed_form_sent_with_a_used_key_gets_a_new_key(client: TestClient, site: Site) -> None:
    client.post("/jobs/new", data=form())
    answer = client.post("/jobs/new", data=form(seed="4"))
    assert answer.status_code == 422
    assert "made a job already" in answer.text
    key = re.search(r'name="idempotency_key"\s+value="([^"]+)"', answer.text)
    assert key is not None
    assert client.post("/jobs/new", data=form(seed="4", idempotency_key=key[1])).status_code == 303
    assert len(jobs(site)) == 2


@pytest.mark.usefixtures("submitted")
def test_a_refused_form_keeps_what_was_typed_and_says_what_is_wrong(client: TestClient, site: Site) -> None:
    answer = client.post("/jobs/new", data=form(method__elder__gate_batch_size="<many>", metadata="a=<b>"))
    assert answer.status_code == 422
    page = re.sub(r"\s+", " ", answer.text)
    assert 'value="&lt;many&gt;"' in page
    assert "a=&lt;b&gt;</textarea>" in page
    assert 'id="field-method-elder-gate_batch_size-error"' in page
    assert '<details class="more" open>' in page
    assert 'value="form-1"' in page
    assert jobs(site) == []


@pytest.mark.usefixtures("submitted")
def test_a_method_without_parameters_is_chosen_and_shown(client: TestClient, site: Site) -> None:
    choice = (
        re.sub(r"\s+", " ", client.get("/jobs/new").text).partition('value="cut"')[2].partition('class="choice"')[0]
    )
    assert "remove the layers that the job names" in choice
    assert 'class="chosen"' not in choice
    refused = client.post("/jobs/new", data=form(method__name="cut"))
    assert refused.status_code == 422
    page = re.sub(r"\s+", " ", refused.text)
    assert '<p class="wrong"> The method cut chooses no layers: name them in layers' in page
    taken = client.post("/jobs/new", data=form(method__name="cut", target="layers", layers="3, 7"))
    assert taken.status_code == 303
    page = client.get(taken.headers["location"]).text
    assert "<h3>Cut</h3>" not in page
    assert "<h3>Evaluation</h3>" in page
    with site.services.sessions.begin() as session:
        spec = JobSpec.model_validate(repository.get(session, jobs(site)[0]).spec)
    assert (spec.method.name, spec.layers) == ("cut", (3, 7))


@pytest.mark.usefixtures("submitted")
def test_a_target_left_empty_is_asked_for_beside_it(client: TestClient) -> None:
    page = client.post("/jobs/new", data=form(target="layers")).text
    assert 'id="field-layers-error"' in page


def test_an_unknown_model_is_refused_beside_its_field(client: TestClient) -> None:
    page = client.post("/jobs/new", data=form(model__id="local:nothing")).text
    assert 'id="field-model-id-error"' in page


# Other sites


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://testserver"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({}, False),
    ],
)
def test_only_our_own_pages_may_send_a_form(site: Site, headers: dict[str, str], *, accepted: bool) -> None:
    job = site.submit()
    answer = TestClient(site.app, follow_redirects=False).post(f"/jobs/{job}/cancel", headers=headers)
    assert answer.status_code == (303 if accepted else 403)
    with site.services.sessions.begin() as session:
        assert repository.get(session, job).status == (Status.CANCELLED if accepted else Status.QUEUED)


def test_pages_forbid_scripts_of_others_and_inline_ones(client: TestClient, site: Site, tmp_path: Path) -> None:
    job = site.submit()
    site.succeed(site.claim(), tmp_path)
    for url in ("/", "/jobs/new", f"/jobs/{job}"):
        answer = client.get(url)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for tag, attributes in Tags(answer.text).found:
            assert not any(name.startswith(("on", "hx-on")) or name == "style" for name in attributes)
            if tag == "script":
                assert "src" in attributes or attributes.get("type") == "application/json"


# Files and words


def test_files_are_kept_by_browsers_under_the_address_of_their_version(client: TestClient) -> None:
    for name in assets.assets():
        answer = client.get(assets.asset_url(name))
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert client.get(f"/static/{name}?v=old").headers["cache-control"] == "no-cache"


def test_vendored_files_are_what_their_list_says() -> None:
    folder = Path(assets.__file__).parent / "static"
    listed = re.findall(r"^\| `(\S+)` \|.*\| `([0-9a-f]{64})` \|$", (folder / "VENDORED.md").read_text(), re.MULTILINE)
    assert listed
    for name, digest in listed:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "now"),
        (0.4, "now"),
        (1, "1 s ago"),
        (59.9, "59 s ago"),
        (60, "1 min ago"),
        (7200, "2 h ago"),
        (2e5, "2 d ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert words.ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_every_stage_and_state_has_a_name() -> None:
    assert set(words.STAGE_NAMES) == set(Stage)
    assert set(words.STATUS_NAMES) == set(Status)


def test_backticks_mark_code_and_nothing_else_is_markup() -> None:
    assert prose("`a<b` & c") == "<code>a&lt;b</code> &amp; c"
