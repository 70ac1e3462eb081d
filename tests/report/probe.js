// Runs in a page that holds reports in frames of their own; what it finds goes into the title, as JSON.
"use strict";
const PARTS = ".track > *, .chart span, .legend li, .evidence, .note, .sentence";
const rect = (element) => element.getBoundingClientRect();
const visible = (element) => rect(element).width > 0 && getComputedStyle(element).display !== "none";
const overlapping = (elements, start, end) => {
  const boxes = elements.filter(visible).map(rect).sort((a, b) => a[start] - b[start]);
  return boxes.some((box, i) => i > 0 && boxes[i - 1][end] > box[start] + .5);
};

const lookAt = (frame) => {
  const page = frame.contentDocument, root = page.documentElement, all = (query) => [...page.querySelectorAll(query)];
  const charts = all("figure[data-chart]"), cards = all(".card");
  const found = {
    overflow: root.scrollWidth - root.clientWidth,
    charts: charts.length,
    undrawn: charts.filter((chart) => {
      const area = rect(chart.querySelector(".area"));
      const curves = [...chart.querySelectorAll(".area path[class*=' c']")];
      return area.height < 100 || area.width < 100 || !curves.some((curve) => curve.getTotalLength() > 100);
    }).map((chart) => chart.id),
    crowded: charts.filter((chart) =>
      overlapping([...chart.querySelectorAll(".across span")], "left", "right")
      || overlapping([...chart.querySelectorAll(".event")], "left", "right")
      || overlapping([...chart.querySelectorAll(".up span")], "top", "bottom")).map((chart) => chart.id),
    outside: cards.filter((card) => [...card.querySelectorAll(PARTS)]
      .filter(visible).some((part) => rect(part).right > rect(card).right || rect(part).left < rect(card).left))
      .map((card) => card.textContent.trim().slice(0, 30)),
    smallText: all("body *").filter((part) => part.children.length === 0 && part.textContent.trim() && visible(part)
      && parseFloat(getComputedStyle(part).fontSize) < 11.5 && part.closest("script, style") === null).length,
    nameless: all("button, [role=img], [role=region], nav").filter((part) => !part.getAttribute("aria-label") && !part.textContent.trim()).length,
  };
  const [chart] = charts;
  const area = chart.querySelector(".area"), box = rect(area), readout = chart.querySelector(".readout");
  area.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width, clientY: box.top + 5}));
  found.underPointer = readout.textContent;
  chart.querySelector(".chart").dispatchEvent(new KeyboardEvent("keydown", {key: "Home"}));
  found.atHome = readout.textContent;
  chart.querySelector(".chart").dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  found.afterEscape = readout.textContent;
  const theme = page.getElementById("theme");
  found.themes = {};
  for (let i = 0; i < 3; i++) {
    theme.click();
    found.themes[theme.textContent] = getComputedStyle(page.body).backgroundColor;
  }
  return found;
};

addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  const results = Object.fromEntries(frames.map((frame) => [`${frame.name} ${frame.width}`, lookAt(frame)]));
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(results);
  document.body.replaceChildren(result);
});
