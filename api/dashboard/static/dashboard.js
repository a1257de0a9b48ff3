/* What the pages do beyond htmx: no updates for a hidden tab, ages that grow, charts in content that arrives late,
 * and a line that says when the service does not answer. */
(function () {
  "use strict";

  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]; // words.py has the same table
  const AGE_EVERY_MS = 1000;

  function age(seconds) {
    const unit = UNITS.find(([, size]) => seconds >= size);
    return unit ? Math.floor(seconds / unit[1]) + " " + unit[0] + " ago" : "now";
  }

  function showAges() {
    for (const element of document.querySelectorAll("time[data-age]")) {
      const text = age((Date.now() - Date.parse(element.dateTime)) / 1000);
      if (element.textContent !== text) element.textContent = text;
    }
  }

  function drawCharts() {
    if (!window.elderCharts) return;
    for (const holder of document.querySelectorAll("[data-chart]")) {
      if (!window.Chart.getChart(holder.querySelector("canvas"))) window.elderCharts.draw(holder);
    }
  }

  function offline(is) {
    document.getElementById("offline").hidden = !is;
  }

  document.addEventListener("htmx:before:request", (event) => {
    if (document.hidden) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-live]")) htmx.trigger(element, "elder:visible");
  });
  document.addEventListener("htmx:after:swap", () => {
    offline(false);
    drawCharts();
    showAges();
  });
  document.addEventListener("htmx:error", () => offline(true));
  document.addEventListener("htmx:response:error", () => offline(true));

  /* A second submission of the same form is the same job; the button only says that the first is on its way. */
  document.addEventListener("submit", (event) => {
    const button = event.target.querySelector("button[type=submit]");
    if (button) setTimeout(() => button.setAttribute("aria-disabled", "true"));
  });
  window.addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("[aria-disabled]")) button.removeAttribute("aria-disabled");
  });

  showAges();
  setInterval(showAges, AGE_EVERY_MS);
})();
