"""The dashboard in a real Chromium, against the real application."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

from elder_core.spec import Stage
from elder_service.jobs import repository
from tests.dashboard_site import Site, serving

# The last three keep it from looking for the network, which it does at every start.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
REFUSED = "Failed to load resource: the server responded with a status of 422"  # Chromium's word on a refused form
UPDATE_MS = 2100  # a little more than the time between two updates
MOST_TABS = 60
PHONE = {"width": 390, "height": 844}
SMALL_PHONE = {"width": 320, "height": 568}


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A page of its own browser profile; a message on its console or an exception in it fails the test."""
    context = browser.new_context(base_url=site.url)
    opened = context.new_page()
    opened.clock.install()
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if not message.text.startswith(REFUSED):
            complaints.append(message.text)

    opened.on("console", note)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    assert complaints == []


def press(page: Page, key: str) -> None:
    page.keyboard.press(key)


def pass_time(page: Page) -> None:
    """Make the page believe that it is time for its next update."""
    page.clock.fast_forward(UPDATE_MS)


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until `wanted` has the focus."""
    for _ in range(MOST_TABS):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        press(page, "Tab")
    pytest.fail(f"Tab never reaches {wanted}")


def test_the_list_follows_a_job_from_queued_to_succeeded(page: Page, site: Site, tmp_path: Path) -> None:
    page.goto("/")
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    job = site.submit()
    pass_time(page)
    row = page.locator(f"#row-{job}")
    expect(row).to_contain_text("Queued")
    link = row.get_by_role("link")
    link.focus()
    held = site.claim()
    site.progress(held, Stage.REGULARIZING, 60, 120)
    pass_time(page)
    expect(row).to_contain_text("Regularising")
    expect(row.get_by_role("progressbar")).to_have_attribute("value", "50")
    site.succeed(held, tmp_path)
    pass_time(page)
    expect(row).to_contain_text("40.1 → 43.6")
    expect(link).to_be_focused()


def test_the_page_of_a_job_follows_it_to_its_end_and_no_further(page: Page, site: Site, tmp_path: Path) -> None:
    job = site.submit()
    held = site.claim()
    site.progress(held, Stage.SELECTING, 3, 40, loss=0.25)
    page.goto(f"/jobs/{job}")
    expect(page.get_by_text("step 3 of 40").first).to_be_visible()
    page.get_by_text("Cancel…").click()
    site.progress(held, Stage.REGULARIZING, 60, 120, loss=0.125)
    pass_time(page)
    expect(page.get_by_role("status").filter(has_text="Regularising")).to_be_visible()
    expect(page.locator(".stages .current")).to_have_text(re.compile("Regularising"))
    expect(page.get_by_role("button", name="Cancel this job")).to_be_visible()  # an update folds nothing up
    site.succeed(held, tmp_path)
    pass_time(page)
    expect(page.get_by_role("heading", name="Report")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel this job")).to_have_count(0)
    charts = page.locator("[data-chart] canvas")
    expect(charts).to_have_count(6)
    page.wait_for_function("[...document.querySelectorAll('[data-chart] canvas')].every(one => Chart.getChart(one))")
    asked = asked_by(page)
    for _ in range(3):
        pass_time(page)
    page.wait_for_timeout(100)
    assert asked == []


def test_a_file_is_downloaded_through_its_link(page: Page, site: Site, tmp_path: Path) -> None:
    job = site.submit()
    site.succeed(site.claim(), tmp_path)
    page.goto(f"/jobs/{job}")
    with page.expect_download() as started:
        page.get_by_role("link", name="model/config.json").click()
    assert started.value.path().read_bytes() == b"{}"


def test_a_job_is_submitted_with_the_keyboard_alone(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elder_service.jobs.validation.check", lambda spec, *_: spec.check_target())
    monkeypatch.setattr("api.submission.estimated_memory", lambda *_: None)
    page.goto("/")
    press(page, "Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab_to(page, page.get_by_role("link", name="New job"))
    press(page, "Enter")
    page.wait_for_url("**/jobs/new")
    tab_to(page, page.get_by_label("Model", exact=True))
    page.keyboard.type("local:typed")
    tab_to(page, page.get_by_label("A share of the layers"))
    press(page, "ArrowDown")
    tab_to(page, page.get_by_label("Number of layers", exact=True))
    page.keyboard.type("x")
    tab_to(page, page.get_by_role("button", name="Submit job"))
    press(page, "Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Number of layers")
    expect(alert).to_be_focused()
    number = page.get_by_label("Number of layers", exact=True)
    expect(number).to_have_value("x")
    tab_to(page, number)
    press(page, "ControlOrMeta+a")
    page.keyboard.type("3")
    press(page, "Enter")
    page.wait_for_url("**/jobs/job_*")
    expect(page.get_by_role("heading", name="local:typed")).to_be_visible()
    with site.services.sessions.begin() as session:
        spec = repository.get(session, page.url.rpartition("/")[2]).spec
    assert spec["layers_to_remove"] == 3


def test_choosing_a_method_shows_its_parameters_only(page: Page) -> None:
    page.goto("/jobs/new")
    penalty = page.get_by_label("Gate penalty")
    expect(penalty).to_be_visible()
    page.get_by_label("ShortGPT").check()
    expect(penalty).to_be_hidden()
    expect(page.locator("#field-method-shortgpt-batch_size")).to_be_visible()
    expect(page.locator("#field-method-shortgpt-scoring_batch_size")).to_be_hidden()


def test_a_job_is_cancelled_from_its_page(page: Page, site: Site) -> None:
    job = site.submit()
    page.goto(f"/jobs/{job}")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.locator(".state .badge")).to_have_text("Cancelled")


def test_a_failed_job_shows_its_reason(page: Page, site: Site) -> None:
    job = site.submit()
    site.fail(site.claim())
    page.goto("/")
    expect(page.locator(f"#row-{job}")).to_contain_text("SIGKILL")
    page.locator(f"#row-{job}").get_by_role("link").click()
    expect(page.get_by_role("heading", name="Why it failed")).to_be_visible()
    expect(page.get_by_role("region", name="Last lines of the log")).to_contain_text("<b>allocating 64 GB</b>")


def test_no_page_scrolls_sideways_on_a_phone(page: Page, site: Site, tmp_path: Path) -> None:
    done, failed, running = [site.submit() for _ in range(3)]
    site.succeed(site.claim(), tmp_path)
    site.fail(site.claim())
    site.progress(site.claim(), Stage.SELECTING, 3, 40, loss=0.25)
    site.submit("an-owner-with-quite-a-long-name/a-model-of-theirs-with-an-even-longer-name-135M-Instruct")
    for size in (PHONE, SMALL_PHONE):
        page.set_viewport_size(size)
        for url in ("/", "/jobs/new", f"/jobs/{done}", f"/jobs/{failed}", f"/jobs/{running}"):
            page.goto(url)
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], (url, size)


def test_pages_work_without_javascript(browser: Browser, site: Site) -> None:
    job = site.submit()
    context = browser.new_context(base_url=site.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.get_by_role("link", name="builtin:manuals-16l").click()
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel this job").click()
    expect(page.locator(".state .badge")).to_have_text("Cancelled")
    with site.services.sessions.begin() as session:
        assert repository.get(session, job).status == "cancelled"
    context.close()


def test_a_service_that_does_not_answer_is_said_and_forgotten(browser: Browser, site: Site) -> None:
    context = browser.new_context(base_url=site.url)
    page = context.new_page()
    page.clock.install()
    page.goto("/")
    page.route("**/fragments/**", lambda route: route.abort())
    pass_time(page)
    said = page.get_by_text("The service does not answer")
    expect(said).to_be_visible()
    page.unroute("**/fragments/**")
    pass_time(page)
    expect(said).to_be_hidden()
    context.close()


def test_a_hidden_page_asks_for_nothing_until_it_is_seen_again(page: Page, site: Site) -> None:
    page.goto("/")
    show(page, hidden=True)
    job = site.submit()
    asked = asked_by(page)
    pass_time(page)
    page.wait_for_timeout(100)
    assert asked == []
    show(page, hidden=False)
    expect(page.locator(f"#row-{job}")).to_be_visible()
    assert asked


def asked_by(page: Page) -> list[str]:
    """List what the page's script asks for from now on; the browser itself may still be asking for the icon."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.resource_type == "fetch" else None)
    return asked


def show(page: Page, *, hidden: bool) -> None:
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
