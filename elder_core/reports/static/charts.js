/* Draws the charts that elder_core/reports/charts.py describes, with Chart.js (chart.umd.min.js, loaded first).
 *
 * A chart is an element with data-chart that holds a canvas and a <script type="application/json"> with its config.
 * Call elderCharts.draw(element) for content that arrives after the page was loaded. Colours are the names of CSS custom
 * properties of the page, so charts follow its light, dark and print styles. */
(function () {
  "use strict";

  const HATCH = "hatch:";

  function property(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || "#808080";
  }

  function hatch(colour) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 8;
    const pen = tile.getContext("2d");
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    pen.beginPath();
    for (const start of [-8, 0, 8]) {
      pen.moveTo(start, 8);
      pen.lineTo(start + 8, 0);
    }
    pen.stroke();
    return pen.createPattern(tile, "repeat");
  }

  /* A copy of a config in which the names of colours are replaced by colours. */
  function resolved(value) {
    if (Array.isArray(value)) return value.map(resolved);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolved(inner)]));
    }
    if (typeof value !== "string") return value;
    if (value.startsWith(HATCH)) return hatch(property(value.slice(HATCH.length)));
    return value.startsWith("--") ? property(value) : value;
  }

  function tooltip(item) {
    const name = item.dataset.label;
    const texts = item.dataset.texts;
    return name + ": " + (texts ? texts[item.dataIndex] : item.formattedValue);
  }

  /* Writes a dataset's texts on its bars, on a plate so that they can be read on any colour. */
  const writtenTexts = {
    id: "writtenTexts",
    afterDatasetsDraw(chart) {
      const pen = chart.ctx;
      pen.save();
      pen.font = "11px " + Chart.defaults.font.family;
      pen.textBaseline = "middle";
      chart.data.datasets.forEach((dataset, index) => {
        if (!dataset.written || !chart.isDatasetVisible(index)) return;
        chart.getDatasetMeta(index).data.forEach((bar, place) => {
          let text = dataset.texts[place];
          if (!text || dataset.data[place] === null) return;
          if (pen.measureText(text).width + 12 > bar.x - bar.base) text = text.split(" (")[0];
          const width = pen.measureText(text).width;
          pen.fillStyle = property("--chart-plate");
          pen.fillRect(bar.base + 4, bar.y - 7, width + 6, 14);
          pen.fillStyle = property("--chart-text");
          pen.fillText(text, bar.base + 7, bar.y + 0.5);
        });
      });
      pen.restore();
    },
  };

  function setDefaults() {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.color = property("--chart-text");
    Chart.defaults.borderColor = property("--chart-grid");
    Chart.defaults.animation = false;
    Chart.defaults.maintainAspectRatio = false;
    Chart.defaults.plugins.legend.position = "bottom";
    Chart.defaults.plugins.legend.align = "start";
    Chart.defaults.plugins.legend.labels.boxWidth = 24;
    Chart.defaults.plugins.legend.labels.filter = (item, data) => !data.datasets[item.datasetIndex].unlisted;
    Chart.defaults.plugins.tooltip.callbacks.label = tooltip;
  }

  function drawOne(holder) {
    const canvas = holder.querySelector("canvas");
    const config = resolved(JSON.parse(holder.querySelector('script[type="application/json"]').textContent));
    const legend = { display: config.data.datasets.length > 1 };
    if (config.type === "line") legend.labels = { usePointStyle: true, pointStyle: "line", pointStyleWidth: 32 };
    config.options.plugins = { legend: legend };
    config.plugins = [writtenTexts];
    const drawn = Chart.getChart(canvas);
    if (drawn) drawn.destroy();
    new Chart(canvas, config);
  }

  function draw(root) {
    setDefaults();
    const holders = Array.from(root.querySelectorAll("[data-chart]"));
    if (root.matches && root.matches("[data-chart]")) holders.push(root);
    holders.forEach(drawOne);
  }

  function drawAll() {
    draw(document);
  }

  window.elderCharts = { draw: draw };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", drawAll);
  else drawAll();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    window.matchMedia(query).addEventListener("change", drawAll);
  }
})();
